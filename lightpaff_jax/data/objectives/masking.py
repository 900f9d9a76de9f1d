"""What is masked: which ids are predicted, and what is read in their place."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from lightpaff_jax.data.objectives.collate import joined

_MASKED, _RANDOM = 0.8, 0.1  # of the chosen ids; the rest stay as they are


def single(ids_BT, free_BT, count_B, predicted: int, draws_BT, tokenizer):
    """(positions [B, P], which of them are real): the `count_B` free ones of the lowest draws."""
    del ids_BT, tokenizer
    length = free_BT.shape[1]
    order_BT = np.argsort(np.where(free_BT, draws_BT, 2.0), axis=1)[:, :predicted]
    chosen_BP = np.arange(order_BT.shape[1]) < count_B[:, None]
    return _sorted_positions(np.where(chosen_BP, order_BT, length), length)


def whole_words(ids_BT, free_BT, count_B, predicted: int, draws_BT, tokenizer):
    """As `single`, but all ids of a word or none."""
    length = free_BT.shape[1]
    # A special id ends a word too, and so does the beginning of a block.
    begins_BT = free_BT & (tokenizer.word_starts[ids_BT] | ~np.roll(free_BT, 1, axis=1))
    positions_BP = np.full((len(ids_BT), predicted), length)
    for row, left in enumerate(count_B.tolist()):
        starts = np.flatnonzero(begins_BT[row])
        order = np.argsort(draws_BT[row, : len(starts)]).tolist()
        # Ids up to the next word, without the special ones before it.
        sizes = np.add.reduceat(free_BT[row], starts, dtype=int).tolist() if order else []
        taken: list[int] = []
        for word in order:
            if sizes[word] <= left:
                left -= sizes[word]
                taken += range(starts[word], starts[word] + sizes[word])
                if not left:
                    break
        positions_BP[row, : len(taken)] = taken
    return _sorted_positions(positions_BP, length)


def _sorted_positions(
    positions_BP: Int[np.ndarray, 'B P'], none: int
) -> tuple[Int[np.ndarray, 'B P'], Bool[np.ndarray, 'B P']]:
    """Rising positions, `none` replaced by 0 and moved behind; which are real."""
    positions_BP = np.sort(positions_BP, axis=1)
    chosen_BP = positions_BP < none
    return np.where(chosen_BP, positions_BP, 0), chosen_BP


class Fragments(NamedTuple):
    """Of the ids of all fragments of a row, one after the other."""

    at: np.ndarray  # index into the row, each document with an eos behind it
    position: np.ndarray  # index into its document
    segment: np.ndarray  # number of its document, from 1


def fragments(share: float, sizes: list[int], room: int, draws: list[float]) -> Fragments:
    """One fragment of each document, at most `room` ids in all."""
    found: list[list[Any]] = [[], [], []]
    offset = 0
    for k, n in enumerate(sizes):
        m = min(int(count(share, n)), room)
        start = min(int(draws[k] * (n - m + 1)), n - m)
        room -= m
        found[0].append(range(offset + start, offset + start + m))
        found[1].append(range(start, start + m))
        found[2].append([k + 1] * m)
        offset += n + 1
    return Fragments(*(joined([part]) for part in found))


def count(share: float, of: Any) -> Any:
    """max(1, round(share * of)), 0 of 0."""
    return np.minimum(np.maximum(1, np.rint(share * np.asarray(of)).astype(int)), of)


def replaced(
    ids_BP: Int32[np.ndarray, 'B P'],
    draws_B2P: Float64[np.ndarray, 'B 2P'],
    mask_id: Any,
    ordinary_V: Bool[np.ndarray, ' V'],
) -> Int32[np.ndarray, 'B P']:
    """What is read for each chosen id: the mask, an ordinary one, or itself."""
    which_BP, other_BP = np.split(draws_B2P, 2, axis=1)
    ordinary = np.flatnonzero(ordinary_V)
    random_BP = ordinary[(other_BP * len(ordinary)).astype(int)]
    kept_BP = np.where(which_BP < _MASKED + _RANDOM, random_BP, ids_BP)
    return np.where(which_BP < _MASKED, mask_id, kept_BP).astype(np.int32)
