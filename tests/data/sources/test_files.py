"""Tests of finding and opening files, locally and in buckets."""

import gzip
import importlib.util
import os
import socket
import subprocess
import sys

import pytest
from helpers.sources import (
    check_error,
    make_config,
    read_error,
    read_texts,
    write_file,
    write_files,
)

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import files
from lightpaff_jax.errors import Unreadable, UserError
from lightpaff_jax.runtime import storage

NAMES = {
    'train': ['train.txt', 'wiki.train.tokens', 'train-00.text', 'ptb_train.raw', 'Train.txt'],
    'validation': ['validation.txt', 'wiki.valid.tokens', 'val.txt', 'dev.txt', 'valid-1.txt'],
    'test': ['test.txt', 'ptb.test.txt', 'test_2016.txt'],
}
NAMES_WITHOUT_SPLIT = [
    'training.txt',
    'contest.txt',
    'train.md',
    'train',
    '.train.txt',
    'README.txt',
]


@pytest.mark.parametrize(
    ('split', 'name'), [(split, name) for split, names in NAMES.items() for name in names]
)
def test_file_name_decides_the_split(tmp_path, split, name):
    write_file(tmp_path / name, 'a text\n')
    assert files.find(make_config('text', tmp_path), text_group) == {split: [tmp_path / name]}


def text_group(name):
    extension = files.extension(name)
    return extension if extension in ('.txt', '.tokens', '.text', '.raw') else None


@pytest.mark.parametrize('name', NAMES_WITHOUT_SPLIT)
def test_file_without_an_alias_belongs_to_no_split(tmp_path, name):
    write_file(tmp_path / name, 'a text\n')
    assert files.find(make_config('text', tmp_path), text_group) == {}


def test_files_of_a_split_are_read_in_sorted_order(tmp_path):
    for i in (2, 0, 1):
        write_file(tmp_path / f'train-{i}.txt', f'text {i}\n')
    assert read_texts(make_config('text', tmp_path)) == ['text 0', 'text 1', 'text 2']


def test_folder_name_decides_the_split(tmp_path):
    write_file(tmp_path / 'train' / 'b.txt', 'second\n')
    write_file(tmp_path / 'train' / 'a.txt', 'first\n')
    write_file(tmp_path / 'train' / 'notes.md', 'no text')
    write_file(tmp_path / 'dev' / 'x.txt', 'other\n')
    c = make_config('text', tmp_path)
    assert read_texts(c) == ['first', 'second']
    assert read_texts(c, 'validation') == ['other']


def test_gz_is_decompressed(tmp_path):
    write_file(tmp_path / 'train.txt.gz', gzip.compress(b'one\n\ntwo\n', mtime=0))
    assert read_texts(make_config('text', tmp_path)) == ['one', 'two']


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            ['train.txt', 'train.txt.gz'],
            'train.txt.gz: must not exist next to train.txt, its other form',
        ),
        (
            ['dev.txt', 'valid.txt'],
            "split 'validation' has dev.txt and valid.txt, config.data.files must name the files to read",
        ),
        (
            ['train.txt', 'train.raw'],
            "split 'train' has train.raw and train.txt, config.data.files must name the files to read",
        ),
        (
            ['train.txt', 'train/a.txt'],
            "split 'train' has a.txt and train.txt, config.data.files must name the files to read",
        ),
        (
            ['train.dev.txt'],
            'train.dev.txt: its name has train and dev, config.data.files must name the files to read',
        ),
    ],
)
def test_ambiguous_files_are_an_error(tmp_path, names, message):
    for name in names:
        write_file(tmp_path / name, 'text\n')
    assert read_error(make_config('text', tmp_path)).endswith(message)


@pytest.mark.parametrize(
    ('patterns', 'expected'),
    [
        (('train=a/*.txt',), ['1', '2']),
        (('train=**/[13].txt',), ['1', '3']),
        (('train=b/3.txt', 'train=a/1.txt'), ['3', '1']),
        (('train={}/b/*',), ['3']),
        (('train=*/*.txt', 'train=a/1.txt'), ['1', '2', '3']),
    ],
)
def test_globs_choose_files_in_their_order(tmp_path, patterns, expected):
    for name in ('a/1', 'a/2', 'b/3'):
        write_file(tmp_path / f'{name}.txt', name[-1])
    write_file(tmp_path / 'train.txt', 'not this one')
    c = make_config('text', tmp_path, files=tuple(pattern.format(tmp_path) for pattern in patterns))
    assert read_texts(c) == expected


