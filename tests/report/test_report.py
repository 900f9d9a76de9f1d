"""The files of a report. All figures are invented inputs."""

import json
import math
import re

import numpy as np
import pytest
from helpers.reports import (
    ACCURACY,
    EXAMPLES,
    SPREAD,
    STUDENTS,
    cells,
    make_classifier,
    make_recipe,
    make_run,
    make_workdir,
)

from lightpaff_jax import report
from lightpaff_jax.report import plots, results

TWO = {'topic': ('classify', ACCURACY), 'pairs': ('classify', ACCURACY | {'two_stage': 0.70})}


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, '_svg', lambda *_: '')  # drawing takes most of the time of a report


without_plots = pytest.mark.usefixtures('no_plots')  # for tests that read report.md only


def test_mean_and_standard_error_equal_those_of_numpy():
    values = [31.0, 31.3, 30.85, 29.9]
    mean, error = results.mean_error(values)
    assert error is not None
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-14)  # float64 sums of 4 numbers
    np.testing.assert_allclose(error, np.std(values, ddof=1) / np.sqrt(4), rtol=1e-14)
    assert results.mean_error([31.0]) == (31.0, None)


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ([12.0], '12.00'),
        ([12.0, 12.2], '12.10 ± 0.10'),
        ([0.3, 0.3004], '0.3002 ± 0.0002'),
        ([3.0, 3.0], '3.00 ± 0.00'),
    ],
)
def test_nonzero_error_is_printed_with_a_nonzero_digit(values, text):
    assert results.format_mean(values, 2) == text


@without_plots
def test_costs_are_totals_over_runs_and_scores_seed_means(tmp_path):
    rows = cells(make_workdir(tmp_path))
    keys = [key for key in results.ROWS if key != 'two_stage_unlabelled']
    assert list(rows) == [results.ROWS[key][0] for key in keys]
    two = rows['two-stage']
    values = 31.0 + np.array(SPREAD)
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert two['perplexity per token'] == f'{np.mean(values):.2f} ± {error:.2f}'
    shares = 100 * np.log(28) / np.log(values)
    error = np.std(shares, ddof=1) / np.sqrt(3)
    assert two['share of teacher score, %'] == f'{np.mean(shares):.1f} ± {error:.1f}'
    assert two['updates'] == '800'
    assert two['train seconds'] == '200'
    assert float(two['train FLOPs']) == pytest.approx(
        2 * 400 * 1024 * 6e6 * 1.4, rel=5e-3
    )  # shown: 3 digits
    assert rows['teacher']['perplexity per token'] == '28.00'


def test_throughput_is_all_tokens_divided_by_all_time():
    runs = [
        {'tokens': 100, 'tokens_per_second': 10.0},
        {'tokens': 300, 'tokens_per_second': 100.0},
    ]
    assert results.throughput(runs) == pytest.approx(400 / (10 + 3))


@without_plots
def test_table_of_a_classifier_has_its_own_columns(tmp_path):
    rows = cells(make_classifier(tmp_path))
    two = rows['two-stage']
    assert list(two)[1:6] == [
        'accuracy, %',
        'share of teacher score, %',
        'binomial error, %',
        'cross-entropy',
        'test examples',
    ]
    values = 93.0 + np.array(SPREAD)
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert two['accuracy, %'] == f'{np.mean(values):.2f} ± {error:.2f}'
    share = f'{100 * np.mean(values) / 95:.1f} ± {100 * error / 95:.1f}'
    assert two['share of teacher score, %'] == share
    assert two['test examples'] == str(EXAMPLES)
    assert rows['teacher']['binomial error, %'] == f'{100 * math.sqrt(0.95 * 0.05 / EXAMPLES):.2f}'
    text = (tmp_path / 'report.md').read_text('utf-8')
    assert 'standard error of accuracy p' in text
    assert 'perplexity' not in text


