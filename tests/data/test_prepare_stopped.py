"""The command that prepares datasets resumes after it was killed, interrupted or out of space."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import corpus

from lightpaff_jax import config

ROOT = pathlib.Path(config.__file__).parents[2]

# Runs the command in forks, which do not have to import everything. The text has about ten chunks
# and as many shards.
FORKS = """
import json, os, random, resource, select, signal, sys, time
from lightpaff_jax.data import prepare
from lightpaff_jax.data.prepared import tokenize_pool

tokenize_pool.CHUNK = 30_000
out, kills, limit, *argv = sys.argv[1:]
draw = random.Random(0)

def run(seconds=None):
    'Runs the command and kills it after some seconds; returns its exit code and stderr.'
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(write_end, 2)
        if int(limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        os._exit(prepare.main([f'--out={out}', *argv]))
    os.close(write_end)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stderr = b''
    while True:  # until every process that it started has closed its stderr
        assert select.select([read_end], [], [], 20)[0], 'a worker outlives its parent'
        part = os.read(read_end, 1 << 16)
        if not part:
            os.close(read_end)
            return code, stderr.decode()
        stderr += part

killed, finished, longest = [], 0, None
late = 0.9  # of the time of a run, until one is killed after its first file
while len(killed) < int(kills):
    began = time.monotonic()
    share = draw.random() if any(killed) else late
    code, _ = run(None if longest is None else share * longest)
    longest = longest or time.monotonic() - began  # the first run is not killed
    if code == -signal.SIGKILL:
        killed.append(len([name for name in os.listdir(out) if name.endswith('_record')]))
    else:
        assert code == 0, code
        finished += 1
        late *= 0.9 if longest else 1
        os.rename(out, f'{out}-{finished}')
code, stderr = run()
print(json.dumps({'killed': killed, 'finished': finished, 'code': code, 'stderr': stderr.splitlines()}))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Returns a folder with text of ten chunks and a vocabulary."""
    folder = tmp_path_factory.mktemp('prepare')
    corpus.write_random_text(folder / 'long', 300_000)
    (folder / 'vocabulary').mkdir()
    corpus.wordpiece_tokenizer(folder / 'vocabulary')
    return folder


def forks(place, out, *argv, kills=0, limit=0):
    """Runs FORKS; returns its report."""
    arguments = (
        f'--source=text:{place}/long',
        f'--tokenizer={place}/vocabulary',
        '--shard-tokens=900',
    )
    done = subprocess.run(
        [sys.executable, '-c', FORKS, str(out), str(kills), str(limit), *arguments, *argv],
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def undisturbed(place):
    """Returns the digests of the files of an uninterrupted run."""
    report = forks(place, place / 'whole', '--workers=1')
    assert report['code'] == 0
    return corpus.file_digests(place / 'whole')


@pytest.mark.e2e
@pytest.mark.parametrize(('workers', 'kills'), [(1, 10), (2, 4)])
def test_resume_after_sigkill_gives_equal_files(place, undisturbed, tmp_path, workers, kills):
    report = forks(place, tmp_path / 'set', f'--workers={workers}', kills=kills)
    assert report['code'] == 0
    assert len(report['killed']) == kills
    assert max(report['killed']) >= 1  # not all before the first file
    for folder in tmp_path.iterdir():  # every finished dataset, killed before or not
        assert corpus.file_digests(folder) == undisturbed


@pytest.mark.e2e
def test_resume_after_a_full_disk_gives_equal_files(place, undisturbed, tmp_path):
    """The third shard exceeds the largest file size that is allowed."""
    out = tmp_path / 'set'
    long = place / 'long' / 'train.txt'
    text = long.read_text()
    try:
        at = text.index('\n\n', 75_000)
        long.write_text(text[:at] + ' dog' * 150_000 + text[at:])
        report = forks(place, tmp_path / 'whole', '--workers=1')
        report = forks(place, out, '--workers=1', limit=330_000)
        assert report['code'] == 2
        (line,) = report['stderr']
        assert line.startswith(f'error: {out}/train-0000')
        assert ': cannot be written: File too large; ' in line
        assert line.endswith(' shards are kept, the same command resumes there')
        names = sorted(path.name for path in out.iterdir())
        assert names == [
            'state.json',
            'tokenizer',
            'train-00000.array_record',
            'train-00001.array_record',
        ]
        report = forks(place, out, '--workers=1')
        assert (report['code'], len(report['stderr'])) == (0, 1)
        assert corpus.file_digests(out) == corpus.file_digests(tmp_path / 'whole')
    finally:
        long.write_text(text)


@pytest.mark.e2e
@pytest.mark.parametrize('limit', [1000, 3000])
def test_full_disk_at_the_start_is_one_line(place, undisturbed, tmp_path, limit):
    report = forks(place, tmp_path / 'set', '--workers=1', limit=limit)
    assert report['code'] == 2
    (line,) = report['stderr']
    assert 'cannot be written: ' in line


INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
runpy.run_module('lightpaff_jax.data.prepare', run_name='__main__', alter_sys=True)
"""


@pytest.mark.e2e
def test_interrupt_ends_all_processes_with_one_line(place, undisturbed, tmp_path):
    out, text = tmp_path / 'set', tmp_path / 'text'
    shutil.copytree(place / 'long', text)
    long = (text / 'train.txt').read_text()
    (text / 'train.txt').write_text(long * 12)  # leaves seconds of work after the interrupt
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            INTERRUPTIBLE,
            f'--source=text:{text}',
            f'--tokenizer={place}/vocabulary',
            f'--out={out}',
            '--workers=2',
            '--shard-tokens=900',
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not list(out.glob('*.array_record')) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert err == 'stopped by SIGINT\n'
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
