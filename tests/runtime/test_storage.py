"""A workdir in a bucket equals a local one; a bucket that does not answer is one line."""

import errno
import os
import pathlib
import resource
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from helpers import buckets

from lightpaff_jax import config, metrics, train, workdir
from lightpaff_jax.errors import NotSaved, UserError
from lightpaff_jax.runtime import storage

ROOT = pathlib.Path(config.__file__).parents[2]


@pytest.fixture(scope='module', autouse=True)
def _memory_file_system():
    with buckets.served():
        yield


@pytest.fixture
def bucket():
    buckets.Bucket.store.clear()
    return storage.to_path('gs://bucket/run')


def test_paths_are_local_or_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert str(storage.to_path('~/a')) == f'{tmp_path}/a'
    assert str(storage.to_path('gs://b/~/a')) == 'gs://b/~/a'
    assert [storage.is_remote(path) for path in ('a/b', '/a', 'gs://b/a')] == [False, False, True]
    storage.check_reachable(str(tmp_path / 'none'))


@pytest.mark.parametrize('path', ['s3://bucket/x', 'gs:///x', 'gs://', 'http://host/x'])
def test_other_schemes_and_missing_buckets_are_user_errors(path):
    with pytest.raises(UserError) as raised:
        storage.check_reachable(path)
    assert str(raised.value) == f'{path}: must be a local path or gs://BUCKET/...'


def test_a_call_beyond_its_time_limit_is_one_line():
    began, never = time.monotonic(), threading.Event()
    with pytest.raises(UserError) as raised:
        storage.call_within(0.2, 'gs://b/x', lambda: never.wait(60))
    assert str(raised.value) == 'gs://b/x: cannot be reached within 0.2 s'
    assert time.monotonic() - began >= 0.2
    never.set()


def test_errors_of_a_bucket_are_one_line(tmp_path):
    for error, message in (
        (ConnectionError('refused\n by host'), 'ConnectionError: refused by host'),
        (ImportError('gcsfs'), 'buckets need the extra gs: ./launch/environment.sh gs'),
    ):
        with pytest.raises(UserError) as raised, storage.translate_errors('gs://b/x'):
            raise error
        assert str(raised.value) == f'gs://b/x: {message}'
    for error, path in ((FileNotFoundError('x'), 'gs://b/x'), (OSError('disk'), tmp_path)):
        with pytest.raises(type(error)), storage.translate_errors(path):
            raise error


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'result.json'
    storage.write_json(path, {'b': 1, 'a': 2})
    assert path.read_text() == '{\n  "b": 1,\n  "a": 2\n}\n'

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, 'commit', interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.write_text(path, 'half')
    assert path.read_text() == '{\n  "b": 1,\n  "a": 2\n}\n'
    storage.write_text(path, 'é')
    assert path.read_bytes() == 'é'.encode()
    assert [file.name for file in path.parent.iterdir()] == ['result.json']


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (OSError(errno.ENOSPC, 'x'), 'No space left on device'),
        (OSError(errno.EFBIG, 'x', 'y'), 'File too large'),
        (OSError(errno.EDQUOT, 'x'), 'Disk quota exceeded'),
        (RuntimeError('write() failed: No space left on device; at 7'), 'No space left on device'),
        (ValueError('no space left on device (os error 28)'), 'No space left on device'),
        (RuntimeError('tokens end'), ''),
        (OSError(errno.ENOENT, 'x'), ''),
    ],
)
def test_error_of_a_full_disk_names_the_file(tmp_path, error, reason):
    def write(_):
        try:
            raise error
        except Exception as cause:
            raise KeyError('a library') from cause

    path = tmp_path / 'a'
    with pytest.raises(NotSaved if reason else KeyError) as raised:
        storage.publish(path, write)
    if reason:
        assert str(raised.value) == f'{path}: cannot be written: {reason}'
    assert list(tmp_path.iterdir()) == []