@without_plots
@pytest.mark.parametrize(
    ('objective', 'labels', 'note'),
    [
        ('mlm', ('two-stage', 'stage 1 only'), "Stage 1 learns from the teacher's logits."),
        (
            'match',
            ('two-stage, matching', 'stage 1 only, matching'),
            'Stage 1 matches activations of the teacher; students without it',
        ),
    ],
)
def test_table_tells_which_kind_of_stage_1_it_was(tmp_path, objective, labels, note):
    workdir = make_classifier(tmp_path, seeds=1)
    scores = {'validation': {'matching': 0.5, 'rows': 10}}
    if objective == 'match':
        keys = {'objective': 'match', 'metric': 'matching', 'scores': scores}
        make_run(workdir / 'seed0/stage1', 2, 0, **keys, cost=1.4)
    rows = cells(workdir)
    assert {*labels} <= rows.keys()
    assert {'stage 2 only', 'no teacher'} <= rows.keys()
    text = (workdir / 'report.md').read_text('utf-8')
    assert note in text
    assert f'({labels[1]})' in text  # the rival in the findings
    assert 'the runs differ' not in text


@without_plots
def test_title_of_a_recipe_replaces_that_of_its_first_table(tmp_path):
    workdir = make_classifier(tmp_path, seeds=1)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    (workdir / 'recipe.json').write_text(json.dumps(recipe | {'title': 'The built-in teacher'}))
    assert '\n\nThe built-in teacher\n\n' in report.write(workdir)
    assert cells(workdir, 'The built-in teacher')['two-stage']['seeds'] == '1'


@without_plots
@pytest.mark.parametrize('objective', ['mlm', 'mass'])
def test_masked_objective_has_no_perplexity_per_word(tmp_path, objective):
    figures = {student: runs[2] for student, runs in STUDENTS.items()} | {'teacher': 28.0}
    rows = cells(make_recipe(tmp_path, {'text': (objective, figures)}))
    assert 'perplexity per predicted token' in rows['teacher']
    assert 'perplexity per word' not in rows['teacher']


@without_plots
def test_sequence_model_counts_the_words_of_its_targets(tmp_path):
    figures = {student: runs[2] for student, runs in STUDENTS.items()} | {'teacher': 28.0}
    rows = cells(make_recipe(tmp_path, {'summary': ('seq2seq', figures)}))
    assert rows['teacher']['perplexity per word'] == f'{28**1.4:.2f}'
    assert 'words are those of the targets' in (tmp_path / 'report.md').read_text('utf-8')


def test_each_of_two_tasks_has_a_table_findings_and_plots(tmp_path):
    workdir = make_recipe(tmp_path, TWO)
    for task, score in (('topic', '93.05'), ('pairs', '70.05')):
        rows = cells(workdir, f'Results: {task}')
        assert rows['two-stage']['accuracy, %'].startswith(score)
    text = (tmp_path / 'report.md').read_text('utf-8')
    first, second = text.split('## Results: ')[1:]
    assert first.startswith('topic\n')
    assert 'Two-stage is the best of the 4 students' in first
    assert second.startswith('pairs\n')
    assert 'Two-stage is not the best of the 4 students' in second
    assert text.count('classifies a text of 128 tokens 5.0x faster') == 1
    assert 'networks are those of the task topic' in text
    page = (tmp_path / 'report.html').read_text('utf-8')
    assert page.count('<svg') == 1 + 3 + 3 + 1
    assert page.count('<figcaption>Pre-training:') == 1
    assert (
        page.index('Results: topic')
        < page.index('Results: pairs')
        < page.index('<figcaption>Pre-tr')
    )


def test_shared_pretraining_is_drawn_once(tmp_path):
    report.write(make_recipe(tmp_path, TWO, seeds=1))
    page = (tmp_path / 'report.html').read_text('utf-8')
    *_, shared = re.findall(r'<figure>.*?</figure>', page, flags=re.S)
    texts = re.findall(r'<text[^>]*>([^<]*)</text>', shared)
    # The legend has five runs: the teacher's, stage 1, the baseline's, and the longer baselines'.
    assert [t for t in texts if 'teacher' in t or 'stage' in t] == [
        'teacher',
        'two-stage and stage 1 only',
        'stage 2 only and no teacher',
        'no teacher, equal FLOPs',
        'no teacher, equal time',
    ]
    assert 'cross-entropy, nats per token' in texts


