"""Writes the shards of a prepared dataset so that a process killed at any time loses at most one.

A shard is written to a temporary file, read again, and renamed. Then STATE records the progress.
Files that STATE does not name are written again, with the same bytes.
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
from lightpaff_jax.data.records import MANIFEST, STATE, Record
from lightpaff_jax.errors import Unfinished, UserError, one_line
from lightpaff_jax.runtime import json_file, storage

_LOG = logging.getLogger('lightpaff_jax')
_ID = range(2**31)
_SAVED = {'counts': dict, 'chunks?': _ID, 'done?': bool, 'left?': [_ID]}
_FIELDS = {'identity': dict, 'splits': {str: records.SPLIT | _SAVED}}


class State:
    """The progress of a build, which a file next to the shards keeps."""

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
        """Reads the progress of an unfinished build, or starts one.

        Args:
          folder: the folder of the dataset; created if it is missing.
          identity: the values on which the bytes of the shards depend, as JSON values.

        Raises:
          UserError: the folder holds unfinished work of another identity, or STATE is malformed.
          Unfinished: STATE cannot be written.
        """
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))  # lists, as in the file
        self.splits: dict[str, dict[str, Any]] = {}
        """What `save` stored for each split."""
        folder.mkdir(parents=True, exist_ok=True)
        for extension in ('array_record', 'npy', 'json'):
            for part in folder.glob(f'*.{extension}{storage.PART}'):
                part.unlink()
        content = _read_state(folder)
        if content is None:
            _write_json(folder / STATE, {'identity': self.identity, 'splits': {}})
            return
        changes = differences(content['identity'], self.identity)
        if changes:
            raise UserError(
                f'{folder}: holds unfinished work of another dataset ({changes}): remove it, or '
                'choose another folder'
            )
        for split, saved in content['splits'].items():
            if all(_is_intact(folder, shard) for shard in saved['shards']):
                self.splits[split] = saved
            else:
                _LOG.info(f'{folder}: shards of {split} were changed, they are made again')

    def save(self, split: str, saved: dict[str, Any]) -> None:
        """Stores the progress of a split: `Writer.state` and other JSON values."""
        self.splits[split] = saved
        _write_json(self.folder / STATE, {'identity': self.identity, 'splits': self.splits})

    def finish(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest, which includes the identity, and removes STATE."""
        _write_json(self.folder / MANIFEST, self.identity | manifest)
        (self.folder / STATE).unlink(missing_ok=True)


def _read_state(folder: pathlib.Path) -> dict[str, Any] | None:
    if not (folder / STATE).exists():
        return None
    try:
        return json_file.read(folder / STATE, _FIELDS)
    except UserError as error:
        raise UserError(f'{error}; remove {folder}') from error


def _is_intact(folder: pathlib.Path, shard: dict[str, Any]) -> bool:
    file = storage.member(folder, shard['file'], f'{folder / STATE}: a shard')
    try:
        return file.is_file() and records.sha256(file) == shard['sha256']
    except OSError:
        return False


