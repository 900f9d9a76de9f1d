"""Rows of a batch from records: padding, places in a row, draws."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from lightpaff_jax.data.records import Record

Arrays = dict[str, Any]  # fields of a Batch, NumPy arrays [B, ...]
Key = tuple[int, int, int]  # seed, epoch, record


def documents(record: Record) -> list[np.ndarray]:
    """The whole documents of a record that holds several."""
    return np.split(record.first, np.cumsum(record.second)[:-1]) if len(record.second) else []


def joined(parts: Sequence[Sequence[Any]]) -> Int[np.ndarray, ' N']:
    """Ids one after the other."""
    flat = [np.asarray(x, np.int32) for part in parts for x in part]
    return np.concatenate(flat) if flat else np.zeros(0, np.int32)


def places(segments: str, positions: str, sizes: list[list[int]], length: int) -> Arrays:
    """Number of each document, from 1, and positions in it; both 0 on padding."""
    numbers = [np.repeat(np.arange(1, len(row) + 1), row) for row in sizes]
    within = [joined([[range(n) for n in row]]) for row in sizes]
    return {
        segments: padded(numbers, length, 0)[0],
        positions: padded(within, length, 0)[0],
    }


def padded(
    rows: Sequence[np.ndarray], length: int, pad_id: int
) -> tuple[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
    """(ids, which are real)."""
    ids_BT = np.full((len(rows), length), pad_id, np.int32)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = ids
    return ids_BT, np.arange(length) < np.array([len(ids) for ids in rows])[:, None]


def uniform(keys: Sequence[Key], n: int) -> Float64[np.ndarray, 'B n']:
    """n draws from [0, 1) for each key: the key's own part of one Philox sequence."""
    draws_Bn = np.empty((len(keys), n), np.uint64)
    for row, (seed, epoch, record) in enumerate(keys):
        draws_Bn[row] = np.random.Philox(
            key=seed % 2**64, counter=np.array([0, 0, epoch, record], np.uint64)
        ).random_raw(n)
    return (draws_Bn >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=8)
def ordinary(vocab_size: int, special_ids: frozenset[int]) -> Bool[np.ndarray, ' V']:
    """Which ids are not special."""
    ordinary_V = np.ones(vocab_size, bool)
    ordinary_V[list(special_ids)] = False
    return ordinary_V
