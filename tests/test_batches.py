"""Claims about batches: order, coverage, processes, padding."""

import collections
import itertools
import threading
import time

import data_fixtures
import jax
import numpy as np
import pytest

from lightpaff_jax import config
from lightpaff_jax.data import batches, objectives


@pytest.fixture
def c(data_cache):
    return data_fixtures.tiny(data_cache)


@pytest.fixture(scope='module')
def prepared(data_cache):
    return data_fixtures.prepared(data_fixtures.tiny(data_cache))


def equal(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return all(np.array_equal(x, y) for x, y in zip(leaves_a, leaves_b, strict=True))


def rows(batch):
    """(tokens, labels, weights) of each sequence, in the order of the stream."""
    arrays = [np.reshape(x, (-1, x.shape[-1])) for x in (batch.tokens, batch.labels, batch.weights)]
    return [tuple(x.tobytes() for x in row) for row in zip(*arrays, strict=True)]


def blocks_as_rows(prepared, split):
    blocks = prepared.blocks(split)
    ids, lengths = zip(*(blocks[i] for i in range(len(blocks))), strict=True)
    arrays = objectives.clm(np.stack(ids), np.asarray(lengths))
    return [tuple(x[i].tobytes() for x in arrays.values()) for i in range(len(blocks))]


def test_arrays_have_the_shape_and_type_of_a_batch(c, prepared):
    batch = batches.batch_at(c, prepared, 0)
    assert batch.tokens.shape == batch.labels.shape == batch.weights.shape == (2, 4, 32)
    assert (batch.tokens.dtype, batch.labels.dtype) == (np.int32, np.int32)
    assert batch.weights.dtype == np.float32


def test_each_epoch_sees_each_block_once_and_drops_none(c, prepared):
    n = prepared.split('train')['blocks']
    assert n % c.data.batch_size  # so an epoch ends within a batch
    stream = (row for i in itertools.count() for row in rows(batches.batch_at(c, prepared, i)))
    want = collections.Counter(blocks_as_rows(prepared, 'train'))
    first, second = list(itertools.islice(stream, n)), list(itertools.islice(stream, n))
    assert collections.Counter(first) == want
    assert collections.Counter(second) == want
    assert first != second


@pytest.mark.parametrize('start', [0, 1, 50, 10**9])
def test_batch_does_not_depend_on_where_the_iterator_began(c, prepared, start):
    iterator = batches.training(c, prepared, start)
    for i, batch in enumerate(itertools.islice(iterator, 12)):
        assert equal(batch, batches.batch_at(c, prepared, start + i))
    iterator.close()


def test_micro_batches_do_not_change_the_batch(c, prepared):
    want = rows(batches.batch_at(c, prepared, 3))
    for c.train.micro_steps in (1, 4, 8):
        assert rows(batches.batch_at(c, prepared, 3)) == want


def test_batch_size_does_not_change_the_stream(c, prepared):
    want = [row for i in range(4) for row in rows(batches.batch_at(c, prepared, i))]
    c.data.batch_size = 16
    assert [row for i in range(2) for row in rows(batches.batch_at(c, prepared, i))] == want


def test_another_seed_is_another_order_in_every_epoch(c, prepared):
    n = prepared.split('train')['blocks']
    c.data.batch_size = c.train.micro_steps = n  # a batch is an epoch
    orders = []
    for c.seed in (-1, 0, 1, 2, 2**40):
        orders += [tuple(rows(batches.batch_at(c, prepared, epoch))) for epoch in range(3)]
    assert len(set(orders)) == len(orders)
    assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_union_of_the_processes_is_the_global_batch(c, prepared, processes):
    for index in (0, 57):
        parts = [batches.batch_at(c, prepared, index, p, processes) for p in range(processes)]
        assert parts[0].tokens.shape == (2, 4 // processes, 32)
        together = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        assert equal(together, batches.batch_at(c, prepared, index))


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_evaluation_is_every_block_once_in_order(c, prepared, processes):
    parts = [list(batches._evaluation(c, prepared, 'test', p, processes)) for p in range(processes)]
    together = [
        jax.tree.map(lambda *xs: np.concatenate(xs), *each) for each in zip(*parts, strict=True)
    ]
    read = [row for batch in together for row in rows(batch)]
    want = blocks_as_rows(prepared, 'test')
    assert len(want) % c.eval.batch_size  # so the last batch is filled up
    assert read[: len(want)] == want
    assert sum(b.weights.sum() for b in together) == prepared.split('test')['tokens']
    assert all(b.tokens.shape == (c.eval.batch_size, 32) for b in together)


def test_evaluation_stops_after_the_batches_it_is_told(c, prepared):
    everything = list(batches.evaluation(c, prepared, 'validation'))
    for n in (1, 2, len(everything) + 1):
        c.eval.batches = n
        read = list(batches.evaluation(c, prepared, 'validation'))
        assert len(read) == min(n, len(everything))
        assert all(map(equal, read, everything))


def test_evaluation_of_an_unknown_split_is_a_user_error(c, prepared):
    with pytest.raises(config.UserError, match='did you mean test'):
        batches.evaluation(c, prepared, 'tests')


def test_evaluation_of_a_split_without_blocks_is_a_user_error(c, prepared, monkeypatch):
    monkeypatch.setattr(type(prepared), 'blocks', lambda self, split: ())
    with pytest.raises(config.UserError, match='empty corpus'):
        batches.evaluation(c, prepared, 'test')


def test_padding_has_weight_0_and_every_real_label_weight_1():
    ids = np.array([[5, 6, 7, 8], [5, 6, 0, 0], [5, 0, 0, 0], [9, 9, 9, 9]], np.int32)
    arrays = objectives.clm(ids, np.array([4, 2, 1, 0]))
    assert arrays['tokens'].tolist() == ids[:, :3].tolist()
    assert arrays['labels'].tolist() == [[6, 7, 8], [6, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert arrays['weights'].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize('prefetch', [1, 4, 20])
def test_closing_the_iterator_ends_its_threads(c, prepared, prefetch):
    c.data.prefetch = prefetch
    before = set(threading.enumerate())
    iterator = batches.training(c, prepared)
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    deadline = time.monotonic() + 10  # Grain does not wait for the batch a thread is at
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_iterator_reads_no_more_than_prefetch_batches_ahead(c, prepared, monkeypatch):
    made = []

    def maker(*_):
        return lambda index: made.append(index) or index

    monkeypatch.setattr(batches, '_maker', maker)
    iterator = batches.training(c, prepared, 10)
    assert [next(iterator) for _ in range(3)] == [10, 11, 12]
    time.sleep(0.1)
    assert max(made) <= 12 + c.data.prefetch
    iterator.close()
