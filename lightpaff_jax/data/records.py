"""Records on disk: what prepare.py writes and batches are made of."""

import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32

from lightpaff_jax.errors import UserError, nearest

FORMAT = 3  # of the folder; another one is prepared again
MANIFEST = 'manifest.json'
STATE = 'state.json'  # is there as long as the set is not finished
_INT = np.dtype('<i4')  # of what stands before the ids of a record
_MANIFEST: dict[str, type] = {
    'classes': int, 'dtype': str, 'kind': str, 'lengths': list, 'objective': str, 'packing': str,
    'source': str, 'splits': dict, 'vocabulary': dict,
}  # fmt: skip
SPLIT: dict[str, type] = {'hash': str, 'shards': list}
"""Keys that a split has in a manifest and in STATE, and their types."""
_COUNTS = dict.fromkeys(('records', 'tokens', 'words', 'skipped'), int)
_SHARD: dict[str, type] = {'file': str, 'records': int, 'bytes': int, 'sha256': str}


class Record(NamedTuple):
    """A block of a stream (`first` alone), whole documents, or an example.

    Of whole documents `first` is their ids, one document after the other, `second` how many are
    of each. There are no special ids but a stream's own.
    """

    first: Int32[np.ndarray, ' N']
    second: Int32[np.ndarray, ' M'] = np.zeros(0, np.int32)
    label: int = -1


PADDING = Record(np.zeros(0, np.int32))
"""Fills up the last batch of a pass; its row has weight 0 everywhere."""


def is_padding(record: Record) -> bool:
    """Whether it holds nothing, as PADDING."""
    return not len(record.first) and not len(record.second) and record.label < 0


def to_bytes(record: Record, kind: str, dtype: np.dtype) -> bytes:
    """A record on disk, where its ids are of type `dtype`.

    blocks: the ids. packed: how many documents, ids of each, the ids. examples: the label, ids of
    the first text, all ids. Numbers before the ids are int32.
    """
    ids = record.first.astype(dtype).tobytes()
    if kind == 'blocks':
        return ids
    if kind == 'packed':
        return np.array([len(record.second), *record.second], _INT).tobytes() + ids
    header = np.array([record.label, len(record.first)], _INT).tobytes()
    return header + ids + record.second.astype(dtype).tobytes()


def from_bytes(data: bytes, kind: str, dtype: np.dtype) -> Record:
    """What `to_bytes` wrote."""
    if kind == 'blocks':
        return Record(np.frombuffer(data, dtype).astype(np.int32))
    if kind == 'packed':
        documents = int(np.frombuffer(data, _INT, 1)[0])
        second = np.frombuffer(data, _INT, documents, offset=_INT.itemsize)
        ids = np.frombuffer(data, dtype, offset=_INT.itemsize * (1 + documents))
        return Record(ids.astype(np.int32), second.astype(np.int32))
    label, first = np.frombuffer(data, _INT, 2).tolist()
    ids = np.frombuffer(data, dtype, offset=2 * _INT.itemsize).astype(np.int32)
    return Record(ids[:first], ids[first:], label)


