"""A lock is held by one process at a time and leaves no file."""

import logging
import threading
import time

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
