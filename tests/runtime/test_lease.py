"""A folder in a bucket is held by one process, which renews its lease and stops without it."""

import json
import threading
import time

import pytest
from helpers import buckets

from lightpaff_jax import checkpoint
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import lease, lock, storage

FOLDER = 'gs://bucket/run'
HOLDER = {'host': 'here', 'process': 1, 'since': 0.0}


@pytest.fixture(autouse=True)
def _bucket():
    buckets.Bucket.store.clear()
    with buckets.served():
        yield


def objects():
    return sorted(buckets.Bucket.store)


def other(number, expires):
    """Writes the record of another process."""
    text = json.dumps({'id': 'x', 'host': 'there', 'process': 7, 'since': 0.0, 'expires': expires})
    (storage.to_path(FOLDER) / f'.lock/{number}').write_text(text)


def is_free():
    return isinstance(lease.acquire(FOLDER, HOLDER), lease.Lease)


def test_a_lease_is_refused_with_its_holder_until_it_is_released():
    with lock.hold(storage.to_path(FOLDER)):
        with pytest.raises(UserError) as error, lock.hold(storage.to_path(FOLDER)):
            pass
        assert str(error.value).startswith(f'{FOLDER}: is in use by process ')
        lease.check(f'{FOLDER}/config.json')
        with lock.hold(storage.to_path('gs://bucket/run2')):
            pass
    assert is_free()
    assert objects() == ['/bucket/run/.lock/2', '/bucket/run2/.lock/1']


def test_an_expired_lease_is_taken_over_and_no_fresh_one():
    other(5, time.time() + 60)
    assert lease.acquire(FOLDER, HOLDER)['process'] == 7
    other(5, time.time() - 0.01)
    assert is_free()
    assert objects() == ['/bucket/run/.lock/6']


def test_of_many_processes_one_takes_an_expired_lease():
    for _ in range(20):
        buckets.Bucket.store.clear()
        other(1, 0.0)
        barrier, results = threading.Barrier(8), []

        def take(barrier=barrier, results=results):
            barrier.wait()
            results.append(is_free())

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False] * 7 + [True]


def record(number):
    return json.loads(buckets.Bucket.store[f'/bucket/run/.lock/{number}'].getvalue())


def test_a_lease_is_renewed_until_another_process_holds_it(monkeypatch):
    monkeypatch.setattr(lease, 'RENEW', 0.01)
    with lock.hold(storage.to_path(FOLDER)):
        first = record(1)
        while record(1)['expires'] == first['expires']:
            time.sleep(0.01)
        assert record(1).keys() == first.keys()
        lease.check(FOLDER)
        other(2, time.time() + 60)
        while lease._held[0]._expires:
            time.sleep(0.01)
        with pytest.raises(UserError, match='its lease has expired'):
            lease.check(FOLDER)
    assert record(2)['process'] == 7


def test_a_run_without_its_lease_writes_nothing_more(tmp_path, monkeypatch):
    """The bucket does not answer for longer than the lease is valid."""
    monkeypatch.setattr(lease, 'RENEW', 0.01)
    monkeypatch.setattr(lease, 'EXPIRE', 0.1)
    folder = storage.to_path(FOLDER)
    (tmp_path / 'metrics.jsonl').touch()
    with lock.hold(folder):
        with monkeypatch.context() as patch:
            patch.setattr(buckets.Bucket, 'pipe_file', lambda *_, **__: 1 / 0)
            time.sleep(0.2)
        before = objects()
        for write in (
            lambda: storage.write_text(folder / 'config.json', ''),
            lambda: storage.upload(tmp_path, folder),
            lambda: checkpoint.Checkpoints(folder / 'checkpoints', 1).save(1, {}, {}),
        ):
            with pytest.raises(UserError, match=f'{FOLDER}: its lease has expired'):
                write()
        storage.write_text(storage.to_path('gs://bucket/other'), '')
    assert objects() == ['/bucket/other', *before]


def test_a_repeated_request_meets_its_own_lease(monkeypatch):
    pipe_file = buckets.Bucket.pipe_file

    def repeat(bucket, path, value, mode='overwrite'):
        pipe_file(bucket, path, value, mode)
        pipe_file(bucket, path, value, mode)

    monkeypatch.setattr(buckets.Bucket, 'pipe_file', repeat)
    assert is_free()
    lease.acquire(FOLDER, HOLDER)


@pytest.mark.parametrize('text', ['{', '[]', '{"id": "a"}', '{"id": "a", "expires": "b"}'])
def test_a_damaged_record_is_one_line(text):
    (storage.to_path(FOLDER) / '.lock/1').write_text(text)
    expected = pytest.raises(UserError, match=f'^{FOLDER}/.lock/1: .*must ')
    with expected, lock.hold(storage.to_path(FOLDER)):
        pass
