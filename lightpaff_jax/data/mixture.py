"""A mixture of prepared datasets: each contributes its share of the training rows."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightpaff_jax.data.records import PADDING, Dataset, Record, Records

_SUMMED = ('records', 'tokens', 'words', 'documents', 'skipped')


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Has the interface of `Dataset`; the records of the parts are numbered consecutively."""

    parts: tuple[Dataset, ...]
    weights: tuple[float, ...]
    """Relative shares of the training rows; evaluation reads each part once."""

    @property
    def path(self) -> str:
        """The paths of the parts, for messages."""
        return ' + '.join(part.path for part in self.parts)

    @property
    def record_type(self) -> str:
        """The type of the records, the same in all parts."""
        return self.parts[0].record_type

    @property
    def hash(self) -> str:
        """16 hex digits that change with the parts and their weights."""
        content = [[part.hash for part in self.parts], list(self.weights)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict[str, Any]:
        """Returns the counts of a split, summed over the parts."""
        stats = [part.split(split) for part in self.parts]
        return {name: sum(s.get(name, 0) for s in stats) for name in _SUMMED}

    def records(self, split: str) -> 'MixedRecords':
        """Returns random access to the records of a split. Threads may share it."""
        return MixedRecords([part.records(split) for part in self.parts])


class MixedRecords:
    """Reads the records of several datasets by one consecutive index."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at `indices`, in that order."""
        numbers = np.asarray(indices, np.int64)
        assert not numbers.size or numbers.max() < len(self), 'record index out of range'
        records: list[Record] = [PADDING] * len(numbers)
        owners = np.searchsorted(self._ends, numbers, side='right')
        for owner, part in enumerate(self._parts):
            slots = np.flatnonzero(owners == owner)
            if len(slots):
                offsets = numbers[slots] - (self._ends[owner] - len(part))
                for slot, record in zip(slots.tolist(), part.read(offsets.tolist()), strict=True):
                    records[slot] = record
        return records
