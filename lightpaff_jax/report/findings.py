"""What the numbers of a recipe say, for and against, in sentences."""

import math

from lightpaff_jax.report.results import (
    Row,
    binomial_error,
    cost,
    digits_of,
    mean,
    mean_error,
    score,
    values,
)

EQUAL_UPDATES = ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
LEAST_HEADROOM = 0.05  # a teacher less than this better than the student has little to give
FLOPS_TOLERANCE = 0.05  # training FLOPs that differ by less count as the same


def headlines(rows: dict[str, Row], speed: dict | None) -> list[str]:
    """What a task's numbers say; silent where a run it needs is missing.

    Args:
      rows: of the task.
      speed: speed.json where it is of this task's networks, else None.
    """
    said = []
    two, teacher, plain = (rows.get(k) for k in ('two_stage', 'teacher', 'no_teacher'))
    if two and teacher:
        metric = two.metric
        share = 100 * two.chains[0][-1]['parameters'] / teacher.chains[0][-1]['parameters']
        fast = f' and {_faster(speed)}' if speed else ''
        against = ''
        if plain:
            against = f'; the same student without a teacher has {metric.show(mean(plain))}'
        said.append(
            f"The two-stage student has {share:.0f} % of the teacher's parameters{fast}. "
            f'Its test {metric.name} is {metric.show(mean(two))}, '
            f"the teacher's {metric.show(mean(teacher))}{against}."
        )
    return said + _best_arm(rows) + _equal_flops(rows) + _headroom(teacher, plain)


def speed_sentence(speed: dict) -> str:
    """What speed.json says, where it stands for several tasks."""
    return f'The student {_faster(speed)} than the teacher.'


def _faster(speed: dict) -> str:
    ratio = speed['ratios']['latency']
    times = f'{ratio:.1f}x faster' if ratio >= 1 else f'{1 / ratio:.1f}x slower'
    return f'{speed["task"]} of {speed["length"]} tokens {times}'


def _loss(row: Row) -> float:
    """The metric where lower is better, else what it lacks to 100; of accuracy: the errors."""
    return 100 - mean(row) if row.metric.higher else mean(row)


def lead(a: Row, b: Row) -> float:
    """How far `a` is ahead of `b`; 0 where only rounding tells them apart."""
    return 0.0 if math.isclose(mean(a), mean(b), rel_tol=1e-9) else _loss(b) - _loss(a)


def _certainty(a: Row, b: Row) -> str:
    """Whether two means differ by more than sqrt(se_a^2 + se_b^2)."""
    (mean_a, error_a), (mean_b, error_b) = (mean_error(values(row)) for row in (a, b))
    if error_a is None or error_b is None:
        return f'One seed cannot tell whether that is chance.{_sampling(a, b)}'
    gap, error = abs(mean_a - mean_b), math.hypot(error_a, error_b)
    more, digits = 'more' if gap > error else 'not more', digits_of(error, 2)
    return (
        f'The difference of {gap:.{digits}f}{a.metric.of_gap} is {more} than its standard error of '
        f'{error:.{digits}f} ({len(a.seeds)} and {len(b.seeds)} seeds).{_sampling(a, b)}'
    )


def _sampling(a: Row, b: Row) -> str:
    """How much of a difference of accuracies the choice of the test examples alone may make."""
    if a.metric.key != 'accuracy':
        return ''
    error = math.hypot(*(mean(row, binomial_error) for row in (a, b)))
    if not error:  # of accuracies of 0 or 100 %, where the formula knows nothing
        return ''
    counts = sorted({n for row in (a, b) for n in values(row, score('examples'))})
    return (
        f' The {" or ".join(f"{n:,.0f}" for n in counts)} test examples alone give a difference a '
        f'binomial standard error of {error:.{digits_of(error, 2)}f}{a.metric.of_gap}.'
    )


def _best_arm(rows: dict[str, Row]) -> list[str]:
    arms = [rows[key] for key in EQUAL_UPDATES if key in rows]
    if 'two_stage' not in rows or len(arms) < 2:
        return []
    two, rival = arms[0], min(arms[1:], key=_loss)
    ahead = lead(two, rival)
    best = 'is the best' if ahead > 0 else 'is not the best' if ahead < 0 else 'shares the lead'
    finished = '' if len(arms) == len(EQUAL_UPDATES) else ' finished'
    show = two.metric.show
    said = [
        f'Two-stage {best} of the {len(arms)}{finished} arms with equal updates: '
        f'{show(mean(two))} against {show(mean(rival))} ({rival.label}). {_certainty(two, rival)}'
    ]
    updates = {arm.label: mean(arm, cost('updates')) for arm in arms}
    if len(set(updates.values())) > 1:
        each = ', '.join(f'{label} {n:,.0f}' for label, n in updates.items())
        said.append(f'Warning: the updates are not equal: {each}.')
    return said


def _equal_flops(rows: dict[str, Row]) -> list[str]:
    if not {'two_stage', 'no_teacher_equal_flops'} <= set(rows):
        return []
    two, long = rows['two_stage'], rows['no_teacher_equal_flops']
    ahead, show = lead(long, two), two.metric.show
    how = 'better' if ahead > 0 else 'worse' if ahead < 0 else 'as well'
    flops = mean(long, cost('flops')) / mean(two, cost('flops'))
    said = [
        f'At this budget plain training for the same FLOPs does {how}: {show(mean(long))} against '
        f'{show(mean(two))} of two-stage. {_certainty(long, two)}'
    ]
    if abs(flops - 1) > FLOPS_TOLERANCE:
        said.append(
            f'Warning: the FLOPs are not the same: plain training had {flops:.2f}x as many.'
        )
    return said


def _headroom(teacher: Row | None, plain: Row | None) -> list[str]:
    if teacher is None or plain is None:
        return []
    name = plain.metric.name.split(' per ')[0]
    than = f"The teacher's {name} is {{}} than the undistilled student's"
    if plain.metric.key == 'accuracy':
        if not _loss(plain):
            return ['Warning: the undistilled student makes no errors: there is nothing to distil.']
        than = 'The teacher makes {} errors than the undistilled student'
        better, words = 1 - _loss(teacher) / _loss(plain), ('fewer', 'more')
    elif plain.metric.higher:
        if not mean(plain):
            return []  # the student writes nothing that counts: no ratio
        better, words = mean(teacher) / mean(plain) - 1, ('higher', 'lower')
    else:
        better, words = 1 - mean(teacher) / mean(plain), ('lower', 'higher')
    than = than.format(f'{100 * abs(better):.1f} % {words[better < 0]}')
    if better >= LEAST_HEADROOM:
        return [f'{than}: there is something to distil.']
    return [f'Warning: {than[0].lower()}{than[1:]}: there is little to distil.']
