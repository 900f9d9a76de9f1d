"""Rows of .tsv, .csv, .jsonl and .parquet files as examples; the layouts of GLUE."""

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, pydocs_views
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError, nearest

EXTENSIONS = ('.tsv', '.csv', '.jsonl', '.parquet')
_LONGEST_FIELD = 1 << 26  # characters of a .csv; more is a quote that is never closed
_AT_ONCE = 1024  # rows of a .parquet
_CHECKED = 100  # malformed rows that a check passes over


class Schema(NamedTuple):
    """What the columns of a row are."""

    columns: tuple[str, ...]
    """The first text, the second ('' there is none), the class; the last or two may be missing."""
    labels: tuple[str, ...] = ()
    """The classes, as rows name them."""
    key: str = 'config.data.columns'
    """What names the columns, for messages."""

    @property
    def wanted(self) -> list[str]:
        return [name for name in self.columns if name]


# A row with its place, FILE:LINE: the values of the columns that are wanted.
_Row = tuple[str, list[Any]]

GLUE = {
    'sst2': Schema(('sentence', '', 'label'), ('0', '1'), "source 'sst2'"),
    'qqp': Schema(('question1', 'question2', 'is_duplicate'), ('0', '1'), "source 'qqp'"),
    'mrpc': Schema(('#1 String', '#2 String', 'Quality'), ('0', '1'), "source 'mrpc'"),
}


def schema(c: ConfigDict) -> Schema:
    """Of the source 'table'.

    Raises:
      UserError: the columns or the classes are not said, or in two ways.
    """
    columns, labels = tuple(c.data.columns), tuple(c.data.labels)
    if not columns or not columns[0] or len(columns) > 3:
        raise UserError(
            f'config.data.columns = {columns}: must be the names of the first text, the second and '
            'the class, or of the first of these'
        )
    if len({name.isdecimal() for name in columns if name}) > 1:
        raise UserError(
            f'config.data.columns = {columns}: must be all names, or all numbers from 0'
        )
    if len(columns) == 3 and bool(labels) == bool(c.data.classes):
        raise UserError(
            f'config.data.labels = {labels}: must name the classes, or config.data.classes = '
            f'{c.data.classes} say how many there are, where labels are 0, 1, ...'
        )
    if len({*labels}) < len(labels):
        raise UserError(f'config.data.labels = {labels}: must name no class twice')
    return Schema(columns, labels or tuple(map(str, range(c.data.classes))))


def find(c: ConfigDict) -> SplitFiles:
    """The files of the source 'table'."""
    found = files.find(c, lambda name: _one_of(files.extension(name), EXTENSIONS))
    for paths in found.values():
        for path in paths:
            if files.extension(path.name) not in EXTENSIONS:
                rule = f'must end in {", ".join(EXTENSIONS)}, or .gz of these'
                raise UserError(f'{path}: {rule}')
    return found


def _one_of(extension: str, known: Sequence[str]) -> str | None:
    return extension if extension in known else None


def find_glue(c: ConfigDict) -> SplitFiles:
    """The files of a GLUE task: train.tsv, dev.tsv, and test.tsv where it has labels.

    Of MRPC also msr_paraphrase_train.txt and msr_paraphrase_test.txt, where there are no others.
    """
    found = files.find(c, _glue_name)
    if c.data.files:
        return found
    label = GLUE[c.data.source].columns[2]
    if 'test' in found and label not in _header(found['test'][0]):
        del found['test']
    if c.data.source == 'mrpc':
        older = files.find(c, _msr_name)
        if 'train' in found or 'validation' in found:
            older.pop('train', None)  # the validation files are a part of it
        found = older | found
    return found


def _glue_name(name: str) -> str | None:
    stem, _, end = files.strip_gz(name).lower().rpartition('.')
    return '.tsv' if end == 'tsv' and stem in files.SPLIT_OF else None


def _msr_name(name: str) -> str | None:
    known = ('msr_paraphrase_train.txt', 'msr_paraphrase_test.txt')
    return _one_of(files.strip_gz(name), known) and '.txt'


class _Enough(UserError):
    """As many rows were seen as a check looks at."""


def check(form: Schema, file: Path, fault: OnError | None) -> None:
    """Looks at the columns of a file and its first row.

    Args:
      form: what the columns are.
      file: the file.
      fault: is told of malformed rows; None passes over _CHECKED of them, and leaves it at that.

    Raises:
      UserError: as of `read`.
    """
    seen = 0

    def passed(line: str) -> None:
        nonlocal seen
        seen += 1
        if seen == _CHECKED:
            raise _Enough

    with contextlib.suppress(_Enough):
        next(read(form, file, fault or passed), None)


def read(form: Schema, file: Path, fault: OnError) -> Iterator[Example]:
    """The examples of a file, one a row.

    Raises:
      UserError: the file is without a row or a column, or cut short; what `fault` raises.
    """
    empty = True

    def told(line: str) -> None:
        nonlocal empty
        empty = False
        fault(line)

    for where, values in rows(form, file, told):
        empty = False
        made = example(form, values)
        if isinstance(made, str):
            fault(f'{where}: {made}')
        else:
            yield made
    if empty:
        raise UserError(f'{file}: empty corpus, must hold a row')


