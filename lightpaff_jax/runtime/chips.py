"""TPU chips: what one has, and the devices of a slice that need not be there.

Figures are Google's system architecture pages of Cloud TPU; HBM is what the compiler lets a
program use, which is less.
"""

import importlib.util
import os
from typing import NamedTuple

from lightpaff_jax.errors import UserError, nearest

GIB = 1 << 30


class Chip(NamedTuple):
    """Of one chip, which is one device."""

    hbm: float
    """Bytes that a program may use."""
    flops: float
    """Of matrix products in bfloat16, a second."""
    hbm_rate: float
    """Bytes a second to and from HBM."""
    ici_rate: float
    """Bytes a second to its neighbours, all links together."""


CHIPS = {
    'v4': Chip(30.75 * GIB, 275e12, 1228e9, 300e9),
    'v5e': Chip(15.75 * GIB, 197e12, 819e9, 200e9),
    'v5p': Chip(95.74 * GIB, 459e12, 2765e9, 600e9),
    'v6e': Chip(31.25 * GIB, 918e12, 1640e9, 448e9),
}


def devices(topology: str, slices: int = 1) -> list:
    """The devices of a slice, described: programs can be compiled for them, and not run.

    Args:
      topology: NAME:SHAPE, as v5e:4x4 or v5p:2x2x2.
      slices: how many of them, joined by the data centre's network.

    Raises:
      UserError: no such chip or shape, or no compiler for TPUs.
    """
    name, colon, shape = topology.partition(':')
    if name not in CHIPS or not colon:
        known = ', '.join(CHIPS)
        raise UserError(
            f'--topology={topology}: must be CHIP:SHAPE with a chip of {known}, as v5e:4x4'
            f'{nearest(name, list(CHIPS))}'
        )
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            '--topology: needs the compiler for TPUs, the extra tpu: ./launch/environment.sh tpu'
        )
    # Before the library is loaded: it must not look for a TPU, complain that there is none, nor be alone
    # on this machine.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
    from jax.experimental import topologies

    options: dict = {} if slices == 1 else {'num_slices': slices}
    if name == 'v4':
        options['chip_config_name'] = 'megacore'  # both cores of a chip are one device
    if set(shape.split('x')) == {'1'}:
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
    except Exception as error:
        text = ' '.join(str(error).split())
        raise UserError(f'--topology={topology}: {text[:200]}') from error
    return list(found.devices)
