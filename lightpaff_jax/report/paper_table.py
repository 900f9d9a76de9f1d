"""The tasks of a family side by side, in the paper's layout, and what they say together."""

from collections.abc import Sequence

from lightpaff_jax.errors import UserError
from lightpaff_jax.report import paper
from lightpaff_jax.report.findings import EQUAL_UPDATES, lead
from lightpaff_jax.report.results import METRICS, ROWS, Metric, Row, kept, mean, plus_minus, values
from lightpaff_jax.report.tables import Table

Tasks = dict[str, dict[str, Row]]
ENOUGH = 95.0  # % of the teacher's score
NAMES = {'bert': 'BERT', 'gpt2': 'GPT-2', 'mass': 'MASS'}
_OWN = {'teacher': 'teacher', 'two_stage': 'student'}  # row -> the paper's network beside it


def check(where: str, recipe: dict) -> None:
    """Raises UserError for a family or a scale that recipe.json must not have."""
    for key, known in (('family', tuple(NAMES)), ('scale', ('', 'paper', 'small', 'tiny', 'ci'))):
        if key in recipe and recipe[key] not in known:
            rule = f'must be one of {", ".join(map(repr, known))}'
            raise UserError(f'{where}: {key} = {recipe[key]!r}: {rule}')
    if 'scale' in recipe and recipe['scale'] and 'family' not in recipe:
        raise UserError(f'{where}: must have family, where scale is {recipe["scale"]!r}')


def table(recipe: dict, tasks: Tasks) -> Table:
    """One line a model, one column a task; with a scale, lines of the paper's own figures too.

    Args:
      recipe: recipe.json.
      tasks: the finished rows of each; a task of the recipe without any is an empty column.
    """
    quoted = recipe['family'] if recipe.get('scale') else ''
    lines: list[Sequence[str]] = []
    from_paper, best = [], []
    for key in ROWS:
        found = {task: rows[key] for task, rows in tasks.items() if key in rows}
        if found:
            leads = {task for task in found if _is_best(key, tasks[task])}
            best += [(len(lines), 1 + n) for n, t in enumerate(recipe['tasks']) if t in leads]
            lines.append(_line(ROWS[key][0], found, tasks, recipe['tasks']))
        if quoted and key in _OWN:
            from_paper.append(len(lines))
            lines.append(_paper_line(quoted, _OWN[key], recipe['tasks']))
    columns = [_column(task, tasks.get(task)) for task in recipe['tasks']]
    title = 'All tasks'
    if 'family' in recipe:
        scale = f', {recipe["scale"]} scale' if recipe.get('scale') else ''
        title = f'{NAMES[recipe["family"]]}{scale}'
    header = ('', *columns, 'parameters', 'ratio')
    return Table(title, header, lines, _note(quoted, recipe, tasks), from_paper, best)


def _metrics(row: Row) -> list[Metric]:
    """The metric of a task and its companions, in the order in which they are told."""
    names = {row.metric.key, *row.metric.companions}
    if not row.metric.companions:
        return [row.metric]
    order = ('f1', 'accuracy', 'rouge1', 'rouge2', 'rougeL')
    return [METRICS[name] for name in order if name in names]


def _column(task: str, rows: dict[str, Row] | None) -> str:
    if not rows:
        return task
    metrics = _metrics(next(iter(rows.values())))
    unit = f',{metrics[0].unit}' if metrics[0].unit else ''
    return f'{task}: {" / ".join(metric.name for metric in metrics)}{unit}'


def _line(label: str, found: dict[str, Row], tasks: Tasks, names: Sequence[str]) -> list[str]:
    sizes = {task: row.chains[0][-1]['parameters'] for task, row in found.items()}
    ratios = [
        tasks[task]['teacher'].chains[0][-1]['parameters'] / size
        for task, size in sizes.items() if 'teacher' in tasks[task]
    ]  # fmt: skip
    cells = [_scores(found[task]) if task in found else '-' for task in names]
    millions = [size / 1e6 for size in sizes.values()]
    return [label, *cells, f'{_range(millions)} M', f'{_range(ratios)}x' if ratios else '-']


def _scores(row: Row) -> str:
    return ' / '.join(plus_minus(values(row, metric.of), 2) for metric in _metrics(row))


def _range(numbers: Sequence[float]) -> str:
    """'25.6', or '37.1 – 62.8' where tasks differ; three digits."""
    return ' – '.join(dict.fromkeys(f'{x:.3g}' for x in (min(numbers), max(numbers))))


def _is_best(key: str, rows: dict[str, Row]) -> bool:
    """Whether no arm with equal updates is ahead of this one, which has such, too."""
    rivals = [rows[arm] for arm in EQUAL_UPDATES if arm in rows and arm != key]
    return key in EQUAL_UPDATES and bool(rivals) and all(lead(rows[key], r) >= 0 for r in rivals)


