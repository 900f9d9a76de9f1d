"""Records of token ids on disk, and the folder of a prepared dataset that holds them."""

import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32

from lightpaff_jax.errors import UserError, nearest, one_line
from lightpaff_jax.runtime import json_file, storage

FORMAT = 3  # version of the folder; a dataset of another version must be prepared again
MANIFEST = 'manifest.json'
STATE = 'state.json'  # exists only while the dataset is unfinished
_INT = np.dtype('<i4')  # type of the header before the ids of a record
_COUNT, _ID = range(2**62), range(2**31)
_SHARD = {'file': str, 'records': _ID, 'bytes': _COUNT, 'sha256': str, 'lengths_sha256?': str}
SPLIT = {'hash': str, 'shards': [_SHARD]}
"""The form of a split in the manifest and in STATE."""
# Type of the records -> the counts of a split.
_COUNTS = {
    'blocks': {'documents': _COUNT},
    'packed': {'documents': _COUNT, 'pieces': _COUNT, 'fill': float},
    'examples': {
        **dict.fromkeys(('examples', 'pairs', 'truncated'), _COUNT),
        'labels': [int, int],
    },
}
_MANIFEST = {
    'classes': _ID,
    'class_names?': [str],
    'dtype': ('<u2', '<i4'),
    'kind': tuple(_COUNTS),
    'lengths': [_ID, _ID],
    'made_from?': {'keys?': {'labels?': [str]}},
    'objective': str,
    'packing': str,
    'source': str,
    'splits': {str: SPLIT | dict.fromkeys(('records', 'tokens', 'words', 'skipped'), _COUNT)},
    'vocabulary': {'hash': str, 'size': _ID},
}


class Record(NamedTuple):
    """A block of the token stream, a row of whole documents, or an example.

    A block has only `first`. A row of documents has the ids of all documents in `first` and the
    length of each document in `second`. An example has the ids of its two texts in `first` and
    `second`. Special ids are added when a batch is made; only blocks contain the separators of
    their stream.
    """

    first: Int32[np.ndarray, ' N']
    second: Int32[np.ndarray, ' M'] = np.zeros(0, np.int32)
    label: int = -1


PADDING = Record(np.zeros(0, np.int32))
"""Fills the last batch of a pass; the weights of its row are 0."""


def is_padding(record: Record) -> bool:
    """Returns whether a record is empty, as PADDING is."""
    return not len(record.first) and not len(record.second) and record.label < 0


def to_bytes(record: Record, record_type: str, dtype: np.dtype) -> bytes:
    """Encodes a record; ids have type `dtype`, the numbers before them are int32.

    A record of type 'blocks' is stored as its ids; 'packed' as the number of documents, their
    lengths and the ids; 'examples' as the label, the length of the first text and the ids of both.
    """
    ids = record.first.astype(dtype).tobytes()
    if record_type == 'blocks':
        return ids
    if record_type == 'packed':
        return np.array([len(record.second), *record.second], _INT).tobytes() + ids
    header = np.array([record.label, len(record.first)], _INT).tobytes()
    return header + ids + record.second.astype(dtype).tobytes()


def from_bytes(data: bytes, record_type: str, dtype: np.dtype) -> Record:
    """Decodes a record that `to_bytes` encoded."""
    if record_type == 'blocks':
        return Record(np.frombuffer(data, dtype).astype(np.int32))
    if record_type == 'packed':
        documents = int(np.frombuffer(data, _INT, 1)[0])
        lengths = np.frombuffer(data, _INT, documents, offset=_INT.itemsize)
        ids = np.frombuffer(data, dtype, offset=_INT.itemsize * (1 + documents))
        return Record(ids.astype(np.int32), lengths.astype(np.int32))
    label, first = np.frombuffer(data, _INT, 2).tolist()
    ids = np.frombuffer(data, dtype, offset=2 * _INT.itemsize).astype(np.int32)
    return Record(ids[:first], ids[first:], label)


