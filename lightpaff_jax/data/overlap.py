"""Texts that must not be read: what is evaluated on must be in no text that is trained on."""

import re
import unicodedata

_SENTENCES = re.compile(r'\n+|(?<=[.!?])\s+')
VERSION = 4  # of the rules below: prepared sets of another one are made again
LEAST = 8  # words; shorter sentences say little of where they are from
FEW = 5  # words; of whole texts
_KEY = 16  # letters by which a text is looked up


class Texts:
    """Texts to look for. Case, accents, punctuation and white space count for nothing: sets differ
    in how they write `can not` and `don't`.
    """

    def __init__(self) -> None:
        self._whole: set[str] = set()
        self._inside: dict[str, dict[str, int]] = {}
        self._from: dict[str, list[tuple[str, int]]] = {}

    def add(self, text: str, document: bool) -> None:
        """Adds a text unless it is a document, each of its sentences of 8 words or more, and its parts."""
        if not document:
            self._add(text)
        words = _words(text)
        letters, start = ''.join(words), 0
        for word in words:
            if len(letters) - start >= _KEY:
                self._from.setdefault(letters[start : start + _KEY], []).append((letters, start))
            start += len(word)
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

    def meets(self, document: str, least: int, parts: bool) -> bool:
        """Whether a text is one of these, or has one of them in it that has enough words.

        Args:
          document: the text.
          least: words of what is looked for inside, which must also have 16 letters.
          parts: whether it also meets those of which it is a part, of 5 words and 16 letters or more.
        """
        words = _words(document)
        letters, start = ''.join(words), 0
        if letters in self._whole:
            return True
        if parts and len(words) >= FEW and len(letters) >= _KEY:
            wholes = self._from.get(letters[:_KEY], ())
            if any(whole.startswith(letters, at) for whole, at in wholes):
                return True
        for word in words:
            found = self._inside.get(letters[start : start + _KEY])
            if found and any(
                count >= least and letters.startswith(text, start) for text, count in found.items()
            ):
                return True
            start += len(word)
        return False


def _words(text: str) -> tuple[str, ...]:
    if not text.isascii():
        apart = unicodedata.normalize('NFKD', text)
        text = ''.join(c for c in apart if not unicodedata.combining(c))
    return tuple(re.findall(r'[^\W_]+', text.casefold()))
