"""Where arrays lie on a mesh."""

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


def test_data_takes_the_devices_that_are_left():
    assert dict(mesh_of(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_every_matrix_is_split_over_fsdp_and_tensor_where_they_divide_it():
    params = models.build(config.network()).abstract_params
    places = sharding.param_shardings(mesh_of(2, 2, 2), params)
    for path, place in jax.tree_util.tree_leaves_with_path(places):
        axes = {axis for axis in place.spec if axis}
        matrix = path[-1].key in ('kernel', 'table')
        position = path[0].key == 'position_embedding'
        expected = {'fsdp'} if position else {'fsdp', 'tensor'} if matrix else set()
        assert axes == expected, path


def test_what_an_axis_does_not_divide_is_whole():
    params = models.build(config.network(width=30, heads=3, ffn=50)).abstract_params
    places = sharding.param_shardings(mesh_of(1, 2, 4), params)
    assert places['blocks']['attention']['qkv']['kernel'].spec == P(None, 'fsdp', None, None, None)
    assert places['blocks']['ffn']['up']['kernel'].spec == P(None, 'fsdp', None)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a slice, as far as a mesh asks of it."""

    id: int
    slice_index: int
    platform: str = 'cpu'
    device_kind: str = 'cpu'

    @property
    def process_index(self):
        return self.slice_index


def of_slices(*sizes):
    owners = [one for one, size in enumerate(sizes) for _ in range(size)]
    return [Chip(number, one) for number, one in enumerate(owners)]


@pytest.mark.parametrize(
    ('mesh', 'wanted'),
    [
        ((-1, 2, 2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((4, 2, 1), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ((2, 2, 1), [[0, 1, 2, 3]]),  # one slice has room for it
        ((6, 1, 1), [[0, 1, 2], [4, 5, 6]]),
    ],
)
def test_over_slices_goes_data_alone(mesh, wanted):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    grid = sharding.make_mesh(c, of_slices(4, 4)).devices
    parts = np.split(grid, len(wanted))
    assert [sorted(x.id for x in part.ravel()) for part in parts] == wanted


def test_what_slices_do_not_divide_is_said():
    c = config.default()
    c.mesh.data = 5
    with pytest.raises(UserError, match='data = 5: must be a multiple of the number of slices = 2'):
        sharding.make_mesh(c, of_slices(4, 4))


@pytest.mark.parametrize('micro', [False, True])
def test_each_device_holds_its_rows_of_every_micro_batch(micro):
    mesh = mesh_of(4, 2, 1)
    rows = np.arange(32).reshape(2, 16) if micro else np.arange(16)
    placed = sharding.put_batch(mesh, rows, micro)
    np.testing.assert_array_equal(placed, rows)
    sizes = {shard.data.shape for shard in placed.addressable_shards}
    assert sizes == ({(2, 2)} if micro else {(2,)})
    np.testing.assert_array_equal(sharding.local_rows(mesh, 16), np.arange(16))