@without_plots
def test_task_without_results_leaves_other_tasks_unchanged(tmp_path):
    workdir = make_recipe(tmp_path, TWO, seeds=1)
    for path in (workdir / 'pairs').rglob('result.json'):
        path.unlink()
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert '## Results: topic' in text
    assert '## Results: pairs' not in text
    assert text.count('pairs/seed0/two_stage') == 1
    assert 'Warning: not counted, since runs are missing: pairs.' in text


@without_plots
def test_missing_shared_run_is_named_once(tmp_path):
    workdir = make_recipe(tmp_path, TWO, seeds=1)
    (workdir / 'seed0/stage1/result.json').unlink()
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert text.count('seed0/stage1') == 1


@without_plots
def test_protocols_may_differ_between_but_not_within_tasks(tmp_path):
    figures = {student: runs[2] for student, runs in STUDENTS.items()} | {'teacher': 28.0}
    workdir = make_recipe(tmp_path, {'text': ('mlm', figures), **TWO}, seeds=1)
    report.write(workdir)
    assert 'the runs differ' not in (workdir / 'report.md').read_text('utf-8')
    make_run(workdir / 'pairs/seed0/two_stage', 0.7, 0, objective='classify', protocol='other')
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    expected = 'Warning: the runs differ in protocol of pairs: classify of 128 tokens; other.'
    assert expected in text


@without_plots
def test_test_splits_of_two_sizes_give_a_warning(tmp_path):
    workdir = make_classifier(tmp_path, seeds=1)
    path = workdir / 'seed0/two_stage/result.json'
    path.write_text(path.read_text().replace('"examples": 500', '"examples": 400'))
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'Warning: the runs differ in test split: 400 examples; 500 examples.' in text


@without_plots
def test_missing_runs_are_named_and_the_rest_is_printed(tmp_path):
    workdir = make_workdir(tmp_path)
    for run in ('seed1/two_stage', 'seed0/plain_long', 'seed1/plain_long', 'seed2/plain_long'):
        (workdir / run / 'result.json').unlink()
    (workdir / 'speed.json').unlink()
    rows = cells(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    for run in ('seed1/two_stage', 'seed0/plain_long', 'seed2/plain_long'):
        assert run in text
    assert 'there is no speed.json' in text
    assert 'no teacher, equal FLOPs' not in rows
    assert rows['two-stage']['seeds'] == '2'


@without_plots
def test_unstable_timings_give_a_warning(tmp_path):
    workdir = make_workdir(tmp_path)
    path = workdir / 'speed.json'
    report.write(workdir)
    assert 'varied twofold' not in (workdir / 'report.md').read_text('utf-8')
    path.write_text(path.read_text().replace('"throughput": 5.0', '"throughput": 1.65'))
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'Warning: the measured throughput varied twofold' in text


@pytest.mark.parametrize('students', [(), ('stage1_only',)])
def test_recipe_with_few_results_gives_a_page(tmp_path, students):
    workdir = make_workdir(tmp_path, seeds=1)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    task = recipe['tasks']['text']
    task['students'] = [s for s in task['students'] if s['student'] in students]
    task['teacher'] = task['teacher'][: 1 + len(students)]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    report.write(workdir)
    assert '<svg' in (workdir / 'report.html').read_text('utf-8')


@pytest.mark.parametrize('accuracy', [0.0, 0.5, 1.0])
def test_rows_with_equal_scores_give_a_page(tmp_path, accuracy):
    workdir = make_classifier(tmp_path, 1, **dict.fromkeys(ACCURACY, accuracy))
    rows = cells(workdir)  # matplotlib would warn if labels did not fit
    assert rows['teacher']['share of teacher score, %'] == ('100.0' if accuracy else '-')
    assert '<svg' in (workdir / 'report.html').read_text('utf-8')


@without_plots
def test_diverged_run_is_omitted_and_named(tmp_path):
    workdir = make_workdir(tmp_path)
    path = workdir / 'seed2/no_teacher/result.json'
    result = json.loads(path.read_text())
    result['scores']['test']['perplexity'] = None
    path.write_text(json.dumps(result))
    report.write(workdir)
    assert 'seed2/no_teacher (test perplexity nan)' in (workdir / 'report.md').read_text('utf-8')


@without_plots
def test_diverged_classifier_with_finite_accuracy_is_omitted(tmp_path):
    workdir = make_classifier(tmp_path)
    path = workdir / 'seed2/no_teacher/result.json'
    result = json.loads(path.read_text())
    result['scores']['test']['ce'] = None
    path.write_text(json.dumps(result))
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'seed2/no_teacher (test cross-entropy nan)' in text


@without_plots
def test_runs_with_different_tokenizers_give_a_warning(tmp_path):
    workdir = make_workdir(tmp_path)
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, tokenizer_hash='beef')
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'Warning: the runs differ in tokenizer: beef; f00d.' in text


