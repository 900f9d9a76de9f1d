"""A contestant of benchmarks/step.py in a process of its own: its heap and threads are nobody else's."""

import argparse
import contextlib
import multiprocessing
import pathlib
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import jax
from contestants import CONTESTANTS, configured

from lightpaff_jax.errors import UserError

_QUIET = 0.5
"""Seconds before a turn: threads that wait for work go on turning for 0.2 s after the last one."""


class Apart:
    """A contestant that has made its first updates and waits for its turn."""

    def __init__(self, name: str, pipe: Connection):
        self.name, self._pipe = name, pipe
        self.loss, self.memory = self._hear()

    def seconds(self, steps: int) -> float:
        """Of one update, over `steps` of them."""
        time.sleep(_QUIET)
        self._pipe.send(steps)
        return self._hear()

    def _hear(self):
        try:
            said = self._pipe.recv()
        except EOFError as error:
            raise UserError(f'--only={self.name}: its process has ended') from error
        if isinstance(said, str):
            raise UserError(f'--only={self.name}: {said}')
        return said


@contextlib.contextmanager
def started(name: str, a: argparse.Namespace) -> Iterator[Apart]:
    """The process is there as long as the context; raises UserError where it fails."""
    context = multiprocessing.get_context('spawn')
    ours, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, name, a))
    process.start()
    other.close()  # so that its end is seen
    try:
        yield Apart(name, ours)
    except BaseException:
        process.terminate()  # it may be compiling
        raise
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, name: str, a: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    try:
        before = _resident('VmRSS')
        call, memory = CONTESTANTS[name](configured(a))
        loss = call()
        if jax.default_backend() == 'cpu' and before:
            pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
            call()
            memory = _resident('VmHWM') - before
        pipe.send((loss, memory))
        while True:
            steps = pipe.recv()
            began = time.perf_counter()
            for _ in range(steps):
                call()
            pipe.send((time.perf_counter() - began) / steps)
    except EOFError:  # the last turn was had
        pass
    except Exception as error:
        pipe.send(f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')


def _resident(key: str) -> int:
    """Bytes of this process by Linux's books; 0 elsewhere."""
    status = pathlib.Path('/proc/self/status')
    found = re.search(rf'{key}:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0
