"""Training runs on 8 fake devices: long, extended, completed and initialised ones."""

import contextlib
import dataclasses
import gc
import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers import corpus
from helpers.checkpoints import flip, largest
from helpers.commands import call, student_arguments

from lightpaff_jax import checkpoint, config, evaluate, metrics, optimizer, pretrained, workdir
from lightpaff_jax.data import batches
from lightpaff_jax.errors import Diverged, UserError
from lightpaff_jax.runtime import distributed, fingerprint, interrupts
from lightpaff_jax.train import train


class StopError(Exception):
    pass


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


def interrupt_after(name):
    """Returns `workdir.write_text` that is interrupted after it has written the file."""
    write_text = workdir.write_text

    def write(path, text):
        write_text(path, text)
        if path.name == name:
            raise KeyboardInterrupt

    return write


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


def test_resume_without_earlier_metrics_is_refused(data_cache, run_copy):
    file = run_copy / 'metrics.jsonl'
    text = b''.join(file.read_bytes().splitlines(keepends=True)[2:])
    file.write_bytes(text)
    with pytest.raises(
        UserError, match=rf'^{file}: line 3: .* up to step 4, .* saved after line 5;'
    ):
        train(configured(data_cache, run_copy, updates=6))
    assert file.read_bytes() == text


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

    def record(self, split, params, *args):
        splits.append(split)
        return score(self, split, params, *args)

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


def test_changed_eval_settings_rescore_without_training(data_cache, run_copy, monkeypatch):
    c = configured(data_cache, run_copy)
    c.eval.batches = 2
    with monkeypatch.context() as patch:
        patch.setattr(workdir, 'write_text', interrupt_after('validation.jsonl'))
        with pytest.raises(KeyboardInterrupt):
            train(c)
    assert [path.name for path in (run_copy / 'predictions').iterdir()] == ['validation.jsonl']
    assert not (run_copy / 'result.json').exists(), 'it has scores of another protocol'
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
    message = r"checkpoints: has another configuration than .*student\.activation: 'gelu' -> 'relu'"
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


# Numbers that are not finite.


@pytest.fixture
def bad_updates(monkeypatch):
    """A set of numbers of updates, whose batches have a NaN."""
    numbers, training = set(), batches.training

    def spoil(c, prepared, tokenizer, start, *arguments):
        stream = training(c, prepared, tokenizer, start, *arguments)
        for update, batch in enumerate(stream, start + 1):
            weights = np.where(update in numbers, np.float32(math.nan), batch.weights)
            yield dataclasses.replace(batch, weights=weights)

    monkeypatch.setattr(batches, 'training', spoil)
    return numbers


def strict_json(text):
    return json.loads(text, parse_constant=lambda word: pytest.fail(f'{word} is no JSON'))


def test_bad_updates_are_skipped_and_counted(data_cache, tmp_path, bad_updates):
    c = configured(data_cache, tmp_path / 'all', updates=5)
    train(c)
    bad_updates |= {2, 3}
    c.workdir = str(tmp_path / 'run')
    c.train.log_every = 2
    assert train(c)['updates'] == 5
    healthy = [line for line in lines(tmp_path / 'all') if line['kind'] == 'train']
    text = (tmp_path / 'run/metrics.jsonl').read_text()
    first, second, last, _ = [strict_json(line) for line in text.splitlines()]
    assert first['loss'] == healthy[0]['loss']
    assert (first['skipped'], second['skipped'], first['grad_norm']) == (1, 1, None)
    assert 'skipped' not in last
    assert [second['learning_rate'], last['step']] == [healthy[3]['learning_rate'], 5]


def test_resume_within_bad_updates_is_bitwise_equal(data_cache, tmp_path, bad_updates):
    bad_updates |= {2, 3}
    c = configured(data_cache, tmp_path / 'run', log_every=4, max_bad_steps=3)
    result = train(c)
    shutil.copytree(c.workdir, tmp_path / 'resumed')
    c.workdir = str(tmp_path / 'resumed')
    shutil.rmtree(tmp_path / 'resumed/checkpoints/4')
    (tmp_path / 'resumed/result.json').unlink()
    assert train(c)['scores'] == result['scores']
    assert (tmp_path / 'run/metrics.jsonl').read_bytes() == (
        tmp_path / 'resumed/metrics.jsonl'
    ).read_bytes()


