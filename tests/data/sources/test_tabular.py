"""Tests of the rows of tables."""

import gzip
import json

import pyarrow
import pytest
from helpers.sources import check_error, make_config, read_error, read_texts, write_file
from pyarrow import parquet

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, files

COLUMNS = ('text', 'other', 'mark')
HINT = " (config.data.on_error = 'skip' skips such rows)"
ROWS = [('a good one', 'why "so" ?', 'yes'), ('two,\twords ä', '', 'no'), ('"three"', 'x', 'yes')]
EXPECTED = [
    Example('a good one', 'why "so" ?', 1),
    Example('two,\twords ä', '', 0),
    Example('"three"', 'x', 1),
]


def table_config(path, **keys):
    return make_config('table', path, **({'columns': COLUMNS, 'labels': ('no', 'yes')} | keys))


def table_content(extension, rows=ROWS):
    """Returns the content of a file that has COLUMNS and another column, which is not read."""
    if extension == '.tsv':
        rows = [(a.replace('\t', ' '), b, c) for a, b, c in rows]
        return 'id\ttext\tother\tmark\n' + ''.join(f'7\t{a}\t{b}\t{c}\n' for a, b, c in rows)
    if extension == '.csv':
        quoted = [[field.replace('"', '""') for field in row] for row in rows]
        return 'id,text,other,mark\r\n' + ''.join(f'7,"{a}","{b}",{c}\r\n' for a, b, c in quoted)
    if extension == '.jsonl':
        return ''.join(json.dumps({'mark': c, 'text': a, 'other': b}) + '\n' for a, b, c in rows)
    sink = pyarrow.BufferOutputStream()
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    parquet.write_table(pyarrow.table({name: list(v) for name, v in columns.items()}), sink)
    return sink.getvalue().to_pybytes()


EXTENSIONS = pytest.mark.parametrize('extension', ['.tsv', '.csv', '.jsonl', '.parquet'])


@EXTENSIONS
def test_every_format_gives_the_same_rows(tmp_path, extension):
    write_file(tmp_path / f'train{extension}', table_content(extension))
    expected = (
        [e._replace(first=e.first.replace('\t', ' ')) for e in EXPECTED]
        if extension == '.tsv'
        else EXPECTED
    )
    c = table_config(tmp_path, quoting='none' if extension == '.tsv' else 'auto')
    assert list(sources.examples(c, 'train')) == expected


@pytest.mark.parametrize('extension', ['.tsv', '.csv', '.jsonl'])
def test_compressed_tables_are_read(tmp_path, extension):
    write_file(
        tmp_path / f'train{extension}.gz',
        gzip.compress(table_content(extension, ROWS[:1]).encode()),
    )
    assert list(sources.examples(table_config(tmp_path), 'train')) == EXPECTED[:1]


@EXTENSIONS
@pytest.mark.parametrize(
    ('columns', 'expected'),
    [
        (('text',), Example('a good one')),
        (('other', 'text'), Example('why "so" ?', 'a good one')),
        (('text', '', 'mark'), Example('a good one', '', 1)),
    ],
)
def test_columns_decide_the_example(tmp_path, extension, columns, expected):
    write_file(tmp_path / f'train{extension}', table_content(extension, ROWS[:1]))
    labels = ('no', 'yes') if len(columns) == 3 else ()
    c = table_config(tmp_path, columns=columns, labels=labels)
    assert list(sources.examples(c, 'train')) == [expected]
    assert sources.classes(c) == len(labels)


@pytest.mark.parametrize(('extension', 'by'), [('.tsv', '\t'), ('.csv', ',')])
def test_numbers_name_columns_without_a_header(tmp_path, extension, by):
    write_file(tmp_path / f'train{extension}', f'0{by}a b{by}1\n1{by}c d{by}0\n')
    c = table_config(tmp_path, columns=('1', '', '0'), labels=(), classes=2)
    assert list(sources.examples(c, 'train')) == [Example('a b', '', 0), Example('c d', '', 1)]
    assert sources.classes(c) == 2


def test_csv_error_names_the_first_line_of_a_record(tmp_path):
    write_file(tmp_path / 'train.csv', 'text\n"one\ntwo"\n"three\n\nfour",5\n')
    line = read_error(table_config(tmp_path, columns=('text',), labels=()))
    assert line == f'{tmp_path}/train.csv:4: has 2 columns, must have 1 as the first line has{HINT}'
    write_file(tmp_path / 'train.csv', 'text\n"one\ntwo"\n')
    c = table_config(tmp_path, columns=('text',), labels=())
    assert read_texts(c) == ['one\ntwo']


