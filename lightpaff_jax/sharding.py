"""The device mesh, and where arrays live on it.

Axes: `data` splits the examples; `fsdp` splits the examples and every parameter;
`tensor` splits the matrix products.
"""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from lightpaff_jax.config import SPLIT
from lightpaff_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')

# Last names of a parameter's path -> which of its axes each mesh axis splits. A leading
# axis of stacked layers is not counted. What no rule names, and what an axis does not
# divide, is whole on every device.
RULES = (
    (('token_embedding', 'table'), ('tensor', 'fsdp')),
    (('decoder_token_embedding', 'table'), ('tensor', 'fsdp')),
    (('output', 'table'), ('tensor', 'fsdp')),
    (('position_embedding', 'table'), (None, 'fsdp')),
    (('encoder_position', 'table'), (None, 'fsdp')),
    (('decoder_position', 'table'), (None, 'fsdp')),
    (('qkv', 'kernel'), ('fsdp', None, 'tensor', None)),
    (('query', 'kernel'), ('fsdp', 'tensor', None)),
    (('kv', 'kernel'), ('fsdp', None, 'tensor', None)),
    (('out', 'kernel'), ('tensor', None, 'fsdp')),
    (('up', 'kernel'), ('fsdp', 'tensor')),
    (('down', 'kernel'), ('tensor', 'fsdp')),
    (('transform', 'kernel'), ('fsdp', 'tensor')),
    (('pooler', 'kernel'), ('fsdp', 'tensor')),
)


def make_mesh(c: ConfigDict, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices (or those given), or as many as it names.

    Of several TPU slices, `data` goes over the network between them, and the other axes stay
    within one.

    Raises:
      UserError: the slices do not divide `config.mesh.data`, or the devices do not form the mesh.
    """
    devices = jax.devices() if devices is None else devices
    model = c.mesh.fsdp * c.mesh.tensor
    data = len(devices) // model if c.mesh.data == -1 else c.mesh.data
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
    size = len(devices) // len(slices)
    used = -(-data * model // size)
    if data % used:
        raise UserError(
            f'config.mesh.data = {data}: must be a multiple of the number of slices = {used}'
        )
    inside = (data // used, c.mesh.fsdp, c.mesh.tensor)
    each = data * model // used
    chosen = [device for one in list(slices.values())[:used] for device in one[:each]]
    try:
        if used == 1:
            grid = mesh_utils.create_device_mesh(inside, chosen, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                inside, (used, 1, 1), chosen, allow_split_physical_axes=True
            )
    except (NotImplementedError, ValueError, AssertionError) as error:  # all three, of the library
        raise UserError(
            f'config.mesh = (data {data}, fsdp {c.mesh.fsdp}, tensor {c.mesh.tensor}): {each} devices of '
            'a slice do not form it; must take all devices of a slice, or a block of its grid'
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, micro: bool) -> NamedSharding:
    """Examples over `data` and `fsdp`; a batch of micro-batches [M, B/M, ...] on axis 1."""
    return NamedSharding(mesh, P(None, ('data', 'fsdp')) if micro else P(('data', 'fsdp')))


def param_shardings(mesh: Mesh, params, split: Collection[str] = SPLIT):
    """A NamedSharding for each parameter (of arrays or ShapeDtypeStructs), by RULES.

    Mesh axes that `split` does not name hold whole copies.
    """

    def place(path, leaf):
        return NamedSharding(mesh, _spec(mesh, tuple(k.key for k in path), leaf.shape, split))

    return jax.tree_util.tree_map_with_path(place, params)


def abstract_arrays(tree, places):
    """ShapeDtypeStructs of a tree of arrays, or of their likes, on the devices of `places`."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def head_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """An output matrix [V, D] gathered for the loss: split over `tensor` alone."""
    return NamedSharding(mesh, P('tensor' if shape[0] % mesh.shape['tensor'] == 0 else None))


def _spec(mesh: Mesh, names: tuple, shape: tuple[int, ...], split: Collection[str]) -> P:
    for last, axes in RULES:
        if names[-len(last) :] == last:
            stacked = len(shape) - len(axes)
            wanted = (None,) * stacked + axes
            fits = [
                axis if axis in split and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(wanted, shape, strict=True)
            ]
            return P(*fits)
    return P()


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Which rows of `size`, of a global batch or micro-batch, this process's devices hold; rising.

    A mesh follows the wires between chips, not the order of the processes: a process may hold rows
    from anywhere, and where `tensor` goes over several processes, the same rows as another.
    """
    each = size // (mesh.shape['data'] * mesh.shape['fsdp'])
    return (np.array(_blocks(mesh))[:, None] * each + np.arange(each)).ravel()


def _blocks(mesh: Mesh) -> list[int]:
    """Numbers of the parts of a batch that this process's devices hold, rising."""
    grid = mesh.devices.reshape(-1, mesh.shape['tensor'])
    return [i for i, d in enumerate(grid) if any(x.process_index == jax.process_index() for x in d)]


def put_batch(mesh: Mesh, batch, micro: bool):
    """This process's `rows` of a global batch -> one array over all devices."""
    sharding, blocks, axis = batch_sharding(mesh, micro), _blocks(mesh), int(micro)
    shards = mesh.shape['data'] * mesh.shape['fsdp']

    def put(x):
        x = np.asarray(x)
        each = x.shape[axis] // len(blocks)
        shape = (*x.shape[:axis], each * shards, *x.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            place = blocks.index((index[axis].start or 0) // each) * each
            return x[(*(slice(None),) * axis, slice(place, place + each))]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, batch)


def prefetch(mesh: Mesh, batches):
    """Batches of micro-batches on all devices: the copy of one begins before the last is used."""
    ahead: list = []
    for batch in batches:
        ahead.append(put_batch(mesh, batch, micro=True))
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead
