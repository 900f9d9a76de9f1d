"""The device mesh, and the placement of arrays on it.

Axes: `data` splits the examples; `fsdp` splits the examples and every parameter; `tensor` splits
the matrix products.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax.config import SPLIT
from lightpaff_jax.errors import UserError
from lightpaff_jax.losses import BATCH_AXES

AXES = ('data', 'fsdp', 'tensor')

# Last two names of a parameter's path -> the mesh axis that splits each of its axes, without the
# leading axis of stacked layers. Parameters without a rule, and axes that the mesh axis does not
# divide, are replicated.
RULES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ('token_embedding', 'table'): ('tensor', 'fsdp'),
    ('decoder_token_embedding', 'table'): ('tensor', 'fsdp'),
    ('output', 'table'): ('tensor', 'fsdp'),
    ('position_embedding', 'table'): (None, 'fsdp'),
    ('encoder_position', 'table'): (None, 'fsdp'),
    ('decoder_position', 'table'): (None, 'fsdp'),
    ('qkv', 'kernel'): ('fsdp', None, 'tensor', None),
    ('query', 'kernel'): ('fsdp', 'tensor', None),
    ('kv', 'kernel'): ('fsdp', None, 'tensor', None),
    ('out', 'kernel'): ('tensor', None, 'fsdp'),
    ('up', 'kernel'): ('fsdp', 'tensor'),
    ('down', 'kernel'): ('tensor', 'fsdp'),
    ('transform', 'kernel'): ('fsdp', 'tensor'),
    ('pooler', 'kernel'): ('fsdp', 'tensor'),
}


def make_mesh(c: ConfigDict, devices: list | None = None) -> Mesh:
    """Builds the mesh of `config.mesh` over the devices (default all), or as many as it needs.

    With several TPU slices, `data` spans the network between slices, and the other axes stay within
    a slice.

    Raises:
      UserError: the number of slices does not divide `config.mesh.data`, or the devices do not form
        the mesh.
    """
    devices = jax.devices() if devices is None else devices
    fsdp, tensor = c.mesh.fsdp, c.mesh.tensor
    data = len(devices) // (fsdp * tensor) if c.mesh.data == -1 else c.mesh.data
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
    used_slices = -(-data * fsdp * tensor // (len(devices) // len(slices)))
    if data % used_slices:
        raise UserError(
            f'config.mesh.data = {data}: must be a multiple of the number of slices = {used_slices}'
        )
    slice_shape = (data // used_slices, fsdp, tensor)
    slice_size = data * fsdp * tensor // used_slices
    used = [x for devices in [*slices.values()][:used_slices] for x in devices[:slice_size]]
    try:
        if used_slices == 1:
            grid = mesh_utils.create_device_mesh(slice_shape, used, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                slice_shape, (used_slices, 1, 1), used, allow_split_physical_axes=True
            )
    except (NotImplementedError, ValueError, AssertionError) as error:  # jax raises all three
        raise UserError(
            f'config.mesh = (data {data}, fsdp {fsdp}, tensor {tensor}): {slice_size} devices of a '
            'slice do not form it; must take all devices of a slice, or a block of its grid'
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, micro: bool) -> NamedSharding:
    """Splits examples over `data` and `fsdp`; with `micro` they are axis 1 of [M, B/M, ...]."""
    return NamedSharding(mesh, P(None, BATCH_AXES) if micro else P(BATCH_AXES))


def param_shardings(mesh: Mesh, params: Any, split: Collection[str] = SPLIT) -> Any:
    """Chooses a NamedSharding for each parameter (array or ShapeDtypeStruct), by RULES.

    Mesh axes that are not in `split` have whole copies.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        axes = RULES.get(tuple(key.key for key in path[-2:]))
        if axes is None:
            return replicated(mesh)
        axes = (None,) * (len(leaf.shape) - len(axes)) + axes
        spec = [
            axis if axis in split and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(place, params)


def abstract_arrays(tree: Any, shardings: Any) -> Any:
    """Describes arrays, or ShapeDtypeStructs, as ShapeDtypeStructs with these shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def head_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of an output matrix [V, D] in the loss: split over `tensor` only."""
    return NamedSharding(mesh, P('tensor' if shape[0] % mesh.shape['tensor'] == 0 else None))


def local_rows(mesh: Mesh, size: int) -> Int[np.ndarray, ' b']:
    """Lists the indices of this process's rows in a batch or micro-batch of `size`, ascending.

    A mesh follows the links between chips, not the order of processes: the rows of a process may
    come from anywhere. Processes that share `tensor` have the same rows.
    """
    block = size // (mesh.shape['data'] * mesh.shape['fsdp'])
    return (np.array(_local_blocks(mesh))[:, None] * block + np.arange(block)).ravel()


def _local_blocks(mesh: Mesh) -> list[int]:
    """Lists the indices of the blocks of a batch on this process's devices, ascending."""
    grid = mesh.devices.reshape(-1, mesh.shape['tensor'])
    return [i for i, d in enumerate(grid) if any(x.process_index == jax.process_index() for x in d)]


def put_batch(mesh: Mesh, batch: Any, micro: bool) -> Any:
    """Assembles global arrays from this process's `local_rows` of each array."""
    sharding, blocks, axis = batch_sharding(mesh, micro), _local_blocks(mesh), int(micro)
    shards = mesh.shape['data'] * mesh.shape['fsdp']

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        block = x.shape[axis] // len(blocks)
        shape = (*x.shape[:axis], block * shards, *x.shape[axis + 1 :])

        def read(index: Any) -> np.ndarray:
            start = blocks.index((index[axis].start or 0) // block) * block
            return x[(*(slice(None),) * axis, slice(start, start + block))]

        return jax.make_array_from_callback(shape, sharding, read)

    return jax.tree.map(put, batch)


def prefetch(mesh: Mesh, batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches on all devices; each copy starts before the previous batch is used."""
    ahead: list = []
    for batch in batches:
        ahead.append(put_batch(mesh, batch, micro=True))
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead
