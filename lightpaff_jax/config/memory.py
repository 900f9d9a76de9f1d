"""Compares the least memory that settings need with the memory of the machine.

A setting that is too large by a factor of thousands is refused before it fills the memory or fails
after hours of training. These are lower bounds: accepted settings may still need too much memory.
"""

import math
import os
from collections.abc import Iterator

from ml_collections import ConfigDict

from lightpaff_jax.config import GENERATION_METRICS
from lightpaff_jax.errors import UserError

_PROCESS = 1 << 25  # bytes of a process that tokenizes, at least
_NAME = 64  # bytes of the name of a class
_FLOAT = 4  # bytes of a float32 or an id


def check_host(c: ConfigDict, machines: int = 1) -> None:
    """Checks the settings that decide the memory of the host.

    Args:
      c: a valid configuration.
      machines: number of machines, which share the batches.

    Raises:
      UserError: names the setting that needs more memory than the machines have.
    """
    for key, size in _host_sizes(c).items():
        _check(c, key, size, machines * host_memory())


def check_devices(c: ConfigDict, available: int) -> None:
    """Checks the settings that decide the memory of the devices; `available` is that of all.

    Raises:
      UserError: names the setting that needs more memory than the devices have.
    """
    for name in ('student', 'teacher'):
        check_network(f'config.{name}', c[name], available)
    for key, size in _device_sizes(c):
        _check(c, key, size, available)


def check_network(where: str, network: ConfigDict, available: int) -> None:
    """Raises UserError if the parameters of a network need more memory than available."""
    count = parameter_count(network)
    if _FLOAT * count > available:
        names = ['vocab_size', 'positions', 'type_vocab_size', 'classes']
        names += ['layers', 'decoder_layers', 'width', 'ffn']
        sizes = ', '.join(f'{name} {network[name]}' for name in names)
        raise UserError(f'{where}: a network of {sizes}: {_rule(_FLOAT * count, available)}')


def check_generation(
    network: ConfigDict, batch_size: int, beams: int, max_length: int, available: int
) -> None:
    """Raises UserError if a search for texts needs more memory than available."""
    size = _generation_size(network, batch_size, beams, max_length)
    if size > available:
        raise UserError(
            f'batch_size = {batch_size}, beams = {beams}, max_length = {max_length}: '
            f'{_rule(size, available)}'
        )


def parameter_count(network: ConfigDict) -> int:
    """Returns the number of parameters in the matrices of a network."""
    width, layers = network.width, network.layers + network.decoder_layers
    rows = network.vocab_size + network.positions + network.type_vocab_size + network.classes
    return width * (rows + layers * (4 * width + 2 * network.ffn))


def host_memory() -> int:
    """Returns the bytes of memory of this machine."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _host_sizes(c: ConfigDict) -> dict[str, int]:
    ids = _FLOAT * (c.data.length + c.data.target_length)
    return {
        'data.classes': _NAME * c.data.classes,
        'data.workers': _PROCESS * c.data.workers,
        'data.length': ids,
        'data.batch_size': ids * c.data.batch_size,
        'data.prefetch': ids * c.data.batch_size * c.data.prefetch,
        'eval.batch_size': ids * c.eval.batch_size,
    }


def _device_sizes(c: ConfigDict) -> Iterator[tuple[str, int]]:
    features = _FLOAT * c.student.width * (c.data.length + c.data.target_length)
    yield 'data.batch_size', features * c.data.batch_size // c.train.grad_accum_steps
    yield 'eval.batch_size', features * c.eval.batch_size
    if c.eval.metric in GENERATION_METRICS:
        longest = c.generate.max_length or c.data.target_length
        sizes = c.eval.batch_size, c.generate.beams, longest
        yield 'generate.beams', _generation_size(c.student, *sizes)


def _generation_size(network: ConfigDict, batch_size: int, beams: int, max_length: int) -> int:
    """Returns the bytes of scores, and of keys and values in bfloat16, of all hypotheses."""
    layers = network.decoder_layers or network.layers
    cached = 2 * 2 * layers * network.width * max_length
    return batch_size * beams * (_FLOAT * network.vocab_size + cached)


def _check(c: ConfigDict, key: str, size: int, available: int) -> None:
    if size > available:
        section, _, name = key.partition('.')
        raise UserError(f'config.{key} = {c[section][name]}: {_rule(size, available)}')


def _rule(size: int, available: int) -> str:
    return f'needs at least {_format(size)} of memory, {_format(available)} are available'


def _format(size: int) -> str:
    """Formats bytes with three digits: 1.5 GB."""
    return f'{size / 10**9:.3g} GB' if size < 10**15 else f'10^{math.log10(size) - 9:.0f} GB'
