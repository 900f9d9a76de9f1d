"""A preset that is stopped by SIGTERM at random updates equals an undisturbed run."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lightpaff_jax import checkpoint, config

ROOT = pathlib.Path(config.__file__).parents[2]
MAIN = [sys.executable, '-m', 'lightpaff_jax.main']
LOCAL = [str(ROOT / 'launch/local.sh'), '2', *MAIN]
UPDATES = 200

pytestmark = pytest.mark.slow


def start(folder, command, preset, workdir):
    settings = {'data.cache': 'cache', 'train.compilation_cache': 'xla', 'workdir': workdir}
    settings |= {'train.save_every': 1000, 'train.log_every': 1, 'eval.batches': 2}
    arguments = [f'--config.{key}={value}' for key, value in settings.items()]
    return subprocess.Popen(
        [*command, f'--config={ROOT}/configs/gpt2_stage1.py:{preset}', *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    )


def finish(process):
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert 'Traceback' not in err


def last_step(workdir):
    """Returns the last update of metrics.jsonl, 0 if there is none."""
    path = workdir / 'metrics.jsonl'
    steps = re.findall(r'"step": (\d+), .*\n', path.read_text() if path.exists() else '')
    return int(steps[-1]) if steps else 0


def stop(folder, command, workdir, process, update):
    """Stops a run at an update; returns the saved one, up to which every line is written."""
    while last_step(folder / workdir) < update:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert 'Traceback' not in err
    (saved,) = re.findall(rf'stopped by SIGTERM after update (\d+) of {workdir}, saved;', err)
    assert last_step(folder / workdir) == int(saved)
    assert (folder / workdir / f'checkpoints/{saved}').is_dir()
    return int(saved)


def assert_equal_runs(a, b):
    params = [checkpoint.Reader(run / 'checkpoints').read_params() for run in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
    results = [json.loads((run / 'result.json').read_text()) for run in (a, b)]
    assert results[0]['scores'] == results[1]['scores']


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with the teacher, and `undisturbed` of one process."""
    folder = tmp_path_factory.mktemp('preemption')
    finish(start(folder, MAIN, 'tiny', 'undisturbed'))
    return folder


def test_ten_sigterms_repeat_no_update(place):
    updates = sorted(random.Random(0).sample(range(1, UPDATES - 10), 10))
    saved = 0
    for update in updates:
        process = start(place, MAIN, 'tiny', 'stopped')
        saved = stop(place, MAIN, 'stopped', process, max(update, saved + 1))
    finish(start(place, MAIN, 'tiny', 'stopped'))
    assert_equal_runs(place / 'undisturbed', place / 'stopped')
    seconds = (place / 'stopped/timing.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in seconds] == list(range(1, UPDATES + 1))


def test_sigterm_of_two_processes_repeats_no_update(place):
    finish(start(place, LOCAL, 'tiny', 'undisturbed_2'))
    process = start(place, LOCAL, 'tiny', 'stopped_2')
    stop(place, LOCAL, 'stopped_2', process, 50)
    finish(start(place, LOCAL, 'tiny', 'stopped_2'))
    assert_equal_runs(place / 'undisturbed_2', place / 'stopped_2')


def test_second_run_is_refused_and_the_first_is_undisturbed(place):
    shutil.rmtree(place / 'held', ignore_errors=True)
    first = start(place, MAIN, 'tiny', 'held')
    while not last_step(place / 'held'):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    second = start(place, MAIN, 'tiny', 'held')
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2
    assert err.splitlines()[-1].startswith(f'error: held: is in use by process {first.pid} on ')
    finish(first)
    assert_equal_runs(place / 'undisturbed', place / 'held')
