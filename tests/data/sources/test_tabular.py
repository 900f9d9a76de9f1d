"""Claims about rows of tables, and about the layouts of GLUE."""

import gzip
import json

import pyarrow
import pytest
from helpers import sources as source_cases
from helpers.sources import make_config, write_file
from pyarrow import parquet

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, files

COLUMNS = ('text', 'other', 'mark')
HINT = " (config.data.on_error = 'skip' leaves such rows out)"
ROWS = [('a good one', 'why "so" ?', 'yes'), ('two,\twords ä', '', 'no'), ('"three"', 'x', 'yes')]
WANT = [
    Example('a good one', 'why "so" ?', 1), Example('two,\twords ä', '', 0), Example('"three"', 'x', 1),
]  # fmt: skip


def table(path, **keys):
    return make_config('table', path, **({'columns': COLUMNS, 'labels': ('no', 'yes')} | keys))


def content(extension, rows=ROWS):
    """A file of COLUMNS and one more, which nobody reads."""
    if extension == '.tsv':
        rows = [(a.replace('\t', ' '), b, c) for a, b, c in rows]
        return 'id\ttext\tother\tmark\n' + ''.join(f'7\t{a}\t{b}\t{c}\n' for a, b, c in rows)
    if extension == '.csv':
        quoted = [[one.replace('"', '""') for one in row] for row in rows]
        return 'id,text,other,mark\r\n' + ''.join(f'7,"{a}","{b}",{c}\r\n' for a, b, c in quoted)
    if extension == '.jsonl':
        return ''.join(json.dumps({'mark': c, 'text': a, 'other': b}) + '\n' for a, b, c in rows)
    sink = pyarrow.BufferOutputStream()
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    parquet.write_table(pyarrow.table({name: list(v) for name, v in columns.items()}), sink)
    return sink.getvalue().to_pybytes()


EXTENSIONS = pytest.mark.parametrize('extension', ['.tsv', '.csv', '.jsonl', '.parquet'])


@EXTENSIONS
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path, extension):
    write_file(tmp_path / f'train{extension}', content(extension))
    want = (
        [e._replace(first=e.first.replace('\t', ' ')) for e in WANT]
        if extension == '.tsv'
        else WANT
    )
    assert list(sources.examples(table(tmp_path), 'train')) == want


@pytest.mark.parametrize('extension', ['.tsv', '.csv', '.jsonl'])
def test_packed_tables_are_read(tmp_path, extension):
    write_file(
        tmp_path / f'train{extension}.gz', gzip.compress(content(extension, ROWS[:1]).encode())
    )
    assert list(sources.examples(table(tmp_path), 'train')) == WANT[:1]


@EXTENSIONS
@pytest.mark.parametrize(
    ('columns', 'want'),
    [
        (('text',), Example('a good one')),
        (('other', 'text'), Example('why "so" ?', 'a good one')),
        (('text', '', 'mark'), Example('a good one', '', 1)),
    ],
)
def test_the_columns_say_what_an_example_is(tmp_path, extension, columns, want):
    write_file(tmp_path / f'train{extension}', content(extension, ROWS[:1]))
    labels = ('no', 'yes') if len(columns) == 3 else ()
    c = table(tmp_path, columns=columns, labels=labels)
    assert list(sources.examples(c, 'train')) == [want]
    assert sources.classes(c) == len(labels)


@pytest.mark.parametrize(('extension', 'by'), [('.tsv', '\t'), ('.csv', ',')])
def test_numbers_name_columns_where_there_is_no_header(tmp_path, extension, by):
    write_file(tmp_path / f'train{extension}', f'0{by}a b{by}1\n1{by}c d{by}0\n')
    c = table(tmp_path, columns=('1', '', '0'), labels=(), classes=2)
    assert list(sources.examples(c, 'train')) == [Example('a b', '', 0), Example('c d', '', 1)]
    assert sources.classes(c) == 2


