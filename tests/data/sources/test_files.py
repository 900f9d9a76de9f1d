"""Claims about finding and opening files, here and in buckets."""

import gzip
import importlib.util
import os
import socket
import subprocess
import sys

import pytest
from helpers import sources as source_cases
from helpers.sources import make_config, read_texts, write_file, write_files

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import files
from lightpaff_jax.errors import Unreadable, UserError
from lightpaff_jax.runtime import storage

NAMES = {
    'train': ['train.txt', 'wiki.train.tokens', 'train-00.text', 'ptb_train.raw', 'Train.txt'],
    'validation': ['validation.txt', 'wiki.valid.tokens', 'val.txt', 'dev.txt', 'valid-1.txt'],
    'test': ['test.txt', 'ptb.test.txt', 'test_2016.txt'],
}
OTHERS = ['training.txt', 'contest.txt', 'train.md', 'train', '.train.txt', 'README.txt']


@pytest.mark.parametrize(
    ('split', 'name'), [(split, name) for split, names in NAMES.items() for name in names]
)
def test_a_file_belongs_to_the_split_that_its_name_has_a_part_of(tmp_path, split, name):
    write_file(tmp_path / name, 'a text\n')
    assert files.find(make_config('text', tmp_path), _text) == {split: [tmp_path / name]}


def _text(name):
    return (
        files.extension(name)
        if files.extension(name) in ('.txt', '.tokens', '.text', '.raw')
        else None
    )


@pytest.mark.parametrize('name', OTHERS)
def test_other_files_belong_to_no_split(tmp_path, name):
    write_file(tmp_path / name, 'a text\n')
    assert files.find(make_config('text', tmp_path), _text) == {}


def test_several_files_of_a_split_are_read_in_sorted_order(tmp_path):
    for i in (2, 0, 1):
        write_file(tmp_path / f'train-{i}.txt', f'text {i}\n')
    assert read_texts(make_config('text', tmp_path)) == ['text 0', 'text 1', 'text 2']


def test_a_folder_of_the_name_of_a_split_holds_its_files(tmp_path):
    write_file(tmp_path / 'train' / 'b.txt', 'second\n')
    write_file(tmp_path / 'train' / 'a.txt', 'first\n')
    write_file(tmp_path / 'train' / 'notes.md', 'no text')
    write_file(tmp_path / 'dev' / 'x.txt', 'other\n')
    c = make_config('text', tmp_path)
    assert read_texts(c) == ['first', 'second']
    assert read_texts(c, 'validation') == ['other']


def test_gz_is_read_as_what_it_packs(tmp_path):
    write_file(tmp_path / 'train.txt.gz', gzip.compress(b'one\n\ntwo\n', mtime=0))
    assert read_texts(make_config('text', tmp_path)) == ['one', 'two']


