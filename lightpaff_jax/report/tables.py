"""The tables of a report: scores and costs of a task, size and speed, and provenance."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence

from lightpaff_jax import config
from lightpaff_jax.report.results import (
    METRICS,
    SPEED,
    Results,
    Row,
    binomial_error,
    format_mean,
    has_scores,
    score,
    teacher_share,
    throughput,
    total,
    values,
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts. The first column labels the lines. Without a header it is a list of facts."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str
    quoted: Sequence[int] = ()
    """Lines with figures from a publication."""
    best: Sequence[tuple[int, int]] = ()
    """Line and column of each highlighted cell."""


# Label, value of one seed, and format of the values of all seeds.
Column = tuple[str, Callable[[Results], float], Callable[[Sequence[float]], str]]


def _format_count(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):,.0f}'


def _format_power(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):.2e}'.replace('e+0', 'e').replace('e+', 'e')


def _format_percent(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):.2f}'


def _format_2(values: Sequence[float]) -> str:
    return format_mean(values, 2)


def _format_3(values: Sequence[float]) -> str:
    return format_mean(values, 3)


_WORDS: Column = ('perplexity per word', score('word_perplexity'), _format_2)
_ACCURACY: Column = ('accuracy', score('accuracy'), _format_3)
_PERPLEXITY: Column = ('perplexity per token', score('perplexity'), _format_2)
SCORE_COLUMNS: dict[str, tuple[Column, ...]] = {
    'sums': (_ACCURACY,),
    'rows': (_WORDS, _ACCURACY),
    'logits': (
        ('binomial error, %', binomial_error, _format_percent),
        ('cross-entropy', score('ce'), _format_3),
        ('test examples', score('examples'), _format_count),
    ),
}
"""`outputs` of an objective -> columns after the metric; the accuracy of a classifier is a metric."""
COLUMNS: tuple[Column, ...] = (
    ('seeds', len, lambda values: str(len(values))),
    ('updates', total('updates'), _format_count),
    ('train FLOPs', total('flops'), _format_power),
    ('train seconds', total('seconds'), _format_count),
    ('parameters', lambda results: results[-1]['parameters'], _format_count),
    (
        'size, MB',
        lambda results: results[-1]['bytes'] / 1e6,
        lambda values: f'{statistics.fmean(values):,.1f}',
    ),
    ('train tokens/s', throughput, _format_count),
)
"""Columns of the costs."""


def main_table(rows: dict[str, Row], task: str = '') -> Table:
    """Returns the scores and costs of a task's finished rows; `task` is named in the title."""
    first = next(iter(rows.values()))
    with_agreement = any(has_scores(row, 'agreement', 'kl') for row in rows.values())
    columns = _score_columns(first)
    names = [name for name, _, _ in columns]
    if with_agreement:
        names += ['agrees with teacher, %', 'KL to teacher, nats']
    names += [name for name, _, _ in COLUMNS]
    header = ('', first.metric.label, 'share of teacher score, %', *names)
    lines = []
    for row in rows.values():
        shares = teacher_share(row, rows['teacher']) if 'teacher' in rows else None
        line = [row.label, format_mean(values(row), 2), format_mean(shares, 1) if shares else '-']
        line += [format_values(values(row, measure)) for _, measure, format_values in columns]
        if with_agreement:
            line += _agreement(row)
        line += [format_values(values(row, measure)) for _, measure, format_values in COLUMNS]
        lines.append(line)
    return Table(f'Results: {task}' if task else 'Results', header, lines, _main_note(rows))


def _agreement(row: Row) -> tuple[str, str]:
    """Formats agreement and KL divergence; a run without a teacher has neither."""
    if not has_scores(row, 'agreement', 'kl'):
        return '-', '-'
    percent = [100 * value for value in values(row, score('agreement'))]
    return format_mean(percent, 1), format_mean(values(row, score('kl')), 3)


def _score_columns(row: Row) -> tuple[Column, ...]:
    """Returns the columns after the metric: its companions, then those of the objective."""
    metrics = [METRICS[key] for key in row.metric.companions]
    columns: list[Column] = [(metric.label, metric.value, _format_2) for metric in metrics]
    if row.metric.key in config.GENERATION_METRICS:
        columns.append(_PERPLEXITY)
    return (*columns, *SCORE_COLUMNS[config.OBJECTIVES[row.objective].outputs])


