"""Digests of arrays, the same for any sharding: what a checkpoint verifies, what names a teacher."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Arrays = dict[str, Any]  # path of an array in a tree ('params/blocks/kernel') -> the array


def fingerprint(params: PyTree) -> str:
    """16 hex digits of the names, shapes, types and bytes of all arrays, wherever they lie."""
    return sha256(entries(flatten(params)))[:16]


def flatten(tree: PyTree) -> Arrays:
    """Leaves by their path, in the order of the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def unflatten(arrays: Arrays) -> dict:
    """{'a/b': x} -> {'a': {'b': x}}."""
    root: dict = {}
    for name, value in arrays.items():
        *parents, last = name.split('/')
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return root


def _mix(h: jax.Array) -> jax.Array:
    """Finalizer of MurmurHash3: a permutation of uint32 in which every bit moves every bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _digest(x: jax.Array) -> jax.Array:
    """uint32 [2]: for two seeds, sum over i of mix(word_i ^ mix(i + seed)) mod 2^32.

    A word is an element's bits (two words an element of 8 bytes), i its index in the global
    array. A sum has no order, so shardings and processes do not matter. mix is a permutation:
    a change inside one word always changes both sums, any other with probability 1 - 2^-64.
    """
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[bits.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(bits, kind).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += iota * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    seeds = (0x9E3779B9, 0x7F4A7C15)
    return jnp.stack(
        [jnp.sum(_mix(words ^ _mix(index + jnp.uint32(s))), dtype=jnp.uint32) for s in seeds]
    )


@jax.jit
def _digests(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_digest(x) for x in arrays])


def _mesh(arrays: list[jax.Array]):
    sharding = max((x.sharding for x in arrays), key=lambda s: len(s.device_set))
    if isinstance(sharding, jax.sharding.NamedSharding):
        return sharding.mesh
    return jax.sharding.Mesh(np.array([*sharding.device_set]), ('all',))


def entries(arrays: Arrays) -> dict[str, dict]:
    """What the record says of each array. Only the sums leave the device."""
    with jax.set_mesh(_mesh([*arrays.values()])):  # the caller's may have other devices
        sums = np.asarray(_digests([*arrays.values()])).tolist()
    return {
        name: {'shape': [*x.shape], 'dtype': str(x.dtype), 'digest': f'{a:08x}{b:08x}'}
        for (name, x), (a, b) in zip(arrays.items(), sums, strict=True)
    }


def sha256(data: Any) -> str:
    """Of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def record(arrays: Arrays, meta: dict) -> dict:
    """What is saved beside the arrays: their entries, and digests of `meta` and of itself."""
    found = {'arrays': entries(arrays), 'meta': sha256(meta)}
    return found | {'self': sha256(found)}
