"""Keys and values of tokens that were read before, for decoding one token at a time.

Axes: B batch, S source time or cached tokens, W hypotheses of one row, H heads, K head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

KVCache = dict[str, Array]  # 'key' and 'value' of one attention, each [B H S K]


def make(k_BSHK: Array, v_BSHK: Array) -> KVCache:
    """Arranges keys and values as a cache."""
    return {'key': k_BSHK.swapaxes(1, 2), 'value': v_BSHK.swapaxes(1, 2)}


def cached_attention(
    q_BWHK: Array, caches: Sequence[KVCache], visible: Sequence[Bool[Array, 'B W S']]
) -> Float[Array, 'B W H K']:
    """Computes softmax attention from single tokens to all caches together.

    The W hypotheses of a row share its caches. `visible` is, for each cache, whether a hypothesis
    attends to a token; B or W may be 1.
    """
    q_BHWK = (q_BWHK * q_BWHK.shape[-1] ** -0.5).swapaxes(1, 2)
    logits = [
        jnp.where(
            visible_BWS[:, None],
            jnp.einsum('bhwk,bhsk->bhws', q_BHWK, cache['key'], preferred_element_type=jnp.float32),
            jnp.finfo(jnp.float32).min,
        )
        for cache, visible_BWS in zip(caches, visible, strict=True)
    ]
    weights = jax.nn.softmax(jnp.concatenate(logits, -1)).astype(q_BWHK.dtype)
    shares = jnp.split(weights, np.cumsum([part.shape[-1] for part in logits])[:-1], axis=-1)
    mixed = [
        jnp.einsum('bhws,bhsk->bhwk', share, cache['value'])
        for share, cache in zip(shares, caches, strict=True)
    ]
    return sum(mixed[1:], mixed[0]).swapaxes(1, 2)


def scan_caches(
    blocks: nnx.Module, x: Array, cache: Callable[[Any, Array], KVCache], *constants: Any
) -> KVCache:
    """Passes x through stacked blocks without dropout; returns `cache(block, x)` of all layers."""
    graph, params = nnx.split(blocks)

    def step(x, params):
        block = nnx.merge(graph, params)
        return block(x, None, *constants), cache(block, x)

    return jax.lax.scan(step, x, params)[1]


def layer_caches(name: str, stacked: KVCache, size: int) -> list[dict[str, KVCache]]:
    """Returns each layer's part of `stacked` by `name`, and by 'generated' an empty cache."""

    def empty(x):
        return jnp.zeros((*x.shape[:2], size, x.shape[3]), x.dtype)

    return [{name: cache, 'generated': jax.tree.map(empty, cache)} for cache in unstack(stacked)]


def unstack(tree: Any) -> list[Any]:
    """Splits arrays that are stacked by layer; returns a tree for each layer."""
    layers = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(layers)]