# Format, a malformed row for the columns text and mark, and the message for it.
LABEL = "'mark' is 'yess', must be one of no, yes; did you mean yes?"
MALFORMED = [
    ('.tsv', 'a b\tyess', LABEL),
    ('.tsv', 'a b', 'has 1 column, must have 2 as the first line has'),
    ('.tsv', 'a\tb\tyes', 'has 3 columns, must have 2 as the first line has'),
    ('.tsv', ' \tyes', "'text' is empty"),
    ('.tsv', b'caf\xe9\tyes', 'must be UTF-8, has byte 0xe9: invalid continuation byte'),
    ('.csv', 'a b,yess', LABEL),
    ('.csv', 'a b', 'has 1 column, must have 2 as the first line has'),
    ('.csv', '"a" b,yes', "must be CSV as defined by RFC 4180: ',' expected after '\"'"),
    ('.csv', '"",yes', "'text' is empty"),
    ('.csv', b'caf\xe9,yes', 'must be UTF-8, has byte 0xe9: unexpected end of data'),
    ('.jsonl', '{"text": "a b", "mark": "yess"}', LABEL),
    (
        '.jsonl',
        '{"text": "a b", "mark"',
        "must be a JSON object: Expecting ':' delimiter: line 1 column 23 (char 22)",
    ),
    ('.jsonl', '["a b", "yes"]', 'must be a JSON object, is \'["a b", "yes"]\''),
    (
        '.jsonl',
        '{"txt": "a b", "mark": "yes"}',
        "no 'text' of config.data.columns; did you mean txt?",
    ),
    ('.jsonl', '{"text": 5, "mark": "yes"}', "'text' must be text, is 5"),
    ('.jsonl', '{"text": null, "mark": "yes"}', "'text' must be text, is None"),
    ('.jsonl', r'{"text": "half \ud800", "mark": "yes"}', "'text' must be UTF-8"),
    ('.jsonl', '{"text": "", "mark": "yes"}', "'text' is empty"),
    (
        '.jsonl',
        b'{"text": "caf\xe9", "mark": "yes"}',
        'must be UTF-8, has byte 0xe9: invalid continuation byte',
    ),
]
VALID = {
    '.tsv': (b'text\tmark\n', b'fine\tno\n'),
    '.csv': (b'text,mark\n', b'fine,no\n'),
    '.jsonl': (b'', b'{"text": "fine", "mark": "no"}\n'),
}


@pytest.mark.parametrize(('extension', 'row', 'message'), MALFORMED)
def test_malformed_row_is_an_error_or_skipped(tmp_path, extension, row, message):
    header, fine = VALID[extension]
    row = row if isinstance(row, bytes) else row.encode()
    write_file(tmp_path / f'train{extension}', header + fine + row + b'\n' + fine)
    c = table_config(tmp_path, columns=('text', '', 'mark'))
    line = f'{tmp_path}/train{extension}:{2 + bool(header)}: {message}'
    assert read_error(c) == line + HINT
    c.data.on_error, skipped = 'skip', []
    read = list(sources.examples(c, 'train', skipped.append))
    assert read == [Example('fine', '', 0)] * 2
    assert skipped == [line]


def test_error_names_the_number_of_a_parquet_row(tmp_path):
    write_file(tmp_path / 'train.parquet', table_content('.parquet', [*ROWS, ('', '', 'no')]))
    line = read_error(table_config(tmp_path))
    assert line == f"{tmp_path}/train.parquet:4: 'text' is empty{HINT}"


def test_empty_target_is_an_error_but_second_text_may_be_empty(tmp_path):
    write_file(tmp_path / 'train.tsv', 'text\tother\tmark\na\t\tyes\n')
    assert list(sources.examples(table_config(tmp_path), 'train')) == [Example('a', '', 1)]
    line = read_error(table_config(tmp_path, columns=('text', 'other'), labels=()))
    assert line == f"{tmp_path}/train.tsv:2: 'other' is empty{HINT}"


