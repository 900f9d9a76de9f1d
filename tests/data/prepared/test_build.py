"""Builds of datasets: equal files for any number of workers and after any interruption."""

import dataclasses
import errno
import logging
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import config
from lightpaff_jax.data import prepare, sources, tokenizers
from lightpaff_jax.data.prepared import build, shards, tokenize_pool
from lightpaff_jax.data.prepared.tokenize_pool import Work
from lightpaff_jax.data.sources import Example, files as files_lib
from lightpaff_jax.errors import Unfinished, Unreadable, UserError


def text_files(folder):
    """Writes text files; returns a configuration that reads them."""
    corpus.write_random_text(folder, 60_000)
    c = config.default()
    c.data.source, c.data.path, c.data.length = 'text', str(folder), 32
    c.data.cache = str(folder.parent / 'cache')
    return c


def data_files(folder):
    """Maps the name of each file in a folder to its bytes."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.fixture
def small_chunks(monkeypatch):
    """Sets chunks of 2,000 characters and shards of 1,000 ids."""
    monkeypatch.setattr(tokenize_pool, 'CHUNK', 2000)
    monkeypatch.setattr(build, 'SHARD_TOKENS', 1000)
    monkeypatch.setattr(build.build, '__defaults__', (1000,))


def test_number_of_workers_does_not_change_files(tmp_path, vocabulary, small_chunks):
    c = text_files(tmp_path / 'text')
    sets = []
    for workers in (1, 2, 3):
        c.data.workers, c.data.cache = workers, str(tmp_path / f'cache{workers}')
        sets.append(data_files(prepare.prepare(c, vocabulary).path))
    assert sets[0] == sets[1] == sets[2]
    assert len(sets[0]) > 10


def test_workers_use_lowercase_as_the_tokenizer_does(tmp_path, small_chunks):
    """The files of a vocab.txt do not say whether it is lower case."""
    corpus.wordpiece_tokenizer(tmp_path)
    cased = tokenizers.read(str(tmp_path), lowercase=False)
    c = text_files(tmp_path / 'text')
    (tmp_path / 'text' / 'train.txt').write_text('The DOG a b\n\n' * 900)
    c.tokenizer.lowercase = False
    c.data.workers = 2
    prepared = prepare.prepare(c, cased).records('train')
    ids = np.concatenate(
        [record.first[:-1] for record in prepared.read(range(len(prepared)))]
    ).tolist()
    assert ids[:5] == [cased.eos_id, *cased.encode(['The DOG a b'])[0]]


class Stopped(BaseException):
    """An exception that no code of the package catches, such as from a signal."""


class CountingModel:
    """A tokenizer's model that counts the texts it encodes, and raises Stopped after `last`."""

    def __init__(self, model, last=None):
        self._model, self.texts, self._last = model, 0, last

    def __getattr__(self, name):
        return getattr(self._model, name)

    def encode(self, texts):
        self.texts += len(texts)
        if self._last is not None and self.texts > self._last:
            raise Stopped
        return self._model.encode(texts)


def count_texts(tokenizer, last=None):
    return tokenizers.Tokenizer(
        tokenizer.path, tokenizer.fingerprint, CountingModel(tokenizer.model, last)
    )


