"""The findings of a report: sentences on what the scores and costs show, for and against distillation."""

import math
import statistics
from collections.abc import Sequence

from lightpaff_jax.report.bootstrap import RESAMPLES, Lead, Leads, pool
from lightpaff_jax.report.results import (
    ROWS,
    Row,
    binomial_error,
    error_digits,
    live_flops,
    mean,
    mean_error,
    score,
    teacher_share,
    total,
    values,
)

# Students that are compared with equal updates: the two-stage one, its ablations, the baseline.
EQUAL_UPDATES = ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
BASELINES = ('no_teacher', 'no_teacher_equal_flops', 'no_teacher_equal_time')
MIN_HEADROOM = 0.05  # a teacher that is better than the student by less has little to teach
FLOPS_TOLERANCE = 0.05  # training FLOPs that differ by less count as equal
HIGH_SHARE = 95.0  # % of the teacher's score that a family's students are expected to reach
SIGNIFICANT = 0.05  # p of a lead below which it counts as more than chance


def headline(tasks: dict[str, dict[str, Row]], speed: dict | None) -> str:
    """Returns the share of the teacher's score with and without a teacher, size and speed, or ''.

    Args:
      tasks: task name -> its finished rows; counts those with a teacher and a two-stage student.
      speed: content of speed.json, or None.
    """
    shares, ratios, rivals = [], [], []
    for rows in tasks.values():
        if not {'teacher', 'two_stage'} <= rows.keys():
            continue
        teacher, two_stage = rows['teacher'], rows['two_stage']
        if share := teacher_share(two_stage, teacher):
            shares.append(statistics.fmean(share))
            ratios.append(teacher.parameters / two_stage.parameters)
            baselines = [rows[key] for key in BASELINES if key in rows]
            if baselines:
                best = min(baselines, key=_deficit)
                rivals.append((statistics.fmean(teacher_share(best, teacher) or [0]), best.label))
    if not shares:
        return ''
    several = f' (mean of {len(shares)} tasks)' if len(shares) > 1 else ''
    size = ' to '.join(dict.fromkeys(f'1/{x:.3g}' for x in (min(ratios), max(ratios))))
    text = f"{statistics.fmean(shares):.1f} % of the teacher's score{several} at {size} of its size"
    if speed:
        ratio = speed['ratios']['latency']
        text += f', {ratio:.1f} times faster' if ratio >= 1 else f', {1 / ratio:.1f} times slower'
    if len(rivals) == len(shares):
        labels = dict.fromkeys(label for _, label in rivals)
        name = next(iter(labels)) if len(labels) == 1 else 'the best baseline of each task'
        percent = statistics.fmean(share for share, _ in rivals)
        text += f'; the same student without a teacher: {percent:.1f} % ({name})'
    return f'{text}.'


def headlines(rows: dict[str, Row], leads: Leads) -> list[str]:
    """Returns the findings of a task; omits those that need a missing row.

    Args:
      rows: finished rows of the task.
      leads: leads of its two-stage student.
    """
    two_stage, teacher, baseline = (rows.get(k) for k in ('two_stage', 'teacher', 'no_teacher'))
    sentences = []
    if two_stage and teacher:
        without = f', without a teacher {_show(baseline)}' if baseline else ''
        sentences.append(
            f'The test {two_stage.metric.name} of the teacher is {_show(teacher)}, that of the '
            f'two-stage student {_show(two_stage)}{without}.'
        )
    return [
        *sentences,
        *_equal_updates(rows, leads),
        *_equal_cost(rows, leads, 'no_teacher_equal_flops', 'FLOPs'),
        *_equal_cost(rows, leads, 'no_teacher_equal_time', 'time'),
        *_headroom(teacher, baseline),
    ]


def bootstrap_note(leads: Leads) -> str:
    """Lists the leads over the baselines, for the note of a table; '' if there are none."""
    listed = '; '.join(f'{ROWS[key][0]} {leads[key]}' for key in BASELINES if key in leads)
    return listed and (
        f'Lead of two-stage with its 95 % interval and p, by a paired bootstrap of test examples '
        f'({RESAMPLES:,} resamples) and the variance of seeds, over {listed}. '
    )


def pooled_leads(tasks: dict[str, Leads], rows: dict[str, dict[str, Row]]) -> Leads:
    """Returns the mean leads over all tasks, for each baseline that every task has.

    The tasks must have metrics of one unit, percentage points: perplexities have no common scale.
    """
    units = {next(iter(rows[task].values())).metric.gap_unit for task in tasks}
    if len(tasks) < 2 or len(units) > 1 or '' in units:
        return {}
    return {
        key: pool([leads[key] for leads in tasks.values()])
        for key in BASELINES
        if all(key in leads for leads in tasks.values())
    }


def family_headlines(
    recipe: dict, tasks: dict[str, dict[str, Row]], leads: dict[str, Leads]
) -> list[str]:
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
        *_baseline_leads(tasks, leads),
    ]
    if absent := [task for task in recipe['tasks'] if task not in complete]:
        sentences.append(f'Warning: not counted, since runs are missing: {", ".join(absent)}.')
    return sentences


