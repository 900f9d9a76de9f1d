"""Computes digests of arrays, independent of sharding: they verify checkpoints and name networks.

Also finds the arrays that hold a NaN or an infinity.
"""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Arrays = dict[str, Any]  # path of an array in a tree ('params/blocks/kernel') -> the array


def fingerprint(params: PyTree) -> str:
    """Returns 16 hex digits that name the names, shapes, types and bytes of all arrays."""
    return sha256(entries(flatten(params)))[:16]


def flatten(tree: PyTree) -> Arrays:
    """Returns the leaves by their path, in the order of the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def unflatten(arrays: Arrays) -> dict:
    """Returns nested dicts: {'a/b': x} -> {'a': {'b': x}}."""
    root: dict = {}
    for path, value in arrays.items():
        *parents, name = path.split('/')
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, root)
        node[name] = value
    return root


def entries(arrays: Arrays) -> dict[str, dict]:
    """Returns shape, type and digest of each array. Only the digests are copied to the host."""
    with jax.set_mesh(_mesh([*arrays.values()])):  # the caller's mesh may have other devices
        sums = np.asarray(_digests([*arrays.values()])).tolist()
    return {
        name: {'shape': [*x.shape], 'dtype': str(x.dtype), 'digest': f'{a:08x}{b:08x}'}
        for (name, x), (a, b) in zip(arrays.items(), sums, strict=True)
    }


def non_finite(tree: PyTree) -> list[str]:
    """Returns the paths of the arrays that hold a NaN or an infinity."""
    arrays = flatten(tree)
    with jax.set_mesh(_mesh([*arrays.values()])):
        finite = np.asarray(_are_finite([*arrays.values()])).tolist()
    return [name for name, is_finite in zip(arrays, finite, strict=True) if not is_finite]


def record(step: int, arrays: Arrays, meta: dict) -> dict:
    """Returns the record of a checkpoint: step, entries, digests of meta and of the record."""
    content = {'step': step, 'arrays': entries(arrays), 'meta': sha256(meta)}
    return content | {'self': sha256(content)}


def sha256(data: Any) -> str:
    """Computes the digest of JSON data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _mesh(arrays: list[jax.Array]) -> Any:
    sharding = max((x.sharding for x in arrays), key=lambda s: len(s.device_set))
    if isinstance(sharding, jax.sharding.NamedSharding):
        return sharding.mesh
    return jax.sharding.Mesh(np.array([*sharding.device_set]), ('all',))


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays])


@jax.jit
def _digests(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_digest(x) for x in arrays])


def _digest(x: jax.Array) -> jax.Array:
    """Computes uint32 [2]: for two seeds, the sum over i of mix(word_i ^ mix(i + seed)) mod 2^32.

    A word holds the bits of an element (an element of 8 bytes has two words), and i is its index in
    the global array. A sum has no order, so neither shardings nor processes matter. As mix is a
    permutation, a change inside one word always changes both sums; any other change does with
    probability 1 - 2^-64.
    """
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    word_type = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[bits.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(bits, word_type).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += iota * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    seeds = (0x9E3779B9, 0x7F4A7C15)
    return jnp.stack(
        [jnp.sum(_mix(words ^ _mix(index + jnp.uint32(s))), dtype=jnp.uint32) for s in seeds]
    )


def _mix(h: jax.Array) -> jax.Array:
    """Applies the finalizer of MurmurHash3, a permutation of uint32: each bit affects all bits."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