def test_a_csv_field_may_hold_lines_and_errors_name_its_first(tmp_path):
    write_file(tmp_path / 'train.csv', 'text\n"one\ntwo"\n"three\n\nfour",5\n')
    line = source_cases.read_error(table(tmp_path, columns=('text',), labels=()))
    assert line == f'{tmp_path}/train.csv:4: has 2 columns, must have 1 as the first line has{HINT}'
    write_file(tmp_path / 'train.csv', 'text\n"one\ntwo"\n')
    c = table(tmp_path, columns=('text',), labels=())
    assert source_cases.read_texts(c) == ['one\ntwo']


# What a row holds, as .tsv (header text, mark) and as .jsonl, and what is said of it.
LABEL = "'mark' is 'yess', must be one of no, yes; did you mean yes?"
BAD = [
    ('.tsv', 'a b\tyess', LABEL),
    ('.tsv', 'a b', 'has 1 column, must have 2 as the first line has'),
    ('.tsv', 'a\tb\tyes', 'has 3 columns, must have 2 as the first line has'),
    ('.tsv', '', 'has 1 column, must have 2 as the first line has'),
    ('.tsv', ' \tyes', "'text' is empty"),
    ('.tsv', b'caf\xe9\tyes', 'must be UTF-8, has byte 0xe9: invalid continuation byte'),
    ('.csv', 'a b,yess', LABEL),
    ('.csv', 'a b', 'has 1 column, must have 2 as the first line has'),
    ('.csv', '"a" b,yes', "must be CSV as defined by RFC 4180: ',' expected after '\"'"),
    ('.csv', '"",yes', "'text' is empty"),
    ('.csv', b'caf\xe9,yes', "'text' must be UTF-8"),
    ('.jsonl', '{"text": "a b", "mark": "yess"}', LABEL),
    ('.jsonl', '{"text": "a b", "mark"', "must be a JSON object: Expecting ':' delimiter: line 1 column 23 (char 22)"),
    ('.jsonl', '["a b", "yes"]', "must be a JSON object, is '[\"a b\", \"yes\"]'"),
    ('.jsonl', '{"txt": "a b", "mark": "yes"}', "no 'text' of config.data.columns; did you mean txt?"),
    ('.jsonl', '{"text": 5, "mark": "yes"}', "'text' must be text, is 5"),
    ('.jsonl', '{"text": null, "mark": "yes"}', "'text' must be text, is None"),
    ('.jsonl', r'{"text": "half \ud800", "mark": "yes"}', "'text' must be UTF-8"),
    ('.jsonl', '{"text": "", "mark": "yes"}', "'text' is empty"),
    ('.jsonl', b'{"text": "caf\xe9", "mark": "yes"}', 'must be UTF-8, has byte 0xe9: invalid continuation byte'),
]  # fmt: skip
GOOD = {
    '.tsv': (b'text\tmark\n', b'fine\tno\n'),
    '.csv': (b'text,mark\n', b'fine,no\n'),
    '.jsonl': (b'', b'{"text": "fine", "mark": "no"}\n'),
}


@pytest.mark.parametrize(('extension', 'row', 'said'), BAD)
def test_a_malformed_row_is_named_or_skipped_and_told(tmp_path, extension, row, said):
    header, fine = GOOD[extension]
    row = row if isinstance(row, bytes) else row.encode()
    write_file(tmp_path / f'train{extension}', header + fine + row + b'\n' + fine)
    c = table(tmp_path, columns=('text', '', 'mark'))
    line = f'{tmp_path}/train{extension}:{2 + bool(header)}: {said}'
    assert source_cases.read_error(c) == line + HINT
    c.data.on_error, skipped = 'skip', []
    read = list(sources.examples(c, 'train', skipped.append))
    assert read == [Example('fine', '', 0)] * 2
    assert skipped == [line]


def test_a_row_of_a_parquet_is_named_by_its_number(tmp_path):
    write_file(tmp_path / 'train.parquet', content('.parquet', [*ROWS, ('', '', 'no')]))
    line = source_cases.read_error(table(tmp_path))
    assert line == f"{tmp_path}/train.parquet:4: 'text' is empty{HINT}"


