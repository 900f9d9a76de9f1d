"""Batches of records. A global batch depends only on (seed, index), not on the processes."""

import bisect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int
from ml_collections import ConfigDict

from lightpaff_jax import batch as batch_lib
from lightpaff_jax.data import objectives, sampler
from lightpaff_jax.data.mixture import MixedRecords, Mixture
from lightpaff_jax.data.objectives.collate import Arrays, Key
from lightpaff_jax.data.records import PADDING, Dataset, Record, Records
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError

# Seed of the masks in evaluation; fixed, so that runs of all seeds predict the same ids.
_EVALUATION_SEED = 0
# Seed of the masks of runs that read a cache of the teacher, so that runs of all seeds share it.
_CACHE_SEED = 0

Rows = Int[np.ndarray, ' R']
# Reads `Batch.teacher` of a row by index of the record and number of the masking, in the shape of a
# bucket.
ReadTeacher = Callable[[list[int], list[int], int], Arrays]


def training(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    start: int = 0,
    rows: Rows | None = None,
    read_teacher: ReadTeacher | None = None,
) -> Iterator[batch_lib.Batch]:
    """Yields global batches start, start + 1, ... without end, with arrays [M, R, ...].

    Threads read `config.data.prefetch` batches ahead; they end when the iterator is closed or
    dropped.

    Args:
      c: the configuration.
      prepared: the dataset.
      tokenizer: the tokenizer of the dataset.
      start: index of the first batch.
      rows: the rows of every micro-batch that this process reads; None reads all.
      read_teacher: reads the teacher's arrays of a batch; None leaves them to the step.

    Raises:
      UserError: the split train is missing.
    """
    read_batch = batch_function(c, prepared, tokenizer, rows, read_teacher)
    return _prefetch(read_batch, start, sys.maxsize, c.data.prefetch)


def evaluation(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    split: str,
    rows: Rows | None = None,
) -> Iterator[batch_lib.Batch]:
    """Yields one pass over a split, in batches with arrays [R, ...].

    Blocks come in their order, or as windows with a stride of `config.eval.stride`. Examples, and
    the blocks of a mixture, come in a random order that is the same for all runs, so that the first
    batches represent the whole split.

    The last batch is filled with rows of weight 0, so all processes yield equally many batches; at
    most `config.eval.batches` unless that is 0. Masks do not depend on `config.seed`.

    Args:
      c: the configuration.
      prepared: the dataset.
      tokenizer: the tokenizer of the dataset.
      split: name of the split.
      rows: the rows of every batch that this process reads; None reads all.

    Raises:
      UserError: the split is missing or empty.
    """
    records = _evaluation_records(c, prepared, split)
    arrays = objectives.OBJECTIVES[c.objective].arrays
    rows_R = np.arange(c.eval.batch_size) if rows is None else rows
    indices_nB = evaluation_indices(c, prepared, split)

    def read_batch(index: int) -> batch_lib.Batch:
        indices_R = indices_nB[index, rows_R]
        batch_records = records.read(indices_R[indices_R >= 0].tolist())
        # Rows without a record are the last ones of a batch.
        batch_records += [PADDING] * (len(rows_R) - len(batch_records))
        numbers = (index * c.eval.batch_size + rows_R).tolist()
        keys = [(_EVALUATION_SEED, 0, i) for i in numbers]
        fields = arrays(c, tokenizer, batch_records, keys)
        if isinstance(records, _Windows):
            fields['weights'] *= records.weights(numbers)
        return _to_batch(fields, rows_R.shape)

    return _prefetch(read_batch, 0, len(indices_nB), c.data.prefetch)


