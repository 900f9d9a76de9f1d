"""Runs several processes as one: keeps them in step, and ends them together.

In a run of one process every function returns at once. Processes exchange values through the
key-value store of jax's coordinator, which is part of process 0, and not through devices. So this
works before the first collective, and waiting has no time limit.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from lightpaff_jax.errors import UserError, printable
from lightpaff_jax.runtime import cluster, interrupts

T = TypeVar('T')

# Seconds between the failure of a process and the exit of the others: to notice it (_POLL), to meet
# the same error themselves (_GRACE), and for process 0, which holds the key-value store, to wait
# for the others (_LEAVE).
_POLL, _GRACE, _LEAVE = 0.5, 1.5, 5.0

_ROOT = 'lightpaff_jax'
_SIGNAL = f'{_ROOT}/signal'
_PREEMPTION = 'RECEIVED_PREEMPTION_NOTICE'  # jax's own key
_calls = itertools.count()
_stop_calls = itertools.count(1)
_watch: '_Watch | None' = None
_synced = False
_stopping = False  # whether all processes have agreed to stop


def process_count() -> int:
    """Returns the number of processes of this run."""
    return 1 if 'jax' not in sys.modules else _state().num_processes


def process_index() -> int:
    """Returns the number of this process, from 0."""
    return 0 if 'jax' not in sys.modules else _state().process_id


def is_primary() -> bool:
    """Returns whether this is process 0, which prints and writes files."""
    return process_index() == 0


def log_primary(text: str) -> None:
    """Prints a line of the results on process 0."""
    if is_primary():
        print(text, flush=True)


def initialize() -> None:
    """Joins the other processes of the environment. Call it before any device is used.

    Raises:
      UserError: the environment is invalid, or no coordinator answers.
    """
    global _watch
    processes = cluster.detect(os.environ)
    if processes is None or _watch is not None:
        return
    # The service that takes SIGTERM would log it as a warning; the level is read at the import.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    cluster.join(processes)
    interrupts.disown(signal.SIGTERM)
    if process_count() > 1:
        _watch = _Watch()


def sync_devices() -> None:
    """Connects the devices of all processes; the first call needs all processes at the same time.

    On CPUs the connection has a limit of 30 s. Without this call, a process that prepares data for
    minutes would exceed it.

    Raises:
      UserError: the processes have different devices.
    """
    global _synced
    if process_count() == 1 or _synced:
        return
    _synced = True
    import jax
    from jax.experimental import multihost_utils

    devices = f'{jax.local_device_count()} of {jax.local_devices()[0].device_kind}'
    assert_equal({'devices': devices}, 'all processes must have the same')
    _redirect_native_stdout()
    multihost_utils.sync_global_devices(_ROOT)


def _redirect_native_stdout() -> None:
    """Discards what native code writes to file descriptor 1, where gloo reports its connections."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1, encoding=sys.stdout.encoding)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def all_gather(value: Any) -> list[Any]:
    """Returns the JSON `value` of every process, by process number.

    All processes must make the calls of this function in the same order.
    """
    if process_count() == 1:
        return [value]
    number, client = next(_calls), _client()
    folder = f'{_ROOT}/{number}'
    client.key_value_set(f'{folder}/of/{process_index()}', json.dumps(value))
    if not is_primary():
        return json.loads(_wait(f'{folder}/all', 1)[0])
    values = [json.loads(text) for text in _wait(f'{folder}/of', process_count())]
    client.key_value_set(f'{folder}/all/0', json.dumps(values))
    if number:  # every process is in this call, so all have read the values of the previous one
        client.key_value_delete(f'{_ROOT}/{number - 1}')
    return values


def assert_equal(values: Mapping[str, Any], rule: str) -> None:
    """Raises UserError on every process if one has other values than process 0."""
    first, *others = all_gather(dict(values))
    for number, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(
                    f'process {number}: {name} = {other[name]}, process 0 has {value}: {rule}'
                )


def broadcast_from_primary(call: Callable[[], T]) -> T:
    """Calls `call` on process 0 only; returns its JSON result on every process."""
    if process_count() == 1:
        return call()
    return all_gather(call() if is_primary() else None)[0]


def _wait(folder: str, number: int) -> list[str]:
    """Waits for `number` keys in a folder; returns their values by the number that ends the key."""
    pause = 0.002
    while len(entries := _client().key_value_dir_get(folder)) < number:
        time.sleep(pause)  # waiting inside jax would not notice Ctrl-C
        pause = min(1.5 * pause, 0.25)
    return [text for _, text in sorted(entries, key=lambda entry: _number(entry[0]))]


def _number(key: str) -> int:
    return int(key.rpartition('/')[2])


def shutdown() -> None:
    """Waits for all processes without a time limit, then disconnects from them."""
    global _watch
    if _watch is None:
        return
    import jax

    all_gather(None)
    _watch.stop()
    _watch = None
    jax.distributed.shutdown()


def exit_with_error(text: str, code: int, lost: bool = False) -> int:
    """Prints an error in one line on stderr, and ends all processes.

    The others end within about two seconds with a line that names this process and its error. If
    several processes have the same error, only process 0 prints it.

    Args:
      text: the error.
      code: the exit code.
      lost: whether the error is that another process has ended. If that process reported an error,
        this one ends with it.

    Returns:
      The exit code in a run of one process; otherwise this process exits.
    """
    text = printable(text)
    if _watch is None:
        print(f'error: {text}', file=sys.stderr)
        return code
    _watch.leave(text, code, lost)
    raise AssertionError('leave does not return')


