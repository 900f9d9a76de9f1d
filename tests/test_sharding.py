"""The mesh and the placement of arrays on it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lightpaff_jax import config, models, sharding
from lightpaff_jax.errors import UserError


def mesh_of(data, fsdp, tensor):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = data, fsdp, tensor
    return sharding.make_mesh(c)


def test_data_axis_takes_the_remaining_devices():
    assert dict(mesh_of(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_matrices_are_split_over_fsdp_and_tensor():
    params = models.build(config.network()).abstract_params
    places = sharding.param_shardings(mesh_of(2, 2, 2), params)
    for path, place in jax.tree_util.tree_leaves_with_path(places):
        axes = {axis for axis in place.spec if axis}
        matrix = path[-1].key in ('kernel', 'table')
        position = path[0].key == 'position_embedding'
        expected = {'fsdp'} if position else {'fsdp', 'tensor'} if matrix else set()
        assert axes == expected, path


def test_indivisible_axes_are_replicated():
    params = models.build(config.network(width=30, heads=3, ffn=50)).abstract_params
    places = sharding.param_shardings(mesh_of(1, 2, 4), params)
    assert places['blocks']['attention']['qkv']['kernel'].spec == P(None, 'fsdp', None, None, None)
    assert places['blocks']['ffn']['up']['kernel'].spec == P(None, 'fsdp', None)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that a mesh reads."""

    id: int
    slice_index: int
    platform: str = 'cpu'
    device_kind: str = 'cpu'

    @property
    def process_index(self):
        return self.slice_index


def chips_of_slices(*sizes):
    owners = [index for index, size in enumerate(sizes) for _ in range(size)]
    return [Chip(number, index) for number, index in enumerate(owners)]


@pytest.mark.parametrize(
    ('mesh', 'expected'),
    [
        ((-1, 2, 2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((4, 2, 1), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((2, 2, 1), [[0, 1, 2, 3]]),  # fits on one slice
        ((6, 1, 1), [[0, 1, 2], [4, 5, 6]]),
    ],
)
def test_only_the_data_axis_spans_slices(mesh, expected):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    grid = sharding.make_mesh(c, chips_of_slices(4, 4)).devices
    parts = np.split(grid, len(expected))
    assert [sorted(x.id for x in part.ravel()) for part in parts] == expected


def test_data_axis_must_be_a_multiple_of_slices():
    c = config.default()
    c.mesh.data = 5
    with pytest.raises(UserError, match='data = 5: must be a multiple of the number of slices = 2'):
        sharding.make_mesh(c, chips_of_slices(4, 4))


@pytest.mark.parametrize('micro', [False, True])
def test_each_device_has_its_rows_of_each_microbatch(micro):
    mesh = mesh_of(4, 2, 1)
    rows = np.arange(32).reshape(2, 16) if micro else np.arange(16)
    placed = sharding.put_batch(mesh, rows, micro)
    np.testing.assert_array_equal(placed, rows)
    sizes = {shard.data.shape for shard in placed.addressable_shards}
    assert sizes == ({(2, 2)} if micro else {(2,)})
    np.testing.assert_array_equal(sharding.local_rows(mesh, 16), np.arange(16))