def test_run_stops_after_too_many_bad_updates_in_a_row(data_cache, tmp_path, bad_updates):
    bad_updates |= {2, 3, 5, 6, 7, 8}
    c = configured(data_cache, tmp_path, updates=9, save_every=1, max_bad_steps=3)
    messages = []
    for _ in range(2):  # the second run resumes
        with pytest.raises(Diverged) as error:
            train(c)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    rate = float(optimizer.learning_rate(c.optim, optimizer.hyperparameters(c), 6))
    assert messages[0] == (
        f'{tmp_path}: the run has diverged, 3 updates in a row were not finite: update 7, loss '
        f'nan, gradient norm nan, learning rate {rate:g}; checkpoints of earlier updates are kept'
    )
    assert not (tmp_path / 'result.json').exists()
    assert checkpoint.Checkpoints(tmp_path / 'checkpoints', 2).steps() == [5, 6]
    assert not fingerprint.non_finite(checkpoint.Reader(tmp_path / 'checkpoints').read_params())


def test_parameters_that_overflow_are_never_saved(data_cache, tmp_path):
    c = configured(data_cache, tmp_path, updates=3, save_every=1)
    c.optim.warmup, c.optim.peak_lr, c.optim.weight_decay = 0, 3e38, 1e3
    with pytest.raises(Diverged, match=r'parameters .* are not finite: update 1, loss 6'):
        train(c)
    assert checkpoint.Checkpoints(tmp_path / 'checkpoints', 9).steps() == []


def test_run_whose_last_validation_is_not_finite_diverges(data_cache, tmp_path, bad_updates):
    c = configured(data_cache, tmp_path, updates=3, save_every=1)
    c.optim.warmup, c.optim.peak_lr, c.optim.clip_norm = 0, 1e25, 0.0
    with pytest.raises(Diverged, match=r'its validation loss is .*: update 3, loss'):
        train(c)
    assert checkpoint.Checkpoints(tmp_path / 'checkpoints', 9).steps() == [1, 2]


def test_command_of_a_diverged_run_exits_with_3(here, capsys, tmp_path):
    argv = student_arguments(
        '--config.optim.peak_lr=1e30', '--config.train.max_bad_steps=2', workdir=tmp_path
    )
    code, out, err = call(capsys, *argv)
    assert (code, out) == (3, '')
    assert err.splitlines()[-1].startswith(f'error: {tmp_path}: the run has diverged, ')


def test_run_with_parameters_that_are_not_finite_is_refused(data_cache, run_copy, tmp_path):
    with checkpoint.Checkpoints(run_copy / 'checkpoints', 9) as saved:
        reader = checkpoint.Reader(run_copy / 'checkpoints')
        params = reader.read_params()
        params['norm']['bias'] = params['norm']['bias'].at[3].set(math.inf)
        saved.save(5, {'params': params}, reader.meta)
    for key in ('teacher.path', 'student.init'):
        c = configured(data_cache, tmp_path / 'student')
        section, leaf = config.locate(c, key)
        section[leaf] = str(run_copy)
        with pytest.raises(UserError) as error:
            train(c)
        message = f'config.{key} = {run_copy}: norm/bias must hold finite numbers only'
        assert str(error.value) == message
    with pytest.raises(UserError, match='norm/bias must hold finite numbers only'):
        pretrained.load(str(run_copy))


@pytest.mark.parametrize('text', ['3', '[]', '"x"', '{', b'\xff'])
def test_damaged_json_file_of_a_workdir_is_named(data_cache, tmp_path, text):
    c = configured(data_cache, tmp_path, updates=1)
    (tmp_path / 'checkpoints').mkdir()
    for name in ('config.json', 'result.json'):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf'^{tmp_path}/config.json: '):
        workdir.check_unchanged(c, tmp_path)
    with pytest.raises(UserError, match=rf'^{tmp_path}/result.json: must be (JSON: |an object; )'):
        workdir.completed_result(c, tmp_path, {})


