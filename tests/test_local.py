"""launch/local.sh: processes of this machine that act as hosts."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.processes import ROOT, environment

from lightpaff_jax import local as local_module


def local(*words, **changes):
    """Starts launch/local.sh in a session of its own, so a signal does not reach the tests."""
    return subprocess.Popen(
        [ROOT / 'launch/local.sh', *words],
        env=environment(PYTHON=sys.executable, **changes),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words, **changes):
    """Runs launch/local.sh; returns its exit code, stdout and stderr."""
    with local(*words, **changes) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.e2e
def test_local_prefixes_lines_with_the_process_index():
    script = 'echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES $JAX_PLATFORMS $XLA_FLAGS; echo no >&2'
    code, out, err = run('3', 'bash', '-c', script, DEVICES='2')
    assert code == 0
    flag = 'cpu --xla_force_host_platform_device_count=2'
    assert sorted(out.splitlines()) == [
        f'0 of 3 {flag}',
        f'[1] 1 of 3 {flag}',
        f'[2] 2 of 3 {flag}',
    ]
    assert sorted(err.splitlines()) == ['[1] no', '[2] no', 'no']


LOST_COORDINATOR = """
import os, signal, sys, time
from lightpaff_jax.runtime import distributed

distributed.initialize()
if distributed.is_primary():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.e2e
def test_local_prints_one_line_when_jax_aborts_a_process():
    code, out, err = run('3', sys.executable, '-c', LOST_COORDINATOR)
    assert code == 128 + signal.SIGKILL
    assert out == ''
    lost = 'error: lost process 0, which has ended'
    assert sorted(err.splitlines()) == [f'[1] {lost}', f'[2] {lost}']


@pytest.mark.e2e
def test_local_stops_all_when_a_process_fails(tmp_path):
    script = f"""
    if [[ $JAX_PROCESS_ID == 1 ]]; then exit 7; fi
    if [[ $JAX_PROCESS_ID == 2 ]]; then sleep 1; exit 8; fi
    trap '' TERM
    sleep 60 &
    echo $! $$ >{tmp_path}/pids
    wait
    """
    start_time = time.monotonic()
    assert run('3', 'bash', '-c', script)[0] == 7
    # Processes have 9 s to exit by themselves and 3 s more after SIGTERM.
    assert time.monotonic() - start_time < 40
    for pid in (tmp_path / 'pids').read_text().split():
        assert not pathlib.Path(f'/proc/{pid}').exists() or 'zombie' in status(pid)


def status(pid):
    return re.search(r'State:.*', pathlib.Path(f'/proc/{pid}/status').read_text())[0]


@pytest.mark.e2e
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_stops_all_when_interrupted(number):
    with local('2', 'bash', '-c', 'echo $$; exec sleep 60') as process:
        pids = [process.stdout.readline().split()[-1] for _ in range(2)]
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 128 + number
    for pid in pids:
        assert not pathlib.Path(f'/proc/{pid}').exists()


def is_alive(pid):
    """Returns whether a process runs; its parent may not have read its exit code yet."""
    return pathlib.Path(f'/proc/{pid}').exists() and 'zombie' not in status(pid)


@pytest.mark.e2e
def test_local_passes_a_signal_on_and_waits_for_the_save():
    script = "trap 'sleep 0.5; echo saved; exit 143' TERM; echo $$; while true; do sleep 0.1; done"
    with local('2', 'bash', '-c', script) as process:
        pids = [process.stdout.readline().split()[-1] for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, sorted(out.splitlines()), err) == (143, ['[1] saved', 'saved'], '')
    assert not any(map(is_alive, pids))


@pytest.mark.e2e
def test_local_kills_all_at_the_second_signal():
    script = "trap '' TERM INT; sleep 60 & echo $! $$; wait; sleep 60"
    with local('2', 'bash', '-c', script) as process:
        pids = [pid for _ in range(2) for pid in process.stdout.readline().split()[-2:]]
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(map(is_alive, pids))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('words', 'changes', 'line'),
    [
        (('2',), {}, '2: must be N COMMAND [ARGUMENT ...]'),
        (('0', 'true'), {}, 'N = 0: must be a whole number, at least 1 and at most 1024'),
        (('two', 'true'), {}, 'N = two: must be a whole number, at least 1 and at most 1024'),
        (('1025', 'true'), {}, 'N = 1025: must be a whole number, at least 1 and at most 1024'),
        (('2', './none'), {}, './none: No such file or directory'),
        (
            ('2', 'true'),
            {'DEVICES': 'x'},
            'DEVICES = x: must be a whole number, at least 1 and at most 1024',
        ),
    ],
)
def test_local_refuses_an_invalid_argument_in_one_line(words, changes, line):
    assert run(*words, **changes) == (2, '', f'error: {line}\n')
    code, out, err = run('--help')
    assert (code, err) == (0, '')
    assert out.startswith('./launch/local.sh N COMMAND')


@pytest.mark.parametrize('number', ['1025', 5000 * '1'])
def test_too_many_processes_are_refused_in_one_line(number, capsys, monkeypatch):
    rule = 'must be a whole number, at least 1 and at most 1024'
    assert local_module.main([number, 'true']) == 2
    assert capsys.readouterr().err == f'error: N = {number:.40}: {rule}\n'
    monkeypatch.setenv('DEVICES', number)
    assert local_module.main(['2', 'true']) == 2
    assert capsys.readouterr().err == f'error: DEVICES = {number:.40}: {rule}\n'
