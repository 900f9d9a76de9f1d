"""TPU chips: their speeds and sizes, and the devices of slices that need not be attached."""

import importlib.util
import os
from typing import NamedTuple

from lightpaff_jax.errors import UserError, nearest, one_line

GIB = 1 << 30


class Chip(NamedTuple):
    """One chip, which JAX shows as one device."""

    hbm: float
    """Bytes of HBM that the compiler lets a program use; less than the chip has."""
    flops: float
    """FLOPs per second of matrix products in bfloat16."""
    hbm_rate: float
    """Bytes per second between chip and HBM."""
    ici_rate: float
    """Bytes per second to the neighbour chips, over all links."""


# Figures of Google's pages on the system architecture of Cloud TPU.
CHIPS = {
    'v4': Chip(30.75 * GIB, 275e12, 1228e9, 300e9),
    'v5e': Chip(15.75 * GIB, 197e12, 819e9, 200e9),
    'v5p': Chip(95.74 * GIB, 459e12, 2765e9, 600e9),
    'v6e': Chip(31.25 * GIB, 918e12, 1640e9, 448e9),
}


def devices(topology: str, slices: int = 1) -> list:
    """Returns descriptions of the devices of a slice, for which programs can be compiled.

    Args:
      topology: CHIP:SHAPE, for example v5e:4x4 or v5p:2x2x2.
      slices: number of such slices, which the network of the data centre joins.

    Raises:
      UserError: the chip or the shape does not exist, or libtpu is not installed.
    """
    name, colon, shape = topology.partition(':')
    if name not in CHIPS or not colon:
        raise UserError(
            f'--topology={topology}: must be CHIP:SHAPE with a chip of {", ".join(CHIPS)}, as '
            f'v5e:4x4{nearest(name, list(CHIPS))}'
        )
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            '--topology: needs the compiler for TPUs, the extra tpu: ./launch/environment.sh tpu'
        )
    # Set before libtpu is loaded: it must not search for an attached TPU, nor lock the machine.
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
        return list(topologies.get_topology_desc(topology, 'tpu', **options).devices)
    except Exception as error:  # the plugin raises many types
        raise UserError(f'--topology={topology}: {one_line(error)[:200]}') from error