def _paper_line(family: str, who: str, names: Sequence[str]) -> list[str]:
    network = getattr(paper.FAMILIES[family], who)
    known = [paper.task(family, name) for name in names]
    cells = [getattr(found[1], who) if found else None for found in known]
    cells += [network.parameters, network.ratio]
    return [f'paper: {network.name}', *('' if cell is None else str(cell) for cell in cells)]


def _note(family: str, recipe: dict, tasks: Tasks) -> str:
    judged = {task: next(iter(rows.values())).metric for task, rows in tasks.items()}
    which = [f'{task} by {metric.name}' for task, metric in judged.items() if metric.companions]
    note = (
        'Test scores; ± is the standard error of the mean over seeds (sd / √n). Bold: the best of '
        "the students with equal updates and texts. Ratio: the teacher's parameters over the model's. "
    )
    if which:
        note += f'Compared are {", ".join(which)}. '
    if not family:
        return note.strip()
    marks = '; '.join(f'[{mark}] {meaning}' for mark, meaning in paper.MARKS.items())
    note += f'Lines of the paper hold its figures, not ours: {marks}; empty: not known. '
    if recipe['scale'] != 'paper':
        note += (
            f'They have other sizes and longer training than this {recipe["scale"]} scale, and not '
            'always the same data: compare the lines of one kind with each other. '
        )
    return note + ' '.join(f'{said}.' for said in [*_about_cells(family, recipe), paper.CLAIM])


def _about_cells(family: str, recipe: dict) -> list[str]:
    """What the cells of the paper are of, and those that have no column here."""
    known = paper.FAMILIES[family]
    here = {found[0] for name in recipe['tasks'] if (found := paper.task(family, name))}
    about, absent = [], []
    for name, task in known.tasks.items():
        cells = [cell for cell in (task.teacher, task.student) if cell]
        each = [f'{cell} ({cell.of})' if cell.of else str(cell) for cell in cells]
        if name not in here:
            absent += [f'{name} {", ".join(each)}'] if each else []
        else:
            about += [f'{name} {cell} is {cell.of}' for cell in cells if cell.of]
    size = known.teacher.parameters
    if size and size.of:
        about.append(f'{size} is {size.of}')
    said = [f'Of the paper: {"; ".join(about)}'] if about else []
    return said + ([f'Its tasks without a column here: {"; ".join(absent)}'] if absent else [])


def sentences(recipe: dict, tasks: Tasks) -> list[str]:
    """On how many tasks two-stage is ahead of its controls, and how much of the teacher it keeps."""
    needed = ('teacher', *EQUAL_UPDATES)
    whole = {task: rows for task, rows in tasks.items() if all(key in rows for key in needed)}
    if not whole:
        return []
    lost = {task: _rivals(rows) for task, rows in whole.items() if not _wins(rows)}
    won = [task for task in whole if task not in lost]
    against = '; '.join(f'not on {task}: {rivals}' for task, rivals in lost.items())
    which = '; '.join(part for part in (', '.join(won), against) if part)
    said = [
        'Two-stage beats every control with equal updates, by means over seeds, on '
        f'{len(won)} of {_tasks(len(whole))} ({which}).'
    ]
    shares = {task: kept(rows['two_stage'], rows['teacher']) for task, rows in whole.items()}
    means = {task: sum(v) / len(v) for task, v in shares.items() if v}
    ratios = [
        rows['teacher'].chains[0][-1]['parameters'] / rows['two_stage'].chains[0][-1]['parameters']
        for rows in whole.values()
    ]
    size = ' to '.join(dict.fromkeys(f'1/{x:.3g}' for x in (min(ratios), max(ratios))))
    each = ', '.join(f'{task} {value:.1f} %' for task, value in means.items())
    enough = sum(value >= ENOUGH for value in means.values())
    said.append(
        f"It keeps at least {ENOUGH:.0f} % of the teacher's score on {enough} of "
        f'{_tasks(len(whole))} ({each}), at {size} of its parameters.'
    )
    absent = [task for task in recipe['tasks'] if task not in whole]
    if absent:
        said.append(f'Warning: not counted, as runs are missing: {", ".join(absent)}.')
    return said


def _tasks(number: int) -> str:
    return f'{number} task{"s" if number > 1 else ""}'


def _wins(rows: dict[str, Row]) -> bool:
    return all(lead(rows['two_stage'], rows[arm]) > 0 for arm in EQUAL_UPDATES[1:])


def _rivals(rows: dict[str, Row]) -> str:
    two = rows['two_stage']
    ahead = [rows[arm] for arm in EQUAL_UPDATES[1:] if lead(two, rows[arm]) <= 0]
    each = ', '.join(f'{row.label} {row.metric.show(mean(row))}' for row in ahead)
    return f'{two.metric.show(mean(two))} against {each}'
