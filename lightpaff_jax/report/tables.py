"""The tables of a report: scores and costs of a task, size and speed, and provenance."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from lightpaff_jax import config
from lightpaff_jax.report.results import (
    METRICS,
    SPEED,
    Results,
    Row,
    binomial_error,
    format_mean,
    has_score,
    live_flops,
    mean,
    score,
    stage1_note,
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
    quoted: Sequence[int] = ()  # lines with figures from a publication
    best: Sequence[tuple[int, int]] = ()  # line and column of each highlighted cell


Column = tuple[str, Callable[[Row], str]]  # label, and the cell of a row


def _score_column(label: str, name: str, digits: int, factor: float = 1) -> Column:
    """Shows a test score with its error; '-' if a run does not have the score."""

    def cell(row: Row) -> str:
        if not has_score(row, name):
            return '-'
        return format_mean([factor * value for value in values(row, score(name))], digits)

    return label, cell


def _mean_column(label: str, measure: Callable[[Results], float], spec: str) -> Column:
    return label, lambda row: format(mean(row, measure), spec)


def _format_flops(row: Row) -> str:
    return f'{mean(row, live_flops):.2e}'.replace('e+0', 'e').replace('e+', 'e')


_ACCURACY = _score_column('accuracy', 'accuracy', 3)
# `outputs` of an objective -> columns after the metric. A classifier's accuracy is a metric.
SCORE_COLUMNS: dict[str, tuple[Column, ...]] = {
    'sums': (_ACCURACY,),
    'rows': (_score_column('perplexity per word', 'word_perplexity', 2), _ACCURACY),
    'logits': (
        _mean_column('binomial error, %', binomial_error, '.2f'),
        _score_column('cross-entropy', 'ce', 3),
        _mean_column('test examples', score('examples'), ',.0f'),
    ),
}
AGREEMENT_COLUMNS = (
    _score_column('agrees with teacher, %', 'agreement', 1, 100),
    _score_column('KL to teacher, nats', 'kl', 3),
)
COST_COLUMNS: tuple[Column, ...] = (
    ('seeds', lambda row: str(len(row.seeds))),
    _mean_column('updates', total('updates'), ',.0f'),
    ('train FLOPs', _format_flops),
    _mean_column('train seconds', total('seconds'), ',.0f'),
    _mean_column('parameters', lambda results: results[-1]['parameters'], ',.0f'),
    _mean_column('size, MB', lambda results: results[-1]['bytes'] / 1e6, ',.1f'),
    _mean_column('train tokens/s', throughput, ',.0f'),
)


def _metric_columns(rows: dict[str, Row]) -> list[Column]:
    """Returns the columns of the metric and of the share of the teacher's score."""
    metric = next(iter(rows.values())).metric

    def share(row: Row) -> str:
        shares = teacher_share(row, rows['teacher']) if 'teacher' in rows else None
        return format_mean(shares, 1) if shares else '-'

    column = _score_column(metric.label, metric.key, 2, metric.factor)
    return [column, ('share of teacher score, %', share)]


def _table(title: str, rows: dict[str, Row], columns: Sequence[Column], note: str) -> Table:
    header = ('', *(label for label, _ in columns))
    lines = [[row.label, *(cell(row) for _, cell in columns)] for row in rows.values()]
    return Table(title, header, lines, note)


def short_table(rows: dict[str, Row]) -> Table:
    """Returns the metric and the main costs of a task's finished rows."""
    costs = dict(COST_COLUMNS)
    shown = ('seeds', 'updates', 'train FLOPs', 'train seconds', 'parameters')
    columns = _metric_columns(rows) + [(label, costs[label]) for label in shown]
    return _table('Results', rows, columns, '')


def main_table(rows: dict[str, Row], task: str = '', note: str = '') -> Table:
    """Returns the scores and costs of a task's finished rows.

    Args:
      rows: the rows.
      task: the name in the title; '' if the recipe has one task.
      note: sentences that the note of the table begins with.
    """
    first = next(iter(rows.values()))
    companions = [METRICS[key] for key in first.metric.companions]
    columns = _metric_columns(rows)
    columns += [_score_column(m.label, m.key, 2, m.factor) for m in companions]
    if first.metric.key in config.GENERATION_METRICS:
        columns.append(_score_column('perplexity per token', 'perplexity', 2))
    columns += SCORE_COLUMNS[first.objective.outputs]
    if any(has_score(row, 'agreement') for row in rows.values()):
        columns += AGREEMENT_COLUMNS
    columns += COST_COLUMNS
    title = f'Results: {task}' if task else 'Results'
    return _table(title, rows, columns, note + _main_note(rows))


