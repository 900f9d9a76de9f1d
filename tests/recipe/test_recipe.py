"""A recipe that runs: what it chooses, that it may be stopped anywhere, where its teacher comes from."""

import json
import math
import pathlib

import pytest
from helpers import corpus
from helpers.recipes import tables_of

from lightpaff_jax import config, speed, train
from lightpaff_jax.errors import UserError
from lightpaff_jax.recipe import __main__ as recipe
from lightpaff_jax.recipe import plan

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
    """A recipe of a few updates on one device, with a choice of learning rates."""
    c, place = corpus.tiny_config(data_cache), tmp_path_factory.mktemp('shared')
    c.workdir = str(place / 'recipe')
    (place / 'chex.py').write_text(TASK)
    c.recipe.tasks = (str(place / 'chex.py'),)
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


@pytest.fixture(scope='module')
def undisturbed(shared):
    """Its workdir, when it has run through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, '_SECONDS', 0.01)  # how fast the networks are is not looked at
        recipe.run(shared)
    return pathlib.Path(shared.workdir)


@pytest.mark.e2e
def test_a_recipe_that_was_stopped_ends_as_one_that_was_not(
    micro, undisturbed, capsys, monkeypatch
):
    expected = tables_of(undisturbed)
    real, calls = train.train, []
    inside = train._updates

    def stopping(c):
        calls.append(c.workdir)
        if len(calls) in (5, 9):  # before the second learning rate; before what was taken is tested
            raise KeyboardInterrupt
        return real(c)

    def breaking(*arguments):
        if len(calls) == 14:
            calls.append('inside of a run')
            raise KeyboardInterrupt
        return inside(*arguments)

    monkeypatch.setattr(train, 'train', stopping)
    monkeypatch.setattr(train, '_updates', breaking)
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            recipe.run(micro)
    recipe.run(micro)
    workdir = pathlib.Path(micro.workdir)
    assert tables_of(workdir) == expected
    table = capsys.readouterr().out
    assert 'two-stage' in table
    assert len(expected[1]) == 14
    found = expected[0]
    for step in found['search']:
        scored = {one['run']: expected[1][one['run']]['scores'] for one in step['candidates']}
        validation = {run: scores['validation']['perplexity'] for run, scores in scored.items()}
        assert step['chosen'] == min(validation, key=validation.__getitem__)
        assert [run for run, scores in scored.items() if 'test' in scores] == [step['chosen']]
    arms = {arm['arm']: arm['runs'][-1] for arm in found['tasks']['chex']['arms']}
    assert arms['two_stage'] == found['search'][0]['chosen']
    tested = expected[1][arms['two_stage']]['scores']['test']['perplexity']
    assert f'{tested:.2f}' in table
    files = [workdir / 'report.md', workdir / 'speed.json', workdir / 'recipe.json']
    before = [path.read_text() for path in files]
    recipe.run(micro)
    assert [path.read_text() for path in files] == before


def test_a_key_that_the_recipe_sets_itself_is_refused(micro):
    micro.train.updates = 7
    with pytest.raises(UserError, match='a recipe sets it for each of its runs'):
        recipe.run(micro)


def test_a_key_of_a_phase_that_each_task_has_itself_is_refused(micro):
    micro.recipe.student_finetune.updates = 0
    with pytest.raises(UserError, match=r'student_finetune\.\w+ = \d+: is not read where'):
        recipe.run(micro)


def test_runs_before_are_not_a_recipe_s(micro):
    micro.requires = ('configs/bert.py',)
    with pytest.raises(
        UserError, match=r'^config.requires = configs/bert.py: is not read by a recipe$'
    ):
        recipe.run(micro)


def test_a_run_that_diverged_is_not_the_best_of_its_grid(monkeypatch):
    """Of NaN logits the first class is the answer, which may be right more often than a healthy run's."""
    found = {'high': (float('nan'), 0.63), 'low': (0.7, 0.54), 'none': (float('nan'), 0.9)}

    def trained(r):
        ce, accuracy = found[r.task]
        return {'metric': 'accuracy', 'scores': {'validation': {'ce': ce, 'accuracy': accuracy}}}

    monkeypatch.setattr(train, 'train', trained)
    runs = {name: config.default() for name in found}
    for name, c in runs.items():
        c.task = name
    search = []
    step = plan.Step('student_finetune', '', 'two_stage', runs)
    assert recipe._choose(step, 0, 3, search) == 'low'
    scores = {c['run']: c['score'] for c in search[0]['candidates']}
    assert scores['low'] == 0.54
    assert math.isnan(scores['high'])


def test_rates_that_differ_a_little_are_two_runs(micro):
    micro.recipe.student_finetune.sweep_peak_lr = (0.001, 0.0010000001)
    runs, _ = plan.plan(micro)
    names = [name for name in runs if name.startswith('seed0/two_stage/')]
    assert names == ['seed0/two_stage/lr0.001', 'seed0/two_stage/lr0.0010000001']


@pytest.mark.e2e
def test_speed_is_measured_again_where_it_is_of_other_networks(undisturbed, shared, monkeypatch):
    path = undisturbed / 'speed.json'
    before = path.read_text()
    known = json.loads(before)
    assert known['runs'].keys() == {'teacher', 'student'}
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    known['student']['parameters'] = 777
    path.write_text(json.dumps(known))
    recipe.run(config.copy(shared))
    assert json.loads(path.read_text())['student']['parameters'] != 777
    again = path.read_text()
    recipe.run(config.copy(shared))
    assert path.read_text() == again, 'of the same ones it is kept'


@pytest.mark.e2e
def test_a_finished_teacher_can_be_imported(micro, undisturbed):
    micro.teacher.path, micro.teacher.layers = f'{undisturbed}/teacher_pretrain', 0
    micro.data.packages = ('etils',)  # of which another vocabulary would be trained
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
    found = json.loads((workdir / 'recipe.json').read_text())['tasks']['chex']
    assert found['teacher'] == ['teacher_finetune']
    stage1 = [folder / 'seed0/stage1/result.json' for folder in (workdir, undisturbed)]
    assert len({json.loads(path.read_text())['teacher_hash'] for path in stage1}) == 1
