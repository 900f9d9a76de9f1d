"""Masking: chooses the ids to predict and the ids that the network reads in their place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

_MASK_RATE, _RANDOM_RATE = 0.8, 0.1  # of the chosen ids; the others stay as they are

Choice = tuple[Int[np.ndarray, 'B P'], Bool[np.ndarray, 'B P']]
"""Chosen positions in rising order, 0 after the last one; a mask of the chosen ones."""


def count(rate: float, n: Any) -> Any:
    """Computes how many of n ids are predicted: max(1, round(rate * n)), or 0 of 0."""
    return np.minimum(np.maximum(1, np.rint(rate * np.asarray(n)).astype(int)), n)


def choose_tokens(
    free_BT: Bool[np.ndarray, 'B T'],
    count_B: Int[np.ndarray, ' B'],
    predicted: int,
    draws_BT: Float64[np.ndarray, 'B T'],
) -> Choice:
    """Chooses the free positions with the lowest draws.

    Args:
      free_BT: which positions may be chosen.
      count_B: how many are chosen in each row; at most `predicted`.
      predicted: P.
      draws_BT: uniform draws from [0, 1).
    """
    length = free_BT.shape[1]
    order_BT = np.argsort(np.where(free_BT, draws_BT, 2.0), axis=1)[:, :predicted]
    chosen_BP = np.arange(order_BT.shape[1]) < count_B[:, None]
    return _sort_positions(np.where(chosen_BP, order_BT, length), length)


def choose_words(
    starts_BT: Bool[np.ndarray, 'B T'],
    free_BT: Bool[np.ndarray, 'B T'],
    count_B: Int[np.ndarray, ' B'],
    predicted: int,
    draws_BT: Float64[np.ndarray, 'B T'],
) -> Choice:
    """Chooses whole words: in the order of their draws, each that does not exceed the count.

    Args:
      starts_BT: which ids start a word.
      free_BT: which positions may be chosen.
      count_B: the largest number of positions to choose in each row.
      predicted: P.
      draws_BT: uniform draws from [0, 1); the first of a row belong to its words.
    """
    length = free_BT.shape[1]
    # An id after a special id starts a word too, and so does the first id of a block.
    starts_BT = free_BT & (starts_BT | ~np.roll(free_BT, 1, axis=1))
    positions_BP = np.full((len(free_BT), predicted), length)
    for row, capacity in enumerate(count_B.tolist()):
        starts = np.flatnonzero(starts_BT[row])
        order = np.argsort(draws_BT[row, : len(starts)]).tolist()
        # A word ends at the next word or at a special id before it.
        sizes = np.add.reduceat(free_BT[row], starts, dtype=int).tolist() if order else []
        positions: list[int] = []
        for word in order:
            if len(positions) + sizes[word] <= capacity:
                positions += range(starts[word], starts[word] + sizes[word])
        positions_BP[row, : len(positions)] = positions
    return _sort_positions(positions_BP, length)


def _sort_positions(positions_BP: Int[np.ndarray, 'B P'], none: int) -> Choice:
    """Sorts positions; `none`, larger than all of them, marks those that are not chosen."""
    positions_BP = np.sort(positions_BP, axis=1)
    chosen_BP = positions_BP < none
    return np.where(chosen_BP, positions_BP, 0), chosen_BP


class Spans(NamedTuple):
    """The spans of a row, one for each document."""

    indices: list[Int[np.ndarray, ' M']]
    """Indices into the row, in which an eos follows each document."""
    positions: list[Int[np.ndarray, ' M']]
    """Positions inside the documents."""
    segments: list[Int[np.ndarray, ' M']]
    """The number of the document, from 1, for each id of its span."""


def draw_spans(rate: float, lengths: Sequence[int], capacity: int, draws: Sequence[float]) -> Spans:
    """Draws one span of each document.

    Args:
      rate: share of a document that its span has.
      lengths: lengths of the documents.
      capacity: largest number of ids of all spans together.
      draws: a uniform draw from [0, 1) for each document, which decides the start of its span.
    """
    spans = Spans([], [], [])
    offset = 0
    for k, n in enumerate(lengths):
        size = min(int(count(rate, n)), capacity)
        start = min(int(draws[k] * (n - size + 1)), n - size)
        capacity -= size
        positions = np.arange(start, start + size)
        spans.indices.append(offset + positions)
        spans.positions.append(positions)
        spans.segments.append(np.full(size, k + 1))
        offset += n + 1
    return spans


def replace(
    ids_BP: Int32[np.ndarray, 'B P'],
    draws_B2P: Float64[np.ndarray, 'B 2P'],
    mask_id: Any,
    ordinary_V: Bool[np.ndarray, ' V'],
) -> Int32[np.ndarray, 'B P']:
    """Replaces each chosen id by the mask, by a random ordinary id, or by itself.

    Args:
      ids_BP: the chosen ids.
      draws_B2P: uniform draws from [0, 1): the first P decide between the three, the others the
        random id.
      mask_id: the id of the mask.
      ordinary_V: which ids are ordinary.
    """
    action_BP, other_BP = np.split(draws_B2P, 2, axis=1)
    ordinary = np.flatnonzero(ordinary_V)
    random_BP = ordinary[(other_BP * len(ordinary)).astype(int)]
    unmasked_BP = np.where(action_BP < _MASK_RATE + _RANDOM_RATE, random_BP, ids_BP)
    return np.where(action_BP < _MASK_RATE, mask_id, unmasked_BP).astype(np.int32)
