"""The tables of a report: quality and cost, size and speed, what ran where."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence

from lightpaff_jax import config
from lightpaff_jax.report.results import (
    METRICS,
    SPEED,
    Row,
    binomial_error,
    cost,
    has_scores,
    kept,
    plus_minus,
    score,
    throughput,
    values,
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the lines. No header: facts, one a line."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str
    quoted: Sequence[int] = ()
    """Lines that are not of this recipe's runs."""
    best: Sequence[tuple[int, int]] = ()
    """Line and column of cells that stand out."""


def _count(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):,.0f}'


def _powers(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):.2e}'.replace('e+0', 'e').replace('e+', 'e')


# Name, value of a chain, text of the values of all seeds.
Column = tuple[str, Callable, Callable]
_WORDS: Column = ('perplexity per word', score('word_perplexity'), lambda v: plus_minus(v, 2))
_ACCURACY: Column = ('accuracy', score('accuracy'), lambda v: plus_minus(v, 3))
_PERPLEXITY: Column = ('perplexity per token', score('perplexity'), lambda v: plus_minus(v, 2))
# `outputs` of an objective -> columns beside the metric; a classifier's accuracy has its own, in %.
SCORE_COLUMNS: dict[str, tuple[Column, ...]] = {
    'sums': (_ACCURACY,),
    'rows': (_WORDS, _ACCURACY),
    'logits': (
        ('binomial error, %', binomial_error, lambda v: f'{statistics.fmean(v):.2f}'),
        ('cross-entropy', score('ce'), lambda v: plus_minus(v, 3)),
        ('test examples', score('examples'), _count),
    ),
}
COLUMNS: tuple[Column, ...] = (
    ('seeds', len, lambda v: str(len(v))),
    ('updates', cost('updates'), _count),
    ('train FLOPs', cost('flops'), _powers),
    ('train seconds', cost('seconds'), _count),
    ('parameters', lambda chain: chain[-1]['parameters'], _count),
    ('size, MB', lambda chain: chain[-1]['bytes'] / 1e6, lambda v: f'{statistics.fmean(v):,.1f}'),
    ('train tokens/s', throughput, _count),
)


def main_table(rows: dict[str, Row], task: str = '') -> Table:
    """Quality and cost of every finished row of a task; `task` names it in the title."""
    some = next(iter(rows.values()))
    columns = (*_score_columns(some), *COLUMNS)
    compared = any(has_scores(row, 'agreement', 'kl') for row in rows.values())
    lines = []
    for row in rows.values():
        shares = kept(row, rows['teacher']) if 'teacher' in rows else None
        rest = [show(values(row, of)) for _, of, show in columns]
        if compared:
            alike = has_scores(row, 'agreement', 'kl')
            rest[-len(COLUMNS) : -len(COLUMNS)] = _agreement(row) if alike else ('-', '-')
        lines.append(
            (row.label, plus_minus(values(row), 2), plus_minus(shares, 1) if shares else '-', *rest)
        )
    names = [name for name, _, _ in columns]
    if compared:
        names[-len(COLUMNS) : -len(COLUMNS)] = ('agrees with teacher, %', 'KL to teacher, nats')
    header = ('', some.metric.label, "of the teacher's score, %", *names)
    return Table(f'Results: {task}' if task else 'Results', header, lines, _main_note(rows))


def _agreement(row: Row) -> tuple[str, str]:
    alike = [100 * value for value in values(row, score('agreement'))]
    return plus_minus(alike, 1), plus_minus(values(row, score('kl')), 3)


def _score_columns(row: Row) -> tuple[Column, ...]:
    """What is shown of the scores beside the metric: its companions, then the objective's."""

    def companion(key: str) -> Column:
        metric = METRICS[key]
        return (metric.label, metric.of, lambda v: plus_minus(v, 2))

    of_metric = [companion(key) for key in row.metric.companions]
    if row.metric.key in config.GENERATION_METRICS:
        of_metric.append(_PERPLEXITY)
    return (*of_metric, *SCORE_COLUMNS[config.OBJECTIVES[row.objective].outputs])