# The best checkpoint, and early stopping.


def until_worse(cache, workdir, **train_keys):
    """A run whose learning rate rises until its validations no longer improve."""
    keys = {'updates': 20, 'eval_every': 1, 'save_every': 3, 'log_every': 4}
    c = configured(cache, workdir, **keys | {'keep_best': 'ce', 'patience': 3} | train_keys)
    c.optim.peak_lr, c.optim.warmup = 0.3, 8
    return c


@pytest.fixture(scope='module')
def early_run(data_cache, tmp_path_factory):
    """The workdir of a run that ended early, and its result."""
    folder = tmp_path_factory.mktemp('early')
    return folder, train(until_worse(data_cache, folder))


def untimed(result):
    return {key: x for key, x in result.items() if key not in ('seconds', 'tokens_per_second')}


def test_run_ends_early_and_its_result_is_the_best(data_cache, early_run):
    folder, result = early_run
    ces = [line['ce'] for line in lines(folder) if line['kind'] == 'validation']
    best = 1 + ces.index(min(ces))
    assert best > 1
    assert len(ces) == result['updates'] == best + 3
    assert (result['best_update'], result['keep_best']) == (best, 'ce')
    assert result['scores']['validation']['ce'] == min(ces)
    steps = [line['step'] for line in lines(folder) if line['kind'] == 'train']
    assert steps[-1] == result['updates'], 'no update is missing from metrics.jsonl'
    saved = checkpoint.Checkpoints(folder / 'checkpoints', 9).steps()
    assert saved[0] == best
    assert saved[-1] == result['updates']
    params = checkpoint.Reader(folder / 'checkpoints', best).read_params()
    loaded = pretrained.load(str(folder))[1]
    assert fingerprint.fingerprint(loaded) == fingerprint.fingerprint(params)
    assert train(until_worse(data_cache, folder)) == result, 'the run is complete'


@pytest.mark.e2e
def test_kills_around_the_best_step_change_nothing(data_cache, early_run, tmp_path, monkeypatch):
    folder, result = early_run
    best, last = result['best_update'], result['updates']
    kills = [best - 1, best, best + 1, last]  # after the line of a validation, before its save
    log = metrics.Writer.log

    def kill(writer, step, *args, kind='train', **kwargs):
        log(writer, step, *args, kind=kind, **kwargs)
        if kind == 'validation' and step in kills:
            kills.remove(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.Writer, 'log', kill)
    c = until_worse(data_cache, tmp_path / 'run')
    for _ in range(len(kills)):
        with pytest.raises(KeyboardInterrupt):
            train(c)
    assert untimed(train(c)) == untimed(result)
    assert not kills
    assert [*map(str, lines(tmp_path / 'run'))] == [*map(str, lines(folder))]
    (tmp_path / 'run/result.json').unlink()  # killed between the last save and the result
    assert untimed(train(c)) == untimed(result)


@pytest.mark.e2e
def test_stops_before_validations_change_nothing(data_cache, early_run, tmp_path, monkeypatch):
    """Each stop comes before a validation; the next run repeats it and is killed after its line."""
    folder, result = early_run
    best, last = result['best_update'], result['updates']
    stops = [best - 1, best, last]
    kills, log, advance, signals = [*stops], metrics.Writer.log, metrics.Writer.advance, []

    def stop(writer, step, *args, **kwargs):
        advance(writer, step, *args, **kwargs)
        if step in stops:
            stops.remove(step)
            signals.append(signal.SIGTERM)

    def kill(writer, step, *args, kind='train', **kwargs):
        log(writer, step, *args, kind=kind, **kwargs)
        if kind == 'validation' and step in kills:
            kills.remove(step)
            raise StopError

    @contextlib.contextmanager
    def stop_signal():
        yield lambda: signals[-1] if signals else 0

    monkeypatch.setattr(distributed, 'stop_signal', stop_signal)
    monkeypatch.setattr(metrics.Writer, 'advance', stop)
    monkeypatch.setattr(metrics.Writer, 'log', kill)
    c = until_worse(data_cache, tmp_path / 'run')
    for step in [*stops]:
        with pytest.raises(interrupts.Saved, match=f'after update {step} of '):
            train(c)
        signals.clear()
        with pytest.raises(StopError):
            train(c)
    assert untimed(train(c)) == untimed(result)
    assert [*map(str, lines(tmp_path / 'run'))] == [*map(str, lines(folder))]


