"""Runs a contestant of benchmarks/step.py in a process with its own heap and threads."""

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
from contestants import CONTESTANTS, make_config

from lightpaff_jax.errors import UserError

# Idle worker threads of a process keep spinning for about 0.2 s after its last update. The pause
# lets those of the previous contestant stop.
_PAUSE_SECONDS = 0.5


class ContestantProcess:
    """A process whose contestant has made its first update.

    Attributes:
      name: key of CONTESTANTS.
      loss: loss of the first update.
      memory: peak of an update in bytes, or None if it is unknown.
    """

    def __init__(self, name: str, pipe: Connection):
        self.name, self._pipe = name, pipe
        self.loss, self.memory = self._receive()

    def seconds(self, steps: int) -> float:
        """Returns the mean seconds of an update, over `steps` updates."""
        time.sleep(_PAUSE_SECONDS)
        self._pipe.send(steps)
        return self._receive()

    def _receive(self):
        try:
            reply = self._pipe.recv()
        except EOFError as error:
            raise UserError(f'--only={self.name}: its process has ended') from error
        if isinstance(reply, str):
            raise UserError(f'--only={self.name}: {reply}')
        return reply


@contextlib.contextmanager
def start(name: str, options: argparse.Namespace) -> Iterator[ContestantProcess]:
    """Starts the process of a contestant and ends it with the context.

    Args:
      name: key of CONTESTANTS.
      options: the options of benchmarks/step.py.

    Raises:
      UserError: if the contestant fails.
    """
    context = multiprocessing.get_context('spawn')
    pipe, child_pipe = context.Pipe()
    process = context.Process(target=_serve, args=(child_pipe, name, options))
    process.start()
    child_pipe.close()  # only the child holds its end, so the parent notices when the child exits
    try:
        yield ContestantProcess(name, pipe)
    except BaseException:
        process.terminate()  # it may be compiling, and would read the pipe only afterwards
        raise
    finally:
        pipe.close()
        process.join()


def _serve(pipe: Connection, name: str, options: argparse.Namespace) -> None:
    """Builds a contestant, then times its updates until the parent closes the pipe.

    Sends (first loss, peak memory), and after each number of updates that it receives the mean
    seconds of an update. Sends an error message if the contestant fails.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    try:
        initial_bytes = _memory_bytes('VmRSS')
        update, memory = CONTESTANTS[name](make_config(options))
        loss = update()
        if jax.default_backend() == 'cpu' and initial_bytes:
            pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak, VmHWM
            update()
            memory = _memory_bytes('VmHWM') - initial_bytes
        pipe.send((loss, memory))
        while True:
            steps = pipe.recv()
            start_time = time.perf_counter()
            for _ in range(steps):
                update()
            pipe.send((time.perf_counter() - start_time) / steps)
    except EOFError:  # the parent closed the pipe
        pass
    except Exception as error:
        pipe.send(f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')


def _memory_bytes(key: str) -> int:
    """Returns a value of this process in /proc/self/status; 0 if the system is not Linux."""
    status = pathlib.Path('/proc/self/status')
    match = re.search(rf'{key}:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return 1024 * int(match[1]) if match else 0
