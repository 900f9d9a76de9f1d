"""Layers that the families share, as Flax NNX modules.

Axes: B batch, T time, S source time or cached tokens, W hypotheses of one row, D width, H heads,
K head width, F feed-forward, L layers, V vocabulary. Parameters are float32; matrix products run in
`dtype`; softmax and norms in float32.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lightpaff_jax.matching import Tap
from lightpaff_jax.models import kv_cache
from lightpaff_jax.models.attention import AttentionMask, attention
from lightpaff_jax.models.kv_cache import KVCache


class Compute(NamedTuple):
    """Options of the computation of a network; results are equal up to rounding."""

    dtype: Any  # of features and matrix products; norms and softmax stay float32
    remat: str = 'none'  # activations that the backward pass recomputes, one of config.REMAT
    attention: str = 'xla'  # one of attention.KERNELS


def normal(key: Array, shape: tuple[int, ...], std: float) -> nnx.Param:
    """Draws normal values of standard deviation `std`."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """Returns zeros, the initial values of biases."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def initial_std(width: int) -> float:
    """Returns the standard deviation of weights of post-LayerNorm blocks.

    Products of a normalised input have the same variance at any width: BERT-base has 0.02 at 768.
    """
    return 0.02 * (768 / width) ** 0.5


class Embedding(nnx.Module):
    """A table [V, D]; rows from `used` on are padding: zero, and never read."""

    def __init__(self, rows: int, used: int, width: int, std: float, rngs: nnx.Rngs):
        table = std * jax.random.normal(rngs.params(), (used, width), jnp.float32)
        self.table = nnx.Param(jnp.pad(table, [(0, rows - used), (0, 0)]))

    def __call__(self, ids: Int[Array, '...'], dtype: Any) -> Float[Array, '... D']:
        # The cast comes after the gather: gradients of one id's occurrences add up in float32.
        return self.table[...][ids].astype(dtype)


class Output(nnx.Module):
    """A separate head: matrix [V, D] and bias [V] for V ids or classes."""

    def __init__(self, rows: int, width: int, std: float, rngs: nnx.Rngs):
        self.table = normal(rngs.params(), (rows, width), std)
        self.bias = zeros(rows)


class Bias(nnx.Module):
    """The bias [V] of a head that shares its matrix with an embedding."""

    def __init__(self, rows: int):
        self.bias = zeros(rows)


# The backward pass recomputes cheap functions instead of keeping their activations.
_recompute = functools.partial(jax.checkpoint, prevent_cse=False)


class LayerNorm(nnx.Module):
    """Normalises features in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = zeros(width)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        def norm(x, scale, bias):
            high = x.astype(jnp.float32)
            centred = high - jnp.mean(high, axis=-1, keepdims=True)
            variance = jnp.mean(centred**2, axis=-1, keepdims=True)
            normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
            return (normalised * scale + bias).astype(x.dtype)

        return _recompute(norm)(x, self.scale[...], self.bias[...])


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one kernel for queries, keys and values."""

    def __init__(self, width: int, heads: int, std: float, out_std: float, rngs: nnx.Rngs):
        self.qkv = Linear((width, 3, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, out_std, rngs)

    def __call__(
        self, x_BTD: Array, mask: AttentionMask, key: Array | None, dropout: float
    ) -> Float[Array, 'B T D']:
        q_BTHK, k_BTHK, v_BTHK = self.qkv.parts(x_BTD)
        return self.out(attention(q_BTHK, k_BTHK, v_BTHK, mask, key, dropout))

    def at_positions(
        self, x_BPD: Array, x_BTD: Array, mask: AttentionMask, key: Array | None, dropout: float
    ) -> Float[Array, 'B P D']:
        """Attends from some positions of x_BTD, whose features are x_BPD, to all of them."""
        q_BPHK, k_BTHK, v_BTHK = (self.qkv.part(x, i) for i, x in enumerate((x_BPD, x_BTD, x_BTD)))
        return self.out(attention(q_BPHK, k_BTHK, v_BTHK, mask, key, dropout))

    def cache(self, x_BTD: Array) -> KVCache:
        return kv_cache.make(*self.qkv.parts(x_BTD)[1:])

    def decode_step(
        self, x_BWD: Array, step: Array, visible: Sequence[Array], *caches: KVCache
    ) -> tuple[Float[Array, 'B W D'], KVCache]:
        """Attends from one token of each hypothesis to the tokens of the caches.

        `visible` is as for `kv_cache.cached_attention`. The last cache has fixed size and `step` generated
        tokens. Returns the mixed features, and this cache with the new token.
        """
        *prompts, cache = caches
        q_BWHK, *new = jnp.moveaxis(self.qkv(x_BWD), -3, 0)
        start = (0, 0, step * x_BWD.shape[1], 0)
        cache = jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice(x, y, start), cache, kv_cache.make(*new)
        )
        return self.out(kv_cache.cached_attention(q_BWHK, [*prompts, cache], visible)), cache


