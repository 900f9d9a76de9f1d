"""The hyperparameter sweeps of a recipe: their scores, and warnings about unfair or narrow ones."""

import math

from lightpaff_jax.errors import UserError, nearest
from lightpaff_jax.report.findings import EQUAL_UPDATES
from lightpaff_jax.report.results import METRICS, ROWS
from lightpaff_jax.report.tables import Table

PRETRAINING = {'stage1': 'stage 1', 'pretrain': 'no teacher'}
_SWEEP_KEYS = ('phase', 'task', 'student', 'metric', 'candidates', 'chosen')
_CANDIDATE_KEYS = ('run', 'peak_lr', 'lambda_', 'score')


def sweeps_of(recipe: dict) -> list[dict]:
    """Returns the sweeps in recipe.json; a recipe in which every setting has one value lacks the key."""
    return recipe.get('sweeps', [])


def check(where: str, recipe: dict) -> None:
    """Raises UserError if a sweep in recipe.json is invalid."""
    for number, sweep in enumerate(sweeps_of(recipe)):
        place = f'{where}: sweep {number}'
        for key in _SWEEP_KEYS:
            if not isinstance(sweep, dict) or key not in sweep:
                raise UserError(f'{place}: must have the key {key!r}')
        if sweep['metric'] not in METRICS:
            rule = f'must be one of {", ".join(METRICS)}'
            near = nearest(str(sweep['metric']), list(METRICS))
            raise UserError(f'{place}: metric = {sweep["metric"]!r}: {rule}{near}')
        if not isinstance(sweep['candidates'], list):
            raise UserError(f'{place}: candidates = {sweep["candidates"]!r}: must be a list')
        for candidate in sweep['candidates']:
            _check_candidate(place, candidate)
        if sweep['chosen'] not in [candidate['run'] for candidate in sweep['candidates']]:
            raise UserError(f'{place}: chosen = {sweep["chosen"]!r}: must be one of its candidates')


def _check_candidate(place: str, candidate: object) -> None:
    fields = candidate if isinstance(candidate, dict) else {}
    absent = [key for key in _CANDIDATE_KEYS if key not in fields]
    if absent:
        raise UserError(f'{place}: {candidate}: must have the key {absent[0]!r}')
    for key in ('peak_lr', 'lambda_', 'score'):
        diverged = key == 'score' and fields[key] is None
        if not diverged and not isinstance(fields[key], int | float):
            raise UserError(f'{place}: {candidate}: {key} must be a number')


def title(sweep: dict) -> str:
    """Returns for example 'SST-2, two-stage' or 'pre-training, stage 1'."""
    labels = {key: label for key, (label, _) in ROWS.items()} | PRETRAINING
    return f'{sweep["task"] or "pre-training"}, {labels.get(sweep["student"], sweep["student"])}'


def setting(candidate: dict) -> str:
    """Returns the hyperparameters of a candidate, for example '0.001, λ 0.5'."""
    lambda_ = f', λ {candidate["lambda_"]:g}' if candidate['lambda_'] else ''
    return f'{candidate["peak_lr"]:g}{lambda_}'


def table(recipe: dict) -> Table:
    """Returns a table with a line for each sweep and lambda, and a column for each learning rate."""
    sweeps = sweeps_of(recipe)
    rates = sorted({c['peak_lr'] for sweep in sweeps for c in sweep['candidates']})
    lines: list[list[str]] = []
    best = []
    for sweep in sweeps:
        for lambda_ in _tried(sweep, 'lambda_'):
            line = [title(sweep), f'{lambda_:g}']
            for peak_lr in rates:
                wanted = (peak_lr, lambda_)
                cell = [c for c in sweep['candidates'] if (c['peak_lr'], c['lambda_']) == wanted]
                if sweep['chosen'] in [c['run'] for c in cell]:
                    best.append((len(lines), len(line)))
                line.append(' / '.join(_format_score(sweep, c) for c in cell))
            lines.append([*line, METRICS[sweep['metric']].label])
    header = ('', 'λ', *(f'{peak_lr:g}' for peak_lr in rates), 'score')
    note = (
        'Scores on the validation split, with a column for each peak learning rate; λ is the '
        'weight of the teacher; an empty cell was not tried. Bold: the chosen hyperparameters. '
        'The first seed sweeps, and the other seeds use its choice. The baseline with equal FLOPs '
        'uses the choice of no teacher, and unlabelled text that of two-stage. Pre-training '
        'without a sweep has one learning rate for all students. No other table includes the '
        'costs of sweeps.'
    )
    return Table('Hyperparameter sweeps', header, lines, note, (), best)


