"""Several processes train as one run, and end together."""

import contextlib
import json
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import corpus
from helpers.processes import QUICK, environment

from lightpaff_jax import checkpoint
from lightpaff_jax.config import flags
from lightpaff_jax.data import prepare
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.runtime import fingerprint

UPDATES, SAVED = 4, 2  # length of a run, and the step from which 4 processes resume
BATCH, MICRO, DEVICES = 16, 2, 4

SMALL = f"""
'''A language model of a few thousand parameters, on the text next to this file.'''
import pathlib
from lightpaff_jax import config

HERE = pathlib.Path(__file__).parent

def get_config(preset=''):
    c = config.default()
    c.student.update({{'layers': 1, 'width': 16, 'heads': 2, 'ffn': 32}})
    c.student.update({{'positions': 32, 'vocab_size': 320, 'dropout': 0.1}})
    c.data.update({{'source': 'text', 'path': str(HERE / 'text'), 'length': 16}})
    c.data.update({{'batch_size': {BATCH}, 'cache': str(HERE / 'cache')}})
    c.eval.update({{'batch_size': 8, 'batches': 2}})
    c.train.update({{'updates': {UPDATES}, 'save_every': {SAVED}, 'log_every': 1, 'keep': 9}})
    c.train.update({{'grad_accum_steps': {MICRO}, 'compilation_cache': str(HERE / 'xla')}})
    c.optim.update({{'warmup': 2, 'schedule': 'constant'}})
    c.optim.eps = 1e-3  # a smaller one turns the rounding of zero gradients into updates
    return c
"""

# Trains, and writes each batch of each process to PROCESS-of-PROCESSES-UPDATE.npz.
RECORDING_TRAINER = """
import pathlib, sys
import jax, numpy
from lightpaff_jax import main
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import distributed
from lightpaff_jax.data import batches

training = batches.training

def record(c, prepared, tokenizer, start, *arguments):
    stream = training(c, prepared, tokenizer, start, *arguments)
    for update, batch in enumerate(stream, start):
        name = f'{distributed.process_index()}-of-{distributed.process_count()}-{update}'
        numpy.savez(pathlib.Path('batches') / name, *jax.tree.leaves(batch))
        yield batch

batches.training = record
sys.exit(flags.main(main.run, '', sys.argv[1:]))
"""

# Trains with a home folder of its own for each process of DISKS, else with one for all.
TRAINER_WITH_HOME = """
import os, sys
disk = os.environ['JAX_PROCESS_ID'] if os.environ['DISKS'] == 'own' else 'shared'
os.environ['HOME'] = f'{os.getcwd()}/disk-{disk}'
from lightpaff_jax import main
from lightpaff_jax.config import flags
sys.exit(flags.main(main.run, '', sys.argv[1:]))
"""

# Puts batches on meshes that, as on TPUs, do not follow the order of the processes. Prints the rows
# of this process, the global shape, and whether each device has its part.
SCATTERED_MESHES = """
import json
import jax, numpy
from lightpaff_jax import sharding
from lightpaff_jax.runtime import distributed

distributed.initialize()
distributed.sync_devices()
devices = numpy.array(sorted(jax.devices(), key=lambda x: x.process_index))[[0, 2, 1, 3]]
whole = numpy.arange(16).reshape(2, 8)
for shape in ((4, 1, 1), (2, 2, 1), (2, 1, 2)):
    mesh = jax.sharding.Mesh(devices.reshape(shape), sharding.AXES)
    rows = sharding.local_rows(mesh, 8)
    batch = sharding.put_batch(mesh, whole[:, rows], micro=True)
    shards = batch.addressable_shards
    correct = all(numpy.array_equal(shard.data, whole[shard.index]) for shard in shards)
    print(json.dumps([rows.tolist(), batch.shape, correct]), flush=True)
distributed.shutdown()
"""

# A command in which the processes of FAILING fail in the way of MODE, and the others wait.
FAILING_COMMAND = """
import os, sys, time
mode = os.environ['MODE']
failing = os.environ['JAX_PROCESS_ID'] in os.environ['FAILING'].split(',')
argv = ['--config=small.py']
if failing and mode == 'unknown key':
    argv.append('--config.train.updatse=3')
if failing and mode == 'another value':
    argv.append('--config.train.updates=3')
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import cluster, distributed
cluster.JOIN_TIMEOUT, cluster.HEARTBEAT_TIMEOUT = (1 if mode == 'absent' else 8), 6

def run(c):
    distributed.sync_devices()
    import jax, numpy
    from jax.experimental import multihost_utils
    from lightpaff_jax import checkpoint
    if mode == 'no permission':
        def refuse(*args):
            raise PermissionError('not yours')
        if failing:
            checkpoint.ocp.load_checkpointables = refuse
        checkpoint.Reader('runs/2/checkpoints')
    if failing and mode == 'bug':
        1 / 0
    if failing and mode == 'mistake':
        from lightpaff_jax.config import UserError
        raise UserError('config.x = 3: must be 4')
    if mode == 'killed':
        print('ready', flush=True)
        time.sleep(100)  # not in a collective, which would fail at once
    multihost_utils.process_allgather(numpy.ones(3))

sys.exit(flags.main(run, '', argv))
"""


