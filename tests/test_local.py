"""launch/local.sh: processes on this machine as if they were hosts."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.processes import ROOT, environment


def local(*words, **changes):
    """launch/local.sh, as a context."""
    return subprocess.Popen(
        [ROOT / 'launch/local.sh', *words], text=True, start_new_session=True,
        env=environment(PYTHON=sys.executable, **changes),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ran(*words, **changes):
    """(exit code, stdout, stderr) of launch/local.sh."""
    with local(*words, **changes) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.e2e
def test_local_runs_as_many_hosts_and_says_whose_a_line_is():
    said = 'echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES $JAX_PLATFORMS $XLA_FLAGS; echo no >&2'
    code, out, err = ran('3', 'bash', '-c', said, DEVICES='2')
    assert code == 0
    flag = 'cpu --xla_force_host_platform_device_count=2'
    assert sorted(out.splitlines()) == [
        f'0 of 3 {flag}',
        f'[1] 1 of 3 {flag}',
        f'[2] 2 of 3 {flag}',
    ]
    assert sorted(err.splitlines()) == ['[1] no', '[2] no', 'no']


@pytest.mark.e2e
def test_local_ends_all_when_one_fails_with_its_exit_code(tmp_path):
    script = f"""
    if [[ $JAX_PROCESS_ID == 1 ]]; then exit 7; fi
    if [[ $JAX_PROCESS_ID == 2 ]]; then sleep 1; exit 8; fi
    trap '' TERM
    sleep 60 &
    echo $! $$ >{tmp_path}/pids
    wait
    """
    began = time.monotonic()
    assert ran('3', 'bash', '-c', script)[0] == 7
    assert time.monotonic() - began < 40  # 9 to end by themselves, 3 more after SIGTERM
    for pid in (tmp_path / 'pids').read_text().split():
        assert not pathlib.Path(f'/proc/{pid}').exists() or 'zombie' in status(pid)


def status(pid):
    return re.search(r'State:.*', pathlib.Path(f'/proc/{pid}/status').read_text())[0]


@pytest.mark.e2e
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_ends_all_when_it_is_interrupted(number):
    with local('2', 'bash', '-c', 'echo $$; exec sleep 60') as process:
        pids = [process.stdout.readline().split()[-1] for _ in range(2)]
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 130
    for pid in pids:
        assert not pathlib.Path(f'/proc/{pid}').exists()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('words', 'changes', 'line'),
    [
        (('2',), {}, '2: must be N COMMAND [ARGUMENT ...], N at least 1'),
        (('0', 'true'), {}, '0 true: must be N COMMAND [ARGUMENT ...], N at least 1'),
        (('two', 'true'), {}, 'two true: must be N COMMAND [ARGUMENT ...], N at least 1'),
        (('2', './none'), {}, './none: No such file or directory'),
        (('2', 'true'), {'DEVICES': 'x'}, 'DEVICES = x: must be a whole number, at least 1'),
    ],
)
def test_local_names_a_mistake(words, changes, line):
    assert ran(*words, **changes) == (2, '', f'error: {line}\n')
    code, out, err = ran('--help')
    assert (code, err) == (0, '')
    assert out.startswith('./launch/local.sh N COMMAND')
