"""Rows equal those of the reference readers (csv, json, pyarrow), or the file is refused by name."""

import csv
import io
import json
import random

import pyarrow
import pytest
from helpers.sources import check_error, make_config, read_error, write_file
from pyarrow import parquet

from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError

HINT = " (config.data.on_error = 'skip' skips such rows)"
COLUMNS = ('text', '', 'label')


def config_of(folder, **keys):
    return make_config('table', folder, **({'columns': COLUMNS, 'classes': 2} | keys))


def read(c):
    return [tuple(example[:3]) for example in sources.examples(c, 'train')]


def to_parquet(columns, metadata=None):
    """Returns the content of a file of arrays or lists."""
    table, sink = pyarrow.table(columns), pyarrow.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


# Quotes


def write_rows(rows, delimiter, **how):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, **how)
    writer.writerow(['text', 'other'])
    writer.writerows(rows)
    return text.getvalue()


def random_rows(draw, alphabet):
    fields = [''.join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(40)]
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [(f'x{a}', f'y{b}') if draw.random() < 0.5 else (a, b) for a, b in pairs]


def expected_rows(content, delimiter, **how):
    """Returns the pairs that the csv module reads, without those of an empty text."""
    reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter, **how)
    return [tuple(row) for row in [*reader][1:] if len(row) == 2 and all(map(str.strip, row))]


