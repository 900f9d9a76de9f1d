"""Processes that make one run: what they find, that they are one, and that none is left behind."""

import contextlib
import json
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

UPDATES, SAVED = 6, 3  # of the runs made here, and where another number of processes goes on
BATCH, MICRO, DEVICES = 16, 2, 4

SMALL = f"""
'''A language model of a few thousand parameters, on text beside this file.'''
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
    c.optim.eps = 1e-3  # less makes updates of the noise of zero gradients
    return c
"""

# A command that keeps the batches it trains on, as NUMBER-of-NUMBERS-UPDATE.npz.
RECORDED = """
import os, pathlib, sys
import jax, numpy
from lightpaff_jax import main
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import distributed
from lightpaff_jax.data import batches

training = batches.training

def recorded(c, prepared, tokenizer, start, rows):
    for n, batch in enumerate(training(c, prepared, tokenizer, start, rows), start):
        name = f'{distributed.process_index()}-of-{distributed.process_count()}-{n}'
        numpy.savez(pathlib.Path(os.environ['RECORD']) / name, *jax.tree.leaves(batch))
        yield batch

batches.training = recorded
sys.exit(flags.main(main.run, '', sys.argv[1:]))
"""

# Meshes that do not follow the order of the processes, as on TPUs: what each holds, and whether it
# is where it belongs.
SCATTERED = """
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
    placed = sharding.put_batch(mesh, whole[:, rows], micro=True)
    parts = placed.addressable_shards
    right = all(numpy.array_equal(part.data, whole[part.index]) for part in parts)
    print(json.dumps([rows.tolist(), placed.shape, right]), flush=True)
distributed.shutdown()
"""

# A command in which the processes of FAILING fail in one way, and the others wait.
FAILING = """
import os, sys, time
me, mode = os.environ['JAX_PROCESS_ID'], os.environ['MODE']
failing = me in os.environ['FAILING'].split(',')
argv = ['--config=small.py']
if failing and mode == 'a wrong key':
    argv.append('--config.train.updatse=3')
if failing and mode == 'another value':
    argv.append('--config.train.updates=3')
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import cluster, distributed
cluster.JOIN_TIMEOUT, cluster.HEARTBEAT_TIMEOUT = 4, 8

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
    if failing and mode == 'a bug':
        1 / 0
    if failing and mode == 'a mistake':
        from lightpaff_jax.config import UserError
        raise UserError('config.x = 3: must be 4')
    if mode == 'killed':
        print('ready', flush=True)
        time.sleep(100)  # in no collective, which would notice at once
    multihost_utils.process_allgather(numpy.ones(3))

sys.exit(flags.main(run, '', argv))
"""


def free_address():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return f'127.0.0.1:{server.getsockname()[1]}'


