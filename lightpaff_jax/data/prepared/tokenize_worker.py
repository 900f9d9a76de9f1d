"""The program of a process that tokenizes. It imports little, so that it starts quickly."""

import contextlib
import itertools
import multiprocessing.connection
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Model(Protocol):
    """A tokenizer's model, which can be pickled."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text."""


class Encoded(NamedTuple):
    """The ids of some texts."""

    ids: np.ndarray
    """int32 [n]: the ids of all texts, concatenated."""
    lengths: np.ndarray
    """int64 [texts]: the number of ids of each text."""
    words: np.ndarray | None = None
    """int64 [texts]: the number of words of each text; None if they are not counted."""


def count_words(text: str) -> int:
    """Counts white-space words plus lines (newlines + 1), as word perplexity does."""
    return len(text.split()) + text.count('\n') + 1


def encode(model: Model, texts: Sequence[str], with_words: bool = False) -> Encoded:
    """Encodes texts and, if `with_words`, counts their words."""
    rows = model.encode(texts)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
    words = np.fromiter(map(count_words, texts), np.int64, len(texts)) if with_words else None
    return Encoded(ids, lengths, words)


def serve(descriptor: int) -> None:
    """Receives a model, then encodes each (texts, with_words) it receives until the pipe closes.

    An error is sent as its type and message, because not every error can be pickled.
    """
    pipe = multiprocessing.connection.Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        model = pipe.recv()
        while True:
            work = pipe.recv()
            try:
                pipe.send(encode(model, *work))
            except Exception as error:
                pipe.send(f'{type(error).__name__}: {error}')
