"""The paired bootstrap, on constructed predictions whose leads and intervals are known."""

import json
import math

import numpy as np
import pytest
from helpers.reports import make_classifier, make_family, make_workdir

from lightpaff_jax import report
from lightpaff_jax.errors import UserError
from lightpaff_jax.report import bootstrap, results

ACCURACY, F1, PERPLEXITY = (results.METRICS[key] for key in ('accuracy', 'f1', 'perplexity'))


def lead(metric, two_stage, other):
    """Compares students, given as a list of two sums per example for each seed."""
    return bootstrap._lead(
        metric, *(dict(enumerate(np.array(seeds, float))) for seeds in (two_stage, other))
    )


def answers(correct):
    return np.stack([correct, np.ones(len(correct))], axis=1)


def test_equal_predictions_have_no_lead():
    same = [answers([1, 0, 1, 1])] * 2
    comparison = lead(ACCURACY, same, same)
    assert (comparison.mean, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)
    assert (comparison.examples, comparison.seeds) == (4, 2)


def test_lead_on_every_example_has_the_least_p():
    comparison = lead(ACCURACY, [answers(np.ones(5))], [answers(np.zeros(5))])
    assert (comparison.mean, comparison.low, comparison.high) == (100, 100, 100)
    assert comparison.p == 2 / (bootstrap.RESAMPLES + 1)
    assert str(comparison) == '+100.00 [100.00, 100.00], p < 0.001'


def test_interval_of_one_seed_equals_the_normal_approximation():
    random = np.random.default_rng(3)
    a, b = (random.random(4000) < p for p in (0.92, 0.9))
    comparison = lead(ACCURACY, [answers(a)], [answers(b)])
    difference = 100 * (a.astype(float) - b)
    error = difference.std() / math.sqrt(4000)
    assert comparison.mean == pytest.approx(difference.mean())
    # The quantiles of 10,000 resamples have a standard error of 2.7 % of `error`; 4 of those.
    assert comparison.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.11 * error)
    assert comparison.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.11 * error)


def test_equal_examples_make_the_pairing_exact():
    # Correct on other halves: unpaired, the lead of 0 would have the same error for any overlap.
    half = np.arange(1000) % 2
    apart = lead(ACCURACY, [answers(half)], [answers(1 - half)])
    near = lead(ACCURACY, [answers(half)], [answers(np.r_[1 - half[:10], half[10:]])])
    assert near.high < apart.high / 5


def test_seeds_that_differ_widen_the_interval():
    def student(*rates):
        return [answers(np.arange(1000) < 1000 * rate) for rate in rates]

    narrow = lead(ACCURACY, student(0.6, 0.6, 0.6), student(0.5, 0.5, 0.5))
    wide = lead(ACCURACY, student(0.5, 0.6, 0.7), student(0.5, 0.5, 0.5))
    assert narrow.mean == pytest.approx(10)
    assert wide.mean == pytest.approx(10)
    # Leads of 0, 10 and 20 have the variance 100; t with 2 degrees of freedom has its 0.975 at 4.30.
    assert narrow.high - narrow.mean < 3
    assert wide.high - wide.mean == pytest.approx(4.30 * math.sqrt(100 / 3), rel=0.05)
    assert wide.p == pytest.approx(0.225, rel=0.05)  # of t = 10 / 5.77


def test_continuous_and_grouped_draws_agree(monkeypatch):
    random = np.random.default_rng(5)
    seeds = [answers(random.random(400) < p) for p in (0.8, 0.7)]
    grouped = lead(ACCURACY, seeds[:1], seeds[1:])
    monkeypatch.setattr(bootstrap, '_MULTINOMIAL', 400)  # draws each example by itself
    single = lead(ACCURACY, seeds[:1], seeds[1:])
    assert grouped.mean == single.mean
    # Standard deviations of 10,000 draws differ by 1 % (two errors of 0.7 %); 4 of those.
    assert grouped.resamples.std() == pytest.approx(single.resamples.std(), rel=0.04)


def test_false_alarms_of_seeds_occur_as_often_as_p_says():
    """Students without a difference, but with seeds that differ more than examples do."""
    random = np.random.default_rng(0)
    leads = 0.5 * random.normal(size=(2000, 3))
    resamples = 0.05 * random.normal(size=bootstrap.RESAMPLES)
    alarms = sum(
        bootstrap._summarize(float(x.mean()), x.mean() + resamples, x, 40_000).p < 0.05
        for x in leads
    )
    assert 60 < alarms < 140  # expected 100, with a standard deviation of 10


