"""The table of a family, the sweeps, and their page. All figures are invented inputs."""

import json
import re

import numpy as np
import pytest
from helpers.reports import FAMILIES, SPREAD, cells, make_family, make_run

from lightpaff_jax import report
from lightpaff_jax.report import findings, paper_table, results, sweeps


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Returns the workdir of a finished recipe, by family."""
    folder = tmp_path_factory.mktemp('family')
    return {name: make_family(folder / name, name) for name in FAMILIES}


@pytest.fixture(scope='module')
def written(folders):
    """Returns the printed tables and the page of a recipe with three kinds of task."""
    workdir = folders['mass']
    return report.write(workdir), (workdir / 'report.html').read_text('utf-8')


def table_of(workdir, **changes):
    recipe, tasks, _ = results.read(workdir)
    return paper_table.table(recipe | changes, tasks)


def lines_of(workdir, **changes):
    table = table_of(workdir, **changes)
    return {line[0]: dict(zip(table.header, line, strict=True)) for line in table.lines}


def sentences_of(workdir):
    recipe, tasks, _ = results.read(workdir)
    return findings.family_headlines(recipe, tasks, {task: {} for task in tasks})


def test_table_has_a_line_per_model_and_a_column_per_task(folders):
    lines = lines_of(folders['bert'])
    assert list(lines) == [
        'teacher',
        'paper: BERT-base',
        'two-stage',
        'paper: LightPAFF',
        'two-stage, unlabelled text too',
        'stage 1 only',
        'stage 2 only',
        'no teacher',
        'no teacher, equal FLOPs',
        'no teacher, equal time',
    ]
    two = lines['two-stage']
    assert list(two)[1:] == [
        'SST-2: accuracy, %',
        'QQP: F1 / accuracy, %',
        'Polarity: accuracy, %',
        'parameters',
        'ratio',
    ]
    values = 91 * (1 - np.array(SPREAD[:2]) / 100)
    error = np.std(values, ddof=1) / np.sqrt(2)
    assert two['SST-2: accuracy, %'] == f'{np.mean(values):.2f} ± {error:.2f}'
    assert two['parameters'] == '1 M'
    assert two['ratio'] == '5x'
    assert lines['two-stage, unlabelled text too']['QQP: F1 / accuracy, %'] == '-'


def test_cells_of_the_paper_are_marked_or_empty(folders):
    lines = lines_of(folders['bert'])
    assert list(lines['paper: BERT-base'].values())[1:] == [
        '93.5 [S]',
        '71.2 / 89.2 [S]',
        '',
        '110 M [I]',
        '',
    ]
    assert list(lines['paper: LightPAFF'].values())[1:] == [
        '92.9 [S]',
        '- / 88.6 [S]',
        '',
        '25.6 M [I]',
        '4.27x [I]',
    ]
    gpt2 = lines_of(folders['gpt2'])['paper: LightPAFF']
    assert list(gpt2.values())[1:] == ['18.8 [U]', '22.8 [U]', '', '67 M [U]', '5.24x [I]']
    note = table_of(folders['gpt2']).note
    assert 'without a column here: WikiText-103 16.4 [U]' in note
    for mark in ('[A]', '[S]', '[I]', '[U]'):
        assert mark in note


def test_every_figure_of_the_paper_has_a_mark():
    figures = [f for f in paper_table.FIGURES if f.name != 'models']
    assert {f.family for f in figures} == paper_table.NAMES.keys()
    for figure in [figure for f in figures for figure in (f.teacher, f.two_stage) if figure]:
        text, mark = re.fullmatch(r'(.*\d.*) \[(.)\]', figure).groups()
        assert mark in paper_table.MARKS, text


@pytest.mark.parametrize(
    ('family', 'name', 'expected'),
    [
        ('bert', 'sst2', 'SST-2'),
        ('gpt2', 'Wikitext-2', 'WikiText-2'),
        ('mass', 'WMT16 Ro-En', 'translation'),
        ('mass', 'Multi30k En-De', ''),
        ('gpt2', 'WikiText-103 (pydocs in its place)', ''),
    ],
)
def test_tasks_of_the_paper_match_by_their_whole_name(family, name, expected):
    match = paper_table.find_task(family, name)
    assert (match.name if match else '') == expected


def test_note_about_other_sizes_is_absent_at_paper_scale(folders):
    assert 'other sizes' in table_of(folders['bert']).note
    assert 'other sizes' not in table_of(folders['bert'], scale='paper').note
    table = table_of(folders['bert'], scale='')
    assert 'paper' not in table.note
    assert not [line for line in table.lines if 'paper' in line[0]]


def test_note_names_the_metric_of_tasks_with_several_scores(folders):
    assert 'Students are ranked on QQP by F1. ' in table_of(folders['bert']).note
    assert 'Students are ranked on Gigaword by ROUGE-1. ' in table_of(folders['mass']).note
    assert 'ranked' not in table_of(folders['gpt2']).note


def test_best_student_with_equal_updates_is_bold(folders, tmp_path):
    assert table_of(folders['bert']).best == [(2, 1), (2, 2), (2, 3)]  # the line of two-stage
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    make_run(workdir / 'ptb/seed0/no_teacher', 20.0, 0, metric='perplexity')
    table = table_of(workdir)
    best = [(table.lines[line][0], table.header[column]) for line, column in table.best]
    assert ('no teacher', 'PTB: perplexity per token') in best
    assert ('two-stage', 'PTB: perplexity per token') not in best
    assert sentences_of(workdir)[0] == (
        'Two-stage beats the baseline and both ablations with equal updates, by means over seeds, '
        'on 2 of 3 tasks (WikiText-2, pydocs; not on PTB: 25.00 against no teacher 20.00).'
    )


def test_sentences_count_tasks_close_to_the_teacher(tmp_path):
    workdir = make_family(tmp_path, 'bert', seeds=1)
    sentences = sentences_of(workdir)
    assert sentences[0].endswith('on 3 of 3 tasks (SST-2, QQP, Polarity).')
    assert "at least 95 % of the teacher's score on 3 of 3 tasks (SST-2 97.1 %," in sentences[1]
    assert sentences[1].endswith('with 1/5 of its parameters.')
    make_run(
        workdir / 'sst-2/teacher_finetune',
        0.99,
        0,
        size=6_000_000,
        objective='classify',
        metric='accuracy',
    )
    sentences = sentences_of(workdir)
    assert 'on 2 of 3 tasks (SST-2 91.9 %,' in sentences[1]
    assert sentences[1].endswith('with 1/5 to 1/6 of its parameters.')


def test_equal_score_is_no_win(tmp_path):
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    make_run(workdir / 'ptb/seed0/no_teacher', 25.0, 0, metric='perplexity')
    assert (
        'on 2 of 3 tasks (WikiText-2, pydocs; not on PTB: 25.00 against no teacher 25.00)'
        in (sentences_of(workdir)[0])
    )


def test_task_without_results_is_not_counted_in_the_sentences(tmp_path):
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    for path in (workdir / 'ptb').rglob('result.json'):
        path.unlink()
    sentences = sentences_of(workdir)
    assert 'on 2 of 2 tasks (WikiText-2, pydocs)' in sentences[0]
    assert sentences[-1] == 'Warning: not counted, since runs are missing: PTB.'
    assert lines_of(workdir)['two-stage']['PTB'] == '-'


def recipe_with(entries, students=()):
    tasks = {'T': {'students': [{'student': student} for student in students]}}
    return {'tasks': tasks, 'sweeps': entries}


def make_sweep(student, scores, chosen, metric='accuracy', lambdas=(0.0,), task='T'):
    """Returns a sweep over the learning rates 0.1, 0.2, ...; `scores` has a row per lambda."""
    rates = [0.1 * (1 + n) for n in range(len(scores) // len(lambdas))]
    settings = [(rate, lambda_) for lambda_ in lambdas for rate in rates]
    candidates = [
        {'run': f'{student}{n}', 'peak_lr': rate, 'lambda_': lambda_, 'score': score}
        for n, ((rate, lambda_), score) in enumerate(zip(settings, scores, strict=True))
    ]
    return {
        'phase': 'student_finetune',
        'task': task,
        'student': student,
        'metric': metric,
        'candidates': candidates,
        'chosen': f'{student}{chosen}',
    }


def test_sweep_table_has_a_line_per_lambda_and_a_bold_choice():
    recipe = recipe_with(
        [
            make_sweep('two_stage', [0.5, 0.6, 0.7, 0.55, None, 0.8], 5, lambdas=(0.5, 0.9)),
            make_sweep('no_teacher', [0.5, 0.4], 0),
        ]
    )
    table = sweeps.table(recipe)
    assert list(table.header) == ['', 'λ', '0.1', '0.2', '0.3', 'score']
    assert table.lines == [
        ['T, two-stage', '0.5', '50.00', '60.00', '70.00', 'accuracy, %'],
        ['T, two-stage', '0.9', '55.00', 'diverged', '80.00', 'accuracy, %'],
        ['T, no teacher', '0', '50.00', '40.00', '', 'accuracy, %'],
    ]
    assert table.best == [(1, 4), (2, 2)]


@pytest.mark.parametrize(
    ('entries', 'sentences'),
    [
        (
            [('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.5, 0.6, 0.5], 1)],
            ['All students of a task were swept over the same learning rates: 0.1, 0.2, 0.3.'],
        ),
        (
            [('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.5, 0.4], 0)],
            ['Warning: the students had unequal sweeps in T.'],
        ),
        (
            [('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.6, 0.5, 0.5], 0)],
            [
                'All students of a task were swept over the same learning rates: 0.1, 0.2, 0.3.',
                '1 of 2 chosen learning rates are the lowest or the highest of their sweep, so a wider '
                'sweep may find a better one: T, no teacher.',
            ],
        ),
        (
            [('two_stage', [0.5, 0.6, 0.5], 1)],
            [
                'All students of a task were swept over the same learning rates: 0.1, 0.2, 0.3.',
                'Warning: no sweep for no teacher of T.',
            ],
        ),
        (
            [
                ('two_stage', [0.5, 0.6, 0.5], 1, 'perplexity'),
                ('no_teacher', [9, 8, 9], 1, 'perplexity'),
            ],
            [
                'All students of a task were swept over the same learning rates: 0.1, 0.2, 0.3.',
                'Warning: the chosen run is not the best of its sweep: T, two-stage.',
            ],
        ),
    ],
)
def test_unequal_or_narrow_sweeps_give_warnings(entries, sentences):
    recipe = recipe_with([make_sweep(*entry) for entry in entries], ('two_stage', 'no_teacher'))
    assert sweeps.sentences(recipe) == sentences


def test_recipe_without_sweeps_has_no_sentences_on_them():
    assert sweeps.sentences({'tasks': {}}) == []


def test_report_prints_the_family_table_and_writes_each_task(written, folders):
    text, _ = written
    assert '\n\nMASS, small scale\n\n' in text
    lines = cells(folders['mass'], 'MASS, small scale')
    assert lines['two-stage']['Gigaword: ROUGE-1 / ROUGE-2 / ROUGE-L'].startswith('**32.')
    page = (folders['mass'] / 'report.md').read_text('utf-8')
    assert page.count('## Results: ') == 3


def test_printed_table_fits_100_columns(written):
    text, _ = written
    assert max(map(len, text.splitlines())) <= 100
    assert 'Gigaword:' in text
    assert text.count('\ntwo-stage  ') == 2  # the columns that do not fit are a second table


def test_page_has_the_sweeps_with_their_curves(written):
    _, page = written
    assert '<h2>Hyperparameter sweeps</h2>' in page
    for title in ('pre-training, stage 1', 'Gigaword, two-stage', 'Cornell dialogue, no teacher'):
        assert page.count(f'<figcaption>{title}</figcaption>') == 1
    assert '0.001, λ 0.5, chosen' in page
    assert page.count('<details>') == 1 + 2  # the sweeps, and the examples of two tasks


def test_family_page_is_self_contained_with_unique_ids(written):
    _, page = written
    assert 'http' not in page
    assert not re.search(r'<(script|link|img|iframe|object)|@import|\bsrc=', page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_curves_of_deleted_candidates_are_omitted(tmp_path):
    workdir = make_family(tmp_path, 'bert', seeds=1)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    recipe['sweeps'] = recipe['sweeps'][2:4]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    for path in (workdir / 'sweep/SST-2/two_stage').rglob('metrics.jsonl'):
        path.unlink()
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert '<figcaption>SST-2, stage 1 only' in page
    assert '<figcaption>SST-2, two-stage' not in page