@pytest.mark.parametrize(
    ('names', 'said'),
    [
        (['train.txt', 'train.txt.gz'], 'train.txt.gz: must not exist next to train.txt, its other form'),
        (['dev.txt', 'valid.txt'], "split 'validation' has dev.txt and valid.txt, config.data.files must name the files to read"),
        (['train.txt', 'train.raw'], "split 'train' has train.raw and train.txt, config.data.files must name the files to read"),
        (['train.txt', 'train/a.txt'], "split 'train' has a.txt and train.txt, config.data.files must name the files to read"),
        (['train.dev.txt'], 'train.dev.txt: its name has train and dev, config.data.files must name the files to read'),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_named(tmp_path, names, said):
    for name in names:
        write_file(tmp_path / name, 'text\n')
    assert source_cases.read_error(make_config('text', tmp_path)).endswith(said)


@pytest.mark.parametrize(
    ('chosen', 'want'),
    [
        (('train=a/*.txt',), ['1', '2']),
        (('train=**/[13].txt',), ['1', '3']),
        (('train=b/3.txt', 'train=a/1.txt'), ['3', '1']),
        (('train={}/b/*',), ['3']),
        (('train=*/*.txt', 'train=a/1.txt'), ['1', '2', '3']),
    ],
)
def test_globs_choose_the_files_of_a_split_in_their_order(tmp_path, chosen, want):
    for name in ('a/1', 'a/2', 'b/3'):
        write_file(tmp_path / f'{name}.txt', name[-1])
    write_file(tmp_path / 'train.txt', 'not this one')
    c = make_config('text', tmp_path, files=tuple(one.format(tmp_path) for one in chosen))
    assert read_texts(c) == want


@pytest.mark.parametrize(
    ('chosen', 'said'),
    [
        (('trian=*.txt',), "config.data.files = 'trian=*.txt': must be SPLIT=GLOB with a SPLIT of train, validation, test; did you mean train?"),
        (('*.txt',), "config.data.files = '*.txt': must be SPLIT=GLOB with a SPLIT of train, validation, test"),
        (('train=',), "config.data.files = 'train=': must be SPLIT=GLOB with a SPLIT of train, validation, test"),
        (('train=*.csv',), "config.data.files = 'train=*.csv': matches no file in {}"),
        (('train=*.txt', 'test=b.txt'), "config.data.files = 'test=b.txt': {}/b.txt is in split 'train' already"),
        (('test=b.txt',), "config.data.path = {}: has no split 'train': config.data.files has none"),
    ],
)  # fmt: skip
def test_a_malformed_glob_is_named(tmp_path, chosen, said):
    write_files(tmp_path, a_txt='1', b_txt='2')
    c = make_config('text', tmp_path, files=chosen)
    assert source_cases.read_error(c) == said.format(tmp_path)
    assert source_cases.check_error(c) == said.format(tmp_path)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('none', 'no such folder, must be a folder; config.data.files names files in it'),
        ('file.txt', 'is a file, must be a folder; config.data.files names files in it'),
    ],
)
def test_a_path_that_is_no_folder_is_named(tmp_path, name, said):
    write_file(tmp_path / 'file.txt', 'text\n')
    c = make_config('text', tmp_path / name)
    assert source_cases.check_error(c) == f'config.data.path = {tmp_path}/{name}: {said}'


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (gzip.compress(b'a text\n' * 1000, mtime=0)[:40], 'must be a whole .gz file: Compressed file ended before the end-of-stream marker was reached'),
        (b'a text\n', "must be a whole .gz file: Not a gzipped file (b'a ')"),
        (gzip.compress(b'a text\n' * 1000, mtime=0)[:-8] + b'\0' * 8, 'must be a whole .gz file: CRC check failed'),
        (b'', 'empty corpus, must hold a line'),
    ],
)  # fmt: skip
def test_a_damaged_gz_is_named(tmp_path, content, said):
    write_file(tmp_path / 'train.txt.gz', content)
    line = source_cases.read_error(make_config('text', tmp_path))
    assert line.startswith(f'{tmp_path}/train.txt.gz: {said}')


def test_a_file_that_may_not_be_opened_is_named(tmp_path):
    (tmp_path / 'train.txt').mkdir()  # root may open any file
    line = source_cases.read_error(make_config('text', tmp_path))
    assert line == f'{tmp_path}/train.txt: Is a directory'


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (OSError(5, 'Input/output error'), Unreadable),
        (FileNotFoundError(2, 'No such file or directory'), Unreadable),
        (gzip.BadGzipFile('CRC check failed'), UserError),
        (EOFError('ended'), UserError),
        (OSError('Unexpected end of stream'), UserError),  # of Parquet
    ],
)
def test_what_cannot_be_read_now_is_told_from_what_is_malformed(error, kind):
    with pytest.raises(UserError, match=r'^data/x: ') as caught, files.translate_errors('data/x'):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize('error', [OSError('429'), FileNotFoundError('x'), RuntimeError('closed')])
def test_whatever_a_bucket_raises_it_cannot_be_read_now(error):
    with pytest.raises(Unreadable, match=r'^gs://b/x: '), files.translate_errors('gs://b/x'):
        raise error


# Digests


def hashed(tmp_path, monkeypatch, names):
    """Digests of files of a folder, and the names of those that were read for it."""
    read, raw = [], files._open_stored
    with monkeypatch.context() as patch:
        patch.setattr(files, '_open_stored', lambda file: read.append(file.name) or raw(file))
        found = files.digests(str(tmp_path / 'cache'), [tmp_path / name for name in names])
    return found, read


def put_then(file, content, time):
    write_file(file, content)
    os.utime(file, ns=(time, time))


LONG_AGO = 10**18


