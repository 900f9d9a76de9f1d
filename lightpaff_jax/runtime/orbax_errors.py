"""Errors of Orbax in one line, without the messages and warnings that its failed tasks leave."""

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
    """Returns the first cause of an error in one line; shortens its middle above 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ' '.join(str(error).partition('[tensorstore_spec')[0].split())
    if len(text) > 200:
        text = f'{text[:60]} ... {text[-140:]}'
    return f'{type(error).__name__}: {text}'


@contextlib.contextmanager
def suppress_orbax_noise() -> Iterator[list[str]]:
    """Yields a list for error messages; suppresses warnings that follow an exception of Orbax.

    After a failure Orbax drops coroutines, and Python warns about each when it is collected. So
    garbage is collected before the warnings are shown again if the list is not empty.
    """
    failures: list[str] = []
    hook = sys.unraisablehook
    filter_unraisable()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
        yield failures
        if failures:
            gc.collect()
    if not failures:  # after a failure, pending reads still end later, in a closed event loop
        sys.unraisablehook = hook


def filter_unraisable() -> None:
    """Suppresses from now on what Python reports of the failed tasks in Orbax's threads."""
    if getattr(sys.unraisablehook, 'func', None) is not _report_unraisable:
        sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)


def _report_unraisable(hook: Callable, event: Any) -> None:
    """Calls the previous hook unless the exception comes from a failed read of Orbax."""
    code = getattr(event.object, 'cr_code', None)
    from_orbax = code is not None and _in_orbax(code.co_filename)
    if not from_orbax and str(event.exc_value) != 'Event loop is closed':
        hook(event)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filters the log: drops records of Orbax, and asyncio's about its failed tasks."""
    failed_task = record.name == 'asyncio' and _mentions_orbax(record)
    return not failed_task and not _in_orbax(record.pathname)


def _in_orbax(filename: str) -> bool:
    """Returns whether a source file belongs to Orbax; this module's own name contains it too."""
    return 'orbax' in pathlib.PurePath(filename).parts


_STATUS = re.compile(
    '(CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|'
    'PERMISSION_DENIED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|ABORTED|OUT_OF_RANGE|UNIMPLEMENTED|'
    'INTERNAL|UNAVAILABLE|DATA_LOSS|UNAUTHENTICATED): '
)
"""A code of absl::Status, with which the messages of TensorStore begin."""


def _mentions_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return 'orbax' in record.getMessage()
    frames = traceback.extract_tb(error.__traceback__)
    # A read of TensorStore that fails after another one has no frames.
    from_storage = not frames and _STATUS.match(str(error)) is not None
    in_frames = any(_in_orbax(frame.filename) for frame in frames)
    return from_storage or in_frames or 'orbax' in record.getMessage()


for _name in ('absl', 'asyncio'):
    logging.getLogger(_name).addFilter(_is_relevant)