@contextlib.contextmanager
def started(number, words, cwd, devices=1, **changes):
    """Processes of `python WORDS`; they are gone afterwards."""
    quick = ' '.join(f'--{name}={value}'.lower() for name, value in QUICK.items())
    flags = f'--xla_force_host_platform_device_count={devices} {quick}'
    several = {'JAX_COORDINATOR_ADDRESS': free_address(), 'JAX_NUM_PROCESSES': str(number)}
    running = [
        subprocess.Popen(
            [sys.executable, *words], cwd=cwd, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(XLA_FLAGS=flags, JAX_PROCESS_ID=str(k), **several, **changes),
        )
        for k in range(number)
    ]  # fmt: skip
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def outcomes(running, limit):
    """(exit code, stdout, stderr) of each; all must end within the limit, in seconds."""
    until, found = time.monotonic() + limit, []
    for process in running:
        out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
        found.append((process.returncode, out, err))
    return found


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with small.py, its text, and runs/1, runs/2: by as many processes, undisturbed."""
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'small.py').write_text(SMALL)
    (folder / 'text').mkdir()
    (folder / 'batches').mkdir()
    draw = random.Random(0)
    words = [''.join(draw.choices('abcdefgh', k=draw.randint(2, 6))) for _ in range(60)]
    for split, documents in (('train', 60), ('validation', 12), ('test', 12)):
        texts = [' '.join(draw.choices(words, k=30)) for _ in range(documents)]
        (folder / f'text/{split}.txt').write_text('\n\n'.join(texts) + '\n')
    for number in (1, 2):
        train(folder, number)
    return folder


def train(folder, number):
    """A run by so many processes; only process 0 says anything but its errors."""
    words = ['-c', RECORDED, '--config=small.py', f'--config.workdir=runs/{number}']
    record = str(folder / 'batches')
    with started(number, words, folder, DEVICES // number, RECORD=record) as running:
        (code, out, err), *others = outcomes(running, 240)
    assert code == 0, err
    assert out.splitlines()[-1] == f'runs/{number}/result.json'
    assert len(out.splitlines()) == 3
    assert others == [(0, '', '')] * (number - 1)


@pytest.fixture(scope='module')
def resumed(place):
    """runs/4: the state that 2 processes saved, gone on from by 4."""
    shutil.copytree(place / 'runs/2', place / 'runs/4')
    shutil.rmtree(place / f'runs/4/checkpoints/{UPDATES}')
    (place / 'runs/4/result.json').unlink()
    train(place, 4)
    return place


def recorded(folder, number, update):
    """The arrays of a global batch, put together from what each process had."""
    parts = [np.load(folder / f'batches/{k}-of-{number}-{update}.npz') for k in range(number)]
    return [np.concatenate([part[name] for part in parts], 1) for name in parts[0].files]


@pytest.mark.e2e
def test_1_2_and_4_processes_train_on_the_same_global_batches(resumed):
    c = flags.parse([f'--config={resumed}/small.py'])
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    for update in range(UPDATES):
        wanted = jax.tree.leaves(corpus.batch_at(c, prepared, tokenizer, update))
        assert wanted[0].shape[:2] == (MICRO, BATCH // MICRO)
        for number in (1, 2) if update < SAVED else (1, 2, 4):
            found = recorded(resumed, number, update)
            for x, y in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(x, y)


def lines(folder, number):
    text = (folder / f'runs/{number}/metrics.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same_metrics(a, b):
    """To rounding: the order in which devices add float32 sums depends on the processes."""
    assert [(x['step'], x['kind'], x.keys()) for x in a] == [
        (x['step'], x['kind'], x.keys()) for x in b
    ]
    for x, y in zip(a, b, strict=True):
        for name in x.keys() - {'kind'}:
            assert x[name] == pytest.approx(y[name], rel=2e-5), (x['step'], name)


def assert_same_parameters(folder, one, other):
    found = [
        fingerprint.flatten(checkpoint.Reader(folder / f'runs/{number}/checkpoints').read_params())
        for number in (one, other)
    ]
    largest = max(float(abs(x).max()) for x in found[0].values())
    assert found[0].keys() == found[1].keys()
    for name, x in found[0].items():
        difference = float(abs(np.asarray(x) - np.asarray(found[1][name])).max())
        assert difference <= 1e-5 * largest, name


@pytest.mark.e2e
def test_2_processes_learn_what_1_learns_on_as_many_devices(place):
    assert_same_metrics(lines(place, 1), lines(place, 2))
    assert_same_parameters(place, 1, 2)
    of_1, of_2 = (json.loads((place / f'runs/{n}/result.json').read_text()) for n in (1, 2))
    assert (of_1['processes'], of_2['processes']) == (1, 2)
    for name in ('data_hash', 'tokenizer_hash', 'tokens', 'updates', 'flops'):
        assert of_1[name] == of_2[name]


@pytest.mark.e2e
def test_what_2_processes_saved_4_go_on_from_as_if_they_had_been_2(resumed):
    assert_same_metrics(lines(resumed, 2), lines(resumed, 4))
    assert_same_parameters(resumed, 2, 4)


@pytest.mark.e2e
def test_on_a_mesh_in_another_order_each_process_reads_the_rows_that_its_devices_hold(tmp_path):
    with started(2, ['-c', SCATTERED], tmp_path, 2) as running:
        found = outcomes(running, 100)
    assert [code for code, *_ in found] == [0, 0], found[0][2] + found[1][2]
    every = list(range(8))
    mine = ([0, 1, 4, 5], [0, 1, 4, 5], every), ([2, 3, 6, 7], [2, 3, 6, 7], every)
    for (_, out, _), rows in zip(found, mine, strict=True):
        assert [json.loads(line) for line in out.splitlines()] == [[r, [2, 8], True] for r in rows]


# Ends.

FAILURES = {
    # mode: who fails, exit code, last line of process 0, of process 1
    'a mistake': ('1', 2, 'process 1: config.x = 3: must be 4', 'config.x = 3: must be 4'),
    'a wrong key': (
        '0,1',
        2,
        'config.train.updatse: no such key; did you mean updates?',
        None,
    ),
    'another value': (
        '1',
        2,
        'process 1: config.train.updates = 3, process 0 has 6: all processes must be started by '
        'the same command',
        None,
    ),
    'no permission': (
        '1',
        2,
        f'process 1: {{}}/runs/2/checkpoints/{UPDATES}: digests: cannot be read: '
        'PermissionError: not yours',
        None,
    ),
    'a bug': (
        '0',
        1,
        'ZeroDivisionError: division by zero',
        'process 0: ZeroDivisionError: division by zero',
    ),
}


@pytest.mark.e2e
@pytest.mark.parametrize('mode', FAILURES)
def test_when_one_fails_all_end_with_a_line_and_it_is_said_once_if_all_have_it(place, mode):
    failing, code, of_0, of_1 = FAILURES[mode]
    words = ['-c', FAILING]
    with started(2, words, place, MODE=mode, FAILING=failing) as running:
        found = outcomes(running, 60)  # mostly imports; the others end in 2 seconds
    assert [code for code, _, _ in found] == [code, code]
    assert [out for _, out, _ in found] == ['', '']
    errors = [err.splitlines() for _, _, err in found]
    assert errors[0][-1] == f'error: {of_0.format(place)}'
    assert errors[1] == ([] if of_1 is None else [f'error: {of_1}'])
    assert len(errors[0]) == 1 or mode == 'a bug'  # a traceback comes before its line


@pytest.mark.e2e
def test_when_one_is_killed_while_they_train_the_other_ends_within_the_heartbeats_limit(place):
    code = (
        'import sys\n'
        'from lightpaff_jax import main\n'
        'from lightpaff_jax.config import flags\n'
        'from lightpaff_jax.runtime import cluster\n'
        'cluster.HEARTBEAT_TIMEOUT = 8\n'
        "sys.exit(flags.main(main.run, '', sys.argv[1:]))\n"
    )
    words = ['-c', code, '--config=small.py', '--config.train.updates=1000000',
             '--config.train.save_every=1000000', '--config.workdir=runs/killed']  # fmt: skip
    with started(2, words, place, DEVICES // 2) as running:  # whose programs are compiled
        line = running[0].stderr.readline()
        assert line.startswith('update 1/'), line + running[0].stderr.read()
        running[1].kill()
        began = time.monotonic()
        ((code, _, err),) = outcomes(running[:1], 60)
        assert time.monotonic() - began < 8 + 20
    # The collective fails, which is said in one line; or some device waits in it, and jax aborts.
    said = 'error: lost another process, which has ended (' in err
    assert (code, said) in ((1, True), (-signal.SIGABRT, False))


@pytest.mark.e2e
@pytest.mark.parametrize(('victim', 'limit'), [(1, 8), (0, 0)])
def test_one_that_is_killed_while_the_other_waits_for_nothing_is_missed_too(place, victim, limit):
    """Process 0 misses heartbeats, here for 8 s; with process 0 the coordinator is gone at once."""
    with started(2, ['-c', FAILING], place, MODE='killed', FAILING='') as running:
        for process in running:
            assert process.stdout.readline() == 'ready\n'
        running[victim].kill()
        began = time.monotonic()
        ((code, _, err),) = outcomes(running[1 - victim :][:1], 60)
        assert time.monotonic() - began < limit + 20
    assert code == -signal.SIGABRT  # jax sees to it, in words of its own
    assert 'another task died' in err


@pytest.mark.e2e
@pytest.mark.parametrize('own', [0, 1])
def test_processes_that_do_not_come_are_missed_in_one_line(place, own):
    address = free_address()
    several = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
    done = subprocess.run(
        [sys.executable, '-c', FAILING], cwd=place, capture_output=True, text=True, timeout=60,
        env=environment(**several, JAX_PROCESS_ID=str(own), MODE='', FAILING=''),
    )  # fmt: skip
    missing = ('not all 2 processes came', 'process 0 does not answer (Connection refused)')[own]
    assert done.returncode == 2
    assert done.stderr == f'error: JAX_COORDINATOR_ADDRESS = {address}: {missing} within 4 s\n'
