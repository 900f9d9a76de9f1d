"""The source `table`: rows of .tsv, .csv, .jsonl and .parquet files, by the names of their columns."""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, rows
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.rows import Schema
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError

EXTENSIONS = ('.tsv', '.csv', '.jsonl', '.parquet')


def find(c: ConfigDict) -> SplitFiles:
    """Finds the files of each split; raises UserError for a file of another format."""
    split_files = files.find(c, files.by_extension(EXTENSIONS))
    for path in itertools.chain(*split_files.values()):
        if files.extension(path.name) not in EXTENSIONS:
            raise UserError(f'{path}: must end in {", ".join(EXTENSIONS)}, or .gz of these')
    return split_files


def expected(c: ConfigDict, split: str) -> str:
    """Describes the files of a split, for messages."""
    del c
    return files.expected(split, EXTENSIONS)


def read(c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
    """Reads the examples of some files; see `rows.read`."""
    for path in paths:
        yield from rows.read(schema(c), path, on_error)


def check(c: ConfigDict, path: Path, on_error: OnError | None) -> None:
    """Checks the columns and the first row of a file; see `rows.check`."""
    rows.check(schema(c), path, on_error)


def classes(c: ConfigDict) -> int:
    """Returns the number of classes; 0 if the columns name none."""
    return len(schema(c).labels) if len(c.data.columns) == 3 else 0


def class_names(c: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes: `config.data.labels`, or those that the files store.

    Raises:
      UserError: files store different names for the same numbers.
    """
    if c.data.labels:
        return tuple(c.data.labels)
    stored: dict[tuple[str, ...], Path] = {}
    for path in itertools.chain(*find(c).values()):
        stored.setdefault(rows.class_names(schema(c), path), path)
    (names, first), *others = stored.items()
    if others:
        (other_names, other), *_ = others
        raise UserError(
            f'config.data.labels = (): must name the classes, which are {", ".join(names) or "numbers"} '
            f'in {first}, {", ".join(other_names) or "numbers"} in {other}'
        )
    return names


def schema(c: ConfigDict) -> Schema:
    """Returns the meaning of the columns.

    Raises:
      UserError: the columns or the classes are not configured, or are configured twice.
    """
    columns, labels = tuple(c.data.columns), tuple(c.data.labels)
    if not columns or not columns[0] or len(columns) > 3:
        raise UserError(
            f'config.data.columns = {columns}: must name the first text, the second text and the '
            'class, or the first one or two of them'
        )
    if len({name.isdecimal() for name in columns if name}) > 1:
        raise UserError(
            f'config.data.columns = {columns}: must be all names, or all numbers from 0'
        )
    if len(columns) == 3 and bool(labels) == bool(c.data.classes):
        raise UserError(
            f'config.data.labels = {labels}: must name the classes, or config.data.classes = '
            f'{c.data.classes} must be their number if labels are 0, 1, ...'
        )
    if len({*labels}) < len(labels):
        raise UserError(f'config.data.labels = {labels}: must name no class twice')
    labels = labels or tuple(map(str, range(c.data.classes)))
    return Schema(columns, labels, quoting=c.data.quoting)
