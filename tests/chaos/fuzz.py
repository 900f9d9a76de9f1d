"""Fuzzes the readers of all input in one process: only success or an error of one line may come out."""

import contextlib
import faulthandler
import gc
import pathlib
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from lightpaff_jax.errors import UserError

SECONDS = 30  # longest time of an input
MEMORY = 4 << 30  # bytes that this process may allocate
_PHASES = (hypothesis.Phase.generate, hypothesis.Phase.shrink)


class HangError(BaseException):
    """An input took longer than SECONDS. No `except Exception` may swallow it."""


class FailureError(Exception):
    """A reader failed on an input."""


class NoFileError(AssertionError):
    """An error of the system names no file."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises HangError after SECONDS; ends the process with a traceback if native code hangs."""

    def stop(*_: Any) -> None:
        raise HangError(f'took more than {SECONDS} s')

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Limits what this process may allocate from here on; more raises MemoryError."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def accept_one_line(call: Callable[[Any], Any], value: Any) -> str:
    """Calls `call(value)`; returns the message if it refuses, '' if it accepts.

    A command prints the message in one line, with line ends as escapes.

    Raises:
      NoFileError: an error of the system without the name of its file.
      BaseException: any other error, which a command would print as a traceback.
    """
    try:
        call(value)
    except UserError as error:
        return str(error)
    except OSError as error:  # the command prints the file and the reason
        if not error.filename:
            raise NoFileError(error) from error
        return f'{error.filename}: {error.strerror}'
    return ''


def hunt(
    strategy: st.SearchStrategy[Any],
    call: Callable[[Any], Any],
    seed: int,
    examples: int,
    before: Callable[[Any], Any] = lambda value: None,
) -> tuple[int, int, list[str]]:
    """Tries inputs; shrinks those that fail.

    Args:
      strategy: draws inputs.
      call: reads an input.
      seed: of the draws; the same seed repeats a failure.
      examples: number of inputs.
      before: called with each input before it is tried.

    Returns:
      The number of inputs without those of shrinking, that of refused ones, and the failures.
    """
    count = refused = 0
    failures: dict[str, str] = {}  # place of an error -> its line; the last one has the least input

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=_PHASES,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(strategy)
    def attempt(value: Any) -> None:
        nonlocal count, refused
        shrinks = bool(failures)
        count += not shrinks
        before(value)
        try:
            with time_limit(), warnings.catch_warnings():
                warnings.simplefilter('error')
                message = accept_one_line(call, value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a hang, and a panic of a library in Rust
            place = _place(error)
            failures[place] = (
                f'{place}: {_short(str(error), 300)}; input: {_short(repr(value), 800)}'
            )
            raise FailureError(place) from error
        refused += not shrinks and bool(message)

    with memory_limit(), contextlib.suppress(FailureError, ExceptionGroup):
        attempt()
    gc.collect()
    return count, refused, list(failures.values())


def draw(
    strategy: st.SearchStrategy[Any], call: Callable[[Any], Any], seed: int, examples: int
) -> None:
    """Calls `call`, which must not raise, with inputs that depend on the seed only."""
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(lambda value: call(value))))()


def _place(error: BaseException) -> str:
    """Returns the type of an error and the last line of this package in its traceback."""
    frames, place = error.__traceback__, ''
    while frames:
        name = frames.tb_frame.f_code.co_filename
        if '/lightpaff_jax/' in name:
            place = f' at {name.rpartition("/lightpaff_jax/")[2]}:{frames.tb_lineno}'
        frames = frames.tb_next
    return type(error).__name__ + place


def _short(text: str, length: int) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= length else f'{text[:length]} ...'