def evaluation_indices(
    c: ConfigDict, prepared: Dataset | Mixture, split: str
) -> Int[np.ndarray, 'n B']:
    """Returns the index of the record or window in each row of each batch of `evaluation`.

    It is -1 in the rows that only fill the last batch.
    """
    size, batch_size = len(_evaluation_records(c, prepared, split)), c.eval.batch_size
    batches = -(-size // batch_size)
    if c.eval.batches:
        batches = min(batches, c.eval.batches)
    # Examples are stored class by class and mixtures part by part, so they have to be shuffled.
    is_shuffled = prepared.record_type == 'examples' or isinstance(prepared, Mixture)
    order = sampler.evaluation_order(size) if is_shuffled else int
    indices = np.full(batches * batch_size, -1)
    indices[:size] = [order(i) for i in range(min(size, len(indices)))]
    return indices.reshape(batches, batch_size)


def _evaluation_records(
    c: ConfigDict, prepared: Dataset | Mixture, split: str
) -> 'Records | MixedRecords | _Windows':
    records = prepared.records(split)
    if not len(records):
        raise UserError(f'empty corpus: split {split!r} of {prepared.path} has no record')
    if 0 < c.eval.stride < c.data.length:
        assert isinstance(records, Records), 'validation refuses windows of a mixture'
        return _Windows(records, c.data.length, c.eval.stride)
    return records


class _Windows:
    """Reads the blocks of a stream as overlapping windows of T+1 ids, which start every `stride`.

    Every id is predicted once. The first window predicts all of its T ids. Every other window
    predicts only its last `stride` ids, each of which so has at least T - stride ids before it.
    """

    def __init__(self, blocks: Records, length: int, stride: int):
        self._blocks, self._length, self._stride = blocks, length, stride
        self._ids = (len(blocks) - 1) * length + len(blocks.read([len(blocks) - 1])[0].first)

    def __len__(self) -> int:
        rest = self._ids - 1 - self._length  # ids that the first window does not predict
        return 1 + max(0, -(-rest // self._stride))

    def read(self, indices: list[int]) -> list[Record]:
        """Returns the windows at `indices`."""
        windows = []
        for index in indices:
            block, offset = divmod(index * self._stride, self._length)
            # A window lies in at most two blocks, of which the first id of the second is the last
            # id of the first.
            first, *second = self._blocks.read([block, block + 1][: len(self._blocks) - block])
            parts = [first.first[: self._length], second[0].first] if second else [first.first]
            windows.append(Record(np.concatenate(parts)[offset : offset + self._length + 1]))
        return windows

    def weights(self, indices: list[int]) -> Float32[np.ndarray, 'R T']:
        """Returns 1 for each position at which a full window predicts, else 0."""
        starts = np.array([0 if i == 0 else self._length - self._stride for i in indices])
        return (np.arange(self._length) >= starts[:, None]).astype(np.float32)


def batch_function(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    rows: Rows | None,
    read_teacher: ReadTeacher | None = None,
) -> Callable[[int], batch_lib.Batch]:
    """Returns a function from a batch index to the `rows` of each micro-batch of that batch."""
    size, micro_batches = c.data.batch_size, c.train.grad_accum_steps
    records = prepared.records('train')
    rows_MR = np.arange(size).reshape(micro_batches, size // micro_batches)
    rows_MR = rows_MR if rows is None else rows_MR[:, rows]
    objective, buckets = objectives.OBJECTIVES[c.objective], objectives.buckets(c)
    limits = [bucket.data.length for bucket in buckets]
    if c.data.buckets or c.data.unlabelled_share:
        assert isinstance(records, Records), 'validation refuses these keys for a mixture'
        unlabelled = _unlabelled(c, records)
        sample = sampler.make_bucketed(record_buckets(c, prepared), c.seed, size, unlabelled)
    else:
        sample = sampler.make(prepared, c.seed, size)

    def read_batch(index: int) -> batch_lib.Batch:
        indices, epochs, bucket = sample(index)
        slots = rows_MR.ravel().tolist()
        batch_indices = [indices[slot] for slot in slots]
        keys = [mask_key(c, epochs[slot], indices[slot]) for slot in slots]
        batch_records = records.read(batch_indices)
        if c.data.augment:
            assert objective.augment is not None, 'validation refuses other objectives'
            batch_records = objective.augment(c, tokenizer, batch_records, keys, limits, records)
        arrays = objective.arrays(buckets[bucket], tokenizer, batch_records, keys)
        if read_teacher is not None:
            arrays['teacher'] = read_teacher(batch_indices, [key[1] for key in keys], bucket)
        return _to_batch(arrays, rows_MR.shape)

    return read_batch


def _unlabelled(c: ConfigDict, records: Records) -> sampler.Unlabelled | None:
    """Returns the share of unlabelled records, which `prepare` stores after the labelled ones."""
    if not c.data.unlabelled_share:
        return None
    indices = range(len(records))
    labelled = bisect.bisect_left(indices, True, key=lambda index: records[index].label < 0)
    return sampler.Unlabelled(labelled, c.data.unlabelled_share)


def mask_key(c: ConfigDict, epoch: int, record: int) -> Key:
    """Returns the key of the random inputs of a train record in an epoch.

    With `config.teacher.cache` it does not depend on `config.seed`, and repeats after
    `config.teacher.cache_epochs` epochs.
    """
    if c.teacher.cache:
        return _CACHE_SEED, epoch % c.teacher.cache_epochs, record
    return c.seed, epoch, record


def record_buckets(c: ConfigDict, prepared: Dataset | Mixture) -> Int[np.ndarray, ' n']:
    """Returns the index of the smallest bucket that each train record fits in."""
    records = prepared.records('train')
    if not c.data.buckets:
        return np.zeros(len(records), np.int64)
    assert isinstance(records, Records), 'validation refuses buckets of a mixture'
    return objectives.smallest_bucket(c, objectives.buckets(c), records.lengths())


def of_records(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    indices_nB: Int[np.ndarray, 'n B'],
    epoch: int,
    rows: Rows,
) -> Iterator[batch_lib.Batch]:
    """Yields the inputs of train records in an epoch, as training reads them, with arrays [R, ...].

    Args:
      c: the configuration, one of `objectives.buckets`.
      prepared: the dataset.
      tokenizer: the tokenizer of the dataset.
      indices_nB: the index of the record in each row of each batch; -1 in the last rows, which only
        fill a batch.
      epoch: the epoch.
      rows: the rows of every batch that this process reads.
    """
    records, arrays = prepared.records('train'), objectives.OBJECTIVES[c.objective].arrays

    def read_batch(index: int) -> batch_lib.Batch:
        indices = indices_nB[index, rows].tolist()
        batch_records = records.read([i for i in indices if i >= 0])
        batch_records += [PADDING] * (len(rows) - len(batch_records))
        keys = [mask_key(c, epoch, max(i, 0)) for i in indices]
        return _to_batch(arrays(c, tokenizer, batch_records, keys), rows.shape)

    return _prefetch(read_batch, 0, len(indices_nB), c.data.prefetch)


def abstract_batches(c: ConfigDict) -> list[batch_lib.Batch]:
    """Returns ShapeDtypeStructs [M, B/M, ...] of a training batch for each bucket, without data."""
    ids = dict.fromkeys(('pad_id', 'eos_id', 'cls_id', 'sep_id', 'mask_id'), 0)
    size = c.student.vocab_size
    tokenizer: Any = types.SimpleNamespace(
        **ids, special_ids=frozenset(), vocab_size=size, word_starts=np.zeros(size, bool)
    )
    arrays = objectives.OBJECTIVES[c.objective].arrays
    shape = c.train.grad_accum_steps, c.data.batch_size // c.train.grad_accum_steps
    batches = []
    for bucket in objectives.buckets(c):
        row = arrays(bucket, tokenizer, [PADDING], [(0, 0, 0)])
        structs: dict[str, Any] = {
            name: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype) for name, x in row.items()
        }
        batches.append(batch_lib.Batch(**structs))
    return batches


def _to_batch(arrays: Arrays, shape: tuple[int, ...]) -> batch_lib.Batch:
    """Reshapes arrays [rows, ...] to [*shape, ...]; they stay on the host until the step."""
    return batch_lib.Batch(**jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), arrays))


def _prefetch(
    read_batch: Callable[[int], batch_lib.Batch], start: int, stop: int, size: int
) -> Iterator[batch_lib.Batch]:
    """Yields read_batch(start), ..., read_batch(stop - 1), read by threads up to `size` ahead."""
    options = grain.ReadOptions(num_threads=min(size, 4), prefetch_buffer_size=size)
    iterator = iter(grain.MapDataset.range(start, stop).map(read_batch).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