@pytest.mark.parametrize(
    ('patterns', 'message'),
    [
        (
            ('trian=*.txt',),
            "config.data.files = 'trian=*.txt': must be SPLIT=GLOB with a SPLIT of train, validation, test; did you mean train?",
        ),
        (
            ('*.txt',),
            "config.data.files = '*.txt': must be SPLIT=GLOB with a SPLIT of train, validation, test",
        ),
        (
            ('train=',),
            "config.data.files = 'train=': must be SPLIT=GLOB with a SPLIT of train, validation, test",
        ),
        (('train=*.csv',), "config.data.files = 'train=*.csv': matches no file in {}"),
        (
            ('train=*.txt', 'test=b.txt'),
            "config.data.files = 'test=b.txt': {}/b.txt is in split 'train' already",
        ),
        (
            ('test=b.txt',),
            "config.data.path = {}: has no split 'train': config.data.files has none",
        ),
    ],
)
def test_malformed_glob_is_an_error(tmp_path, patterns, message):
    write_files(tmp_path, a_txt='1', b_txt='2')
    c = make_config('text', tmp_path, files=patterns)
    assert read_error(c) == message.format(tmp_path)
    assert check_error(c) == message.format(tmp_path)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('none', 'no such folder, must be a folder; config.data.files names files in it'),
        ('file.txt', 'is a file, must be a folder; config.data.files names files in it'),
    ],
)
def test_path_that_is_not_a_folder_is_an_error(tmp_path, name, message):
    write_file(tmp_path / 'file.txt', 'text\n')
    c = make_config('text', tmp_path / name)
    assert check_error(c) == f'config.data.path = {tmp_path}/{name}: {message}'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            gzip.compress(b'a text\n' * 1000, mtime=0)[:40],
            'must be a whole .gz file: Compressed file ended before the end-of-stream marker was reached',
        ),
        (b'a text\n', "must be a whole .gz file: Not a gzipped file (b'a ')"),
        (
            gzip.compress(b'a text\n' * 1000, mtime=0)[:-8] + b'\0' * 8,
            'must be a whole .gz file: CRC check failed',
        ),
        (b'', 'empty corpus, must hold a line'),
    ],
)
def test_damaged_gz_is_an_error(tmp_path, content, message):
    write_file(tmp_path / 'train.txt.gz', content)
    line = read_error(make_config('text', tmp_path))
    assert line.startswith(f'{tmp_path}/train.txt.gz: {message}')


def test_file_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / 'train.txt').mkdir()  # a file without permissions would not do: root may open it
    line = read_error(make_config('text', tmp_path))
    assert line == f'{tmp_path}/train.txt: Is a directory'


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (OSError(5, 'Input/output error'), Unreadable),
        (FileNotFoundError(2, 'No such file or directory'), Unreadable),
        (gzip.BadGzipFile('CRC check failed'), UserError),
        (EOFError('ended'), UserError),
        (OSError('Unexpected end of stream'), UserError),  # raised by pyarrow
    ],
)
def test_unreadable_and_malformed_files_differ_in_error(error, kind):
    with pytest.raises(UserError, match=r'^data/x: ') as caught, files.translate_errors('data/x'):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize('error', [OSError('429'), FileNotFoundError('x'), RuntimeError('closed')])
def test_any_error_of_a_bucket_is_unreadable(error):
    with pytest.raises(Unreadable, match=r'^gs://b/x: '), files.translate_errors('gs://b/x'):
        raise error


# Digests


def digests_and_reads(tmp_path, monkeypatch, names):
    """Returns the digests of files in a folder, and the names of the files that were read."""
    read, raw = [], files._open_stored
    with monkeypatch.context() as patch:
        patch.setattr(files, '_open_stored', lambda file: read.append(file.name) or raw(file))
        digests = files.digests(str(tmp_path / 'cache'), [tmp_path / name for name in names])
    return digests, read


def write_file_at(file, content, time):
    write_file(file, content)
    os.utime(file, ns=(time, time))


OLD_TIME = 10**18


