"""Makes a prepared set in a folder: source -> chunks -> ids -> records -> shards -> manifest."""

import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import objectives, records, sources
from lightpaff_jax.data.prepared import packing, shards, tokenize_pool
from lightpaff_jax.data.prepared.tokenize_worker import Encoded, words
from lightpaff_jax.data.records import Record
from lightpaff_jax.data.sources import Example
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import Unfinished, Unreadable, UserError
from lightpaff_jax.runtime.progress import Shown

SHARD_TOKENS = 1 << 24  # ids a shard; it ends with the chunk that reaches them
_NAMED = 10  # malformed rows of a split that are named in the log
_LOG = logging.getLogger('lightpaff_jax')


class _Blocks:
    """Records of one stream of all documents."""

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        make = objectives.OBJECTIVES[c.objective].block_layout
        assert make is not None
        self._pieces = make(c, tokenizer)
        separator = self._pieces.separator
        assert separator is not None, 'prepare checks the tokenizer'
        self._separator = separator
        first = [separator] if self._pieces.leading_separator else []
        self._left = np.array(saved.get('left', first), np.int32)
        self.counts = saved.get('counts', {'documents': 0, 'words': 0, 'tokens': 0})

    def saved(self) -> dict[str, Any]:
        """JSON values that a next process goes on from."""
        return {'counts': self.counts, 'left': self._left.tolist()}

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        """The records of one more chunk."""
        _count_documents(self.counts, examples, encoded)
        new = packing.join(encoded.ids, encoded.lengths, self._separator)
        stream = np.concatenate([self._left, new])
        blocks, self._left = packing.cut(stream, self._pieces.size, self._pieces.stride)
        self.counts['tokens'] += len(blocks) * self._pieces.stride
        return [Record(block) for block in blocks]

    def end(self) -> list[Record]:
        """What is left."""
        new = len(self._left) - (self._pieces.size - self._pieces.stride)
        if new <= 0:
            return []
        self.counts['tokens'] += new
        return [Record(self._left)]


class _Packed:
    """Records of whole documents; each chunk has its own."""

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        make = objectives.OBJECTIVES[c.objective].packing
        assert make is not None
        self._room = make(c, tokenizer)
        new = {'documents': 0, 'words': 0, 'tokens': 0, 'pieces': 0, 'room': 0, 'taken': 0}
        self.counts = saved.get('counts', new)

    def saved(self) -> dict[str, Any]:
        """JSON values that a next process goes on from."""
        return {'counts': self.counts}

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        """The records of one chunk."""
        counts = self.counts
        _count_documents(counts, examples, encoded)
        ids, lengths, (size, each, separator) = encoded.ids, encoded.lengths, self._room
        shared = 0
        if separator is not None:
            (ids, lengths), shared = packing.between(ids, lengths, separator), 1
        found = packing.packed(ids, lengths, size, each, shared)
        pieces = sum(len(record.second) for record in found)
        read = sum(len(record.first) for record in found)
        counts['pieces'] += pieces
        counts['tokens'] += read - shared * pieces
        counts['room'] += size * len(found)
        counts['taken'] += read + each * pieces
        return found

    def end(self) -> list[Record]:
        """Nothing is left; says how full the rows are."""
        room, taken = self.counts.pop('room'), self.counts.pop('taken')
        self.counts['fill'] = round(taken / max(room, 1), 4)
        return []


class _Examples:
    """A record an example."""

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        fit = objectives.OBJECTIVES[c.objective].truncate
        assert fit is not None
        self._c, self._tokenizer, self._fit = c, tokenizer, fit
        new = {'examples': 0, 'pairs': 0, 'words': 0, 'tokens': 0, 'truncated': 0,
               'too_long': None, 'labels': None}  # fmt: skip
        self.counts = saved.get('counts', new)

    def saved(self) -> dict[str, Any]:
        """JSON values that a next process goes on from."""
        return {'counts': self.counts}

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        """The records of one chunk."""
        ids = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
        pairs = zip(ids[::2], ids[1::2], strict=True)
        return [self._record(e, a, b) for e, (a, b) in zip(examples, pairs, strict=True)]

    def _record(self, e: Example, first: np.ndarray, second: np.ndarray) -> Record:
        counts = self.counts
        targets = config.OBJECTIVES[self._c.objective].example_type == 'targets'
        fitted = self._fit(self._c, first.tolist(), second.tolist())
        if fitted.length > fitted.limit:
            counts['truncated'] += 1
            too_long = [counts['examples'], fitted.length, fitted.limit]
            counts['too_long'] = counts['too_long'] or too_long
        read = (e.second,) if targets else (e.first, e.second)
        if targets and len(fitted.second) < len(second):
            read = (self._tokenizer.decode(fitted.second),)  # what is left of it is what is scored
        counts['examples'] += 1
        counts['pairs'] += bool(e.second)
        counts['words'] += sum(words(text) for text in read if text or targets)
        counts['tokens'] += len(fitted.second) + (1 if targets else len(fitted.first))
        counts['labels'] = [
            choose([e.label, *(counts['labels'] or [])]) for choose in (min, max)
        ]  # fmt: skip
        return Record(np.array(fitted.first, np.int32), np.array(fitted.second, np.int32), e.label)

    def end(self) -> list[Record]:
        """Nothing is left."""
        return []