def test_text_is_not_written_in_part_to_a_full_disk(tmp_path):
    """A limit of the size of files acts as a full disk."""
    storage.write_text(tmp_path / 'a', 'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(NotSaved, match=rf'^{tmp_path}/a: cannot be written: File too large$'):
            storage.write_text(tmp_path / 'a', 'x' * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a', 'old')]


def test_folders_of_killed_processes_are_removed_and_no_others(tmp_path):
    build = (
        'import pathlib, sys, time; from lightpaff_jax.runtime import storage\n'
        'with storage.temporary_folder(pathlib.Path(sys.argv[1])) as folder:\n'
        '  (folder / "x").write_text("x"); print(folder, flush=True); time.sleep(60)'
    )
    command = [sys.executable, '-c', build, str(tmp_path / 'a')]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (pathlib.Path(process.stdout.readline().strip()) for process in processes)
    processes[0].kill()
    processes[0].wait()
    others = {'.b.12345678.part', '.a.v1', '.a.students', '.a.12345678'}  # users may have such
    for name in others:
        (tmp_path / name).mkdir()
    with storage.temporary_folder(tmp_path / 'a') as folder:
        assert {path.name for path in tmp_path.iterdir()} == others | {alive.name, folder.name}
        assert not killed.exists()
    processes[1].kill()
    processes[1].communicate()
    processes[0].communicate()


@pytest.mark.parametrize('name', ['', '.', '/etc/passwd', '../a', 'a/../../b', 'a\0b', '..'])
def test_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf'^m: file = .*: must be a file in {tmp_path}$'):
        storage.member(tmp_path, name, 'm: file')
    assert storage.member(tmp_path, 'a/b..c', 'm') == tmp_path / 'a/b..c'


def test_failed_write_names_the_file_and_not_its_temporary_one(tmp_path):
    (tmp_path / 'result.json').mkdir()
    with pytest.raises(OSError, match='directory') as error:
        storage.write_text(tmp_path / 'result.json', '{}')
    assert error.value.filename == str(tmp_path / 'result.json')


def test_file_that_publish_cannot_replace_is_an_error(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('old')

    def fail(part, path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(storage, 'commit', fail)
    with pytest.raises(PermissionError):
        storage.publish(tmp_path / 'a', lambda part: part.write_text('new'))
    (tmp_path / 'b').mkdir()
    storage.publish(tmp_path / 'b', lambda part: part.mkdir())  # the first folder stays


def test_publish_below_a_file_names_the_folder_in_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError) as error:
        storage.publish(tmp_path / 'file' / 'set', pathlib.Path.touch)
    assert str(error.value) == f'{tmp_path}/file: cannot be written: File exists'


def test_of_two_published_folders_the_first_stays(tmp_path):
    def write_first(folder):
        folder.mkdir()
        (folder / 'a').write_text('first')

    def write_second(folder):
        folder.mkdir()
        (folder / 'a').write_text('second')
        storage.publish(tmp_path / 'set', write_first)

    storage.publish(tmp_path / 'set', write_second)
    assert (tmp_path / 'set' / 'a').read_text() == 'first'
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def write_metrics(folder, first, last, resume):
    with metrics.Writer(folder, 10, resume, 0) as writer:
        for step in range(first, last + 1):
            writer.log(step, {'loss': 1 / step})
            if step % 2 == 0:
                writer.upload()
        writer.log(last, {'ce': 2.0}, kind='validation')


def test_a_resumed_run_in_a_bucket_writes_equal_metrics(tmp_path, bucket):
    write_metrics(tmp_path, 1, 7, 0)
    write_metrics(bucket, 1, 5, 0)
    write_metrics(bucket, 5, 7, 4)  # from the checkpoint of step 4
    local, remote = (folder / 'metrics.jsonl' for folder in (tmp_path, bucket))
    assert remote.read_bytes() == local.read_bytes()
    assert (bucket / 'timing.jsonl').read_text().count('"step"') == 7
    assert len(list((bucket / 'tensorboard').iterdir())) == 2


def test_lines_are_uploaded_at_checkpoints_only(bucket):
    class Stop(Exception):
        pass

    def stopped():
        with metrics.Writer(bucket, 10, 0, 0) as writer:
            writer.log(1, {'loss': 1.0})
            writer.upload()
            assert (bucket / 'metrics.jsonl').read_text().count('\n') == 1
            writer.log(2, {'loss': 1.0})
            raise Stop

    with pytest.raises(Stop):
        stopped()
    assert (bucket / 'metrics.jsonl').read_text().count('\n') == 1


def test_a_workdir_in_a_bucket_keeps_config_and_result(bucket):
    c = config.default()
    c.workdir = 'gs://bucket/run'
    folder = workdir.folder(c)
    workdir.check_unchanged(c, folder)
    assert workdir.completed_result(c, folder, {'data_hash': 'a'}) is None
    workdir.write_config(c, folder)
    scores = {split: {'perplexity': 2.0} for split in ('validation', 'test')}
    result = {'updates': c.train.updates, 'protocol': workdir.protocol(c), 'data_hash': 'a'}
    result |= workdir.task_keys(c) | {'scores': scores}
    workdir.write_json(folder / 'result.json', result)
    assert workdir.completed_result(c, folder, {'data_hash': 'a'}) == result
    assert workdir.completed_result(c, folder, {'data_hash': 'b'}) is None
    assert config.read(bucket).to_dict() == c.to_dict()
    c.seed = 1
    with pytest.raises(UserError, match=r'config.workdir = gs://bucket/run: .*seed: 0 -> 1'):
        workdir.check_unchanged(c, folder)
    workdir.remove_scores(folder, 'result.json')
    workdir.remove_scores(folder, 'result.json')
    workdir.check_unchanged(c, folder)


def test_the_compilation_cache_may_be_in_a_bucket_or_at_home():
    before = jax.config.jax_compilation_cache_dir
    try:
        for folder, path in (('gs://b/xla', 'gs://b/xla'), ('~/xla', os.path.expanduser('~/xla'))):
            train.use_compilation_cache(folder)
            assert jax.config.jax_compilation_cache_dir == path
    finally:
        jax.config.update('jax_compilation_cache_dir', before)


def test_files_are_downloaded_and_uploaded(tmp_path, bucket):
    (tmp_path / 'deep').mkdir()
    for name in ('a', 'deep/b'):
        (tmp_path / name).write_text(name)
    storage.upload(tmp_path, bucket / 'new')
    assert (bucket / 'new/deep/b').read_text() == 'deep/b'
    copy = storage.download_folder('gs://bucket/run/new/deep')
    assert [path.name for path in copy.iterdir()] == ['b']
    assert not list(storage.download_folder('gs://bucket/run/none').iterdir())
    storage.download(bucket / 'new/none', tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


@pytest.mark.e2e
def test_a_command_exits_if_its_bucket_does_not_answer():
    """Behaves as without a network, but gives up after 2 s instead of 30."""
    pytest.importorskip('gcsfs')
    code = (
        'import sys\n'
        'from lightpaff_jax import main\n'
        'from lightpaff_jax.config import flags\n'
        'from lightpaff_jax.runtime import storage\n'
        'storage.TIMEOUT = 2.0\n'
        "sys.exit(flags.main(main.run, '', ['--config=configs/quickstart.py', "
        "'--config.workdir=gs://bucket/x']))\n"
    )
    with socket.create_server(('127.0.0.1', 0)) as server:
        host = f'http://127.0.0.1:{server.getsockname()[1]}'
        done = subprocess.run(
            [sys.executable, '-c', code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {'STORAGE_EMULATOR_HOST': host},
        )
    assert done.returncode == 2
    assert done.stderr == 'error: gs://bucket/x: cannot be reached within 2 s\n'