@pytest.mark.parametrize('objective', ['clm', 'packed', 'seq2seq'])
def test_resume_after_shards_gives_equal_files(tmp_path, vocabulary, small_chunks, objective):
    c = text_files(tmp_path / 'text')
    if objective == 'packed':
        c.data.packing = 'best_fit'
    if objective == 'seq2seq':
        rows = [line for line in (tmp_path / 'text/train.txt').read_text().split('\n') if line]
        for split in sources.SPLITS:
            lines = [f'{row}\t{row[:9]}' for row in rows if '.' in row]
            (tmp_path / 'text' / f'{split}.tsv').write_text('first\tsecond\n' + '\n'.join(lines))
            (tmp_path / 'text' / f'{split}.txt').unlink()
        c.objective, c.data.source, c.data.columns = 'seq2seq', 'table', ('first', 'second')
        c.data.target_length = 8
    whole = count_texts(vocabulary)
    wanted = data_files(prepare.prepare(c, whole).path)
    assert len(wanted) > 9
    c.data.cache = str(tmp_path / 'other')
    encoded, stops = 0, 0
    for _ in range(50):
        some = count_texts(vocabulary, whole.model.texts // 5)
        try:
            prepared = prepare.prepare(c, some)
            break
        except Stopped:
            stops += 1
            names = [path.suffix for path in (tmp_path / 'other/prepared').iterdir()]
            assert names == ['.partial']
        finally:
            encoded += some.model.texts
    assert stops >= 4
    assert data_files(prepared.path) == wanted
    assert encoded < 1.6 * whole.model.texts  # texts of finished shards are not encoded again


def test_changed_shards_are_written_again(tmp_path, vocabulary, small_chunks, caplog):
    c = text_files(tmp_path / 'text')
    wanted = data_files(prepare.prepare(c, vocabulary).path)
    c.data.cache = str(tmp_path / 'other')
    with pytest.raises(Stopped):
        prepare.prepare(c, count_texts(vocabulary, 300))
    shard = next((tmp_path / 'other').rglob('train-00001.array_record'))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        prepared = prepare.prepare(c, vocabulary)
    assert data_files(prepared.path) == wanted
    assert 'shards of train were changed, they are made again' in caplog.text


def test_source_error_removes_unfinished_files(tmp_path, vocabulary, small_chunks):
    c = text_files(tmp_path / 'text')
    train = tmp_path / 'text' / 'train.txt'
    train.write_bytes(train.read_bytes() + b'\xff\n')
    with pytest.raises(UserError, match=r'train\.txt'):
        prepare.prepare(c, vocabulary)
    assert list((tmp_path / 'cache/prepared').iterdir()) == []


def test_resume_after_read_error_gives_equal_files(tmp_path, vocabulary, small_chunks, monkeypatch):
    c = text_files(tmp_path / 'text')
    wanted = data_files(prepare.prepare(c, vocabulary).path)
    c.data.cache = str(tmp_path / 'other')
    whole = files_lib.read_lines

    def broken(file, *arguments):
        """Reads train.txt so that reading it to its end fails."""
        for number, line in whole(file, *arguments):
            if file.name == 'train.txt' and number == 600:
                with files_lib.translate_errors(file):
                    raise OSError(errno.EIO, 'Input/output error')
            yield number, line

    with monkeypatch.context() as patch:
        patch.setattr(files_lib, 'read_lines', broken)
        with pytest.raises(Unreadable, match=r'train\.txt: Input/output error$'):
            prepare.prepare(c, vocabulary)
    shard_files = list((tmp_path / 'other').rglob('train-*.array_record'))
    assert len(shard_files) > 2
    rest = count_texts(vocabulary)
    assert data_files(prepare.prepare(c, rest).path) == wanted
    first = count_texts(vocabulary)
    c.data.cache = str(tmp_path / 'third')
    prepare.prepare(c, first)
    assert rest.model.texts < first.model.texts


def test_silent_write_error_is_detected(tmp_path, vocabulary, small_chunks, monkeypatch):
    writer = shards.array_record_module.ArrayRecordWriter

    class TruncatingWriter:
        def __init__(self, file, options):
            self._file, self._writer = pathlib.Path(file), writer(file, options)

        def write(self, data):
            self._writer.write(data)

        def close(self):
            self._writer.close()
            self._file.write_bytes(self._file.read_bytes()[:-1000])

    c = text_files(tmp_path / 'text')
    wanted = data_files(prepare.prepare(c, vocabulary).path)
    c.data.cache = str(tmp_path / 'other')
    with monkeypatch.context() as patch:
        patch.setattr(shards.array_record_module, 'ArrayRecordWriter', TruncatingWriter)
        with pytest.raises(Unfinished, match=r'train-00000.*: what was written cannot be read'):
            prepare.prepare(c, vocabulary)
    assert not list((tmp_path / 'other').rglob('*.array_record*'))
    assert data_files(prepare.prepare(c, vocabulary).path) == wanted


# Several processes


def test_second_process_waits_and_builds_nothing(tmp_path, vocabulary, caplog):
    c = text_files(tmp_path / 'text')
    whole = count_texts(vocabulary)
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        begun, go = threading.Event(), threading.Event()

        class WaitingModel(CountingModel):
            def encode(self, texts):
                begun.set()
                go.wait(30)
                return super().encode(texts)

        slow = tokenizers.Tokenizer(
            vocabulary.path, vocabulary.fingerprint, WaitingModel(vocabulary.model)
        )
        first = threading.Thread(target=prepare.prepare, args=(c, slow))
        second = threading.Thread(target=prepare.prepare, args=(c, whole))
        first.start()
        assert begun.wait(30)
        second.start()
        while 'waiting for it' not in caplog.text:
            pass
        go.set()
        first.join(30)
        second.join(30)
    assert slow.model.texts > 0
    assert whole.model.texts == 0
    assert len(list((tmp_path / 'cache/prepared').iterdir())) == 1


def test_lock_file_of_a_killed_process_is_ignored(tmp_path, vocabulary):
    c = text_files(tmp_path / 'text')
    path = pathlib.Path(prepare.prepare(c, vocabulary).path)
    shutil.rmtree(path)
    path.with_name(f'{path.name}.lock').touch()
    prepare.prepare(c, vocabulary)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Processes that tokenize


@pytest.fixture
def started(monkeypatch):
    """Returns the list of processes that are started during the test."""
    processes, start = [], subprocess.Popen

    def popen(*args, **kwargs):
        processes.append(start(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(tokenize_pool.subprocess, 'Popen', popen)
    return processes


def works(n, requested):
    """Yields small chunks; appends the number of each to `requested` when it is taken."""
    for i in range(n):
        requested.append(i)
        yield Work([Example('a b c')], [f'a b c {"d " * i}'], with_words=True)


def test_results_are_in_order_and_work_is_bounded(vocabulary, started):
    requested = []
    with tokenize_pool.start(vocabulary, 2) as encode:
        for i, (work, encoded) in enumerate(encode(works(30, requested))):
            assert encoded.ids.tolist() == vocabulary.encode(work.texts)[0]
            assert (encoded.lengths.tolist(), encoded.words.tolist()) == ([3 + i], [4 + i])
            assert len(requested) <= i + 6
    assert i == 29
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.e2e
def test_killed_worker_ends_all_with_one_line(vocabulary, started):
    with tokenize_pool.start(vocabulary, 2) as encode:
        encoded = encode(works(30, []))
        next(encoded)
        started[1].kill()
        with pytest.raises(Unfinished, match='ended with signal 9: if memory was short'):
            list(encoded)
    assert all(process.poll() is not None for process in started)


@pytest.mark.e2e
class _Faulty:
    """A model that encodes no text."""

    def encode(self, texts):
        raise LookupError(f'no token for {texts[0]}')


@pytest.mark.parametrize('workers', [1, 2])
def test_text_that_cannot_be_encoded_is_one_line(vocabulary, workers):
    tokenizer = dataclasses.replace(vocabulary, model=_Faulty())
    rule = 'the tokenizer cannot encode a text: LookupError: no token for a$'
    with pytest.raises(UserError, match=rule), tokenize_pool.start(tokenizer, workers) as encode:
        list(encode([Work([], ['a'], False)]))


def test_interrupt_leaves_no_worker(vocabulary, started):
    def interrupted():
        with tokenize_pool.start(vocabulary, 2) as encode:
            next(encode(works(30, [])))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in started)


@pytest.mark.e2e
def test_workers_ignore_sigint_even_at_start(vocabulary, started):
    with tokenize_pool.start(vocabulary, 2) as encode:
        for _ in range(100):
            started[0].send_signal(signal.SIGINT)
            time.sleep(0.005)
        assert len([*encode(works(4, []))]) == 4
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.e2e
def test_worker_imports_little():
    code = (
        'import sys; from lightpaff_jax.data.prepared import tokenize_worker; '
        'from lightpaff_jax.data.tokenizers import huggingface, sentencepiece; '
        "heavy = {'jax', 'etils', 'grain', 'rich', 'tensorflow_datasets', 'array_record'}; "
        'print(*sorted(heavy & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
