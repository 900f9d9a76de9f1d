"""Which records are in which batch: a pure function of (seed, index).

Training reads a stream of rows without end; batch i holds rows i*B ... i*B + B - 1 of it. The
stream is every record once, in an order drawn from (seed, epoch 0), then every record once in an
order drawn from (seed, epoch 1), and so on. Of a mixture each part is such a stream, and the rows
come from the parts in proportion to their weights.
"""

import functools
import hashlib
import threading
from collections.abc import Callable
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Prepared

_MANY = (
    1 << 16
)  # Grain shuffles by a cipher of at least so many places, and walks to one that is used


class Rows(NamedTuple):
    """The records of one global batch, row by row."""

    numbers: list[int]
    epochs: list[int]
    """How often the record was in the stream before."""
    bucket: int = 0
    """The smallest that all of them fit in."""


def make(prepared: Prepared | Mixture, seed: int, size: int) -> Callable[[int], Rows]:
    """Index of a batch of `size` rows -> its rows, of the train split."""
    if isinstance(prepared, Mixture):
        lengths = [part.split('train')['records'] for part in prepared.parts]
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        streams = [
            _stream(n, _spread(f'{seed} part {k}' if k else seed), start)
            for k, (n, start) in enumerate(zip(lengths, starts, strict=True))
        ]
        stream = grain.MapDataset.mix(streams, prepared.weights)
    else:
        stream = _stream(prepared.split('train')['records'], _spread(seed))

    def rows(index: int) -> Rows:
        found = [stream[place] for place in range(index * size, index * size + size)]
        return Rows([number for number, _ in found], [epoch for _, epoch in found])

    return rows


def _stream(n: int, seed: int, start: int = 0) -> grain.MapDataset:
    """Place -> (number of the record, epoch)."""
    if n >= _MANY:
        shuffled = grain.MapDataset.range(start, start + n).shuffle(seed).repeat()
        return shuffled.map_with_index(lambda place, number: (int(number), place // n))
    epochs = _kept(lambda epoch: np.argsort(_philox(seed, epoch).random_raw(n), kind='stable'))

    def row(place: int, _) -> tuple[int, int]:
        epoch, at = divmod(place, n)
        return start + int(epochs(epoch)[at]), epoch

    return grain.MapDataset.range(n).repeat().map_with_index(row)


def _kept(make: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """`make(epoch)`, made once by one thread while the others wait."""
    lock, cached = threading.Lock(), functools.lru_cache(maxsize=4)(make)

    def get(epoch: int) -> np.ndarray:
        with lock:
            return cached(epoch)

    return get


def _philox(seed: int, epoch: int) -> np.random.Philox:
    return np.random.Philox(key=seed, counter=np.array([0, 0, 0, epoch], np.uint64))


def make_bucketed(fits: Int[np.ndarray, ' n'], seed: int, size: int) -> Callable[[int], Rows]:
    """Index of a batch of `size` rows -> its rows, records of like lengths together.

    An epoch is every record once. Of its batches all have records of one bucket, but those in which
    two buckets or two epochs meet; their order is drawn from (seed, epoch) too.

    Args:
      fits: the smallest bucket that each record fits in.
      seed: of the order.
      size: B.
    """
    n = len(fits)

    epoch_of = _kept(lambda epoch: _epoch(fits, seed, epoch, size))

    def rows(index: int) -> Rows:
        places = [divmod(place, n) for place in range(index * size, index * size + size)]
        numbers = [int(epoch_of(epoch)[at]) for epoch, at in places]
        return Rows(numbers, [epoch for epoch, _ in places], int(fits[numbers].max()))

    return rows


def _epoch(fits: np.ndarray, seed: int, epoch: int, size: int) -> Int[np.ndarray, ' n']:
    """The records of one epoch in the order of the stream."""
    n = len(fits)
    key = _philox(_spread(seed), epoch)
    drawn = np.argsort(key.random_raw(n), kind='stable')
    first = min(n, -epoch * n % size)  # they fill up the batch that the epoch before began
    head, rest = drawn[:first], drawn[first:]
    rest = rest[np.argsort(fits[rest], kind='stable')]
    whole = len(rest) // size
    batches, tail = rest[: whole * size].reshape(whole, size), rest[whole * size :]
    batches = batches[np.argsort(key.random_raw(whole), kind='stable')] if whole else batches
    return np.concatenate([head, batches.ravel(), tail])


def _spread(seed: int | str) -> int:
    """Grain orders epoch e of seed s as epoch e - 1 of seed s + 1: so draw seeds far apart."""
    return int.from_bytes(hashlib.sha256(f'order of the data {seed}'.encode()).digest()[:4])


def evaluation_order(n: int) -> Callable[[int], int]:
    """Place -> number: every record once, in one order for all runs."""
    stream = _stream(n, _spread(0))
    return lambda place: stream[place][0]
