"""The records of each batch: epochs, seeds, buckets, mixtures."""

import collections
import itertools
import time

import numpy as np
import pytest

from lightpaff_jax.data import sampler
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset


def prepared(n, name='a'):
    return Dataset(name, {'splits': {'train': {'records': n}}, 'kind': 'blocks'})


def stream(rows_of, count, start=0):
    """Returns (index, epoch) of the first `count` rows."""
    batches = map(rows_of, itertools.count(start))
    rows = (pair for b in batches for pair in zip(b.indices, b.epochs, strict=True))
    return list(itertools.islice(rows, count))


FITS = np.random.default_rng(0).choice([0, 1, 2], 101, p=[0.6, 0.3, 0.1])
ORDERS = pytest.mark.parametrize(
    'make',
    [
        lambda seed, size: sampler.make(prepared(101), seed, size),
        lambda seed, size: sampler.make_bucketed(FITS, seed, size),
    ],
    ids=['stream', 'buckets'],
)


@ORDERS
@pytest.mark.parametrize('size', [1, 8, 101, 250])
def test_every_record_is_in_every_epoch_once(make, size):
    rows = stream(make(3, size), 4 * 101)
    for epoch in range(4):
        part = rows[epoch * 101 : (epoch + 1) * 101]
        assert sorted(number for number, _ in part) == list(range(101))
        assert {e for _, e in part} == {epoch}


@ORDERS
def test_epochs_and_seeds_have_different_orders(make):
    numbers = [[n for n, _ in stream(make(seed, 8), 303)] for seed in (0, 1)]
    parts = [seed[101 * e : 101 * e + 101] for seed in numbers for e in range(3)]
    for a, b in itertools.combinations(parts, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 15  # equal positions by chance
    assert stream(make(0, 8), 303) == stream(make(0, 8), 303)


@ORDERS
def test_batch_depends_only_on_its_index(make):
    whole, fresh = make(0, 8), make(0, 8)
    first = [whole(i) for i in range(40)]
    assert [fresh(i) for i in (39, 3, 17)] == [first[i] for i in (39, 3, 17)]


def test_large_datasets_are_shuffled_as_small_ones():
    n = sampler._CIPHER_SIZE + 3
    rows = stream(sampler.make(prepared(n), 0, 64), 2 * n)
    for epoch in range(2):
        part = rows[epoch * n : (epoch + 1) * n]
        assert sorted(number for number, _ in part) == list(range(n))
        assert {e for _, e in part} == {epoch}
    first, second = ([x for x, _ in rows[:n]], [x for x, _ in rows[n:]])
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 15


def test_batch_of_a_tiny_dataset_takes_no_time():
    rows_of = sampler.make(prepared(3), 0, 32)
    rows_of(0)
    began = time.perf_counter()
    for index in range(1, 101):
        rows_of(index)
    assert time.perf_counter() - began < 20  # of Grain's shuffle alone 100 batches take 50 s


def test_most_batches_are_of_one_bucket_and_all_fit():
    rows_of = sampler.make_bucketed(FITS, 0, 8)
    mixed = 0
    for i in range(5 * 101 // 8):
        rows = rows_of(i)
        assert rows.bucket == max(FITS[rows.indices])
        mixed += len(set(FITS[rows.indices])) > 1
    assert mixed <= 5 * 3  # an epoch has two borders of buckets and one with the next epoch


def test_buckets_save_padding_and_batches_are_shuffled():
    rows_of = sampler.make_bucketed(FITS, 0, 8)
    buckets = [rows_of(i).bucket for i in range(60)]
    assert collections.Counter(buckets)[0] > 25  # 60 % of the records
    assert buckets != sorted(buckets)
    assert buckets[:12] != buckets[12:24]


def test_bucket_batches_differ_between_epochs():
    rows_of = sampler.make_bucketed(np.zeros(64, int), 0, 8)
    batches = [frozenset(rows_of(i).indices) for i in range(16)]
    assert len({*batches[:8]} & {*batches[8:]}) == 0


@pytest.mark.parametrize('share', [0.25, 0.5, 0.9])
def test_share_of_unlabelled_rows_is_exact_in_every_epoch(share):
    unlabelled = sampler.Unlabelled(60, share)  # of 101 records
    rows_of = sampler.make_bucketed(FITS, 0, 8, unlabelled)
    more = round(60 * share / (1 - share))
    rows, seen = stream(rows_of, 4 * (60 + more)), collections.Counter()
    for epoch in range(4):
        part = rows[epoch * (60 + more) : (epoch + 1) * (60 + more)]
        assert sorted(row for row in part if row[0] < 60) == [(n, epoch) for n in range(60)]
        seen.update(row for row in part if row[0] >= 60)
    epochs, rest = divmod(4 * more, 41)
    full = {(n, epoch) for n in range(60, 101) for epoch in range(epochs)}
    assert full <= {*seen}
    assert max(seen.values()) == 1  # every unlabelled record is in each of its own epochs once
    assert len({*seen} - full) == rest
    for i in range(30):
        assert rows_of(i).bucket == max(FITS[rows_of(i).indices])
        assert rows_of(i) == sampler.make_bucketed(FITS, 0, 8, unlabelled)(i)


def test_small_share_of_unlabelled_rows_is_not_empty():
    rows_of = sampler.make_bucketed(np.zeros(30, int), 0, 7, sampler.Unlabelled(6, 0.05))
    assert any(record >= 6 for record, _ in stream(rows_of, 7))


def test_mixture_rows_are_in_proportion_to_weights():
    parts = (prepared(50, 'a'), prepared(20, 'b'), prepared(7, 'c'))
    rows = stream(sampler.make(Mixture(parts, (0.5, 0.3, 0.2)), 0, 10), 1000)
    counts = collections.Counter((n >= 50) + (n >= 70) for n, _ in rows)
    assert [counts[k] for k in range(3)] == [500, 300, 200]
    for low, high in ((0, 50), (50, 70), (70, 77)):
        part_rows = [(n, e) for n, e in rows if low <= n < high]
        size = high - low
        for epoch in range(len(part_rows) // size):
            part = part_rows[epoch * size : (epoch + 1) * size]
            assert sorted(n for n, _ in part) == list(range(low, high))
            assert {e for _, e in part} == {epoch}


def test_equal_parts_of_a_mixture_have_different_orders():
    rows = stream(sampler.make(Mixture((prepared(40), prepared(40)), (1, 1)), 0, 8), 80)
    first, second = [n for n, _ in rows if n < 40], [n - 40 for n, _ in rows if n >= 40]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_evaluation_order_has_every_record_once():
    order = sampler.evaluation_order(50)
    numbers = [order(i) for i in range(50)]
    assert sorted(numbers) == list(range(50))
    assert numbers != list(range(50))
