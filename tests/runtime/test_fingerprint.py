"""A digest depends on the bytes of an array, and not on its sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from lightpaff_jax.runtime import fingerprint


def test_digest_is_equal_for_all_shardings():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (16, 8))
    digests = {
        fingerprint.entries({'x': jax.device_put(x, NamedSharding(mesh, spec))})['x']['digest']
        for spec in (P(), P('data'), P(None, 'data'))
    }
    assert digests == {fingerprint.entries({'x': x})['x']['digest']}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool'])
def test_digest_changes_with_any_bit_and_any_swap(dtype):
    x = np.array([0, 1, 1, 1] if dtype == 'bool' else [3, 14, 15, 92]).astype(dtype)
    data = np.frombuffer(x.tobytes(), np.uint8)
    rows = [data, np.frombuffer(x[::-1].tobytes(), np.uint8)]
    for bit in range(0, 8 * x.nbytes, 8 if dtype == 'bool' else 1):
        rows.append(data.copy())
        rows[-1][bit // 8] ^= 1 << bit % 8
    if dtype != 'bool':  # two sign bits, which a weighted sum mod 2^32 misses
        rows.append(data.copy())
        rows[-1][[x.itemsize - 1, 2 * x.itemsize - 1]] ^= 0x80
    different = {row.tobytes() for row in rows}
    assert len(different) >= len(rows) - 1
    arrays = jnp.asarray(np.stack([np.frombuffer(row, x.dtype) for row in different]))
    digests = np.asarray(jax.jit(jax.vmap(fingerprint._digest))(arrays))
    assert len({tuple(digest) for digest in digests.tolist()}) == len(different)


def test_entries_of_equal_bytes_differ_by_shape_and_type():
    x = jnp.zeros(4, jnp.float32)
    arrays = {'a': x, 'b': x.reshape(2, 2), 'c': x.astype(jnp.int32)}
    assert len({str(entry) for entry in fingerprint.entries(arrays).values()}) == 3
    assert len({fingerprint.fingerprint({'x': value}) for value in arrays.values()}) == 3
