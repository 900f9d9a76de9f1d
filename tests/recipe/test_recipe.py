"""Runs of a small recipe: sweeps, interruption at any point, and an imported teacher."""

import json
import pathlib

import pytest
from helpers import corpus
from helpers.recipes import outputs_of

from lightpaff_jax import config, speed, train
from lightpaff_jax.errors import Diverged, UserError
from lightpaff_jax.recipe import __main__ as recipe, plan

TASK = """
from lightpaff_jax import config


def get_config(preset=''):
    c = config.default()
    c.task, c.data.packages, c.data.length = 'chex', ('chex',), 16
    c.eval.batch_size, c.eval.batches = 8, 1
    return c
"""


@pytest.fixture(scope='module')
def shared(data_cache, tmp_path_factory):
    """A recipe of a few updates on one device, with a sweep of the learning rate."""
    c, folder = corpus.tiny_config(data_cache), tmp_path_factory.mktemp('shared')
    c.workdir = str(folder / 'recipe')
    (folder / 'chex.py').write_text(TASK)
    c.recipe.tasks = (str(folder / 'chex.py'),)
    c.data.packages, c.data.batch_size, c.train.grad_accum_steps = ('ml_collections',), 8, 1
    c.mesh.data, c.eval.batches = 1, 1
    c.train.updates = 100
    small = {'layers': 1, 'heads': 2, 'ffn': 16, 'positions': 32, 'vocab_size': 512}
    c.student.update({'width': 8, **small})
    c.teacher.update({'width': 32, **small})
    for name in config.PHASES:
        c.recipe[name].update({'updates': 3, 'warmup': 1, 'batch_size': 4})
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 1e-2)
    return c


@pytest.fixture
def micro(shared, tmp_path):
    c = config.copy(shared)
    c.workdir = str(tmp_path / 'recipe')
    return c


def train_only(monkeypatch, *students):
    monkeypatch.setattr(plan, 'STUDENTS', {name: plan.STUDENTS[name] for name in students})