_MAKERS: dict[str, type[_Blocks] | type[_Packed] | type[_Examples]] = {
    'blocks': _Blocks,
    'packed': _Packed,
    'examples': _Examples,
}


def kind(c: ConfigDict) -> str:
    """What the records of a set are: 'blocks', 'packed' or 'examples'."""
    if config.OBJECTIVES[c.objective].example_type != 'documents':
        return 'examples'
    return 'packed' if c.data.packing == 'best_fit' else 'blocks'


def make(
    folder: pathlib.Path, c: ConfigDict, tokenizer: Tokenizer, identity: dict[str, Any],
    shard_tokens: int = SHARD_TOKENS,
) -> None:  # fmt: skip
    """Writes the set of `config.data` into a folder; goes on where a process before stopped.

    The files are the same whatever was stopped when, and for any number of `config.data.workers`.

    Args:
      folder: of the set; nobody else writes there.
      c: with the source.
      tokenizer: what makes ids of it.
      identity: what the records depend on, as JSON values; they are in the manifest.
      shard_tokens: ids a shard.

    Raises:
      Unfinished: a file cannot be written, or a process that tokenizes ended; the same call goes
        on.
      Unreadable: a file of the source cannot be read now; the same call goes on too.
      UserError: what `sources.examples` raises of the content, a split without records; nothing
        is left then.
    """
    state = shards.State(folder, identity | {'shard_tokens': shard_tokens})
    try:
        opened = tokenize_pool.encoder(tokenizer, c.data.workers)
        with opened as encode, Shown() as shown:
            for split in sources.SPLITS:
                if not state.split(split).get('done'):
                    _make_split(c, split, tokenizer, encode, state, shown)
    except (Unfinished, Unreadable):
        raise
    except UserError:  # the same source would come no further
        shards.clear(folder, sources.SPLITS)
        raise
    splits = {split: _entry(state.split(split)) for split in sources.SPLITS}
    content = state.identity | {
        'kind': kind(c),
        'classes': sources.classes(c),
        'dtype': records.id_type(tokenizer.vocab_size).str,
        'splits': splits,
    }
    shards.write(folder / records.MANIFEST, content)
    state.remove()


def _entry(saved: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a split."""
    return saved['counts'] | {
        'records': sum(shard['records'] for shard in saved['shards']),
        'hash': saved['hash'][:16],
        'shards': saved['shards'],
        'skipped': saved['skipped'],
    }


def _make_split(
    c: ConfigDict, split: str, tokenizer: Tokenizer, encode: tokenize_pool.Encode, state: shards.State,
    shown: Shown,
) -> None:  # fmt: skip
    saved, kind_ = state.split(split), kind(c)
    maker = _MAKERS[kind_](c, tokenizer, saved)
    longest = max(c.data.length, c.data.target_length)
    writer = shards.Writer(
        state.folder, split, kind_, records.id_type(tokenizer.vocab_size),
        np.dtype('<u2' if longest < 1 << 16 else '<i4'), saved,
    )  # fmt: skip
    skipped, many = _Skipped(split), 'examples' if kind_ == 'examples' else 'documents'
    parts = tokenize_pool.chunks(sources.examples(c, split, skipped))
    done = saved.get('chunks', 0)
    if done:
        shown.say(f'{split}: goes on behind {writer.records} records in {len(writer.done)} shards')
    examples = sum(len(part) for part in itertools.islice(parts, done))
    for work, encoded in encode(works(parts, kind_)):
        done, examples = done + 1, examples + len(work.examples)
        writer.add(maker.add(work.examples, encoded))
        shown.add(f'{split}: {examples:,} {many}', len(encoded.ids))
        if writer.ids >= state.identity['shard_tokens']:
            writer.end()
            state.save(split, maker.saved() | writer.entry() | {'chunks': done})
    writer.add(maker.end())
    writer.end()
    if not writer.done:
        raise UserError(f'empty corpus: no example for {split}')
    skipped.end()
    state.save(
        split, maker.saved() | writer.entry() | {'done': True, 'skipped': skipped.count}
    )  # fmt: skip


def works(parts: Iterable[list[Example]], kind_: str) -> Iterator[tokenize_pool.Work]:
    """What is encoded of each chunk, for records of this kind."""
    for examples in parts:
        if kind_ == 'examples':
            texts = [text for e in examples for text in (e.first, e.second)]
            yield tokenize_pool.Work(examples, texts, counted=False)
        else:
            untold = any(e.words < 0 for e in examples)
            yield tokenize_pool.Work(examples, [e.first for e in examples], counted=untold)


def _count_documents(counts: dict[str, Any], examples: list[Example], encoded: Encoded) -> None:
    counts['documents'] += len(examples)
    told = np.array([e.words for e in examples])
    if encoded.words is not None:
        told = np.where(told < 0, encoded.words, told)
    counts['words'] += int(told.sum())


class _Skipped:
    """Counts the malformed rows of a split, and names the first ones in the log."""

    def __init__(self, split: str):
        self._split = split
        self.count = 0

    def __call__(self, line: str) -> None:
        self.count += 1
        if self.count <= _NAMED:
            _LOG.info('left out: %s', line)

    def end(self) -> None:
        if self.count > _NAMED:
            _LOG.info('left out of %s: %d malformed rows in all', self._split, self.count)