class Records:
    """Reads the records of a split by index. Threads may share an instance."""

    def __init__(
        self, shards: Sequence[tuple[pathlib.Path, int]], record_type: str, dtype: np.dtype
    ):
        """Stores the layout of the split; a file is opened when it is first read.

        Args:
          shards: path and number of records of each file, in order.
          record_type: 'blocks', 'packed' or 'examples'.
          dtype: type of an id on disk.
        """
        self._files = [file for file, _ in shards]
        self._counts = [count for _, count in shards]
        self._readers: list[Any] = [None] * len(self._files)
        self._lock = threading.Lock()
        self._record_type = record_type
        self._dtype = dtype

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> Record:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at `indices`, in that order.

        Each shard is read by one call of its reader. ArrayRecordDataSource would start one thread
        per shard, which takes longer than reading a batch.

        Raises:
          IndexError: an index is out of range.
          UserError: a file is damaged.
        """
        return read_parts(self._counts, indices, self._read_shard)

    def lengths(self) -> Int32[np.ndarray, 'n 2']:
        """Returns the number of ids in the first and the second text of each example.

        Raises:
          UserError: a file of lengths is missing or damaged.
        """
        parts = []
        for shard, count in zip(self._files, self._counts, strict=True):
            file = lengths_path(shard)
            try:
                part = np.load(file, allow_pickle=False)
            except Exception as error:  # NumPy parses the header as Python: many types of errors
                raise _damage(file, 'cannot be read') from error
            if part.shape != (count, 2) or part.dtype.kind not in 'iu':
                raise _damage(file, f'must have the two lengths of the {count} records')
            parts.append(part.astype(np.int32))
        return np.concatenate(parts)

    def _read_shard(self, shard: int, indices: list[int]) -> list[Record]:
        file = self._files[shard]
        try:
            with self._lock:
                reader = self._readers[shard] = self._readers[shard] or open_reader(file)
            if reader.num_records() == self._counts[shard]:
                blobs = reader.read(indices)
                return [from_bytes(data, self._record_type, self._dtype) for data in blobs]
        except (RuntimeError, ValueError) as error:  # a checksum or the size of a record is wrong
            raise _damage(file, f'is damaged: {one_line(error)}') from error
        raise _damage(
            file, f'has {reader.num_records()} records, {MANIFEST} lists {self._counts[shard]}'
        )


def read_parts(
    sizes: Sequence[int], indices: Sequence[int], read: Callable[[int, list[int]], list[Record]]
) -> list[Record]:
    """Reads records by an index over several parts, such as shards.

    Args:
      sizes: the number of records of each part.
      indices: indices over all parts.
      read: maps the number of a part and indices into it to records; called once for each part.

    Raises:
      IndexError: an index is out of range.
    """
    ends, numbers = np.cumsum(sizes), np.asarray(indices, np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < ends[-1]:
        raise IndexError(f'record indices must be at least 0 and below {ends[-1]}')
    records: list[Record] = [PADDING] * len(numbers)
    parts = np.searchsorted(ends, numbers, side='right')
    for part in np.unique(parts).tolist():
        slots = np.flatnonzero(parts == part)
        offsets = numbers[slots] - (ends[part] - sizes[part])
        for slot, record in zip(slots.tolist(), read(part, offsets.tolist()), strict=True):
            records[slot] = record
    return records


def open_reader(file: pathlib.Path):
    """Opens an ArrayRecord file for random access to single records."""
    return array_record_module.ArrayRecordReader(
        str(file), 'readahead_buffer_size:0', file_reader_buffer_size=1 << 15
    )


def _damage(file: pathlib.Path, problem: str) -> UserError:
    return UserError(f'{file}: {problem}; remove {file.parent} and prepare it again')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: a folder of records and its manifest."""

    path: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: pathlib.Path) -> 'Dataset':
        """Opens a folder.

        Raises:
          UserError: as `read_manifest`.
        """
        return cls(str(folder), read_manifest(folder))

    @property
    def record_type(self) -> str:
        """'blocks' of one stream of documents, 'packed' rows of whole documents, or 'examples'."""
        return self.manifest['kind']

    @property
    def hash(self) -> str:
        """16 hex digits that change with the ids, their vocabulary and how they were cut."""
        splits = {
            name: {key: value for key, value in stats.items() if key != 'shards'}
            for name, stats in self.manifest['splits'].items()
        }
        content = [splits, *(self.manifest[key] for key in ('objective', 'vocabulary', 'lengths'))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict[str, Any]:
        """Returns the manifest's entry of a split.

        All types of records have:
          records: number of records.
          hash: 16 hex digits of their bytes; it does not depend on the shard size.
          shards: `file`, `records`, `bytes` and `sha256` of each shard, and the `lengths_sha256` of
            the lengths of its examples.
          skipped: number of malformed rows that were skipped.
          tokens: ids that one pass predicts (clm, seq2seq), may predict (mlm, mass) or reads
            (classify).
          words: white-space words, plus one for the end of each line, of the original text. For
            examples: of the targets after truncation (seq2seq) or of all texts (classify).
        Blocks and packed rows also have:
          documents: number of documents.
        Packed rows also have:
          pieces: number of documents after the long ones were cut.
          fill: share of the capacity of the rows that is used.
        Examples also have:
          examples: number of examples.
          pairs: examples with a second text.
          truncated: examples that were too long.
          too_long: index, ids and limit of the first of these, or None.
          labels: the lowest and the highest label.

        Raises:
          UserError: the split does not exist.
        """
        splits = list(self.manifest['splits'])
        if split not in splits:
            near = nearest(split, splits)
            raise UserError(f'split {split!r}: must be one of {", ".join(splits)}{near}')
        return self.manifest['splits'][split]

    def records(self, split: str) -> Records:
        """Returns random access to the records of a split. Threads may share it.

        Raises:
          UserError: the split does not exist, or one of its files is missing, truncated or not in
            the folder.
        """
        shards, folder = [], pathlib.Path(self.path)
        for number, shard in enumerate(self.split(split)['shards']):
            where = f'{folder / MANIFEST}: splits.{split}.shards[{number}].file'
            file = storage.member(folder, shard['file'], where)
            if not file.resolve().is_relative_to(folder.resolve()):
                raise UserError(f'{file}: must be in {folder}, is a link to {file.resolve()}')
            size = file.stat().st_size if file.is_file() else None
            if size != shard['bytes']:
                problem = 'no such file' if size is None else f'has {size} bytes'
                raise _damage(file, f'{problem}, {MANIFEST} lists {shard["bytes"]} bytes')
            if shard['records'] > size:  # a record has a header
                raise _damage(file, f'cannot have the {shard["records"]} records of {MANIFEST}')
            lengths, digest = lengths_path(file), shard.get('lengths_sha256')
            if digest and lengths.is_file() and sha256(lengths) != digest:
                raise _damage(lengths, f'was changed, {MANIFEST} lists another digest')
            shards.append((file, shard['records']))
        return Records(shards, self.record_type, np.dtype(self.manifest['dtype']))


def sha256(path: pathlib.Path) -> str:
    """Returns the hex digits of the SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def id_type(vocab_size: int) -> np.dtype:
    """Returns the type of an id on disk: 2 bytes if the vocabulary allows it, else 4."""
    return np.dtype('<u2' if vocab_size <= 1 << 16 else '<i4')


def shard_path(folder: pathlib.Path, split: str, number: int) -> pathlib.Path:
    """Returns the path of a shard."""
    return folder / f'{split}-{number:05}.array_record'


def lengths_path(shard: pathlib.Path) -> pathlib.Path:
    """Returns the path of the lengths [n, 2] of a shard of examples: ids in each of the two texts."""
    return shard.with_suffix('.npy')


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of a prepared dataset.

    Raises:
      UserError: the manifest is missing, malformed, or of another FORMAT.
    """
    file = folder / MANIFEST
    if not file.exists():
        rule = 'must be a prepared dataset'
        if (folder / STATE).is_file():
            rule = 'its preparation is unfinished; run the same command to resume it'
        raise UserError(f'{folder}: has no {MANIFEST}, {rule}')
    content = json_file.read(file, {'format': int})
    if content['format'] != FORMAT:
        raise UserError(
            f'{file}: has format {content["format"]}, this version reads {FORMAT}: prepare the '
            'dataset again'
        )
    json_file.check(content, _MANIFEST, str(file))
    for name, stats in content['splits'].items():
        place = f'{file}: splits.{name}'
        json_file.check(stats, _COUNTS[content['kind']], place)
        if stats.get('truncated'):
            json_file.check(stats, {'too_long': [_COUNT, _COUNT, _COUNT]}, place)
        count = sum(shard['records'] for shard in stats['shards'])
        if stats['records'] != count:
            raise UserError(f'{place}: records = {stats["records"]}: its shards have {count}')
    return content
