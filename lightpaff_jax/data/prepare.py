"""Documents -> blocks of ids on disk, once for each (source, tokenizer, length)."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import pydocs, sources, tokenizers

_FORMAT = 1  # of the folder; another one is prepared again
_MANIFEST = 'manifest.json'
_DOCUMENTS = 256  # encoded in one call


class Blocks:
    """The blocks of one split, by index: `blocks[i]` is (ids [T+1] int32, how many are real)."""

    def __init__(self, file: pathlib.Path, stats: dict, length: int):
        self._records = array_record_data_source.ArrayRecordDataSource(str(file))
        self._dtype = np.dtype(stats['dtype'])
        self._last = stats['last']
        self._length = length

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Int[np.ndarray, ' T+1'], int]:
        ids = np.frombuffer(self._records[index], self._dtype).astype(np.int32)
        return ids, self._last if index == len(self) - 1 else self._length + 1

    def __repr__(self) -> str:
        return f'Blocks({len(self)} of {self._length} tokens)'


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of blocks. Block i of a split holds ids i*T ... i*T + T of its stream."""

    path: str
    manifest: dict

    @property
    def length(self) -> int:
        """T, tokens predicted in a full block."""
        return self.manifest['length']

    @property
    def hash(self) -> str:
        """16 hex digits of what a run reads here: the ids, their vocabulary and length."""
        read = [self.manifest[key] for key in ('splits', 'tokenizer', 'length')]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]

    def split(self, split: str) -> dict:
        """What is in a split: `documents`, `words` (white-space words, and one for the end of
        every line of the text), `tokens` (predicted ones), `blocks`, `last` (real ids of the
        last block), `dtype` (of an id), `hash` (16 hex digits of the ids).

        Raises:
          UserError: no such split.
        """
        known = list(self.manifest['splits'])
        if split not in known:
            near = config.nearest(split, known)
            raise config.UserError(f'split {split!r}: must be one of {", ".join(known)}{near}')
        return self.manifest['splits'][split]

    def blocks(self, split: str) -> Blocks:
        """Random access to the blocks of a split; may be read by several threads.

        Raises:
          UserError: no such split, or its file is missing or cut short.
        """
        stats, file = self.split(split), _file(pathlib.Path(self.path), split)
        if not file.is_file():
            raise config.UserError(f'{file}: no such file, prepare this data set again')
        blocks = Blocks(file, stats, self.length)
        if len(blocks) != stats['blocks']:
            raise config.UserError(
                f'{file}: has {len(blocks)} blocks, {_MANIFEST} says {stats["blocks"]}'
            )
        return blocks


