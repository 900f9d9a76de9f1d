"""Records on disk: what prepare.py writes and batches are made of."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Int32

from lightpaff_jax import config

FORMAT = 2  # of the folder; another one is prepared again
_MANIFEST = 'manifest.json'
_HEADER = np.dtype('<i4')  # of an example: its label, and how many ids are of its first text


class Record(NamedTuple):
    """A block of a stream (`first` alone), or an example; no special ids but a stream's own."""

    first: Int32[np.ndarray, ' N']
    second: Int32[np.ndarray, ' M'] = np.zeros(0, np.int32)
    label: int = -1


PADDING = Record(np.zeros(0, np.int32))
"""Fills up the last batch of a pass; its row has weight 0 everywhere."""


def is_padding(record: Record) -> bool:
    """Whether it holds nothing, as PADDING."""
    return not len(record.first) and not len(record.second) and record.label < 0


class Records:
    """The records of one split, by index. May be read by several threads."""

    def __init__(self, file: pathlib.Path, kind: str, dtype: np.dtype):
        self._source = array_record_data_source.ArrayRecordDataSource(str(file))
        self._kind = kind
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        data = self._source[index]
        if self._kind == 'blocks':
            return Record(np.frombuffer(data, self._dtype).astype(np.int32))
        label, first = np.frombuffer(data, _HEADER, 2).tolist()
        ids = np.frombuffer(data, self._dtype, offset=2 * _HEADER.itemsize).astype(np.int32)
        return Record(ids[:first], ids[first:], label)

    def __repr__(self) -> str:
        return f'Records({len(self)} {self._kind})'


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of records, `blocks` or `examples`."""

    path: str
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """'blocks': pieces of one stream of documents. 'examples': a record each."""
        return self.manifest['kind']

    @property
    def classes(self) -> int:
        """Of the labels; 0 where there are none."""
        return self.manifest['classes']

    @property
    def hash(self) -> str:
        """16 hex digits of what a run reads here: the ids, their vocabulary, how they were cut."""
        read = [self.manifest[key] for key in ('splits', 'objective', 'vocabulary', 'lengths')]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict[str, Any]:
        """What is in a split, counted by prepare.py.

        `records`; `hash`, 16 hex digits of their bytes; `tokens`, ids that one pass predicts
        (clm, seq2seq), may predict (mlm, mass) or reads (classify). Of blocks also `documents`,
        and `words`: white-space words, and one for the end of every line of the text. Of examples
        also `examples`; `words`, those of the targets as they were cut, for classify of all texts; `truncated`, how
        many were too long; `too_long`, of the first of these its number, ids and limit, or None;
        `labels`, the lowest and the highest.

        Raises:
          UserError: no such split.
        """
        known = list(self.manifest['splits'])
        if split not in known:
            near = config.nearest(split, known)
            raise config.UserError(f'split {split!r}: must be one of {", ".join(known)}{near}')
        return self.manifest['splits'][split]

    def records(self, split: str) -> Records:
        """Random access to the records of a split; may be read by several threads.

        Raises:
          UserError: no such split, or its file is missing or cut short.
        """
        stats, file = self.split(split), split_file(pathlib.Path(self.path), split)
        if not file.is_file():
            raise config.UserError(f'{file}: no such file, prepare this data set again')
        found = Records(file, self.kind, np.dtype(self.manifest['dtype']))
        if len(found) != stats['records']:
            raise config.UserError(
                f'{file}: has {len(found)} records, {_MANIFEST} says {stats["records"]}'
            )
        return found


def id_type(vocab_size: int) -> np.dtype:
    """The type of an id on disk."""
    return np.dtype('<u2' if vocab_size <= 1 << 16 else '<i4')


def write(file: pathlib.Path, records: Iterable[Record], kind: str, dtype: np.dtype) -> dict:
    """Writes the records of one split; returns how many (`records`) and their `hash`."""
    hasher, written = hashlib.sha256(), 0
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1,uncompressed')
    for record in records:
        data = record.first.astype(dtype).tobytes()
        if kind == 'examples':
            header = np.array([record.label, len(record.first)], _HEADER).tobytes()
            data = header + data + record.second.astype(dtype).tobytes()
        writer.write(data)
        hasher.update(len(data).to_bytes(4) + data)
        written += 1
    writer.close()
    return {'records': written, 'hash': hasher.hexdigest()[:16]}


def write_manifest(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """What `manifest` reads."""
    (folder / _MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
      UserError: there is none, or it is not one of this FORMAT.
    """
    file = folder / _MANIFEST
    if not file.is_file():
        raise config.UserError(f'{folder}: has no {_MANIFEST}, must be a prepared data set')
    try:
        content = json.loads(file.read_text())
        form = content['format']
    except (ValueError, TypeError, KeyError) as error:
        raise config.UserError(f'{file}: must be the manifest of a prepared data set') from error
    if form != FORMAT:
        raise config.UserError(f'{file}: has format {form}, must be {FORMAT}')
    return content


def split_file(folder: pathlib.Path, split: str) -> pathlib.Path:
    """Where the records of a split are."""
    return folder / f'{split}.array_record'