def test_table_of_only_malformed_rows_is_an_empty_corpus(tmp_path):
    write_file(tmp_path / 'train.tsv', 'text\tmark\na\tb\n')
    c = table_config(tmp_path, columns=('text', '', 'mark'), on_error='skip')
    message = f"config.data.path = {tmp_path}: empty corpus, no example of split 'train'"
    assert read_error(c) == message


@pytest.mark.parametrize(
    ('extension', 'damage', 'message'),
    [
        ('.tsv', lambda data: b'', 'empty corpus, must hold a line'),
        ('.tsv', lambda data: b'text\tother\tmark\n', 'empty corpus, must hold a row'),
        ('.csv', lambda data: b'text,other,mark\n', 'empty corpus, must hold a row'),
        ('.jsonl', lambda data: b'', 'empty corpus, must hold a line'),
        (
            '.parquet',
            lambda data: data[:-5],
            'must be a whole Parquet file: Parquet magic bytes not found in footer.',
        ),
        (
            '.parquet',
            lambda data: data[:6],
            'must be a whole Parquet file: Parquet file size is 6 bytes, smaller than the minimum file footer (8 bytes)',
        ),
        (
            '.parquet',
            lambda data: b'',
            'must be a whole Parquet file: Parquet file size is 0 bytes',
        ),
    ],
)
def test_damaged_table_is_an_error(tmp_path, extension, damage, message):
    data = table_content(extension)
    data = data.encode() if isinstance(data, str) else data
    write_file(tmp_path / f'train{extension}', damage(data))
    line = read_error(table_config(tmp_path))
    assert line.startswith(f'{tmp_path}/train{extension}: {message}')


@EXTENSIONS
def test_missing_column_is_an_error_with_a_suggestion(tmp_path, extension):
    for split in ('train', 'dev', 'test'):
        write_file(tmp_path / f'{split}{extension}', table_content(extension))
    c = table_config(tmp_path, columns=('texts', '', 'mark'))
    line = read_error(c)
    assert line.startswith(f'{tmp_path}/train{extension}:')
    assert "no column 'texts' of config.data.columns: has " in line or extension == '.jsonl'
    assert '; did you mean text?' in line
    assert check_error(c) == line


# Format, columns, the row that fills a file, and the message of a check with its line number.
MALFORMED_FILES = [
    (
        '.jsonl',
        ('texts', '', 'mark'),
        '{"text": "a b", "mark": "yes"}\n',
        "1: no 'texts' of config.data.columns; did you mean text?",
    ),
    (
        '.jsonl',
        ('0', '', '1'),
        '{"text": "a b", "mark": "yes"}\n',
        "1: no '0' of config.data.columns",
    ),
    (
        '.jsonl',
        ('text', '', 'mark'),
        'a b\tyes\n',
        '1: must be a JSON object: Expecting value: line 1 column 1 (char 0)',
    ),
    (
        '.jsonl',
        ('text', '', 'mark'),
        b'\xff\n',
        '1: must be UTF-8, has byte 0xff: invalid start byte',
    ),
    ('.tsv', ('text', '', 'mark'), 'a b\n', '2: has 1 column, must have 2 as the first line has'),
    (
        '.csv',
        ('text', '', 'mark'),
        'a,b,yes\n',
        '2: has 3 columns, must have 2 as the first line has',
    ),
]


@pytest.mark.parametrize(('extension', 'columns', 'row', 'message'), MALFORMED_FILES)
def test_check_reports_a_malformed_first_row(tmp_path, extension, columns, row, message):
    row = row if isinstance(row, bytes) else row.encode()
    for split in ('train', 'dev', 'test'):
        write_file(tmp_path / f'{split}{extension}', VALID[extension][0] + 9 * row)
    c = table_config(tmp_path, columns=columns)
    assert check_error(c) == f'{tmp_path}/train{extension}:{message}{HINT}'
    if extension == '.jsonl' and columns[0] != 'text':
        text = make_config('text', tmp_path, columns=columns[:1])
        assert check_error(text) == f'{tmp_path}/train{extension}:{message}{HINT}'
    c.data.on_error = 'skip'
    sources.check(c)
    assert 'empty corpus, no example of' in read_error(c)