def _baseline_leads(tasks: dict[str, dict[str, Row]], leads: dict[str, Leads]) -> list[str]:
    """Counts the tasks on which two-stage is ahead of every baseline, and more than by chance."""
    of_baselines = {
        task: [leads[task][key] for key in BASELINES if key in leads[task]] for task in tasks
    }
    counted = {task: of_task for task, of_task in of_baselines.items() if of_task}
    if not counted:
        return []
    ahead = [task for task, of_task in counted.items() if all(x.mean > 0 for x in of_task)]
    significant = [task for task in ahead if all(x.p < SIGNIFICANT for x in counted[task])]
    sentences = [
        f'Two-stage is ahead of every baseline on {len(ahead)} of {len(counted)} tasks'
        f'{_listed(ahead)}, and with p < {SIGNIFICANT} by a paired bootstrap on '
        f'{len(significant)}{_listed(significant)}.'
    ]
    if pooled := pooled_leads(leads, tasks):
        unit = next(iter(next(iter(tasks.values())).values())).metric.gap_unit.strip()
        listed = '; '.join(f'{ROWS[key][0]} {lead}' for key, lead in pooled.items())
        sentences.append(
            f'Its lead pooled over the tasks, the mean in {unit} with a 95 % interval: {listed}.'
        )
    return sentences


def _listed(names: Sequence[str]) -> str:
    return f' ({", ".join(names)})' if names else ''


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


def _chance(two_stage: Row, rival: Row, lead: Lead | None) -> str:
    """Returns a sentence on whether seeds and test examples explain the difference of two means.

    Without predictions it compares the difference with its standard error: over the seeds of both
    students and, for an accuracy, over the choice of the test examples.
    """
    unit = two_stage.metric.gap_unit
    if lead is not None:
        verb, sign = ('leads', 1) if lead.mean >= 0 else ('trails', -1)
        low, high = sorted((sign * lead.low, sign * lead.high))
        return (
            f'Two-stage {verb} by {abs(lead.mean):.2f}{unit} (95 % interval {low:.2f} to '
            f'{high:.2f}, {lead.format_p()}, by a paired bootstrap over {lead.examples:,} test '
            f'examples and {lead.seeds} seed{"s" if lead.seeds > 1 else ""}).'
        )
    (mean_a, error_a), (mean_b, error_b) = (mean_error(values(row)) for row in (two_stage, rival))
    choice, examples = _choice_error(two_stage, rival)
    if error_a is None or error_b is None:
        text = 'One seed cannot tell a difference from chance.'
        if choice:
            digits = error_digits(choice, 2)
            text += f' The choice of {examples} has a standard error of {choice:.{digits}f}{unit}.'
        return text
    gap, error = abs(mean_a - mean_b), math.hypot(error_a, error_b, choice)
    relation, digits = 'more' if gap > error else 'not more', error_digits(error, 2)
    seeds = f'{len(two_stage.seeds)} and {len(rival.seeds)} seeds'
    over = f'{seeds} and {examples}' if choice else seeds
    return (
        f'The difference of {gap:.{digits}f}{unit} is {relation} than its standard error of '
        f'{error:.{digits}f}, over {over}.'
    )


def _choice_error(a: Row, b: Row) -> tuple[float, str]:
    """Returns the binomial error of an accuracy difference, and the examples that cause it.

    It is 0 for other metrics, and for accuracies of 0 and 100 %, where the formula does not apply.
    """
    if a.metric.key != 'accuracy':
        return 0.0, ''
    counts = sorted({n for row in (a, b) for n in values(row, score('examples'))})
    examples = f'the {" or ".join(f"{n:,.0f}" for n in counts)} test examples'
    return math.hypot(*(mean(row, binomial_error) for row in (a, b))), examples


def _equal_updates(rows: dict[str, Row], leads: Leads) -> list[str]:
    """Compares two-stage with the best of the others that have equal updates."""
    students = [rows[key] for key in EQUAL_UPDATES if key in rows]
    if 'two_stage' not in rows or len(students) < 2:
        return []
    two_stage = students[0]
    key = min(EQUAL_UPDATES[1:], key=lambda key: _deficit(rows[key]) if key in rows else math.inf)
    rival = rows[key]
    ahead = lead(two_stage, rival)
    rank = 'is the best' if ahead > 0 else 'is not the best' if ahead < 0 else 'shares the lead'
    finished = '' if len(students) == len(EQUAL_UPDATES) else ' finished'
    sentences = [
        f'Two-stage {rank} of the {len(students)}{finished} students with equal updates: '
        f'{_show(two_stage)} against {_show(rival)} ({rival.label}). '
        f'{_chance(two_stage, rival, leads.get(key))}'
    ]
    updates = {student.label: mean(student, total('updates')) for student in students}
    if len(set(updates.values())) > 1:
        listed = ', '.join(f'{label} {n:,.0f}' for label, n in updates.items())
        sentences.append(f'Warning: the updates are not equal: {listed}.')
    return sentences


def _equal_cost(rows: dict[str, Row], leads: Leads, key: str, cost: str) -> list[str]:
    """Compares two-stage with the baseline of equal training FLOPs or time."""
    if not {'two_stage', key} <= set(rows):
        return []
    two_stage, baseline = rows['two_stage'], rows[key]
    ahead = lead(baseline, two_stage)
    result = 'better' if ahead > 0 else 'worse' if ahead < 0 else 'equally well'
    flops = mean(baseline, live_flops) / mean(two_stage, live_flops)
    sentences = [
        f'With this budget the baseline with equal {cost} does {result}: {_show(baseline)} '
        f'against {_show(two_stage)} for two-stage. {_chance(two_stage, baseline, leads.get(key))}'
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
