"""Documents -> rows of ids: blocks of one stream, or whole documents that fit together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from lightpaff_jax.data.records import Record


class Piece(NamedTuple):
    """A document, or a part of one that is too long for a row."""

    document: int
    start: int
    stop: int


def join(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], separator: int
) -> Int32[np.ndarray, ' m']:
    """One stream of documents with a separator behind each.

    Args:
      ids: of the documents, one after the other.
      lengths: how many are of each.
      separator: an id.
    """
    stream = np.full(len(ids) + len(lengths), separator, np.int32)
    inside = np.ones(len(stream), bool)
    inside[np.cumsum(lengths) + np.arange(len(lengths))] = False
    stream[inside] = ids
    return stream


def cut(
    stream: Int32[np.ndarray, ' n'], size: int, stride: int
) -> tuple[list[Int32[np.ndarray, ' size']], Int32[np.ndarray, ' left']]:
    """Blocks of `size` ids, one every `stride` of them, and what is left for the next call.

    What is left begins with the last size - stride ids of the last block; `stream` of the next
    call is to begin with it.
    """
    blocks = max(0, (len(stream) - (size - stride)) // stride)
    starts = range(0, blocks * stride, stride)
    return [stream[start : start + size] for start in starts], stream[blocks * stride :]


def best_fit(lengths: Sequence[int], size: int, each: int, shared: int = 0) -> list[list[Piece]]:
    """Rows of whole documents: the longest first, each into the fullest row that has room for it.

    sum over the pieces of a row of (ids + each) <= size. A document of more than size - each ids
    is cut into pieces of so many, the last one shorter, each of which begins with the last `shared`
    ids of the one before; one without ids is left out. O(n log n) for n documents: the rows that
    are open are found by their room, a bit each of one number.

    Returns:
      rows in the order of their first document; the pieces of a row in the order of the text.
    """
    room = size - each
    assert room > shared, 'validation sees to it that a row has room'
    pieces = [
        Piece(document, start, min(start + room, length))
        for document, length in enumerate(lengths)
        for start in range(0, length - shared, room - shared)
    ]
    pieces.sort(key=lambda piece: piece.start - piece.stop)  # stable
    rows: list[list[Piece]] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]  # room -> numbers of rows
    open_rooms = 0  # bit r: by_room[r] is not empty
    for piece in pieces:
        need = piece.stop - piece.start + each
        fitting = open_rooms >> need
        if fitting:
            left = need + (fitting & -fitting).bit_length() - 1
            row = by_room[left].pop()
            if not by_room[left]:
                open_rooms ^= 1 << left
            rows[row].append(piece)
        else:
            left, row = size, len(rows)
            rows.append([piece])
        left -= need
        if left > max(0, each):
            by_room[left].append(row)
            open_rooms |= 1 << left
    return sorted(sorted(row) for row in rows)


def packed(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], size: int, each: int,
    shared: int = 0,
) -> list[Record]:  # fmt: skip
    """Records of whole documents, by `best_fit`; `ids` are theirs, one after the other."""
    starts = np.cumsum(lengths) - lengths
    return [
        Record(
            np.concatenate([ids[starts[d] + a : starts[d] + b] for d, a, b in row]),
            np.array([b - a for _, a, b in row], np.int32),
        )
        for row in best_fit(lengths.tolist(), size, each, shared)
    ]


def between(
    ids: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' documents'], separator: int
) -> tuple[Int32[np.ndarray, ' m'], Int[np.ndarray, ' kept']]:
    """Documents with a separator before and behind each, and their lengths; empty ones are left out."""
    kept = lengths[lengths > 0]
    stops = np.cumsum(kept)
    return np.insert(ids, np.sort(np.concatenate([stops - kept, stops])), separator), kept + 2
