"""Records -> Batches. A global batch is a pure function of (seed, index), whatever the hosts."""

import hashlib
import sys
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import batch as batch_lib
from lightpaff_jax import config
from lightpaff_jax.data import objectives
from lightpaff_jax.data.records import PADDING, Prepared
from lightpaff_jax.data.tokenizers import Tokenizer

_EVALUATION_SEED = 0  # of what is masked in every run's evaluation


def training(
    c: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, start: int = 0
) -> Iterator[batch_lib.Batch]:
    """Global batches start, start + 1, ... without end: this process's rows of each.

    Read ahead by `config.data.prefetch` batches in threads, which end when the iterator
    is closed or dropped.

    Raises:
      UserError: the train split is missing.
    """
    make = _maker(c, prepared, tokenizer, jax.process_index(), jax.process_count())
    return _read_ahead(make, start, sys.maxsize, c.data.prefetch)


def batch_at(
    c: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, index: int, process: int = 0,
    processes: int = 1,
) -> batch_lib.Batch:  # fmt: skip
    """Rows of one process of global batch `index`: arrays [M, B/(M*processes), T].

    The stream of training is every record once, in an order drawn from (seed, epoch 0), then
    every record once in an order drawn from (seed, epoch 1), and so on. Row r of batch i is
    number i*B + r of it; micro-batch m holds rows m*B/M and on, of which each process takes a
    contiguous part in the order of the processes.
    """
    return _maker(c, prepared, tokenizer, process, processes)(index)


def evaluation(
    c: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, split: str
) -> Iterator[batch_lib.Batch]:
    """One pass over a split: this process's rows of each batch, [B/processes, T].

    Blocks come in their order; examples in one that is drawn once for all runs, so that some of
    them stand for the whole.

    The last batch is filled up with rows of weight 0. `config.eval.batches` > 0 stops after
    so many. Every process yields the same number of batches. What is masked does not depend on
    `config.seed`, so that all runs are asked the same.

    Raises:
      UserError: the split is unknown or empty.
    """
    return _evaluation(c, prepared, tokenizer, split, jax.process_index(), jax.process_count())


def _evaluation(
    c: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, split: str, process: int,
    processes: int,
) -> Iterator[batch_lib.Batch]:  # fmt: skip
    records = prepared.records(split)
    if not len(records):
        raise config.UserError(f'empty corpus: split {split!r} of {prepared.path} has no record')
    size, arrays = c.eval.batch_size, objectives.OBJECTIVES[c.objective].arrays
    rows = _part(np.arange(size), process, processes)
    batches = -(-len(records) // size)
    if c.eval.batches:
        batches = min(batches, c.eval.batches)
    order = grain.MapDataset.range(len(records))
    if prepared.kind == 'examples':  # they come class by class: a part must not be one class
        order = order.shuffle(_order(_EVALUATION_SEED))

    def make(index: int) -> batch_lib.Batch:
        numbers = (index * size + rows).tolist()
        found = [records[int(order[i])] for i in numbers if i < len(records)]
        found += [PADDING] * (len(rows) - len(found))
        keys = [(_EVALUATION_SEED, 0, i) for i in numbers]
        return _batch(arrays(c, tokenizer, found, keys), rows.shape)

    return _read_ahead(make, 0, batches, c.data.prefetch)


def _maker(
    c: ConfigDict, prepared: Prepared, tokenizer: Tokenizer, process: int, processes: int
) -> Callable[[int], batch_lib.Batch]:
    """index -> this process's part of a global batch."""
    size, micro = c.data.batch_size, c.train.micro_steps
    records = prepared.records('train')
    order = grain.MapDataset.range(len(records)).shuffle(_order(c.seed)).repeat()
    rows_MB = _part(np.arange(size).reshape(micro, size // micro), process, processes)
    arrays = objectives.OBJECTIVES[c.objective].arrays

    def make(index: int) -> batch_lib.Batch:
        places = (index * size + rows_MB).ravel().tolist()
        numbers = [int(order[place]) for place in places]
        keys = [
            (c.seed, place // len(records), i) for place, i in zip(places, numbers, strict=True)
        ]
        found = [records[i] for i in numbers]
        return _batch(arrays(c, tokenizer, found, keys), rows_MB.shape)

    return make


def _batch(arrays: objectives.Arrays, shape: tuple[int, ...]) -> batch_lib.Batch:
    """Arrays [rows, ...] as a Batch [*shape, ...]; NumPy's, the step puts them on devices."""
    return batch_lib.Batch(**{k: v.reshape(*shape, v.shape[-1]) for k, v in arrays.items()})


def _order(seed: int) -> int:
    """Grain orders epoch e of seed s as epoch e - 1 of seed s + 1: so draw seeds far apart."""
    return int.from_bytes(hashlib.sha256(f'order of the data {seed}'.encode()).digest()[:4])


def _part(rows: np.ndarray, process: int, processes: int) -> np.ndarray:
    """The part of the last axis that one process reads."""
    each = rows.shape[-1] // processes
    assert each * processes == rows.shape[-1], 'validation checks the batch size'
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
