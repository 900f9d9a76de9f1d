"""The examples of a split: all examples of its own files, or a share of the examples of train."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from lightpaff_jax.errors import UserError

SPLITS = ('train', 'validation', 'test')
T = TypeVar('T')

# Called with a message for each malformed row: raises an error, or records that the row is skipped.
OnError = Callable[[str], None]


class Example(NamedTuple):
    """A document, a classified text or pair of texts, or a text and its target."""

    first: str
    second: str = ''
    label: int = -1
    """The class; -1 without one."""
    words: int = -1
    """For a document, the number of words and line ends of its original text, with blank lines
    around it; -1 to count those of `first`."""


class SplitSource(NamedTuple):
    """Where the examples of a split come from."""

    split: str
    """The split whose files have them."""
    shares: tuple[str, ...] = SPLITS
    """The shares of these files that belong to the split. A hash divides examples into three."""


def resolve(c: ConfigDict, available: Collection[str]) -> dict[str, SplitSource]:
    """Returns the source of each split; a split without one is absent.

    If `config.data.held_out` is 0, each split is in its own files. Otherwise `test` is in the test
    files, or in the validation files, or is a share of train. `validation` is in the validation
    files unless `test` uses them, or is another share of train.

    Args:
      c: the configuration.
      available: the splits that have files.
    """
    sources = {split: SplitSource(split) for split in SPLITS if split in available}
    if not c.data.held_out or 'train' not in sources:
        return sources
    if 'test' not in sources and 'validation' in sources:
        sources['test'] = sources.pop('validation')
    shares = [split for split in SPLITS if split not in sources]
    sources |= {split: SplitSource('train', (split,)) for split in shares}
    rest = tuple(split for split in SPLITS if split not in shares)
    return sources | {'train': SplitSource('train', rest)}


def require(c: ConfigDict, available: Collection[str], split: str, expected: str) -> SplitSource:
    """Returns the source of a split; see `resolve`.

    Raises:
      UserError: the split has no source; `expected` describes its files in the message.
    """
    sources = resolve(c, available)
    if split in sources:
        return sources[split]
    hint = ''
    if 'train' in sources:
        hint = '; config.data.held_out = 0.05 would cut it from train'
    if 'train' in sources and split == 'test' and 'validation' in sources:
        hint = (
            '; config.data.held_out = 0.05 would take the validation files for it, and cut '
            'validation from train'
        )
    raise UserError(f'config.data.path = {c.data.path}: has no split {split!r}: {expected}{hint}')


def select(examples: Iterable[Example], source: SplitSource, held_out: float) -> Iterator[Example]:
    """Yields the examples of a split.

    Examples with equal first texts are in one share, so no first text is in two splits. A second
    text can be: in a dialogue, a reply is the first text of the next pair.
    """
    for example in examples:
        if source.shares == SPLITS or share(example.first, held_out) in source.shares:
            yield example


def require_any(items: Iterable[T], message: str) -> Iterator[T]:
    """Yields all items; raises UserError with the message if there are no items."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise UserError(message)


def share(text: str, held_out: float) -> str:
    """Returns the split that a hash of a text chooses."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    position = int.from_bytes(digest) / 2**64
    return 'test' if position < held_out else 'validation' if position < 2 * held_out else 'train'
