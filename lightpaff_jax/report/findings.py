"""The findings of a report: sentences on what the scores and costs show, for and against distillation."""

import math
import statistics

from lightpaff_jax.report.results import (
    Row,
    binomial_error,
    error_digits,
    mean,
    mean_error,
    score,
    teacher_share,
    total,
    values,
)

# Students that are compared with equal updates: the two-stage one, its ablations, the baseline.
EQUAL_UPDATES = ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
MIN_HEADROOM = 0.05  # a teacher that is better than the student by less has little to teach
FLOPS_TOLERANCE = 0.05  # training FLOPs that differ by less count as equal
HIGH_SHARE = 95.0  # % of the teacher's score that a family's students are expected to reach


def headlines(rows: dict[str, Row], speed: dict | None) -> list[str]:
    """Returns the findings of a task; omits those that need a missing row.

    Args:
      rows: finished rows of the task.
      speed: content of speed.json if it is about the networks of this task, else None.
    """
    two_stage, teacher, baseline = (rows.get(k) for k in ('two_stage', 'teacher', 'no_teacher'))
    sentences = []
    if two_stage and teacher:
        percent = 100 * two_stage.parameters / teacher.parameters
        faster = f' and {_speedup(speed)}' if speed else ''
        without = ''
        if baseline:
            without = f'; the same student without a teacher reaches {_show(baseline)}'
        sentences.append(
            f"The two-stage student has {percent:.0f} % of the teacher's parameters{faster}. "
            f'Its test {two_stage.metric.name} is {_show(two_stage)}, '
            f"the teacher's is {_show(teacher)}{without}."
        )
    return [
        *sentences,
        *_equal_updates(rows),
        *_equal_cost(rows, 'no_teacher_equal_flops', 'FLOPs'),
        *_equal_cost(rows, 'no_teacher_equal_time', 'time'),
        *_headroom(teacher, baseline),
    ]


def family_headlines(recipe: dict, tasks: dict[str, dict[str, Row]]) -> list[str]:
    """Returns the findings over all tasks: wins of two-stage, and its share of the teacher's score.

    Counts only the tasks that have a teacher and all students with equal updates.
    """
    complete = {
        task: rows for task, rows in tasks.items() if {'teacher', *EQUAL_UPDATES} <= rows.keys()
    }
    if not complete:
        return []
    number = f'{len(complete)} task{"s" if len(complete) > 1 else ""}'
    unbeaten = {task: _unbeaten(rows) for task, rows in complete.items()}
    won = [task for task in complete if not unbeaten[task]]
    lost = [f'not on {task}: {unbeaten[task]}' for task in complete if unbeaten[task]]
    details = '; '.join(filter(None, (', '.join(won), *lost)))
    shares, ratios = {}, []
    for task, rows in complete.items():
        two_stage, teacher = rows['two_stage'], rows['teacher']
        ratios.append(teacher.parameters / two_stage.parameters)
        if share := teacher_share(two_stage, teacher):
            shares[task] = statistics.fmean(share)
    listed = ', '.join(f'{task} {share:.1f} %' for task, share in shares.items())
    high = sum(share >= HIGH_SHARE for share in shares.values())
    size = ' to '.join(dict.fromkeys(f'1/{x:.3g}' for x in (min(ratios), max(ratios))))
    sentences = [
        'Two-stage beats the baseline and both ablations with equal updates, by means over seeds, '
        f'on {len(won)} of {number} ({details}).',
        f"It reaches at least {HIGH_SHARE:.0f} % of the teacher's score on {high} of {number} "
        f'({listed}), with {size} of its parameters.',
    ]
    if absent := [task for task in recipe['tasks'] if task not in complete]:
        sentences.append(f'Warning: not counted, since runs are missing: {", ".join(absent)}.')
    return sentences


def _show(row: Row) -> str:
    return f'{mean(row):.2f}{row.metric.unit}'


def _unbeaten(rows: dict[str, Row]) -> str:
    """Lists the rivals that two-stage does not beat, with their scores; '' if it beats all."""
    two_stage = rows['two_stage']
    rivals = [rows[key] for key in EQUAL_UPDATES[1:] if lead(two_stage, rows[key]) <= 0]
    listed = ', '.join(f'{rival.label} {_show(rival)}' for rival in rivals)
    return f'{_show(two_stage)} against {listed}' if rivals else ''


def speed_sentence(speed: dict) -> str:
    """Returns the speed-up of the student as a sentence of its own."""
    return f'The student {_speedup(speed)} than the teacher.'


def _speedup(speed: dict) -> str:
    ratio = speed['ratios']['latency']
    factor = f'{ratio:.1f}x faster' if ratio >= 1 else f'{1 / ratio:.1f}x slower'
    return f'{speed["task"]} of {speed["length"]} tokens {factor}'


def _deficit(row: Row) -> float:
    """Returns a mean for which lower is better: 100 minus a metric for which higher is better."""
    return 100 - mean(row) if row.metric.higher_is_better else mean(row)