@pytest.mark.e2e
def test_damaged_best_step_is_replaced_only_by_an_equal_one(data_cache, early_run, tmp_path):
    folder, result = early_run
    run = shutil.copytree(folder, tmp_path / 'run')
    best = run / f'checkpoints/{result["best_update"]}'
    flip(largest(best / 'params'), 7)
    message = f'no intact step {best.name} in this folder'
    with pytest.raises(UserError, match=message):
        pretrained.load(str(run))
    (run / 'result.json').unlink()
    with pytest.raises(UserError, match=rf'{message}; .* remove {run}/checkpoints to train again'):
        train(until_worse(data_cache, run))
    for step in (run / 'checkpoints').iterdir():
        if int(step.name) > int(best.name):
            shutil.rmtree(step)
    with pytest.raises(UserError, match='only damaged steps'):
        train(until_worse(data_cache, run))


def test_damaged_best_step_is_found_before_training(data_cache, early_run, tmp_path):
    run, result = shutil.copytree(early_run[0], tmp_path / 'run'), early_run[1]
    c = until_worse(data_cache, run, patience=0, updates=result['updates'] + 1)
    best, metrics_file = run / f'checkpoints/{result["best_update"]}', run / 'metrics.jsonl'
    metrics_text = metrics_file.read_bytes()
    damages = (
        lambda: flip(largest(best / 'params'), 7),
        lambda: next((best / 'digests').rglob('*')).unlink(),
    )
    for damage in damages:
        damage()
        with pytest.raises(UserError) as error:
            train(c)
        assert str(error.value) == (
            f'{best.parent}: no intact step {best.name} in this folder; it is the best by ce: '
            f'remove {best}, then the next validation counts as the best'
        )
        shutil.rmtree(best)
        shutil.copytree(early_run[0] / f'checkpoints/{best.name}', best)
    assert metrics_file.read_bytes() == metrics_text
    shutil.rmtree(best)
    assert train(c)['best_update'] == c.train.updates


def test_best_parameters_are_read_when_the_last_are_freed(
    data_cache, early_run, tmp_path, monkeypatch
):
    run = shutil.copytree(early_run[0], tmp_path / 'run')
    (run / 'result.json').unlink()
    read_params, sizes = checkpoint.Reader.read_params, []

    def live_bytes():
        return sum(x.nbytes for x in jax.live_arrays())

    def read(reader, abstract):
        sizes.append(live_bytes() - before)
        params = read_params(reader, abstract)
        sizes.append(sum(x.nbytes for x in jax.tree.leaves(params)))
        return params

    monkeypatch.setattr(checkpoint.Reader, 'read_params', read)
    gc.collect()
    before = live_bytes()
    train(until_worse(data_cache, run))
    at_resume, size, at_end, _ = sizes
    assert at_end < size < at_resume


@pytest.mark.slow
def test_resume_before_a_damaged_best_step_is_equal(data_cache, early_run, tmp_path, monkeypatch):
    result = early_run[1]
    save = checkpoint.Checkpoints.save

    def interrupt(saved, step, *args):
        save(saved, step, *args)
        if step == result['best_update']:
            saved.close()
            raise KeyboardInterrupt

    c = until_worse(data_cache, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, 'save', interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(c)
    flip(largest(tmp_path / f'checkpoints/{result["best_update"]}/params'), 7)
    assert untimed(train(c)) == untimed(result)


@pytest.mark.slow
def test_more_patience_resumes_a_run_that_ended_early(data_cache, early_run, tmp_path):
    run, last = shutil.copytree(early_run[0], tmp_path / 'run'), early_run[1]['updates']
    result = train(until_worse(data_cache, run, patience=0, updates=last + 2))
    assert result['updates'] == last + 2
    steps = [line['step'] for line in lines(run) if line['kind'] == 'validation']
    assert steps == [*range(1, last + 3)]
