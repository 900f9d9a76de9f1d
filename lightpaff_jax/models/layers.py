"""Layers that the families share, as Flax NNX modules.

Letters: B batch, T time, D width, H heads, K head width, F feed-forward, L layers, V vocabulary.
Parameters are float32; matrix products run in `dtype`; softmax and norms in float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lightpaff_jax.models.attention import AttentionMask, attention

KVCache = dict[str, Array]
"""Keys and values of one attention, 'key' and 'value', each [B H S K]."""


class Compute(NamedTuple):
    """How a network is computed; what it says is the same, up to rounding."""

    dtype: Any
    """Of features and matrix products; norms and softmax stay float32."""
    remat: str = 'none'
    """What the backward pass computes again, one of config.REMAT."""
    attention: str = 'xla'
    """One of attention.KERNELS."""


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


# What is cheap to compute again is not kept for the backward pass: of a norm its input alone.
_again = functools.partial(jax.checkpoint, prevent_cse=False)


class LayerNorm(nnx.Module):
    """Normalises the features in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = zeros(width)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        def norm(x, scale, bias):
            high = x.astype(jnp.float32)
            centred = high - jnp.mean(high, axis=-1, keepdims=True)
            variance = jnp.mean(centred**2, axis=-1, keepdims=True)
            normal_ = centred * jax.lax.rsqrt(variance + self.epsilon)
            return (normal_ * scale + bias).astype(x.dtype)

        return _again(norm)(x, self.scale[...], self.bias[...])


class SelfAttention(nnx.Module):
    """Multi-head self-attention; one kernel holds those of queries, keys and values."""

    def __init__(self, width: int, heads: int, std: float, out_std: float, rngs: nnx.Rngs):
        self.qkv = Linear((width, 3, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, out_std, rngs)

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], sight: AttentionMask, key=None, dropout: float = 0.0
    ) -> Float[Array, 'B T D']:
        q_BTHK, k_BTHK, v_BTHK = self.qkv.parts(x_BTD)
        return self.out(attention(q_BTHK, k_BTHK, v_BTHK, sight, key, dropout))

    def keys(self, x_BTD: Float[Array, 'B T D']) -> KVCache:
        """What later tokens attend to."""
        return kv_cache(*self.qkv.parts(x_BTD)[1:])

    def step(self, x_BWD: Float[Array, 'B W D'], own: KVCache, step, seen, prompt=None):
        """One token of each hypothesis; returns the mixed features and the longer memory.

        Args:
          x_BWD: features of the token.
          own: what the tokens before it left, of fixed size.
          step: how many they are.
          seen: of each memory, `prompt` first, whether a token sees it, [B W S].
          prompt: a memory that all hypotheses share, or None.
        """
        q_BWHK, *new = jnp.moveaxis(self.qkv(x_BWD), -3, 0)
        start = (0, 0, step * x_BWD.shape[1], 0)
        own = jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice(x, y, start), own, kv_cache(*new)
        )
        memories = [own] if prompt is None else [prompt, own]
        return self.out(cached_attention(q_BWHK, memories, seen)), own