def test_a_file_is_hashed_once_until_its_size_or_its_time_changes(tmp_path, monkeypatch):
    for name in ('a', 'b'):
        put_then(tmp_path / name, f'text {name}', LONG_AGO)
    first, read = hashed(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['a', 'b']
    assert hashed(tmp_path, monkeypatch, ['b', 'a']) == (first[::-1], [])
    put_then(tmp_path / 'a', 'other', LONG_AGO)
    second, read = hashed(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['a']
    assert (second[0] != first[0], second[1]) == (True, first[1])
    put_then(tmp_path / 'b', 'TEXT B', LONG_AGO + 1)
    third, read = hashed(tmp_path, monkeypatch, ['a', 'b'])
    assert read == ['b']
    assert (third[0], third[1] != first[1]) == (second[0], True)
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [files.DIGESTS_FILE]


def test_a_file_that_has_just_changed_is_read_again(tmp_path, monkeypatch):
    """Another change may leave its size and its time as they are."""
    write_file(tmp_path / 'a', 'one')
    first, _ = hashed(tmp_path, monkeypatch, ['a'])
    assert hashed(tmp_path, monkeypatch, ['a']) == (first, ['a'])


@pytest.mark.parametrize('content', ['', '[]', '{"x": 1', '{"%s": 5}'])
def test_malformed_digests_are_made_again(tmp_path, monkeypatch, content):
    put_then(tmp_path / 'a', 'one', LONG_AGO)
    first, _ = hashed(tmp_path, monkeypatch, ['a'])
    write_file(tmp_path / 'cache' / files.DIGESTS_FILE, content.replace('%s', str(tmp_path / 'a')))
    assert hashed(tmp_path, monkeypatch, ['a']) == (first, ['a'])
    assert hashed(tmp_path, monkeypatch, ['a']) == (first, [])


def test_lines_have_numbers_and_ends_and_no_byte_order_mark(tmp_path):
    write_file(tmp_path / 'x', '\ufeffone\ntwo\r\n\nlast\ufeff')
    found = list(files.read_lines(tmp_path / 'x', pytest.fail))
    assert found == [(1, 'one\n'), (2, 'two\r\n'), (3, '\n'), (4, 'last\ufeff')]


def test_a_byte_that_is_no_utf_8_is_named_with_its_line(tmp_path):
    write_file(tmp_path / 'train.txt', b'good\n\nbad \xe9t\xe9\n\nlast\n')
    c = make_config('text', tmp_path)
    said = f'{tmp_path}/train.txt:3: must be UTF-8, has byte 0xe9: invalid continuation byte'
    hint = " (config.data.on_error = 'skip' leaves such rows out)"
    assert source_cases.read_error(c) == said + hint
    c.data.on_error, skipped = 'skip', []
    read = list(sources.examples(c, 'train', skipped.append))
    assert [example.first for example in read] == ['good', 'last']
    assert skipped == [said]


def test_a_local_path_is_reached_without_a_look_at_it(monkeypatch):
    asked = []
    monkeypatch.setattr(storage, 'call_within', lambda *arguments: asked.append(arguments[1]))
    for path in ('/no/such/path', 'data', 'gs://asked_of_a_local_path/x'):
        storage.check_reachable(path)
    storage._ANSWERED.discard('asked_of_a_local_path')
    assert asked == ['gs://asked_of_a_local_path/x']


def test_what_answers_in_time_raises_what_it_raises():
    storage.call_within(10, 'x', lambda: None)
    with pytest.raises(ZeroDivisionError):
        storage.call_within(10, 'x', lambda: 1 / 0)


# What a run says of a bucket when nothing is installed for it, or nobody answers.
BUCKET = """
import sys
from lightpaff_jax import config
from lightpaff_jax.runtime import storage
from lightpaff_jax.data import sources
storage.PATIENCE = float(sys.argv[1])
c = config.default()
c.data.source, c.data.path = 'text', 'gs://bucket/folder'
try:
    sources.check(c)
except config.UserError as error:
    print(error)
"""


def said_of_a_bucket(seconds, **environment):
    root = source_cases.__file__.rpartition('/tests/')[0]
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
def test_a_bucket_without_its_extra_is_one_line():
    done = said_of_a_bucket(30)
    assert (done.stdout, done.stderr) == (
        "gs://bucket/folder: buckets need the extra gs: ./launch/environment.sh gs\n", '',
    )  # fmt: skip


@pytest.mark.e2e
@pytest.mark.skipif(not GCSFS, reason='needs gcsfs')
def test_a_bucket_that_never_answers_is_one_line_after_its_time():
    with socket.create_server(('127.0.0.1', 0)) as silent:  # takes calls and says nothing
        host = f'http://127.0.0.1:{silent.getsockname()[1]}'
        done = said_of_a_bucket(3, STORAGE_EMULATOR_HOST=host)
    assert done.stdout == 'gs://bucket/folder: cannot be reached within 3 s\n'
    assert done.stderr == ''
