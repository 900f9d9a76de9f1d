"""Locks a file on this machine, or a folder that one run writes, against other processes.

A local folder is locked by the file `.lock` in it; the system releases the lock of a process that
has ended. A bucket has no locks, so a lease is kept there.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import filelock

from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.runtime import json_file, lease, storage

FILE = '.lock'
_log = logging.getLogger('lightpaff_jax')


@contextlib.contextmanager
def exclusive_lock(file: pathlib.Path) -> Iterator[None]:
    """Holds a lock that one process of this machine can have; waits until it is free.

    Args:
      file: lock file in an existing folder; it is removed at the end.
    """
    lock = filelock.FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _log.info('%s: another process works in this folder, waiting for it', file.parent)
        lock.acquire()
    with _removed(file, lock):
        yield


@contextlib.contextmanager
def hold(folder: Any) -> Iterator[None]:
    """Holds a folder that only one process may write, on this machine or in a bucket.

    Raises:
      UserError: another process holds it, or it cannot be locked.
    """
    holder = {'host': socket.gethostname(), 'process': os.getpid(), 'since': int(time.time())}
    if storage.is_remote(folder):
        with storage.translate_errors(folder):
            result = lease.acquire(str(folder), holder)
        if isinstance(result, dict):
            raise UserError(_in_use(folder, result))
        with result:
            yield
        return
    file = pathlib.Path(folder) / FILE

    def write(descriptor: int) -> None:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    lock = filelock.FileLock(file, blocking=False, fallback_to_soft=False, on_acquired=write)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(_in_use(folder, _read(file))) from None
    except OSError as error:
        raise UserError(f'{folder}: cannot be locked: {one_line(error)}') from error
    with _removed(file, lock):
        yield


@contextlib.contextmanager
def _removed(file: pathlib.Path, lock: filelock.BaseFileLock) -> Iterator[None]:
    """Removes the file of a lock and releases it."""
    try:
        yield
    finally:
        # Removed first: a process that has opened the file then sees that it is no longer the lock.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def _read(file: pathlib.Path) -> Any:
    with contextlib.suppress(UserError):  # released or just taken
        return json_file.read(file)
    return None


def _in_use(folder: Any, holder: Any) -> str:
    who = 'another process'
    with contextlib.suppress(UserError):
        json_file.check(holder, {'host': str, 'process': int, 'since': range(2**32)}, FILE)
        since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder['since']))
        who = f'process {holder["process"]} on {holder["host"]} since {since}'
    return f'{folder}: is in use by {who}; wait for its end, or choose another folder'
