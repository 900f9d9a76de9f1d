"""Paths on a disk or in a bucket (gs://BUCKET/...), and files that are written atomically.

Paths in a bucket are those of etils.epath; its errors become one line, and its waits are limited.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lightpaff_jax.errors import NotSaved, Unreadable, UserError, one_line
from lightpaff_jax.runtime import lease

PART = '.part'  # suffix of a temporary file or folder
TIMEOUT = 30.0  # seconds for the first answer of a bucket; without a network it never comes
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_reached: set[str] = set()  # buckets that have answered


def is_remote(path: Any) -> bool:
    """Returns whether a path is in a bucket."""
    return '://' in str(path)


def to_path(path: str) -> Any:
    """Returns a path of etils.epath; `~` is the home folder."""
    from etils import epath

    return epath.Path(path) if is_remote(path) else epath.Path(path).expanduser()


def local_folder(key: str, path: str) -> pathlib.Path:
    """Returns a folder that ArrayRecord can read and write; `~` is the home folder.

    Args:
      key: name of the path in messages, with its `=`.
      path: the folder.

    Raises:
      UserError: the folder is in a bucket.
    """
    if is_remote(path):
        raise UserError(
            f'{key}{path}: ArrayRecord needs a folder, mount the bucket with gcsfuse and name that'
        )
    return pathlib.Path(path).expanduser()


def check_reachable(path: str) -> None:
    """Raises UserError unless the bucket of a path answers in time; the path need not exist.

    A bucket is asked only once per process. A local path is always reachable.
    """
    if not is_remote(path):
        return
    scheme, _, rest = path.partition('://')
    bucket = rest.partition('/')[0]
    if scheme != 'gs' or not bucket:
        raise UserError(f'{path}: must be a local path or gs://BUCKET/...')
    if bucket not in _reached:
        logging.getLogger('gcsfs').propagate = False  # it logs tracebacks of each attempt
        logging.getLogger('gcsfs').addHandler(logging.NullHandler())
        with translate_errors(path), contextlib.suppress(FileNotFoundError):
            call_within(TIMEOUT, path, to_path(f'gs://{bucket}/x').exists)
        _reached.add(bucket)


def call_within(seconds: float, path: str, call: Callable[[], Any]) -> None:
    """Calls `call` in a thread and raises its error, or Unreadable after so many seconds.

    A connection that hangs cannot be stopped, so its thread runs until the process ends.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Unreadable(f'{path}: cannot be reached within {seconds:g} s')
    if errors:
        raise errors[0]


@contextlib.contextmanager
def translate_errors(path: Any) -> Iterator[None]:
    """Turns the errors of a bucket into Unreadable, but leaves FileNotFoundError."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # from aiohttp, from gcsfs, from Google's credentials
        if not is_remote(path):
            raise
        if isinstance(error, ImportError):
            needs = 'buckets need the extra gs: ./launch/environment.sh gs'
            raise UserError(f'{path}: {needs}') from error
        raise Unreadable(f'{path}: {type(error).__name__}: {one_line(error)}') from error


def download(source: Any, target: pathlib.Path) -> None:
    """Copies a file from a bucket; does nothing if it does not exist."""
    with translate_errors(source), contextlib.suppress(FileNotFoundError):
        target.write_bytes(source.read_bytes())


@functools.cache
def download_folder(folder: str) -> pathlib.Path:
    """Copies the files of a bucket's folder into a temporary folder, removed with the process."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    with translate_errors(folder), contextlib.suppress(FileNotFoundError):
        for file in to_path(folder).iterdir():
            download(file, pathlib.Path(temporary.name) / file.name)
    return pathlib.Path(temporary.name)


def upload(source: pathlib.Path, target: Any) -> None:
    """Copies all files below a folder into a bucket, which shows a file only when it is complete."""
    with translate_errors(target):
        lease.check(target)
        for file in sorted(path for path in source.rglob('*') if path.is_file()):
            (target / file.relative_to(source).as_posix()).write_bytes(file.read_bytes())


def write_json(path: Any, value: Any, sort_keys: bool = False) -> None:
    """Writes a JSON file as `write_text` does, in the format of `format_json`."""
    write_text(path, format_json(value, indent=2, sort_keys=sort_keys) + '\n')