class CrossAttention(nnx.Module):
    """Multi-head attention from target positions to the encoder's output."""

    def __init__(self, width: int, heads: int, std: float, rngs: nnx.Rngs):
        self.query = Linear((width, heads, width // heads), 1, std, rngs)
        self.kv = Linear((width, 2, heads, width // heads), 1, std, rngs)
        self.out = Linear((heads, width // heads, width), 2, std, rngs)

    def __call__(
        self,
        x_BTD: Array,
        source_BSD: Array,
        mask: AttentionMask,
        key: Array | None,
        dropout: float,
    ) -> Float[Array, 'B T D']:
        k_BSHK, v_BSHK = self.kv.parts(source_BSD)
        return self.out(attention(self.query(x_BTD), k_BSHK, v_BSHK, mask, key, dropout))

    def cache(self, source_BSD: Array) -> KVCache:
        return kv_cache.make(*self.kv.parts(source_BSD))

    def decode_step(self, x_BWD: Array, source: KVCache, visible_B1S: Array) -> Array:
        """Attends from one token of each hypothesis to the source."""
        return self.out(kv_cache.cached_attention(self.query(x_BWD), [source], [visible_B1S]))


def gather_positions(x_BTD: Array, positions_BP: Array | None) -> Float[Array, 'B P D']:
    """Gathers the features at the given positions; None takes all."""
    if positions_BP is None:
        return x_BTD
    return jnp.take_along_axis(x_BTD, positions_BP[..., None], axis=1)


def embed(
    tokens: Embedding, positions: Embedding, ids_BT, position_ids_BT, dtype, scale=None
) -> Float[Array, 'B T D']:
    """Adds embeddings of tokens, perhaps scaled, and positions; None is positions 0 ... T-1.

    Raises:
      ValueError: the table of positions has fewer than T rows.
    """
    length = ids_BT.shape[1]
    check_positions(positions, length)
    position_ids = jnp.arange(length) if position_ids_BT is None else position_ids_BT
    x_BTD = tokens(ids_BT, dtype)
    return (x_BTD if scale is None else x_BTD * scale) + positions(position_ids, dtype)


def check_positions(table: Embedding, length: int) -> None:
    """Raises ValueError if a table of positions has fewer than `length` rows."""
    rows = table.table[...].shape[0]
    if length > rows:
        raise ValueError(f'{length} tokens, must be at most the {rows} positions of the model')


def block_flops(c: ConfigDict, length: int, queries: int = 0) -> float:
    """Computes the FLOPs of self-attention and feed-forward over one sequence.

    `queries` is the number of positions whose output is computed; 0: all.
    """
    queries, width = queries or length, c.width
    keys_and_values = 2 * length * width**2
    rest = queries * (2 * width**2 + 2 * width * c.ffn + 2 * length * width)
    return 2.0 * (keys_and_values + rest)


class PostNormBlock(nnx.Module):
    """Attention and feed-forward; a norm after each residual addition."""

    def __init__(self, c: ConfigDict, activation: Callable, epsilon: float, rngs: nnx.Rngs):
        std = initial_std(c.width)
        self.attention = SelfAttention(c.width, c.heads, std, std, rngs)
        self.attention_norm = LayerNorm(c.width, epsilon)
        self.ffn = FeedForward(c, activation, std, std, rngs)
        self.ffn_norm = LayerNorm(c.width, epsilon)
        self.dropout = c.dropout

    def __call__(self, x_BTD: Array, key: Array | None, mask: AttentionMask) -> Array:
        weights_key, attention_key, ffn_key = split_key(key, 3)
        mixed_BTD = self.attention(x_BTD, mask, weights_key, self.dropout)
        x_BTD = self.attention_norm(x_BTD + dropout(mixed_BTD, attention_key, self.dropout))
        return self.ffn_norm(x_BTD + dropout(self.ffn(x_BTD), ffn_key, self.dropout))

    def at_positions(
        self, x_BTD: Array, key: Array | None, mask: AttentionMask, positions_BP: Array
    ) -> Float[Array, 'B P D']:
        """Computes the block's output at some positions, from all of its inputs."""
        weights_key, attention_key, ffn_key = split_key(key, 3)
        x_BPD = gather_positions(x_BTD, positions_BP)
        mixed_BPD = self.attention.at_positions(x_BPD, x_BTD, mask, weights_key, self.dropout)
        x_BPD = self.attention_norm(x_BPD + dropout(mixed_BPD, attention_key, self.dropout))
        return self.ffn_norm(x_BPD + dropout(self.ffn(x_BPD), ffn_key, self.dropout))

    def attention_inputs(self, x_BTD: Array) -> list[Float[Array, 'B T H K']]:
        """Returns queries, keys and values."""
        return self.attention.qkv.parts(x_BTD)


class FeedForward(nnx.Module):
    """Up to F, an activation, and down to D."""

    def __init__(
        self, c: ConfigDict, activation: Callable, std: float, out_std: float, rngs: nnx.Rngs
    ):
        self.up = Linear((c.width, c.ffn), 1, std, rngs)
        self.down = Linear((c.ffn, c.width), 1, out_std, rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        # The backward pass keeps the output of `up` and recomputes the activation only: nothing
        # needs the output of `down`, so XLA removes its recomputation.
        return _recompute(lambda up: self.down(self.activation(up)))(self.up(x))


class Linear(nnx.Module):
    """Contracts the last `inputs` axes of x with the first axes of its kernel, and adds a bias."""

    def __init__(self, shape: tuple[int, ...], inputs: int, std: float, rngs: nnx.Rngs):
        self.kernel = normal(rngs.params(), shape, std)
        self.bias = zeros(*shape[inputs:])
        self.inputs = inputs

    def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
        axes = tuple(range(self.inputs))
        contracted = tuple(x.ndim - self.inputs + i for i in axes)
        kernel = self.kernel[...].astype(x.dtype)
        product = jax.lax.dot_general(x, kernel, ((contracted, axes), ((), ())))
        return product + self.bias[...].astype(x.dtype)

    def parts(self, x: Float[Array, '... D']) -> list[Float[Array, '... H K']]:
        """Returns a separate product for each entry of the kernel's second axis.

        An attention kernel would copy its inputs out of a joint product.
        """
        return [self.part(x, i) for i in range(self.kernel[...].shape[1])]

    def part(self, x: Float[Array, '... D'], index: int) -> Float[Array, '... H K']:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return jnp.tensordot(x, kernel[:, index], 1) + bias[index]


def dropout(x: Float[Array, '...'], key: Array | None, rate: float) -> Float[Array, '...']:
    """Sets a share `rate` of x to zero and scales the rest; without a key returns x."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: Array | None, count: int) -> list[Any]:
    """Returns `count` keys, or `count` times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds one module whose parameters have a leading axis of independently drawn layers."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


_REMAT_POLICIES = {'block': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def scan(
    blocks: nnx.Module,
    x: Array,
    key: Array | None,
    remat: str,
    taps: Mapping[int, Sequence[Tap]],
    *constants: Any,
    last: Callable[[Any, Array, Array | None], Array] | None = None,
) -> tuple[Array, dict[Tap, Array]]:
    """Passes x through stacked blocks, and returns the taps' activations too.

    A block is called as (x, its key or None, *constants); if `last` is given, the last one is
    called as last(block, x, key) instead. A block is compiled once for any number of layers, and once
    more for each layer of `taps` and for `last`, which run by themselves.
    """
    graph, params = nnx.split(blocks)
    count = len(jax.tree.leaves(params)[0])
    keys = None if key is None else jax.random.split(key, count)

    def block(x, layer):
        params, key = layer
        return nnx.merge(graph, params)(x, key, *constants), None

    if remat != 'none':
        block = jax.checkpoint(block, prevent_cse=False, policy=_REMAT_POLICIES[remat])
    activations: dict[Tap, Array] = {}
    start = 0
    for index, layer_taps in taps.items():
        if index > start:
            between = jax.tree.map(lambda x, start=start, stop=index: x[start:stop], (params, keys))
            x, _ = jax.lax.scan(block, x, between)
        layer = jax.tree.map(lambda x, index=index: x[index], (params, keys))
        names = ('queries', 'keys', 'values')
        module: Any = nnx.merge(graph, layer[0])
        inner = dict(zip(names, module.attention_inputs(x), strict=True))
        x, _ = block(x, layer)
        activations |= {tap: (inner | {'hidden': x})[tap.kind] for tap in layer_taps}
        start = index + 1
    stop = count if last is None else count - 1
    if start < stop:
        rest = (params, keys)
        if stop - start < count:
            rest = jax.tree.map(lambda x: x[start:stop], rest)
        x, _ = jax.lax.scan(block, x, rest)
    if last is not None:

        def last_block(x, layer):
            params, key = layer
            return last(nnx.merge(graph, params), x, key)

        if remat != 'none':
            policy = _REMAT_POLICIES[remat]
            last_block = jax.checkpoint(last_block, prevent_cse=False, policy=policy)
        x = last_block(x, jax.tree.map(lambda x: x[-1], (params, keys)))
    return x, activations


def decode_step(
    blocks: nnx.Module, layers: Sequence[nnx.State], x_BWD: Array, caches: list, *constants: Any
) -> tuple[Float[Array, 'B W D'], list]:
    """Passes one token of each hypothesis through all layers; returns features and new caches.

    A block's `decode_step` is called as (x, its cache, *constants).
    """
    new_caches = []
    for params, cache in zip(layers, caches, strict=True):
        x_BWD, cache = bind_layer(blocks, params).decode_step(x_BWD, cache, *constants)
        new_caches.append(cache)
    return x_BWD, new_caches


def bind_layer(blocks: nnx.Module, params: nnx.State) -> Any:
    """Binds parameters to one of stacked blocks."""
    return nnx.merge(nnx.split(blocks)[0], params)


def unstack_params(blocks: nnx.Module, dtype: Any) -> list[nnx.State]:
    """Splits stacked parameters into layers, with kernels in `dtype`.

    A loop over tokens reads them in place; it would copy slices of a stack for each token.
    """

    def cast(path, x):
        return x.astype(dtype) if 'kernel' in jax.tree_util.keystr(path) else x

    return kv_cache.unstack(jax.tree_util.tree_map_with_path(cast, nnx.split(blocks)[1]))