def exit_stopped(stop: interrupts.Stopped) -> int:
    """Prints the line of a stop and returns its exit code; several processes exit as after an error."""
    if _watch is not None:
        return exit_with_error(str(stop), stop.code)
    if is_primary():
        print(printable(str(stop)), file=sys.stderr)
    return stop.code


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal for which all processes stop, or 0.

    All processes must make the calls in the same order, until one returns a signal. From the first
    call on, a signal waits for a later call; a process that is not in this context stops at once.
    With several processes jax handles SIGTERM and agrees on a call. SIGINT is sent to all
    processes, which raise it as SIGTERM.
    """
    if _watch is None:
        with interrupts.deferred() as received:
            yield received
        return
    from jax.experimental import multihost_utils

    with interrupts.deferred(_share_signal) as received:

        def agreed() -> int:
            global _stopping
            received()
            _stopping = _stopping or multihost_utils.reached_preemption_sync_point(
                next(_stop_calls)
            )
            return _shared_signal() if _stopping else 0

        yield agreed


def _share_signal(number: int) -> None:
    with contextlib.suppress(Exception):  # another process has ended, so this one ends too
        _client().key_value_set(_SIGNAL, str(number), allow_overwrite=True)
        signal.raise_signal(signal.SIGTERM)


def _shared_signal() -> int:
    return int(_get(_SIGNAL) or signal.SIGTERM)


def _get(key: str) -> str | None:
    with contextlib.suppress(Exception):  # absent, or process 0 has ended
        return _client().key_value_try_get(key)
    return None


def is_peer_failure(error: BaseException) -> bool:
    """Returns whether a collective or the coordinator failed because another process has ended."""
    signs = ('Gloo ', 'coordination service', 'Socket closed', 'NCCL ')
    return _watch is not None and any(sign in str(error) for sign in signs)


class _Watch:
    """A thread that ends this process when another one has failed."""

    def __init__(self) -> None:
        self._client = _client()
        self._index, self._count = process_index(), process_count()
        self._stopped = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._stopped.wait(_POLL):
            failures = self._failures()
            if failures:
                self._stopped.wait(_GRACE)
                self.leave(*_first(failures), follows=True)
            elif not (interrupts.is_deferred() or _stopping) and _get(_PREEMPTION):
                stop = interrupts.Stopped(_shared_signal())
                self.leave(str(stop), stop.code)

    def stop(self) -> None:
        """Ends the thread before the interpreter ends, when it must not be inside jax."""
        self._stopped.set()
        self._thread.join()

    def leave(self, text: str, code: int, follows: bool = False) -> None:
        """Prints the error, unless process 0 prints the same one, and exits. Process 0 exits last.

        Args:
          text: the error.
          code: the exit code.
          follows: whether to end with the error of a process that failed before, if there is one.
        """
        self._leaving.acquire()  # never released: a second thread waits here for the exit
        failures = self._failures() if follows else {}
        if failures:
            text, code = _first(failures)
        else:
            self._set('failed', json.dumps([text, code]))
        if failures or not self._primary_reports(text):
            print(f'error: {text}', file=sys.stderr, flush=True)
        self._set('ended', '')
        if self._index == 0:
            deadline = time.monotonic() + _LEAVE  # a killed process does not report its end
            while len(self._get('ended')) < self._count and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)  # for their exit
        # Exit handlers are skipped, as jax's would wait minutes for the processes that have ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _primary_reports(self, text: str) -> bool:
        """Returns whether process 0 has this error too; waits a moment for it."""
        deadline = time.monotonic() + _GRACE
        while self._index and time.monotonic() < deadline:
            if 0 in (failures := self._failures()):
                return failures[0][0] == text
            time.sleep(0.05)
        return False

    def _failures(self) -> dict[int, tuple[str, int]]:
        return {number: tuple(json.loads(text)) for number, text in self._get('failed').items()}

    def _get(self, folder: str) -> dict[int, str]:
        """Returns process -> its value; nothing if process 0 has ended, as jax then ends this one."""
        with contextlib.suppress(Exception):
            entries = self._client.key_value_dir_get(f'{_ROOT}/{folder}')
            return {_number(key): text for key, text in entries}
        return {}

    def _set(self, folder: str, text: str) -> None:
        with contextlib.suppress(Exception):  # as in `_get`
            key = f'{_ROOT}/{folder}/{self._index}'
            self._client.key_value_set(key, text, allow_overwrite=True)


def _first(failures: Mapping[int, tuple[str, int]]) -> tuple[str, int]:
    """Returns the error, with its process, and the exit code of the lowest failed process."""
    number, (text, code) = min(failures.items())
    return f'process {number}: {text}', code


def _state() -> Any:
    from jax._src import distributed  # the key-value store has no public name

    return distributed.global_state


def _client() -> Any:
    client = _state().client
    if client is None:
        raise RuntimeError('several processes: jax.distributed.initialize() must be called first')
    return client
