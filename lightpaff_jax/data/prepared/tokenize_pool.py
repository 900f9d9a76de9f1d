"""Texts -> ids, in this process or in several that are started for it; always in order.

A process that tokenizes is a fresh interpreter that runs worker.py: it imports neither the program
that started it nor jax, shares no thread or lock with it, and ends when its pipe closes, so also
when its parent is killed. `multiprocessing` would import the program once more in each.
"""

import collections
import contextlib
import multiprocessing.connection
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import NamedTuple

from lightpaff_jax.data.prepared import tokenize_worker
from lightpaff_jax.data.prepared.tokenize_worker import Encoded
from lightpaff_jax.data.sources import Example
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import Unfinished

CHUNK = 1 << 18  # characters that are encoded at once; records depend on it
_PROGRAM = (
    'import sys; from lightpaff_jax.data.prepared import tokenize_worker; '
    'tokenize_worker.serve(int(sys.argv[1]))'
)


class Work(NamedTuple):
    """What is encoded at once."""

    examples: list[Example]
    texts: list[str]
    counted: bool
    """Whether to count words."""


Encode = Callable[[Iterable[Work]], Iterator[tuple[Work, Encoded]]]


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Parts of about CHUNK characters, whatever encodes them."""
    part: list[Example] = []
    size = 0
    for example in examples:
        part.append(example)
        size += len(example.first) + len(example.second)
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


@contextlib.contextmanager
def encoder(tokenizer: Tokenizer, workers: int) -> Iterator[Encode]:
    """Gives a function that encodes one piece of work after the other.

    It takes work at most 2 * workers + 1 pieces ahead of the results, and raises Unfinished where
    a process ended.

    Args:
      tokenizer: each process gets a copy.
      workers: processes; 1 is this one alone.
    """

    def here(works: Iterable[Work]) -> Iterator[tuple[Work, Encoded]]:
        for work in works:
            yield work, tokenize_worker.encode(tokenizer.model, work.texts, work.counted)

    if workers < 2:
        yield here
        return
    model = pickle.dumps(tokenizer.model)
    started: list[_Process] = []
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    pool = futures.ThreadPoolExecutor(workers)

    def one(work: Work) -> Encoded:
        process = idle.get()
        try:
            return process.encode(work)
        finally:
            idle.put(process)

    def there(works: Iterable[Work]) -> Iterator[tuple[Work, Encoded]]:
        waiting: collections.deque[tuple[Work, futures.Future[Encoded]]] = collections.deque()
        for work in works:
            waiting.append((work, pool.submit(one, work)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()

    try:
        for _ in range(workers):
            started.append(_Process(model))
            idle.put(started[-1])
        yield there
    finally:
        for process in started:
            process.kill()  # so that no thread waits for it
        pool.shutdown(cancel_futures=True)
        for process in started:
            process.close()


class _Process:
    """One that tokenizes; one thread at a time may ask it."""

    def __init__(self, model: bytes):
        self._model = model
        self._pipe, theirs = multiprocessing.connection.Pipe()
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        # Ctrl-C is for this process, which ends the other: that one inherits that it is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-c', _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {'PYTHONPATH': path, 'TOKENIZERS_PARALLELISM': 'false'},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def encode(self, work: Work) -> Encoded:
        try:
            if self._model:  # not while the others are yet to be started: a pipe holds less
                self._pipe.send_bytes(self._model)
                self._model = b''
            self._pipe.send((work.texts, work.counted))
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f'signal {-code}' if code < 0 else f'exit code {code}'
            raise Unfinished(
                f'a process that tokenizes ended with {how}: if memory was short, fewer '
                'config.data.workers need less; the same command goes on where this one stopped'
            ) from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._pipe.close()
