"""Batches: order, coverage, processes, padding, threads."""

import collections
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax.data import batches, objectives, prepare
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError


@pytest.fixture
def c(data_cache):
    return corpus.tiny_config(data_cache)


@pytest.fixture(scope='module')
def tokenizer(data_cache):
    return selection.load(corpus.tiny_config(data_cache))


@pytest.fixture(scope='module')
def prepared(data_cache, tokenizer):
    return prepare.prepare(corpus.tiny_config(data_cache), tokenizer)


def configured(data_cache, name):
    if name in ('classify', 'seq2seq'):
        c = corpus.examples_config(data_cache, 'pairs' if name == 'classify' else 'summary')
    else:
        c = corpus.tiny_config(data_cache)
        c.data.packages, c.objective = ('ml_collections',), name
    return c


ALL = pytest.mark.parametrize('name', list(objectives.OBJECTIVES))


def equal(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return all(np.array_equal(x, y) for x, y in zip(leaves_a, leaves_b, strict=True))


def rows(batch):
    """Returns the bytes of (tokens, labels, weights) of each row, in the order of the stream."""
    arrays = [np.reshape(x, (-1, x.shape[-1])) for x in (batch.tokens, batch.labels, batch.weights)]
    return [tuple(x.tobytes() for x in row) for row in zip(*arrays, strict=True)]


def records_as_rows(c, prepared, tokenizer, split):
    records = prepared.records(split)
    stored = [records[i] for i in range(len(records))]
    arrays = objectives.OBJECTIVES['clm'].arrays(c, tokenizer, stored, [(0, 0, 0)] * len(stored))
    return [tuple(x[i].tobytes() for x in arrays.values()) for i in range(len(stored))]


def test_batch_arrays_have_their_shapes_and_types(c, prepared, tokenizer):
    batch = corpus.batch_at(c, prepared, tokenizer, 0)
    assert batch.tokens.shape == batch.labels.shape == batch.weights.shape == (2, 4, 32)
    assert (batch.tokens.dtype, batch.labels.dtype) == (np.int32, np.int32)
    assert batch.weights.dtype == np.float32


def test_every_epoch_has_every_record_once(c, prepared, tokenizer):
    n = prepared.split('train')['records']
    assert n % c.data.batch_size  # so an epoch ends inside of a batch
    stream = (
        row for i in itertools.count() for row in rows(corpus.batch_at(c, prepared, tokenizer, i))
    )
    want = collections.Counter(records_as_rows(c, prepared, tokenizer, 'train'))
    first, second = list(itertools.islice(stream, n)), list(itertools.islice(stream, n))
    assert collections.Counter(first) == want
    assert collections.Counter(second) == want
    assert first != second


@pytest.mark.parametrize('start', [0, 1, 50, 10**9])
def test_batch_does_not_depend_on_the_start_of_the_iterator(c, prepared, tokenizer, start):
    iterator = batches.training(c, prepared, tokenizer, start)
    for i, batch in enumerate(itertools.islice(iterator, 12)):
        assert equal(batch, corpus.batch_at(c, prepared, tokenizer, start + i))
    iterator.close()


def test_micro_batches_do_not_change_the_batch(c, prepared, tokenizer):
    want = rows(corpus.batch_at(c, prepared, tokenizer, 3))
    for c.train.grad_accum_steps in (1, 4, 8):
        assert rows(corpus.batch_at(c, prepared, tokenizer, 3)) == want


def test_batch_size_does_not_change_the_stream(c, prepared, tokenizer):
    want = [row for i in range(4) for row in rows(corpus.batch_at(c, prepared, tokenizer, i))]
    c.data.batch_size = 16
    assert [
        row for i in range(2) for row in rows(corpus.batch_at(c, prepared, tokenizer, i))
    ] == want


def test_seeds_and_epochs_have_different_orders(c, prepared, tokenizer):
    n = prepared.split('train')['records']
    c.data.batch_size = c.train.grad_accum_steps = n  # a batch is an epoch
    orders = []
    for c.seed in (-1, 0, 1, 2, 2**40):
        orders += [
            tuple(rows(corpus.batch_at(c, prepared, tokenizer, epoch))) for epoch in range(3)
        ]
    assert len(set(orders)) == len(orders)
    assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_union_of_processes_is_the_global_batch(c, prepared, tokenizer, processes):
    for index in (0, 57):
        parts = [
            corpus.batch_at(c, prepared, tokenizer, index, p, processes) for p in range(processes)
        ]
        assert parts[0].tokens.shape == (2, 4 // processes, 32)
        together = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        assert equal(together, corpus.batch_at(c, prepared, tokenizer, index))


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_evaluation_reads_every_record_once_in_order(c, prepared, tokenizer, processes):
    parts = [
        list(batches.evaluation(c, prepared, tokenizer, 'test', part))
        for part in np.split(np.arange(c.eval.batch_size), processes)
    ]
    together = [
        jax.tree.map(lambda *xs: np.concatenate(xs), *each) for each in zip(*parts, strict=True)
    ]
    read = [row for batch in together for row in rows(batch)]
    want = records_as_rows(c, prepared, tokenizer, 'test')
    assert len(want) % c.eval.batch_size  # so the last batch is filled up
    assert read[: len(want)] == want
    assert sum(b.weights.sum() for b in together) == prepared.split('test')['tokens']
    assert all(b.tokens.shape == (c.eval.batch_size, 32) for b in together)


def test_evaluation_stops_after_eval_batches(c, prepared, tokenizer):
    everything = list(batches.evaluation(c, prepared, tokenizer, 'validation'))
    for n in (1, 2, len(everything) + 1):
        c.eval.batches = n
        read = list(batches.evaluation(c, prepared, tokenizer, 'validation'))
        assert len(read) == min(n, len(everything))
        assert all(map(equal, read, everything))


def test_unknown_evaluation_split_is_an_error(c, prepared, tokenizer):
    with pytest.raises(UserError, match='did you mean test'):
        batches.evaluation(c, prepared, tokenizer, 'tests')


def test_empty_evaluation_split_is_an_error(c, prepared, tokenizer, monkeypatch):
    monkeypatch.setattr(Dataset, 'records', lambda self, split: ())
    with pytest.raises(UserError, match='empty corpus'):
        batches.evaluation(c, prepared, tokenizer, 'test')


def arrays_of(batch):
    """Maps the name of each present field to its rows."""
    fields = {k: v for k, v in vars(batch).items() if v is not None}
    return {k: np.reshape(v, (-1, v.shape[-1])) for k, v in fields.items()}


@ALL
def test_batches_have_the_shape_of_their_objective(data_cache, vocabulary, name):
    c = configured(data_cache, name)
    shape = objectives.OBJECTIVES[name].shape(c)
    batch = corpus.batch_at(c, prepare.prepare(c, vocabulary), vocabulary, 0)
    assert batch.tokens.shape == (2, 4, shape.tokens)
    assert batch.labels.shape == batch.weights.shape == (2, 4, shape.predicted)
    assert (batch.source is not None) == bool(shape.source)
    for array in arrays_of(batch).values():
        assert array.dtype in (np.int32, np.float32)


@ALL
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_read_rows_of_one_global_batch(data_cache, vocabulary, name, processes):
    c = configured(data_cache, name)
    prepared = prepare.prepare(c, vocabulary)
    whole = corpus.batch_at(c, prepared, vocabulary, 5)
    parts = [corpus.batch_at(c, prepared, vocabulary, 5, p, processes) for p in range(processes)]
    assert equal(jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts), whole)


@pytest.mark.parametrize('name', ['mlm', 'mass'])
def test_mask_of_a_record_differs_between_epochs(data_cache, vocabulary, name):
    """A mask depends only on (seed, epoch, record), not on the row in the batch.

    Inputs and labels together restore the ids of each record.
    """
    c = configured(data_cache, name)
    prepared = prepare.prepare(c, vocabulary)
    records = prepared.records('train')
    n = len(records)
    c.data.batch_size = c.train.grad_accum_steps = n  # a batch is an epoch
    in_order = [records[i] for i in range(n)]
    read, whole = [], []
    for epoch in range(2):
        fields = arrays_of(corpus.batch_at(c, prepared, vocabulary, epoch))
        ids = fields['tokens' if name == 'mlm' else 'source'].copy()
        read.append([row.tobytes() for row in ids])
        keys = [(c.seed, epoch, i) for i in range(n)]
        want = objectives.OBJECTIVES[name].arrays(c, vocabulary, in_order, keys)
        want_read = want['tokens' if name == 'mlm' else 'source']
        assert sorted(read[-1]) == sorted(row.tobytes() for row in want_read)
        row, slot = np.nonzero(fields['weights'])
        at = fields['positions' if name == 'mlm' else 'position_ids'][row, slot]
        ids[row, at] = fields['labels'][row, slot]
        whole.append([row.tobytes() for row in ids])
    assert collections.Counter(whole[0]) == collections.Counter(whole[1])
    masked = [dict(zip(*pair, strict=True)) for pair in zip(whole, read, strict=True)]
    same = sum(masked[0][row] == masked[1][row] for row in masked[0])
    assert same <= 0.02 * n  # blocks of a few ids may be masked alike


@ALL
def test_evaluation_ignores_the_seed_and_pads_with_weight_0(data_cache, vocabulary, name):
    c = configured(data_cache, name)
    prepared = prepare.prepare(c, vocabulary)
    c.eval.batch_size = 16
    n = prepared.split('test')['records']
    assert n % 16
    passes = []
    for c.seed in (0, 1):
        passes.append(list(batches.evaluation(c, prepared, vocabulary, 'test')))
    assert all(equal(a, b) for a, b in zip(*passes, strict=True))
    weights = np.concatenate([batch.weights for batch in passes[0]])
    assert weights.any(axis=1).tolist() == [True] * n + [False] * (len(weights) - n)


def test_evaluation_masks_do_not_depend_on_batch_size(data_cache, vocabulary):
    c = configured(data_cache, 'mlm')
    prepared = prepare.prepare(c, vocabulary)
    tokens = []
    for c.eval.batch_size in (8, 16):
        passed = batches.evaluation(c, prepared, vocabulary, 'test')
        tokens.append(np.concatenate([batch.tokens for batch in passed]))
    n = prepared.split('test')['records']
    assert np.array_equal(tokens[0][:n], tokens[1][:n])


@pytest.mark.parametrize('prefetch', [1, 4, 20])
def test_closing_the_iterator_ends_its_threads(c, prepared, tokenizer, prefetch):
    c.data.prefetch = prefetch
    before = set(threading.enumerate())
    iterator = batches.training(c, prepared, tokenizer)
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    deadline = time.monotonic() + 10  # Grain does not wait for the batch a thread is at
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_iterator_reads_at_most_prefetch_batches_ahead(c, prepared, tokenizer, monkeypatch):
    indices = []

    def batch_function(*_):
        return lambda index: indices.append(index) or index

    monkeypatch.setattr(batches, 'batch_function', batch_function)
    iterator = batches.training(c, prepared, tokenizer, 10)
    assert [next(iterator) for _ in range(3)] == [10, 11, 12]
    time.sleep(0.1)
    assert max(indices) <= 12 + c.data.prefetch
    iterator.close()
