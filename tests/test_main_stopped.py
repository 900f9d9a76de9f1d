"""Resume after an error, a kill, an interrupt or a damaged checkpoint; commands as processes."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.commands import ROOT, UPDATES, call, error_line, student_arguments
from helpers.processes import QUICK, environment

from lightpaff_jax import checkpoint, evaluate, metrics, sharding, workdir as workdir_lib
from lightpaff_jax.runtime import distributed, fingerprint, lock

XLA_FLAGS = ' '.join(f'--{name}={value}'.lower() for name, value in QUICK.items())


def params_of(workdir):
    return jax.tree.map(np.asarray, checkpoint.Reader(workdir / 'checkpoints').read_params())


def assert_same_run(a, b):
    """Asserts that parameters, metrics.jsonl, scores and fingerprints of two runs are equal."""
    jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
    result_a, result_b = (json.loads((run / 'result.json').read_text()) for run in (a, b))
    for name in ('scores', 'data_hash', 'teacher_hash', 'tokenizer_hash', 'updates', 'flops'):
        assert result_a[name] == result_b[name]


def test_required_run_is_trained_first(small_runs):
    teacher, student = small_runs / 'runs/small_teacher', small_runs / 'runs/small'
    result = json.loads((student / 'result.json').read_text())
    params = checkpoint.Reader(teacher / 'checkpoints').read_params()
    assert result['teacher_hash'] == fingerprint.fingerprint(params)
    assert (teacher / 'result.json').stat().st_mtime < (student / 'config.json').stat().st_mtime


def test_completed_run_is_not_trained_again(here, capsys):
    files = [*(here / 'runs').rglob('*.jsonl'), *(here / 'runs').rglob('result.json')]
    times = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 10
    code, out, _ = call(capsys, '--config=small.py')
    assert code == 0
    assert 'test: ce ' in out
    assert out.endswith('runs/small/result.json\n')
    assert [path.stat().st_mtime_ns for path in files] == times


class StopError(Exception):
    pass


def test_resume_between_checkpoints_is_bitwise_equal(here, tmp_path, capsys, monkeypatch):
    log = metrics.Writer.log

    def stop(writer, step, *args, **kwargs):
        log(writer, step, *args, **kwargs)
        if step == 3:  # after the checkpoint of update 2, at the end of a logging window of 3
            raise StopError

    argv = student_arguments(workdir=tmp_path / 'stopped')
    monkeypatch.setattr(metrics.Writer, 'log', stop)
    with pytest.raises(StopError):
        call(capsys, *argv)
    monkeypatch.undo()
    assert checkpoint.Checkpoints(tmp_path / 'stopped/checkpoints', 9).steps() == [2]
    assert '"step": 3' in (tmp_path / 'stopped/metrics.jsonl').read_text()
    assert call(capsys, *argv)[0] == 0
    assert_same_run(here / 'runs/small', tmp_path / 'stopped')


def test_signal_saves_the_update_and_resume_is_bitwise_equal(here, tmp_path, capsys, monkeypatch):
    log = metrics.Writer.log

    def stop(writer, step, *args, **kwargs):
        if step == 3:  # between two checkpoints
            signal.raise_signal(signal.SIGTERM)
        log(writer, step, *args, **kwargs)

    argv = student_arguments(workdir=tmp_path / 'stopped')
    monkeypatch.setattr(metrics.Writer, 'log', stop)
    stopped = call(capsys, *argv)
    monkeypatch.undo()
    assert stopped[0] == 143
    where = f'after update 3 of {tmp_path}/stopped, saved; the same command resumes'
    assert stopped[2].splitlines()[-1] == f'stopped by SIGTERM {where}'
    assert 'Traceback' not in stopped[2]
    assert checkpoint.Checkpoints(tmp_path / 'stopped/checkpoints', 9).steps() == [2, 3]
    assert call(capsys, *argv)[0] == 0
    assert_same_run(here / 'runs/small', tmp_path / 'stopped')


def test_signal_in_a_validation_stops_it_and_resume_is_bitwise_equal(
    here, tmp_path, capsys, monkeypatch
):
    """The run is stopped in its validation, and killed after it has repeated it."""
    run, argv = tmp_path / 'stopped', student_arguments(workdir=tmp_path / 'stopped')
    put = sharding.put_batch

    def stop(mesh, batch, micro):
        if not micro:
            signal.raise_signal(signal.SIGTERM)
        return put(mesh, batch, micro)

    def kill(*args):
        raise StopError

    monkeypatch.setattr(sharding, 'put_batch', stop)
    stopped = call(capsys, *argv)
    assert stopped[0] == 143
    where = f'after update 6 of {run}, saved; the same command resumes'
    assert stopped[2].splitlines()[-1] == f'stopped by SIGTERM {where}'
    assert '"kind": "validation"' not in (run / 'metrics.jsonl').read_text()
    monkeypatch.undo()
    monkeypatch.setattr(evaluate.Evaluation, 'finish', kill)
    with pytest.raises(StopError):
        call(capsys, *argv)
    assert '"kind": "validation"' in (run / 'metrics.jsonl').read_text()
    monkeypatch.undo()
    assert call(capsys, *argv)[0] == 0
    assert_same_run(here / 'runs/small', run)


@pytest.mark.parametrize(
    ('number', 'module', 'name', 'steps'),
    [
        (signal.SIGINT, distributed, 'all_gather', []),  # in the compilation
        (signal.SIGTERM, workdir_lib, 'missing_splits', [2, 4, 6]),  # before the test scores
    ],
)
def test_signal_outside_of_updates_stops_at_once(
    here, tmp_path, capsys, monkeypatch, number, module, name, steps
):
    original = getattr(module, name)

    def stop(*args):
        signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(module, name, stop)
    workdir = tmp_path / 'stopped'
    stopped = call(capsys, *student_arguments(workdir=workdir))
    monkeypatch.undo()
    assert stopped[0] == 128 + number
    assert stopped[2].splitlines()[-1] == f'stopped by {number.name}'
    assert checkpoint.Checkpoints(workdir / 'checkpoints', 9).steps() == steps


def test_second_run_in_a_workdir_is_refused_before_it_writes(here, tmp_path, capsys):
    for workdir in (tmp_path / 'new', tmp_path / 'old'):
        if workdir.name == 'old':
            shutil.copytree(here / 'runs/small', workdir)
            (workdir / 'result.json').unlink()
        with lock.hold(workdir):
            before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
            line = error_line(capsys, *student_arguments(workdir=workdir))
            assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
        assert line.startswith(f'{workdir}: is in use by process {os.getpid()} on ')
    with lock.hold(tmp_path / 'old/evaluation'):
        argv = student_arguments(workdir='runs/none')
        code = evaluate.main(['--model=runs/small', f'--out={tmp_path}/old/evaluation', *argv])
    assert code == 2
    assert f'{tmp_path}/old/evaluation: is in use by' in capsys.readouterr().err


def test_finished_run_is_read_while_another_one_holds_it(here, capsys):
    with lock.hold(here / 'runs/small_teacher'):
        assert call(capsys, '--config=small.py')[0] == 0


def damage(step):
    """Flips a byte in every file of the parameters."""
    files = [path for path in (step / 'params').rglob('*') if path.is_file() and '/d/' in str(path)]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def test_resume_after_a_corrupt_checkpoint_is_bitwise_equal(here, tmp_path, capsys):
    workdir = tmp_path / 'damaged'
    shutil.copytree(here / 'runs/small', workdir)
    (workdir / 'result.json').unlink()
    damage(workdir / f'checkpoints/{UPDATES}')
    code, _, err = call(capsys, *student_arguments(workdir=workdir))
    assert code == 0
    assert f'step {UPDATES} is renamed to {UPDATES}.corrupt: ' in err
    assert f'step {UPDATES - 2} is used instead' in err
    assert (workdir / f'checkpoints/{UPDATES}.corrupt').is_dir()
    assert_same_run(here / 'runs/small', workdir)


# Commands as processes.


def start(*argv, module='main', cwd=ROOT):
    return subprocess.Popen(
        [sys.executable, '-m', f'lightpaff_jax.{module}', *argv],
        cwd=cwd,
        env=environment(XLA_FLAGS=XLA_FLAGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('module', 'argv', 'line'),
    [
        (
            'main',
            ['--config=configs/gpt2_stag1.py'],
            '--config=configs/gpt2_stag1.py: no such file',
        ),
        ('recipe', ['--config=configs/quickstart.py:ful'], '--config=configs/quickstart.py:ful: u'),
        ('speed', ['--config=configs/quickstart.py', '--config.sed=1'], 'config.sed: no such key'),
        ('report', ['runs/no_such_run'], 'runs/no_such_run: no such folder'),
    ],
)
def test_process_with_an_invalid_argument_writes_one_line(module, argv, line):
    process = start(*argv, module=module)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ''
    assert err.startswith(f'error: {line}')
    assert err.count('\n') == 1
    assert 'Traceback' not in err


@pytest.mark.e2e
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_command_is_imported_is_one_line(number):
    process = start('--config=configs/quickstart.py')
    status = pathlib.Path(f'/proc/{process.pid}/status')
    bit = 1 << signal.SIGTERM - 1  # Python itself handles SIGINT only
    while not int(re.search(r'SigCgt:\s*(\w+)', status.read_text())[1], 16) & bit:
        time.sleep(0.001)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ('', f'stopped by {number.name}\n')
    assert process.returncode == 128 + number


@pytest.mark.slow
def test_resume_after_sigkill_is_bitwise_equal(small_runs):
    updates, save_every = 60, 10
    settings = [
        f'--config.train.updates={updates}',
        f'--config.train.save_every={save_every}',
        '--config.train.eval_every=25',
        '--config.eval.batches=2',
    ]

    def run(name):
        return start(*student_arguments(*settings, workdir=f'runs/{name}'), cwd=small_runs)

    undisturbed = run('undisturbed')
    out, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err
    assert 'test: ce ' in out

    workdir = small_runs / 'runs/killed'

    def progress():
        """Returns the newest checkpointed step and the newest logged step."""
        saved = [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit()]
        log = workdir / 'metrics.jsonl'
        logged = re.findall(r'"step": (\d+), .*\n', log.read_text() if log.exists() else '')
        return max(saved, default=0), int(logged[-1]) if logged else 0

    killed, deadline = run('killed'), time.monotonic() + 300
    while not 0 < progress()[0] < progress()[1]:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert all(0 < step < updates for step in progress()), 'killed too late'

    resumed = run('killed')
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert_same_run(small_runs / 'runs/undisturbed', workdir)
