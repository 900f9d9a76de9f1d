"""Tasks that are ranked on different metrics. All figures are invented inputs."""

import json
import math

import pytest
from helpers.reports import cells, make_family, make_run, make_workdir

from lightpaff_jax import config, report
from lightpaff_jax.report import findings, results, tables


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    """Returns the rows of every task, by family."""
    folder = tmp_path_factory.mktemp('metrics')
    return {
        family: results.read(make_family(folder / family, family))[1]
        for family in ('bert', 'gpt2', 'mass')
    }


def test_report_has_every_metric_of_the_configuration():
    names = {name for objective in config.OBJECTIVES.values() for name in objective.metrics}
    assert names == results.METRICS.keys()
    assert {o.outputs for o in config.OBJECTIVES.values()} == results.SCORES.keys()


@pytest.mark.parametrize(
    ('family', 'task', 'columns'),
    [
        ('bert', 'SST-2', ['accuracy, %', 'binomial error, %']),
        ('bert', 'QQP', ['F1, %', 'accuracy, %', 'binomial error, %']),
        ('mass', 'Multi30k En-De', ['BLEU', 'perplexity per token', 'perplexity per word']),
        ('mass', 'Gigaword', ['ROUGE-1', 'ROUGE-2', 'ROUGE-L', 'perplexity per token']),
        ('mass', 'Cornell dialogue', ['perplexity per token', 'perplexity per word']),
    ],
)
def test_metric_is_printed_with_its_companions(rows, family, task, columns):
    header = list(tables.main_table(rows[family][task], task).header)
    assert header.pop(2) == 'share of teacher score, %'
    assert header[1 : 1 + len(columns)] == columns


def test_table_note_has_the_bleu_signature(rows):
    assert 'BLEU: nrefs:1|case:mixed. ' in tables.main_table(rows['mass']['Multi30k En-De']).note
    assert 'BLEU:' not in tables.main_table(rows['mass']['Gigaword']).note


def test_agreement_is_shown_for_runs_with_a_teacher(rows):
    table = tables.main_table(rows['bert']['SST-2'])
    at = table.header.index('agrees with teacher, %')
    shown = {line[0]: line[at] for line in table.lines}
    with_teacher = {label for label, cell in shown.items() if cell != '-'}
    assert with_teacher == {'two-stage', 'two-stage, unlabelled text too', 'stage 2 only'}


@pytest.mark.parametrize(
    ('family', 'task', 'share'),
    [
        ('bert', 'QQP', lambda two, teacher: two['f1'] / teacher['f1']),
        ('mass', 'Multi30k En-De', lambda two, teacher: two['bleu'] / teacher['bleu']),
        (
            'gpt2',
            'PTB',
            lambda two, teacher: math.log(teacher['perplexity']) / math.log(two['perplexity']),
        ),
    ],
)
def test_teacher_share_is_a_ratio_of_scores_or_likelihoods(rows, family, task, share):
    two, teacher = (rows[family][task][key] for key in ('two_stage', 'teacher'))
    shares = results.teacher_share(two, teacher)
    assert shares is not None
    tests = [row.results[0][-1]['scores']['test'] for row in (two, teacher)]
    assert shares[0] == pytest.approx(100 * share(*tests), rel=1e-12)  # float64


@pytest.mark.parametrize(
    ('family', 'task', 'parts'),
    [
        (
            'bert',
            'QQP',
            ["The teacher's F1 is", 'two-stage student 69.89 %', 'percentage points is'],
        ),
        (
            'mass',
            'Multi30k En-De',
            ["The teacher's BLEU is", 'two-stage student 29.95', ' points is'],
        ),
        ('mass', 'Gigaword', ["The teacher's ROUGE-1 is", 'higher than that of the baseline']),
    ],
)
def test_sentences_name_the_metric(rows, family, task, parts):
    text = '\n'.join(findings.headlines(rows[family][task], {}))
    for part in parts:
        assert part in text
    assert 'binomial' not in text
    assert 'errors' not in text


def test_run_without_test_scores_is_omitted_and_named(tmp_path):
    workdir = make_workdir(tmp_path, seeds=2)
    path = workdir / 'seed1/two_stage/result.json'
    result = json.loads(path.read_text())
    del result['scores']['test']
    path.write_text(json.dumps(result))
    report.write(workdir)
    assert 'seed1/two_stage (no test scores)' in (workdir / 'report.md').read_text('utf-8')


def test_pretraining_run_needs_no_test_scores(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    before = cells(workdir)
    make_run(workdir / 'seed0/stage1', 35.0, 0, cost=1.4, scores={'validation': {}})
    assert cells(workdir) == before


def test_imported_teacher_has_no_pretraining_curve(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    path = workdir / 'recipe.json'
    recipe = json.loads(path.read_text())
    recipe['tasks']['text']['teacher'] = ['teacher_finetune']
    path.write_text(json.dumps(recipe))
    report.write(workdir)
    *_, before, after = (workdir / 'report.html').read_text('utf-8').split('<figcaption>')
    assert '>teacher<' not in before
    assert '>teacher<' in after