@pytest.mark.parametrize(('extension', 'columns', 'row', 'message'), MALFORMED_FILES)
def test_check_that_skips_rows_reads_only_the_first_ones(
    tmp_path, monkeypatch, extension, columns, row, message
):
    row = row if isinstance(row, bytes) else row.encode()
    write_file(tmp_path / f'train{extension}', VALID[extension][0] + 9000 * row)
    c = table_config(tmp_path, columns=columns, on_error='skip', held_out=0.1)
    lines, whole = [], files.read_lines

    def read(file, on_error, newline=None):
        for number, line in whole(file, on_error, newline):
            lines.append(number)
            yield number, line

    monkeypatch.setattr(files, 'read_lines', read)
    sources.check(c)
    assert len(lines) < 200


@pytest.mark.parametrize('extension', ['.tsv', '.csv', '.jsonl'])
def test_blank_lines_are_not_rows(tmp_path, extension):
    header, fine = VALID[extension]
    write_file(tmp_path / f'train{extension}', b'\n' + header + fine + b'\n\r\n' + fine + b'\n')
    c = table_config(tmp_path, columns=('text', '', 'mark'))
    assert list(sources.examples(c, 'train')) == [Example('fine', '', 0)] * 2


def test_unclosed_quote_skips_every_line_it_swallows(tmp_path):
    write_file(tmp_path / 'train.csv', 'text,mark\nfine,no\n"open,no\n' + 5 * 'fine,no\n')
    c = table_config(tmp_path, columns=('text', '', 'mark'))
    line = (
        f'{tmp_path}/train.csv:3: must be CSV as defined by RFC 4180: unexpected end of data; '
        'its quote that is not closed takes 6 lines'
    )
    assert read_error(c) == line + HINT
    c.data.on_error, skipped = 'skip', []
    assert list(sources.examples(c, 'train', skipped.append)) == [Example('fine', '', 0)]
    assert skipped[:2] == [line, f'{tmp_path}/train.csv:4: is lost in the malformed row of line 3']
    assert len(skipped) == 6


@pytest.mark.parametrize('column', ['2', 5000 * '1'])  # int() refuses more than 4,300 digits
def test_column_number_out_of_range_is_an_error(tmp_path, column):
    write_file(tmp_path / 'train.tsv', 'a\tb\n')
    line = read_error(table_config(tmp_path, columns=(column,), labels=()))
    assert line == (
        f"{tmp_path}/train.tsv:1: no column '{column}' of config.data.columns: has 2 columns, "
        'numbered from 0'
    )


def test_number_of_5000_digits_is_a_malformed_row(tmp_path):
    digits = 5000 * '1'
    write_file(tmp_path / 'train.jsonl', f'{{"text": "a", "mark": {digits}}}\n')
    line = read_error(table_config(tmp_path, columns=('text', '', 'mark')))
    assert line.startswith(f'{tmp_path}/train.jsonl:1: must be a JSON object: Exceeds the limit')
    write_file(tmp_path / 'train.jsonl', f'{{"text": "a", "mark": "{digits}.0"}}\n')
    line = read_error(table_config(tmp_path, columns=('text', '', 'mark')))
    assert line.startswith(
        f"{tmp_path}/train.jsonl:1: 'mark' is '{39 * '1'}, must be one of no, yes"
    )


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (
            {'columns': ('', 'b')},
            "config.data.columns = ('', 'b'): must name the first text, the second text and the class, or the first one or two of them",
        ),
        (
            {'columns': ('0', 'b')},
            "config.data.columns = ('0', 'b'): must be all names, or all numbers from 0",
        ),
        (
            {'labels': ()},
            'config.data.labels = (): must name the classes, or config.data.classes = 0 must be their number if labels are 0, 1, ...',
        ),
        (
            {'classes': 2},
            "config.data.labels = ('no', 'yes'): must name the classes, or config.data.classes = 2 must be their number if labels are 0, 1, ...",
        ),
        ({'labels': ('no', 'no')}, "config.data.labels = ('no', 'no'): must name no class twice"),
        (
            {'files': ('train=train.txt',)},
            '{}/train.txt: must end in .tsv, .csv, .jsonl, .parquet, or .gz of these',
        ),
    ],
)
def test_unclear_columns_or_classes_are_an_error(tmp_path, keys, message):
    write_file(tmp_path / 'train.tsv', table_content('.tsv'))
    write_file(tmp_path / 'train.txt', table_content('.tsv'))
    c = table_config(tmp_path, **keys)
    assert read_error(c, 'train') == message.format(tmp_path)