def rows(form: Schema, file: Path, fault: OnError) -> Iterator[_Row]:
    """Place and values of each row."""
    extension = files.extension(file.name)
    if extension == '.jsonl':
        return _json_lines(form, file, fault)
    if extension == '.parquet':
        return _parquet(form, file)
    return _delimited(form, file, fault)


def example(form: Schema, values: list[Any]) -> Example | str:
    """The example of a row, or what is wrong with it."""
    cells = dict(zip(form.wanted, values, strict=True))
    texts = [cells[name] if name else '' for name in form.columns[:2]]
    classes = len(form.columns) == 3
    for name, text in zip(form.columns, texts, strict=False):
        if not isinstance(text, str):
            return f'{name!r} must be text, is {text!r:.40}'
        if not (text.isascii() or pydocs_views.is_unicode(text)):
            return f'{name!r} must be UTF-8'
        if not text.strip() and (name == form.columns[0] or not classes):
            return f'{name!r} is empty'
    label = -1
    if classes:
        name, value = form.columns[2], str(cells[form.columns[2]])
        if value not in form.labels:
            known = ', '.join(form.labels[:10]) + (', ...' if len(form.labels) > 10 else '')
            near = nearest(value, form.labels)
            return f'{name!r} is {value!r:.40}, must be one of {known}{near}'
        label = form.labels.index(value)
    return Example(texts[0], texts[1] if len(texts) > 1 else '', label)


def _delimited(form: Schema, file: Path, fault: OnError) -> Iterator[_Row]:
    comma = files.extension(file.name) == '.csv'
    split = (_quoted if comma else _tabbed)(file, fault)
    picks: list[int] | None = None
    width = 0
    for number, row in split:
        if picks is None:
            width, numbered = len(row), form.wanted[0].isdecimal()
            picks = [_column(form, name, row, file) for name in form.wanted]
            if not numbered:
                continue
        if len(row) != width:
            columns = f'{len(row)} column{"s" * (len(row) != 1)}'
            fault(f'{file}:{number}: has {columns}, must have {width} as the first line has')
            continue
        yield f'{file}:{number}', [row[i] for i in picks]


def _column(form: Schema, name: str, first: list[str], file: Path) -> int:
    """Place of a column in the rows of a file whose first row is `first`."""
    if name.isdecimal() and int(name) < len(first):
        return int(name)
    if not name.isdecimal() and name in first:
        return first.index(name)
    if name.isdecimal():
        has = f'has {len(first)} columns, numbered from 0'
    else:
        has = f'has {", ".join(map(repr, first))}{nearest(name, first)}'
    raise UserError(f'{file}:1: no column {name!r} of {form.key}: {has:.300}')


def _header(file: Path) -> list[str]:
    """Columns of a .tsv file."""
    return next(_tabbed(file, lambda line: None), (0, list[str]()))[1]


def _tabbed(file: Path, fault: OnError) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields; nothing is quoted."""
    for number, line in files.read_lines(file, fault):
        yield number, line.removesuffix('\n').removesuffix('\r').split('\t')


def _quoted(file: Path, fault: OnError) -> Iterator[tuple[int, list[str]]]:
    """First line number and fields of each record, quoted as RFC 4180 says; blank lines are none.

    Each line that a malformed record takes is a fault.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    read = csv.reader((line for _, line in files.read_lines(file, None)), strict=True)
    while True:
        number = read.line_num + 1
        try:
            row = next(read)
        except StopIteration:
            return
        except csv.Error as error:
            fault(f'{file}:{number}: must be CSV as RFC 4180 says: {error}{_taken(number, read)}')
            for line in range(number + 1, read.line_num + 1):
                fault(f'{file}:{line}: is lost in the malformed row of line {number}')
            continue
        if row:
            yield number, row


def _taken(number: int, read) -> str:
    """What a malformed row that began in a line took of those below, for messages."""
    lines = read.line_num - number + 1
    return f'; its quote that is not closed takes {lines} lines' if lines > 1 else ''


def _json_lines(form: Schema, file: Path, fault: OnError) -> Iterator[_Row]:
    for number, line in files.read_lines(file, fault):
        if not line.strip():
            continue
        where = f'{file}:{number}'
        try:
            row = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            fault(f'{where}: must be a JSON object: {files.one_line(error)}')
            continue
        if not isinstance(row, dict):
            fault(f'{where}: must be a JSON object, is {line.strip()!r:.40}')
            continue
        missing = [name for name in form.wanted if name not in row]
        if missing:
            near = nearest(missing[0], list(row))
            fault(f'{where}: no {missing[0]!r} of {form.key}{near}')
            continue
        yield where, [row[name] for name in form.wanted]


def _parquet(form: Schema, file: Path) -> Iterator[_Row]:
    import pyarrow  # as long to import as all the rest of this package's data
    from pyarrow import parquet

    number = 0
    try:
        with files.open_binary(file) as raw, parquet.ParquetFile(raw) as table:
            names = table.schema_arrow.names
            for name in form.wanted:
                if name not in names:
                    raise UserError(
                        f'{file}: no column {name!r} of {form.key}: has '
                        f'{", ".join(map(repr, names))}{nearest(name, names)}'
                    )
            for batch in table.iter_batches(_AT_ONCE, columns=form.wanted):
                columns = [batch.column(name).to_pylist() for name in form.wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f'{file}:{number}', list(values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = files.one_line(error)
        raise UserError(f'{file}: must be a whole Parquet file: {reason}') from error