def lead(a: Row, b: Row) -> float:
    """Returns by how much `a` is better than `b`; 0 if they differ by rounding only."""
    return 0.0 if math.isclose(mean(a), mean(b), rel_tol=1e-9) else _deficit(b) - _deficit(a)


def _significance(a: Row, b: Row) -> str:
    """Compares the difference of two means with its standard error sqrt(se_a^2 + se_b^2)."""
    (mean_a, error_a), (mean_b, error_b) = (mean_error(values(row)) for row in (a, b))
    if error_a is None or error_b is None:
        return f'One seed cannot tell a difference from chance.{_sampling_error(a, b)}'
    gap, error = abs(mean_a - mean_b), math.hypot(error_a, error_b)
    relation, digits = 'more' if gap > error else 'not more', error_digits(error, 2)
    return (
        f'The difference of {gap:.{digits}f}{a.metric.gap_unit} is {relation} than its standard '
        f'error of {error:.{digits}f} ({len(a.seeds)} and {len(b.seeds)} seeds).'
        f'{_sampling_error(a, b)}'
    )


def _sampling_error(a: Row, b: Row) -> str:
    """Returns a sentence on the error of an accuracy difference that the test examples cause."""
    error = 0.0
    if a.metric.key == 'accuracy':
        error = math.hypot(*(mean(row, binomial_error) for row in (a, b)))
    if not error:  # the formula gives 0 for accuracies of 0 and 100 %, where it does not apply
        return ''
    counts = sorted({n for row in (a, b) for n in values(row, score('examples'))})
    return (
        f' The choice of the {" or ".join(f"{n:,.0f}" for n in counts)} test examples adds a '
        f'binomial standard error of {error:.{error_digits(error, 2)}f}{a.metric.gap_unit}.'
    )


def _equal_updates(rows: dict[str, Row]) -> list[str]:
    """Compares two-stage with the best of the others that have equal updates."""
    students = [rows[key] for key in EQUAL_UPDATES if key in rows]
    if 'two_stage' not in rows or len(students) < 2:
        return []
    two_stage, rival = students[0], min(students[1:], key=_deficit)
    ahead = lead(two_stage, rival)
    rank = 'is the best' if ahead > 0 else 'is not the best' if ahead < 0 else 'shares the lead'
    finished = '' if len(students) == len(EQUAL_UPDATES) else ' finished'
    sentences = [
        f'Two-stage {rank} of the {len(students)}{finished} students with equal updates: '
        f'{_show(two_stage)} against {_show(rival)} ({rival.label}). '
        f'{_significance(two_stage, rival)}'
    ]
    updates = {student.label: mean(student, total('updates')) for student in students}
    if len(set(updates.values())) > 1:
        listed = ', '.join(f'{label} {n:,.0f}' for label, n in updates.items())
        sentences.append(f'Warning: the updates are not equal: {listed}.')
    return sentences


def _equal_cost(rows: dict[str, Row], key: str, cost: str) -> list[str]:
    """Compares two-stage with the baseline of equal training FLOPs or time."""
    if not {'two_stage', key} <= set(rows):
        return []
    two_stage, baseline = rows['two_stage'], rows[key]
    ahead = lead(baseline, two_stage)
    result = 'better' if ahead > 0 else 'worse' if ahead < 0 else 'equally well'
    flops = mean(baseline, total('flops')) / mean(two_stage, total('flops'))
    sentences = [
        f'With this budget the baseline with equal {cost} does {result}: {_show(baseline)} '
        f'against {_show(two_stage)} for two-stage. {_significance(baseline, two_stage)}'
    ]
    if cost == 'FLOPs' and abs(flops - 1) > FLOPS_TOLERANCE:
        sentences.append(
            f'Warning: the FLOPs are not equal: the baseline used {flops:.2f}x as many.'
        )
    return sentences


def _headroom(teacher: Row | None, baseline: Row | None) -> list[str]:
    """Returns how much better the teacher is than the baseline, with a warning if it is little."""
    if teacher is None or baseline is None:
        return []
    name = baseline.metric.name.split(' per ')[0]
    text = f"The teacher's {name} is {{}} than that of the baseline without a teacher"
    if baseline.metric.key == 'accuracy':
        if not _deficit(baseline):
            return ['Warning: the baseline makes no errors, so there is nothing to distil.']
        text = 'The teacher makes {} errors than the baseline without a teacher'
        gain, words = 1 - _deficit(teacher) / _deficit(baseline), ('fewer', 'more')
    elif baseline.metric.higher_is_better:
        if not mean(baseline):
            return []  # a score of 0 has no ratio
        gain, words = mean(teacher) / mean(baseline) - 1, ('higher', 'lower')
    else:
        gain, words = 1 - mean(teacher) / mean(baseline), ('lower', 'higher')
    text = text.format(f'{100 * abs(gain):.1f} % {words[gain < 0]}')
    if gain >= MIN_HEADROOM:
        return [f'{text}, so there is something to distil.']
    return [f'Warning: {text[0].lower()}{text[1:]}, so there is little to distil.']