@pytest.mark.parametrize(('extension', 'delimiter'), [('.tsv', '\t'), ('.csv', ',')])
@pytest.mark.parametrize('style', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_quoted_fields_equal_those_of_csv(tmp_path, extension, delimiter, style, end):
    for seed in range(10):
        rows = random_rows(random.Random(seed), 'ab "\t\n\r,é\u2028\x0c')
        content = write_rows(rows, delimiter, quoting=style, lineterminator=end)
        write_file(tmp_path / f'train{extension}', content)
        keys = {'columns': ('text', 'other'), 'classes': 0, 'on_error': 'skip'}
        expected = expected_rows(content, delimiter)
        assert len(expected) > 5
        c = config_of(tmp_path, quoting='double', **keys)
        assert [row[:2] for row in read(c)] == expected
        c.data.quoting = 'auto'  # a .tsv is refused, unless its header is quoted too
        if extension == '.csv' or style == csv.QUOTE_ALL:
            assert [row[:2] for row in read(c)] == expected
        else:
            assert 'a field begins with a quote: config.data.quoting must be' in read_error(c)


@pytest.mark.parametrize(('extension', 'delimiter'), [('.tsv', '\t'), ('.csv', ',')])
def test_quotes_without_meaning_equal_those_of_csv(tmp_path, extension, delimiter):
    alphabet = {'.tsv': 'ab ",é', '.csv': 'ab "\té'}[extension]
    for seed in range(10):
        rows = random_rows(random.Random(seed), alphabet)
        content = '\n'.join(delimiter.join(row) for row in [('text', 'other'), *rows])
        write_file(tmp_path / f'train{extension}', content)
        keys = {'columns': ('text', 'other'), 'classes': 0, 'on_error': 'skip'}
        c = config_of(tmp_path, quoting='none', **keys)
        expected = expected_rows(content, delimiter, quoting=csv.QUOTE_NONE)
        assert [row[:2] for row in read(c)] == expected


@pytest.mark.parametrize(
    ('content', 'rows'),
    [
        ('text\tlabel\na "b" c\t1\n', [('a "b" c', '', 1)]),
        ('text\tlabel\nit costs 5"\t1\n', [('it costs 5"', '', 1)]),
        ('"text"\t"label"\n"a ""b"""\t1\n', [('a "b"', '', 1)]),
        ('"text"\t"label"\r\n"a\tb\r\nc"\t"0"\r\n', [('a\tb\r\nc', '', 0)]),
        ('text\tlabel\n"a"\t1\n', 2),
        ('text\tlabel\nfine\t0\n\n"open\t1\n', 4),
        ('text\tlabel\tnote\nfine\t0\t"of a column that is not read\n', 2),
        ('"te""xt"\tlabel\nfine\t1\n', 1),
        ('"text"\tlabel\nfine\t1\n', 1),
    ],
)
def test_tsv_is_refused_if_its_quotes_are_unclear(tmp_path, content, rows):
    write_file(tmp_path / 'train.tsv', content)
    for on_error in ('stop', 'skip'):
        c = config_of(tmp_path, on_error=on_error)
        if isinstance(rows, list):
            assert read(c) == rows
        else:
            start = (
                f'{tmp_path}/train.tsv:{rows}: a field begins with a quote: config.data.quoting '
            )
            assert read_error(c).startswith(start)
    if not isinstance(rows, list):
        c = config_of(tmp_path, columns=('0', '', '1'))  # without a header nothing shows its quotes
        c.data.on_error = 'skip'
        assert 'a field begins with a quote' in read_error(c)


@pytest.mark.parametrize(
    ('name', 'header'),
    [('train.tsv', 'text\tlabel\ttext'), ('train.csv', '\ufefftext,label,text')],
)
def test_column_that_is_named_twice_is_refused(tmp_path, name, header):
    write_file(tmp_path / name, f'{header}\n')
    message = "column 'text' of config.data.columns: must not be there twice"
    assert read_error(config_of(tmp_path)) == f'{tmp_path}/{name}:1: {message}'


@pytest.mark.parametrize('text', ['NA', 'NULL', 'nan', 'None', '-', '#N/A', '007', ' x ', '1e5'])
def test_text_that_others_read_as_missing_stays(tmp_path, text):
    for name, by in (('train.tsv', '\t'), ('train.csv', ',')):
        write_file(tmp_path / name, f'text{by}label\n{text}{by}{text}\n')
        c = config_of(tmp_path, files=(f'train={name}',), classes=0, labels=('other', text))
        assert read(c) == [(text, '', 1)]


# Classes

CLASSES = [  # JSON of the value, config.data.labels, class
    ('true', ('false', 'true'), 1),
    ('false', ('False', 'True'), 0),
    ('true', ('0', '1'), 1),
    ('1', ('0', '1'), 1),
    ('1.0', ('0', '1'), 1),
    ('-1.0', ('-1', '1'), 0),
    ('"1.0"', ('0', '1'), 1),
    ('"1.00"', ('0', '1'), 1),
    ('"1.0"', ('1', '1.0'), 1),
    ('0.5', ('0', '0.5'), 1),
    ('"01"', ('0', '1', '01'), 2),
    ('"very good"', ('bad', 'very good'), 1),
    ('12345678901234567890', ('0', '12345678901234567890'), 1),
    ('"01"', ('0', '1'), "is '01', must be one of 0, 1; did you mean 1?"),
    ('"True"', ('false', 'true'), "is 'True', must be one of false, true; did you mean true?"),
    ('true', ('no', 'yes'), "is 'true', must be one of no, yes"),
    ('1.5', ('0', '1'), "is '1.5', must be one of 0, 1; did you mean 1?"),
    ('NaN', ('0', '1'), "is 'nan', must be one of 0, 1"),
    ('-1', ('0', '1'), "is '-1', must be one of 0, 1; did you mean 1?"),
    ('"good "', ('bad', 'good'), "is 'good ', must be one of bad, good; did you mean good?"),
    ('null', ('None', 'null'), 'is None, must be one of None, null'),
    ('[1]', ('0', '[1]'), 'is [1], must be one of 0, [1]'),
    ('{"a": 1}', ('0', '1'), "is {'a': 1}, must be one of 0, 1"),
]


@pytest.mark.parametrize(('value', 'labels', 'label'), CLASSES)
def test_class_is_found_by_its_name(tmp_path, value, labels, label):
    write_file(tmp_path / 'train.jsonl', f'{{"text": "a", "label": {value}}}\n')
    c = config_of(tmp_path, labels=labels, classes=0)
    if isinstance(label, int):
        assert read(c) == [('a', '', label)]
    else:
        assert read_error(c) == f"{tmp_path}/train.jsonl:1: 'label' {label}{HINT}"


# JSON lines


@pytest.mark.parametrize(
    ('row', 'columns', 'result'),
    [
        ('{"a": {"b": {"c": "x"}}}', ('a.b.c',), 'x'),
        ('{"a.b": {"c": "x"}}', ('a.b.c',), 'x'),
        ('{"a": {"b.c": "x"}}', ('a.b.c',), 'x'),
        ('{"a.b.c": "x", "a": 5}', ('a.b.c',), 'x'),
        ('{"t": "\\r\\n\\u2028\\u0000 x"}', ('t',), '\r\n\u2028\0 x'),
        ('{"t": "\\ud83d\\ude00", "other": NaN}', ('t',), '😀'),
        ('{"a.b": "x", "a": {"b": "y"}}', ('a.b',), ":1: 2 'a.b' of config.data.columns"),
        ('{"a": {"b": "x"}}', ('a.c',), ":1: no 'a.c' of config.data.columns"),
        ('{"a": [{"b": "x"}]}', ('a.b',), ":1: no 'a.b' of config.data.columns"),
        ('{"a": {"b": "x"}}', ('a',), ":1: 'a' must be text, is {'b': 'x'}"),
        ('{"t": true}', ('t',), ":1: 't' must be text, is True"),
        ('{"t": "x", "t": "y"}', ('t',), ":1: must be a JSON object: has 't' twice"),
        ('{"t": "x", "o": {"u": 1, "u": 1}}', ('t',), ":1: must be a JSON object: has 'u' twice"),
        ('{"t": "x"} {"t": "y"}', ('t',), ':1: must be a JSON object: Extra data: '),
        ('{"t": "x", "n": 1' + '0' * 5000 + '}', ('t',), ':1: must be a JSON object: Exceeds '),
        ('[' * 100_000, ('t',), ':1: must be a JSON object a line, is an array'),
        ('{"t":' * 100_000, ('t',), ':1: must be a JSON object: '),
        ('[{"t": "x"}]', ('t',), ':1: must be a JSON object a line, is an array'),
        ('\ufeff{"t": "x"}', ('t',), 'x'),
    ],
)
def test_json_row_is_read_or_refused(tmp_path, row, columns, result):
    write_file(tmp_path / 'train.jsonl', f'{row}\n')
    c = make_config('text', tmp_path, columns=columns)
    if result.startswith(':1: '):
        assert read_error(c).startswith(f'{tmp_path}/train.jsonl{result}')
    else:
        assert [example.first for example in sources.examples(c, 'train')] == [result]


def test_json_array_of_lines_is_refused_as_a_whole(tmp_path):
    """Its last row has no comma, so it would be read alone."""
    write_file(tmp_path / 'train.jsonl', '\n [\n{"text": "a"},\n{"text": "b"}\n]\n')
    c = make_config('text', tmp_path, on_error='skip')
    line = f'{tmp_path}/train.jsonl:2: must be a JSON object a line, is an array'
    assert read_error(c) == line


# Parquet


def nested(rows):
    return pyarrow.array(rows, pyarrow.struct([('en', pyarrow.string()), ('de', pyarrow.string())]))


ONE = pyarrow.array(['one'])
PARQUET = [  # columns of the file, config.data.columns, rows or message
    ({'t': pyarrow.array(['x', 'x']).dictionary_encode()}, ('t',), ['x', 'x']),
    ({'t': pyarrow.array(['x'], pyarrow.large_string())}, ('t',), ['x']),
    ({'t': pyarrow.array(['x'], pyarrow.string_view())}, ('t',), ['x']),
    ({'a': nested([{'en': 'x', 'de': 'y'}])}, ('a.de',), ['y']),
    ({'a': nested([{'en': 'x', 'de': 'y'}]), 'a.de': ONE}, ('a.en',), ['x']),
    ({'a.en': ONE}, ('a.en',), ['one']),
    ({'a': nested([None])}, ('a.en',), ":1: 'a.en' must be text, is None"),
    ({'a': nested([{'en': None, 'de': 'y'}])}, ('a.en',), ":1: 'a.en' must be text, is None"),
    (
        {'a': nested([{'en': 'x', 'de': 'y'}]), 'a.en': ONE},
        ('a.en',),
        ": 2 column 'a.en' of config.data.columns: has 'a', 'a.en', 'a.de'",
    ),
    ({'t': pyarrow.array([b'x'])}, ('t',), ":1: 't' must be text, is b'x'"),
    ({'t': pyarrow.array([1])}, ('t',), ":1: 't' must be text, is 1"),
    ({'t': pyarrow.array([['x']])}, ('t.item',), ": no column 't.item' of config.data.columns"),
]


@pytest.mark.parametrize(('columns', 'names', 'result'), PARQUET)
def test_parquet_column_is_read_or_refused(tmp_path, columns, names, result):
    write_file(tmp_path / 'train.parquet', to_parquet(columns))
    c = make_config('text', tmp_path, columns=names)
    if isinstance(result, list):
        assert [example.first for example in sources.examples(c, 'train')] == result
    else:
        assert read_error(c).startswith(f'{tmp_path}/train.parquet{result}')


def test_parquet_column_that_is_named_twice_is_refused(tmp_path):
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_arrays([ONE, ONE], ['t', 't']), sink)
    write_file(tmp_path / 'train.parquet', sink.getvalue().to_pybytes())
    line = read_error(make_config('text', tmp_path, columns=('t',)))
    assert line == f"{tmp_path}/train.parquet: 2 column 't' of config.data.columns: has 't'"


