"""Writes the shards of a prepared set so that a process killed at any moment loses one at most.

A shard is written under the name of a `.part`, read again, and renamed. Then STATE says how far
the work came; whatever it does not name is written again, to the same bytes.
"""

import contextlib
import errno
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lightpaff_jax import config
from lightpaff_jax.data import records
from lightpaff_jax.data.records import STATE, Record
from lightpaff_jax.errors import Unfinished, UserError
from lightpaff_jax.runtime import storage

_PARTS = ('*.array_record', '*.npy', '*.json')  # of these, in a folder
_LOG = logging.getLogger('lightpaff_jax')


class State:
    """What is done of a set, in a file beside its shards."""

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
        """Reads what there is, or begins.

        Args:
          folder: of the set; made where it is missing.
          identity: what the bytes of its shards depend on, as JSON values.

        Raises:
          UserError: the folder holds unfinished work of another identity.
        """
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # as it is read again
        self._splits: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in _PARTS:
            for part in folder.glob(pattern + storage.PART):
                part.unlink()
        content = read_state(folder)
        if content is None:
            self._write()
            return
        found = differences(content['identity'], self.identity)
        if found:
            raise UserError(
                f'{folder}: holds unfinished work of another set ({found}): remove it, or '
                'choose another folder'
            )
        for split, saved in content['splits'].items():
            if all(_intact(folder, shard) for shard in saved['shards']):
                self._splits[split] = saved
            else:
                _LOG.info('%s: shards of %s were changed, they are made again', folder, split)

    def split(self, split: str) -> dict[str, Any]:
        """What was saved of a split; {} where that is nothing."""
        return self._splits.get(split, {})

    def save(self, split: str, saved: dict[str, Any]) -> None:
        """Says how far a split is; `saved` has `shards` and JSON values of its maker."""
        self._splits[split] = saved
        self._write()

    def remove(self) -> None:
        """Forgets the work, which is finished."""
        (self.folder / STATE).unlink(missing_ok=True)

    def _write(self) -> None:
        write(self.folder / STATE, {'identity': self.identity, 'splits': self._splits})


def read_state(folder: pathlib.Path) -> dict[str, Any] | None:
    """What STATE of a folder says; None where there is none.

    Raises:
      UserError: it is malformed.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding='utf-8'))
        records.check_fields(content, {'identity': dict, 'splits': dict})
        for saved in content['splits'].values():
            records.check_fields(saved, {'counts': dict} | records.SPLIT_FIELDS)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{folder / STATE}: is malformed, remove {folder}') from error
    return content


def clear(folder: pathlib.Path, splits: Sequence[str]) -> None:
    """Removes the unfinished work of a folder, and the folder if nothing else is in it."""
    for split in splits:
        for file in folder.glob(f'{split}-*'):
            if file.suffix in ('.array_record', '.npy', storage.PART):
                file.unlink()
    (folder / STATE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


class Writer:
    """Writes the records of one split, chunk by chunk, into shards."""

    def __init__(self, folder: pathlib.Path, split: str, kind: str, dtype: np.dtype,
                 length_type: np.dtype, saved: dict[str, Any]):  # fmt: skip
        """Goes on behind the shards that were saved.

        Args:
          folder: of the set.
          split: its name is in those of the shards.
          kind: of the records.
          dtype: of an id on disk.
          length_type: of a number of ids, in the files of lengths of examples.
          saved: what `entry` gave, or {}.
        """
        self.done: list[dict[str, Any]] = list(saved.get('shards', []))
        self.hash: str = saved.get('hash', '')
        self.ids = 0  # in the shard that is being written; what stands before them counts too
        self._folder, self._split, self._kind = folder, split, kind
        self._dtype, self._length_type = dtype, length_type
        self._writer: Any = None
        self._begin()

    @property
    def records(self) -> int:
        """In the finished shards."""
        return sum(shard['records'] for shard in self.done)

    def entry(self) -> dict[str, Any]:
        """The finished shards, and a hash of all records so far, whatever shards they are in."""
        return {'shards': self.done, 'hash': self.hash}

    def add(self, made: Sequence[Record]) -> None:
        """Writes the records of one chunk.

        Raises:
          Unfinished: they cannot be written.
        """
        hasher = hashlib.sha256(self.hash.encode())
        with self._writing():
            if self._writer is None and made:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._part), 'group_size:1,uncompressed'
                )
            for record in made:
                data = records.to_bytes(record, self._kind, self._dtype)
                self._writer.write(data)
                for digest in (hasher, self._content):
                    digest.update(len(data).to_bytes(4) + data)
                self._lengths.append((len(record.first), len(record.second)))
                self.ids += len(data) // self._dtype.itemsize
        self.hash = hasher.hexdigest()

    def end(self) -> None:
        """Ends the shard, if it has a record.

        Raises:
          Unfinished: it cannot be written, or cannot be read as it was written.
        """
        if self._writer is None:
            return
        with self._writing():
            self._writer.close()
            self._writer = None
            self._verify()
            size = self._part.stat().st_size
            with self._part.open('rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
            if self._kind == 'examples':
                lengths = records.lengths_path(self._file)
                part = lengths.with_name(lengths.name + storage.PART)
                with part.open('wb') as file:  # to a path, np.save would add a suffix
                    np.save(file, np.array(self._lengths, self._length_type))
                storage.commit(part, lengths)
            storage.commit(self._part, self._file)
        self.done.append(
            {'file': self._file.name, 'records': len(self._lengths), 'bytes': size, 'sha256': digest}
        )  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        self._file = records.shard_path(self._folder, self._split, len(self.done))
        self._part = self._file.with_name(self._file.name + storage.PART)
        self._lengths: list[tuple[int, int]] = []
        self._content = hashlib.sha256()
        self.ids = 0

    def _verify(self) -> None:
        """A writer may have failed in silence."""
        reader, found = records.open_reader(self._part), hashlib.sha256()
        with contextlib.suppress(RuntimeError):  # it is another file then
            for data in reader.read_all() if reader.num_records() else ():
                found.update(len(data).to_bytes(4) + data)
        if found.digest() != self._content.digest():
            raise OSError(errno.EIO, 'what was written cannot be read again')

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        kept = f'{self.records} records of {self._split} in {len(self.done)} shards'
        with writing(self._file, kept):
            try:
                yield
            except (OSError, RuntimeError):
                self._writer = None
                with contextlib.suppress(OSError):
                    self._part.unlink()  # what is left may need the space
                raise


@contextlib.contextmanager
def writing(file: pathlib.Path, kept: str) -> Iterator[None]:
    """Makes `Unfinished` of what hinders writing.

    Args:
      file: what is written.
      kept: what is done already, for the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        if isinstance(error, OSError):
            reason = error.strerror or str(error)  # NumPy's has none
        else:
            reason = str(error).partition(';')[0].removeprefix('write() failed: ')
        raise Unfinished(
            f'{file}: cannot be written: {reason}; {kept} are kept, the same command goes on there'
        ) from error


def write(file: pathlib.Path, content: dict[str, Any]) -> None:
    """JSON, whole or not at all.

    Raises:
      Unfinished: it cannot be written.
    """
    with writing(file, 'finished shards'):
        storage.write_json(file, content, sort_keys=True)


def _intact(folder: pathlib.Path, shard: dict[str, Any]) -> bool:
    try:
        with (folder / shard['file']).open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest() == shard['sha256']
    except OSError:
        return False


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """'key: old, not new' for what differs between two identities, '' where nothing does."""
    old, new = config.flatten(was), config.flatten(now)
    found = [
        f'{key}: {old.get(key)!r}, not {new.get(key)!r}'
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    return '; '.join(found[:3]) + (f'; and {len(found) - 3} more' if len(found) > 3 else '')
