"""Layers that the families share, as Flax NNX modules.

Letters: B batch, T time, D width, H heads, K head width, F feed-forward, L layers, V vocabulary.
Parameters are float32; matrix products run in `dtype`; softmax and norms in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


def normal(key, shape, std: float) -> nnx.Param:
    """Normal values of standard deviation `std`."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def initial_std(width: int) -> float:
    """Of weights of post-LayerNorm blocks: BERT's 0.02 at BERT-base's width, 768.

    So products of a normalised input have the same variance at any width.
    """
    return 0.02 * (768 / width) ** 0.5


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


class Output(nnx.Module):
    """A head of its own: matrix [V, D] and bias [V], V ids or classes."""

    def __init__(self, rows: int, width: int, std: float, rngs: nnx.Rngs):
        self.table = normal(rngs.params(), (rows, width), std)
        self.bias = zeros(rows)


class Bias(nnx.Module):
    """A bias [V] of a head whose matrix is an embedding."""

    def __init__(self, rows: int):
        self.bias = zeros(rows)


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
        self.qkv = Linear((width, 3, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, out_std, rngs)

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], *, causal: bool = False, mask=None, key=None,
        dropout: float = 0.0,
    ) -> Float[Array, 'B T D']:  # fmt: skip
        q_BTHK, k_BTHK, v_BTHK = jnp.moveaxis(self.qkv(x_BTD), -3, 0)
        return self.out(attend(q_BTHK, k_BTHK, v_BTHK, causal, mask, key, dropout))


class CrossAttention(nnx.Module):
    """Multi-head attention of target positions to the encoder's output."""

    def __init__(self, width: int, heads: int, std: float, rngs: nnx.Rngs):
        self.query = Linear((width, heads, width // heads), 1, std, rngs)
        self.kv = Linear((width, 2, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, std, rngs)

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], source_BSD: Float[Array, 'B S D'], *, mask=None,
        key=None, dropout: float = 0.0,
    ) -> Float[Array, 'B T D']:  # fmt: skip
        k_BSHK, v_BSHK = jnp.moveaxis(self.kv(source_BSD), -3, 0)
        return self.out(attend(self.query(x_BTD), k_BSHK, v_BSHK, False, mask, key, dropout))


def attend(q_BTHK, k_BSHK, v_BSHK, causal: bool, mask_BTS, key, rate: float):
    """Softmax attention; of its weights, `rate` are dropped where a key is given.

    Args:
      q_BTHK: queries.
      k_BSHK: keys.
      v_BSHK: values.
      causal: whether position t sees 0 ... t only.
      mask_BTS: True where t may see s; T or B may be 1; None: everywhere.
      key: of the dropout, or None.
      rate: of the dropout.
    """
    mask = None if mask_BTS is None else mask_BTS[:, None]
    if key is None or not rate:
        return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=mask, is_causal=causal)
    logits_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    logits_BHTS *= q_BTHK.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min
    if causal:
        seen_TS = jnp.tri(q_BTHK.shape[1], k_BSHK.shape[1], dtype=bool)
        logits_BHTS = jnp.where(seen_TS, logits_BHTS, lowest)
    if mask is not None:
        logits_BHTS = jnp.where(mask, logits_BHTS, lowest)
    weights_BHTS = jax.nn.softmax(logits_BHTS).astype(q_BTHK.dtype)
    return jnp.einsum('bhts,bshk->bthk', drop(weights_BHTS, key, rate), v_BSHK)


def within(segments_BT) -> Bool[Array, 'B T T'] | None:
    """Mask of positions that see those of their own segment; padding sees padding."""
    return None if segments_BT is None else segments_BT[:, :, None] == segments_BT[:, None, :]


def across(segments_BT, source_segments_BS) -> Bool[Array, 'B T S'] | None:
    """Mask of target positions that see their own segment of the source; of one segment, all of it."""
    if source_segments_BS is None:
        return None
    if segments_BT is None:
        return source_segments_BS[:, None] != 0
    return segments_BT[:, :, None] == source_segments_BS[:, None, :]


def at(x_BTD, positions_BP) -> Float[Array, 'B P D']:
    """Features at the given positions; None takes all."""
    if positions_BP is None:
        return x_BTD
    return jnp.take_along_axis(x_BTD, positions_BP[..., None], axis=1)


def positions(table: Embedding, ids_BT, position_ids_BT, dtype) -> Float[Array, '... T D']:
    """Embeddings of the positions of ids: those given, or 0 ... T-1.

    Raises:
      ValueError: the table has fewer than T rows.
    """
    rows, length = table.table[...].shape[0], ids_BT.shape[1]
    if length > rows:
        raise ValueError(f'{length} tokens, must be at most the {rows} positions of the model')
    return table(jnp.arange(length) if position_ids_BT is None else position_ids_BT, dtype)


def block_flops(c, length: int) -> float:
    """Matrix products of self-attention and feed-forward over one sequence."""
    return length * 2.0 * (4 * c.width**2 + 2 * c.width * c.ffn + 2 * length * c.width)


class PostNormBlock(nnx.Module):
    """Attention and feed-forward, each added to the stream, which is then normalised."""

    def __init__(self, c, activation: Callable, epsilon: float, rngs: nnx.Rngs):
        std = initial_std(c.width)
        self.attention = SelfAttention(c.width, c.heads, std, std, rngs)
        self.attention_norm = LayerNorm(c.width, epsilon)
        self.ffn = FeedForward(c.width, c.ffn, activation, std, std, rngs)
        self.ffn_norm = LayerNorm(c.width, epsilon)
        self.dropout = c.dropout

    def __call__(self, x_BTD: Float[Array, 'B T D'], key=None, mask=None) -> Float[Array, 'B T D']:
        inner, outer, ffn = split(key, 3)
        mixed_BTD = self.attention(x_BTD, mask=mask, key=inner, dropout=self.dropout)
        x_BTD = self.attention_norm(x_BTD + drop(mixed_BTD, outer, self.dropout))
        return self.ffn_norm(x_BTD + drop(self.ffn(x_BTD), ffn, self.dropout))


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


def scan(blocks: nnx.Module, x, key, remat: str, *constants):
    """x through stacked blocks, one after the other: compiled once, whatever their number.

    A block is called as (x, its key or None, *constants).
    """
    graph, params = nnx.split(blocks)
    layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, layers)

    def block(x, layer):
        params, key = layer
        return nnx.merge(graph, params)(x, key, *constants), None

    if remat == 'block':
        block = jax.checkpoint(block, prevent_cse=False)
    x, _ = jax.lax.scan(block, x, (params, keys))
    return x
