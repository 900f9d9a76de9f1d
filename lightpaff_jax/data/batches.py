"""Blocks -> Batches. A global batch is a pure function of (seed, index), whatever the hosts."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import batch as batch_lib
from lightpaff_jax import config
from lightpaff_jax.data import objectives, prepare


def training(
    c: ConfigDict, prepared: prepare.Prepared, start: int = 0
) -> Iterator[batch_lib.Batch]:
    """Global batches start, start + 1, ... without end: this process's rows of each.

    Read ahead by `config.data.prefetch` batches in threads, which end when the iterator
    is closed or dropped.

    Raises:
      UserError: the train split is missing.
    """
    make = _maker(c, prepared, jax.process_index(), jax.process_count())
    return _read_ahead(make, start, sys.maxsize, c.data.prefetch)


def batch_at(
    c: ConfigDict, prepared: prepare.Prepared, index: int, process: int = 0, processes: int = 1
) -> batch_lib.Batch:
    """Rows of one process of global batch `index`: arrays [M, B/(M*processes), T].

    The stream of training is every block once, in an order drawn from (seed, epoch 0), then
    every block once in an order drawn from (seed, epoch 1), and so on. Row r of batch i is
    record i*B + r of it; micro-batch m holds rows m*B/M and on, of which each process takes a
    contiguous part in the order of the processes.
    """
    return _maker(c, prepared, process, processes)(index)


def evaluation(c: ConfigDict, prepared: prepare.Prepared, split: str) -> Iterator[batch_lib.Batch]:
    """One pass over a split in order: this process's rows of each batch, [B/processes, T].

    The last batch is filled up with rows of weight 0. `config.eval.batches` > 0 stops after
    so many. Every process yields the same number of batches.

    Raises:
      UserError: the split is unknown or empty.
    """
    return _evaluation(c, prepared, split, jax.process_index(), jax.process_count())


def _evaluation(
    c: ConfigDict, prepared: prepare.Prepared, split: str, process: int, processes: int
) -> Iterator[batch_lib.Batch]:
    blocks = prepared.blocks(split)
    if not len(blocks):
        raise config.UserError(f'empty corpus: split {split!r} of {prepared.path} has no block')
    size, objective = c.eval.batch_size, objectives.OBJECTIVES[c.objective]
    rows = _part(np.arange(size), process, processes)
    batches = -(-len(blocks) // size)
    if c.eval.batches:
        batches = min(batches, c.eval.batches)

    def make(index: int) -> batch_lib.Batch:
        records = [blocks[i] for i in (index * size + rows).tolist() if i < len(blocks)]
        ids = np.zeros((len(rows), prepared.length + 1), np.int32)
        lengths = np.zeros(len(rows), np.int32)
        for row, (block, length) in enumerate(records):
            ids[row], lengths[row] = block, length
        return _batch(objective(ids, lengths), rows.shape)

    return _read_ahead(make, 0, batches, c.data.prefetch)


def _maker(
    c: ConfigDict, prepared: prepare.Prepared, process: int, processes: int
) -> Callable[[int], batch_lib.Batch]:
    """index -> this process's part of a global batch."""
    size, micro = c.data.batch_size, c.train.micro_steps
    records = grain.MapDataset.source(prepared.blocks('train')).shuffle(_order(c.seed)).repeat()
    rows_MB = _part(np.arange(size).reshape(micro, size // micro), process, processes)
    objective = objectives.OBJECTIVES[c.objective]

    def make(index: int) -> batch_lib.Batch:
        ids, lengths = zip(
            *(records[i] for i in (index * size + rows_MB).ravel().tolist()), strict=True
        )
        arrays = objective(np.stack(ids), np.asarray(lengths))
        return _batch(arrays, rows_MB.shape)

    return make


def _batch(arrays: dict[str, Any], shape: tuple[int, ...]) -> batch_lib.Batch:
    """Arrays [rows, T] as a Batch [*shape, T]; NumPy's, the step puts them on devices."""
    return batch_lib.Batch(**{k: v.reshape(*shape, v.shape[-1]) for k, v in arrays.items()})


def _order(seed: int) -> int:
    """Grain orders epoch e of seed s as epoch e - 1 of seed s + 1: so draw seeds far apart."""
    return int.from_bytes(hashlib.sha256(f'order of the data {seed}'.encode()).digest()[:4])


def _part(rows: np.ndarray, process: int, processes: int) -> np.ndarray:
    """The part of the last axis that one process reads."""
    each = rows.shape[-1] // processes
    assert each * processes == rows.shape[-1], 'config.validate checks the batch size'
    return rows[..., process * each : (process + 1) * each]


def _read_ahead(
    make: Callable[[int], batch_lib.Batch], start: int, stop: int, buffer: int
) -> Iterator[batch_lib.Batch]:
    """make(start), ..., make(stop - 1), made in threads that end with the iterator."""
    options = grain.ReadOptions(num_threads=min(buffer, 4), prefetch_buffer_size=buffer)
    iterator = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
