"""The commands as processes, and their runs: stopped, killed or damaged they end as if they were not."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from helpers.commands import LAST, ROOT, alone, call

from lightpaff_jax import checkpoint, metrics
from lightpaff_jax.runtime import fingerprint, interrupts


def params_of(workdir):
    return jax.tree.map(np.asarray, checkpoint.Reader(workdir / 'checkpoints').read_params())


def assert_same_run(a, b):
    """Parameters and metrics.jsonl are equal bit for bit, and the scores."""
    jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
    one, two = (json.loads((run / 'result.json').read_text()) for run in (a, b))
    for name in ('scores', 'data_hash', 'teacher_hash', 'tokenizer_hash', 'updates', 'flops'):
        assert one[name] == two[name]


def test_a_command_does_first_what_its_run_needs(small_runs):
    teacher, student = small_runs / 'runs/small_teacher', small_runs / 'runs/small'
    found = json.loads((student / 'result.json').read_text())
    params = checkpoint.Reader(teacher / 'checkpoints').read_params()
    assert found['teacher_hash'] == fingerprint.fingerprint(params)
    assert (teacher / 'result.json').stat().st_mtime < (student / 'config.json').stat().st_mtime


def test_a_finished_run_is_not_done_again(here, capsys):
    files = [*(here / 'runs').rglob('*.jsonl'), *(here / 'runs').rglob('result.json')]
    before = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 10
    code, out, _ = call(capsys, '--config=small.py')
    assert code == 0
    assert 'test: ce ' in out
    assert out.endswith('runs/small/result.json\n')
    assert [path.stat().st_mtime_ns for path in files] == before


class Stop(Exception):
    pass


def test_a_run_that_stopped_between_checkpoints_ends_as_if_it_had_not(
    here, tmp_path, capsys, monkeypatch
):
    log = metrics.Writer.log

    def stop(writer, step, *args, **kwargs):
        log(writer, step, *args, **kwargs)
        if step == 3:  # the last checkpoint is that of update 2, within a window of 3
            raise Stop

    argv = alone(workdir=tmp_path / 'stopped')
    monkeypatch.setattr(metrics.Writer, 'log', stop)
    with pytest.raises(Stop):
        call(capsys, *argv)
    monkeypatch.undo()
    assert checkpoint.Checkpoints(tmp_path / 'stopped/checkpoints', 9).steps() == [2]
    assert '"step": 3' in (tmp_path / 'stopped/metrics.jsonl').read_text()
    assert call(capsys, *argv)[0] == 0
    assert_same_run(here / 'runs/small', tmp_path / 'stopped')


def damage(step):
    """Changes a byte in every file of the parameters' arrays."""
    files = [path for path in (step / 'params').rglob('*') if path.is_file() and '/d/' in str(path)]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(here, tmp_path, capsys):
    workdir = tmp_path / 'damaged'
    shutil.copytree(here / 'runs/small', workdir)
    (workdir / 'result.json').unlink()
    damage(workdir / f'checkpoints/{LAST}')
    code, _, err = call(capsys, *alone(workdir=workdir))
    assert code == 0
    assert f'step {LAST} is renamed to {LAST}.corrupt: ' in err
    assert f'step {LAST - 2} is used instead' in err
    assert (workdir / f'checkpoints/{LAST}.corrupt').is_dir()
    assert_same_run(here / 'runs/small', workdir)


# Processes of their own.


def start(*argv, module='main', cwd=ROOT):
    environment = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, '-m', f'lightpaff_jax.{module}', *argv],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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
def test_a_process_with_a_mistake_writes_one_line_and_exits_with_2(module, argv, line):
    process = start(*argv, module=module)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ''
    assert err.startswith(f'error: {line}')
    assert err.count('\n') == 1
    assert 'Traceback' not in err


@pytest.mark.e2e
def test_a_killed_process_started_again_ends_as_if_it_had_not_been(small_runs):
    updates, save_every = 60, 10
    settings = [
        f'--config.train.updates={updates}', f'--config.train.save_every={save_every}',
        '--config.train.eval_every=25', '--config.eval.batches=2',
    ]  # fmt: skip

    def run(name):
        return start(*alone(*settings, workdir=f'runs/{name}'), cwd=small_runs)

    undisturbed = run('undisturbed')
    out, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err
    assert 'test: ce ' in out

    workdir = small_runs / 'runs/killed'

    def at():
        """The newest checkpoint and the last line."""
        saved = [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit()]
        lines = workdir / 'metrics.jsonl'
        steps = re.findall(r'"step": (\d+), .*\n', lines.read_text() if lines.exists() else '')
        return max(saved, default=0), int(steps[-1]) if steps else 0

    killed, deadline = run('killed'), time.monotonic() + 300
    while not 0 < at()[0] < at()[1]:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert all(0 < step < updates for step in at()), 'in the middle'

    again = run('killed')
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert_same_run(small_runs / 'runs/undisturbed', workdir)


class _Rest:
    """Garbage that takes longer to go than an interrupt waits; what is raised here is dropped."""

    def __init__(self, wait=lambda: time.sleep(0.1)):
        self.itself, self.wait = self, wait

    def __del__(self):
        self.wait()


def _interrupted(when):
    def _xla_gc_callback(*_):  # by the name of jax's, from which Python raises nothing
        signal.raise_signal(signal.SIGINT)

    with interrupts.deliver_sigint_during_gc():
        if when == 'working':
            signal.raise_signal(signal.SIGINT)
        gc.callbacks.append(_xla_gc_callback)
        _Rest()
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(_xla_gc_callback)
        if when == 'collecting at the end':
            return
        threading.Event().wait(10)


@pytest.mark.parametrize('when', ['working', 'collecting', 'collecting at the end'])
def test_an_interrupt_is_heard_once_wherever_it_comes(when):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(when)
        assert time.monotonic() - began < 5, 'at once, also while the thread waits for something'
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for _ in range(10):  # as long as a second one would take
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_heard_at_once_while_another_thread_collects():
    collecting, heard, ended = threading.Event(), threading.Event(), []

    def going():
        collecting.set()
        ended.append(heard.wait(30))

    def collect():
        _Rest(going)
        gc.collect()

    def interrupted():
        with interrupts.deliver_sigint_during_gc():
            thread.start()
            assert collecting.wait(30)
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(60)

    thread = threading.Thread(target=collect)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not ended, 'not after the collection'
    finally:
        heard.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert ended == [True]