def test_file_is_hashed_again_if_its_size_or_time_changes(tmp_path, monkeypatch):
    for name in ('a', 'b'):
        write_file_at(tmp_path / name, f'text {name}', OLD_TIME)
    first, read = digests_and_reads(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['a', 'b']
    assert digests_and_reads(tmp_path, monkeypatch, ['b', 'a']) == (first[::-1], [])
    write_file_at(tmp_path / 'a', 'other', OLD_TIME)
    second, read = digests_and_reads(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['a']
    assert (second[0] != first[0], second[1]) == (True, first[1])
    write_file_at(tmp_path / 'b', 'TEXT B', OLD_TIME + 1)
    third, read = digests_and_reads(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['b']
    assert (third[0], third[1] != first[1]) == (second[0], True)
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [files.DIGESTS_FILE]


def test_digest_of_a_recently_changed_file_is_not_kept(tmp_path, monkeypatch):
    """A second change can leave its size and its modification time as they are."""
    write_file(tmp_path / 'a', 'one')
    first, _ = digests_and_reads(tmp_path, monkeypatch, ['a'])
    assert digests_and_reads(tmp_path, monkeypatch, ['a']) == (first, ['a'])


@pytest.mark.parametrize('content', ['', '[]', '{"x": 1', '{"%s": 5}'])
def test_malformed_digests_are_computed_again(tmp_path, monkeypatch, content):
    write_file_at(tmp_path / 'a', 'one', OLD_TIME)
    first, _ = digests_and_reads(tmp_path, monkeypatch, ['a'])
    write_file(tmp_path / 'cache' / files.DIGESTS_FILE, content.replace('%s', str(tmp_path / 'a')))
    assert digests_and_reads(tmp_path, monkeypatch, ['a']) == (first, ['a'])
    assert digests_and_reads(tmp_path, monkeypatch, ['a']) == (first, [])


def test_lines_have_numbers_and_no_byte_order_mark(tmp_path):
    write_file(tmp_path / 'x', '\ufeffone\ntwo\r\n\nlast\ufeff')
    lines = list(files.read_lines(tmp_path / 'x', pytest.fail))
    assert lines == [(1, 'one\n'), (2, 'two\n'), (3, '\n'), (4, 'last\ufeff')]


SOURCES_OF_LINES = [  # source, keys, files with the line end \n
    ('text', {}, {'train.txt': 'one\n two \n \n\nthree\nfour'}),
    ('text', {'documents': 'line'}, {'train.raw': 'one\n two \n \n\nthree\n'}),
    ('text', {'documents': 'file'}, {'train.text': 'one\n two \n \n\nthree\n'}),
    ('text', {}, {'train.jsonl': '{"text": "one\\r\\n"}\n\n{"text": "two"}\n'}),
    ('table', {'columns': ('a', '', 'b')}, {'train.tsv': 'a\tb\n\none\t0\ntwo\t1'}),
    ('table', {'columns': ('a', '', 'b')}, {'train.csv': 'a,b\n\n"one",0\ntwo,1\n'}),
    ('sst2', {}, {'train.tsv': 'sentence\tlabel\n"one\t1\ntwo\t0\n'}),
    ('mr', {}, {'rt-polarity.neg': 'one\ntwo\n', 'rt-polarity.pos': 'three'}),
    ('parallel', {'suffixes': ('a', 'b')}, {'train.a': 'one\ntwo', 'train.b': 'un\ndeux\n'}),
]


@pytest.mark.parametrize(('source', 'keys', 'contents'), SOURCES_OF_LINES)
def test_line_ends_do_not_change_the_examples(tmp_path, source, keys, contents):
    keys = keys | ({'classes': 2} if source == 'table' else {})
    examples = []
    for end in ('\n', '\r\n', '\r'):
        for name, content in contents.items():
            write_file(tmp_path / name, '\ufeff' + content.replace('\n', end))
        c = make_config(source, tmp_path, **keys)
        examples.append(list(sources.examples(c, 'train')))
    assert len(examples[0]) >= 1
    assert examples[0] == examples[1] == examples[2]


@pytest.mark.parametrize('mark', ['\v', '\f', '\x1c', '\x1d', '\x1e', '\x85', '\u2028', '\u2029'])
def test_only_line_feeds_and_carriage_returns_end_lines(tmp_path, mark):
    write_file(tmp_path / 'train.txt', f'one{mark}two\n{mark}three')
    c = make_config('text', tmp_path, documents='line')
    assert read_texts(c) == [f'one{mark}two', f'{mark}three']


def test_mixed_line_ends_that_would_shift_pairs_are_refused(tmp_path):
    """Both files have four lines, but a carriage return is inside another line of each."""
    write_files(tmp_path, train_a='1\r1\n2\n3\n', train_b='1\n2\r2\n3\n')
    line = read_error(make_config('parallel', tmp_path, suffixes=('a', 'b')))
    assert line.startswith(
        f'{tmp_path}/train.a:2: lines must all end alike, some end in a carriage'
    )


@pytest.mark.parametrize(
    ('start', 'form'),
    [
        (gzip.compress(b'text\n'), 'a .gz file'),
        (b'PK\x03\x04\x14', 'a .zip or .xlsx file'),
        (b'\xfd7zXZ\0', 'an .xz file'),
        (b'\x28\xb5\x2f\xfd', 'a .zst file'),
        (b'BZh91AY&SY', 'a .bz2 file'),
        (b'PAR1\x15', 'a .parquet file'),
        ('text\n'.encode('utf-16'), 'text in UTF-16'),
        ('\ufefftext\n'.encode('utf-16-be'), 'text in UTF-16'),
    ],
    ids=['gz', 'zip', 'xz', 'zst', 'bz2', 'parquet', 'utf-16', 'utf-16-be'],
)
@pytest.mark.parametrize('on_error', ['stop', 'skip'])
def test_binary_file_is_refused_as_a_whole(tmp_path, start, form, on_error):
    write_file(tmp_path / 'train.txt', start + b'\nvalid text by chance\n')
    line = read_error(make_config('text', tmp_path, on_error=on_error))
    assert line == f'{tmp_path}/train.txt: must be text in UTF-8, begins like {form}'


@pytest.mark.parametrize(
    ('name', 'number'), [('train.txt', 3), ('train.tsv', 3), ('train.csv', 3), ('train.jsonl', 3)]
)
def test_nul_byte_is_refused_or_skipped(tmp_path, name, number):
    row = {'.jsonl': '{{"a": "{}"}}\n'}.get(name[5:], '{}\n')
    write_file(tmp_path / name, ''.join(row.format(x) for x in ('a', 'b', 'c\0', 'd')))
    source = 'text' if name in ('train.txt', 'train.jsonl') else 'table'
    keys = {'documents': 'line'} if name == 'train.txt' else {'columns': ('a',)}
    c = make_config(source, tmp_path, **keys)
    assert read_error(c).startswith(f'{tmp_path}/{name}:{number}: must be text, has a NUL byte')
    c.data.on_error = 'skip'
    assert read_texts(c)[-1] == 'd'
    assert len(read_texts(c)) == (2 if source == 'table' else 3)


def test_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'train.txt')
    assert (
        read_error(make_config('text', tmp_path)) == f'{tmp_path}/train.txt: must be a regular file'
    )


def test_line_that_is_not_utf8_is_reported_or_skipped(tmp_path):
    write_file(tmp_path / 'train.txt', b'good\n\nbad \xe9t\xe9\n\nlast\n')
    c = make_config('text', tmp_path)
    message = f'{tmp_path}/train.txt:3: must be UTF-8, has byte 0xe9: invalid continuation byte'
    hint = " (config.data.on_error = 'skip' skips such rows)"
    assert read_error(c) == message + hint
    c.data.on_error, skipped = 'skip', []
    read = list(sources.examples(c, 'train', skipped.append))
    assert [example.first for example in read] == ['good', 'last']
    assert skipped == [message]


def test_only_buckets_are_checked_for_an_answer(monkeypatch):
    checked = []
    monkeypatch.setattr(storage, 'call_within', lambda *arguments: checked.append(arguments[1]))
    for path in ('/no/such/path', 'data', 'gs://asked_of_a_local_path/x'):
        storage.check_reachable(path)
    storage._reached.discard('asked_of_a_local_path')
    assert checked == ['gs://asked_of_a_local_path/x']


def test_call_within_raises_the_error_of_the_call():
    storage.call_within(10, 'x', lambda: None)
    with pytest.raises(ZeroDivisionError):
        storage.call_within(10, 'x', lambda: 1 / 0)


# Prints the message for a bucket if its extra is not installed or the bucket does not answer.
BUCKET = """
import sys
from lightpaff_jax import config
from lightpaff_jax.runtime import storage
from lightpaff_jax.data import sources
storage.TIMEOUT = float(sys.argv[1])
c = config.default()
c.data.source, c.data.path = 'text', 'gs://bucket/folder'
try:
    sources.check(c)
except config.UserError as error:
    print(error)
"""


def check_bucket(seconds, **environment):
    root = __file__.rpartition('/tests/')[0]
    return subprocess.run(
        [sys.executable, '-c', BUCKET, str(seconds)],
        env=os.environ | {'PYTHONPATH': root} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


GCSFS = importlib.util.find_spec('gcsfs') is not None


@pytest.mark.e2e
@pytest.mark.skipif(GCSFS, reason='needs an environment without gcsfs')
def test_bucket_without_the_extra_is_one_line():
    process = check_bucket(30)
    assert (process.stdout, process.stderr) == (
        'gs://bucket/folder: buckets need the extra gs: ./launch/environment.sh gs\n',
        '',
    )


@pytest.mark.e2e
@pytest.mark.skipif(not GCSFS, reason='needs gcsfs')
def test_bucket_without_an_answer_is_one_line():
    with socket.create_server(('127.0.0.1', 0)) as silent:  # accepts connections and never answers
        host = f'http://127.0.0.1:{silent.getsockname()[1]}'
        process = check_bucket(3, STORAGE_EMULATOR_HOST=host)
    assert process.stdout == 'gs://bucket/folder: cannot be reached within 3 s\n'
    assert process.stderr == ''
