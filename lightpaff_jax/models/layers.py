"""Layers that the families share, as Flax NNX modules.

Letters: B batch, T time, D width, H heads, K head width, F feed-forward, L layers, V vocabulary.
Parameters are float32; matrix products run in `dtype`; softmax and norms in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


def normal(key, shape, std: float) -> nnx.Param:
    """Normal values of standard deviation `std`."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """Zeros, as biases begin."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class Embedding(nnx.Module):
    """Rows of a table [V, D]; rows from `used` on are padding, zero, and never read."""

    def __init__(self, rows: int, used: int, width: int, std: float, rngs: nnx.Rngs):
        table = std * jax.random.normal(rngs.params(), (used, width), jnp.float32)
        self.table = nnx.Param(jnp.pad(table, [(0, rows - used), (0, 0)]))

    def __call__(self, ids: Int[Array, '...'], dtype) -> Float[Array, '... D']:
        # Cast after the gather: the gradients of one id's occurrences add up in float32.
        return self.table[...][ids].astype(dtype)


class LayerNorm(nnx.Module):
    """Normalises the features in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = zeros(width)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        high = x.astype(jnp.float32)
        centred = high - jnp.mean(high, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normal_ = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal_ * self.scale[...] + self.bias[...]).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; one product makes queries, keys and values."""

    def __init__(self, width: int, heads: int, std: float, out_std: float, rngs: nnx.Rngs):
        shape = (width, 3, heads, width // heads)
        self.qkv = Linear(shape, 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, out_std, rngs)

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], *, causal: bool, key=None, dropout: float = 0.0
    ) -> Float[Array, 'B T D']:
        q_BTHK, k_BTHK, v_BTHK = jnp.moveaxis(self.qkv(x_BTD), -3, 0)
        if key is None or not dropout:
            mixed_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, is_causal=causal)
        else:
            mixed_BTHK = _attention_with_dropout(q_BTHK, k_BTHK, v_BTHK, causal, key, dropout)
        return self.out(mixed_BTHK)


def _attention_with_dropout(q_BTHK, k_BSHK, v_BSHK, causal, key, rate):
    logits_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    logits_BHTS *= q_BTHK.shape[-1] ** -0.5
    if causal:
        seen_TS = jnp.tri(q_BTHK.shape[1], k_BSHK.shape[1], dtype=bool)
        logits_BHTS = jnp.where(seen_TS, logits_BHTS, jnp.finfo(jnp.float32).min)
    weights_BHTS = jax.nn.softmax(logits_BHTS).astype(q_BTHK.dtype)
    return jnp.einsum('bhts,bshk->bthk', drop(weights_BHTS, key, rate), v_BSHK)


class FeedForward(nnx.Module):
    """Up to F, an activation, and down to D."""

    def __init__(self, width: int, ffn: int, activation: Callable, std: float, out_std: float,
                 rngs: nnx.Rngs):  # fmt: skip
        self.up = Linear((width, ffn), 1, std, rngs)
        self.down = Linear((ffn, width), 1, out_std, rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        return self.down(self.activation(self.up(x)))


class Linear(nnx.Module):
    """Contracts the last `inputs` axes of x with the first of its kernel, and adds a bias."""

    def __init__(self, shape: tuple[int, ...], inputs: int, std: float, rngs: nnx.Rngs):
        self.kernel = normal(rngs.params(), shape, std)
        self.bias = zeros(*shape[inputs:])
        self.inputs = inputs

    def __call__(self, x):
        axes = tuple(range(self.inputs))
        contracted = tuple(x.ndim - self.inputs + i for i in axes)
        kernel = self.kernel[...].astype(x.dtype)
        product = jax.lax.dot_general(x, kernel, ((contracted, axes), ((), ())))
        return product + self.bias[...].astype(x.dtype)


def drop(x, key, rate: float):
    """Dropout: zeroes a share `rate` of x and scales the rest; none without a key."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split(key, count: int):
    """`count` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters have a leading axis of `layers`, each initialised on its own."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def scan(blocks: nnx.Module, x, key, remat: str):
    """x through stacked blocks, one after the other: compiled once, whatever their number."""
    graph, params = nnx.split(blocks)
    layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, layers)

    def block(x, layer):
        params, key = layer
        return nnx.merge(graph, params)(x, key), None

    if remat == 'block':
        block = jax.checkpoint(block, prevent_cse=False)
    x, _ = jax.lax.scan(block, x, (params, keys))
    return x
