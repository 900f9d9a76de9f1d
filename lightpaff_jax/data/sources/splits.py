"""Example, and which examples a split has: those of its own files, or a share of train's."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.errors import UserError

SPLITS = ('train', 'validation', 'test')

# What is called with one line for each row that is at fault: it raises, or takes note of it.
OnError = Callable[[str], None]


class Example(NamedTuple):
    """A document, a text, a pair of texts with a class, or a text and what to make of it."""

    first: str
    second: str = ''
    label: int = -1
    """Its class; -1: there is none."""
    words: int = -1
    """Of a document: white-space words and line ends of the original text that it stands for, the
    blank lines around it included. -1: of the texts themselves."""


class Part(NamedTuple):
    """Where the examples of a split are."""

    of: str
    """The split whose files are read."""
    kept: tuple[str, ...] = SPLITS
    """Of the three shares that a hash cuts those into, the ones that belong here."""


def parts(c: ConfigDict, given: Collection[str]) -> dict[str, Part]:
    """Split -> its part; a split that cannot be had is missing.

    Where `config.data.held_out` is 0, each split is what its own files hold. Else `test` is the
    test files, or else the validation files, or else a share of train; `validation` is the
    validation files unless they are `test`, or else another share of train.

    Args:
      c: the configuration.
      given: the splits that have files.
    """
    found = {split: Part(split) for split in SPLITS if split in given}
    if not c.data.held_out or 'train' not in found:
        return found
    if 'test' not in found and 'validation' in found:
        found['test'] = found.pop('validation')
    cut = [split for split in SPLITS if split not in found]
    found |= {split: Part('train', (split,)) for split in cut}
    found['train'] = Part('train', tuple(split for split in SPLITS if split not in cut))
    return found


def part(c: ConfigDict, given: Collection[str], split: str, sought: str) -> Part:
    """The part of one split; `sought` says what would be its files.

    Raises:
      UserError: it cannot be had.
    """
    found = parts(c, given)
    if split not in found:
        share = ''
        if 'train' in found and split == 'test' and 'validation' in found:
            share = (
                '; config.data.held_out = 0.05 would take the validation files for it, and cut '
                'validation from train'
            )
        elif 'train' in found:
            share = '; config.data.held_out = 0.05 would cut it from train'
        raise UserError(
            f'config.data.path = {c.data.path}: has no split {split!r}: {sought}{share}'
        )
    return found[split]


def select(examples: Iterable[Example], part: Part, share: float) -> Iterator[Example]:
    """The examples of a part. Equal first texts are in one share, so none is in two splits.

    A second text may be: a reply in a dialogue is the first text of the next pair.
    """
    for example in examples:
        if part.kept == SPLITS or _share(example.first, share) in part.kept:
            yield example


def _share(text: str, share: float) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    return 'test' if place < share else 'validation' if place < 2 * share else 'train'
