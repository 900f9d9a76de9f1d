"""Makes states, saves them, compares them bit for bit and damages their files."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lightpaff_jax.checkpoint import Checkpoints

META = {'position': 7, 'config': {'seed': 0, 'optim': {'peak_lr': 1e-3}}, 'teacher': None}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


def make_state(seed: int, width: int = 16) -> State:
    key = jax.random.key(seed)
    params = {
        'blocks': {'attn': {'qkv': {'kernel': jax.random.normal(key, (2, width, 8))}}},
        'half': jax.random.normal(key, (width, 3)).astype(jnp.bfloat16),
        'ids': jax.random.randint(key, (5,), -9, 9, jnp.int8),
        'mask': jnp.array([True, False, True]),
        'scale': jnp.float32(seed),
    }
    opt_state = optax.adamw(1e-3).init(params)
    moments = jax.tree.map(lambda x: (x + 1).astype(x.dtype), opt_state)
    return State(jnp.int32(seed), params, moments)


def small_state(seed: int) -> State:
    kernel = jax.random.normal(jax.random.key(seed), (16, 32))
    params = {'blocks': {'kernel': kernel, 'half': kernel[0].astype(jnp.bfloat16)}}
    moments = optax.TraceState({'kernel': kernel * 2})
    return State(jnp.int32(seed), params, (moments, optax.EmptyState()))


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def same_bits(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def save_steps(directory: pathlib.Path, *steps: int, keep: int = 9) -> pathlib.Path:
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), META | {'position': step})
    return directory


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)
