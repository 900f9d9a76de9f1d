"""Finds training texts that overlap with evaluation texts.

A model that has trained on the texts it is evaluated on gets better scores than it deserves. This
index holds the evaluation texts; the sources drop each training text that overlaps with one.
"""

import array
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

VERSION = 4  # of the rules below; a new version makes prepared datasets be built again
MIN_SENTENCE_WORDS = 8  # shorter sentences occur in unrelated texts, so they are no evidence
MIN_TEXT_WORDS = 5  # whole texts with fewer words are not searched for inside other texts
_KEY_LETTERS = 16  # length of the prefix by which texts are looked up
_SENTENCE_BREAK = re.compile(r'\n+|(?<=[.!?])\s+')


class OverlapIndex:
    """An index of evaluation texts.

    Comparisons ignore case, accents, punctuation and white space, because datasets differ in how
    they write `can not` and `don't`.
    """

    def __init__(self, match_parts: bool = False) -> None:
        """Creates an empty index.

        Args:
          match_parts: also match texts that are a part of an indexed text.
        """
        self._texts: set[str] = set()
        # Prefix of _KEY_LETTERS -> letters of a text -> its number of words.
        self._by_prefix: dict[str, dict[str, int]] = {}
        self._suffixes = _Suffixes() if match_parts else None

    def add(self, text: str, is_document: bool) -> None:
        """Adds a text.

        Args:
          text: a text of any length.
          is_document: omit the whole text; index its sentences of at least MIN_SENTENCE_WORDS words
            and, if the index matches parts, its parts.
        """
        if not is_document:
            self._add_words(normalize(text))
        if self._suffixes is not None:
            self._suffixes.add(normalize(text))
        for sentence in _SENTENCE_BREAK.split(text):
            words = normalize(sentence)
            if len(words) >= MIN_SENTENCE_WORDS:
                self._add_words(words)

    def _add_words(self, words: Sequence[str]) -> None:
        letters = ''.join(words)
        if words:
            self._texts.add(letters)
        if len(words) >= MIN_TEXT_WORDS and len(letters) >= _KEY_LETTERS:
            self._by_prefix.setdefault(letters[:_KEY_LETTERS], {})[letters] = len(words)

    def overlaps(self, text: str, min_words: int) -> bool:
        """Returns whether a text equals or contains an indexed text, or is a part of one.

        Parts count only if the index matches parts and the text has at least MIN_TEXT_WORDS words
        and _KEY_LETTERS letters. A part starts at the start of a word and may end inside a word.

        Args:
          text: a text of any length.
          min_words: indexed texts with fewer words, or with fewer than _KEY_LETTERS letters, are not
            searched for in `text`.
        """
        if not (self._texts or self._suffixes):
            return False
        words = normalize(text)
        letters, start = ''.join(words), 0
        if letters in self._texts:
            return True
        if self._suffixes and len(words) >= MIN_TEXT_WORDS and letters in self._suffixes:
            return True
        for word in words:
            candidates = self._by_prefix.get(letters[start : start + _KEY_LETTERS], {})
            if any(
                count >= min_words and letters.startswith(candidate, start)
                for candidate, count in candidates.items()
            ):
                return True
            start += len(word)
        return False


class _Suffixes:
    """The suffixes of some texts, from each word on, found by their first letters.

    Needs 32 bytes per word besides the texts: a hash of the first letters and a position, kept
    unsorted and sorted. They are sorted at the first lookup, because all texts are
    usually added before.
    """

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._keys, self._positions = array.array('q'), array.array('q')
        self._sorted: tuple[np.ndarray, np.ndarray, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, words: Sequence[str]) -> None:
        """Adds the suffixes of a text, given as its words."""
        letters, start = ''.join(words), 0
        if letters in self._texts:
            return
        number = self._texts[letters] = len(self._texts)
        self._sorted = None
        for word in words:
            if len(letters) - start >= _KEY_LETTERS:
                self._keys.append(hash(letters[start : start + _KEY_LETTERS]))
                self._positions.append(number << 32 | start)
            start += len(word)

    def __contains__(self, letters: str) -> bool:
        """Returns whether a suffix begins with these letters, of which at least 16 are needed."""
        if len(letters) < _KEY_LETTERS or not self._keys:
            return False
        if self._sorted is None:
            keys, positions = (np.array(x, np.int64) for x in (self._keys, self._positions))
            order = np.argsort(keys, kind='stable')
            self._sorted = keys[order], positions[order], [*self._texts]
        keys, positions, texts = self._sorted
        key = hash(letters[:_KEY_LETTERS])
        first, last = (np.searchsorted(keys, key, side) for side in ('left', 'right'))
        return any(
            texts[position >> 32].startswith(letters, position & 0xFFFFFFFF)
            for position in positions[first:last].tolist()
        )


def normalize(text: str) -> tuple[str, ...]:
    """Splits a text into words of lower-case letters and digits without accents."""
    if not text.isascii():
        decomposed = unicodedata.normalize('NFKD', text)
        text = ''.join(c for c in decomposed if not unicodedata.combining(c))
    return tuple(re.findall(r'[^\W_]+', text.casefold()))
