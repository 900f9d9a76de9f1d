"""Reads the rows of .tsv, .csv, .jsonl and .parquet files as examples."""

import contextlib
import csv
import json
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
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
    quoting: str = 'none'
    """Whether double quotes enclose the fields of .tsv and .csv files, one of config.QUOTING."""

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
        name, value = schema.columns[2], cells[schema.columns[2]]
        names = _label_names(value)
        label = next((schema.labels.index(x) for x in names if x in schema.labels), -1)
        if label < 0:
            near = nearest(names[0], schema.labels) if names else ''
            shown = names[0] if names else value
            return f'{name!r} is {shown!r:.40}, must be one of {_list(schema.labels)}{near}'
    return Example(texts[0], texts[1] if len(texts) > 1 else '', label)


def _label_names(value: Any) -> Sequence[str]:
    """Returns the names that a class may have in `Schema.labels`, the preferred one first.

    JSON's true is `true`, or `True` as in Python, or `1`. The number 1.0 is `1.0` or `1`: pandas
    writes whole numbers as floats if a column has gaps. Only texts, numbers and booleans have names.
    """
    if isinstance(value, bool):
        return json.dumps(value), str(value), str(int(value))
    if isinstance(value, numbers.Number):
        value = str(value)
    if not isinstance(value, str):
        return ()
    whole = re.fullmatch(r'(-?\d+)\.0+', value)
    return (value, whole[1]) if whole else (value,)


def _list(names: Sequence[str]) -> str:
    return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')


def _delimited_rows(schema: Schema, file: Path, on_error: OnError) -> Iterator[_Row]:
    records = _records(schema, file, on_error)
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
    if name.isdecimal() and len(name.lstrip('0')) < 10 and int(name) < len(first):
        return int(name)
    if first.count(name) > 1 and not name.isdecimal():
        raise UserError(f'{file}:1: column {name!r} of {schema.key}: must not be there twice')
    if not name.isdecimal() and name in first:
        return first.index(name)
    if name.isdecimal():
        has = f'has {len(first)} columns, numbered from 0'
    else:
        has = f'has {", ".join(map(repr, first))}{nearest(name, first)}'
    raise UserError(f'{file}:1: no column {name!r} of {schema.key}: {has:.300}')


def tsv_header(file: Path) -> list[str]:
    """Returns the fields of the first line of a .tsv file."""
    return next(_plain_records(file, '\t', False, lambda message: None), (0, list[str]()))[1]


