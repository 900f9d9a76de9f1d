"""The table of a family: its tasks next to each other, with the figures of the paper.

The paper is LightPAFF, arXiv 2004.12817. No code was released, and only its abstract was available
here. So each figure has a mark for its origin, and an unknown figure is an empty cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lightpaff_jax.errors import UserError
from lightpaff_jax.report.findings import EQUAL_UPDATES, lead
from lightpaff_jax.report.results import (
    METRICS,
    ROWS,
    Metric,
    Row,
    check_choice,
    format_mean,
    stage1_note,
    values,
)
from lightpaff_jax.report.tables import Table

Tasks = dict[str, dict[str, Row]]
NAMES = {'bert': 'BERT', 'gpt2': 'GPT-2', 'mass': 'MASS'}
SCALES = ('', 'paper', 'small', 'tiny', 'ci')

# Mark -> origin of a figure.
MARKS = {
    'A': 'in the abstract',
    'S': 'seen in another publication that reports it',
    'I': 'inferred by arithmetic',
    'U': 'remembered, not verified',
}
CLAIM = (
    'The abstract of the paper claims: nearly 5x smaller, 5x to 7x faster, at a similar accuracy '
    'over the nine tasks [A]'
)
# Family, task, its other names, figure of the teacher and of the student, explanation of the former.
# The first three lines of a family are about its models; a ratio is teacher / student.
_FIGURES = """
bert | models | | BERT-base | LightPAFF |
bert | parameters | | 110 M [I] | 25.6 M [I] |
bert | ratio | | | 4.27x [I] |
bert | SST-2 | | 93.5 [S] | 92.9 [S] | from the test server
bert | QQP | | 71.2 / 89.2 [S] | - / 88.6 [S] |
bert | Polarity | Yelp polarity, MR | | |
gpt2 | models | | GPT-2 medium | LightPAFF |
gpt2 | parameters | | 355 M [I] | 67 M [U] |
gpt2 | ratio | | | 5.24x [I] |
gpt2 | WikiText-2 | | | 18.8 [U] |
gpt2 | PTB | | | 22.8 [U] |
gpt2 | WikiText-103 | | | 16.4 [U] |
mass | models | | MASS | LightPAFF |
mass | parameters | | 208 – 309 M [I] | | for summarization and dialogue, and for translation
mass | ratio | | | |
mass | translation | Ro-En, WMT16 Ro-En | 39.1 [S] | | by MASS itself, supervised, Romanian to English
mass | summarization | Gigaword, Gigaword summarization | 38.73 / 19.71 / 35.96 [S] | | by MASS itself, with 123 M parameters
mass | dialogue | Cornell, Cornell dialogue, Cornell movie dialogue | 23.52 [S] | | by MASS itself
"""


class Figures(NamedTuple):
    """What the paper reports about a task or about the models of a family; '' is unknown."""

    family: str
    name: str
    aliases: str
    teacher: str
    two_stage: str
    explanation: str


FIGURES = [
    Figures(*(cell.strip() for cell in line.split('|'))) for line in _FIGURES.strip().splitlines()
]


def _normalize(name: str) -> str:
    return ''.join(letter for letter in name.lower() if letter.isalnum())


def find_task(family: str, name: str) -> Figures | None:
    """Returns the figures of a task, or None if the paper does not have it.

    Ignores case and punctuation.
    """
    for figures in _figures_of(family)[3:]:
        names = (figures.name, *figures.aliases.split(','))
        if _normalize(name) in map(_normalize, names):
            return figures
    return None


def _figures_of(family: str) -> list[Figures]:
    return [figures for figures in FIGURES if figures.family == family]


def check(where: str, recipe: dict) -> None:
    """Raises UserError if recipe.json has an unknown family or scale."""
    for key, choices in (('family', tuple(NAMES)), ('scale', SCALES)):
        if key in recipe:
            check_choice(f'{where}: {key}', recipe[key], choices)
    if recipe.get('scale') and 'family' not in recipe:
        raise UserError(f'{where}: must have family, since scale = {recipe["scale"]!r}')


def table(recipe: dict, tasks: Tasks, note: str = '') -> Table:
    """Returns a table with a line for each model and a column for each task.

    If the recipe has a scale, the table also has lines with the figures of the paper.

    Args:
      recipe: content of recipe.json.
      tasks: task name -> its finished rows; a task of the recipe without rows is an empty column.
      note: sentences that the note of the table begins with.
    """
    family = recipe['family'] if recipe.get('scale') else ''
    lines: list[Sequence[str]] = []
    quoted, best = [], []
    for key in ROWS:
        rows = {task: rows[key] for task, rows in tasks.items() if key in rows}
        if rows:
            label = next(iter(rows.values())).label
            leads = {task for task in rows if _is_best(key, tasks[task])}
            best += [(len(lines), 1 + n) for n, t in enumerate(recipe['tasks']) if t in leads]
            lines.append(_line(label, rows, tasks, recipe['tasks']))
        if family and key in ('teacher', 'two_stage'):
            quoted.append(len(lines))
            lines.append(_paper_line(family, key, recipe['tasks']))
    columns = [_column(task, tasks.get(task)) for task in recipe['tasks']]
    title = NAMES[recipe['family']] if 'family' in recipe else 'All tasks'
    title += f', {recipe["scale"]} scale' if family else ''
    header = ('', *columns, 'parameters', 'ratio')
    return Table(title, header, lines, note + _note(family, recipe, tasks), quoted, best)


def _metrics(row: Row) -> list[Metric]:
    if not row.metric.companions:
        return [row.metric]
    keys = (row.metric.key, *row.metric.companions)
    return [metric for key, metric in METRICS.items() if key in keys]


def _column(task: str, rows: dict[str, Row] | None) -> str:
    if not rows:
        return task
    metrics = _metrics(next(iter(rows.values())))
    unit = f',{metrics[0].unit}' if metrics[0].unit else ''
    return f'{task}: {" / ".join(metric.name for metric in metrics)}{unit}'


def _line(label: str, rows: dict[str, Row], tasks: Tasks, names: Sequence[str]) -> list[str]:
    ratios = [
        tasks[task]['teacher'].parameters / row.parameters
        for task, row in rows.items()
        if 'teacher' in tasks[task]
    ]
    cells = [_scores(rows[task]) if task in rows else '-' for task in names]
    millions = [row.parameters / 1e6 for row in rows.values()]
    return [label, *cells, f'{_range(millions)} M', f'{_range(ratios)}x' if ratios else '-']


def _scores(row: Row) -> str:
    return ' / '.join(format_mean(values(row, metric.value), 2) for metric in _metrics(row))


def _range(numbers: Sequence[float]) -> str:
    """Formats '25.6', or '37.1 – 62.8' if the tasks differ, with three digits."""
    return ' – '.join(dict.fromkeys(f'{x:.3g}' for x in (min(numbers), max(numbers))))


def _is_best(key: str, rows: dict[str, Row]) -> bool:
    """Returns whether a student has rivals with equal updates, and none of them is ahead."""
    rivals = [rows[rival] for rival in EQUAL_UPDATES if rival in rows and rival != key]
    return key in EQUAL_UPDATES and bool(rivals) and all(lead(rows[key], r) >= 0 for r in rivals)


def _paper_line(family: str, row: str, names: Sequence[str]) -> list[str]:
    model, parameters, ratio = (getattr(figures, row) for figures in _figures_of(family)[:3])
    cells = [getattr(find_task(family, name), row, '') for name in names]
    return [f'paper: {model}', *cells, parameters, ratio]


def _note(family: str, recipe: dict, tasks: Tasks) -> str:
    metrics = {task: next(iter(rows.values())).metric for task, rows in tasks.items()}
    ranked = [f'{task} by {metric.name}' for task, metric in metrics.items() if metric.companions]
    note = (
        'Test scores; ± is the standard error of the mean over seeds (sd / √n). Bold: the best '
        'student with equal updates and the same text. Ratio: parameters of the teacher divided by '
        'those of the model. '
    ) + stage1_note(next(iter(tasks.values())))
    if ranked:
        note += f'Students are ranked on {", ".join(ranked)}. '
    if not family:
        return note.strip()
    marks = '; '.join(f'[{mark}] {origin}' for mark, origin in MARKS.items())
    note += (
        f'Lines named "paper" quote the paper and are not measured here: {marks}; empty: unknown. '
    )
    if recipe['scale'] != 'paper':
        note += (
            f'The models of the paper have other sizes and longer training than this '
            f'{recipe["scale"]} scale, and partly other data: compare measured lines with measured '
            'lines only. '
        )
    return note + ' '.join(f'{text}.' for text in [*_explanations(family, recipe), CLAIM])


def _explanations(family: str, recipe: dict) -> list[str]:
    """Explains the cells of the paper, and lists its figures that have no column in the table."""
    columns = [find_task(family, name) for name in recipe['tasks']]
    models, tasks = _figures_of(family)[:3], _figures_of(family)[3:]
    explained = [
        f'{task.name} {task.teacher} is {task.explanation}'
        for task in tasks
        if task in columns and task.explanation
    ]
    explained += [f'{m.teacher} is {m.explanation}' for m in models if m.explanation]
    absent = []
    for task in tasks:
        explanation = f' ({task.explanation})' if task.explanation else ''
        figures = [figure for figure in (task.teacher + explanation, task.two_stage) if figure]
        if figures and task not in columns:
            absent.append(f'{task.name} {", ".join(figures)}')
    text = [f'Figures of the paper: {"; ".join(explained)}'] if explained else []
    if absent:
        text.append(f'Its tasks without a column here: {"; ".join(absent)}')
    return text