def _main_note(rows: dict[str, Row]) -> str:
    some = next(iter(rows.values()))
    ratio = (
        'the ratio of the scores'
        if some.metric.higher
        else ("the teacher's negative log-likelihood per token over the student's")
    )
    ends = [chain[-1]['scores']['test'] for row in rows.values() for chain in row.chains]
    signed = sorted({s['bleu_signature'] for s in ends if 'bleu_signature' in s})
    signature = f'BLEU: {" or ".join(signed)}. ' if some.metric.key == 'bleu' and signed else ''
    return (
        'Scores on the test split; ± is the standard error of the mean over seeds (sd / √n). '
        f"Of the teacher's score: {ratio}. {signature}{config.OBJECTIVES[some.objective].note}Costs add up all "
        'runs behind a row, those that other rows share too, means over seeds; a distilled run '
        'counts the forward pass of the teacher, no student counts the training of the teacher.'
    )


def speed_table(speed: dict, task: str = '') -> Table:
    """Teacher against student, as speed.json has it; `task` names theirs in the note."""
    lines = []
    for key, (name, factor, digits, ratio) in SPEED.items():
        cells = (f'{speed[who][key] * factor:,.{digits}f}' for who in ('teacher', 'student'))
        lines.append((name, *cells, f'{speed["ratios"][ratio]:.2f}x'))
    note = (
        f'Medians of {speed["pairs"]} pairs of measurements on {speed["hardware"]}: latency of a '
        f'call that {speed["task"]} of {speed["length"]} tokens, tokens/s with '
        f'{speed["batch_size"]} at a time. Ratio: teacher / student; for tokens/s student / '
        f'teacher.{f" The networks are those of the task {task}." if task else ""}'
    )
    return Table('Size and speed', ('', 'teacher', 'student', 'ratio'), lines, note)


def provenance(
    workdir: pathlib.Path, recipe: dict, tasks: dict[str, dict[str, Row]]
) -> tuple[Table, list[str]]:
    """'What ran where', and a warning for each thing the runs should share and do not."""
    chains = [c for rows in tasks.values() for row in rows.values() for c in row.chains]
    results = [r for chain in chains for r in chain]
    packages = sorted({name for r in results for name in r['versions']})
    keys = {'git commit': 'git_commit', 'hardware': 'hardware', 'tokenizer': 'tokenizer_hash'}
    facts = {name: [r[key] for r in results] for name, key in keys.items()}
    facts |= _protocols(recipe, tasks)
    facts |= {f'version of {p}': [r['versions'].get(p) for r in results] for p in packages}
    facts['teacher hash'] = [r['teacher_hash'] for r in results if r['teacher_hash']]
    seen = {name: sorted({str(v or 'unknown') for v in values}) for name, values in facts.items()}
    warnings = [
        f'Warning: the runs differ in {name}: {"; ".join(values)}.'
        for name, values in seen.items()
        if len(values) > 1 and name != 'teacher hash'
    ]
    lines = [(name, '; '.join(values)) for name, values in seen.items() if values]
    seeds = {
        seed for rows in tasks.values() for key, row in rows.items() if key != 'teacher'
        for seed in row.seeds
    }  # fmt: skip
    lines.append(('seeds', ', '.join(map(str, sorted(seeds))) or '-'))
    if 'command' in recipe:
        lines.append(('recipe', recipe['command']))
    lines.append(('this report', f'python -m lightpaff_jax.report {workdir}'))
    return Table('What ran where', ('', ''), lines, ''), warnings


def _protocols(recipe: dict, tasks: dict[str, dict[str, Row]]) -> dict[str, list]:
    """How the runs that are compared with each other were scored, and on how much."""
    results = [row.chains for rows in tasks.values() for row in rows.values()]
    before = [r['protocol'] for chains in results for chain in chains for r in chain[:-1]]
    facts = {'protocol of pre-training': before}
    for task, rows in tasks.items():
        several = len(recipe['tasks']) > 1
        ends = [chain[-1] for row in rows.values() for chain in row.chains]
        facts[f'protocol of {task if several else "fine-tuning"}'] = [r['protocol'] for r in ends]
        unit = f'{config.OBJECTIVES[ends[0]["objective"]].unit}s'
        counts = [f'{r["scores"]["test"][unit]:,.0f} {unit}' for r in ends]
        facts[f'test split of {task}' if several else 'test split'] = counts
        signed = [r['scores']['test'].get('bleu_signature') for r in ends]
        if any(signed):
            facts[f'BLEU of {task}' if several else 'BLEU'] = signed
    return facts