def _records(schema: Schema, file: Path, on_error: OnError) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the fields of each record that is not blank.

    Without a setting, the quotes of a .csv file enclose fields, and so do those of a .tsv file
    whose header has all of its names in quotes. In any other .tsv file no field may begin with a
    quote, so its rows are the same with either meaning.
    """
    is_csv, quoting = files.extension(file.name) == '.csv', schema.quoting
    delimiter = ',' if is_csv else '\t'
    has_header = not schema.names[0].isdecimal()
    if quoting == 'auto' and (is_csv or (has_header and _is_quoted(tsv_header(file)))):
        quoting = 'double'
    if quoting == 'double':
        return _quoted_records(file, delimiter, on_error)
    return _plain_records(file, delimiter, quoting == 'auto', on_error)


def _is_quoted(fields: Sequence[str]) -> bool:
    return all(re.fullmatch('"[^"]*"', field) for field in fields)


def _plain_records(
    file: Path, delimiter: str, refuses_quotes: bool, on_error: OnError
) -> Iterator[tuple[int, list[str]]]:
    """Yields the records of a file in which quotes have no meaning, as in GLUE."""
    for number, line in files.read_lines(file, on_error):
        fields = line.removesuffix('\n').split(delimiter)
        if refuses_quotes and '"' in line and any(field.startswith('"') for field in fields):
            raise UserError(
                f"{file}:{number}: a field begins with a quote: config.data.quoting must be 'none' "
                "if it is text, as in GLUE, or 'double' if it encloses the field, as pandas writes it"
            )
        if fields != ['']:
            yield number, fields


def _quoted_records(
    file: Path, delimiter: str, on_error: OnError
) -> Iterator[tuple[int, list[str]]]:
    """Yields the records of a file in which quotes enclose fields, as RFC 4180 defines them.

    `on_error` is called for each line of a malformed record, so that the number of skipped rows
    shows how much an unclosed quote has swallowed.
    """
    csv.field_size_limit(_MAX_FIELD)
    lines = (line for _, line in files.read_lines(file, None, newline=''))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
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
        fault = next(filter(None, map(files.text_fault, fields)), '')
        if fault:
            on_error(f'{file}:{number}: {fault}')
        elif fields:
            yield number, fields


def _json_rows(schema: Schema, file: Path, on_error: OnError) -> Iterator[_Row]:
    empty = True
    for number, line in files.read_lines(file, on_error):
        if not line.strip():
            continue
        where = f'{file}:{number}'
        if empty and line.lstrip().startswith('['):
            raise UserError(f'{where}: must be a JSON object a line, is an array')
        empty = False
        try:
            row = json.loads(line.strip(), object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            on_error(f'{where}: must be a JSON object: {one_line(error)}')
            continue
        if not isinstance(row, dict):
            on_error(f'{where}: must be a JSON object, is {line.strip()!r:.40}')
            continue
        values = [_lookup(row, name) for name in schema.names]
        fault = next(
            (
                f'{len(value) or "no"} {name!r} of {schema.key}{nearest(name, list(row))}'
                for name, value in zip(schema.names, values, strict=True)
                if len(value) != 1
            ),
            '',
        )
        if fault:
            on_error(f'{where}: {fault}')
        else:
            yield where, [value for (value,) in values]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; readers disagree on which of two equal keys counts."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'has {next(key for key in row if keys.count(key) > 1)!r} twice')
    return row


def _lookup(row: Mapping[str, Any], name: str) -> list[Any]:
    """Returns the values with a name: a key, or the keys of nested objects, joined by dots."""
    values = [row[name]] if name in row else []
    for dot in re.finditer(r'\.', name):
        inner = row.get(name[: dot.start()])
        if isinstance(inner, Mapping):
            values += _lookup(inner, name[dot.end() :])
    return values


def class_names(schema: Schema, file: Path) -> tuple[str, ...]:
    """Returns the names of the classes in the metadata of a .parquet file, or ()."""
    if len(schema.columns) < 3 or files.extension(file.name) != '.parquet':
        return ()
    with _open_parquet(file) as table:
        fields = table.schema_arrow
        return _stored_names(fields, _parquet_path(schema, file, fields, schema.columns[2]))


@contextlib.contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow  # takes as long to import as all other modules of data together
    from pyarrow import parquet

    try:
        with (
            files.open_binary(file) as content,
            parquet.ParquetFile(content, page_checksum_verification=True) as table,
        ):
            yield table
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # names that are not UTF-8
        raise UserError(f'{file}: must be a whole Parquet file: {one_line(error)}') from error


def _parquet_rows(schema: Schema, file: Path) -> Iterator[_Row]:
    number = 0
    with _open_parquet(file) as table:
        paths = [_parquet_path(schema, file, table.schema_arrow, n) for n in schema.names]
        classes = _class_names(schema, file, table.schema_arrow, paths)
        for batch in table.iter_batches(_PARQUET_BATCH, columns=schema.names):
            columns = [_parquet_values(batch, path) for path in paths]
            if classes:
                columns[-1] = [_class_name(classes, value) for value in columns[-1]]
            for values in zip(*columns, strict=True):
                number += 1
                yield f'{file}:{number}', list(values)
        if number != table.metadata.num_rows:
            raise UserError(
                f'{file}: must be a whole Parquet file: has {number} rows of '
                f'{table.metadata.num_rows}'
            )


def _parquet_path(schema: Schema, file: Path, fields: Any, name: str) -> tuple[str, ...]:
    """Returns the names of nested columns that `name` joins by dots.

    Raises:
      UserError: no column has the name, or several have it.
    """
    paths = list(_column_paths(fields))
    matches = [path for path in paths if '.'.join(path) == name]
    if len(matches) == 1:
        return matches[0]
    names = list(dict.fromkeys('.'.join(path) for path in paths))
    has = f'has {", ".join(map(repr, names))}'
    raise UserError(
        f'{file}: {len(matches) or "no"} column {name!r} of {schema.key}: {has:.300}'
        f'{nearest(name, names) if not matches else ""}'
    )


def _column_paths(fields: Any, parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of each column, those of nested columns too."""
    from pyarrow import types

    for field in fields:
        yield (*parents, field.name)
        if types.is_struct(field.type):
            yield from _column_paths(field.type, (*parents, field.name))


def _parquet_values(batch: Any, path: Sequence[str]) -> list[Any]:
    """Returns the values of a column; bytes that are not UTF-8 become surrogates."""
    from pyarrow import compute

    column = batch.column(path[0])
    for name in path[1:]:
        column = compute.struct_field(column, name)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = column.cast('large_binary').to_pylist()
        return [value and value.decode(errors='surrogateescape') for value in binary]


def _stored_names(fields: Any, path: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that a file stores for the class numbers in a column, or ().

    The library `datasets` stores a class as a number and its names in the file's metadata.
    """
    try:
        feature = json.loads((fields.metadata or {})[b'huggingface'])['info']['features']
        for name in path:
            feature = feature[name]
        return tuple(map(str, feature['names'])) if feature['_type'] == 'ClassLabel' else ()
    except (ValueError, KeyError, TypeError):
        return ()  # without metadata, or of another version of the library


def _class_names(
    schema: Schema, file: Path, fields: Any, paths: Sequence[Sequence[str]]
) -> tuple[str, ...]:
    """Returns the names that a file stores for its class numbers; () if the numbers are the names.

    Raises:
      UserError: the names differ from those of the configuration.
    """
    names = _stored_names(fields, paths[-1]) if len(schema.columns) == 3 else ()
    if not names or {*names} == {*schema.labels}:
        return names
    if schema.labels == tuple(map(str, range(len(names)))):
        return ()
    raise UserError(
        f'{file}: the classes of column {schema.columns[2]!r} are {_list(names)}, those of the '
        f'configuration {_list(schema.labels)}, must be the same'
    )


def _class_name(names: Sequence[str], number: Any) -> Any:
    is_class = isinstance(number, int) and 0 <= number < len(names)
    return names[number] if is_class else number
