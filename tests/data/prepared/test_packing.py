"""Blocks and rows that documents are packed into."""

import collections
import itertools
import time

import numpy as np
import pytest

from lightpaff_jax.data.objectives import Packing
from lightpaff_jax.data.prepared import packing


def documents(rng, n, longest):
    """Returns the concatenated ids of n documents and their lengths; some are empty."""
    lengths = rng.integers(0, longest + 1, n)
    return rng.integers(0, 1000, lengths.sum()).astype(np.int32), lengths


def test_separator_follows_every_document():
    ids, lengths = np.array([5, 6, 7, 8], np.int32), np.array([2, 0, 2, 0])
    assert packing.join(ids, lengths, 1).tolist() == [5, 6, 1, 1, 7, 8, 1, 1]
    assert packing.join(ids[:0], lengths[:0], 1).tolist() == []


@pytest.mark.parametrize('n', [0, 1, 2, 3, 4, 5, 8, 9, 10, 13])
@pytest.mark.parametrize('overlap', [0, 1])
def test_blocks_hold_every_id_once_for_any_chunks(n, overlap):
    ids = np.arange(100, 100 + n, dtype=np.int32)
    for at in range(n + 1):
        first, left = packing.cut(ids[:at], 4 + overlap, 4)
        second, left = packing.cut(np.concatenate([left, ids[at:]]), 4 + overlap, 4)
        blocks = [*first, *second]
        assert all(len(block) == 4 + overlap for block in blocks)
        last = [left] if len(left) > overlap else []
        predicted = [i for block in [*blocks, *last] for i in block[overlap:].tolist()]
        assert predicted == ids[overlap:].tolist()
        assert len(left) < 4 + overlap


@pytest.mark.parametrize(('capacity', 'overhead'), [(8, 1), (16, 2), (64, 1), (512, 2)])
@pytest.mark.parametrize('longest', [3, 40, 700])
def test_packed_rows_hold_every_id_once_within_capacity(capacity, overhead, longest):
    ids, lengths = documents(np.random.default_rng(capacity + longest), 200, longest)
    starts = np.cumsum(lengths) - lengths
    rows = packing.best_fit(lengths.tolist(), capacity, overhead)
    for row in rows:
        assert sum(p.stop - p.start + overhead for p in row) <= capacity
        assert all(0 <= p.start < p.stop <= lengths[p.document] for p in row)
    seen = collections.Counter(
        starts[p.document] + i for row in rows for p in row for i in range(p.start, p.stop)
    )
    assert seen == collections.Counter(range(len(ids)))
    records = packing.pack(ids, lengths, Packing(capacity, overhead))
    assert [[p.stop - p.start for p in row] for row in rows] == [r.second.tolist() for r in records]
    for row, record in zip(rows, records, strict=True):
        parts = [ids[starts[p.document] :][p.start : p.stop] for p in row]
        assert np.array_equal(np.concatenate(parts), record.first)


def test_pieces_that_share_an_id_predict_every_id_once():
    ids, lengths = documents(np.random.default_rng(0), 60, 50)
    wrapped, sizes = packing.wrap(ids, lengths, 7_777)
    starts = np.cumsum(lengths) - lengths
    whole = [[7_777, *ids[a : a + n], 7_777] for a, n in zip(starts, lengths, strict=True) if n]
    assert wrapped.tolist() == [x for document in whole for x in document]
    assert sizes.tolist() == [len(document) for document in whole]
    rows = packing.best_fit(sizes.tolist(), 16, -1, 1)
    assert all(sum(p.stop - p.start - 1 for p in row) <= 16 for row in rows)
    seen = collections.Counter(
        (p.document, i) for row in rows for p in row for i in range(p.start + 1, p.stop)
    )
    assert seen == {(d, i): 1 for d, n in enumerate(sizes) for i in range(1, n)}
    assert packing.best_fit([18, 17], 16, -1, 1) == [
        [packing.Piece(0, 0, 17)],
        [packing.Piece(0, 16, 18)],
        [packing.Piece(1, 0, 17)],
    ]


def test_only_long_documents_are_cut_into_fewest_pieces():
    rows = packing.best_fit([6, 7, 13, 20], 8, 1)
    pieces = sorted(itertools.chain(*rows))
    assert pieces == [
        (0, 0, 6),
        (1, 0, 7),
        (2, 0, 7),
        (2, 7, 13),
        (3, 0, 7),
        (3, 7, 14),
        (3, 14, 20),
    ]


def test_document_goes_into_the_fullest_row_that_fits():
    # After 7 and 5 ids, 2 and 4 are free: 3 fits only the second row, 1 goes into the first.
    assert packing.best_fit([7, 5, 1, 3], 10, 1) == [
        [(0, 0, 7), (2, 0, 1)],
        [(1, 0, 5), (3, 0, 3)],
    ]


def test_rows_are_in_the_order_of_the_text():
    rows = packing.best_fit(np.random.default_rng(0).integers(1, 30, 300).tolist(), 64, 1)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(row == sorted(row) for row in rows)


def test_rows_of_many_short_documents_are_nearly_full():
    lengths = np.random.default_rng(0).integers(10, 200, 2000)
    rows = packing.best_fit(lengths.tolist(), 512, 2)
    assert (lengths + 2).sum() / (512 * len(rows)) > 0.99


def test_packing_time_is_about_linear():
    """Ten times the documents may take 40 times as long; a linear search of rows takes 100 times."""

    def seconds(n):
        lengths = [200] * n  # each opens a row that no other fits in
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            packing.best_fit(lengths, 256, 1)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(20_000) < 40 * seconds(2_000)
