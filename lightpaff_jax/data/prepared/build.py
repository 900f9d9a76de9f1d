"""Builds a prepared dataset in a folder: source -> chunks -> ids -> records -> shards -> manifest."""

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
from lightpaff_jax.data.prepared.tokenize_worker import Encoded, count_words
from lightpaff_jax.data.records import Record
from lightpaff_jax.data.sources import Example
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import Unfinished, Unreadable, UserError
from lightpaff_jax.runtime import json_file
from lightpaff_jax.runtime.progress import Progress

SHARD_TOKENS = 1 << 24  # ids of a shard, which ends with the chunk that reaches them
_LOGGED_ROWS = 10  # skipped rows of a split that are logged one by one
_LOG = logging.getLogger('lightpaff_jax')


def record_type(c: ConfigDict) -> str:
    """Returns the type of the records: 'blocks', 'packed' or 'examples'."""
    if config.OBJECTIVES[c.objective].example_type != 'documents':
        return 'examples'
    return 'packed' if c.data.packing == 'best_fit' else 'blocks'


def settings(c: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the settings that turn examples into records, as JSON values."""
    names = objectives.OBJECTIVES[c.objective].required_ids
    special_ids = {name: getattr(tokenizer, name) for name in names}
    if config.OBJECTIVES[c.objective].example_type == 'targets' and tokenizer.around[0]:
        special_ids['before'] = [*tokenizer.around[0]]
    return {
        'objective': c.objective,
        'packing': c.data.packing,
        'lengths': [c.data.length, c.data.target_length],
        'vocabulary': {'hash': tokenizer.fingerprint, 'size': tokenizer.vocab_size, **special_ids},
    }


def identity(c: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the values on which the records depend, as JSON values."""
    return {
        'format': records.FORMAT,
        'source': c.data.source,
        'made_from': sources.identity(c),
        **settings(c, tokenizer),
    }


def build(
    folder: pathlib.Path,
    c: ConfigDict,
    tokenizer: Tokenizer,
    dataset_identity: dict[str, Any],
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Builds the dataset of `config.data` in a folder, or resumes an unfinished build.

    The files depend neither on interruptions nor on `config.data.workers`.

    Args:
      folder: the folder, which no other process may write.
      c: the configuration.
      tokenizer: the tokenizer.
      dataset_identity: what `identity` returned for `c` and the tokenizer.
      shard_tokens: the number of ids of a shard.

    Raises:
      Unfinished: a file cannot be written, or a process that tokenizes ended. The same call resumes
        the work.
      Unreadable: a file of the source cannot be read now. The same call resumes the work.
      UserError: the content of the source is malformed, or a split has no record. The unfinished
        work is removed.
    """
    state = shards.State(folder, dataset_identity | {'shard_tokens': shard_tokens})
    try:
        with tokenize_pool.start(tokenizer, c.data.workers) as encode, Progress() as progress:
            for split in sources.SPLITS:
                if not state.splits.get(split, {}).get('done'):
                    _build_split(c, split, tokenizer, encode, state, progress)
    except (Unfinished, Unreadable):
        raise
    except UserError:  # the same source would raise it again
        shards.clear(folder, sources.SPLITS)
        raise
    state.finish(
        {
            'kind': record_type(c),
            'classes': sources.classes(c),
            'class_names': list(sources.class_names(c)),
            'dtype': records.id_type(tokenizer.vocab_size).str,
            'splits': {
                split: saved['counts'] | {'hash': saved['hash'][:16], 'shards': saved['shards']}
                for split, saved in state.splits.items()
            },
        }
    )


def _build_split(
    c: ConfigDict,
    split: str,
    tokenizer: Tokenizer,
    encode: tokenize_pool.Encode,
    state: shards.State,
    progress: Progress,
) -> None:
    saved, stored_type = state.splits.get(split, {}), record_type(c)
    maker = _MAKERS[stored_type](c, tokenizer, saved)
    longest = max(c.data.length, c.data.target_length)
    length_type = np.dtype('<u2' if longest < 1 << 16 else '<i4')
    id_type = records.id_type(tokenizer.vocab_size)
    writer = shards.Writer(state.folder, split, stored_type, id_type, length_type, saved)
    skipped = _SkippedRows()
    chunks = tokenize_pool.chunks(sources.examples(c, split, skipped))
    finished = saved.get('chunks', 0)
    if finished:
        progress.print(
            f'{split}: resumes after {writer.records} records in {len(writer.shards)} shards'
        )
    # The source is read again from its start; finished chunks are skipped.
    examples = sum(len(chunk) for chunk in itertools.islice(chunks, finished))
    unit = 'examples' if stored_type == 'examples' else 'documents'
    for work, encoded in encode(to_work(chunks, stored_type)):
        finished, examples = finished + 1, examples + len(work.examples)
        writer.write(maker.add(work.examples, encoded))
        progress.add_tokens(len(encoded.ids), f'{split}: {examples:,} {unit}')
        if writer.ids >= state.identity['shard_tokens']:
            writer.end_shard()
            state.save(split, maker.state() | writer.state() | {'chunks': finished})
    writer.write(maker.end())
    writer.end_shard()
    if not writer.shards:
        raise UserError(f'empty corpus: no example for {split}')
    if skipped.count > _LOGGED_ROWS:
        _LOG.info(f'{split}: {skipped.count} malformed rows skipped')
    maker.counts |= {'records': writer.records, 'skipped': skipped.count}
    state.save(split, maker.state() | writer.state() | {'done': True})


def to_work(chunks: Iterable[list[Example]], record_type: str) -> Iterator[tokenize_pool.Work]:
    """Yields the texts of each chunk that are encoded for records of a type."""
    for examples in chunks:
        if record_type == 'examples':
            texts = [text for e in examples for text in (e.first, e.second)]
            yield tokenize_pool.Work(examples, texts, with_words=False)
        else:
            with_words = any(e.words < 0 for e in examples)
            yield tokenize_pool.Work(examples, [e.first for e in examples], with_words)


class _SkippedRows:
    """Counts the skipped rows of a split, and logs the first ones."""

    count = 0

    def __call__(self, message: str) -> None:
        self.count += 1
        if self.count <= _LOGGED_ROWS:
            _LOG.info(f'skipped: {message}')


class _Maker:
    """Makes the records of a split, chunk by chunk, and the counts of its manifest entry."""

    names: tuple[str, ...]
    """Names of the counts that start at 0."""

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        """Resumes from what `state` returned in `saved`, or starts if that is empty."""
        self._c, self._tokenizer = c, tokenizer
        self._objective = objectives.OBJECTIVES[c.objective]
        self.counts: dict[str, Any] = saved.get('counts', dict.fromkeys(self.names, 0))
        json_file.check(self.counts, dict.fromkeys(self.names, int), f'{records.STATE}: counts')

    def state(self) -> dict[str, Any]:
        """Returns JSON values from which another process can resume."""
        return {'counts': self.counts}

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        """Returns the records of one more chunk."""
        raise NotImplementedError

    def end(self) -> list[Record]:
        """Returns the last records of the split."""
        return []

    def _count_documents(self, examples: list[Example], encoded: Encoded) -> None:
        self.counts['documents'] += len(examples)
        words = np.array([e.words for e in examples])
        if encoded.words is not None:
            words = np.where(words < 0, encoded.words, words)
        self.counts['words'] += int(words.sum())


class _BlockMaker(_Maker):
    """Makes blocks of the stream of all documents."""

    names = ('documents', 'words', 'tokens')

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        super().__init__(c, tokenizer, saved)
        assert self._objective.block_layout is not None
        self._layout = self._objective.block_layout(c, tokenizer)
        start = [self._layout.separator] if self._layout.leading_separator else []
        self._rest = np.array(saved.get('left', start), np.int32)

    def state(self) -> dict[str, Any]:
        return {'counts': self.counts, 'left': self._rest.tolist()}

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        self._count_documents(examples, encoded)
        size, stride, separator, _ = self._layout
        assert separator is not None, '`check_tokenizer` requires it'
        documents = packing.join(encoded.ids, encoded.lengths, separator)
        stream = np.concatenate([self._rest, documents])
        blocks, self._rest = packing.cut(stream, size, stride)
        self.counts['tokens'] += len(blocks) * stride
        return [Record(block) for block in blocks]

    def end(self) -> list[Record]:
        tokens = len(self._rest) - (self._layout.size - self._layout.stride)
        if tokens <= 0:
            return []
        self.counts['tokens'] += tokens
        return [Record(self._rest)]


class _PackedMaker(_Maker):
    """Makes rows of whole documents; each row has documents of one chunk."""

    names = ('documents', 'pieces', 'rows', 'words', 'tokens')

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        super().__init__(c, tokenizer, saved)
        assert self._objective.packing is not None
        self._packing = self._objective.packing(c, tokenizer)

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        self._count_documents(examples, encoded)
        rows = packing.pack(encoded.ids, encoded.lengths, self._packing)
        pieces = sum(len(row.second) for row in rows)
        self.counts['pieces'] += pieces
        self.counts['tokens'] += sum(len(row.first) for row in rows) - self._packing.shared * pieces
        self.counts['rows'] += len(rows)
        return rows

    def end(self) -> list[Record]:
        capacity, overhead, _, shared = self._packing
        used = self.counts['tokens'] + (shared + overhead) * self.counts['pieces']
        self.counts['fill'] = round(used / max(capacity * self.counts.pop('rows'), 1), 4)
        return []


class _ExampleMaker(_Maker):
    """Makes one record of each example."""

    names = ('examples', 'pairs', 'words', 'tokens', 'truncated')

    def __init__(self, c: ConfigDict, tokenizer: Tokenizer, saved: dict[str, Any]):
        super().__init__(c, tokenizer, saved)
        self._has_targets = config.OBJECTIVES[c.objective].example_type == 'targets'
        self.counts = {'too_long': None, 'labels': None} | self.counts

    def add(self, examples: list[Example], encoded: Encoded) -> list[Record]:
        texts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
        rows = zip(examples, texts[::2], texts[1::2], strict=True)
        return [self._record(example, a.tolist(), b.tolist()) for example, a, b in rows]

    def _record(self, example: Example, first: list[int], second: list[int]) -> Record:
        assert self._objective.truncate is not None
        if self._has_targets:
            before = self._tokenizer.around[0]
            first, second = [*before, *first], [*before, *second]
        counts, ids = self.counts, self._objective.truncate(self._c, first, second)
        if ids.length > ids.limit:
            counts['truncated'] += 1
            counts['too_long'] = counts['too_long'] or [counts['examples'], ids.length, ids.limit]
        texts = [example.first, example.second]
        if self._has_targets:  # scores count the words of the truncated target
            is_whole = len(ids.second) == len(second)
            texts = [example.second if is_whole else self._tokenizer.decode(ids.second)]
        counts['examples'] += 1
        counts['pairs'] += bool(example.second)
        counts['words'] += sum(count_words(text) for text in texts if text or self._has_targets)
        counts['tokens'] += len(ids.second) + (1 if self._has_targets else len(ids.first))
        labels = [example.label, *(counts['labels'] or [])]
        counts['labels'] = [min(labels), max(labels)]
        first_N, second_M = (np.array(text, np.int32) for text in ids[:2])
        return Record(first_N, second_M, example.label)


_MAKERS = {'blocks': _BlockMaker, 'packed': _PackedMaker, 'examples': _ExampleMaker}