def free_address():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return f'127.0.0.1:{server.getsockname()[1]}'


@contextlib.contextmanager
def start(number, arguments, cwd, devices=1, **changes):
    """Starts processes of `python ARGUMENTS`, and kills them at the end."""
    quick = ' '.join(f'--{name}={value}'.lower() for name, value in QUICK.items())
    changes |= {
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {quick}',
        'JAX_COORDINATOR_ADDRESS': free_address(),
        'JAX_NUM_PROCESSES': str(number),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(JAX_PROCESS_ID=str(index), **changes),
        )
        for index in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def wait(processes, seconds):
    """Returns (exit code, stdout, stderr) of each process; all must end in time."""
    deadline, results = time.monotonic() + seconds, []
    for process in processes:
        out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        results.append((process.returncode, out, err))
    return results


@contextlib.contextmanager
def train(folder, number):
    """Trains runs/NUMBER with so many processes; checks at the end that only process 0 prints."""
    arguments = ['-c', RECORDING_TRAINER, '--config=small.py', f'--config.workdir=runs/{number}']
    with start(number, arguments, folder, DEVICES // number) as processes:
        yield
        (code, out, err), *others = wait(processes, 240)
    assert code == 0, err
    assert out.splitlines()[-1] == f'runs/{number}/result.json'
    assert len(out.splitlines()) == 3
    assert others == [(0, '', '')] * (number - 1)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with small.py, its text, and runs/1 and runs/2 of 1 and of 2 processes."""
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'small.py').write_text(SMALL)
    (folder / 'text').mkdir()
    (folder / 'batches').mkdir()
    draw = random.Random(0)
    words = [''.join(draw.choices('abcdefgh', k=draw.randint(2, 6))) for _ in range(60)]
    for split, documents in (('train', 60), ('validation', 12), ('test', 12)):
        texts = [' '.join(draw.choices(words, k=30)) for _ in range(documents)]
        (folder / f'text/{split}.txt').write_text('\n\n'.join(texts) + '\n')
    with train(folder, 1), train(folder, 2):
        pass
    return folder


@pytest.fixture(scope='module')
def resumed(place):
    """runs/4: 4 processes resume from a checkpoint of 2."""
    shutil.copytree(place / 'runs/2', place / 'runs/4')
    shutil.rmtree(place / f'runs/4/checkpoints/{UPDATES}')
    (place / 'runs/4/result.json').unlink()
    with train(place, 4):
        pass
    return place


def read_batch(folder, number, update):
    """Joins the parts of a global batch that the processes wrote."""
    parts = [np.load(folder / f'batches/{k}-of-{number}-{update}.npz') for k in range(number)]
    return [np.concatenate([part[name] for part in parts], 1) for name in parts[0].files]


def check_batches(folder, numbers, updates):
    """Checks that each number of processes trained on the global batches of these updates."""
    c = flags.parse([f'--config={folder}/small.py'])
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    for update in updates:
        expected = jax.tree.leaves(corpus.batch_at(c, prepared, tokenizer, update))
        assert expected[0].shape[:2] == (MICRO, BATCH // MICRO)
        for number in numbers:
            for x, y in zip(read_batch(folder, number, update), expected, strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.e2e
def test_1_and_2_processes_train_on_the_same_global_batches(place):
    check_batches(place, (1, 2), range(UPDATES))


@pytest.mark.slow
def test_4_processes_train_on_the_same_global_batches(resumed):
    check_batches(resumed, (4,), range(SAVED, UPDATES))


def read_metrics(folder, number):
    text = (folder / f'runs/{number}/metrics.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same_metrics(a, b):
    """Allows for rounding: devices add float32 sums in an order that depends on the processes."""
    assert [(x['step'], x['kind'], x.keys()) for x in a] == [
        (x['step'], x['kind'], x.keys()) for x in b
    ]
    for x, y in zip(a, b, strict=True):
        for name in x.keys() - {'kind'}:
            assert x[name] == pytest.approx(y[name], rel=2e-5), (x['step'], name)


def assert_same_parameters(folder, *numbers):
    first, second = (
        fingerprint.flatten(checkpoint.Reader(folder / f'runs/{number}/checkpoints').read_params())
        for number in numbers
    )
    largest = max(float(abs(x).max()) for x in first.values())
    assert first.keys() == second.keys()
    for name, x in first.items():
        difference = float(abs(np.asarray(x) - np.asarray(second[name])).max())
        assert difference <= 1e-5 * largest, name


@pytest.mark.e2e
def test_2_processes_equal_1_process_with_as_many_devices(place):
    assert_same_metrics(read_metrics(place, 1), read_metrics(place, 2))
    assert_same_parameters(place, 1, 2)
    results = [json.loads((place / f'runs/{n}/result.json').read_text()) for n in (1, 2)]
    assert [result['processes'] for result in results] == [1, 2]
    for key in ('data_hash', 'tokenizer_hash', 'tokens', 'updates', 'flops'):
        assert results[0][key] == results[1][key]


@pytest.mark.slow
def test_4_processes_resume_a_run_of_2_with_equal_results(resumed):
    assert_same_metrics(read_metrics(resumed, 2), read_metrics(resumed, 4))
    assert_same_parameters(resumed, 2, 4)


@pytest.mark.e2e
@pytest.mark.parametrize('disks', ['shared', 'own'])
def test_each_disk_has_a_cache_of_the_teacher(place, disks):
    options = ['--config.teacher.path=runs/1', '--config.teacher.cache=~/teacher']
    arguments = ['--config=small.py', f'--config.workdir=runs/{disks}', *options]
    with start(2, ['-c', TRAINER_WITH_HOME, *arguments], place, 2, DISKS=disks) as processes:
        (code, _, err), other = wait(processes, 240)
    assert code == 0, err
    assert other == (0, '', '')
    folders = [*place.glob('disk-[01]' if disks == 'own' else 'disk-shared')]
    contents = [corpus.file_digests(folder) for folder in folders]
    assert len(contents) == (2 if disks == 'own' else 1)
    assert contents[0] == contents[-1]
    assert [name.rpartition('.')[2] for name in contents[0]] == ['rows', 'json']


@pytest.mark.slow
def test_processes_of_a_diverged_run_end_with_the_same_line(place):
    argv = ['--config.optim.peak_lr=1e30', '--config.train.max_bad_steps=2']
    command = ['-m', 'lightpaff_jax.main', '--config=small.py', '--config.workdir=runs/diverged']
    with start(2, [*command, *argv], place, 2) as processes:
        (code, _, err), other = wait(processes, 240)
    assert (code, other) == (3, (3, '', ''))
    assert err.splitlines()[-1].startswith('error: runs/diverged: the run has diverged, 2 updates')


@pytest.mark.e2e
def test_each_process_reads_the_rows_of_its_devices_on_any_mesh(tmp_path):
    with start(2, ['-c', SCATTERED_MESHES], tmp_path, 2) as processes:
        results = wait(processes, 100)
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    every = list(range(8))
    rows_by_process = (
        ([0, 1, 4, 5], [0, 1, 4, 5], every),
        ([2, 3, 6, 7], [2, 3, 6, 7], every),
    )
    for (_, out, _), rows in zip(results, rows_by_process, strict=True):
        assert [json.loads(line) for line in out.splitlines()] == [[r, [2, 8], True] for r in rows]


FAILURES = {
    # mode: processes that fail, exit code, last line of process 0, line of process 1
    'mistake': ('1', 2, 'process 1: config.x = 3: must be 4', 'config.x = 3: must be 4'),
    'unknown key': (
        '0,1',
        2,
        'config.train.updatse: no such key; did you mean updates?',
        None,
    ),
    'another value': (
        '1',
        2,
        f'process 1: config.train.updates = 3, process 0 has {UPDATES}: all processes must be '
        'started by the same command',
        None,
    ),
    'no permission': (
        '1',
        2,
        f'process 1: {{}}/runs/2/checkpoints/{UPDATES}: digests: cannot be read: '
        'PermissionError: not yours',
        None,
    ),
    'bug': (
        '0',
        1,
        'ZeroDivisionError: division by zero',
        'process 0: ZeroDivisionError: division by zero',
    ),
}


@pytest.mark.e2e
@pytest.mark.parametrize('mode', FAILURES)
def test_if_one_process_fails_all_exit_with_one_line(place, mode):
    """A line that all processes have in common is printed once."""
    failing, code, *expected = FAILURES[mode]
    with start(2, ['-c', FAILING_COMMAND], place, MODE=mode, FAILING=failing) as processes:
        results = wait(processes, 60)  # mostly for imports; the others exit within 2 seconds
    assert [code for code, _, _ in results] == [code, code]
    assert [out for _, out, _ in results] == ['', '']
    errors = [err.splitlines() for _, _, err in results]
    assert errors[0][-1] == f'error: {expected[0].format(place)}'
    assert errors[1] == ([] if expected[1] is None else [f'error: {expected[1]}'])
    assert len(errors[0]) == 1 or mode == 'bug'  # a traceback precedes the line of a bug


KILLED_TRAINER = """
import sys
from lightpaff_jax import main
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import cluster
cluster.HEARTBEAT_TIMEOUT = 6
sys.exit(flags.main(main.run, '', sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_killed_in_training_ends_the_other(place):
    settings = {'workdir': 'runs/killed', 'train.updates': 10**6, 'train.save_every': 10**6}
    arguments = [f'--config.{key}={value}' for key, value in settings.items()]
    arguments = ['-c', KILLED_TRAINER, '--config=small.py', *arguments]
    with start(2, arguments, place, DEVICES // 2) as processes:  # its programs are compiled already
        line = processes[0].stderr.readline()
        assert line.startswith('update 1/'), line + processes[0].stderr.read()
        processes[1].kill()
        began = time.monotonic()
        ((code, _, err),) = wait(processes[:1], 60)
        assert time.monotonic() - began < 6 + 20
    # Either the collective fails and the process exits with one line, or it hangs and jax aborts.
    has_line = 'error: lost another process, which has ended (' in err
    assert (code, has_line) in ((1, True), (-signal.SIGABRT, False))


@pytest.mark.e2e
@pytest.mark.parametrize(('victim', 'limit'), [(1, 6), (0, 0)])
def test_a_killed_process_is_detected_outside_of_collectives(place, victim, limit):
    """Process 0 misses heartbeats, here for 6 s; with process 0 the coordinator ends at once."""
    command = ['-c', FAILING_COMMAND]
    with start(2, command, place, MODE='killed', FAILING='') as processes:
        for process in processes:
            assert process.stdout.readline() == 'ready\n'
        processes[victim].kill()
        began = time.monotonic()
        ((code, _, err),) = wait([processes[1 - victim]], 60)
        assert time.monotonic() - began < limit + 20
    assert code == -signal.SIGABRT  # from jax, with a message of its own
    assert 'another task died' in err


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('number', 'code'),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_process_saves_the_run_of_all(place, number, code):
    settings = {'workdir': f'runs/{code}', 'train.updates': 10**6, 'train.save_every': 10**6}
    arguments = [f'--config.{key}={value}' for key, value in settings.items()]
    arguments = ['-m', 'lightpaff_jax.main', '--config=small.py', *arguments]
    logged = place / f'runs/{code}/metrics.jsonl'
    with start(2, arguments, place, DEVICES // 2) as processes:
        while not logged.exists() or logged.read_bytes().count(b'\n') < 3:
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.01)
        processes[1].send_signal(number)
        results = wait(processes, 60)
    assert [result[0] for result in results] == [code, code]
    (step,) = (int(path.name) for path in (place / f'runs/{code}/checkpoints').iterdir())
    assert [x['step'] for x in read_metrics(place, code)] == list(range(1, step + 1))
    line = f'stopped by {number.name} after update {step} of runs/{code}, saved; '
    assert results[0][2].splitlines()[-1] == f'{line}the same command resumes'
    assert results[1][1:] == ('', '')


@pytest.mark.e2e
def test_a_signal_stops_a_process_that_waits_for_the_others(place):
    variables = {'JAX_COORDINATOR_ADDRESS': free_address(), 'JAX_NUM_PROCESSES': '2'}
    process = subprocess.Popen(
        [sys.executable, '-m', 'lightpaff_jax.main', '--config=small.py'],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(JAX_PROCESS_ID='1', **variables),
    )
    with process:
        tasks = pathlib.Path(f'/proc/{process.pid}/task')
        while len(list(tasks.iterdir())) < 3:  # until the threads that connect are started
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == 'stopped by SIGTERM\n'
        assert time.monotonic() - began < 20
    assert process.returncode == 143


@pytest.mark.e2e
@pytest.mark.parametrize('index', [0, 1])
def test_missing_processes_are_reported_in_one_line(place, index):
    address = free_address()
    variables = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
    variables |= {'JAX_PROCESS_ID': str(index), 'MODE': 'absent', 'FAILING': ''}
    done = subprocess.run(
        [sys.executable, '-c', FAILING_COMMAND],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**variables),
    )
    problem = ('not all 2 processes came', 'process 0 does not answer (Connection refused)')[index]
    assert done.returncode == 2
    assert done.stderr == f'error: JAX_COORDINATOR_ADDRESS = {address}: {problem} within 1 s\n'
