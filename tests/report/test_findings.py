"""Sentences of a report. All figures are invented inputs."""

import json
import math

import numpy as np
import pytest
from helpers.reports import (
    ACCURACY,
    EXAMPLES,
    SPREAD,
    cells,
    findings_of,
    make_classifier,
    make_recipe,
    make_run,
    make_workdir,
)

from lightpaff_jax.report import findings, results


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize(
    ('long', 'word'), [(30.0, 'better'), (32.5, 'worse'), (31.0, 'equally well')]
)
def test_equal_cost_sentences_rank_by_perplexity(tmp_path, long, word):
    changes = {'no_teacher_equal_flops': long, 'no_teacher_equal_time': long}
    text = findings_of(make_workdir(tmp_path, **changes))
    scores = f'{long + 0.05:.2f} against 31.05'
    for cost in ('FLOPs', 'time'):
        assert f'the baseline with equal {cost} does {word}: {scores}' in text


@pytest.mark.parametrize(
    ('long', 'word'), [(0.94, 'better'), (0.92, 'worse'), (0.93, 'equally well')]
)
def test_equal_flops_sentence_ranks_by_accuracy(tmp_path, long, word):
    text = findings_of(make_classifier(tmp_path, no_teacher_equal_flops=long))
    shown = f'{100 * long + 0.05:.2f} % against 93.05 %'
    assert f'the baseline with equal FLOPs does {word}: {shown}' in text


def test_unequal_flops_or_updates_give_a_warning(tmp_path):
    workdir = make_workdir(tmp_path)
    assert 'Warning' not in findings_of(workdir)
    make_run(workdir / 'seed0/no_teacher_long', 32.5, 0, updates=5600)
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, updates=500)
    text = findings_of(workdir)
    assert 'Warning: the FLOPs are not equal' in text
    assert 'Warning: the updates are not equal: two-stage 800' in text


def test_flops_saved_by_a_cache_count_as_those_of_a_live_teacher(tmp_path):
    workdir = make_workdir(tmp_path)
    total_saved = 0.0
    for path in workdir.glob('seed*/stage1/result.json'):
        result = json.loads(path.read_text())
        saved = 0.2 * result['flops']
        total_saved += saved
        path.write_text(
            json.dumps(result | {'flops': result['flops'] - saved, 'flops_saved': saved})
        )
    assert 'Warning' not in findings_of(workdir)
    assert cells(workdir)['two-stage']['train FLOPs'] == '6.88e12'
    path = workdir / 'recipe.json'
    cache = {'flops': 3 * total_saved, 'flops_saved': total_saved}
    path.write_text(json.dumps(json.loads(path.read_text()) | {'teacher_cache': cache}))
    facts = cells(workdir, 'Provenance')
    expected = '2.06e12, 25.0 % of all runs, sweeps included'
    assert facts['FLOPs saved by the cache of the teacher'] == {'': expected}


@pytest.mark.parametrize(
    ('rival', 'best', 'more'),
    [
        (32.0, 'is the best', 'is more than'),
        (31.1, 'is the best', 'is not more than'),
        (30.0, 'is not the best', 'is more than'),
        (31.0, 'shares the lead', 'is not more than'),
    ],
)
def test_two_stage_rank_follows_perplexity_and_its_error(tmp_path, rival, best, more):
    line = line_of(findings_of(make_workdir(tmp_path, stage1_only=rival)), 'Two-stage')
    assert best in line
    assert f'{more} its standard error' in line


@pytest.mark.parametrize(
    ('rival', 'best', 'more'),
    [
        (0.912, 'is the best', 'is more than'),
        (0.92, 'is the best', 'is not more than'),
        (0.96, 'is not the best', 'is more than'),
        (0.93, 'shares the lead', 'is not more than'),
    ],
)
def test_two_stage_rank_follows_accuracy_and_its_error(tmp_path, rival, best, more):
    line = line_of(findings_of(make_classifier(tmp_path, stage1_only=rival)), 'Two-stage')
    assert best in line
    assert f'{more} its standard error' in line
    assert f'93.05 % against {100 * rival + 0.05:.2f} % (stage 1 only)' in line


def test_rival_of_a_classifier_is_the_most_accurate_student(tmp_path):
    text = findings_of(make_classifier(tmp_path, no_teacher=0.925))
    assert 'against 92.55 % (no teacher)' in line_of(text, 'Two-stage')


def test_difference_by_rounding_is_no_lead(tmp_path):
    workdir = make_classifier(tmp_path, seeds=2, stage2_only=0.1, no_teacher=0.1)
    # Both means are 20 %, except for the last bits of one.
    accuracies = {'two_stage': (0.1, 0.3 + 1e-15), 'stage1_only': (0.2, 0.2)}
    for student, values in accuracies.items():
        for seed, value in enumerate(values):
            make_run(workdir / f'seed{seed}/{student}', value, seed, objective='classify')
    assert 'Two-stage shares the lead of the 4 students' in findings_of(workdir)


def test_accuracies_of_zero_have_no_binomial_error(tmp_path):
    text = findings_of(make_classifier(tmp_path, 1, **dict.fromkeys(ACCURACY, 0.0)))
    assert 'Two-stage shares the lead' in text
    assert 'binomial' not in text


