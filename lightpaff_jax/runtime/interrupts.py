"""Ctrl-C that is not lost during a garbage collection."""

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def deliver_sigint_during_gc() -> Iterator[None]:
    """Delivers a Ctrl-C that arrives while the main thread collects garbage.

    Python drops an exception that is raised inside a callback of the garbage collector, so the
    KeyboardInterrupt would be lost. Here the signal is sent again once the collection has ended.
    Does nothing outside the main thread, or if SIGINT has another handler than Python's.
    """
    main = threading.main_thread().ident
    collecting = False
    waiting: list[threading.Timer] = []  # at most one, so that two signals raise one exception

    def watch(phase: str, _: Any) -> None:
        nonlocal collecting
        if threading.get_ident() == main:
            collecting = phase == 'start'

    def handle(number: int, frame: Any) -> None:
        while waiting:
            waiting.pop().cancel()
        code = None if frame is None else frame.f_code
        # Callbacks (jax has one) also run before `watch` sets the flag and after it clears it.
        in_callback = code is watch.__code__ or (code and code.co_name == '_xla_gc_callback')
        if not collecting and not in_callback:
            # Before raising, so that a second signal during the exit finds the usual handler.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        # Sent as a signal, which also interrupts a system call that the main thread waits in.
        again = threading.Timer(0.01, signal.pthread_kill, (main, number))
        waiting.append(again)
        again.start()

    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.get_ident() != main:
        yield
        return
    gc.callbacks.append(watch)
    signal.signal(signal.SIGINT, handle)
    try:
        yield
        if waiting:
            raise KeyboardInterrupt
    finally:
        try:
            for timer in waiting:
                timer.cancel()
            signal.signal(signal.SIGINT, signal.default_int_handler)
        finally:
            gc.callbacks.remove(watch)
