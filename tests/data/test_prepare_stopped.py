"""The command that prepares a set may be stopped anywhere: the same command goes on where it was."""

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

# Forks so that each of many processes need not import everything. Its text is about ten chunks
# in as many shards.
FORKS = """
import json, os, random, resource, select, signal, sys, time
from lightpaff_jax.data import prepare
from lightpaff_jax.data.prepared import tokenize_pool

tokenize_pool.CHUNK = 100_000
out, kills, limit, *argv = sys.argv[1:]
draw = random.Random(0)

def run(seconds=None):
    'Exit code of the command, killed after so many seconds, and what it wrote to stderr.'
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(theirs, 2)
        if int(limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        os._exit(prepare.main([f'--out={out}', *argv]))
    os.close(theirs)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = b''
    while True:  # until every process that it started has closed its stderr
        assert select.select([ours], [], [], 20)[0], 'a process that tokenizes outlives its parent'
        part = os.read(ours, 1 << 16)
        if not part:
            os.close(ours)
            return code, said.decode()
        said += part

killed, finished, longest = [], 0, None
while len(killed) < int(kills):
    began = time.monotonic()
    code, _ = run(None if longest is None else draw.random() * longest)
    longest = longest or time.monotonic() - began  # of the first, which is left alone
    if code == -signal.SIGKILL:
        killed.append(len([name for name in os.listdir(out) if name.endswith('_record')]))
    else:
        assert code == 0, code
        finished += 1
        os.rename(out, f'{out}-{finished}')
code, said = run()
print(json.dumps({'killed': killed, 'finished': finished, 'code': code, 'said': said.splitlines()}))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with text of ten chunks and a vocabulary."""
    folder = tmp_path_factory.mktemp('prepare')
    corpus.write_random_text(folder / 'long', 1_000_000)
    (folder / 'vocabulary').mkdir()
    corpus.wordpiece_tokenizer(folder / 'vocabulary')
    return folder


def forks(place, out, *argv, kills=0, limit=0):
    """What FORKS prints at its end."""
    arguments = (
        f'--source=text:{place}/long',
        f'--tokenizer={place}/vocabulary',
        '--shard-tokens=900',
    )
    done = subprocess.run(
        [sys.executable, '-c', FORKS, str(out), str(kills), str(limit), *arguments, *argv],
        cwd=ROOT, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def undisturbed(place):
    """Digests of the set that nothing stops."""
    report = forks(place, place / 'whole', '--workers=1')
    assert report['code'] == 0
    return corpus.file_digests(place / 'whole')


@pytest.mark.e2e
@pytest.mark.parametrize(('workers', 'kills'), [(1, 10), (2, 4)])
def test_what_is_killed_at_any_moment_ends_with_the_same_bytes(
    place, undisturbed, tmp_path, workers, kills
):
    report = forks(place, tmp_path / 'set', f'--workers={workers}', kills=kills)
    assert report['code'] == 0
    assert len(report['killed']) == kills
    assert max(report['killed']) >= 1  # not all before the first file
    for folder in tmp_path.iterdir():  # each that came to its end, killed before or not
        assert corpus.file_digests(folder) == undisturbed


@pytest.mark.e2e
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(place, undisturbed, tmp_path):
    """A file cannot be longer than a limit that the third shard exceeds."""
    out = tmp_path / 'set'
    long = place / 'long' / 'train.txt'
    text = long.read_text()
    try:
        at = text.index('\n\n', 250_000)
        long.write_text(text[:at] + ' dog' * 150_000 + text[at:])
        report = forks(place, tmp_path / 'whole', '--workers=1')
        report = forks(place, out, '--workers=1', limit=330_000)
        assert report['code'] == 2
        (line,) = report['said']
        assert line.startswith(f'error: {out}/train-0000')
        assert ': cannot be written: File too large; ' in line
        assert line.endswith(' shards are kept, the same command resumes there')
        kept = sorted(path.name for path in out.iterdir())
        assert kept == [
            'state.json',
            'tokenizer',
            'train-00000.array_record',
            'train-00001.array_record',
        ]
        report = forks(place, out, '--workers=1')
        assert (report['code'], len(report['said'])) == (0, 1)
        assert corpus.file_digests(out) == corpus.file_digests(tmp_path / 'whole')
    finally:
        long.write_text(text)


@pytest.mark.e2e
@pytest.mark.parametrize('limit', [1000, 3000])
def test_a_disk_that_is_full_from_the_start_is_one_line(place, undisturbed, tmp_path, limit):
    report = forks(place, tmp_path / 'set', '--workers=1', limit=limit)
    assert report['code'] == 2
    (line,) = report['said']
    assert 'cannot be written: ' in line


HEARS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
runpy.run_module('lightpaff_jax.data.prepare', run_name='__main__', alter_sys=True)
"""


@pytest.mark.e2e
def test_an_interrupt_ends_every_process_with_one_line(place, undisturbed, tmp_path):
    out, text = tmp_path / 'set', tmp_path / 'text'
    shutil.copytree(place / 'long', text)
    long = (text / 'train.txt').read_text()
    (text / 'train.txt').write_text(long * 12)  # seconds of work are left when it is interrupted
    process = subprocess.Popen(
        [sys.executable, '-c', HEARS, f'--source=text:{text}',
         f'--tokenizer={place}/vocabulary', f'--out={out}', '--workers=2', '--shard-tokens=900'],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(out.glob('*.array_record')) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert err == 'error: interrupted; the same command goes on where this one stopped\n'
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