def format_json(value: Any, **options: Any) -> str:
    """Formats strict JSON: a NaN or an infinity, which JSON does not have, becomes null."""
    return json.dumps(_replace_non_finite(value), allow_nan=False, **options)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return value


def write_text(path: Any, text: str) -> None:
    """Writes a file so that a reader sees its old or its new content, never a part of it.

    A bucket shows an object only when it is complete, so it needs no temporary file. On a disk the
    name of the temporary file is fixed, so that the next call replaces what a killed process left:
    only one process at a time may write a file.

    Raises:
      NotSaved: the disk is full.
    """
    with translate_errors(path), translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            lease.check(path)
            path.write_bytes(text.encode())
            return
        part = path.with_name(path.name + PART)
        try:
            part.write_bytes(text.encode())
            commit(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            error.filename = str(path)  # messages name the file, not its temporary file
            raise


def publish(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Makes a file or folder by `write(temporary path)` and `commit`.

    Several processes may do so at once. The first folder stays, a file is replaced.

    Raises:
      UserError: the parent folder cannot be written.
      NotSaved: the disk is full.
    """
    with translate_disk_errors(path), temporary_folder(path) as folder:
        part = folder / path.name
        write(part)
        try:
            commit(part, path)
        except OSError:
            if not path.is_dir():  # another process has published the same folder
                raise


@contextlib.contextmanager
def temporary_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder next to `path`, in which its content is written; it is removed at the end.

    Removes the folders that killed processes left. A process locks its folder, and the system
    releases the lock when the process ends.

    Raises:
      UserError: the parent folder cannot be written.
    """
    prefix = f'.{path.name}.'
    name = re.compile(re.escape(prefix) + r'\w{8}' + re.escape(PART))
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as creation:  # no folder is seen before it is locked
                _lock_folder(path.parent, creation, fcntl.LOCK_EX)
                for folder in path.parent.iterdir():
                    with contextlib.ExitStack() as removal:
                        if name.fullmatch(folder.name) and _lock_folder(folder, removal):
                            shutil.rmtree(folder, ignore_errors=True)
                folder = pathlib.Path(tempfile.mkdtemp(PART, prefix, path.parent))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                _lock_folder(folder, stack)
        except OSError as error:
            raise UserError(f'{path.parent}: cannot be written: {one_line(error)}') from error
        yield folder


def _lock_folder(
    folder: pathlib.Path, stack: contextlib.ExitStack, mode: int = fcntl.LOCK_EX | fcntl.LOCK_NB
) -> bool:
    """Locks a folder until the stack is closed; returns False if that is impossible."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, mode)
    except OSError:  # another process has locked it, or it is no folder or cannot be locked
        return False
    return True


@contextlib.contextmanager
def translate_disk_errors(path: Any) -> Iterator[None]:
    """Turns the errors of a full or failing disk, which any library may raise, into NotSaved."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_error(error)
        if not reason:
            raise
        raise NotSaved(f'{path}: cannot be written: {reason}') from error


def disk_error(error: BaseException | None) -> str:
    """Returns the text of the disk error among an error and its causes, or ''."""
    while error is not None:
        for code in _DISK_ERRORS:
            reason = os.strerror(code)  # many libraries raise a class of their own with this text
            if getattr(error, 'errno', None) == code or reason.lower() in str(error).lower():
                return reason
        error = error.__cause__ or error.__context__
    return ''


def commit(part: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a complete file or folder to `path` after its content has reached the disk."""
    for file in [part, *pathlib.Path(part).rglob('*')]:
        if file.is_file():
            sync(file)
    part.replace(path)


def sync(file: pathlib.Path) -> None:
    """Waits until the content of a file has reached the disk."""
    with file.open('rb') as opened:
        os.fsync(opened.fileno())


def member(folder: Any, name: str, where: str) -> Any:
    """Joins a folder and the name of a file in it, which was read from another file.

    Args:
      folder: the folder.
      name: the name, from a file that may be damaged or of unknown origin.
      where: start of the message.

    Raises:
      UserError: the name is absolute or leads out of the folder.
    """
    path = pathlib.PurePosixPath(name)
    if not path.parts or path.is_absolute() or '..' in path.parts or '\0' in name:
        raise UserError(f'{where} = {name!r}: must be a file in {folder}')
    return folder / name
