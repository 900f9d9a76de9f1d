"""Claims about the sentences of a report. All figures here are made up inputs."""

import math

import numpy as np
import pytest
from helpers import reports as report_fixtures
from helpers.reports import make_classifier, make_run, make_workdir, said_of

from lightpaff_jax.report import findings, results


def line_of(said, start):
    return next(s for s in said.splitlines() if s.startswith(start))


@pytest.mark.parametrize(('long', 'word'), [(30.0, 'better'), (32.5, 'worse'), (31.0, 'as well')])
def test_the_equal_flops_sentence_follows_the_numbers(tmp_path, long, word):
    said = said_of(make_workdir(tmp_path, no_teacher_equal_flops=long))
    assert f'plain training for the same FLOPs does {word}: {long + 0.05:.2f} against 31.05' in said


@pytest.mark.parametrize(('long', 'word'), [(0.94, 'better'), (0.92, 'worse'), (0.93, 'as well')])
def test_the_equal_flops_sentence_knows_that_a_higher_accuracy_is_better(tmp_path, long, word):
    said = said_of(make_classifier(tmp_path, no_teacher_equal_flops=long))
    shown = f'{100 * long + 0.05:.2f} % against 93.05 %'
    assert f'plain training for the same FLOPs does {word}: {shown}' in said


def test_flops_or_updates_that_are_not_equal_are_called_out(tmp_path):
    workdir = make_workdir(tmp_path)
    assert 'Warning' not in said_of(workdir)
    make_run(workdir / 'seed0/no_teacher_long', 32.5, 0, updates=5600)
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, updates=500)
    said = said_of(workdir)
    assert 'Warning: the FLOPs are not the same' in said
    assert 'Warning: the updates are not equal: two-stage 800' in said


@pytest.mark.parametrize(
    ('rival', 'best', 'more'),
    [(32.0, 'is the best', 'is more than'), (31.1, 'is the best', 'is not more than'),
     (30.0, 'is not the best', 'is more than'), (31.0, 'shares the lead', 'is not more than')],
)  # fmt: skip
def test_two_stage_wins_only_by_its_numbers_and_their_error(tmp_path, rival, best, more):
    line = line_of(said_of(make_workdir(tmp_path, stage1_only=rival)), 'Two-stage')
    assert best in line
    assert f'{more} its standard error' in line


@pytest.mark.parametrize(
    ('rival', 'best', 'more'),
    [(0.92, 'is the best', 'is more than'), (0.929, 'is the best', 'is not more than'),
     (0.94, 'is not the best', 'is more than'), (0.93, 'shares the lead', 'is not more than')],
)  # fmt: skip
def test_two_stage_wins_by_accuracy_only_where_its_own_is_higher(tmp_path, rival, best, more):
    line = line_of(said_of(make_classifier(tmp_path, stage1_only=rival)), 'Two-stage')
    assert best in line
    assert f'{more} its standard error' in line
    assert f'93.05 % against {100 * rival + 0.05:.2f} % (stage 1 only)' in line


def test_the_rival_of_a_classifier_is_the_most_accurate_arm(tmp_path):
    said = said_of(make_classifier(tmp_path, no_teacher=0.925))
    assert 'against 92.55 % (no teacher)' in line_of(said, 'Two-stage')


def test_rounding_is_no_lead(tmp_path):
    workdir = make_classifier(tmp_path, seeds=2, stage2_only=0.1, no_teacher=0.1)
    # Means of 20 % both, but for the last bits of one.
    accuracies = {'two_stage': (0.1, 0.3 + 1e-15), 'stage1_only': (0.2, 0.2)}
    for arm, values in accuracies.items():
        for seed, value in enumerate(values):
            make_run(workdir / f'seed{seed}/{arm}', value, seed, objective='classify')
    assert 'Two-stage shares the lead of the 4 arms' in said_of(workdir)


