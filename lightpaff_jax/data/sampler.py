"""Maps a batch to its records: a pure function of (seed, batch index).

Training reads an endless stream of rows; batch i of B rows holds rows i*B, ..., i*B + B - 1.
Each epoch of the stream has every record once, in an order drawn from (seed, epoch). In a mixture,
every part has such a stream of its own, and the rows come from the parts in proportion to their
weights. If `config.data.unlabelled_share` is set, an epoch has every labelled record once, and
unlabelled ones in proportion. Data-parallel processes read disjoint rows of the same batch, so the stream does not depend
on the number of processes, and resuming needs only the batch index.
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
from lightpaff_jax.data.records import Dataset

# Grain permutes by a block cipher over at least this many values and repeats it until the result is
# a valid index, which is slow for smaller datasets. Those are permuted by argsort instead.
_CIPHER_SIZE = 1 << 16


class Rows(NamedTuple):
    """The records of one global batch, row by row."""

    indices: list[int]
    epochs: list[int]
    """How many times the stream had returned the record before."""
    bucket: int = 0
    """Index of the smallest bucket that fits all rows."""


def make(dataset: Dataset | Mixture, seed: int, batch_size: int) -> Callable[[int], Rows]:
    """Returns a function from a batch index to the rows of that batch of the train split."""
    if isinstance(dataset, Mixture):
        sizes = [part.split('train')['records'] for part in dataset.parts]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        streams = [
            _stream(n, _hash_seed(f'{seed} part {k}' if k else seed), start)
            for k, (n, start) in enumerate(zip(sizes, starts, strict=True))
        ]
        stream = grain.MapDataset.mix(streams, dataset.weights)
    else:
        stream = _stream(dataset.split('train')['records'], _hash_seed(seed))

    def rows(index: int) -> Rows:
        first = index * batch_size
        pairs = [stream[position] for position in range(first, first + batch_size)]
        return Rows([record for record, _ in pairs], [epoch for _, epoch in pairs])

    return rows


def _stream(n: int, seed: int, start: int = 0) -> grain.MapDataset:
    """Maps a position in the stream to (index of the record, epoch); indices begin at `start`."""
    if n >= _CIPHER_SIZE:
        shuffled = grain.MapDataset.range(start, start + n).shuffle(seed).repeat()
        return shuffled.map_with_index(lambda position, record: (int(record), position // n))
    permutation = _cache_epochs(
        lambda epoch: np.argsort(_philox(seed, epoch).random_raw(n), kind='stable')
    )

    def row(position: int, _) -> tuple[int, int]:
        epoch, offset = divmod(position, n)
        return start + int(permutation(epoch)[offset]), epoch

    return grain.MapDataset.range(n).repeat().map_with_index(row)


def _cache_epochs(permute: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """Caches `permute(epoch)`; one thread computes it while the others wait."""
    lock, cached = threading.Lock(), functools.lru_cache(maxsize=4)(permute)

    def permutation(epoch: int) -> np.ndarray:
        with lock:
            return cached(epoch)

    return permutation


def _philox(seed: int, epoch: int) -> np.random.Philox:
    # Raw Philox output is fixed by its definition; NumPy may change Generator.permutation.
    return np.random.Philox(key=seed, counter=np.array([0, 0, 0, epoch], np.uint64))


class Unlabelled(NamedTuple):
    """The share of the rows that are unlabelled records, which follow the labelled ones."""

    labelled: int
    """The number of labelled records."""
    share: float
    """The share of the rows of an epoch, above 0 and below 1."""


def make_bucketed(
    buckets: Int[np.ndarray, ' n'],
    seed: int,
    batch_size: int,
    unlabelled: Unlabelled | None = None,
) -> Callable[[int], Rows]:
    """Returns a function from a batch index to its rows, which groups records of similar length.

    Each epoch has every record once. All records of a batch are of one bucket, except in batches
    at the border of two buckets or two epochs. The order of the batches is drawn from
    (seed, epoch) too.

    With `unlabelled`, each epoch has every labelled record once, and as many unlabelled records as
    make up their share. Those come from a stream with epochs of its own, so all of them are read
    equally often.

    Args:
      buckets: index of the smallest bucket that each record fits in.
      seed: seed of the order.
      batch_size: B.
      unlabelled: the share of unlabelled records; None reads all records alike.
    """
    n, more = len(buckets), 0
    if unlabelled is not None:
        n, share = unlabelled
        more = max(1, round(n * share / (1 - share)))

    def permute(epoch: int) -> Int[np.ndarray, 'n 2']:
        records_n2 = np.stack([np.arange(n), np.full(n, epoch)], axis=1)
        if more:
            stream = range(epoch * more, (epoch + 1) * more)
            rest_n2 = _consecutive_rows(len(buckets) - n, f'{seed} unlabelled', stream)
            rest_n2[:, 0] += n
            records_n2 = np.concatenate([records_n2, rest_n2])
        order = _bucketed_epoch(buckets[records_n2[:, 0]], seed, epoch, batch_size)
        return records_n2[order]

    order = _cache_epochs(permute)

    def rows(index: int) -> Rows:
        first = index * batch_size
        positions = [divmod(p, n + more) for p in range(first, first + batch_size)]
        pairs = [order(epoch)[offset].tolist() for epoch, offset in positions]
        records = [record for record, _ in pairs]
        return Rows(records, [epoch for _, epoch in pairs], int(buckets[records].max()))

    return rows


def _consecutive_rows(n: int, seed: str, stream: range) -> Int[np.ndarray, 'rows 2']:
    """Returns (index of the record, epoch) for some positions of a stream of n shuffled records."""
    parts = []
    for epoch in range(stream.start // n, -(-stream.stop // n)):
        records = np.argsort(_philox(_hash_seed(seed), epoch).random_raw(n), kind='stable')
        first, last = (min(max(p - epoch * n, 0), n) for p in (stream.start, stream.stop))
        part = records[first:last]
        parts.append(np.stack([part, np.full(len(part), epoch)], axis=1))
    return np.concatenate(parts)


def _bucketed_epoch(
    buckets: np.ndarray, seed: int, epoch: int, batch_size: int
) -> Int[np.ndarray, ' n']:
    """Returns the order of the records of one epoch, given the bucket of each."""
    n = len(buckets)
    philox = _philox(_hash_seed(seed), epoch)
    records = np.argsort(philox.random_raw(n), kind='stable')
    # The first records complete the batch that the previous epoch began.
    first = min(n, -epoch * n % batch_size)
    head, rest = records[:first], records[first:]
    rest = rest[np.argsort(buckets[rest], kind='stable')]
    full = len(rest) // batch_size
    batches = rest[: full * batch_size].reshape(full, batch_size)
    tail = rest[full * batch_size :]
    batches = batches[np.argsort(philox.random_raw(full), kind='stable')] if full else batches
    return np.concatenate([head, batches.ravel(), tail])


def _hash_seed(seed: int | str) -> int:
    """Spreads seeds: Grain shuffles epoch e of seed s as it does epoch e - 1 of seed s + 1."""
    return int.from_bytes(hashlib.sha256(f'order of the data {seed}'.encode()).digest()[:4])


def evaluation_order(n: int) -> Callable[[int], int]:
    """Returns a permutation of n records, the same for all runs."""
    stream = _stream(n, _hash_seed(0))
    return lambda position: stream[position][0]
