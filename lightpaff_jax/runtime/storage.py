"""Paths that may be in a bucket, gs://BUCKET/...: by etils.epath, with a limit and in one line."""

import atexit
import contextlib
import functools
import json
import logging
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lightpaff_jax.errors import Unreadable, UserError

PART = '.part'  # suffix of a temporary file
PATIENCE = 30.0  # seconds that a bucket may take to answer first; without a network it never does
_ANSWERED: set[str] = set()  # buckets that did


def is_remote(path: Any) -> bool:
    """Whether a path is in a bucket."""
    return '://' in str(path)


def to_path(path: str) -> Any:
    """A path that can be read and written wherever it is; `~` is the home folder."""
    from etils import epath

    return epath.Path(path) if is_remote(path) else epath.Path(path).expanduser()


def local_folder(key: str, path: str) -> pathlib.Path:
    """A folder that ArrayRecord reads and writes; `~` is the home folder.

    Args:
      key: what names the path, with its `=`, for the message.
      path: of the folder.

    Raises:
      UserError: it is in a bucket.
    """
    if is_remote(path):
        raise UserError(
            f'{key}{path}: ArrayRecord needs a folder, mount the bucket with gcsfuse and name that'
        )
    return pathlib.Path(path).expanduser()


def check_reachable(path: str) -> None:
    """Raises UserError unless the bucket of a path answers in time; a local path is reached.

    A bucket that answered once is not asked again. Whether the path is there is another question.
    """
    if not is_remote(path):
        return
    scheme, _, rest = path.partition('://')
    bucket = rest.partition('/')[0]
    if scheme != 'gs' or not bucket:
        raise UserError(f'{path}: must be a local path or gs://BUCKET/...')
    if bucket not in _ANSWERED:
        logging.getLogger('gcsfs').propagate = False  # it prints tracebacks of what it retries
        logging.getLogger('gcsfs').addHandler(logging.NullHandler())
        with translate_errors(path), contextlib.suppress(FileNotFoundError):
            call_within(PATIENCE, path, lambda: to_path(f'gs://{bucket}/x').exists())
        _ANSWERED.add(bucket)


def call_within(seconds: float, path: str, call: Callable[[], Any]) -> None:
    """Calls in a thread of its own; raises what that raises, or Unreadable after so many seconds.

    The thread stays behind: a connection that hangs cannot be stopped, and ends with the process.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Unreadable(f'{path}: cannot be reached within {seconds:g} s')
    if raised:
        raise raised[0]


@contextlib.contextmanager
def translate_errors(path: Any) -> Iterator[None]:
    """Makes Unreadable of what a bucket raises; a missing file stays what it is."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # of aiohttp, of gcsfs, of Google's credentials
        if not is_remote(path):
            raise
        if isinstance(error, ImportError):
            needs = 'buckets need the extra gs: ./launch/environment.sh gs'
            raise UserError(f'{path}: {needs}') from error
        text = ' '.join(str(error).split())
        raise Unreadable(f'{path}: {type(error).__name__}: {text}') from error


def download(file: Any, to: pathlib.Path) -> None:
    """Copies a file of a bucket here; nothing where it is not there."""
    with translate_errors(file), contextlib.suppress(FileNotFoundError):
        to.write_bytes(file.read_bytes())


@functools.cache
def download_folder(folder: str) -> pathlib.Path:
    """The files of a bucket's folder in a folder here, which goes with the process."""
    here = tempfile.TemporaryDirectory()
    atexit.register(here.cleanup)
    with translate_errors(folder), contextlib.suppress(FileNotFoundError):
        for file in to_path(folder).iterdir():
            download(file, pathlib.Path(here.name) / file.name)
    return pathlib.Path(here.name)


def upload(folder: pathlib.Path, to: Any) -> None:
    """Copies the files below a folder into a bucket; each appears there when it is whole."""
    with translate_errors(to):
        for file in sorted(path for path in folder.rglob('*') if path.is_file()):
            (to / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def write_json(path: Any, value: Any, sort_keys: bool = False) -> None:
    """Writes a JSON file as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + '\n')


def write_text(path: Any, text: str) -> None:
    """Writes a file so that a reader sees its old or its new content, never a part of it.

    A bucket shows an object only when it is complete, so it needs no temporary file. On a disk the
    name of the temporary file is fixed, so that the next call replaces what a killed process left:
    only one process at a time may write a file.
    """
    with translate_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            path.write_bytes(text.encode())
        else:
            part = path.with_name(path.name + PART)
            part.write_bytes(text.encode())
            commit(part, path)


def publish(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Makes a file or folder by `write(temporary path)` and `commit`.

    Several processes may do so at once. The first folder stays, a file is replaced.

    Raises:
      UserError: the parent folder, below `config.data.cache`, cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent)
    except OSError as error:
        raise UserError(
            f'config.data.cache: cannot write to {path.parent}: {error.strerror}'
        ) from error
    with temporary as folder:
        part = pathlib.Path(folder) / path.name
        write(part)
        try:
            commit(part, path)
        except OSError:
            if not path.exists():
                raise


def commit(part: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a complete file or folder to `path` after its content has reached the disk."""
    for file in [part, *pathlib.Path(part).rglob('*')]:
        if file.is_file():
            with file.open('rb') as opened:
                os.fsync(opened.fileno())
    part.replace(path)