def test_accuracies_of_zero_claim_no_binomial_error(tmp_path):
    said = said_of(make_classifier(tmp_path, 1, **dict.fromkeys(report_fixtures.ACCURACY, 0.0)))
    assert 'Two-stage shares the lead' in said
    assert 'binomial' not in said


def test_one_seed_claims_no_significance(tmp_path):
    said = said_of(make_workdir(tmp_path, seeds=1))
    assert said.count('One seed cannot tell') == 2
    assert 'standard error' not in said


@pytest.mark.parametrize('seeds', [1, 3])
def test_a_difference_of_accuracies_comes_with_its_binomial_error(tmp_path, seeds):
    line = line_of(said_of(make_classifier(tmp_path, seeds)), 'Two-stage')
    spread = np.array(report_fixtures.SPREAD[:seeds]) / 100
    errors = [
        np.mean(np.sqrt((p + spread) * (1 - p - spread) / report_fixtures.EXAMPLES))
        for p in (0.93, 0.92)
    ]
    error = 100 * math.hypot(*errors)
    said = 'The 500 test examples alone give a difference a binomial standard error of'
    assert f'{said} {error:.2f} percentage points.' in line
    assert ('One seed cannot tell' in line) == (seeds == 1)
    assert ('is more than its standard error of' in line) == (seeds == 3)


def test_the_binomial_error_is_that_of_simulated_test_sets():
    p, n = 0.9, 500
    chain = [{'scores': {'test': {'accuracy': p, 'examples': n}}}]
    drawn = 100 * np.random.default_rng(0).binomial(n, p, 20_000) / n
    # The deviation of 20,000 draws has a relative error of 1 / sqrt(40,000) = 0.5 %; 4 of those.
    assert results.binomial_error(chain) == pytest.approx(np.std(drawn), rel=0.02)


@pytest.mark.parametrize(('teacher', 'warns'), [(28.0, False), (33.5, True), (36.0, True)])
def test_a_teacher_hardly_better_than_the_undistilled_student_is_warned_of(
    tmp_path, teacher, warns
):
    said = said_of(make_workdir(tmp_path, teacher=teacher))
    assert ('there is little to distil' in said) == warns
    assert ('higher than the undistilled' in said) == (teacher > 34.05)


@pytest.mark.parametrize(
    ('teacher', 'said'),
    [
        (0.95, 'The teacher makes 49.7 % fewer errors than the undistilled student: there is som'),
        (0.902, 'Warning: the teacher makes 1.5 % fewer errors than the undistilled student: ther'),
        (0.88, 'Warning: the teacher makes 20.6 % more errors than the undistilled student: there'),
    ],
)
def test_the_headroom_of_a_classifier_counts_errors(tmp_path, teacher, said):
    # The student's mean accuracy is 90.05 %, so it errs on 9.95 %.
    assert said in said_of(make_classifier(tmp_path, teacher=teacher))


def test_a_student_without_errors_leaves_nothing_to_distil(tmp_path):
    said = said_of(make_classifier(tmp_path, seeds=1, no_teacher=1.0))
    assert 'Warning: the undistilled student makes no errors: there is nothing to distil.' in said


def test_the_first_sentence_says_what_one_call_is_and_how_good_the_student_is(tmp_path):
    first = said_of(make_classifier(tmp_path)).splitlines()[0]
    assert 'classifies a text of 128 tokens 5.0x faster' in first
    assert 'test accuracy is 93.05 %' in first
    assert "teacher's 95.00 %; the same student without a teacher has 90.05 %" in first
    first = said_of(make_workdir(tmp_path / 'text')).splitlines()[0]
    assert 'scores a sequence of 128 tokens 5.0x faster' in first
    assert 'test perplexity per token is 31.05' in first


def test_a_slower_student_is_called_slower(tmp_path):
    speed = results.read_speed(make_workdir(tmp_path))
    assert speed is not None
    speed['ratios']['latency'] = 0.5
    assert findings.speed_sentence(speed) == (
        'The student scores a sequence of 128 tokens 2.0x slower than the teacher.'
    )
