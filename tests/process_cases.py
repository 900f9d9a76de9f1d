"""What processes of their own are started with."""

import os
import pathlib

from lightpaff_jax import config

ROOT = pathlib.Path(config.__file__).parents[1]


def environment(**changes):
    """Of a process that knows nothing of this test session's devices."""
    return os.environ | {
        'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        **changes,
    }  # fmt: skip