class Records:
    """The records of one split, by number. May be read by several threads."""

    def __init__(self, shards: Sequence[tuple[pathlib.Path, int]], kind: str, dtype: np.dtype):
        """Opens no file yet.

        Args:
          shards: files in their order, and how many records are in each.
          kind: of the set.
          dtype: of an id on disk.
        """
        self._files = [file for file, _ in shards]
        self._counts = [count for _, count in shards]
        self._ends = np.cumsum(self._counts)
        self._readers: list[Any] = [None] * len(self._files)
        self._lock = threading.Lock()
        self._kind = kind
        self._dtype = dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records of these numbers, in this order.

        One call of a reader for each shard: ArrayRecordDataSource starts a thread for each, which
        takes longer than reading a batch.

        Raises:
          IndexError: there is no such record.
          UserError: a file is damaged.
        """
        numbers = np.asarray(indices, np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f'numbers must be at least 0 and below {len(self)}')
        found: list[Record] = [PADDING] * len(numbers)
        owners = np.searchsorted(self._ends, numbers, side='right')
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            within = numbers[places] - (self._ends[owner] - self._counts[owner])
            for place, data in zip(places.tolist(), self._data(owner, within), strict=True):
                found[place] = from_bytes(data, self._kind, self._dtype)
        return found

    def lengths(self) -> Int32[np.ndarray, 'n 2']:
        """Of examples: ids in the first and the second text of each.

        Raises:
          UserError: a file of them is missing or damaged.
        """
        parts = []
        for shard, count in zip(self._files, self._counts, strict=True):
            file = lengths_file(shard)
            try:
                part = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f'{file}: {_again(file, "cannot be read")}') from error
            if part.shape != (count, 2):
                has = f'has lengths of {len(part)} records, {MANIFEST} says {count}'
                raise UserError(f'{file}: {_again(file, has)}')
            parts.append(part.astype(np.int32))
        return np.concatenate(parts)

    def _data(self, shard: int, numbers: np.ndarray) -> list[bytes]:
        file = self._files[shard]
        try:
            with self._lock:
                reader = self._readers[shard] = self._readers[shard] or opened(file)
            if reader.num_records() == self._counts[shard]:
                return reader.read(numbers.tolist())
        except RuntimeError as error:  # the block that a record is in has another checksum
            reason = ' '.join(str(error).split())
            raise UserError(f'{file}: {_again(file, f"is damaged: {reason}")}') from error
        has = f'has {reader.num_records()} records, {MANIFEST} says {self._counts[shard]}'
        raise UserError(f'{file}: {_again(file, has)}')

    def __repr__(self) -> str:
        return f'Records({len(self)} {self._kind})'


def opened(file: pathlib.Path):
    """A reader of single records anywhere in the file."""
    return array_record_module.ArrayRecordReader(
        str(file), 'readahead_buffer_size:0', file_reader_buffer_size=1 << 15
    )


def _again(file: pathlib.Path, what: str) -> str:
    return f'{what}; remove {file.parent}, and prepare makes it again'


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of records: `blocks`, `packed` or `examples`."""

    path: str
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """'blocks': pieces of one stream of documents. 'packed': whole documents. 'examples'."""
        return self.manifest['kind']

    @property
    def classes(self) -> int:
        """Of the labels; 0 where there are none."""
        return self.manifest['classes']

    @property
    def hash(self) -> str:
        """16 hex digits of what a run reads here: the ids, their vocabulary, how they were cut."""
        splits = {
            name: {key: value for key, value in stats.items() if key != 'shards'}
            for name, stats in self.manifest['splits'].items()
        }
        read = [splits, *(self.manifest[key] for key in ('objective', 'vocabulary', 'lengths'))]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict[str, Any]:
        """What is in a split, counted by prepare.py.

        `records`; `hash`, 16 hex digits of their bytes, whatever shards they are in; `shards`, of
        each its `file`, `records`, `bytes` and `sha256`; `skipped`, malformed rows that were left
        out; `tokens`, ids that one pass predicts (clm, seq2seq), may predict (mlm, mass) or reads
        (classify). Of blocks and packed also `documents`, and `words`: white-space words, and one
        for the end of every line of the original text. Of packed also `pieces`, those documents
        after the long ones were cut, and `fill`, the share of the rows that they take. Of examples
        also `examples`; `pairs`, how many have a second text; `words`, those of the targets as
        they were cut, for classify of all texts; `truncated`, how many were too long; `too_long`,
        of the first of these its number, ids and limit, or None; `labels`, the lowest and the
        highest.

        Raises:
          UserError: no such split.
        """
        known = list(self.manifest['splits'])
        if split not in known:
            near = nearest(split, known)
            raise UserError(f'split {split!r}: must be one of {", ".join(known)}{near}')
        return self.manifest['splits'][split]

    def records(self, split: str) -> Records:
        """Random access to the records of a split; may be read by several threads.

        Raises:
          UserError: no such split, or a file of it is missing or cut short.
        """
        shards = []
        for shard in self.split(split)['shards']:
            file = pathlib.Path(self.path) / shard['file']
            size = file.stat().st_size if file.is_file() else None
            if size != shard['bytes']:
                has = 'no such file' if size is None else f'has {size} bytes'
                says = f'{has}, {MANIFEST} says {shard["bytes"]} bytes'
                raise UserError(f'{file}: {_again(file, says)}')
            shards.append((file, shard['records']))
        return Records(shards, self.kind, np.dtype(self.manifest['dtype']))


def id_type(vocab_size: int) -> np.dtype:
    """The type of an id on disk."""
    return np.dtype('<u2' if vocab_size <= 1 << 16 else '<i4')


def shard_file(folder: pathlib.Path, split: str, number: int) -> pathlib.Path:
    """Where a shard of a split is."""
    return folder / f'{split}-{number:05}.array_record'


def lengths_file(shard: pathlib.Path) -> pathlib.Path:
    """Of a shard of examples: [n, 2], how many ids are of each text of a record."""
    return shard.with_suffix('.npy')


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
      UserError: there is none, or it is malformed, or not of this FORMAT.
    """
    file = folder / MANIFEST
    if not file.is_file():
        must = 'must be a prepared data set'
        if (folder / STATE).is_file():
            must = 'preparing it was not finished; the same command goes on where it stopped'
        raise UserError(f'{folder}: has no {MANIFEST}, {must}')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        form = content['format']
        if form == FORMAT:
            check(content, _MANIFEST)
            check(content['vocabulary'], {'hash': str, 'size': int})
            check(dict(enumerate(content['lengths'])), {0: int, 1: int})
            for stats in content['splits'].values():
                check(stats, SPLIT | _COUNTS)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{file}: must be the manifest of a prepared data set') from error
    if form != FORMAT:
        raise UserError(
            f'{file}: has format {form}, this version reads {FORMAT}: prepare the set again'
        )
    return content


def check(content: Any, keys: Mapping[Any, type]) -> None:
    """Raises KeyError or TypeError unless it has these keys and values of these types.

    Of `shards` each is checked too.
    """
    for key, kind in keys.items():
        if not isinstance(content[key], kind):
            raise TypeError(f'{key} must be {kind.__name__}')
    for shard in content['shards'] if 'shards' in keys else ():
        check(shard, _SHARD)
