"""Where arrays lie on a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lightpaff_jax import config, models, sharding


def mesh_of(data, fsdp, tensor):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = data, fsdp, tensor
    return sharding.make_mesh(c)


def test_data_takes_the_devices_that_are_left():
    assert dict(mesh_of(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_every_matrix_is_split_over_fsdp_and_tensor_where_they_divide_it():
    params = models.build(config.network()).abstract
    places = sharding.of_params(mesh_of(2, 2, 2), params)
    for path, place in jax.tree_util.tree_leaves_with_path(places):
        axes = {axis for axis in place.spec if axis}
        matrix = path[-1].key in ('kernel', 'table')
        position = path[0].key == 'position_embedding'
        expected = {'fsdp'} if position else {'fsdp', 'tensor'} if matrix else set()
        assert axes == expected, path


def test_what_an_axis_does_not_divide_is_whole():
    params = models.build(config.network(width=30, heads=3, ffn=50)).abstract
    places = sharding.of_params(mesh_of(1, 2, 4), params)
    assert places['blocks']['attention']['qkv']['kernel'].spec == P(None, 'fsdp', None, None, None)
    assert places['blocks']['ffn']['up']['kernel'].spec == P(None, 'fsdp', None)


@pytest.mark.parametrize('micro', [False, True])
def test_each_device_holds_its_rows_of_every_micro_batch(micro):
    mesh = mesh_of(4, 2, 1)
    rows = np.arange(32).reshape(2, 16) if micro else np.arange(16)
    placed = sharding.put_batch(mesh, rows, micro)
    np.testing.assert_array_equal(placed, rows)
    sizes = {shard.data.shape for shard in placed.addressable_shards}
    assert sizes == ({(2, 2)} if micro else {(2,)})
