"""Tests run on 8 fake CPU devices, away from the user's caches."""

import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import data_fixtures
import jax
import pytest

_CACHE = os.environ.get('LIGHTPAFF_TEST_CACHE')
"""A folder to keep the corpus in between sessions of a developer; the default makes it anew."""


# Programs of this process are compiled in half the time, and run slower: most of what a test takes
# is compiling. Commands that a test starts are compiled as a user's are.
jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture
def full_compilation():
    """Programs are compiled as a user's are: where these are what is tested."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='session')
def data_cache(tmp_path_factory) -> str:
    """The embedded corpus, built once a session; processes of one session share it."""
    if _CACHE:
        return data_fixtures.build(pathlib.Path(_CACHE))
    base = tmp_path_factory.getbasetemp()
    parallel = 'PYTEST_XDIST_WORKER' in os.environ
    return data_fixtures.build((base.parent if parallel else base) / 'data')