@pytest.fixture(scope='module')
def undisturbed(shared):
    """Workdir of the recipe `shared`, with two students, after an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, '_SECONDS', 0.01)  # no test reads the measured times
        train_only(patch, 'two_stage', 'stage1_only')
        recipe.run(shared)
    return pathlib.Path(shared.workdir)


@pytest.mark.e2e
def test_every_sweep_tests_its_best_run_only(undisturbed):
    record, results = outputs_of(undisturbed)
    assert len(results) == 7
    for sweep in record['sweeps']:
        runs = [candidate['run'] for candidate in sweep['candidates']]
        scores = {run: results[run]['scores']['validation']['perplexity'] for run in runs}
        assert sweep['chosen'] == min(scores, key=scores.__getitem__)
        assert [run for run in runs if 'test' in results[run]['scores']] == [sweep['chosen']]
    students = {s['student']: s['runs'][-1] for s in record['tasks']['chex']['students']}
    assert students['two_stage'] == record['sweeps'][0]['chosen']


@pytest.mark.e2e
def test_interrupted_recipe_equals_an_uninterrupted_one(micro, undisturbed, capsys, monkeypatch):
    train_only(monkeypatch, 'two_stage', 'stage1_only')
    train_run, updates, calls = train.train, train._run_updates, []

    def interrupt_between_runs(c):
        calls.append(c.workdir)
        if len(calls) in (5, 11):  # before the second learning rate; before the best run is tested
            raise KeyboardInterrupt
        return train_run(c)

    def interrupt_inside_a_run(*arguments):
        if len(calls) == 18:  # the first run after the sweep
            calls.append('inside a run')
            raise KeyboardInterrupt
        return updates(*arguments)

    monkeypatch.setattr(train, 'train', interrupt_between_runs)
    monkeypatch.setattr(train, '_run_updates', interrupt_inside_a_run)
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            recipe.run(micro)
    recipe.run(micro)
    workdir = pathlib.Path(micro.workdir)
    record, results = outputs_of(workdir)
    full_record, full_results = outputs_of(undisturbed)
    assert len(results) == 7
    assert results == {run: full_results[run] for run in results}
    assert record['sweeps'] == full_record['sweeps'][:2]
    students = full_record['tasks']['chex'].pop('students')
    assert record['tasks']['chex'].pop('students') == students[:2]
    assert record | {'sweeps': []} == full_record | {'sweeps': []}
    table = capsys.readouterr().out
    test = results[students[0]['runs'][-1]]['scores']['test']['perplexity']
    assert 'two-stage' in table
    assert f'{test:.2f}' in table
    files = [workdir / 'report.md', workdir / 'speed.json', workdir / 'recipe.json']
    before = [path.read_text() for path in files]
    recipe.run(micro)
    assert [path.read_text() for path in files] == before


def test_keys_that_the_recipe_sets_are_rejected(micro):
    micro.train.updates = 7
    with pytest.raises(UserError, match='is set by the recipe for each of its runs'):
        recipe.run(micro)


def test_settings_of_a_phase_without_updates_are_rejected(micro):
    micro.recipe.student_finetune.updates = 0
    with pytest.raises(UserError, match=r'student_finetune\.\w+ = \d+: is not read if'):
        recipe.run(micro)


def test_validations_of_a_recipe_exclude_those_of_train(micro):
    micro.recipe.validations, micro.train.eval_every = 2, 1
    rule = r'^config.train.eval_every = 1: is not read with config.recipe.validations'
    with pytest.raises(UserError, match=rule):
        recipe.run(micro)


def test_head_of_a_teacher_to_train_requires_a_path(micro):
    micro.recipe.teacher_head = True
    with pytest.raises(UserError, match=r'teacher_head = True: requires config.teacher.path'):
        recipe.run(micro)


def test_recipe_rejects_the_key_requires(micro):
    micro.requires = ('configs/bert.py',)
    with pytest.raises(
        UserError, match=r'^config.requires = configs/bert.py: is not read by a recipe$'
    ):
        recipe.run(micro)


def run_sweep(monkeypatch, scores, share=1.0, tested=None):
    """Runs a sweep whose runs have these accuracies; those with None diverge."""

    def train_run(r):
        if tested is not None and r.eval.test:
            tested.append(r.task)
        if scores[r.task] is None:
            raise Diverged(f'{r.task} has diverged')
        return {'metric': 'accuracy', 'scores': {'validation': {'accuracy': scores[r.task]}}}

    monkeypatch.setattr(train, 'train', train_run)
    runs = {name: config.default() for name in scores}
    for name, c in runs.items():
        c.task = name
    records = []
    sweep = plan.Sweep('student_finetune', '', 'two_stage', runs, share)
    return recipe._run_sweep(sweep, 0, len(runs), records), records


def test_diverged_run_is_never_the_best_of_a_sweep(monkeypatch):
    scores = {'high': None, 'low': 0.54, 'mid': 0.6, 'none': None}
    chosen, records = run_sweep(monkeypatch, scores)
    assert chosen == 'mid'
    recorded = {candidate['run']: candidate['score'] for candidate in records[0]['candidates']}
    assert recorded == scores


@pytest.mark.parametrize(('share', 'expected'), [(1.0, ['high']), (0.5, [])])
def test_only_the_result_of_a_sweep_is_tested(monkeypatch, share, expected):
    tested = []
    chosen, records = run_sweep(monkeypatch, {'low': 0.5, 'high': 0.6}, share, tested)
    assert (chosen, tested) == ('high', expected)
    assert records[0].get('share', 1.0) == share


@pytest.mark.parametrize('scores', [{'one': None}, {'one': None, 'two': None}])
def test_sweep_without_a_finite_run_diverges(monkeypatch, scores):
    with pytest.raises(Diverged, match=r'^one has diverged$'):
        run_sweep(monkeypatch, scores)


def test_learning_rates_that_differ_in_digit_8_are_two_runs(micro):
    micro.recipe.student_finetune.sweep_peak_lr = (0.001, 0.0010000001)
    runs, _ = plan.expand(micro)
    names = [name for name in runs if name.startswith('seed0/two_stage/')]
    assert names == ['seed0/two_stage/lr0.001', 'seed0/two_stage/lr0.0010000001']


@pytest.mark.e2e
def test_speed_is_measured_again_for_other_networks(undisturbed, shared, monkeypatch):
    path, (runs, _) = undisturbed / 'speed.json', plan.expand(shared)
    record = json.loads((undisturbed / 'recipe.json').read_text())
    stored = json.loads(path.read_text())
    assert stored['runs'].keys() == {'teacher', 'student'}
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    stored['student']['parameters'] = 777
    path.write_text(json.dumps(stored))
    recipe._measure_speed(shared, undisturbed, record, runs)
    assert json.loads(path.read_text())['student']['parameters'] != 777
    current = path.read_text()
    recipe._measure_speed(shared, undisturbed, record, runs)
    assert path.read_text() == current, 'a file about the same networks is kept'


@pytest.mark.e2e
def test_restart_keeps_the_measured_ratio_of_step_times(micro, monkeypatch, capsys):
    train_only(monkeypatch, 'two_stage', 'no_teacher', 'no_teacher_equal_time')
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    micro.recipe.equal_time, micro.recipe.validations = ('chex',), 2
    micro.recipe.sweep_share = 0.4
    recipe.run(micro)
    workdir = pathlib.Path(micro.workdir)
    record, results = outputs_of(workdir)
    ratios = record['step_time_ratios']
    assert ratios.keys() == {'', 'chex'}
    for run, ratio in (('pretrain_equal_time', ''), ('no_teacher_equal_time', 'chex')):
        assert results[f'seed0/{run}']['updates'] == round(3 * ratios[ratio])
        assert results[f'seed0/{run}']['keep_best'] == 'perplexity'
    assert [run for run in results if run.startswith('sweep/')]
    for name, result in results.items():
        assert ('test' in result['scores']) != name.startswith('sweep/')
    assert 'no teacher, equal time' in capsys.readouterr().out
    monkeypatch.setattr(recipe, '_measure_ratio', None)
    recipe.run(micro)
    assert outputs_of(workdir) == (record, results)


@pytest.mark.slow
def test_imported_teacher_replaces_pretraining(micro, undisturbed, monkeypatch):
    train_only(monkeypatch, 'two_stage', 'no_teacher')
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    micro.teacher.path, micro.teacher.layers = f'{undisturbed}/teacher_pretrain', 0
    micro.data.packages = ('etils',)  # a vocabulary trained on it would differ
    micro.recipe.student_finetune.sweep_peak_lr = ()
    recipe.run(micro)
    workdir = pathlib.Path(micro.workdir)
    results = [
        json.loads(path.read_text())
        for folder in (workdir, undisturbed)
        for path in folder.rglob('result.json')
    ]
    assert len({result['tokenizer_hash'] for result in results}) == 1
    assert not (workdir / 'teacher_pretrain').exists()
    task = json.loads((workdir / 'recipe.json').read_text())['tasks']['chex']
    assert task['teacher'] == ['teacher_finetune']
    stage1 = [folder / 'seed0/stage1/result.json' for folder in (workdir, undisturbed)]
    assert len({json.loads(path.read_text())['teacher_hash'] for path in stage1}) == 1
