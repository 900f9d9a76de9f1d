"""Several processes as one run: kept in step, and ended together.

A process that is alone needs nothing of this, and every function here then returns at once.
What processes tell each other goes through the key-value store of jax's coordinator, which is in
process 0, and through no device: so it works before the first collective, and waiting has no limit.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import cluster

T = TypeVar('T')

# From the end of one process to that of the others: to notice (_LOOK), to come to the same error by
# themselves (_GRACE), to be seen off by process 0, with which the key-value store goes (_LEAVE).
_LOOK, _GRACE, _LEAVE = 0.5, 1.5, 5.0

_ROOT = 'lightpaff_jax'
_calls = itertools.count()
_watch: '_Watch | None' = None
_synced = False


def process_count() -> int:
    """How many processes make this run."""
    return 1 if 'jax' not in sys.modules else _state().num_processes


def process_index() -> int:
    """This process's number, from 0."""
    return 0 if 'jax' not in sys.modules else _state().process_id


def is_primary() -> bool:
    """Whether this is process 0, which prints and writes."""
    return process_index() == 0


def log_primary(text: str) -> None:
    """Prints a line of the results, once."""
    if is_primary():
        print(text, flush=True)


# Beginning.


def initialize() -> None:
    """Joins the other processes that the environment names; before any device is used.

    Raises:
      UserError: the environment is wrong, or nobody answers.
    """
    global _watch
    found = cluster.setting(os.environ)
    if found is None or _watch is not None:
        return
    import jax

    # Its service would take SIGTERM for itself, and nobody here asks it for what it heard.
    jax.config.update('jax_enable_preemption_service', False)
    cluster.join(found)
    if process_count() > 1:
        _watch = _Watch()


def sync_devices() -> None:
    """Connects the devices of all processes; the first call needs all processes at the same time.

    On CPUs this has a limit of 30 s, which processes that prepare data for minutes would pass.

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
    _keep_stdout()
    multihost_utils.sync_global_devices(_ROOT)


def _keep_stdout() -> None:
    """File 1 is for results: gloo, behind Python's back, says there whom it connected."""
    sys.stdout.flush()
    encoding = sys.stdout.encoding
    sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1, encoding=encoding)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


# Talking. All processes make these calls, and in the same order.


def all_gather(value: Any) -> list[Any]:
    """`value` of every process, JSON, in their order."""
    if process_count() == 1:
        return [value]
    number, client = next(_calls), _client()
    place = f'{_ROOT}/{number}'
    client.key_value_set(f'{place}/of/{process_index()}', json.dumps(value))
    if is_primary():
        found = [json.loads(text) for text in _wait(f'{place}/of', process_count())]
        client.key_value_set(f'{place}/all/0', json.dumps(found))
        if number:  # all are here, so all have read the one before
            client.key_value_delete(f'{_ROOT}/{number - 1}')
        return found
    return json.loads(_wait(f'{place}/all', 1)[0])


def assert_equal(values: Mapping[str, Any], rule: str) -> None:
    """Raises UserError, on all, where a process has other values than process 0."""
    found = all_gather(dict(values))
    for number, theirs in enumerate(found):
        for name, value in found[0].items():
            if theirs[name] != value:
                raise UserError(
                    f'process {number}: {name} = {theirs[name]}, process 0 has {value}: {rule}'
                )


def broadcast_from_primary(make: Callable[[], T]) -> T:
    """`make()`, JSON, of process 0: only there it is called."""
    if process_count() == 1:
        return make()
    return all_gather(make() if is_primary() else None)[0]


def _wait(folder: str, number: int) -> list[str]:
    """Values of `number` keys below a folder, by the number that each key ends with."""
    pause = 0.002
    while len(found := _client().key_value_dir_get(folder)) < number:
        time.sleep(pause)  # and not inside jax, where Ctrl-C is not heard
        pause = min(1.5 * pause, 0.25)
    return [text for _, text in sorted(found, key=lambda pair: int(pair[0].rpartition('/')[2]))]