def test_parquet_text_that_is_not_utf8_is_a_malformed_row(tmp_path):
    data = pyarrow.py_buffer(b'onet\xffwo')
    offsets = pyarrow.py_buffer(b''.join(n.to_bytes(4, 'little') for n in (0, 3, 7)))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])
    write_file(tmp_path / 'train.parquet', to_parquet({'text': column}))
    c = make_config('text', tmp_path)
    assert read_error(c) == f"{tmp_path}/train.parquet:2: 'text' must be UTF-8{HINT}"
    c.data.on_error = 'skip'
    assert [example.first for example in sources.examples(c, 'train')] == ['one']


def test_damaged_parquet_page_with_a_checksum_is_an_error(tmp_path):
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({'text': ['a text of a page'] * 3})
    keys = {'compression': 'none', 'use_dictionary': False, 'write_page_checksum': True}
    parquet.write_table(table, sink, **keys)
    content = sink.getvalue().to_pybytes()
    write_file(tmp_path / 'train.parquet', content.replace(b'a text', b'a test'))
    line = read_error(make_config('text', tmp_path))
    assert line.startswith(f'{tmp_path}/train.parquet: could not verify page integrity')


def test_parquet_metadata_that_is_not_utf8_is_an_error(tmp_path):
    content = to_parquet({'text': ['a'], 'other': ['b']}).replace(b'other', b'\xffther')
    write_file(tmp_path / 'train.parquet', content)
    line = read_error(make_config('text', tmp_path))
    assert line.startswith(f'{tmp_path}/train.parquet: must be a whole Parquet file: ')


