"""What libraries say of failures that are told in one line is dropped, and nothing else is."""

import logging

import pytest

from lightpaff_jax.runtime import orbax_errors


@pytest.mark.parametrize(
    ('logger', 'place', 'text', 'said'),
    [
        ('asyncio', '/lib/orbax/serialization.py', 'exception was never retrieved', False),
        ('asyncio', '/home/me/own.py', 'exception was never retrieved', True),
        ('asyncio', '/home/me/own.py', 'Task <orbax read> failed', False),
        ('other', '/lib/orbax/serialization.py', 'exception was never retrieved', True),
    ],
)
def test_of_failed_tasks_only_those_of_orbax_are_dropped(logger, place, text, said):
    with pytest.raises(ValueError, match='broken') as info:
        exec(compile("raise ValueError('broken')", place, 'exec'))
    error = info.value
    record = logging.LogRecord(
        logger, logging.ERROR, '/python/asyncio/base_events.py', 1, text, None,
        (type(error), error, error.__traceback__),
    )  # fmt: skip
    assert bool(orbax_errors._is_relevant(record)) is said


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('OUT_OF_RANGE: Error reading shard entry', False),
        ('NOT_FOUND: x', False),
        ('Broken: x', True),
        ('HTTP: 500', True),
    ],
)
def test_of_futures_that_fail_in_no_frame_those_of_the_storage_are_dropped(text, said):
    error = ValueError(text)
    record = logging.LogRecord(
        'asyncio', logging.ERROR, '/python/asyncio/base_events.py', 1,
        'Future exception was never retrieved', None, (type(error), error, None),
    )  # fmt: skip
    assert bool(orbax_errors._is_relevant(record)) is said
