"""Runs a command as N processes on this machine, which behave like N hosts (launch/local.sh)."""

import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError, whole_number

USAGE = """
./launch/local.sh N COMMAND [ARGUMENT ...]

Runs a command as N processes (at most 1024) on this machine's CPUs; they behave like N hosts of one
run. Lines of process 0 are unchanged; lines of the others begin with [1], [2] ... If one process
fails, all end.
The exit code is that of the first process that failed. SIGINT (Ctrl-C) and SIGTERM are passed on:
a run saves its present update and ends. A second signal kills all processes.

  ./launch/local.sh 2 python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny_teacher

  DEVICES        optional number of devices per process; default: 1
  JAX_PLATFORMS  optional kind of device; default: cpu
"""

# Seconds from a failure to SIGTERM, and from SIGTERM to SIGKILL. The other processes end by
# themselves in about two seconds and print the reason; process 0 in five if one was killed.
GRACE, END = 9.0, 3.0
_MOST = 1024  # processes, and devices of each: more would exhaust the machine before an error
# What jax logs when process 0, which has the coordinator, is lost: errors, then how it aborts.
_ERROR = re.compile(
    rb'E\d{4} [\d:.]+ +\d+ (preemption_sync_manager|coordination_service_agent)\.cc:'
)
_ABORT = re.compile(rb'F\d{4} [\d:.]+ +\d+ client\.h:\d+\] Terminating process because the JAX')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Arguments after the first belong to the command to run, --help included.
    return flags.execute(lambda _: _run(argv), USAGE, argv[:1])


def _run(argv: Sequence[str]) -> int:
    number, *command = argv
    if not command:
        raise UserError(f'{number:.40}: must be N COMMAND [ARGUMENT ...]')
    count = whole_number('N', number, 1, _MOST)
    devices = whole_number('DEVICES', os.environ.get('DEVICES', '1'), 1, _MOST)
    # An exception in a signal handler could lose a process that has just started.
    signals: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: signals.append(number))
    environment = _environment(count, devices)
    processes: list[subprocess.Popen] = []
    threads: list[threading.Thread] = []
    try:
        for k in range(count):
            environment['JAX_PROCESS_ID'] = str(k)
            processes.append(_start(command, environment, k, threads))
        return _wait(processes, signals)
    finally:
        _end(processes)
        for thread in threads:
            thread.join()


def _environment(processes: int, devices: int) -> dict[str, str]:
    with socket.create_server(('127.0.0.1', 0)) as server:  # finds a free port for process 0
        port = server.getsockname()[1]
    count = '--xla_force_host_platform_device_count'
    xla_flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if count not in flag]
    return {
        'JAX_PLATFORMS': 'cpu',
        **os.environ,
        'XLA_FLAGS': ' '.join([*xla_flags, f'{count}={devices}']),
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(processes),
    }


def _start(
    command: Sequence[str], environment: dict[str, str], k: int, threads: list[threading.Thread]
) -> subprocess.Popen:
    """Starts process k in its own process group; adds the threads that copy its output."""
    pipe = subprocess.PIPE if k else None
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
    for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        if source is not None:
            threads.append(threading.Thread(target=_copy_lines, args=(k, source, target)))
            threads[-1].start()
    return process


def _copy_lines(k: int, source: IO[bytes], target: IO[str]) -> None:
    for line in source:
        if _ERROR.match(line):
            continue
        aborts = _ABORT.match(line)
        text = 'error: lost process 0, which has ended' if aborts else line.decode(errors='replace')
        target.write(f'[{k}] {text.rstrip()}\n')
        target.flush()
        if aborts:  # jax's stack trace follows
            collections.deque(source, maxlen=0)


def _wait(processes: Sequence[subprocess.Popen], signals: Sequence[int]) -> int:
    """Waits for all processes, or GRACE seconds after a failure; returns the first failed exit code.

    Passes the first of `signals` on; kills all processes at the second.
    """
    failed, deadline, passed = 0, float('inf'), False
    while time.monotonic() < deadline:
        if signals and not passed:
            passed = True
            for process in processes:
                process.send_signal(signals[0])
        if len(signals) > 1:
            _kill(processes)
            return 128 + signals[0]
        codes = [process.poll() for process in processes]
        errors = [code for code in codes if code]
        if errors and not failed:
            failed = errors[0] if errors[0] > 0 else 128 - errors[0]  # a shell's code for a signal
            deadline = time.monotonic() + GRACE
        if None not in codes:
            break
        time.sleep(0.05)
    return failed


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + END
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    _kill(processes)


def _kill(processes: Sequence[subprocess.Popen]) -> None:
    """Kills the processes and their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == '__main__':
    sys.exit(main())
