"""Fixtures and settings of all tests: 8 fake CPU devices, caches apart from the user's."""

import os
import pathlib
import shutil
import signal
import tempfile

# A shell starts a job in the background with SIGINT ignored, and so the processes that tests start
# and interrupt would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
# All workers of a session share one cache of compiled programs; the main process creates it.
# LIGHTPAFF_TEST_CACHE names a folder that keeps compiled programs and the corpus between sessions.
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
    """Writes a compiled program atomically; jax writes in place, so a worker could read a part."""
    name = f'{key}-cache'
    if not (self.path / name).exists():
        part = self.path / f'{os.getpid()}.part'
        part.write_bytes(value)
        part.replace(self.path / name)


lru_cache.LRUCache.put = _put_whole


# Compilation dominates the time of the tests, so programs of this process are compiled with few
# optimizations: four times as fast, but the programs run slower. A process that a test starts
# compiles as a user's does unless its environment disables the optimizations too.
jax.config.update('jax_disable_most_optimizations', True)
_compile_options = compiler.get_compile_options


def _quick_options(*args, env_options_overrides=None, **changes):
    quick = QUICK if jax.config.values['jax_disable_most_optimizations'] else {}
    overrides = quick | (env_options_overrides or {})
    return _compile_options(*args, env_options_overrides=overrides, **changes)


compiler.get_compile_options = _quick_options


@pytest.fixture
def full_compilation():
    """Compiles with all optimizations, as for a user; for tests of the compiled programs."""

    def full(on):
        jax.config.update('jax_disable_most_optimizations', not on)
        jax.config.update('jax_enable_compilation_cache', not on)
        compilation_cache.reset_cache()  # it reads its settings only once
        models._build.cache_clear()  # drops the compiled programs of the models

    full(True)
    yield
    full(False)


@pytest.fixture(scope='session')
def data_cache(tmp_path_factory) -> str:
    """The cache of the built-in corpus, built once per session and shared by its workers."""
    if _CACHE:
        return corpus.build_cache(pathlib.Path(_CACHE))
    base = tmp_path_factory.getbasetemp()
    parallel = 'PYTEST_XDIST_WORKER' in os.environ
    return corpus.build_cache((base.parent if parallel else base) / 'data')


@pytest.fixture(scope='session')
def small_runs(tmp_path_factory) -> pathlib.Path:
    """A folder with text, small.py and its completed runs: runs/small_teacher and runs/small."""
    folder = tmp_path_factory.mktemp('commands')
    command_cases.make(folder)
    return folder


@pytest.fixture
def here(small_runs):
    """Makes the folder of the completed runs the working folder."""
    with command_cases.working_in(small_runs):
        yield small_runs


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory):
    """A tokenizer with all special tokens and one id per one-letter word."""
    return corpus.wordpiece_tokenizer(tmp_path_factory.mktemp('wordpiece'))
