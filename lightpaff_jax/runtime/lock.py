"""A lock between the processes of one machine."""

import contextlib
import fcntl
import logging
import os
import pathlib
from collections.abc import Iterator

_log = logging.getLogger('lightpaff_jax')


@contextlib.contextmanager
def exclusive_lock(file: pathlib.Path) -> Iterator[None]:
    """Holds a lock that one process of this machine can have; waits until it is free.

    The system releases the lock of a killed process.

    Args:
      file: lock file in an existing folder; it is removed at the end.
    """
    while True:
        with file.open('w') as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info('%s: another process works in this folder, waiting for it', file.parent)
                fcntl.flock(opened, fcntl.LOCK_EX)
            if not _is_same_file(opened.fileno(), file):
                continue  # its last holder removed it, so another process may lock a new file
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _is_same_file(descriptor: int, file: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