# Ending.


def shutdown() -> None:
    """Waits for all processes, however long they still work, and leaves them."""
    global _watch
    if _watch is None:
        return
    import jax

    all_gather(None)
    _watch.stop()
    _watch = None
    jax.distributed.shutdown()


def exit_with_error(text: str, code: int, lost: bool = False) -> int:
    """Says why this process ends, in one line on stderr, and ends the others with it.

    They end within about two seconds, with a line that names this process and its error; where
    several have the same error, process 0 alone says it.

    Args:
      text: the error.
      code: the exit code.
      lost: whether the error is that another process has ended; if that one said why, it is why
        this one ends too.

    Returns:
      the exit code, where this process is alone; else the process ends here.
    """
    if _watch is None:
        print(f'error: {text}', file=sys.stderr)
        return code
    _watch.leave(text, code, lost)
    raise AssertionError('leave does not return')


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error says that another process has ended: of a collective or the coordinator."""
    text = str(error)
    signs = ('Gloo ', 'coordination service', 'Socket closed', 'NCCL ')
    return _watch is not None and any(sign in text for sign in signs)


class _Watch:
    """A thread that ends this process, whatever it waits for, when another one has failed."""

    def __init__(self) -> None:
        self._client = _client()
        self._index, self._count = process_index(), process_count()
        self._done = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_LOOK):
            failed = self._failed()
            if failed:
                self._done.wait(_GRACE)
                self.leave(*_told(failed), follows=True)

    def stop(self) -> None:
        """Ends the thread, before the interpreter does: it must not be inside jax then."""
        self._done.set()
        self._thread.join()

    def leave(self, text: str, code: int, follows: bool = False) -> None:
        """Says it, if process 0 does not say the same, and exits; process 0 as the last one."""
        self._leaving.acquire()  # the second to come waits for the end
        failed = self._failed() if follows else {}
        if failed:
            text, code = _told(failed)
        else:
            self._set('failed', json.dumps([text, code]))
        if failed or not self._said(text):
            print(f'error: {text}', file=sys.stderr, flush=True)
        self._set('ended', '')
        until = time.monotonic() + _LEAVE
        while not self._index and len(self._under('ended')) < self._count:
            if time.monotonic() > until:
                break  # of one that was killed there comes no sign
            time.sleep(0.05)
        else:
            time.sleep(0.2)  # they are on their way out
        _exit(code)

    def _said(self, text: str) -> bool:
        """Whether process 0 has this very error; it may take a moment to come to it."""
        until = time.monotonic() + _GRACE
        while self._index and time.monotonic() < until:
            if 0 in (found := self._failed()):
                return found[0][0] == text
            time.sleep(0.05)
        return False

    def _failed(self) -> dict[int, tuple[str, int]]:
        """Process -> its error and exit code."""
        return {number: tuple(json.loads(text)) for number, text in self._under('failed').items()}

    def _under(self, folder: str) -> dict[int, str]:
        with contextlib.suppress(Exception):  # the coordinator is gone; jax ends this process then
            found = self._client.key_value_dir_get(f'{_ROOT}/{folder}')
            return {int(key.rpartition('/')[2]): text for key, text in found}
        return {}

    def _set(self, folder: str, text: str) -> None:
        place = f'{_ROOT}/{folder}/{self._index}'
        with contextlib.suppress(Exception):  # as above
            self._client.key_value_set(place, text, allow_overwrite=True)


def _told(failed: Mapping[int, tuple[str, int]]) -> tuple[str, int]:
    """The error and exit code of those that follow the first that failed."""
    number, (text, code) = min(failed.items())
    return f'process {number}: {text}', code


def _exit(code: int) -> None:
    """Ends without the exit handlers: jax's would wait minutes for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _state() -> Any:
    from jax._src import distributed  # its key-value store has no public name

    return distributed.global_state


def _client() -> Any:
    client = _state().client
    if client is None:
        raise RuntimeError('several processes: jax.distributed.initialize() must be called first')
    return client
