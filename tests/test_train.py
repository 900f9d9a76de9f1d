"""Training runs on 8 fake devices: long, extended, completed and initialised ones."""

import json
import shutil

import pytest
from helpers import corpus

from lightpaff_jax import checkpoint, config, evaluate, pretrained, workdir
from lightpaff_jax.errors import UserError
from lightpaff_jax.train import train


def configured(cache, workdir, **train_keys):
    c = corpus.tiny_config(cache)
    c.workdir = str(workdir)
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'positions': 32})
    c.data.batch_size, c.train.grad_accum_steps = 8, 1
    c.eval.batches = 1
    c.optim.warmup = 2
    c.train.update({'updates': 4, 'save_every': 2, 'log_every': 1, **train_keys})
    return c


@pytest.fixture(scope='module')
def completed_run(data_cache, tmp_path_factory):
    """The workdir of a run of 4 updates and its result; tests that change it use a copy."""
    folder = tmp_path_factory.mktemp('completed')
    return folder, train(configured(data_cache, folder))


@pytest.fixture
def run_copy(completed_run, tmp_path):
    """A copy of the completed workdir."""
    return shutil.copytree(completed_run[0], tmp_path / 'completed')


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.e2e
def test_300_updates_on_8_devices_do_not_deadlock(data_cache, tmp_path):
    """With more than one step in flight, fake devices deadlock and XLA aborts."""
    c = configured(data_cache, tmp_path, updates=300, save_every=300, log_every=50)
    result = train(c)
    assert result['updates'] == 300
    losses = [line['loss'] for line in lines(tmp_path) if line['kind'] == 'train']
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_completed_run_is_reused_and_a_longer_one_resumes(data_cache, completed_run, run_copy):
    result = completed_run[1]
    checkpoint_dir = run_copy / 'checkpoints' / '4'
    time_written = checkpoint_dir.stat().st_mtime_ns
    assert train(configured(data_cache, run_copy)) == result
    assert checkpoint_dir.stat().st_mtime_ns == time_written
    longer = train(configured(data_cache, run_copy, updates=6))
    assert longer['updates'] == 6
    assert longer['seconds'] > result['seconds']
    steps = [line['step'] for line in lines(run_copy) if line['kind'] == 'train']
    assert steps == [1, 2, 3, 4, 5, 6]


def test_longer_run_removes_the_earlier_results(data_cache, run_copy, monkeypatch):
    predictions = run_copy / 'predictions'
    assert (predictions / 'test.jsonl').exists()
    c = configured(data_cache, run_copy, updates=6)
    c.eval.test = False

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir, 'write_config', interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(c)
    assert not (run_copy / 'result.json').exists()
    with pytest.raises(UserError, match=r'has no result\.json'):
        pretrained.open('path', str(run_copy))
    train(c)
    assert [path.name for path in predictions.iterdir()] == ['validation.jsonl']


def test_result_names_the_devices_of_the_mesh(data_cache, tmp_path):
    c = configured(data_cache, tmp_path, updates=1)
    c.mesh.data = 2
    assert train(c)['hardware'].startswith('2 x cpu, ')


def test_completed_run_scores_only_missing_splits(data_cache, tmp_path, monkeypatch):
    c = configured(data_cache, tmp_path)
    c.eval.test = False
    first, splits = train(c), []
    score = evaluate.Evaluation.score

    def record(self, split, params):
        splits.append(split)
        return score(self, split, params)

    monkeypatch.setattr(evaluate.Evaluation, 'score', record)
    c.eval.test = True
    both = train(c)
    assert splits == ['test']
    assert both['scores']['validation'] == first['scores']['validation']
    assert set(both['scores']) == {'validation', 'test'}
    c.train.updates = 6  # new parameters, so both splits are scored
    longer = train(c)
    assert sorted(splits[1:]) == ['test', 'validation']
    assert longer['scores']['validation'] != first['scores']['validation']


def test_changed_eval_settings_rescore_without_training(data_cache, run_copy):
    c = configured(data_cache, run_copy)
    c.eval.batches = 2
    result = train(c)
    assert result['scores']['test']['tokens'] > 8 * 32
    assert checkpoint.Checkpoints(run_copy / 'checkpoints', 1).steps() == [2, 4]


def test_resume_from_other_initial_parameters_is_refused(data_cache, completed_run, tmp_path):
    other = configured(data_cache, tmp_path / 'other')
    other.seed = 1
    train(other)
    c = configured(data_cache, tmp_path / 'initialised')
    c.student.init = str(completed_run[0])
    assert train(c)['init_hash']
    c.student.init = other.workdir
    with pytest.raises(UserError, match='init_hash'):
        train(c)
    saved = json.loads((tmp_path / 'initialised' / 'config.json').read_text())
    assert saved['student']['init'] == str(completed_run[0])


def test_checkpoint_of_another_configuration_is_refused(data_cache, run_copy, tmp_path):
    c = configured(data_cache, run_copy, updates=6)
    c.student.activation = 'relu'  # the arrays have the same shapes
    (run_copy / 'config.json').write_text(config.to_json(c))
    message = r"checkpoints: was saved with .*student\.activation: 'gelu' -> 'relu'"
    with pytest.raises(UserError, match=message):
        train(c)
    with pytest.raises(UserError, match=message):
        pretrained.open('path', str(run_copy)).load()
    assert checkpoint.Checkpoints(run_copy / 'checkpoints', 1).steps() == [2, 4]


def test_unfinished_run_is_refused_as_teacher(data_cache, run_copy, tmp_path):
    (run_copy / 'result.json').unlink()
    c = configured(data_cache, tmp_path / 'student')
    c.teacher.path = str(run_copy)
    with pytest.raises(UserError, match='must be the workdir of a finished run'):
        train(c)


@pytest.mark.parametrize('text', ['3', '[]', '"x"', '{', b'\xff'])
def test_damaged_json_file_of_a_workdir_is_named(data_cache, tmp_path, text):
    c = configured(data_cache, tmp_path, updates=1)
    (tmp_path / 'checkpoints').mkdir()
    for name in ('config.json', 'result.json'):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf'^{tmp_path}/config.json: '):
        workdir.check_unchanged(c, tmp_path)
    with pytest.raises(UserError, match=rf'^{tmp_path}/result.json: must be JSON: '):
        workdir.completed_result(c, tmp_path, {})