def test_false_alarms_occur_as_often_as_p_says():
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        a, b = (answers(random.random(300) < 0.8) for _ in range(2))
        alarms += lead(ACCURACY, [a], [b]).p < 0.05
    assert 0 < alarms <= 12  # expected 5, with a standard deviation of 2.2


def test_f1_and_perplexity_equal_their_definitions():
    lines = [{'label': y, 'predicted': p} for y, p in ((1, 1), (1, 0), (0, 1), (0, 0), (1, 1))]
    sums = bootstrap._sums('f1', lines)
    precision = recall = 2 / 3
    assert bootstrap._score('f1', sums.sum(0)) == pytest.approx(
        100 * 2 * precision * recall / (precision + recall)
    )
    lines = [{'nll': 6.0, 'tokens': 2}, {'nll': 3.0, 'tokens': 1}]
    assert bootstrap._score('perplexity', bootstrap._sums('perplexity', lines).sum(0)) == (
        pytest.approx(math.exp(3))
    )


def test_lower_perplexity_is_a_lead():
    tokens = np.full(50, 10.0)
    better, worse = (np.stack([tokens * nll, tokens], axis=1) for nll in (3.0, 3.1))
    comparison = lead(PERPLEXITY, [better], [worse])
    assert comparison.mean == pytest.approx(math.exp(3.1) - math.exp(3))
    assert comparison.p < 0.001


def test_pooled_lead_is_the_mean_over_tasks():
    random = np.random.default_rng(1)
    tasks = [
        lead(ACCURACY, [answers(random.random(300) < p)], [answers(random.random(300) < 0.7)])
        for p in (0.72, 0.76, 0.80)
    ]
    pooled = bootstrap.pool(tasks)
    assert pooled.mean == pytest.approx(np.mean([task.mean for task in tasks]))
    assert pooled.examples == 900
    # Independent tasks: the variance of the mean is a third of their mean variance.
    variances = [task.resamples.var() for task in tasks]
    assert pooled.resamples.var() == pytest.approx(np.mean(variances) / 3, rel=0.1)


def put(folder, lines):
    path = folder / 'predictions' / 'test.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def classes(correct):
    return [{'index': n, 'label': 1, 'predicted': int(c)} for n, c in enumerate(correct)]


def test_leads_read_the_predictions_of_every_seed(tmp_path):
    workdir = make_classifier(tmp_path, seeds=2)
    for seed, correct in enumerate(([1, 1, 1, 0], [1, 1, 0, 0])):
        put(workdir / f'seed{seed}/two_stage', reversed(classes(correct)))
        put(workdir / f'seed{seed}/no_teacher', classes([1, 0, 0, 0]))
    put(workdir / 'seed0/stage1_only', classes([1, 0, 0, 0]))  # of one seed only: not compared
    rows = results.read(workdir)[1]['topic']
    leads = bootstrap.leads(workdir, rows)
    assert leads.keys() == {'no_teacher'}
    assert leads['no_teacher'].mean == pytest.approx(37.5)
    assert str(leads['no_teacher']) == str(bootstrap.leads(workdir, rows)['no_teacher'])
    put(workdir / 'seed1/no_teacher', classes([1, 0, 0]))
    with pytest.raises(UserError, match=r'seed1/no_teacher.*must have the same examples'):
        bootstrap.leads(workdir, rows)


def test_missing_predictions_and_other_metrics_have_no_leads(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    assert bootstrap.leads(workdir, results.read(workdir)[1]['text']) == {}
    workdir = make_family(tmp_path / 'mass', 'mass', seeds=1)
    assert bootstrap.leads(workdir, results.read(workdir)[1]['Gigaword']) == {}


def test_report_has_leads_in_findings_and_notes(tmp_path, monkeypatch):
    monkeypatch.setattr('lightpaff_jax.report.plots._svg', lambda *_: '')
    names = ('SST-2', 'Polarity')
    monkeypatch.setattr(
        'helpers.reports.FAMILIES', {'bert': dict.fromkeys(names, ('classify', 'accuracy', 0.9))}
    )
    workdir = make_family(tmp_path, 'bert', examples=200)
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert (
        'Two-stage is ahead of every baseline on 2 of 2 tasks (SST-2, Polarity), and with' in text
    )
    assert 'Its lead pooled over the tasks, the mean in percentage points' in text
    assert 'by a paired bootstrap over 200 test examples and 2 seeds).' in text
    # Of the family's table and of both tasks.
    note = 'by a paired bootstrap of test examples (10,000 resamples) and the variance of seeds'
    assert text.count(note) == 3
