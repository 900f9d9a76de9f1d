"""A mixture of prepared datasets: each contributes its share of the training rows."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lightpaff_jax.data.records import Dataset, Record, Records, read_parts

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
        self._sizes = [len(part) for part in parts]

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at `indices`, in that order."""
        return read_parts(
            self._sizes, indices, lambda part, numbers: self._parts[part].read(numbers)
        )
