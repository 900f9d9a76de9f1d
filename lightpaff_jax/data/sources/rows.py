"""Reads the rows of .tsv, .csv, .jsonl and .parquet files as examples."""

import contextlib
import csv
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightpaff_jax.data.sources import files
from lightpaff_jax.data.sources.files import Path
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError, nearest, one_line

_MAX_FIELD = 1 << 26  # characters of a .csv field; a longer one is a quote that is never closed
_PARQUET_BATCH = 1024  # rows read in one call
_CHECKED_ROWS = 100  # malformed rows after which a check stops looking for a valid one


class Schema(NamedTuple):
    """The meaning of the columns of a row."""

    columns: tuple[str, ...]
    """The columns of the first text, the second text ('' if none) and the class; the second text
    and the class are optional."""
    labels: tuple[str, ...] = ()
    """The classes, as they are written in rows."""
    key: str = 'config.data.columns'
    """The origin of the column names, for messages."""

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in self.columns if name]


# The position of a row, FILE:LINE, and the values of the columns to read.
_Row = tuple[str, list[Any]]


class _EnoughRows(UserError):
    """A check has seen _CHECKED_ROWS malformed rows."""


def check(schema: Schema, file: Path, on_error: OnError | None) -> None:
    """Checks the columns and the first valid row of a file.

    Args:
      schema: the meaning of the columns.
      file: the file.
      on_error: called for each malformed row before the first valid one. None ignores up to
        _CHECKED_ROWS of them and then ends the check without an error.

    Raises:
      UserError: see `read`.
    """
    count = 0

    def ignore(message: str) -> None:
        nonlocal count
        count += 1
        if count == _CHECKED_ROWS:
            raise _EnoughRows

    with contextlib.suppress(_EnoughRows):
        next(read(schema, file, on_error or ignore), None)


def read(schema: Schema, file: Path, on_error: OnError) -> Iterator[Example]:
    """Reads the examples of a file, one for each row.

    Args:
      schema: the meaning of the columns.
      file: the file; its extension decides the format.
      on_error: called with a message for each malformed row, which is skipped.

    Raises:
      UserError: the file has no row, lacks a column, or is truncated.
    """
    empty = True

    def note(message: str) -> None:
        nonlocal empty
        empty = False  # a malformed row is a row too
        on_error(message)

    for where, values in _read_values(schema, file, note):
        empty = False
        example = to_example(schema, values)
        if isinstance(example, str):
            on_error(f'{where}: {example}')
        else:
            yield example
    if empty:
        raise UserError(f'{file}: empty corpus, must hold a row')


def _read_values(schema: Schema, file: Path, on_error: OnError) -> Iterator[_Row]:
    extension = files.extension(file.name)
    if extension == '.jsonl':
        return _json_rows(schema, file, on_error)
    if extension == '.parquet':
        return _parquet_rows(schema, file)
    return _delimited_rows(schema, file, on_error)


def to_example(schema: Schema, values: list[Any]) -> Example | str:
    """Returns the example of a row, or the rule that the row breaks."""
    cells = dict(zip(schema.names, values, strict=True))
    texts = [cells[name] if name else '' for name in schema.columns[:2]]
    has_class = len(schema.columns) == 3
    for name, text in zip(schema.columns, texts, strict=False):
        if not isinstance(text, str):
            return f'{name!r} must be text, is {text!r:.40}'
        if not (text.isascii() or files.is_utf8(text)):
            return f'{name!r} must be UTF-8'
        # The second of two classified texts may be empty, a target may not.
        if not text.strip() and (name == schema.columns[0] or not has_class):
            return f'{name!r} is empty'
    label = -1
    if has_class:
        name, value = schema.columns[2], str(cells[schema.columns[2]])
        if value not in schema.labels:
            labels = ', '.join(schema.labels[:10]) + (', ...' if len(schema.labels) > 10 else '')
            near = nearest(value, schema.labels)
            return f'{name!r} is {value!r:.40}, must be one of {labels}{near}'
        label = schema.labels.index(value)
    return Example(texts[0], texts[1] if len(texts) > 1 else '', label)