def _main_note(rows: dict[str, Row]) -> str:
    first = next(iter(rows.values()))
    share = "the teacher's negative log-likelihood per token divided by the student's"
    if first.metric.higher_is_better:
        share = 'the ratio of the scores'
    bleu = ''
    tests = [results[-1]['scores']['test'] for row in rows.values() for results in row.results]
    signatures = sorted({test['bleu_signature'] for test in tests if 'bleu_signature' in test})
    if first.metric.key == 'bleu' and signatures:
        bleu = f'BLEU: {" or ".join(signatures)}. '
    return (
        'Scores on the test split; ± is the standard error of the mean over seeds (sd / √n). '
        f'Share of teacher score: {share}. {stage1_note(rows)}{bleu}{first.objective.note}Costs are totals over all '
        'runs of a row, including runs that other rows share, and means over seeds. A distilled '
        'run includes the forward pass of the teacher in every update, also if a cache replaced it; no '
        'student includes the training of the teacher.'
    )


def speed_table(speed: dict, task: str = '') -> Table:
    """Returns the sizes and times of speed.json; `task` names the networks' task in the note."""
    lines = []
    for key, (label, factor, digits, ratio) in SPEED.items():
        numbers = (speed[network][key] * factor for network in ('teacher', 'student'))
        cells = (f'{number:,.{digits}f}' for number in numbers)
        lines.append((label, *cells, f'{speed["ratios"][ratio]:.2f}x'))
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
    runs = [run for row in rows for results in row.results for run in results]
    keys = {'git commit': 'git_commit', 'hardware': 'hardware'}
    facts = {name: [run[key] for run in runs] for name, key in keys.items()}
    facts |= _tokenizers(tasks)
    facts |= _protocols(recipe, tasks)
    for package in sorted({name for run in runs for name in run['versions']}):
        facts[f'version of {package}'] = [run['versions'].get(package) for run in runs]
    facts['teacher hash'] = [run['teacher_hash'] for run in runs if run['teacher_hash']]
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
    if ratios := recipe.get('step_time_ratios'):
        listed = (f'{task or "pre-training"} {ratio:.3f}' for task, ratio in ratios.items())
        lines.append(('update time with a teacher / without', '; '.join(listed)))
    if cache := recipe.get('teacher_cache'):
        saved = cache['flops_saved']
        share = 100 * saved / (cache['flops'] + saved)
        text = f'{saved:.2e}, {share:.1f} % of all runs, sweeps included'.replace('e+', 'e')
        lines.append(('FLOPs saved by the cache of the teacher', text))
    if 'command' in recipe:
        lines.append(('recipe', recipe['command']))
    lines.append(('this report', f'python -m lightpaff_jax.report {workdir}'))
    return Table('Provenance', ('', ''), lines, ''), warnings


def _tokenizers(tasks: dict[str, dict[str, Row]]) -> dict[str, list]:
    """Returns the tokenizers of the students, and those of teachers with a larger vocabulary."""
    names = {'tokenizer': set[str](), 'tokenizer of the teacher': set[str]()}
    for key, row in (item for task in tasks.values() for item in task.items()):
        name = 'tokenizer of the teacher' if key == 'teacher' else 'tokenizer'
        names[name] |= {run['tokenizer_hash'] for results in row.results for run in results}
    if names['tokenizer of the teacher'] <= names['tokenizer'] or not names['tokenizer']:
        names = {'tokenizer': set[str]().union(*names.values())}
    return {name: [*hashes] for name, hashes in names.items()}


def _protocols(recipe: dict, tasks: dict[str, dict[str, Row]]) -> dict[str, list]:
    """Returns the protocol and the size of the test split, which must agree within a task."""
    results = {
        task: [results for row in rows.values() for results in row.results]
        for task, rows in tasks.items()
    }
    pretraining = [run for seeds in results.values() for runs in seeds for run in runs[:-1]]
    objectives = sorted({run['objective'] for run in pretraining})
    facts = {
        'protocol of pre-training' + (f' by {objective}' if len(objectives) > 1 else ''): [
            run['protocol'] for run in pretraining if run['objective'] == objective
        ]
        for objective in objectives
    }
    several = len(recipe['tasks']) > 1
    for task, seeds in results.items():
        last, of_task = [runs[-1] for runs in seeds], f' of {task}' if several else ''
        facts[f'protocol{of_task or " of fine-tuning"}'] = [run['protocol'] for run in last]
        unit = f'{next(iter(tasks[task].values())).objective.unit}s'
        tests = [run['scores']['test'] for run in last]
        facts[f'test split{of_task}'] = [f'{test[unit]:,.0f} {unit}' for test in tests]
        signatures = [test.get('bleu_signature') for test in tests]
        if any(signatures):
            facts[f'BLEU{of_task}'] = signatures
    return facts
