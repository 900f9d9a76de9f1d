"""Turns documents into rows of ids: blocks of one stream, or whole documents that fit together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from lightpaff_jax.data.objectives import Packing
from lightpaff_jax.data.records import Record


class Piece(NamedTuple):
    """A document, or a part of a document that is too long for a row."""

    document: int
    start: int
    stop: int


def join(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], separator: int
) -> Int32[np.ndarray, ' m']:
    """Returns the stream of all documents, each followed by a separator.

    Args:
      ids: the ids of all documents, concatenated.
      lengths: the number of ids of each document.
      separator: an id.
    """
    stream = np.full(len(ids) + len(lengths), separator, np.int32)
    is_id = np.ones(len(stream), bool)
    is_id[np.cumsum(lengths) + np.arange(len(lengths))] = False
    stream[is_id] = ids
    return stream


def cut(
    stream: Int32[np.ndarray, ' n'], size: int, stride: int
) -> tuple[list[Int32[np.ndarray, ' size']], Int32[np.ndarray, ' rest']]:
    """Cuts a stream into blocks of `size` ids, which start every `stride` ids.

    Returns:
      The full blocks, and the rest of the stream, from the start of the next block. The stream of
      the next call must begin with this rest.
    """
    blocks = max(0, (len(stream) - (size - stride)) // stride)
    starts = range(0, blocks * stride, stride)
    return [stream[start : start + size] for start in starts], stream[blocks * stride :]


def best_fit(
    lengths: Sequence[int], capacity: int, overhead: int, shared: int = 0
) -> list[list[Piece]]:
    """Packs documents into rows: the longest first, each into the fullest row that has space for it.

    In each row, the sum of (ids + overhead) over its pieces is at most `capacity`. A document of
    more than capacity - overhead ids is cut into pieces of this length, the last one shorter; each
    starts with the last `shared` ids of the piece before. Documents without ids are dropped. It
    takes O(n log n) for n documents: rows are found by their free space, of which one integer has a
    bit for each value.

    Returns:
      Rows in the order of their first document; the pieces of a row in the order of the text.
    """
    longest = capacity - overhead
    assert longest > shared, 'validation ensures that a document fits'
    pieces = [
        Piece(document, start, min(start + longest, length))
        for document, length in enumerate(lengths)
        for start in range(0, length - shared, longest - shared)
    ]
    pieces.sort(key=lambda piece: piece.start - piece.stop)  # stable
    rows: list[list[Piece]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # free space -> numbers of rows
    spaces = 0  # bit s is set if by_space[s] is not empty
    for piece in pieces:
        size = piece.stop - piece.start + overhead
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1  # the lowest bit that is set
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
            rows[row].append(piece)
        else:
            space, row = capacity, len(rows)
            rows.append([piece])
        space -= size
        if space > max(0, overhead):
            by_space[space].append(row)
            spaces |= 1 << space
    return sorted(sorted(row) for row in rows)


def pack(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], packing: Packing
) -> list[Record]:
    """Packs whole documents, given by their concatenated ids and lengths, by `best_fit`."""
    if packing.separator is not None:
        ids, lengths = wrap(ids, lengths, packing.separator)
    starts = np.cumsum(lengths) - lengths
    rows = best_fit(lengths.tolist(), packing.capacity, packing.overhead, packing.shared)
    return [
        Record(
            np.concatenate([ids[starts[d] + a : starts[d] + b] for d, a, b in row]),
            np.array([b - a for _, a, b in row], np.int32),
        )
        for row in rows
    ]


def wrap(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], separator: int
) -> tuple[Int32[np.ndarray, ' m'], Int[np.ndarray, ' nonempty']]:
    """Puts a separator before and after each document and drops empty documents.

    Returns:
      The ids and the new lengths.
    """
    lengths = lengths[lengths > 0]
    stops = np.cumsum(lengths)
    edges = np.sort(np.concatenate([stops - lengths, stops]))
    return np.insert(ids, edges, separator), lengths + 2
