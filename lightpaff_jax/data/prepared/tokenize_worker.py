"""What a process that tokenizes runs. It imports little: that it starts quickly is half its worth."""

import contextlib
import itertools
import multiprocessing.connection
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Model(Protocol):
    """What makes ids of texts; it can be pickled."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""


class Encoded(NamedTuple):
    """The ids of several texts."""

    ids: np.ndarray
    """int32 [n]: of all texts, one after the other."""
    lengths: np.ndarray
    """int64 [texts]: how many are of each."""
    words: np.ndarray | None = None
    """int64 [texts]: of each text, where they were asked for."""


def words(text: str) -> int:
    """White-space words, and one for the end of every line: what perplexity a word divides by."""
    return len(text.split()) + text.count('\n') + 1


def encode(model: Model, texts: Sequence[str], counted: bool = False) -> Encoded:
    """Ids of each text, and its words where `counted` says so."""
    found = model.encode(texts)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    ids = np.fromiter(itertools.chain.from_iterable(found), np.int32, int(lengths.sum()))
    counts = np.fromiter(map(words, texts), np.int64, len(texts)) if counted else None
    return Encoded(ids, lengths, counts)


def serve(descriptor: int) -> None:
    """Receives a model, then answers every (texts, whether to count words) until the pipe closes."""
    pipe = multiprocessing.connection.Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        model = pipe.recv()
        while True:
            pipe.send(encode(model, *pipe.recv()))
