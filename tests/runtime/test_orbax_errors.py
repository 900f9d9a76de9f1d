"""Log records of failures of Orbax are dropped, and no others."""

import logging

import pytest

from lightpaff_jax.runtime import orbax_errors

FILE = '/python/asyncio/base_events.py'


def make_record(logger, text, error):
    info = (type(error), error, error.__traceback__)
    return logging.LogRecord(logger, logging.ERROR, FILE, 1, text, None, info)


@pytest.mark.parametrize(
    ('logger', 'filename', 'text', 'relevant'),
    [
        ('asyncio', '/lib/orbax/serialization.py', 'exception was never retrieved', False),
        ('asyncio', '/home/me/own.py', 'exception was never retrieved', True),
        ('asyncio', '/home/me/own.py', 'Task <orbax read> failed', False),
        ('other', '/lib/orbax/serialization.py', 'exception was never retrieved', True),
    ],
)
def test_only_failed_tasks_of_orbax_are_suppressed(logger, filename, text, relevant):
    with pytest.raises(ValueError, match='broken') as info:
        exec(compile("raise ValueError('broken')", filename, 'exec'))
    error = info.value
    assert orbax_errors._is_relevant(make_record(logger, text, error)) is relevant


@pytest.mark.parametrize(
    ('text', 'relevant'),
    [
        ('OUT_OF_RANGE: Error reading shard entry', False),
        ('NOT_FOUND: x', False),
        ('Broken: x', True),
        ('HTTP: 500', True),
    ],
)
def test_storage_errors_without_frames_are_suppressed(text, relevant):
    record = make_record('asyncio', 'Future exception was never retrieved', ValueError(text))
    assert orbax_errors._is_relevant(record) is relevant
