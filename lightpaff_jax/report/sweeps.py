"""How the settings of a recipe were searched: each search's grid, and what it can be doubted for."""

import math

from lightpaff_jax.errors import UserError, nearest
from lightpaff_jax.report.findings import EQUAL_UPDATES
from lightpaff_jax.report.results import METRICS, ROWS
from lightpaff_jax.report.tables import Table

PRETRAINED = {'stage1': 'stage 1', 'pretrain': 'no teacher'}
_ENTRY = ('phase', 'task', 'student', 'metric', 'candidates', 'chosen')
_CANDIDATE = ('run', 'peak_lr', 'lambda_', 'score')


def check(where: str, recipe: dict) -> None:
    """Raises UserError for a search of recipe.json that cannot be read; names it."""
    for number, entry in enumerate(searches(recipe)):
        place = f'{where}: sweep {number}'
        for key in _ENTRY:
            if not isinstance(entry, dict) or key not in entry:
                raise UserError(f'{place}: must have the key {key!r}')
        if entry['metric'] not in METRICS:
            rule = f'must be one of {", ".join(METRICS)}'
            near = nearest(str(entry['metric']), list(METRICS))
            raise UserError(f'{place}: metric = {entry["metric"]!r}: {rule}{near}')
        if not isinstance(entry['candidates'], list):
            raise UserError(f'{place}: candidates = {entry["candidates"]!r}: must be a list')
        for candidate in entry['candidates']:
            known = candidate if isinstance(candidate, dict) else {}
            absent = [key for key in _CANDIDATE if key not in known]
            if absent:
                raise UserError(f'{place}: {candidate}: must have the key {absent[0]!r}')
            for key in ('peak_lr', 'lambda_', 'score'):
                number = isinstance(known[key], int | float)
                if not number and not (key == 'score' and known[key] is None):
                    raise UserError(f'{place}: {candidate}: {key} must be a number')
        if entry['chosen'] not in [candidate['run'] for candidate in entry['candidates']]:
            raise UserError(f'{place}: chosen = {entry["chosen"]!r}: must be one of its candidates')


def searches(recipe: dict) -> list[dict]:
    """Those of recipe.json; none where it does not speak of them."""
    return recipe.get('sweeps', [])


def title(entry: dict) -> str:
    """'SST-2, two-stage', or 'pre-training, stage 1'."""
    names = {key: label for key, (label, _) in ROWS.items()} | PRETRAINED
    return f'{entry["task"] or "pre-training"}, {names.get(entry["student"], entry["student"])}'


def rate(candidate: dict) -> str:
    """'0.001, λ 0.5'."""
    guided = f', λ {candidate["lambda_"]:g}' if candidate['lambda_'] else ''
    return f'{candidate["peak_lr"]:g}{guided}'


def table(recipe: dict) -> Table:
    """A line for each search and weight of the teacher, a column for each learning rate."""
    found = searches(recipe)
    rates = sorted({c['peak_lr'] for entry in found for c in entry['candidates']})
    lines: list[list[str]] = []
    best = []
    for entry in found:
        for weight in _grid(entry, 'lambda_'):
            line = [title(entry), f'{weight:g}']
            for peak in rates:
                here = [
                    c for c in entry['candidates'] if (c['peak_lr'], c['lambda_']) == (peak, weight)
                ]
                if entry['chosen'] in [c['run'] for c in here]:
                    best.append((len(lines), len(line)))
                line.append(' / '.join(_shown(entry, c) for c in here))
            lines.append([*line, METRICS[entry['metric']].label])
    header = ('', 'λ', *(f'{peak:g}' for peak in rates), 'score')
    note = (
        'Scores on the validation split, a column for each peak learning rate; λ is the weight of '
        'the teacher; empty: not tried. Bold: what the runs of this report use. The first seed '
        'searches, the others take what it found; equal FLOPs takes the choice of no teacher, unlabelled '
        'text that of two-stage. Pre-training without a search has one rate for all arms. The costs of '
        'a search are in no other table.'
    )
    return Table('How learning rates were searched', header, lines, note, (), best)


def _grid(entry: dict, key: str) -> tuple[float, ...]:
    """What a search tried of one setting, rising."""
    return tuple(sorted({candidate[key] for candidate in entry['candidates']}))


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _shown(entry: dict, candidate: dict) -> str:
    if not _finite(candidate['score']):
        return 'diverged'
    return f'{METRICS[entry["metric"]].factor * candidate["score"]:.2f}'


def sentences(recipe: dict) -> list[str]:
    """Whether the arms that are compared were searched alike, and where a grid may be too narrow."""
    found = searches(recipe)
    said = _alike(found)
    missing = [
        f'{ROWS[arm][0]} of {task}'
        for task in dict.fromkeys(e['task'] for e in found if e['task'])
        if all(e['student'] in ROWS for e in found if e['task'] == task)
        for arm in _arms(recipe, task)
        if arm not in [e['student'] for e in found if e['task'] == task]
    ]
    if missing:
        said.append(f'Warning: no search for {", ".join(missing)}.')
    edges = [title(e) for e in found if _at_edge(e)]
    if edges:
        said.append(
            f'{len(edges)} of {len(found)} chosen learning rates are the least or the greatest of '
            f'their grid, where a wider one may find a better: {"; ".join(edges)}.'
        )
    worse = [title(e) for e in found if not _is_best(e)]
    if worse:
        said.append(f'Warning: not the best of its grid was chosen: {"; ".join(worse)}.')
    return said


def _arms(recipe: dict, task: str) -> list[str]:
    """The arms with equal updates that a task has."""
    has = {s['student'] for s in recipe['tasks'].get(task, {'students': ()})['students']}
    return [arm for arm in EQUAL_UPDATES if arm in has]


def _alike(found: list[dict]) -> list[str]:
    students = [entry for entry in found if entry['student'] != 'teacher']
    unlike, grids = [], set()
    for task in dict.fromkeys(entry['task'] for entry in students):
        entries = [entry for entry in students if entry['task'] == task]
        rates = {_grid(entry, 'peak_lr') for entry in entries}
        weights = {_grid(entry, 'lambda_') for entry in entries} - {(0.0,)}
        grids |= rates
        if len(rates) > 1 or len(weights) > 1:
            unlike.append(task or 'pre-training')
    if unlike:
        return [f'Warning: the arms were not searched alike in {", ".join(unlike)}.']
    if not grids:
        return []
    each = ' or '.join(', '.join(f'{peak:g}' for peak in grid) for grid in sorted(grids))
    return [f'All arms of a task were searched over the same learning rates: {each}.']


def _at_edge(entry: dict) -> bool:
    rates = _grid(entry, 'peak_lr')
    chosen = next(c for c in entry['candidates'] if c['run'] == entry['chosen'])
    return len(rates) > 2 and chosen['peak_lr'] in (rates[0], rates[-1])


def _is_best(entry: dict) -> bool:
    higher = METRICS[entry['metric']].higher
    scores = {c['run']: c['score'] for c in entry['candidates'] if _finite(c['score'])}
    if entry['chosen'] not in scores:
        return False
    return scores[entry['chosen']] == (max if higher else min)(scores.values())
