"""Tests run on 8 fake CPU devices, away from the user's caches."""

import os
import pathlib
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
# All workers share compiled programs; the process that starts them makes the folder.
# LIGHTPAFF_TEST_CACHE names a folder that keeps these and the corpus between sessions.
os.environ['JAX_COMPILATION_CACHE_DIR'] = (
    os.path.join(os.environ['LIGHTPAFF_TEST_CACHE'], 'xla')
    if os.environ.get('LIGHTPAFF_TEST_CACHE')
    else os.environ['JAX_COMPILATION_CACHE_DIR']
    if 'PYTEST_XDIST_WORKER' in os.environ
    else tempfile.mkdtemp(prefix='lightpaff_jax_compiled_')
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.03'

import jax
import pytest
from helpers import commands as command_cases, corpus
from helpers.processes import QUICK
from jax._src import compiler, lru_cache
from jax.experimental.compilation_cache import compilation_cache

from lightpaff_jax import models

_CACHE = os.environ.get('LIGHTPAFF_TEST_CACHE', '')


def pytest_unconfigure():
    if not _CACHE and 'PYTEST_XDIST_WORKER' not in os.environ:
        shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


def _put_whole(self, key, value):
    """jax writes a program in place, where another worker could read half of it."""
    name = f'{key}-cache'
    if not (self.path / name).exists():
        part = self.path / f'{os.getpid()}.part'
        part.write_bytes(value)
        part.replace(self.path / name)


lru_cache.LRUCache.put = _put_whole


# Programs of this process are compiled in a quarter of the time, and run slower: most of what a test
# takes is compiling. Commands that a test starts are compiled as a user's are, or this is said there.
jax.config.update('jax_disable_most_optimizations', True)
_compile_options = compiler.get_compile_options


def _quick_options(*args, env_options_overrides=None, **changes):
    quick = QUICK if jax.config.values['jax_disable_most_optimizations'] else {}
    overrides = quick | (env_options_overrides or {})
    return _compile_options(*args, env_options_overrides=overrides, **changes)


compiler.get_compile_options = _quick_options


@pytest.fixture
def full_compilation():
    """Programs are compiled as a user's are: where these are what is tested."""

    def full(on):
        jax.config.update('jax_disable_most_optimizations', not on)
        jax.config.update('jax_enable_compilation_cache', not on)
        compilation_cache.reset_cache()  # which else goes on as it began
        models._build.cache_clear()  # with what jax compiled of these networks

    full(True)
    yield
    full(False)


@pytest.fixture(scope='session')
def data_cache(tmp_path_factory) -> str:
    """The embedded corpus, built once a session; processes of one session share it."""
    if _CACHE:
        return corpus.build_cache(pathlib.Path(_CACHE))
    base = tmp_path_factory.getbasetemp()
    parallel = 'PYTEST_XDIST_WORKER' in os.environ
    return corpus.build_cache((base.parent if parallel else base) / 'data')


@pytest.fixture(scope='session')
def small_runs(tmp_path_factory) -> pathlib.Path:
    """A folder with text, small.py, and its finished runs: runs/small_teacher and runs/small."""
    folder = tmp_path_factory.mktemp('commands')
    command_cases.make(folder)
    return folder


@pytest.fixture
def here(small_runs):
    """The working folder of the test is that of the finished runs."""
    with command_cases.working_in(small_runs):
        yield small_runs


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory):
    """A tokenizer with every special token, one id a word of one letter."""
    return corpus.wordpiece_tokenizer(tmp_path_factory.mktemp('wordpiece'))
