"""A contestant of benchmarks/step.py in a process of its own: its heap and threads are nobody else's."""

import argparse
import contextlib
import multiprocessing
import pathlib
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import jax
from contestants import CONTESTANTS, configured

from lightpaff_jax import config

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
            return self._pipe.recv()
        except EOFError as error:
            raise config.UserError(f'--only={self.name}: its process has ended') from error


@contextlib.contextmanager
def started(name: str, a: argparse.Namespace) -> Iterator[Apart]:
    """The process is there as long as the context."""
    context = multiprocessing.get_context('spawn')
    ours, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, name, a))
    process.start()
    other.close()  # so that its end is seen
    try:
        yield Apart(name, ours)
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, name: str, a: argparse.Namespace) -> None:
    before = _resident('VmRSS')
    call, memory = CONTESTANTS[name](configured(a))
    loss = call()
    if jax.default_backend() == 'cpu' and before:
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        call()
        memory = _resident('VmHWM') - before
    pipe.send((loss, memory))
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the last turn was had
        while True:
            steps = pipe.recv()
            began = time.perf_counter()
            for _ in range(steps):
                call()
            pipe.send((time.perf_counter() - began) / steps)


def _resident(key: str) -> int:
    """Bytes of this process by Linux's books; 0 elsewhere."""
    status = pathlib.Path('/proc/self/status')
    found = re.search(rf'{key}:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0
