"""The hyperparameter sweeps of a recipe: their scores, and warnings about unfair or narrow ones."""

import math

from lightpaff_jax.report.findings import EQUAL_UPDATES
from lightpaff_jax.report.results import METRICS, ROWS, check_choice
from lightpaff_jax.report.tables import Table

PRETRAINING = {
    'stage1': 'stage 1',
    'pretrain': 'no teacher',
    'pretrain_equal_flops': 'no teacher, equal FLOPs',
    'pretrain_equal_time': 'no teacher, equal time',
}


def check(where: str, recipe: dict) -> None:
    """Raises UserError if a sweep in recipe.json has an unknown metric or choice."""
    for number, sweep in enumerate(recipe.get('sweeps', [])):
        check_choice(f'{where}: sweeps[{number}].metric', sweep['metric'], METRICS)
        runs = [candidate['run'] for candidate in sweep['candidates']]
        check_choice(f'{where}: sweeps[{number}].chosen', sweep['chosen'], runs)


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
    rates = sorted({c['peak_lr'] for sweep in recipe['sweeps'] for c in sweep['candidates']})
    lines: list[list[str]] = []
    best = []
    for sweep in recipe['sweeps']:
        candidates = {(c['peak_lr'], c['lambda_']): c for c in sweep['candidates']}
        for lambda_ in _tried(sweep, 'lambda_'):
            cells = [candidates.get((peak_lr, lambda_)) for peak_lr in rates]
            for column, candidate in enumerate(cells, 2):
                if candidate and candidate['run'] == sweep['chosen']:
                    best.append((len(lines), column))
            scores = [_format_score(sweep, candidate) if candidate else '' for candidate in cells]
            label = METRICS[sweep['metric']].label
            lines.append([title(sweep), f'{lambda_:g}', *scores, label])
    header = ('', 'λ', *(f'{peak_lr:g}' for peak_lr in rates), 'score')
    return Table('Hyperparameter sweeps', header, lines, _note(recipe['sweeps']), (), best)


def _note(sweeps: list[dict]) -> str:
    shared, share = '', ''
    if not any('_equal_' in sweep['student'] for sweep in sweeps):
        shared = (
            'Baselines with equal FLOPs or time use the choice of no teacher, and unlabelled text '
            'that of two-stage. '
        )
    if shares := sorted({100 * sweep['share'] for sweep in sweeps if 'share' in sweep}):
        percent = ' or '.join(f'{share:.0f} %' for share in shares)
        share = f'Sweeps take {percent} of the updates; the choice was then trained in full. '
    return (
        'Scores on the validation split, with a column for each peak learning rate; λ is the '
        'weight of the teacher; an empty cell was not tried. Bold: the chosen hyperparameters. '
        f'{share}The first seed sweeps, and the other seeds use its choice. {shared}Pre-training '
        'without a sweep has one learning rate for all students. No other table includes the '
        'costs of sweeps.'
    )


def _tried(sweep: dict, key: str) -> tuple[float, ...]:
    return tuple(sorted({candidate[key] for candidate in sweep['candidates']}))


def _format_score(sweep: dict, candidate: dict) -> str:
    score = METRICS[sweep['metric']].factor * _score(candidate)
    return f'{score:.2f}' if math.isfinite(score) else 'diverged'


def _score(candidate: dict) -> float:
    return math.nan if candidate['score'] is None else candidate['score']


def sentences(recipe: dict) -> list[str]:
    """Returns findings on whether the students had equal sweeps, and which were too narrow."""
    sweeps = recipe.get('sweeps', [])
    findings = _equal_sweeps(sweeps)
    if missing := _missing(recipe, sweeps):
        findings.append(f'Warning: no sweep for {", ".join(missing)}.')
    if edges := [title(sweep) for sweep in sweeps if _is_at_edge(sweep)]:
        findings.append(
            f'{len(edges)} of {len(sweeps)} chosen learning rates are the lowest or the highest of '
            f'their sweep, so a wider sweep may find a better one: {"; ".join(edges)}.'
        )
    if worse := [title(sweep) for sweep in sweeps if not _is_best_chosen(sweep)]:
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
    scores = {c['run']: _score(c) for c in sweep['candidates'] if math.isfinite(_score(c))}
    return sweep['chosen'] in scores and scores[sweep['chosen']] == best(scores.values())