def _main_note(rows: dict[str, Row]) -> str:
    first = next(iter(rows.values()))
    share = (
        'the ratio of the scores'
        if first.metric.higher_is_better
        else ("the teacher's negative log-likelihood per token divided by the student's")
    )
    tests = [results[-1]['scores']['test'] for row in rows.values() for results in row.results]
    signatures = sorted({test['bleu_signature'] for test in tests if 'bleu_signature' in test})
    note, bleu = config.OBJECTIVES[first.objective].note, ''
    if first.metric.key == 'bleu' and signatures:
        bleu = f'BLEU: {" or ".join(signatures)}. '
    return (
        'Scores on the test split; ± is the standard error of the mean over seeds (sd / √n). '
        f'Share of teacher score: {share}. {bleu}{note}Costs are totals over all '
        'runs of a row, including runs that other rows share, and means over seeds. A distilled '
        'run includes the forward pass of the teacher; no student includes the training of the '
        'teacher.'
    )


def speed_table(speed: dict, task: str = '') -> Table:
    """Returns the sizes and times of speed.json; `task` names the networks' task in the note."""
    lines = []
    for key, (name, factor, digits, ratio) in SPEED.items():
        cells = (
            f'{speed[network][key] * factor:,.{digits}f}' for network in ('teacher', 'student')
        )
        lines.append((name, *cells, f'{speed["ratios"][ratio]:.2f}x'))
    networks = f' The networks are those of the task {task}.' if task else ''
    note = (
        f'Medians of {speed["pairs"]} pairs of measurements on {speed["hardware"]}. Latency: time '
        f'of a call that {speed["task"]} of {speed["length"]} tokens. Tokens/s: with '
        f'{speed["batch_size"]} examples per call. Ratio: teacher / student; for tokens/s student '
        f'/ teacher.{networks}'
    )
    return Table('Size and speed', ('', 'teacher', 'student', 'ratio'), lines, note)


def provenance(
    workdir: pathlib.Path, recipe: dict, tasks: dict[str, dict[str, Row]]
) -> tuple[Table, list[str]]:
    """Returns the table of commits, hardware, protocols and versions, and its warnings.

    A warning names each property that should be the same in all runs but differs.
    """
    rows = [row for task in tasks.values() for row in task.values()]
    results = [result for row in rows for results in row.results for result in results]
    packages = sorted({name for result in results for name in result['versions']})
    keys = {'git commit': 'git_commit', 'hardware': 'hardware', 'tokenizer': 'tokenizer_hash'}
    facts = {name: [result[key] for result in results] for name, key in keys.items()}
    facts |= _protocols(recipe, tasks)
    facts |= {
        f'version of {p}': [result['versions'].get(p) for result in results] for p in packages
    }
    facts['teacher hash'] = [r['teacher_hash'] for r in results if r['teacher_hash']]
    distinct = {name: sorted({str(v or 'unknown') for v in facts[name]}) for name in facts}
    warnings = [
        f'Warning: the runs differ in {name}: {"; ".join(texts)}.'
        for name, texts in distinct.items()
        if len(texts) > 1 and name != 'teacher hash'  # each task has its own teacher
    ]
    lines = [(name, '; '.join(texts)) for name, texts in distinct.items() if texts]
    students = [row for task in tasks.values() for key, row in task.items() if key != 'teacher']
    seeds = sorted({seed for row in students for seed in row.seeds})
    lines.append(('seeds', ', '.join(map(str, seeds)) or '-'))
    if 'command' in recipe:
        lines.append(('recipe', recipe['command']))
    lines.append(('this report', f'python -m lightpaff_jax.report {workdir}'))
    return Table('Provenance', ('', ''), lines, ''), warnings


def _protocols(recipe: dict, tasks: dict[str, dict[str, Row]]) -> dict[str, list]:
    """Returns the protocol and the size of the test split, which must agree within a task."""
    rows = [row for task in tasks.values() for row in task.values()]
    pretraining = [r['protocol'] for row in rows for results in row.results for r in results[:-1]]
    facts = {'protocol of pre-training': pretraining}
    several = len(recipe['tasks']) > 1
    for task, task_rows in tasks.items():
        last = [results[-1] for row in task_rows.values() for results in row.results]
        facts[f'protocol of {task if several else "fine-tuning"}'] = [r['protocol'] for r in last]
        unit = f'{config.OBJECTIVES[last[0]["objective"]].unit}s'
        counts = [f'{r["scores"]["test"][unit]:,.0f} {unit}' for r in last]
        facts[f'test split of {task}' if several else 'test split'] = counts
        signatures = [r['scores']['test'].get('bleu_signature') for r in last]
        if any(signatures):
            facts[f'BLEU of {task}' if several else 'BLEU'] = signatures
    return facts