@without_plots
def test_students_of_a_reduced_vocabulary_give_no_warning(tmp_path):
    workdir = make_workdir(tmp_path)
    for path in workdir.rglob('result.json'):
        if not path.parent.name.startswith('teacher'):
            result = json.loads(path.read_text())
            path.write_text(json.dumps(result | {'tokenizer_hash': 'beef'}))
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'the runs differ in tokenizer' not in text
    assert 'tokenizer of the teacher' in text


@pytest.mark.parametrize(('tasks', 'plots'), [(1, 4), (2, 8)])
def test_page_is_self_contained_with_unique_ids(tmp_path, tasks, plots):
    same = dict.fromkeys(
        ('topic', 'pairs'), ('classify', ACCURACY)
    )  # equal plots must not share ids
    workdir = make_workdir(tmp_path) if tasks == 1 else make_recipe(tmp_path, same)
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert 'http' not in page
    assert not re.search(r'<(script|link|img|iframe|object)|@import|\bsrc=', page)
    assert page.count('<svg') == page.count('<figure>') == plots
    targets = re.findall(r'href="([^"]*)"', page) + re.findall(r'url\(([^)]*)\)', page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert targets
    assert {target.removeprefix('#') for target in targets} <= set(ids)
    assert len(ids) == len(set(ids))
    assert 'name="viewport"' in page
    assert 'prefers-color-scheme: dark' in page


def test_plots_show_every_seed_and_every_run(tmp_path):
    workdir = make_workdir(tmp_path)
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    students, _, pretrain, finetune = re.findall(r'<figure>.*?</figure>', page, flags=re.S)
    for key, (label, colour) in results.ROWS.items():
        if key == 'two_stage_unlabelled':
            continue
        assert f'>{label}</text>' in re.sub(r'>\s+', '>', students)
        assert colour in finetune
    assert students.count(f'fill: {results.ROWS["two_stage"][1]}; fill-opacity') >= 3
    assert 'two-stage and stage 1 only' in pretrain


def test_name_with_markup_is_escaped(tmp_path):
    markup = '<script>alert("|")</script>'
    workdir = make_recipe(tmp_path, TWO, 1, markup)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    recipe['tasks'][f'{markup}\\1'] = recipe['tasks'].pop('pairs')
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    report.write(workdir)
    for name in ('report.html', 'report.md'):
        text = (workdir / name).read_text('utf-8')
        assert '<script>' not in text
        assert text.count('&lt;script&gt;') >= 2


def test_name_with_dollar_signs_is_no_formula(tmp_path):
    first, second = TWO.values()
    workdir = make_recipe(tmp_path, {'a $x^$': first, 'other': second}, 1)
    report.write(workdir)
    assert 'a $x^$' in (workdir / 'report.html').read_text('utf-8')


def test_unwritable_page_is_one_line_and_exit_code_2(tmp_path, capsys):
    workdir = make_workdir(tmp_path)
    (workdir / 'report.md').mkdir()
    assert report.main([str(workdir)]) == 2
    assert capsys.readouterr().err == f'error: {workdir}/report.md: Is a directory\n'


def test_equal_inputs_give_equal_pages(tmp_path):
    workdir = make_workdir(tmp_path)
    report.write(workdir)
    first = (workdir / 'report.html').read_text('utf-8')
    report.write(workdir)
    assert (workdir / 'report.html').read_text('utf-8') == first
