"""The environment of processes that tests start."""

import importlib.metadata
import os
import pathlib

from lightpaff_jax import config

ROOT = pathlib.Path(config.__file__).parents[2]

# Halves the time to compile on a CPU. Later versions of jax reject these options.
QUICK = (
    {'xla_cpu_use_fusion_emitters': False, 'xla_cpu_parallel_codegen_split_count': 1}
    if importlib.metadata.version('jax').startswith('0.10.')
    else {}
)


def environment(**changes: str) -> dict[str, str]:
    """Returns the environment of a process that does not have this session's devices."""
    inherited = {name: x for name, x in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    return {
        **inherited,  # without the variable that jax has set in this process
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        **changes,
    }
