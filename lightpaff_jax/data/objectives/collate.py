"""Collates records into arrays of fixed shape: padding, segments, random draws."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from lightpaff_jax.data.records import Record

Arrays = dict[str, Any]  # fields of a Batch, NumPy arrays [B, ...]
Key = tuple[int, int, int]  # seed, epoch, index of the record


def split_documents(record: Record) -> list[Int32[np.ndarray, ' N']]:
    """Returns the documents of a packed row; none for PADDING."""
    return np.split(record.first, np.cumsum(record.second)[:-1]) if len(record.second) else []


def pad(
    rows: Sequence[Sequence[Any]], length: int, pad_id: int
) -> tuple[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
    """Concatenates the parts of each row and pads the rows to `length`.

    Returns:
      The ids and a mask of the ids that are not padding.
    """
    ids_BT = np.full((len(rows), length), pad_id, np.int32)
    lengths = []
    for ids_T, parts in zip(ids_BT, rows, strict=True):
        end = 0
        for part in parts:
            ids_T[end : end + len(part)] = part
            end += len(part)
        assert end <= length, 'prepare cuts records to the length'
        lengths.append(end)
    return ids_BT, np.arange(length) < np.array(lengths)[:, None]


def segments(lengths: Sequence[Sequence[int]], length: int, prefix: str = '') -> Arrays:
    """Returns the segments (document numbers from 1) and the positions inside the documents.

    Args:
      lengths: the lengths of the documents of each row.
      length: T; both arrays are [B, T] and 0 on padding.
      prefix: of the names of the two fields: '' or 'source_'.
    """
    numbers = [[np.repeat(np.arange(1, len(row) + 1), row)] for row in lengths]
    positions = [[np.arange(n) for n in row] for row in lengths]
    return {
        f'{prefix}segments': pad(numbers, length, 0)[0],
        f'{prefix}position_ids': pad(positions, length, 0)[0],
    }


def uniform(keys: Sequence[Key], n: int) -> Float64[np.ndarray, 'B n']:
    """Draws n numbers from [0, 1) for each key.

    Each key has a part of a Philox sequence to itself, so its draws do not depend on other keys.
    """
    draws_Bn = np.empty((len(keys), n), np.uint64)
    for row, (seed, epoch, record) in enumerate(keys):
        draws_Bn[row] = np.random.Philox(
            key=seed % 2**64, counter=np.array([0, 0, epoch, record], np.uint64)
        ).random_raw(n)
    return (draws_Bn >> np.uint64(11)) * 2.0**-53  # the 53 bits that a float64 holds exactly


@functools.lru_cache(maxsize=8)
def ordinary_ids(vocab_size: int, special_ids: frozenset[int]) -> Bool[np.ndarray, ' V']:
    """Returns a mask of the ids that are not special."""
    ordinary_V = np.ones(vocab_size, bool)
    ordinary_V[list(special_ids)] = False
    return ordinary_V
