"""Records -> Batches. A global batch is a pure function of (seed, index), whatever the hosts."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import batch as batch_lib
from lightpaff_jax.data import objectives, sampler
from lightpaff_jax.data.mixture import MixedRecords, Mixture
from lightpaff_jax.data.objectives.collate import Arrays
from lightpaff_jax.data.records import PADDING, Dataset, Record, Records
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError

_EVALUATION_SEED = 0  # of what is masked in every run's evaluation


def training(
    c: ConfigDict, prepared: Dataset | Mixture, tokenizer: Tokenizer, start: int = 0,
    rows: Int[np.ndarray, ' R'] | None = None,
) -> Iterator[batch_lib.Batch]:  # fmt: skip
    """Global batches start, start + 1, ... without end: arrays [M, R, T].

    Read ahead by `config.data.prefetch` batches in threads, which end when the iterator
    is closed or dropped.

    Args:
      c: the run's configuration.
      prepared: the run's data.
      tokenizer: the run's.
      start: the first batch's index.
      rows: of every micro-batch, those that this process reads; None: all.

    Raises:
      UserError: the train split is missing.
    """
    make = batch_function(c, prepared, tokenizer, rows)
    return _read_ahead(make, start, sys.maxsize, c.data.prefetch)


def evaluation(
    c: ConfigDict, prepared: Dataset | Mixture, tokenizer: Tokenizer, split: str,
    rows: Int[np.ndarray, ' R'] | None = None,
) -> Iterator[batch_lib.Batch]:  # fmt: skip
    """One pass over a split: `rows` of each batch, [R, T]; None: all.

    Blocks come in their order, or as windows of `config.eval.stride`; examples, and the blocks of a
    mixture, in an order that is drawn once for all runs, so that some of them stand for the whole.

    The last batch is filled up with rows of weight 0. `config.eval.batches` > 0 stops after
    so many. Every process yields the same number of batches. What is masked does not depend on
    `config.seed`, so that all runs are asked the same.

    Raises:
      UserError: the split is unknown or empty.
    """
    records = _evaluated(c, prepared, split)
    size, arrays = c.eval.batch_size, objectives.OBJECTIVES[c.objective].arrays
    mine_R = np.arange(size) if rows is None else rows
    numbers_nB = evaluation_indices(c, prepared, split)

    def make(index: int) -> batch_lib.Batch:
        wanted = numbers_nB[index, mine_R]
        read = records.read(wanted[wanted >= 0].tolist())
        # Rows that only fill up are the last of a batch, and so of these, which rise.
        found = read + [PADDING] * (len(mine_R) - len(read))
        numbers = (index * size + mine_R).tolist()
        keys = [(_EVALUATION_SEED, 0, i) for i in numbers]
        made = arrays(c, tokenizer, found, keys)
        if isinstance(records, _Windows):
            made['weights'] *= records.weights(numbers)
        return _batch(made, mine_R.shape)

    return _read_ahead(make, 0, len(numbers_nB), c.data.prefetch)


def evaluation_indices(
    c: ConfigDict, prepared: Dataset | Mixture, split: str
) -> Int[np.ndarray, 'n B']:
    """What is in each row of each batch of `evaluation`: the number of its block, window or
    example in the split; -1 in a row that only fills up the last batch.
    """
    records, size = _evaluated(c, prepared, split), c.eval.batch_size
    batches = -(-len(records) // size)
    if c.eval.batches:
        batches = min(batches, c.eval.batches)
    # Examples come class by class, mixtures set by set: a part must not be one of them.
    drawn = prepared.record_type == 'examples' or isinstance(prepared, Mixture)
    place = sampler.evaluation_order(len(records)) if drawn else int
    read = min(batches * size, len(records))
    numbers = [place(i) for i in range(read)] + [-1] * (batches * size - read)
    return np.array(numbers, np.int64).reshape(batches, size)


def _evaluated(c: ConfigDict, prepared: Dataset | Mixture, split: str) -> '_Readable':
    """The records, or windows, of a split that is evaluated."""
    stored = prepared.records(split)
    if not len(stored):
        raise UserError(f'empty corpus: split {split!r} of {prepared.path} has no record')
    if 0 < c.eval.stride < c.data.length:
        assert isinstance(stored, Records), 'validation refuses windows of a mixture'
        return _Windows(stored, c.data.length, c.eval.stride)
    return stored


class _Windows:
    """Blocks of a stream read again as windows of T+1 ids, one every `stride`.

    Every id is predicted once: by the first window all of its T, by each of the others its last
    `stride`, which so see at least T - stride ids before them.
    """

    def __init__(self, blocks: 'Records', length: int, stride: int):
        self._blocks, self._length, self._stride = blocks, length, stride
        self._ids = (len(blocks) - 1) * length + len(blocks.read([len(blocks) - 1])[0].first)

    def __len__(self) -> int:
        left = self._ids - 1 - self._length
        return 1 + max(0, -(-left // self._stride))

    def read(self, indices: list[int]) -> list[Record]:
        """Windows of these numbers."""
        found = []
        for index in indices:
            block, offset = divmod(index * self._stride, self._length)
            own, *following = self._blocks.read([block, block + 1][: len(self._blocks) - block])
            parts = [own.first[: self._length], following[0].first] if following else [own.first]
            found.append(Record(np.concatenate(parts)[offset : offset + self._length + 1]))
        return found

    def weights(self, numbers: list[int]) -> np.ndarray:
        """[windows, T]: 1 where a window predicts, were it full."""
        first = np.array([0 if n == 0 else self._length - self._stride for n in numbers])
        return (np.arange(self._length) >= first[:, None]).astype(np.float32)


_Readable = Records | MixedRecords | _Windows


def batch_function(
    c: ConfigDict, prepared: Dataset | Mixture, tokenizer: Tokenizer, rows: np.ndarray | None
) -> Callable[[int], batch_lib.Batch]:
    """index -> `rows` of each micro-batch of a global batch."""
    size, micro = c.data.batch_size, c.train.grad_accum_steps
    records = prepared.records('train')
    rows_MR = np.arange(size).reshape(micro, size // micro)
    rows_MR = rows_MR if rows is None else rows_MR[:, rows]
    objective = objectives.OBJECTIVES[c.objective]
    shapes = objectives.buckets(c)
    if c.data.buckets:
        assert isinstance(records, Records), 'validation refuses buckets of a mixture'
        fits = objectives.smallest_bucket(c, shapes, records.lengths())
        rows_of = sampler.make_bucketed(fits, c.seed, size)
    else:
        rows_of = sampler.make(prepared, c.seed, size)

    def make(index: int) -> batch_lib.Batch:
        rows = rows_of(index)
        mine = rows_MR.ravel().tolist()
        numbers = [rows.indices[row] for row in mine]
        keys = [(c.seed, rows.epochs[row], rows.indices[row]) for row in mine]
        found = objective.arrays(shapes[rows.bucket], tokenizer, records.read(numbers), keys)
        return _batch(found, rows_MR.shape)

    return make


def abstract_batches(c: ConfigDict) -> list[batch_lib.Batch]:
    """ShapeDtypeStructs of a training batch, [M, B/M, ...], for each bucket: no data is read."""
    vocabulary: Any = types.SimpleNamespace(
        pad_id=0, eos_id=0, cls_id=0, sep_id=0, mask_id=0, special_ids=frozenset(),
        vocab_size=c.student.vocab_size, word_starts=np.zeros(c.student.vocab_size, bool),
    )  # fmt: skip
    arrays = objectives.OBJECTIVES[c.objective].arrays
    rows = c.train.grad_accum_steps, c.data.batch_size // c.train.grad_accum_steps
    found = []
    for shorter in objectives.buckets(c):
        row = arrays(shorter, vocabulary, [PADDING], [(0, 0, 0)])
        like: dict[str, Any] = {
            name: jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype) for name, x in row.items()
        }
        found.append(batch_lib.Batch(**like))
    return found


def _batch(arrays: Arrays, shape: tuple[int, ...]) -> batch_lib.Batch:
    """Arrays [rows, ...] as a Batch [*shape, ...]; NumPy's, the step puts them on devices."""
    return batch_lib.Batch(**{k: v.reshape(*shape, *v.shape[1:]) for k, v in arrays.items()})


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
