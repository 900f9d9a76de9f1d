"""N processes on this machine, as if they were N hosts: what launch/local.sh runs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError

USAGE = """
./launch/local.sh N COMMAND [ARGUMENT ...]

Runs N processes of a command on this machine as N hosts of one run, on CPUs. Process 0 writes as it
would alone, the others with [1], [2] ... before each line. When one fails, or on Ctrl-C, all end;
the exit code is that of the first that failed.

  ./launch/local.sh 2 python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny_teacher

  DEVICES        devices of each process (1)
  JAX_PLATFORMS  another kind of device than cpu
"""

# Seconds. Processes end by themselves in about two when one failed, each with a line that says why,
# process 0 after five where one was killed. SIGTERM ends a training at once.
GRACE, END = 9.0, 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # The arguments after the first are those of another command, so --help there is not ours.
    return flags.execute(lambda _: _run(argv), USAGE, argv[:1])


def _run(argv: Sequence[str]) -> int:
    """Runs the processes; returns the exit code of the first that failed, or 0."""
    number, *command = argv
    devices = os.environ.get('DEVICES', '1')
    if not number.isdecimal() or int(number) < 1 or not command:
        raise UserError(f'{" ".join(argv)}: must be N COMMAND [ARGUMENT ...], N at least 1')
    if not devices.isdecimal() or int(devices) < 1:
        raise UserError(f'DEVICES = {devices}: must be a whole number, at least 1')
    stop = threading.Event()  # an exception could come between a process and its place in the list
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: stop.set())
    environment = _environment(int(number), devices)
    processes: list[subprocess.Popen] = []
    threads: list[threading.Thread] = []
    try:
        for k in range(int(number)):
            environment['JAX_PROCESS_ID'] = str(k)
            process, readers = _started(command, environment, k)
            processes.append(process)
            threads += readers
        return _watched(processes, stop)
    finally:
        _end(processes)
        for thread in threads:
            thread.join()


def _environment(processes: int, devices: str) -> dict[str, str]:
    with socket.create_server(('127.0.0.1', 0)) as server:  # closed again: process 0 takes the port
        port = server.getsockname()[1]
    count = '--xla_force_host_platform_device_count'
    flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if count not in flag]
    return {
        'JAX_PLATFORMS': 'cpu',
        **os.environ,
        'XLA_FLAGS': ' '.join([*flags, f'{count}={devices}']),
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(processes),
    }


def _started(command: Sequence[str], environment: dict[str, str], k: int):
    """Process k, in a group of its own, and the threads that pass on what it writes."""
    pipe = subprocess.PIPE if k else None
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        start_new_session=True,
    )  # fmt: skip
    streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr)) if k else ()
    threads = [
        threading.Thread(target=_pass_on, args=(k, source, target)) for source, target in streams
    ]
    for thread in threads:
        thread.start()
    return process, threads


def _pass_on(k: int, source: IO[bytes], target: IO[str]) -> None:
    for line in source:
        target.write(f'[{k}] {line.decode(errors="replace").rstrip()}\n')
        target.flush()


def _watched(processes: Sequence[subprocess.Popen], stop: threading.Event) -> int:
    """Waits until all have ended, or some seconds after the first that failed; its exit code."""
    failed, until = 0, float('inf')
    while time.monotonic() < until:
        if stop.is_set():
            return 130
        codes = [process.poll() for process in processes]
        bad = [code for code in codes if code]
        if bad and not failed:
            failed = bad[0] if bad[0] > 0 else 128 - bad[0]  # as a shell says of a signal
            until = time.monotonic() + GRACE
        if None not in codes:
            break
        time.sleep(0.05)
    return failed


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends what still runs, and what that started."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + END
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == '__main__':
    sys.exit(main())