def class_metadata(names):
    """Returns the metadata that the library `datasets` writes for a column of classes."""
    features = {'label': {'names': names, '_type': 'ClassLabel'}, 'text': {'_type': 'Value'}}
    return {'huggingface': json.dumps({'info': {'features': features}})}


@pytest.mark.parametrize(
    ('names', 'keys', 'result'),
    [
        (['neg', 'pos'], {'labels': ('neg', 'pos')}, [0, 1]),
        (['neg', 'pos'], {'labels': ('pos', 'neg')}, [1, 0]),
        (['neg', 'pos'], {'classes': 2}, [0, 1]),
        (['1', '0'], {'labels': ('0', '1')}, [1, 0]),
        (['neg', 'pos'], {'labels': ('neg', 'positive')}, 'neg, positive'),
        (['neg', 'pos'], {'classes': 3}, '0, 1, 2'),
    ],
)
def test_class_names_in_parquet_metadata_decide(tmp_path, names, keys, result):
    content = to_parquet({'text': ['a', 'b'], 'label': [0, 1]}, class_metadata(names))
    write_file(tmp_path / 'train.parquet', content)
    c = config_of(tmp_path, **{'classes': 0, **keys})
    if isinstance(result, list):
        assert [label for _, _, label in read(c)] == result
    else:
        message = (
            f"the classes of column 'label' are neg, pos, those of the configuration {result}, "
            'must be the same'
        )
        assert read_error(c) == f'{tmp_path}/train.parquet: {message}'


