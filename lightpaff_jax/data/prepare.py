"""Examples -> records of ids on disk, once for each (source, form, tokenizer, objective, lengths)."""

import hashlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import objectives, pydocs, records, sources
from lightpaff_jax.data.records import Prepared, Record
from lightpaff_jax.data.sources import Example
from lightpaff_jax.data.tokenizers import Tokenizer

_AT_ONCE = 256  # texts encoded in one call
_LOG = logging.getLogger('lightpaff_jax')


def prepare(c: ConfigDict, tokenizer: Tokenizer) -> Prepared:
    """The records of `config.data`, made once in `config.data.cache` and then found there.

    For clm, mlm and mass a split's documents make one stream, which is cut into blocks; for
    classify and seq2seq each example is a record. Examples that were cut are counted in a line of
    the log, each time.

    Raises:
      UserError: a split without examples; a tokenizer without the special ids that the objective
        needs; a label that is no class; a text that is too long, where `config.data.long_text` is
        'error'; for the source 'prepared' a folder that is missing, or was made for something else.
    """
    _check_tokenizer(c, tokenizer)
    if c.data.source == 'prepared':
        prepared = _given(c, tokenizer)
    else:
        identity = {
            'format': records.FORMAT,
            'source': c.data.source,
            'made_from': sources.IDENTITIES[c.data.source](c),
            **_cut(c, tokenizer),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = pathlib.Path(c.data.cache).expanduser() / 'prepared' / f'{c.data.source}-{key}'
        if not folder.exists():
            pydocs.publish(folder, lambda temporary: _write(c, tokenizer, identity, temporary))
        prepared = _open(folder)
    if prepared.kind == 'examples':
        for split in sources.SPLITS:
            _check_labels(c, prepared, split)
            _check_lengths(c, prepared, split)
    return prepared


def _cut(c: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How examples become records, as JSON values."""
    special = {name: getattr(tokenizer, name) for name in objectives.OBJECTIVES[c.objective].needs}
    return {
        'form': c.data.form,
        'objective': c.objective,
        'lengths': [c.data.length, c.data.target_length],
        'vocabulary': {'hash': tokenizer.hash, 'size': tokenizer.vocab_size, **special},
    }


def _check_tokenizer(c: ConfigDict, tokenizer: Tokenizer) -> None:
    for name in objectives.OBJECTIVES[c.objective].needs:
        if getattr(tokenizer, name) is None:
            token = {'mask_id': '[MASK]', 'cls_id': '[CLS]', 'sep_id': '[SEP]'}.get(name, name)
            raise config.UserError(
                f'config.objective = {c.objective!r}: needs a tokenizer with a {token} token, '
                f'{tokenizer.path} has none'
            )


def _check_labels(c: ConfigDict, prepared: Prepared, split: str) -> None:
    """Only classes have labels; validation sees to it that there are some for classify alone."""
    low, high = prepared.split(split)['labels']
    classes = c.student.classes
    if c.objective != 'classify' or 0 <= low <= high < classes:
        return
    found = prepared.records(split)
    labels = ((i, found[i].label) for i in range(len(found)))
    example, label = next((i, label) for i, label in labels if not 0 <= label < classes)
    raise config.UserError(
        f'config.student.classes = {classes}: example {example} of split {split!r} has label '
        f'{label}, must be at least 0 and below {classes}'
    )


def _check_lengths(c: ConfigDict, prepared: Prepared, split: str) -> None:
    stats = prepared.split(split)
    if not stats['truncated']:
        return
    if c.data.long_text == 'error':
        example, length, limit = stats['too_long']
        raise config.UserError(
            f"config.data.long_text = 'error': example {example} of split {split!r} has {length} "
            f'tokens, must have at most {limit}'
        )
    target = f' and {c.data.target_length} of the target' if c.data.target_length else ''
    _LOG.info(
        '%s %s: %d of %d examples cut to %d tokens%s',
        prepared.manifest['source'], split, stats['truncated'], stats['examples'], c.data.length,
        target,
    )  # fmt: skip


def _given(c: ConfigDict, tokenizer: Tokenizer) -> Prepared:
    folder = pathlib.Path(c.data.path).expanduser()
    if not c.data.path or not folder.is_dir():
        raise config.UserError(
            f"config.data.path = {c.data.path!r}: must be a folder for source 'prepared'"
        )
    prepared, wanted = _open(folder), _cut(c, tokenizer)
    made = prepared.manifest
    if made['vocabulary'] != wanted['vocabulary']:
        raise config.UserError(
            f'config.data.path = {c.data.path}: was prepared with tokenizer '
            f'{made["vocabulary"]["hash"]}, this run has tokenizer {tokenizer.hash} '
            f'({tokenizer.path})'
        )
    was = dict(zip(('data.length', 'data.target_length'), made['lengths'], strict=True))
    was |= {'objective': made['objective'], 'data.form': made['form']}
    for key, value in was.items():
        own = config.flatten(c)[key]
        if own != value:
            raise config.UserError(
                f'config.{key} = {own!r}: must equal the {value!r} that {c.data.path} was '
                'prepared with'
            )
    return prepared


def _open(folder: pathlib.Path) -> Prepared:
    return Prepared(str(folder), records.manifest(folder))


def _write(c: ConfigDict, tokenizer: Tokenizer, identity: dict, folder: pathlib.Path) -> None:
    folder.mkdir()
    content = {
        **identity,
        'kind': objectives.OBJECTIVES[c.objective].kind,
        'classes': sources.classes(c),
        'dtype': records.id_type(tokenizer.vocab_size).str,
    }
    content['splits'] = {
        split: _write_split(
            c,
            sources.SOURCES[c.data.source](c, split),
            tokenizer,
            records.split_file(folder, split),
        )
        for split in sources.SPLITS
    }
    records.write_manifest(folder, content)


def _write_split(
    c: ConfigDict, examples: Iterable[Example], tokenizer: Tokenizer, file: pathlib.Path
) -> dict[str, Any]:
    """Writes the records of one split; returns its entry of the manifest."""
    kind, counts = objectives.OBJECTIVES[c.objective].kind, dict[str, Any]()
    make = _blocks if kind == 'blocks' else _examples
    made = make(c, examples, tokenizer, counts)
    written = records.write(file, made, kind, records.id_type(tokenizer.vocab_size))
    if not counts['words']:
        raise config.UserError(f'empty corpus: no example for {file.stem}')
    return counts | written


def _blocks(
    c: ConfigDict, examples: Iterable[Example], tokenizer: Tokenizer, counts: dict[str, Any]
) -> Iterator[Record]:
    """Blocks of the documents' stream; counts what Prepared.split names."""
    counts |= {'documents': 0, 'words': 0, 'tokens': 0}
    make = objectives.OBJECTIVES[c.objective].pieces
    assert make is not None
    pieces = make(c, tokenizer)
    overlap, separator = pieces.size - pieces.stride, pieces.separator
    assert separator is not None, 'prepare checks the tokenizer'

    def stream() -> Iterator[list[int]]:
        if pieces.leads:
            yield [separator]
        for texts in _batched(examples):
            counts['documents'] += len(texts)
            counts['words'] += sum(words(e.first) for e in texts)
            for ids in tokenizer.encode([e.first for e in texts]):
                yield [*ids, separator]

    for block in pack(stream(), pieces.size, pieces.stride):
        counts['tokens'] += len(block) - overlap
        yield Record(block)


def _examples(
    c: ConfigDict, examples: Iterable[Example], tokenizer: Tokenizer, counts: dict[str, Any]
) -> Iterator[Record]:
    """One record for each example; counts what Prepared.split names."""
    counts |= {'examples': 0, 'words': 0, 'tokens': 0, 'truncated': 0, 'too_long': None}
    fit = objectives.OBJECTIVES[c.objective].fit
    assert fit is not None
    targets, labels = c.objective == 'seq2seq', set()
    for texts in _batched(examples):
        both = tokenizer.encode([text for e in texts for text in (e.first, e.second)])
        for i, e in enumerate(texts):
            fitted = fit(c, both[2 * i], both[2 * i + 1])
            if fitted.length > fitted.limit:
                counts['truncated'] += 1
                counts['too_long'] = counts['too_long'] or [
                    counts['examples'], fitted.length, fitted.limit,
                ]  # fmt: skip
            read = (e.second,) if targets else (e.first, e.second)
            if targets and len(fitted.second) < len(both[2 * i + 1]):
                read = (tokenizer.decode(fitted.second),)  # what is left of it is what is scored
            counts['examples'] += 1
            counts['words'] += sum(words(text) for text in read if text or targets)
            counts['tokens'] += len(fitted.second) + (1 if targets else len(fitted.first))
            labels.add(e.label)
            yield Record(
                np.array(fitted.first, np.int32), np.array(fitted.second, np.int32), e.label
            )
    counts['labels'] = [min(labels), max(labels)] if labels else None


def _batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    examples = iter(examples)
    while batch := list(itertools.islice(examples, _AT_ONCE)):
        yield batch


def pack(
    stream: Iterable[list[int]], size: int, stride: int
) -> Iterator[Int32[np.ndarray, ' size']]:
    """Cuts a stream of ids, which comes in parts, into blocks of `size`, one every `stride` ids.

    Only the last block may be shorter; it has at least one id that none before it has.
    """
    left, overlap = np.zeros(0, np.int32), size - stride
    for part in stream:
        left = np.concatenate([left, np.asarray(part, np.int32)])
        n = max(0, (len(left) - overlap) // stride)
        for start in range(0, n * stride, stride):
            yield left[start : start + size]
        left = left[n * stride :]
    if len(left) > overlap:
        yield left


def words(text: str) -> int:
    """White-space words, and one for the end of every line: what perplexity a word divides by."""
    return len(text.split()) + text.count('\n') + 1
