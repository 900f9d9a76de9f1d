"""Failures of Orbax, without what it prints and leaves behind."""

import contextlib
import functools
import gc
import logging
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def root_cause(error: BaseException) -> str:
    """The first cause of an error, on one line of some 200 characters: its start and its end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ' '.join(str(error).partition('[tensorstore_spec')[0].split())
    if len(text) > 200:
        text = f'{text[:60]} ... {text[-140:]}'
    return f'{type(error).__name__}: {text}'


@contextlib.contextmanager
def suppress_orbax_noise() -> Iterator[list[str]]:
    """A list for problems. Where Orbax fails it drops coroutines; they end here, unseen."""
    failed: list[str] = []
    hook = sys.unraisablehook
    if getattr(hook, 'func', None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, hook)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
        yield failed
        if failed:
            gc.collect()
    if not failed:  # else reads are under way that will end in a closed event loop
        sys.unraisablehook = hook


def _unraisable(hook: Callable, event: Any) -> None:
    """Passes on what Python cannot raise, unless it is a rest of a failed read."""
    code = getattr(event.object, 'cr_code', None)
    of_orbax = code is not None and _in_orbax(code.co_filename)
    if not of_orbax and str(event.exc_value) != 'Event loop is closed':
        hook(event)


def _quiet(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs, and tasks of its that fail: the user gets one line of ours."""
    of_orbax = _in_orbax(record.pathname)
    return not (of_orbax or (record.name == 'asyncio' and _names_orbax(record)))


def _in_orbax(filename: str) -> bool:
    """Whether a source file belongs to Orbax; this module's own name contains `orbax` too."""
    return 'orbax' in pathlib.PurePath(filename).parts


_STATUS = (
    'CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|PERMISSION_DENIED|'
    'RESOURCE_EXHAUSTED|FAILED_PRECONDITION|ABORTED|OUT_OF_RANGE|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|'
    'DATA_LOSS|UNAUTHENTICATED'
)  # of absl::Status


def _names_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.extract_tb(error.__traceback__) if error else []
    # A read of its storage that fails after another one has no frames, and a status as its first word.
    of_storage = error is not None and not frames and re.match(f'({_STATUS}): ', str(error))
    named = 'orbax' in record.getMessage() or any(_in_orbax(frame.filename) for frame in frames)
    return named or bool(of_storage)


for _name in ('absl', 'asyncio'):
    logging.getLogger(_name).addFilter(_quiet)
