"""A lock is held by one process at a time and leaves no file."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from helpers.processes import environment

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import lock


def test_a_second_holder_waits_until_the_lock_is_free(tmp_path, caplog):
    caplog.set_level(logging.INFO, 'lightpaff_jax')
    file, events = tmp_path / '.lock', []

    def second():
        with lock.exclusive_lock(file):
            events.append('second')

    thread = threading.Thread(target=second)
    with lock.exclusive_lock(file):
        thread.start()
        while not caplog.messages:  # until the second holder waits
            time.sleep(0.01)
        events.append('first')
    thread.join()
    assert events == ['first', 'second']
    assert not file.exists()


def refusal(folder):
    with pytest.raises(UserError) as error, lock.hold(folder):
        pass
    return str(error.value)


HOLDER = """
import sys, time
from lightpaff_jax.runtime import lock
with lock.hold(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_held_folder_names_its_process_until_that_is_killed(tmp_path):
    folder = tmp_path / 'new' / 'run'
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, folder], stdout=subprocess.PIPE, env=environment()
    )
    with process:
        assert process.stdout.readline() == b'held\n'
        line = refusal(folder)
        assert line.startswith(f'{folder}: is in use by process {process.pid} on {os.uname()[1]}')
        assert line == refusal(folder), 'a refused process leaves the lock as it is'
        process.kill()
    assert [path.name for path in folder.iterdir()] == ['.lock']
    with lock.hold(folder):
        assert f'process {os.getpid()} on' in refusal(folder)
    assert not list(folder.iterdir())


def test_a_folder_without_its_lock_file_can_be_held_and_removed(tmp_path):
    with lock.hold(tmp_path / 'run'):
        (tmp_path / 'run/.lock').unlink()
        (tmp_path / 'run').rmdir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', '[1]', '{"process": 3}', '{"host": 1}', '[' * 9999])
def test_a_damaged_record_of_the_holder_is_one_line(tmp_path, text):
    with lock.hold(tmp_path):
        (tmp_path / lock.FILE).write_text(text)
        assert refusal(tmp_path).startswith(f'{tmp_path}: is in use by another process;')


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    assert refusal(tmp_path / 'file') == f'{tmp_path}/file: cannot be locked: File exists'
    assert refusal('/proc/run').startswith('/proc/run: cannot be locked: ')

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', refuse)  # as a network file system without locks does
    assert refusal(tmp_path) == f'{tmp_path}: cannot be locked: No locks available'
