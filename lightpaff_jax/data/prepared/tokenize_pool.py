"""Tokenizes texts in this process or in several other processes; the results keep their order.

A process that tokenizes is a new interpreter that runs tokenize_worker.py. It imports neither the
main program nor jax and shares no thread or lock with it. It ends when its pipe closes, so also when
its parent is killed. `multiprocessing` would import the main program again in each process.
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
from lightpaff_jax.errors import Unfinished, UserError

CHUNK = 1 << 18  # characters of a chunk; packed records depend on it
_PROGRAM = (
    'import sys; from lightpaff_jax.data.prepared import tokenize_worker; '
    'tokenize_worker.serve(int(sys.argv[1]))'
)


class Work(NamedTuple):
    """A chunk of examples and the texts to encode for it."""

    examples: list[Example]
    texts: list[str]
    with_words: bool
    """Whether to count words."""


Encode = Callable[[Iterable[Work]], Iterator[tuple[Work, Encoded]]]


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Divides examples into chunks of about CHUNK characters."""
    chunk: list[Example] = []
    size = 0
    for example in examples:
        chunk.append(example)
        size += len(example.first) + len(example.second)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def start(tokenizer: Tokenizer, workers: int) -> Iterator[Encode]:
    """Starts processes that tokenize, and ends them at exit.

    Args:
      tokenizer: the tokenizer, which each process gets a copy of.
      workers: the number of processes; 1 uses only the calling process.

    Yields:
      A function that encodes chunks in order. It takes at most 2 * workers + 1 chunks ahead of the
      results, and raises Unfinished if a process ends.
    """
    if workers < 2:
        yield lambda works: ((work, _encode(tokenizer, work)) for work in works)
        return
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()

    def encode_chunk(work: Work) -> Encoded:
        process = idle.get()
        try:
            return process.encode(work)
        finally:
            idle.put(process)

    def encode(works: Iterable[Work]) -> Iterator[tuple[Work, Encoded]]:
        pending: collections.deque[tuple[Work, futures.Future[Encoded]]] = collections.deque()
        for work in works:
            pending.append((work, threads.submit(encode_chunk, work)))
            if len(pending) > 2 * workers:
                first, encoded = pending.popleft()
                yield first, encoded.result()
        for work, encoded in pending:
            yield work, encoded.result()

    model = pickle.dumps(tokenizer.model)
    threads = futures.ThreadPoolExecutor(workers)
    with contextlib.ExitStack() as stack:
        stack.callback(threads.shutdown, cancel_futures=True)
        for _ in range(workers):
            process = _Process(model)
            stack.callback(process.kill)  # called before `shutdown`, which waits for the threads
            idle.put(process)
        yield encode


def _encode(tokenizer: Tokenizer, work: Work) -> Encoded:
    try:
        return tokenize_worker.encode(tokenizer.model, work.texts, work.with_words)
    except Exception as error:  # of `tokenizers`
        raise _unencodable(f'{type(error).__name__}: {error}') from error


def _unencodable(problem: str) -> UserError:
    return UserError(f'the tokenizer cannot encode a text: {problem}')


class _Process:
    """A process that tokenizes; used by one thread at a time."""

    def __init__(self, model: bytes):
        self._model = model
        self._pipe, child = multiprocessing.connection.Pipe()
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        # The child inherits the mask: signals only stop this process, which then ends the child.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-c', _PROGRAM, str(child.fileno())],
                pass_fds=[child.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {'PYTHONPATH': path, 'TOKENIZERS_PARALLELISM': 'false'},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        child.close()

    def encode(self, work: Work) -> Encoded:
        try:
            if self._model:  # sent late, because a full pipe would delay the start of the others
                self._pipe.send_bytes(self._model)
                self._model = b''
            self._pipe.send((work.texts, work.with_words))
            encoded = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f'signal {-code}' if code < 0 else f'exit code {code}'
            raise Unfinished(
                f'a process that tokenizes ended with {how}: if memory was short, fewer '
                'config.data.workers need less; the same command resumes the work'
            ) from error
        if isinstance(encoded, str):
            raise _unencodable(encoded)
        return encoded

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
