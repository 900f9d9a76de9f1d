"""Several prepared sets as one: each gives its share of the rows of training."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightpaff_jax.data.records import Prepared, Record, Records

_SUMS = ('records', 'tokens', 'words', 'documents', 'skipped')


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What `Prepared` is, of several sets; their records are numbered one set after the other."""

    parts: tuple[Prepared, ...]
    weights: tuple[float, ...]
    """Shares of the rows of training, of any sum; evaluation reads each part once."""

    @property
    def path(self) -> str:
        return ' + '.join(part.path for part in self.parts)

    @property
    def kind(self) -> str:
        return self.parts[0].kind

    @property
    def classes(self) -> int:
        return 0

    @property
    def hash(self) -> str:
        """16 hex digits of what a run reads here."""
        read = [[part.hash for part in self.parts], list(self.weights)]
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict[str, Any]:
        """The sums of what `Prepared.split` says of the parts."""
        stats = [part.split(split) for part in self.parts]
        return {name: sum(s.get(name, 0) for s in stats) for name in _SUMS}

    def records(self, split: str) -> 'MixedRecords':
        """Random access to the records of a split; may be read by several threads."""
        return MixedRecords([part.records(split) for part in self.parts])


class MixedRecords:
    """Records of several sets, one set after the other."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records of these numbers, in this order."""
        found: list[Record | None] = [None] * len(indices)
        numbers = np.asarray(indices)
        owner = np.searchsorted(self._ends, numbers, side='right')
        for k, part in enumerate(self._parts):
            places = np.flatnonzero(owner == k)
            if len(places):
                first = self._ends[k] - len(part)
                records = part.read((numbers[places] - first).tolist())
                for place, record in zip(places.tolist(), records, strict=True):
                    found[place] = record
        assert all(record is not None for record in found), 'numbers are below the length'
        return [record for record in found if record is not None]
