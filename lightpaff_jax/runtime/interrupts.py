"""Stops a command on SIGINT or SIGTERM, with one line and no traceback.

    while a command is imported or exits   its process ends in the signal's handler
    in `raise_on_signals`                  the main thread raises Stopped
    in `deferred`                          the signal waits until the caller asks for it

After the first signal both have the system's default action, so a second one ends the process.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_handler: '_Handler | None' = None
_exit_code = 0  # of a stopped command; the exception would keep its frames alive


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command; the text is its line, `code` its exit code."""

    def __init__(self, number: int, rest: str = ''):
        super().__init__(f'stopped by {signal.Signals(number).name}{rest}')
        self.code = 128 + number


class Saved(Stopped):
    """All processes of a run have stopped at the same update and saved it."""


def exit_on_signals() -> None:
    """Makes a signal end this process in its handler, which also works while modules are imported."""
    for number in _with_default_handler():
        signal.signal(number, _exit)
    atexit.register(_end)  # the first one that is registered is called last


def _exit(number: int, _: Any) -> None:
    with contextlib.suppress(Exception):  # the signal may have interrupted another flush
        sys.stdout.flush()
    os.write(2, f'{Stopped(number)}\n'.encode())
    os._exit(128 + number)


def _end() -> None:
    """Ends a stopped command: to finalize Python under a busy native thread can crash."""
    if _exit_code:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a closed pipe
                stream.flush()
        os._exit(_exit_code)


def _with_default_handler() -> list[int]:
    """Returns the signals that no other program ignores or handles."""
    if threading.current_thread() is not threading.main_thread():
        return []
    defaults = signal.SIG_DFL, signal.default_int_handler, _exit
    return [number for number in _NUMBERS if signal.getsignal(number) in defaults]


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raises Stopped in the main thread when a signal arrives.

    Python drops an exception that is raised inside a callback of the garbage collector. A signal
    that arrives there is sent again once the collection has ended.
    """
    global _handler, _exit_code
    numbers = _with_default_handler()
    _handler = handler = _Handler(numbers)
    gc.callbacks.append(handler.watch)
    previous = {number: signal.signal(number, handler.handle) for number in numbers}
    try:
        yield
        handler.raise_waiting()
    except Stopped as stop:
        _exit_code = stop.code
        raise
    finally:
        try:
            for number in previous:
                signal.signal(number, previous[number])
        finally:
            _handler = None
            handler.cancel()
            gc.callbacks.remove(handler.watch)


@contextlib.contextmanager
def deferred(share: Callable[[int], Any] | None = None) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal that has arrived, or 0.

    From its first call on, a signal waits for the next call, until this context ends.

    Args:
      share: called in the handler with the signal that waits.
    """
    handler = _handler or _Handler([])

    def received() -> int:
        handler.deferred, handler.share = True, share
        return handler.received

    try:
        yield received
    finally:
        handler.deferred = False
    if handler.received:  # after the last call
        raise Stopped(handler.received)


def is_deferred() -> bool:
    """Returns whether a signal waits now."""
    return _handler is not None and _handler.deferred


def disown(number: int) -> None:
    """Leaves a signal to a handler outside Python."""
    if _handler is not None and number in _handler.numbers:
        _handler.numbers.remove(number)


class _Handler:
    """Handles the signals of a command, which all arrive in the main thread.

    Args:
      numbers: the signals; they get the default action after the first one.
    """

    def __init__(self, numbers: list[int]):
        self.numbers = numbers
        self.deferred = False
        self.received = 0
        self.share: Callable[[int], Any] | None = None
        self._main = threading.main_thread().ident
        self._collecting = False
        self._waiting: list[tuple[int, threading.Timer]] = []  # at most one

    def watch(self, phase: str, _: Any) -> None:
        """Notes whether the main thread collects garbage."""
        if threading.get_ident() == self._main:
            self._collecting = phase == 'start'

    def handle(self, number: int, frame: Any) -> None:
        self.cancel()
        # Callbacks (jax has one) also run before `watch` sets the flag and after it clears it.
        code = None if frame is None else frame.f_code
        in_callback = code and (code is self.watch.__code__ or code.co_name == '_xla_gc_callback')
        if not self.deferred and (self._collecting or in_callback):
            # Sent as a signal, which also interrupts a system call that the main thread waits in.
            again = threading.Timer(0.01, signal.pthread_kill, (self._main, number))
            self._waiting.append((number, again))
            again.start()
            return
        for own in self.numbers:
            signal.signal(own, signal.SIG_DFL)
        if not self.deferred:
            raise Stopped(number)
        self.received = number
        if self.share is not None:
            self.share(number)

    def raise_waiting(self) -> None:
        """Raises Stopped for a signal that has not been sent again yet."""
        for number, _ in self._waiting:
            raise Stopped(number)

    def cancel(self) -> None:
        """Cancels the signal that waits to be sent again."""
        while self._waiting:
            self._waiting.pop()[1].cancel()