def test_class_names_are_those_of_the_configuration_or_of_all_files(tmp_path):
    for split, names in (
        ('train', ['neg', 'pos']),
        ('dev', ['neg', 'pos']),
        ('test', ['pos', 'neg']),
    ):
        content = to_parquet({'text': ['a', 'b'], 'label': [0, 1]}, class_metadata(names))
        write_file(tmp_path / f'{split}.parquet', content)
    c = config_of(tmp_path)
    assert check_error(c) == (
        f'config.data.labels = (): must name the classes, which are neg, pos in {tmp_path}/'
        f'train.parquet, pos, neg in {tmp_path}/test.parquet'
    )
    c.data.labels, c.data.classes = ('pos', 'neg'), 0
    sources.check(c)
    assert sources.class_names(c) == ('pos', 'neg')
    assert [label for _, _, label in read(c)] == [1, 0]
    c = config_of(tmp_path, files=('train=train.parquet',))
    assert sources.class_names(c) == ('neg', 'pos')
    c.data.labels, c.data.classes = ('0', '1'), 0
    assert sources.class_names(c) == ()


def test_number_without_a_class_name_is_a_malformed_row(tmp_path):
    content = to_parquet({'text': ['a', 'b'], 'label': [0, -1]}, class_metadata(['neg', 'pos']))
    write_file(tmp_path / 'train.parquet', content)
    line = read_error(config_of(tmp_path, labels=('neg', 'pos'), classes=0))
    assert line == f"{tmp_path}/train.parquet:2: 'label' is '-1', must be one of neg, pos{HINT}"


# Damage

ROWS = [{'text': f'text {n} é', 'label': n % 2} for n in range(20)]
CONTENTS = {
    'train.tsv': 'text\tlabel\n' + ''.join(f'{r["text"]}\t{r["label"]}\n' for r in ROWS),
    'train.csv': 'text,label\n' + ''.join(f'"{r["text"]}",{r["label"]}\n' for r in ROWS),
    'train.jsonl': ''.join(json.dumps(row) + '\n' for row in ROWS),
    'train.parquet': to_parquet({name: [row[name] for row in ROWS] for name in ROWS[0]}),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_damaged_file_raises_only_user_errors(tmp_path, name):
    content = CONTENTS[name]
    content = content.encode() if isinstance(content, str) else content
    outcomes, c = set(), config_of(tmp_path)
    for seed in range(200):
        draw = random.Random(seed)
        data = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                del data[at : at + draw.randint(1, 9)]
            elif kind == 2:
                data[at:at] = draw.choice([b'"', b'\n', b'\r', b'\0', b'\xff', b'\t', b'{', b','])
            else:
                data = data[: at + 1]
        write_file(tmp_path / name, bytes(data))
        c.data.on_error = draw.choice(['stop', 'skip'])
        try:
            outcomes.add(f'{len(read(c)) == len(ROWS)}')
        except UserError as error:
            outcomes.add(str(error))
    assert len(outcomes) > 10
    assert all('\n' not in outcome for outcome in outcomes)
