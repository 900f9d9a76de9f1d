"""SOURCES: where the examples come from. `config.data.source` names one.

The source `prepared` is not in the table: its folder is read by records.py, no example is.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import pydocs as pydocs_lib
from lightpaff_jax.data import records

SPLITS = pydocs_lib.SPLITS


class Example(NamedTuple):
    """A document, a text, a pair of texts with a class, or a text and what to make of it."""

    first: str
    second: str = ''
    label: int = -1
    """Its class; -1: there is none."""


def pydocs(c: ConfigDict, split: str) -> Iterator[Example]:
    """Examples of `config.data.packages` (all if empty), in the order of package and path.

    Raises:
      UserError: a package that is not in the corpus, or no example in this split.
    """
    packages = _packages(c)
    builder = pydocs_lib.opened(c.data.cache, c.data.form)
    empty = True
    for row in builder.as_data_source(split):
        if not packages or row['package'].decode() in packages:
            empty = False
            if c.data.form == 'text':
                yield Example(row['text'].decode())
            else:
                yield Example(row['first'].decode(), row['second'].decode(), int(row['label']))
    if empty:
        raise config.UserError(
            f'config.data.packages = {tuple(c.data.packages)}: empty corpus, '
            f'no {c.data.form!r} of pydocs in split {split!r}'
        )


def pydocs_identity(c: ConfigDict, splits: Sequence[str] = SPLITS) -> dict:
    """All that the examples of `pydocs` depend on, as JSON values; one digest for all splits."""
    metadata = pydocs_lib.opened(c.data.cache, c.data.form).info.metadata
    return {
        'packages': _packages(c),
        'digest': metadata['digest'],
        'versions': dict(metadata['versions']),
    }


def _packages(c: ConfigDict) -> list[str]:
    for name in c.data.packages:
        if name not in pydocs_lib.PACKAGES:
            raise config.UserError(
                f'config.data.packages = {tuple(c.data.packages)}: {name!r} must be one of '
                f'{", ".join(pydocs_lib.PACKAGES)}{config.nearest(name, list(pydocs_lib.PACKAGES))}'
            )
    return sorted(set(c.data.packages))


def text(c: ConfigDict, split: str) -> Iterator[Example]:
    """Documents of `config.data.path`/<split>.txt, separated by blank lines.

    Raises:
      UserError: the file is missing, not UTF-8, or has no document.
    """
    empty = True
    for document in _paragraphs(_text_file(c, split)):
        empty = False
        yield Example(document)
    if empty:
        raise config.UserError(f'{_text_file(c, split)}: empty corpus, must hold a document')


def text_identity(c: ConfigDict, splits: Sequence[str] = SPLITS) -> dict:
    """The content of the files of `text`."""
    hashes = {}
    for split in splits:
        with _text_file(c, split).open('rb') as file:
            hashes[split] = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'files': hashes}


def _text_file(c: ConfigDict, split: str) -> pathlib.Path:
    file = pathlib.Path(c.data.path).expanduser() / f'{split}.txt'
    if not file.is_file():
        names = ', '.join(f'{name}.txt' for name in SPLITS)
        raise config.UserError(f'config.data.path = {c.data.path}: must hold {names}; no {file}')
    return file


def _paragraphs(file: pathlib.Path) -> Iterator[str]:
    lines: list[str] = []
    try:
        with file.open(encoding='utf-8', newline='\n') as opened:
            for line in itertools.chain(opened, ['']):
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield ''.join(lines).rstrip('\n')
                    lines = []
    except UnicodeDecodeError as error:
        raise config.UserError(f'{file}: must be UTF-8: {error.reason}') from error


def classes(c: ConfigDict) -> int:
    """How many classes the examples of `config.data` have; 0 where they have none.

    Raises:
      UserError: for the source 'prepared', a folder that is no prepared set.
    """
    if c.data.source == 'prepared':
        return records.manifest(pathlib.Path(c.data.path).expanduser())['classes']
    return {'text': 0, 'topic': len(pydocs_lib.PACKAGES), 'pairs': 2, 'summary': 0}[c.data.form]


def check(c: ConfigDict) -> None:
    """Raises UserError for a package or a file that is not there; reads no example."""
    if c.data.source == 'pydocs':
        _packages(c)
    if c.data.source == 'text':
        for split in SPLITS:
            _text_file(c, split)


# Name -> one split, as (c, split) -> iterator of examples.
SOURCES = {'pydocs': pydocs, 'text': text}
# Name -> what those depend on, as (c, splits) -> JSON values; two configurations with equal ones have equal examples of a form.
IDENTITIES = {'pydocs': pydocs_identity, 'text': text_identity}
