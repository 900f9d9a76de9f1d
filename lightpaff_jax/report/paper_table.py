"""The table of a family: its tasks next to each other, with the figures of the paper.

The paper is LightPAFF, arXiv 2004.12817. No code was released, and only its abstract was available
here. So each figure has a mark for its origin, and an unknown figure is an empty cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lightpaff_jax.errors import UserError
from lightpaff_jax.report.findings import EQUAL_UPDATES, lead
from lightpaff_jax.report.results import METRICS, ROWS, Metric, Row, format_mean, values
from lightpaff_jax.report.tables import Table

Tasks = dict[str, dict[str, Row]]
NAMES = {'bert': 'BERT', 'gpt2': 'GPT-2', 'mass': 'MASS'}
SCALES = ('', 'paper', 'small', 'tiny', 'ci')
_NETWORKS = {'teacher': 'teacher', 'two_stage': 'student'}  # row -> the paper's network below it

MARKS = {
    'A': 'in the abstract',
    'S': 'seen in another publication that reports it',
    'I': 'inferred by arithmetic',
    'U': 'remembered, not verified',
}
"""Mark -> origin of a figure."""
CLAIM = (
    'The abstract of the paper claims: nearly 5x smaller, 5x to 7x faster, at a similar accuracy '
    'over the nine tasks [A]'
)


class Cell(NamedTuple):
    """A figure of the paper as it is printed, its mark, and an explanation if it needs one."""

    text: str
    mark: str
    explanation: str = ''

    def __str__(self) -> str:
        return f'{self.text} [{self.mark}]'


class Network(NamedTuple):
    """A model of the paper; an unknown figure is None."""

    name: str
    parameters: Cell | None
    ratio: Cell | None
    """Parameters of the teacher divided by those of this model."""


class Task(NamedTuple):
    """A task of the paper: its other names and two scores; an unknown score is None."""

    aliases: tuple[str, ...] = ()
    teacher: Cell | None = None
    student: Cell | None = None


class Family(NamedTuple):
    """The paper's models and tasks of one architecture."""

    teacher: Network
    student: Network
    tasks: dict[str, Task]


_MASS = 'by MASS itself'
FAMILIES = {
    'bert': Family(
        Network('BERT-base', Cell('110 M', 'I'), None),
        Network('LightPAFF', Cell('25.6 M', 'I'), Cell('4.27x', 'I')),
        {
            'SST-2': Task((), Cell('93.5', 'S', 'from the test server'), Cell('92.9', 'S')),
            'QQP': Task((), Cell('71.2 / 89.2', 'S'), Cell('- / 88.6', 'S')),
            'Polarity': Task(('Yelp polarity', 'MR')),
        },
    ),
    'gpt2': Family(
        Network('GPT-2 medium', Cell('355 M', 'I'), None),
        Network('LightPAFF', Cell('67 M', 'U'), Cell('5.24x', 'I')),
        {
            'WikiText-2': Task((), None, Cell('18.8', 'U')),
            'PTB': Task((), None, Cell('22.8', 'U')),
            'WikiText-103': Task((), None, Cell('16.4', 'U')),
        },
    ),
    'mass': Family(
        Network(
            'MASS',
            Cell('208 – 309 M', 'I', 'for summarization and dialogue, and for translation'),
            None,
        ),
        Network('LightPAFF', None, None),
        {
            'translation': Task(
                ('Ro-En', 'WMT16 Ro-En'),
                Cell('39.1', 'S', f'{_MASS}, supervised, Romanian to English'),
            ),
            'summarization': Task(
                ('Gigaword', 'Gigaword summarization'),
                Cell('38.73 / 19.71 / 35.96', 'S', f'{_MASS}, with 123 M parameters'),
            ),
            'dialogue': Task(
                ('Cornell', 'Cornell dialogue', 'Cornell movie dialogue'),
                Cell('23.52', 'S', _MASS),
            ),
        },
    ),
}
"""Family -> its figures in the paper."""


def _normalize(name: str) -> str:
    return ''.join(letter for letter in name.lower() if letter.isalnum())


def find_task(family: str, name: str) -> tuple[str, Task] | None:
    """Returns the paper's name and figures of a task, or None if the paper does not have it.

    Ignores case and punctuation.
    """
    for paper_name, task in FAMILIES[family].tasks.items():
        if _normalize(name) in map(_normalize, (paper_name, *task.aliases)):
            return paper_name, task
    return None