def test_one_seed_makes_no_claim_of_significance(tmp_path):
    text = findings_of(make_workdir(tmp_path, seeds=1))
    assert text.count('One seed cannot tell') == 3
    assert 'paired bootstrap' not in text
    assert 'standard error' not in text


@pytest.mark.parametrize('seeds', [1, 3])
def test_chance_of_an_accuracy_counts_seeds_and_test_examples(tmp_path, seeds):
    line = line_of(findings_of(make_classifier(tmp_path, seeds)), 'Two-stage')
    spread = np.array(SPREAD[:seeds]) / 100
    errors = [np.mean(np.sqrt((p + spread) * (1 - p - spread) / EXAMPLES)) for p in (0.93, 0.92)]
    error = 100 * math.hypot(*errors)
    if seeds == 1:
        choice = f'The choice of the 500 test examples has a standard error of {error:.2f} percent'
        assert f'One seed cannot tell a difference from chance. {choice}' in line
    else:
        error = math.hypot(error, 100 * np.sqrt(2 / 3) * np.std(spread, ddof=1))
        assert (
            f'The difference of 1.00 percentage points is not more than its standard error of '
            f'{error:.2f}, over 3 and 3 seeds and the 500 test examples.'
        ) in line


def test_binomial_error_equals_that_of_simulated_test_sets():
    p, n = 0.9, 500
    runs = [{'scores': {'test': {'accuracy': p, 'examples': n}}}]
    accuracies = 100 * np.random.default_rng(0).binomial(n, p, 20_000) / n
    # The deviation of 20,000 draws has a relative error of 1 / sqrt(40,000) = 0.5 %; 4 of those.
    assert results.binomial_error(runs) == pytest.approx(np.std(accuracies), rel=0.02)


@pytest.mark.parametrize(('teacher', 'warns'), [(28.0, False), (33.5, True), (36.0, True)])
def test_teacher_hardly_better_than_baseline_gives_a_warning(tmp_path, teacher, warns):
    text = findings_of(make_workdir(tmp_path, teacher=teacher))
    assert ('there is little to distil' in text) == warns
    assert ('higher than that of the baseline' in text) == (teacher > 34.05)


@pytest.mark.parametrize(
    ('teacher', 'sentence'),
    [
        (
            0.95,
            'The teacher makes 49.7 % fewer errors than the baseline without a teacher, so there is so',
        ),
        (
            0.902,
            'Warning: the teacher makes 1.5 % fewer errors than the baseline without a teacher, so the',
        ),
        (
            0.88,
            'Warning: the teacher makes 20.6 % more errors than the baseline without a teacher, so the',
        ),
    ],
)
def test_headroom_of_a_classifier_counts_errors(tmp_path, teacher, sentence):
    # The baseline's mean accuracy is 90.05 %, so its error rate is 9.95 %.
    assert sentence in findings_of(make_classifier(tmp_path, teacher=teacher))


def test_baseline_without_errors_leaves_nothing_to_distil(tmp_path):
    text = findings_of(make_classifier(tmp_path, seeds=1, no_teacher=1.0))
    assert 'Warning: the baseline makes no errors, so there is nothing to distil.' in text


def headline_of(workdir):
    _, tasks, _ = results.read(workdir)
    return findings.headline(tasks, results.read_speed(workdir))


def test_headline_names_share_size_speed_and_the_best_baseline(tmp_path):
    assert headline_of(make_classifier(tmp_path)) == (
        "97.9 % of the teacher's score at 1/5 of its size, 5.0 times faster; the same student "
        'without a teacher: 96.4 % (no teacher, equal FLOPs).'
    )
    share, rival = (np.mean(100 * np.log(28) / np.log(x + np.array(SPREAD))) for x in (31, 32.5))
    assert headline_of(make_workdir(tmp_path / 'text')) == (
        f"{share:.1f} % of the teacher's score at 1/5 of its size, 5.0 times faster; the same "
        f'student without a teacher: {rival:.1f} % (no teacher, equal FLOPs).'
    )


def test_headline_of_several_tasks_is_their_mean(tmp_path):
    first, second = ACCURACY, ACCURACY | {'two_stage': 0.80, 'no_teacher': 0.92}
    tasks = {'a': ('classify', first), 'b': ('classify', second)}
    share = 100 * np.mean([0.93, 0.80]) / 0.95
    rival = 100 * np.mean([0.915, 0.92]) / 0.95
    assert headline_of(make_recipe(tmp_path, tasks, seeds=1)) == (
        f"{share:.1f} % of the teacher's score (mean of 2 tasks) at 1/5 of its size, 5.0 times "
        f'faster; the same student without a teacher: {rival:.1f} % (the best baseline of each task).'
    )


def test_headline_omits_missing_speed_and_baselines(tmp_path):
    workdir = make_classifier(tmp_path)
    (workdir / 'speed.json').unlink()
    for folder in workdir.glob('seed*/no_teacher*'):
        (folder / 'result.json').unlink()
    assert headline_of(workdir) == "97.9 % of the teacher's score at 1/5 of its size."


def test_slower_student_is_described_as_slower(tmp_path):
    speed = results.read_speed(make_workdir(tmp_path))
    assert speed is not None
    speed['ratios']['latency'] = 0.5
    assert findings.speed_sentence(speed) == (
        'The student scores a sequence of 128 tokens 2.0x slower than the teacher.'
    )