def test_an_empty_target_is_an_error_and_an_empty_second_text_of_a_class_is_none(tmp_path):
    write_file(tmp_path / 'train.tsv', 'text\tother\tmark\na\t\tyes\n')
    assert list(sources.examples(table(tmp_path), 'train')) == [Example('a', '', 1)]
    line = source_cases.read_error(table(tmp_path, columns=('text', 'other'), labels=()))
    assert line == f"{tmp_path}/train.tsv:2: 'other' is empty{HINT}"


def test_a_table_of_malformed_rows_alone_is_an_empty_corpus(tmp_path):
    write_file(tmp_path / 'train.tsv', 'text\tmark\na\tb\n')
    c = table(tmp_path, columns=('text', '', 'mark'), on_error='skip')
    said = f"config.data.path = {tmp_path}: empty corpus, no example of split 'train'"
    assert source_cases.read_error(c) == said


@pytest.mark.parametrize(
    ('extension', 'damage', 'said'),
    [
        ('.tsv', lambda data: b'', 'empty corpus, must hold a line'),
        ('.tsv', lambda data: b'text\tother\tmark\n', 'empty corpus, must hold a row'),
        ('.csv', lambda data: b'text,other,mark\n', 'empty corpus, must hold a row'),
        ('.jsonl', lambda data: b'', 'empty corpus, must hold a line'),
        ('.parquet', lambda data: data[:-5], 'must be a whole Parquet file: Parquet magic bytes not found in footer.'),
        ('.parquet', lambda data: data[:6], 'must be a whole Parquet file: Parquet file size is 6 bytes, smaller than the minimum file footer (8 bytes)'),
        ('.parquet', lambda data: b'', 'must be a whole Parquet file: Parquet file size is 0 bytes'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, extension, damage, said):
    data = content(extension)
    data = data.encode() if isinstance(data, str) else data
    write_file(tmp_path / f'train{extension}', damage(data))
    line = source_cases.read_error(table(tmp_path))
    assert line.startswith(f'{tmp_path}/train{extension}: {said}')


@EXTENSIONS
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path, extension):
    for split in ('train', 'dev', 'test'):
        write_file(tmp_path / f'{split}{extension}', content(extension))
    c = table(tmp_path, columns=('texts', '', 'mark'))
    line = source_cases.read_error(c)
    assert line.startswith(f'{tmp_path}/train{extension}:')
    assert "no column 'texts' of config.data.columns: has " in line or extension == '.jsonl'
    assert '; did you mean text?' in line
    assert source_cases.check_error(c) == line


# What every row of a file is, and what its check says with the place where it is.
ALL_BAD = [
    ('.jsonl', ('texts', '', 'mark'), '{"text": "a b", "mark": "yes"}\n', "1: no 'texts' of config.data.columns; did you mean text?"),
    ('.jsonl', ('0', '', '1'), '{"text": "a b", "mark": "yes"}\n', "1: no '0' of config.data.columns"),
    ('.jsonl', ('text', '', 'mark'), 'a b\tyes\n', '1: must be a JSON object: Expecting value: line 1 column 1 (char 0)'),
    ('.jsonl', ('text', '', 'mark'), b'\xff\n', '1: must be UTF-8, has byte 0xff: invalid start byte'),
    ('.tsv', ('text', '', 'mark'), 'a b\n', '2: has 1 column, must have 2 as the first line has'),
    ('.csv', ('text', '', 'mark'), 'a,b,yes\n', '2: has 3 columns, must have 2 as the first line has'),
]  # fmt: skip


@pytest.mark.parametrize(('extension', 'columns', 'row', 'said'), ALL_BAD)
def test_a_check_names_what_is_wrong_with_the_first_row(tmp_path, extension, columns, row, said):
    row = row if isinstance(row, bytes) else row.encode()
    for split in ('train', 'dev', 'test'):
        write_file(tmp_path / f'{split}{extension}', GOOD[extension][0] + 9 * row)
    c = table(tmp_path, columns=columns)
    assert source_cases.check_error(c) == f'{tmp_path}/train{extension}:{said}{HINT}'
    if extension == '.jsonl' and columns[0] != 'text':
        text = make_config('text', tmp_path, columns=columns[:1])
        assert source_cases.check_error(text) == f'{tmp_path}/train{extension}:{said}{HINT}'
    c.data.on_error = 'skip'
    sources.check(c)
    assert 'empty corpus, no example of' in source_cases.read_error(c)


@pytest.mark.parametrize(('extension', 'columns', 'row', 'said'), ALL_BAD)
def test_a_check_that_skips_rows_reads_no_more_than_the_first(
    tmp_path, monkeypatch, extension, columns, row, said
):
    row = row if isinstance(row, bytes) else row.encode()
    write_file(tmp_path / f'train{extension}', GOOD[extension][0] + 9000 * row)
    c = table(tmp_path, columns=columns, on_error='skip', held_out=0.1)
    lines, whole = [], files.read_lines

    def read(file, fault):
        for number, line in whole(file, fault):
            lines.append(number)
            yield number, line

    monkeypatch.setattr(files, 'read_lines', read)
    sources.check(c)
    assert len(lines) < 200


@pytest.mark.parametrize('extension', ['.csv', '.jsonl'])
def test_blank_lines_are_no_rows(tmp_path, extension):
    header, fine = GOOD[extension]
    write_file(tmp_path / f'train{extension}', b'\n' + header + fine + b'\n\r\n' + fine + b'\n')
    c = table(tmp_path, columns=('text', '', 'mark'))
    assert list(sources.examples(c, 'train')) == [Example('fine', '', 0)] * 2


def test_a_quote_that_is_not_closed_says_how_many_lines_it_takes_and_each_counts(tmp_path):
    write_file(tmp_path / 'train.csv', 'text,mark\nfine,no\n"open,no\n' + 5 * 'fine,no\n')
    c = table(tmp_path, columns=('text', '', 'mark'))
    line = (
        f'{tmp_path}/train.csv:3: must be CSV as defined by RFC 4180: unexpected end of data; '
        'its quote that is not closed takes 6 lines'
    )
    assert source_cases.read_error(c) == line + HINT
    c.data.on_error, skipped = 'skip', []
    assert list(sources.examples(c, 'train', skipped.append)) == [Example('fine', '', 0)]
    assert skipped[:2] == [line, f'{tmp_path}/train.csv:4: is lost in the malformed row of line 3']
    assert len(skipped) == 6


def test_a_number_above_the_columns_is_named(tmp_path):
    write_file(tmp_path / 'train.tsv', 'a\tb\n')
    line = source_cases.read_error(table(tmp_path, columns=('2',), labels=()))
    assert line == (
        f"{tmp_path}/train.tsv:1: no column '2' of config.data.columns: has 2 columns, numbered from 0"
    )


@pytest.mark.parametrize(
    ('keys', 'said'),
    [
        ({'columns': ('', 'b')}, "config.data.columns = ('', 'b'): must name the first text, the second text and the class, or the first one or two of them"),
        ({'columns': ('0', 'b')}, "config.data.columns = ('0', 'b'): must be all names, or all numbers from 0"),
        ({'labels': ()}, 'config.data.labels = (): must name the classes, or config.data.classes = 0 must be their number if labels are 0, 1, ...'),
        ({'classes': 2}, "config.data.labels = ('no', 'yes'): must name the classes, or config.data.classes = 2 must be their number if labels are 0, 1, ..."),
        ({'labels': ('no', 'no')}, "config.data.labels = ('no', 'no'): must name no class twice"),
        ({'files': ('train=train.txt',)}, '{}/train.txt: must end in .tsv, .csv, .jsonl, .parquet, or .gz of these'),
    ],
)  # fmt: skip
def test_columns_and_classes_that_are_not_clear_are_named(tmp_path, keys, said):
    write_file(tmp_path / 'train.tsv', content('.tsv'))
    write_file(tmp_path / 'train.txt', content('.tsv'))
    c = table(tmp_path, **keys)
    assert source_cases.read_error(c, 'train') == said.format(tmp_path)


# GLUE


def glue(folder, **contents):
    for name, text in contents.items():
        stem, _, extension = name.rpartition('_')
        write_file(folder / f'{stem}.{extension}', text.replace('|', '\t'))
    return folder


SST2 = 'sentence|label\nit "works|1\nfails , badly|0\n'
QQP = 'id|qid1|qid2|question1|question2|is_duplicate\n0|1|2|why ?|how "so ?|1\n'
MRPC = '\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String\r\n1|5|6|He said "no|She said no\r\n'
UNLABELLED = {
    'sst2': 'index|sentence\n0|what is it\n',
    'qqp': 'id|question1|question2\n0|why|how\n',
    'mrpc': 'index|#1 ID|#2 ID|#1 String|#2 String\n0|1|2|why|how\n',
}


@pytest.mark.parametrize(
    ('source', 'text', 'want'),
    [
        ('sst2', SST2, [Example('it "works', '', 1), Example('fails , badly', '', 0)]),
        ('qqp', QQP, [Example('why ?', 'how "so ?', 1)]),
        ('mrpc', MRPC, [Example('He said "no', 'She said no', 1)]),
    ],
)
def test_glue_is_read_without_quotes_and_its_test_without_labels_is_none(
    tmp_path, source, text, want
):
    glue(tmp_path, train_tsv=text, dev_tsv=text, test_tsv=UNLABELLED[source], dev_ids_tsv='1\n')
    c = make_config(source, tmp_path)
    for split in ('train', 'validation'):
        assert list(sources.examples(c, split)) == want
    line = source_cases.check_error(c)
    assert line.startswith(f"config.data.path = {tmp_path}: has no split 'test': looked for a .tsv")
    c.data.held_out = 0.01
    assert list(sources.examples(c, 'test')) == want
    assert sources.classes(c) == 2
    glue(tmp_path, test_tsv=text)
    c.data.held_out = 0.0
    assert list(sources.examples(c, 'test')) == want


def test_mrpc_is_read_from_the_files_of_its_release_too(tmp_path):
    other = MRPC.replace('He', 'It')
    glue(tmp_path, msr_paraphrase_train_txt=MRPC, msr_paraphrase_test_txt=other)
    c = make_config('mrpc', tmp_path)
    assert source_cases.read_texts(c) == ['He said "no']
    assert source_cases.read_texts(c, 'test') == ['It said "no']
    assert "has no split 'validation'" in source_cases.check_error(c)


def test_rows_of_mrpc_that_are_for_validation_are_not_in_train(tmp_path):
    """GLUE's train.tsv and dev.tsv are two parts of msr_paraphrase_train.txt."""
    texts = {name: MRPC.replace('He', name) for name in ('train', 'dev', 'both', 'last')}
    glue(
        tmp_path, train_tsv=texts['train'], dev_tsv=texts['dev'], test_tsv=UNLABELLED['mrpc'],
        msr_paraphrase_train_txt=texts['both'], msr_paraphrase_test_txt=texts['last'],
    )  # fmt: skip
    c = make_config('mrpc', tmp_path)
    found = [source_cases.read_texts(c, split)[0].split()[0] for split in sources.SPLITS]
    assert found == ['train', 'dev', 'last']
    (tmp_path / 'train.tsv').unlink()
    assert "has no split 'train'" in source_cases.check_error(c)


def test_a_label_that_glue_does_not_have_is_named(tmp_path):
    glue(tmp_path, train_tsv='sentence|label\nfine|2\n')
    line = source_cases.read_error(make_config('sst2', tmp_path))
    assert line == f"{tmp_path}/train.tsv:2: 'label' is '2', must be one of 0, 1{HINT}"


def test_a_header_of_another_set_is_named(tmp_path):
    glue(tmp_path, train_tsv=SST2, dev_tsv=SST2, test_tsv=SST2)
    c = make_config('qqp', tmp_path, held_out=0.1)
    assert source_cases.check_error(c) == (
        f"{tmp_path}/train.tsv:1: no column 'question1' of source 'qqp': has 'sentence', 'label'"
    )