def _tried(sweep: dict, key: str) -> tuple[float, ...]:
    """Returns the values of a hyperparameter in a sweep, in ascending order."""
    return tuple(sorted({candidate[key] for candidate in sweep['candidates']}))


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _format_score(sweep: dict, candidate: dict) -> str:
    if not _is_finite(candidate['score']):
        return 'diverged'
    return f'{METRICS[sweep["metric"]].factor * candidate["score"]:.2f}'


def sentences(recipe: dict) -> list[str]:
    """Returns findings on whether the students had equal sweeps, and which were too narrow."""
    sweeps = sweeps_of(recipe)
    findings = _equal_sweeps(sweeps)
    if missing := _missing(recipe, sweeps):
        findings.append(f'Warning: no sweep for {", ".join(missing)}.')
    edges = [title(sweep) for sweep in sweeps if _is_at_edge(sweep)]
    if edges:
        findings.append(
            f'{len(edges)} of {len(sweeps)} chosen learning rates are the lowest or the highest of '
            f'their sweep, so a wider sweep may find a better one: {"; ".join(edges)}.'
        )
    worse = [title(sweep) for sweep in sweeps if not _is_best_chosen(sweep)]
    if worse:
        findings.append(
            f'Warning: the chosen run is not the best of its sweep: {"; ".join(worse)}.'
        )
    return findings


def _missing(recipe: dict, sweeps: list[dict]) -> list[str]:
    """Lists students with equal updates that have no sweep, in tasks that have sweeps."""
    missing = []
    for task in dict.fromkeys(sweep['task'] for sweep in sweeps if sweep['task']):
        swept = [sweep['student'] for sweep in sweeps if sweep['task'] == task]
        if all(student in ROWS for student in swept):
            entries = recipe['tasks'].get(task, {'students': ()})['students']
            trained = {entry['student'] for entry in entries}
            absent = [s for s in EQUAL_UPDATES if s in trained and s not in swept]
            missing += [f'{ROWS[student][0]} of {task}' for student in absent]
    return missing


def _equal_sweeps(sweeps: list[dict]) -> list[str]:
    """Returns the learning rates that all students were swept over, or a warning if they differ."""
    sweeps = [sweep for sweep in sweeps if sweep['student'] != 'teacher']
    unequal, all_rates = [], set()
    for task in dict.fromkeys(sweep['task'] for sweep in sweeps):
        of_task = [sweep for sweep in sweeps if sweep['task'] == task]
        rates = {_tried(sweep, 'peak_lr') for sweep in of_task}
        lambdas = {_tried(sweep, 'lambda_') for sweep in of_task} - {(0.0,)}
        all_rates |= rates
        if len(rates) > 1 or len(lambdas) > 1:
            unequal.append(task or 'pre-training')
    if unequal:
        return [f'Warning: the students had unequal sweeps in {", ".join(unequal)}.']
    if not all_rates:
        return []
    listed = ' or '.join(', '.join(f'{rate:g}' for rate in rates) for rates in sorted(all_rates))
    return [f'All students of a task were swept over the same learning rates: {listed}.']


def _is_at_edge(sweep: dict) -> bool:
    rates = _tried(sweep, 'peak_lr')
    chosen = next(c for c in sweep['candidates'] if c['run'] == sweep['chosen'])
    return len(rates) > 2 and chosen['peak_lr'] in (rates[0], rates[-1])


def _is_best_chosen(sweep: dict) -> bool:
    best = max if METRICS[sweep['metric']].higher_is_better else min
    scores = {c['run']: c['score'] for c in sweep['candidates'] if _is_finite(c['score'])}
    return sweep['chosen'] in scores and scores[sweep['chosen']] == best(scores.values())