def check(where: str, recipe: dict) -> None:
    """Raises UserError if recipe.json has an unknown family or scale."""
    for key, allowed in (('family', tuple(NAMES)), ('scale', SCALES)):
        if key in recipe and recipe[key] not in allowed:
            rule = f'must be one of {", ".join(map(repr, allowed))}'
            raise UserError(f'{where}: {key} = {recipe[key]!r}: {rule}')
    if recipe.get('scale') and 'family' not in recipe:
        raise UserError(f'{where}: must have family, since scale = {recipe["scale"]!r}')


def table(recipe: dict, tasks: Tasks) -> Table:
    """Returns a table with a line for each model and a column for each task.

    If the recipe has a scale, the table also has lines with the figures of the paper.

    Args:
      recipe: content of recipe.json.
      tasks: task name -> its finished rows; a task of the recipe without rows is an empty column.
    """
    family = recipe['family'] if recipe.get('scale') else ''
    lines: list[Sequence[str]] = []
    quoted, best = [], []
    for key in ROWS:
        rows = {task: rows[key] for task, rows in tasks.items() if key in rows}
        if rows:
            leads = {task for task in rows if _is_best(key, tasks[task])}
            best += [(len(lines), 1 + n) for n, t in enumerate(recipe['tasks']) if t in leads]
            lines.append(_line(ROWS[key][0], rows, tasks, recipe['tasks']))
        if family and key in _NETWORKS:
            quoted.append(len(lines))
            lines.append(_paper_line(family, _NETWORKS[key], recipe['tasks']))
    columns = [_column(task, tasks.get(task)) for task in recipe['tasks']]
    title = 'All tasks'
    if 'family' in recipe:
        scale = f', {recipe["scale"]} scale' if recipe.get('scale') else ''
        title = f'{NAMES[recipe["family"]]}{scale}'
    header = ('', *columns, 'parameters', 'ratio')
    return Table(title, header, lines, _note(family, recipe, tasks), quoted, best)


def _metrics(row: Row) -> list[Metric]:
    """Returns the metric of a task and its companions, in the order in which they are printed."""
    if not row.metric.companions:
        return [row.metric]
    names = {row.metric.key, *row.metric.companions}
    order = ('f1', 'accuracy', 'rouge1', 'rouge2', 'rougeL')
    return [METRICS[name] for name in order if name in names]


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


def _paper_line(family: str, network_name: str, names: Sequence[str]) -> list[str]:
    network = getattr(FAMILIES[family], network_name)
    matches = [find_task(family, name) for name in names]
    cells = [getattr(match[1], network_name) if match else None for match in matches]
    figures = (*cells, network.parameters, network.ratio)
    return [f'paper: {network.name}', *(str(figure or '') for figure in figures)]


def _note(family: str, recipe: dict, tasks: Tasks) -> str:
    metrics = {task: next(iter(rows.values())).metric for task, rows in tasks.items()}
    ranked = [f'{task} by {metric.name}' for task, metric in metrics.items() if metric.companions]
    note = (
        'Test scores; ± is the standard error of the mean over seeds (sd / √n). Bold: the best '
        'student with equal updates and the same text. Ratio: parameters of the teacher divided by '
        'those of the model. '
    )
    if ranked:
        note += f'Students are ranked on {", ".join(ranked)}. '
    if not family:
        return note.strip()
    marks = '; '.join(f'[{mark}] {meaning}' for mark, meaning in MARKS.items())
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
    figures = FAMILIES[family]
    matches = [find_task(family, name) for name in recipe['tasks']]
    columns = {match[0] for match in matches if match}
    explained, absent = [], []
    for name, task in figures.tasks.items():
        cells = [cell for cell in (task.teacher, task.student) if cell]
        if name in columns:
            explained += [
                f'{name} {cell} is {cell.explanation}' for cell in cells if cell.explanation
            ]
        elif cells:
            texts = [f'{c} ({c.explanation})' if c.explanation else str(c) for c in cells]
            absent.append(f'{name} {", ".join(texts)}')
    parameters = figures.teacher.parameters
    if parameters and parameters.explanation:
        explained.append(f'{parameters} is {parameters.explanation}')
    text = [f'Figures of the paper: {"; ".join(explained)}'] if explained else []
    if absent:
        text.append(f'Its tasks without a column here: {"; ".join(absent)}')
    return text
