"""SIGINT and SIGTERM stop a command once, also during a garbage collection, or wait."""

import gc
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.processes import environment

from lightpaff_jax.runtime import interrupts

NUMBERS = signal.SIGINT, signal.SIGTERM


@pytest.fixture(params=NUMBERS)
def number(request):
    """A signal, with Python's handler before and after the test."""
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield request.param
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    for number, handler in handlers.items():
        signal.signal(number, handler)


class _Cycle:
    """Garbage whose `__del__` waits; Python drops an exception raised there.

    The default wait is longer than the delay after which a signal is delivered again.
    """

    def __init__(self, wait=lambda: time.sleep(0.1)):
        self.cycle, self.wait = self, wait

    def __del__(self):
        self.wait()


def _stop(number, when):
    def _xla_gc_callback(*_):  # named as the callback of jax, whose exceptions are dropped
        signal.raise_signal(number)

    with interrupts.raise_on_signals():
        if when == 'working':
            signal.raise_signal(number)
        gc.callbacks.append(_xla_gc_callback)
        _Cycle()
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(_xla_gc_callback)
        if when == 'collecting at the end':
            return
        threading.Event().wait(10)


@pytest.mark.parametrize('when', ['working', 'collecting', 'collecting at the end'])
def test_signal_is_raised_once(number, when):
    start_time = time.monotonic()
    with pytest.raises(interrupts.Stopped, match=f'^stopped by {number.name}$') as raised:
        _stop(number, when)
    assert time.monotonic() - start_time < 5, 'raised after the wait'
    assert raised.value.code == 128 + number
    for _ in range(10):  # a second signal would be raised within this time
        time.sleep(0.01)


def test_signal_is_raised_while_another_thread_collects(number):
    collecting, interrupt_raised, collected = threading.Event(), threading.Event(), []

    def wait():
        collecting.set()
        collected.append(interrupt_raised.wait(30))

    def collect():
        _Cycle(wait)
        gc.collect()

    def stop():
        with interrupts.raise_on_signals():
            thread.start()
            assert collecting.wait(30)
            signal.raise_signal(number)
            threading.Event().wait(60)

    thread = threading.Thread(target=collect)
    try:
        with pytest.raises(interrupts.Stopped):
            stop()
        assert not collected, 'raised after the collection'
    finally:
        interrupt_raised.set()
        thread.join()
    assert collected == [True]


def test_deferred_signal_waits_for_the_next_call(number):
    shared = []
    with interrupts.raise_on_signals():
        with interrupts.deferred(shared.append) as received:
            assert not interrupts.is_deferred()
            assert received() == 0
            assert interrupts.is_deferred()
            signal.raise_signal(number)
            assert shared == [number]
            assert [signal.getsignal(own) for own in NUMBERS] == [signal.SIG_DFL] * 2
            assert received() == number
            interrupts._handler.received = 0  # as if the caller had stopped
        assert not interrupts.is_deferred()


def test_deferred_signal_after_the_last_call_is_raised(number):
    def stop():
        with interrupts.raise_on_signals(), interrupts.deferred() as received:
            received()
            signal.raise_signal(number)

    with pytest.raises(interrupts.Stopped, match=number.name):
        stop()


def test_signal_before_the_first_call_is_raised(number):
    def stop():
        with interrupts.raise_on_signals(), interrupts.deferred():
            signal.raise_signal(number)
            pytest.fail('not raised')

    with pytest.raises(interrupts.Stopped, match=number.name):
        stop()


def test_ignored_or_handled_signals_keep_their_handlers(number):
    caught = []
    for handler in (signal.SIG_IGN, lambda *_: caught.append(1)):
        before = signal.signal(number, handler)
        with interrupts.raise_on_signals():
            signal.raise_signal(number)
        assert signal.signal(number, before) is handler
    assert caught == [1]


def test_another_thread_handles_no_signal(number):
    def work():
        with interrupts.raise_on_signals(), interrupts.deferred() as received:
            handlers.extend(map(signal.getsignal, NUMBERS))
            assert received() == 0

    handlers = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler, signal.SIG_DFL]


STOPPED = """
import atexit, contextlib, signal, sys
from lightpaff_jax.runtime import interrupts

class Final:
    def __del__(self):
        print('finalized')

final = Final()
interrupts.exit_on_signals()
atexit.register(print, 'exit function')
with contextlib.suppress(interrupts.Stopped), interrupts.raise_on_signals():
    if 'stop' in sys.argv:
        signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ('word', 'code', 'out'),
    [('stop', 143, 'exit function\n'), ('', 0, 'exit function\nfinalized\n')],
)
def test_stopped_command_is_not_finalized(word, code, out):
    """A native thread that still runs could crash; the exit functions are called all the same."""
    command = [sys.executable, '-c', STOPPED, word]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout, process.stderr) == (code, out, '')