def prepare(c: ConfigDict, tokenizer: tokenizers.Tokenizer) -> Prepared:
    """The blocks of `config.data`, made once in `config.data.cache` and then found there.

    A split's documents make one stream, eos d1 eos d2 ... dn eos; its blocks are T+1 ids long
    and begin every T ids, so every id but the first is predicted exactly once. The last block
    is filled with padding.

    Raises:
      UserError: a split without documents; for the source 'prepared' a folder that is missing,
        or was made with another tokenizer or another `config.data.length`.
    """
    if c.data.source == 'prepared':
        return _given(c, tokenizer)
    identity = {
        'format': _FORMAT,
        'source': c.data.source,
        **sources.IDENTITIES[c.data.source](c),
        'length': c.data.length,
        'tokenizer': tokenizer.hash,
        'vocab_size': tokenizer.vocab_size,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = pathlib.Path(c.data.cache).expanduser() / 'prepared' / f'{c.data.source}-{key}'
    if not folder.exists():
        pydocs.publish(folder, lambda temporary: _write(c, tokenizer, identity, temporary))
    return _open(folder)


def _given(c: ConfigDict, tokenizer: tokenizers.Tokenizer) -> Prepared:
    folder = pathlib.Path(c.data.path).expanduser()
    if not c.data.path or not folder.is_dir():
        raise config.UserError(
            f"config.data.path = {c.data.path!r}: must be a folder for source 'prepared'"
        )
    prepared = _open(folder)
    made, length = prepared.manifest['tokenizer'], prepared.length
    if made != tokenizer.hash:
        raise config.UserError(
            f'config.data.path = {c.data.path}: was prepared with tokenizer {made}, '
            f'this run has tokenizer {tokenizer.hash} ({tokenizer.path})'
        )
    if length != c.data.length:
        raise config.UserError(
            f'config.data.length = {c.data.length}: must equal the length {length} '
            f'that {c.data.path} was prepared with'
        )
    return prepared


def _open(folder: pathlib.Path) -> Prepared:
    file = folder / _MANIFEST
    if not file.is_file():
        raise config.UserError(f'{folder}: has no {_MANIFEST}, must be a prepared data set')
    try:
        manifest = json.loads(file.read_text())
        form = manifest['format']
    except (ValueError, TypeError, KeyError) as error:
        raise config.UserError(f'{file}: must be the manifest of a prepared data set') from error
    if form != _FORMAT:
        raise config.UserError(f'{file}: has format {form}, must be {_FORMAT}')
    return Prepared(str(folder), manifest)


def _file(folder: pathlib.Path, split: str) -> pathlib.Path:
    return folder / f'{split}.array_record'


def _write(c: ConfigDict, tokenizer, identity: dict, folder: pathlib.Path) -> None:
    folder.mkdir()
    documents = sources.SOURCES[c.data.source]
    splits = {
        split: _write_split(documents(c, split), tokenizer, c.data.length, _file(folder, split))
        for split in sources.SPLITS
    }
    text = json.dumps({**identity, 'splits': splits}, indent=2, sort_keys=True)
    (folder / _MANIFEST).write_text(text + '\n')


def _write_split(documents: Iterable[str], tokenizer, length: int, file: pathlib.Path) -> dict:
    """Writes the blocks of one split; returns its entry of the manifest."""
    dtype = np.dtype('<u2' if tokenizer.vocab_size <= 1 << 16 else '<i4')
    counts = {'documents': 0, 'words': 0}
    hasher = hashlib.sha256()
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1,uncompressed')
    blocks, last = 0, 0
    stream = _stream(_counted(documents, counts), tokenizer)
    for ids, real in pack(stream, length, tokenizer.pad_id):
        record = ids.astype(dtype).tobytes()
        writer.write(record)
        hasher.update(record)
        blocks, last = blocks + 1, real
    writer.close()
    if not counts['documents']:
        raise config.UserError(f'empty corpus: no document for {file.stem}')
    return {
        **counts,
        'tokens': (blocks - 1) * length + last - 1,
        'blocks': blocks,
        'last': last,
        'dtype': dtype.str,
        'hash': hasher.hexdigest()[:16],
    }


def pack(
    stream: Iterable[list[int]], length: int, pad_id: int
) -> Iterator[tuple[Int[np.ndarray, ' T+1'], int]]:
    """Cuts a stream of ids, which comes in parts, into overlapping blocks.

    Yields:
      (ids [length + 1] int32, how many are real): the last id of a block is the first of the
      next; only the last block may be shorter and is filled with `pad_id`.
    """
    left = np.zeros(0, np.int32)
    for part in stream:
        left = np.concatenate([left, np.asarray(part, np.int32)])
        n = max(0, (len(left) - 1) // length)
        for start in range(0, n * length, length):
            yield left[start : start + length + 1], length + 1
        left = left[n * length :]
    if len(left) > 1:
        padded = np.full(length + 1, pad_id, np.int32)
        padded[: len(left)] = left
        yield padded, len(left)


def words(text: str) -> int:
    """White-space words, and one for the end of every line: what perplexity a word divides by."""
    return len(text.split()) + text.count('\n') + 1


def _counted(documents: Iterable[str], counts: dict) -> Iterator[str]:
    for document in documents:
        counts['documents'] += 1
        counts['words'] += words(document)
        yield document


def _stream(documents: Iterable[str], tokenizer) -> Iterator[list[int]]:
    """eos d1 eos d2 ... dn eos, in parts."""
    documents = iter(documents)
    yield [tokenizer.eos_id]
    while texts := list(itertools.islice(documents, _DOCUMENTS)):
        for ids in tokenizer.encode(texts):
            yield [*ids, tokenizer.eos_id]
