"""Claims about a family's table, the search, and the page of both. Figures are made up inputs."""

import json
import re

import numpy as np
import pytest
from helpers.reports import FAMILIES, SPREAD, cells, make_family, make_run

from lightpaff_jax import report
from lightpaff_jax.report import paper, paper_table, results, sweeps


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Family -> its finished recipe."""
    folder = tmp_path_factory.mktemp('family')
    return {name: make_family(folder / name, name) for name in FAMILIES}


@pytest.fixture(scope='module')
def written(folders):
    """A report of each kind of task: what is printed, and its page."""
    workdir = folders['mass']
    return report.write(workdir), (workdir / 'report.html').read_text('utf-8')


def table_of(workdir, **changed):
    recipe, tasks, _ = results.read(workdir)
    return paper_table.table(recipe | changed, tasks)


def lines_of(workdir, **changed):
    table = table_of(workdir, **changed)
    return {line[0]: dict(zip(table.header, line, strict=True)) for line in table.lines}


def sentences_of(workdir):
    recipe, tasks, _ = results.read(workdir)
    return paper_table.sentences(recipe, tasks)


def test_the_table_has_a_line_a_model_and_a_column_a_task(folders):
    lines = lines_of(folders['bert'])
    assert list(lines) == [
        'teacher', 'paper: BERT-base', 'two-stage', 'paper: LightPAFF',
        'two-stage, unlabelled text too', 'stage 1 only', 'stage 2 only', 'no teacher',
        'no teacher, equal FLOPs',
    ]  # fmt: skip
    two = lines['two-stage']
    assert list(two)[1:] == [
        'SST-2: accuracy, %', 'QQP: F1 / accuracy, %', 'Polarity: accuracy, %', 'parameters',
        'ratio',
    ]  # fmt: skip
    values = 91 * (1 - np.array(SPREAD[:2]) / 100)
    error = np.std(values, ddof=1) / np.sqrt(2)
    assert two['SST-2: accuracy, %'] == f'{np.mean(values):.2f} ± {error:.2f}'
    assert two['parameters'] == '1 M'
    assert two['ratio'] == '5x'
    assert lines['two-stage, unlabelled text too']['QQP: F1 / accuracy, %'] == '-'


def test_the_cells_of_the_paper_have_their_mark_or_are_empty(folders):
    lines = lines_of(folders['bert'])
    assert list(lines['paper: BERT-base'].values())[1:] == [
        '93.5 [S]', '71.2 / 89.2 [S]', '', '110 M [I]', '',
    ]  # fmt: skip
    assert list(lines['paper: LightPAFF'].values())[1:] == [
        '92.9 [S]', '- / 88.6 [S]', '', '25.6 M [I]', '4.27x [I]',
    ]  # fmt: skip
    gpt2 = lines_of(folders['gpt2'])['paper: LightPAFF']
    assert list(gpt2.values())[1:] == ['18.8 [U]', '22.8 [U]', '', '67 M [U]', '5.24x [I]']
    note = table_of(folders['gpt2']).note
    assert 'without a column here: WikiText-103 16.4 [U]' in note
    for mark in ('[A]', '[S]', '[I]', '[U]'):
        assert mark in note


def test_every_figure_of_the_paper_has_a_mark():
    for known in paper.FAMILIES.values():
        networks = [(n.parameters, n.ratio) for n in (known.teacher, known.student)]
        tasks = [(task.teacher, task.student) for task in known.tasks.values()]
        found = [cell for cells in networks + tasks for cell in cells if cell is not None]
        assert found
        assert all(cell.mark in paper.MARKS for cell in found)
        assert all(re.search(r'\d', cell.text) for cell in found)


@pytest.mark.parametrize(
    ('of', 'name', 'known'),
    [('bert', 'sst2', 'SST-2'), ('gpt2', 'Wikitext-2', 'WikiText-2'),
     ('mass', 'WMT16 Ro-En', 'translation'), ('mass', 'Multi30k En-De', ''),
     ('gpt2', 'WikiText-103 (pydocs in its place)', '')],
)  # fmt: skip
def test_a_task_is_the_papers_only_by_its_whole_name(of, name, known):
    found = paper.task(of, name)
    assert (found[0] if found else '') == known


def test_at_the_scale_of_the_paper_nothing_is_said_of_other_sizes(folders):
    assert 'other sizes' in table_of(folders['bert']).note
    assert 'other sizes' not in table_of(folders['bert'], scale='paper').note
    plain = table_of(folders['bert'], scale='')
    assert 'paper' not in plain.note
    assert not [line for line in plain.lines if 'paper' in line[0]]


def test_the_table_says_by_which_of_several_scores_a_task_is_compared(folders):
    assert 'Compared are QQP by F1. ' in table_of(folders['bert']).note
    assert 'Compared are Gigaword by ROUGE-1. ' in table_of(folders['mass']).note
    assert 'Compared' not in table_of(folders['gpt2']).note


def test_the_best_arm_of_equal_updates_stands_out(folders, tmp_path):
    assert table_of(folders['bert']).best == [(2, 1), (2, 2), (2, 3)]  # of two-stage
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    make_run(workdir / 'ptb/seed0/no_teacher', 20.0, 0, metric='perplexity')
    table = table_of(workdir)
    best = [(table.lines[line][0], table.header[column]) for line, column in table.best]
    assert ('no teacher', 'PTB: perplexity per token') in best
    assert ('two-stage', 'PTB: perplexity per token') not in best
    assert sentences_of(workdir)[0] == (
        'Two-stage beats every control with equal updates, by means over seeds, on 2 of 3 tasks '
        '(WikiText-2, pydocs; not on PTB: 25.00 against no teacher 20.00).'
    )


def test_the_sentences_count_tasks_that_keep_enough_of_the_teacher(tmp_path):
    workdir = make_family(tmp_path, 'bert', seeds=1)
    said = sentences_of(workdir)
    assert said[0].endswith('on 3 of 3 tasks (SST-2, QQP, Polarity).')
    assert "at least 95 % of the teacher's score on 3 of 3 tasks (SST-2 97.1 %," in said[1]
    assert said[1].endswith('at 1/5 of its parameters.')
    make_run(
        workdir / 'sst-2/teacher_finetune', 0.99, 0, size=6_000_000, objective='classify',
        metric='accuracy',
    )  # fmt: skip
    said = sentences_of(workdir)
    assert 'on 2 of 3 tasks (SST-2 91.9 %,' in said[1]
    assert said[1].endswith('at 1/5 to 1/6 of its parameters.')


def test_an_equal_score_beats_nothing(tmp_path):
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    make_run(workdir / 'ptb/seed0/no_teacher', 25.0, 0, metric='perplexity')
    assert (
        'on 2 of 3 tasks (WikiText-2, pydocs; not on PTB: 25.00 against no teacher 25.00)'
        in (sentences_of(workdir)[0])
    )


def test_a_task_with_missing_runs_is_not_counted_and_its_column_is_empty(tmp_path):
    workdir = make_family(tmp_path, 'gpt2', seeds=1)
    for path in (workdir / 'ptb').rglob('result.json'):
        path.unlink()
    said = sentences_of(workdir)
    assert 'on 2 of 2 tasks (WikiText-2, pydocs)' in said[0]
    assert said[-1] == 'Warning: not counted, as runs are missing: PTB.'
    assert lines_of(workdir)['two-stage']['PTB'] == '-'


def search_of(entries, arms=()):
    tasks = {'T': {'students': [{'student': arm} for arm in arms]}}
    return {'tasks': tasks, 'sweeps': entries}


def entry(arm, scores, chosen, metric='accuracy', weights=(0.0,), task='T'):
    """A search over rates 0.1, 0.2, ...; scores row by row of weights."""
    rates = [0.1 * (1 + n) for n in range(len(scores) // len(weights))]
    settings = [(rate, weight) for weight in weights for rate in rates]
    candidates = [
        {'run': f'{arm}{n}', 'peak_lr': rate, 'lambda_': weight, 'score': score}
        for n, ((rate, weight), score) in enumerate(zip(settings, scores, strict=True))
    ]
    return {
        'phase': 'student_finetune', 'task': task, 'student': arm, 'metric': metric,
        'candidates': candidates, 'chosen': f'{arm}{chosen}',
    }  # fmt: skip


def test_a_grid_has_a_line_a_weight_and_the_chosen_cell_stands_out():
    recipe = search_of(
        [entry('two_stage', [0.5, 0.6, 0.7, 0.55, None, 0.8], 5, weights=(0.5, 0.9)),
         entry('no_teacher', [0.5, 0.4], 0)]
    )  # fmt: skip
    table = sweeps.table(recipe)
    assert list(table.header) == ['', 'λ', '0.1', '0.2', '0.3', 'score']
    assert table.lines == [
        ['T, two-stage', '0.5', '50.00', '60.00', '70.00', 'accuracy, %'],
        ['T, two-stage', '0.9', '55.00', 'diverged', '80.00', 'accuracy, %'],
        ['T, no teacher', '0', '50.00', '40.00', '', 'accuracy, %'],
    ]
    assert table.best == [(1, 4), (2, 2)]


@pytest.mark.parametrize(
    ('entries', 'said'),
    [
        ([('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.5, 0.6, 0.5], 1)],
         ['All arms of a task were searched over the same learning rates: 0.1, 0.2, 0.3.']),
        ([('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.5, 0.4], 0)],
         ['Warning: the arms were not searched alike in T.']),
        ([('two_stage', [0.5, 0.6, 0.5], 1), ('no_teacher', [0.6, 0.5, 0.5], 0)],
         ['All arms of a task were searched over the same learning rates: 0.1, 0.2, 0.3.',
          '1 of 2 chosen learning rates are the least or the greatest of their grid, where a wider '
          'one may find a better: T, no teacher.']),
        ([('two_stage', [0.5, 0.6, 0.5], 1)],
         ['All arms of a task were searched over the same learning rates: 0.1, 0.2, 0.3.',
          'Warning: no search for no teacher of T.']),
        ([('two_stage', [0.5, 0.6, 0.5], 1, 'perplexity'), ('no_teacher', [9, 8, 9], 1, 'perplexity')],
         ['All arms of a task were searched over the same learning rates: 0.1, 0.2, 0.3.',
          'Warning: not the best of its grid was chosen: T, two-stage.']),
    ],
)  # fmt: skip
def test_a_search_is_doubted_where_it_should_be(entries, said):
    recipe = search_of([entry(*one) for one in entries], ('two_stage', 'no_teacher'))
    assert sweeps.sentences(recipe) == said


def test_a_recipe_without_a_search_says_nothing_of_one():
    assert sweeps.sentences({'tasks': {}}) == []


def test_the_command_prints_the_family_and_each_task(written):
    text, _ = written
    first, *tasks = text.split('## Results: ')
    assert first.startswith('## MASS, small scale\n')
    lines = cells(first.split('\n\n')[1])
    assert lines['two-stage']['Gigaword: ROUGE-1 / ROUGE-2 / ROUGE-L'].startswith('**32.')
    assert len(tasks) == 3


def test_the_page_has_the_search_with_its_curves(written):
    _, page = written
    assert '<h2>How learning rates were searched</h2>' in page
    for title in ('pre-training, stage 1', 'Gigaword, two-stage', 'Cornell dialogue, no teacher'):
        assert page.count(f'<figcaption>{title}</figcaption>') == 1
    assert '0.001, λ 0.5, chosen' in page
    assert page.count('<details>') == 1 + 2  # the search, and examples of two tasks


def test_the_page_of_a_family_refers_to_nothing_outside_and_its_ids_are_unique(written):
    _, page = written
    assert 'http' not in page
    assert not re.search(r'<(script|link|img|iframe|object)|@import|\bsrc=', page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_curves_of_candidates_that_were_removed_are_left_out(tmp_path):
    workdir = make_family(tmp_path, 'bert', seeds=1)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    recipe['sweeps'] = recipe['sweeps'][2:4]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    for path in (workdir / 'search/SST-2/two_stage').rglob('metrics.jsonl'):
        path.unlink()
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert '<figcaption>SST-2, stage 1 only' in page
    assert '<figcaption>SST-2, two-stage' not in page