class CrossAttention(nnx.Module):
    """Multi-head attention of target positions to the encoder's output."""

    def __init__(self, width: int, heads: int, std: float, rngs: nnx.Rngs):
        self.query = Linear((width, heads, width // heads), 1, std, rngs)
        self.kv = Linear((width, 2, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, std, rngs)

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], source_BSD: Float[Array, 'B S D'], sight: AttentionMask,
        key=None, dropout: float = 0.0,
    ) -> Float[Array, 'B T D']:  # fmt: skip
        k_BSHK, v_BSHK = self.kv.parts(source_BSD)
        return self.out(attention(self.query(x_BTD), k_BSHK, v_BSHK, sight, key, dropout))

    def keys(self, source_BSD: Float[Array, 'B S D']) -> KVCache:
        """What target tokens attend to."""
        return kv_cache(*self.kv.parts(source_BSD))

    def step(self, x_BWD: Float[Array, 'B W D'], source: KVCache, seen) -> Float[Array, 'B W D']:
        """One token of each hypothesis attends to the source; `seen` [B 1 S]."""
        return self.out(cached_attention(self.query(x_BWD), [source], [seen]))


def kv_cache(k_BSHK, v_BSHK) -> KVCache:
    """Keys and values, each as [B H S K]."""
    return {'key': k_BSHK.swapaxes(1, 2), 'value': v_BSHK.swapaxes(1, 2)}


def empty_cache(like: KVCache, size: int) -> KVCache:
    """A memory for `size` tokens, of a layer with a memory `like` this."""
    return {name: jnp.zeros((*x.shape[:2], size, x.shape[3]), x.dtype) for name, x in like.items()}


def cached_attention(q_BWHK, memories: Sequence[KVCache], seen) -> Float[Array, 'B W H K']:
    """Softmax attention of single tokens to all memories together.

    Args:
      q_BWHK: queries of W hypotheses; they share the memories of their row.
      memories: keys and values.
      seen: of each memory, [B W S] (B or W may be 1): True where a hypothesis may see it.
    """
    q_BHWK = (q_BWHK * q_BWHK.shape[-1] ** -0.5).swapaxes(1, 2)
    parts = [
        jnp.where(
            may[:, None],
            jnp.einsum('bhwk,bhsk->bhws', q_BHWK, one['key'], preferred_element_type=jnp.float32),
            jnp.finfo(jnp.float32).min,
        )
        for one, may in zip(memories, seen, strict=True)
    ]
    weights = jax.nn.softmax(jnp.concatenate(parts, -1)).astype(q_BWHK.dtype)
    shares = jnp.split(weights, np.cumsum([part.shape[-1] for part in parts])[:-1], axis=-1)
    mixed = [
        jnp.einsum('bhws,bhsk->bhwk', share, one['value'])
        for share, one in zip(shares, memories, strict=True)
    ]
    return sum(mixed[1:], mixed[0]).swapaxes(1, 2)


def gather_positions(x_BTD, positions_BP) -> Float[Array, 'B P D']:
    """Features at the given positions; None takes all."""
    if positions_BP is None:
        return x_BTD
    return jnp.take_along_axis(x_BTD, positions_BP[..., None], axis=1)


def position_embeddings(
    table: Embedding, ids_BT, position_ids_BT, dtype
) -> Float[Array, '... T D']:
    """Embeddings of the positions of ids: those given, or 0 ... T-1.

    Raises:
      ValueError: the table has fewer than T rows.
    """
    length = ids_BT.shape[1]
    check_positions(table, length)
    return table(jnp.arange(length) if position_ids_BT is None else position_ids_BT, dtype)


def check_positions(table: Embedding, length: int) -> None:
    """Raises ValueError where a table of positions has fewer than `length` rows."""
    rows = table.table[...].shape[0]
    if length > rows:
        raise ValueError(f'{length} tokens, must be at most the {rows} positions of the model')


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

    def __call__(
        self, x_BTD: Float[Array, 'B T D'], key, sight: AttentionMask
    ) -> Float[Array, 'B T D']:
        inner, outer, ffn = split_key(key, 3)
        mixed_BTD = self.attention(x_BTD, sight, inner, self.dropout)
        x_BTD = self.attention_norm(x_BTD + dropout(mixed_BTD, outer, self.dropout))
        return self.ffn_norm(x_BTD + dropout(self.ffn(x_BTD), ffn, self.dropout))


class FeedForward(nnx.Module):
    """Up to F, an activation, and down to D."""

    def __init__(self, width: int, ffn: int, activation: Callable, std: float, out_std: float,
                 rngs: nnx.Rngs):  # fmt: skip
        self.up = Linear((width, ffn), 1, std, rngs)
        self.down = Linear((ffn, width), 1, out_std, rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        # `up` is kept, its activation is not: `down` is not computed again, as nothing asks for it.
        return _again(lambda up: self.down(self.activation(up)))(self.up(x))


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

    def parts(self, x) -> list:
        """One product for each entry of the kernel's second axis, of those behind it.

        Of a joint product, what an attention kernel reads would be copied out.
        """
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return [jnp.tensordot(x, kernel[:, i], 1) + bias[i] for i in range(len(bias))]


def dropout(x, key, rate: float):
    """Dropout: zeroes a share `rate` of x and scales the rest; none without a key."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split_key(key, count: int):
    """`count` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters have a leading axis of `layers`, each initialised on its own."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


_KEPT = {'block': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


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

    if remat != 'none':
        block = jax.checkpoint(block, prevent_cse=False, policy=_KEPT[remat])
    x, _ = jax.lax.scan(block, x, (params, keys))
    return x


def scan_caches(blocks: nnx.Module, x, keys: Callable, *constants):
    """As `scan` without dropout; returns `keys(block, x)` of every layer, stacked, and no features."""
    graph, params = nnx.split(blocks)

    def block(x, params):
        one = nnx.merge(graph, params)
        return one(x, None, *constants), keys(one, x)

    return jax.lax.scan(block, x, params)[1]


def unstack(tree) -> list:
    """Trees of the single layers of a tree whose arrays have a leading axis of layers."""
    layers = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(layers)]


def bind_layer(blocks: nnx.Module, params: nnx.State) -> Any:
    """One of stacked blocks, with its own parameters."""
    return nnx.merge(nnx.split(blocks)[0], params)


def unstack_params(blocks: nnx.Module, dtype) -> list[nnx.State]:
    """Parameters of each of stacked blocks; kernels as they are multiplied.

    A loop over tokens reads them in place, where slices of a stack would be copied for each.
    """

    def cast(path, x):
        return x.astype(dtype) if 'kernel' in jax.tree_util.keystr(path) else x

    return unstack(jax.tree_util.tree_map_with_path(cast, nnx.split(blocks)[1]))
