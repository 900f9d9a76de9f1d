"""Claims about rows of ids that documents are packed into."""

import collections
import itertools
import time

import numpy as np
import pytest

from lightpaff_jax.data.objectives import Packing
from lightpaff_jax.data.prepared import packing


def documents(rng, n, longest):
    """Ids of n documents, one after the other, and how many are of each; some are empty."""
    lengths = rng.integers(0, longest + 1, n)
    return rng.integers(0, 1000, lengths.sum()).astype(np.int32), lengths


def test_a_separator_stands_behind_every_document():
    ids, lengths = np.array([5, 6, 7, 8], np.int32), np.array([2, 0, 2, 0])
    assert packing.join(ids, lengths, 1).tolist() == [5, 6, 1, 1, 7, 8, 1, 1]
    assert packing.join(ids[:0], lengths[:0], 1).tolist() == []


@pytest.mark.parametrize('n', [0, 1, 2, 3, 4, 5, 8, 9, 10, 13])
@pytest.mark.parametrize('overlap', [0, 1])
def test_blocks_give_every_id_once_whatever_the_parts(n, overlap):
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


@pytest.mark.parametrize(('size', 'each'), [(8, 1), (16, 2), (64, 1), (512, 2)])
@pytest.mark.parametrize('longest', [3, 40, 700])
def test_packed_rows_hold_every_id_once_and_never_too_many(size, each, longest):
    ids, lengths = documents(np.random.default_rng(size + longest), 200, longest)
    starts = np.cumsum(lengths) - lengths
    rows = packing.best_fit(lengths.tolist(), size, each)
    for row in rows:
        assert sum(p.stop - p.start + each for p in row) <= size
        assert all(0 <= p.start < p.stop <= lengths[p.document] for p in row)
    seen = collections.Counter(
        starts[p.document] + i for row in rows for p in row for i in range(p.start, p.stop)
    )
    assert seen == collections.Counter(range(len(ids)))
    found = packing.pack(ids, lengths, Packing(size, each))
    assert [[p.stop - p.start for p in row] for row in rows] == [r.second.tolist() for r in found]
    for row, record in zip(rows, found, strict=True):
        parts = [ids[starts[p.document] :][p.start : p.stop] for p in row]
        assert np.array_equal(np.concatenate(parts), record.first)


def test_pieces_that_share_an_id_predict_every_other_id_of_their_document_once():
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
        [packing.Piece(0, 0, 17)], [packing.Piece(0, 16, 18)], [packing.Piece(1, 0, 17)],
    ]  # fmt: skip


def test_only_documents_that_are_too_long_are_cut_and_only_as_often_as_must_be():
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


def test_a_document_goes_into_the_fullest_row_that_has_room():
    # Behind 7 and 5 there is room of 2 and of 4: 3 fits the latter alone, 1 goes to the former.
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


def test_ten_times_the_documents_take_about_ten_times_as_long():
    """A search through all open rows would take a hundred times as long."""

    def seconds(n):
        lengths = [200] * n  # each opens a row that no other fits in
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            packing.best_fit(lengths, 256, 1)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(20_000) < 40 * seconds(2_000)
