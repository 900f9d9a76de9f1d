"""Texts that must not be read: what is evaluated on must be in no text that is trained on."""

import array
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_SENTENCES = re.compile(r'\n+|(?<=[.!?])\s+')
VERSION = 4  # of the rules below: prepared sets of another one are made again
LEAST = 8  # words; shorter sentences say little of where they are from
FEW = 5  # words; of whole texts
_KEY = 16  # letters by which a text is looked up


class Texts:
    """Texts to look for. Case, accents, punctuation and white space count for nothing: sets differ
    in how they write `can not` and `don't`.
    """

    def __init__(self, parts: bool = False) -> None:
        """`parts`: whether a text also meets those of which it is a part."""
        self._whole: set[str] = set()
        self._inside: dict[str, dict[str, int]] = {}
        self._parts = _Parts() if parts else None

    def add(self, text: str, document: bool) -> None:
        """Adds a text unless it is a document, each of its sentences of 8 words or more, and its parts."""
        if not document:
            self._add(text)
        if self._parts is not None:
            self._parts.add(_words(text))
        for sentence in _SENTENCES.split(text):
            if len(_words(sentence)) >= LEAST:
                self._add(sentence)

    def _add(self, text: str) -> None:
        words = _words(text)
        letters = ''.join(words)
        if words:
            self._whole.add(letters)
        if len(words) >= FEW and len(letters) >= _KEY:
            self._inside.setdefault(letters[:_KEY], {})[letters] = len(words)

    def meets(self, text: str, least: int) -> bool:
        """Whether a text is one of these, or has one of them in it that has enough words.

        Where parts count, also whether it is one, of 5 words and 16 letters or more; its last word
        may be the beginning of one.

        Args:
          text: of whatever length.
          least: words of what is looked for inside, which must also have 16 letters.
        """
        if not (self._whole or self._parts):
            return False
        words = _words(text)
        letters, start = ''.join(words), 0
        if letters in self._whole:
            return True
        if self._parts and len(words) >= FEW and letters in self._parts:
            return True
        for word in words:
            found = self._inside.get(letters[start : start + _KEY])
            if found and any(
                count >= least and letters.startswith(one, start) for one, count in found.items()
            ):
                return True
            start += len(word)
        return False


class _Parts:
    """All that begins with a word of some texts: 32 bytes a word, beside the texts."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._keys, self._places = array.array('q'), array.array('q')
        self._sorted: tuple[np.ndarray, np.ndarray, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, words: Sequence[str]) -> None:
        letters, start = ''.join(words), 0
        if letters in self._texts:
            return
        number = self._texts[letters] = len(self._texts)
        self._sorted = None
        for word in words:
            if len(letters) - start >= _KEY:
                self._keys.append(hash(letters[start : start + _KEY]))
                self._places.append(number << 32 | start)
            start += len(word)

    def __contains__(self, letters: str) -> bool:
        if len(letters) < _KEY or not self._keys:
            return False
        if self._sorted is None:
            keys, places = (np.array(x, np.int64) for x in (self._keys, self._places))
            order = np.argsort(keys, kind='stable')
            self._sorted = keys[order], places[order], [*self._texts]
        keys, places, texts = self._sorted
        key = hash(letters[:_KEY])
        first, last = (np.searchsorted(keys, key, side) for side in ('left', 'right'))
        return any(
            texts[place >> 32].startswith(letters, place & 0xFFFFFFFF)
            for place in places[first:last].tolist()
        )


def _words(text: str) -> tuple[str, ...]:
    if not text.isascii():
        apart = unicodedata.normalize('NFKD', text)
        text = ''.join(c for c in apart if not unicodedata.combining(c))
    return tuple(re.findall(r'[^\W_]+', text.casefold()))