def clear(folder: pathlib.Path, splits: Sequence[str]) -> None:
    """Removes the unfinished work in a folder, and the folder unless it has other files."""
    for split in splits:
        for file in folder.glob(f'{split}-*'):
            if file.suffix in ('.array_record', '.npy', storage.PART):
                file.unlink()
    (folder / STATE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


class Writer:
    """Writes the records of a split, chunk by chunk, into shards."""

    def __init__(
        self,
        folder: pathlib.Path,
        split: str,
        record_type: str,
        dtype: np.dtype,
        length_type: np.dtype,
        saved: dict[str, Any],
    ):
        """Resumes after the shards that are saved.

        Args:
          folder: the folder of the dataset.
          split: the split, which names the shards.
          record_type: 'blocks', 'packed' or 'examples'.
          dtype: type of an id on disk.
          length_type: type of the number of ids of a text, in the lengths files of examples.
          saved: what `state` returned, or {}.
        """
        self.shards: list[dict[str, Any]] = list(saved.get('shards', []))
        self._hash: str = saved.get('hash', '')
        self._folder, self._split, self._record_type = folder, split, record_type
        self._dtype, self._length_type = dtype, length_type
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._file = records.shard_path(self._folder, self._split, len(self.shards))
        self._part = self._file.with_name(self._file.name + storage.PART)
        self._writer: Any = None
        self._lengths: list[tuple[int, int]] = []
        self._content = hashlib.sha256()
        self.ids = 0
        """The size of the current shard in ids, with the numbers before the ids of a record."""

    @property
    def records(self) -> int:
        """The number of records in the finished shards."""
        return sum(shard['records'] for shard in self.shards)

    def state(self) -> dict[str, Any]:
        """Returns the finished shards and a hash of all records, which ignores shard borders."""
        return {'shards': self.shards, 'hash': self._hash}

    def write(self, chunk: Sequence[Record]) -> None:
        """Writes the records of a chunk.

        Raises:
          Unfinished: they cannot be written.
        """
        hasher = hashlib.sha256(self._hash.encode())
        with self._writing():
            if self._writer is None and chunk:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._part), 'group_size:1,uncompressed'
                )
            for record in chunk:
                data = records.to_bytes(record, self._record_type, self._dtype)
                self._writer.write(data)
                for digest in (hasher, self._content):
                    digest.update(len(data).to_bytes(4) + data)
                self._lengths.append((len(record.first), len(record.second)))
                self.ids += len(data) // self._dtype.itemsize
        self._hash = hasher.hexdigest()

    def end_shard(self) -> None:
        """Ends the current shard if it has a record.

        Raises:
          Unfinished: it cannot be written, or cannot be read as it was written.
        """
        if self._writer is None:
            return
        shard = {'file': self._file.name, 'records': len(self._lengths)}
        with self._writing():
            self._writer.close()
            self._writer = None
            self._verify()
            shard |= {'bytes': self._part.stat().st_size, 'sha256': records.sha256(self._part)}
            if self._record_type == 'examples':
                path = records.lengths_path(self._file)
                part = path.with_name(path.name + storage.PART)
                with part.open('wb') as file:  # np.save appends .npy to a path
                    np.save(file, np.array(self._lengths, self._length_type))
                storage.commit(part, path)
                shard['lengths_sha256'] = records.sha256(path)
            storage.commit(self._part, self._file)
        self.shards.append(shard)
        self._begin_shard()

    def _verify(self) -> None:
        """Reads the shard again, because a writer can fail without an error."""
        reader, content = records.open_reader(self._part), hashlib.sha256()
        with contextlib.suppress(RuntimeError):  # a damaged shard has another digest
            for data in reader.read_all() if reader.num_records() else ():
                content.update(len(data).to_bytes(4) + data)
        if content.digest() != self._content.digest():
            raise OSError(errno.EIO, 'what was written cannot be read again')

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        finished = f'{self.records} records of {self._split} in {len(self.shards)} shards'
        with _translate_errors(self._file, finished):
            try:
                yield
            except (OSError, RuntimeError):
                self._writer = None
                with contextlib.suppress(OSError):
                    self._part.unlink()  # frees space, which other files may need
                raise


@contextlib.contextmanager
def _translate_errors(file: pathlib.Path, finished: str) -> Iterator[None]:
    """Turns the errors of writing into Unfinished; `finished` describes the work that is kept."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        reason = one_line(error).partition(';')[0].removeprefix('write() failed: ')
        raise Unfinished(
            f'{file}: cannot be written: {reason}; {finished} are kept, the same command resumes '
            'there'
        ) from error


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    with _translate_errors(file, 'finished shards'):
        storage.write_json(file, content, sort_keys=True)


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Returns 'key: before, not after' for each difference of two identities; '' if equal."""
    old, new = config.flatten(before), config.flatten(after)
    changes = [
        f'{key}: {old.get(key)!r}, not {new.get(key)!r}'
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    more = f'; and {len(changes) - 3} more' if len(changes) > 3 else ''
    return '; '.join(changes[:3]) + more