def _delimited_rows(schema: Schema, file: Path, on_error: OnError) -> Iterator[_Row]:
    is_csv = files.extension(file.name) == '.csv'
    records = (_csv_records if is_csv else _tsv_records)(file, on_error)
    indices: list[int] | None = None
    width = 0
    for number, fields in records:
        if indices is None:  # the first record decides the columns
            width = len(fields)
            indices = [_column_index(schema, name, fields, file) for name in schema.names]
            if not schema.names[0].isdecimal():
                continue  # it is a header
        if len(fields) != width:
            columns = f'{len(fields)} column{"s" * (len(fields) != 1)}'
            on_error(f'{file}:{number}: has {columns}, must have {width} as the first line has')
            continue
        yield f'{file}:{number}', [fields[i] for i in indices]


def _column_index(schema: Schema, name: str, first: list[str], file: Path) -> int:
    """Returns the index of a column, by its number or by the header `first`."""
    if name.isdecimal() and int(name) < len(first):
        return int(name)
    if not name.isdecimal() and name in first:
        return first.index(name)
    if name.isdecimal():
        has = f'has {len(first)} columns, numbered from 0'
    else:
        has = f'has {", ".join(map(repr, first))}{nearest(name, first)}'
    raise UserError(f'{file}:1: no column {name!r} of {schema.key}: {has:.300}')


def tsv_header(file: Path) -> list[str]:
    """Returns the fields of the first line of a .tsv file."""
    return next(_tsv_records(file, lambda message: None), (0, list[str]()))[1]


def _tsv_records(file: Path, on_error: OnError) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the fields of each line. Quotes have no meaning, as in GLUE."""
    for number, line in files.read_lines(file, on_error):
        yield number, files.strip_newline(line).split('\t')


def _csv_records(file: Path, on_error: OnError) -> Iterator[tuple[int, list[str]]]:
    """Yields the first line number and the fields of each record, as RFC 4180 defines them.

    Blank lines are skipped. `on_error` is called for each line of a malformed record, so that the
    number of skipped rows shows how much an unclosed quote has swallowed.
    """
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader((line for _, line in files.read_lines(file, None)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            count = reader.line_num - number + 1
            lost = f'; its quote that is not closed takes {count} lines' if count > 1 else ''
            on_error(f'{file}:{number}: must be CSV as defined by RFC 4180: {error}{lost}')
            for line in range(number + 1, reader.line_num + 1):
                on_error(f'{file}:{line}: is lost in the malformed row of line {number}')
            continue
        if fields:
            yield number, fields


def _json_rows(schema: Schema, file: Path, on_error: OnError) -> Iterator[_Row]:
    for number, line in files.read_lines(file, on_error):
        if not line.strip():
            continue
        where = f'{file}:{number}'
        try:
            row = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            on_error(f'{where}: must be a JSON object: {one_line(error)}')
            continue
        if not isinstance(row, dict):
            on_error(f'{where}: must be a JSON object, is {line.strip()!r:.40}')
            continue
        missing = [name for name in schema.names if name not in row]
        if missing:
            near = nearest(missing[0], list(row))
            on_error(f'{where}: no {missing[0]!r} of {schema.key}{near}')
            continue
        yield where, [row[name] for name in schema.names]


def _parquet_rows(schema: Schema, file: Path) -> Iterator[_Row]:
    import pyarrow  # takes as long to import as all other modules of data together
    from pyarrow import parquet

    number = 0
    try:
        with files.open_binary(file) as content, parquet.ParquetFile(content) as table:
            names = table.schema_arrow.names
            for name in schema.names:
                if name not in names:
                    raise UserError(
                        f'{file}: no column {name!r} of {schema.key}: has '
                        f'{", ".join(map(repr, names))}{nearest(name, names)}'
                    )
            for batch in table.iter_batches(_PARQUET_BATCH, columns=schema.names):
                columns = [batch.column(name).to_pylist() for name in schema.names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f'{file}:{number}', list(values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'{file}: must be a whole Parquet file: {one_line(error)}') from error
