"""Cuts splits from train: shares of all rows, or whole rows without the train rows inside them.

SST-2's train split has sentences and their phrases. A phrase that is held out is a part of a
sentence that stays in train, so a validation on such rows favours what was learnt by heart. With
`config.data.held_out_whole`, only rows that are a part of no longer row are held out, and train
loses every row that is equal to one of them or a part of one, at the borders of words.

Case, accents, punctuation and white space are ignored. A pair is always whole; train loses the
pairs of the same two texts, in any order.
"""

import array
import bisect
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data.sources import decontaminate, splits
from lightpaff_jax.data.sources.splits import SPLITS, Example, OnError, SplitSource

Key: TypeAlias = tuple[str, str]
"""The normalized texts of a row."""

_VERSION = 1  # of the rules; a new version makes prepared datasets be built again
_PREFIX = 32  # letters by which parts of texts are sorted; a longer one makes the index larger
_CHUNK = 1 << 22  # letters indexed at a time; such an index takes about 100 MB
_LOG = logging.getLogger('lightpaff_jax')


def identity(c: ConfigDict) -> dict[str, Any]:
    """Returns the values that a source adds to its identity; {} without whole rows."""
    return {'held_out_whole': _VERSION} if _is_whole(c) else {}


def select(
    c: ConfigDict,
    source: SplitSource,
    read: Callable[[OnError], Iterable[Example]],
    on_error: OnError,
) -> Iterator[Example]:
    """Yields the examples of a split.

    To hold out whole rows it reads the file three times. Its memory grows with the rows that are
    held out, not with the file.

    Args:
      c: the configuration.
      source: where the examples of the split come from.
      read: reads the examples of `source.split`; its argument is called for malformed rows.
      on_error: called once for each malformed row.
    """
    if source.shares == SPLITS or not _is_whole(c):
        yield from splits.select(read(on_error), source, c.data.held_out)
        return
    is_train = 'train' in source.shares
    shares = {*SPLITS}.difference(source.shares) if is_train else {*source.shares}

    def is_in_share(example: Example) -> bool:
        return splits.share(example.first, c.data.held_out) in shares

    whole = _whole_rows(lambda: read(lambda message: None), is_in_share)
    if not is_train:
        yield from (row for row in read(on_error) if is_in_share(row) and _key(row) in whole)
        return
    parts = PartIndex(first for first, second in whole if not second)
    held_out = dropped = 0
    for example in read(on_error):
        first, second = key = _key(example)
        if key in whole and is_in_share(example):
            held_out += 1
        elif {key, (second, first)} & whole or (not second and parts.contains(first)):
            dropped += 1
        else:
            yield example
    _LOG.info(
        f'{c.data.path}: {held_out:,} whole rows of train held out, {dropped:,} other rows of '
        'train dropped, which are equal to one or a part of one'
    )


def _is_whole(c: ConfigDict) -> bool:
    # A listed dataset inherits the key, although its source may not read it.
    return c.data.held_out_whole and 'held_out_whole' in config.SOURCES[c.data.source].keys


def _key(example: Example) -> Key:
    return _normalize(example.first), _normalize(example.second)


def _normalize(text: str) -> str:
    """Returns the words of a text without case and punctuation, or else its characters."""
    return ' '.join(decontaminate.normalize(text) or text.split())


def _whole_rows(
    read: Callable[[], Iterable[Example]], is_in_share: Callable[[Example], bool]
) -> set[Key]:
    """Returns the rows in some shares that are a part of no longer row."""
    keys = {_key(example) for example in read() if is_in_share(example)}
    single = {first for first, second in keys if not second}
    chunk, letters = list[str](), 0
    for example in read():
        first, second = _key(example)
        if not second:
            chunk.append(first)
            letters += len(first)
        if letters >= _CHUNK:
            single -= PartIndex(chunk).parts(single)
            chunk, letters = [], 0
    single -= PartIndex(chunk).parts(single)
    return {key for key in keys if key[1] or key[0] in single}


class PartIndex:
    """Finds the texts that have another text as a part, at the borders of words.

    A suffix array: the places where a word begins, sorted by the letters from there on. Takes about
    10 bytes for each word besides the texts, and 10 times as much while it is built.
    """

    def __init__(self, texts: Iterable[str]):
        """Indexes texts of words with single spaces between them."""
        # A space before and after each word makes every match end at the borders of words.
        self._text = ''.join(f' {text} \n' for text in texts)
        starts = [match.start() for match in re.finditer(' (?!\n)', self._text)]
        starts.sort(key=lambda start: self._text[start : start + _PREFIX])
        self._starts = array.array('q', starts)

    def contains(self, text: str) -> bool:
        """Returns whether a text is equal to an indexed text or a part of one."""
        return next(self._matches(text), None) is not None

    def parts(self, texts: Iterable[str]) -> set[str]:
        """Returns those of `texts` that are a part of a longer indexed text."""
        return {
            text for text in texts if any(self._is_longer(text, s) for s in self._matches(text))
        }

    def _is_longer(self, text: str, start: int) -> bool:
        """Returns whether the indexed text with `text` at `start` has more words."""
        has_more_before = start > 0 and self._text[start - 1] != '\n'
        return has_more_before or self._text[start + len(text) + 2] != '\n'

    def _matches(self, text: str) -> Iterator[int]:
        """Yields the places where an indexed text has `text` as a part."""
        words = f' {text} '
        prefix = words[:_PREFIX]
        size = len(prefix)
        first = bisect.bisect_left(self._starts, prefix, key=lambda x: self._text[x : x + size])
        for number in range(first, len(self._starts)):
            start = self._starts[number]
            if not self._text.startswith(prefix, start):
                return
            if self._text.startswith(words, start):
                yield start
