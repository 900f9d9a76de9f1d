"""Attention: masks, and the kernels that compute it.

Axes: B batch, T queries, S keys, H heads, K head width.

| kernel | platform | memory | dropout |
| xla | all | T x S per head, kept for the backward pass | yes |
| cudnn | NVIDIA GPU, bfloat16, T and S even | of the features; one T x S mask with segments | no |
| splash | TPU, T and S multiples of 128, K of 64 | of the features | no |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from lightpaff_jax.batch import Shape
from lightpaff_jax.config import ATTENTION
from lightpaff_jax.losses import BATCH_AXES, free_axes

KERNELS = tuple(name for name in ATTENTION if name != 'auto')
_BLOCKS = (512, 256, 128)  # block sizes of splash, the fastest first


class AttentionMask(NamedTuple):
    """A query attends to keys of its own segment and, if `causal`, to none after it."""

    causal: bool
    query_segments: Int[Array, 'B T'] | None = None  # None is a single segment
    key_segments: Int[Array, 'B S'] | None = None  # None if `query_segments` is
    kernel: str = 'xla'  # one of KERNELS

    @property
    def same_segment(self) -> Bool[Array, 'B 1 T S'] | None:
        """Whether a query and a key are of one segment; None if all are."""
        if self.query_segments is None or self.key_segments is None:
            return None
        return (self.query_segments[:, :, None] == self.key_segments[:, None, :])[:, None]


def self_mask(segments_BT: Array | None, causal: bool, kernel: str = 'xla') -> AttentionMask:
    """Builds a mask of self-attention; padding attends to padding."""
    return AttentionMask(causal, segments_BT, segments_BT, kernel)


def query_mask(segments_BT: Array | None, positions_BP: Array) -> AttentionMask:
    """Builds a mask of attention from some positions to all, which only the kernel 'xla' computes."""
    if segments_BT is None:
        return AttentionMask(False)
    queries_BP = jnp.take_along_axis(segments_BT, positions_BP, axis=1)
    return AttentionMask(False, queries_BP, segments_BT)


def cross_mask(
    segments_BT: Array | None, source_segments_BS: Array | None, targets_BT: Array, kernel: str
) -> AttentionMask:
    """Builds a mask of attention from target positions to the source.

    Args:
      segments_BT: segments of the targets; None lets all attend to the whole source but padding.
      source_segments_BS: segments of the source; None if it has no padding.
      targets_BT: any array with the targets' shape.
      kernel: one of KERNELS.
    """
    if source_segments_BS is None:
        return AttentionMask(False, kernel=kernel)
    if segments_BT is None:
        segments_BT = jnp.ones(targets_BT.shape, jnp.int32)
        source_segments_BS = (source_segments_BS != 0).astype(jnp.int32)
    return AttentionMask(False, segments_BT, source_segments_BS, kernel)


def attention(
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHK: Array,
    mask: AttentionMask,
    key: Array | None = None,
    rate: float = 0.0,
) -> Float[Array, 'B T H K']:
    """Computes softmax attention by the mask's kernel.

    A query without any visible key gets an average that depends on the kernel; it is padding. With
    a key, attention weights have dropout of `rate`, which only the kernel 'xla' computes.
    """
    if key is not None and rate:
        assert mask.kernel == 'xla', 'unmet_requirement names it'
        return _attention_with_dropout(q_BTHK, k_BSHK, v_BSHK, mask, key, rate)
    if mask.kernel == 'splash':
        return _splash(q_BTHK, k_BSHK, v_BSHK, mask)
    kernel: Any = mask.kernel
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSHK, v_BSHK, mask=mask.same_segment, is_causal=mask.causal, implementation=kernel
    )


def _attention_with_dropout(q_BTHK, k_BSHK, v_BSHK, mask, key, rate):
    logits_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    logits_BHTS *= q_BTHK.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min
    if mask.causal:
        causal_TS = jnp.tri(q_BTHK.shape[1], k_BSHK.shape[1], dtype=bool)
        logits_BHTS = jnp.where(causal_TS, logits_BHTS, lowest)
    if mask.same_segment is not None:
        logits_BHTS = jnp.where(mask.same_segment, logits_BHTS, lowest)
    weights_BHTS = jax.nn.softmax(logits_BHTS).astype(q_BTHK.dtype)
    keep = jax.random.bernoulli(key, 1 - rate, weights_BHTS.shape)
    weights_BHTS = jnp.where(keep, weights_BHTS / (1 - rate), 0).astype(q_BTHK.dtype)
    return jnp.einsum('bhts,bshk->bthk', weights_BHTS, v_BSHK)


def _splash(q_BTHK, k_BSHK, v_BSHK, mask):
    """Runs splash on each device's own examples and heads: XLA cannot partition a kernel."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def on_device(q, k, v, query_segments, key_segments):
        (T, H), S = q.shape[1:3], k.shape[1]
        head_mask = splash.CausalMask((T, S)) if mask.causal else splash.FullMask((T, S))
        q_size, kv_size = (next(n for n in _BLOCKS if length % n == 0) for length in (T, S))
        sizes: Any = dict.fromkeys(('block_q', 'block_q_dkv', 'block_q_dq'), q_size)
        sizes |= dict.fromkeys(('block_kv', 'block_kv_dkv', 'block_kv_dq'), kv_size)
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([head_mask] * H),
            block_sizes=splash.BlockSizes(**sizes),
            head_shards=1,
            q_seq_shards=1,
        )
        ids = None if query_segments is None else splash.SegmentIds(query_segments, key_segments)
        q, k, v = ((q * q.shape[-1] ** -0.5).swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2))
        mixed_BHTK = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(q, k, v, ids)
        return mixed_BHTK.swapaxes(1, 2)

    axes = free_axes()
    arguments = q_BTHK, k_BSHK, v_BSHK, mask.query_segments, mask.key_segments
    if not axes:
        return on_device(*arguments)
    rows: Any = tuple(name for name in BATCH_AXES if name in axes) or None
    features = P(rows, None, 'tensor' if 'tensor' in axes else None)
    segments = None if mask.query_segments is None else P(rows)
    return jax.shard_map(
        on_device,
        in_specs=(features, features, features, segments, segments),
        out_specs=features,
        axis_names=set(axes),
        check_vma=False,
    )(*arguments)


class Workload(NamedTuple):
    """The use of a network, which decides the kernels that can compute it."""

    platform: str  # 'cpu', 'gpu' or 'tpu'
    network: ConfigDict  # with the keys of `config.network()`
    shapes: Sequence[Shape]  # lengths of the batches
    dtype: str  # of the matrix products, one of config.DTYPES
    tensor: int  # number of devices that share the heads
    dropout: float = 0.0  # of the attention weights in training


def choose_kernel(work: Workload) -> str:
    """Chooses the kernel of 'auto': the first of splash, cudnn and xla that is usable."""
    usable = (kernel for kernel in ('splash', 'cudnn') if not unmet_requirement(kernel, work))
    return next(usable, 'xla')


def unmet_requirement(kernel: str, work: Workload) -> str:
    """Finds the first requirement that the kernel does not meet, or '' if it is usable."""
    if kernel == 'xla':
        return ''
    platform = {'splash': 'tpu', 'cudnn': 'gpu'}[kernel]
    heads, tensor, dtype = work.network.heads, work.tensor, work.dtype
    head_width = work.network.width // heads
    lengths = {length for shape in work.shapes for length in (shape.tokens, shape.source)}
    rules = [
        (work.platform == platform, f'requires platform {platform!r}, this is {work.platform!r}'),
        (not work.dropout, f'requires dropout 0, this is {work.dropout:g}'),
    ]
    if kernel == 'cudnn':
        widths = head_width % 8 == 0 and head_width <= 128
        divisor = 2
        rules += [
            (dtype == 'bfloat16', f"requires compute_dtype 'bfloat16', this is {dtype!r}"),
            (widths, f'requires a head width of 8, 16, ... 128, this is {head_width}'),
        ]
    else:
        divisor = 128
        rules += [
            (head_width % 64 == 0, f'requires a head width divisible by 64, this is {head_width}'),
            (
                heads % tensor == 0,
                f'requires heads divisible by config.mesh.tensor = {tensor}, these are {heads}',
            ),
        ]
    rules += [
        (length % divisor == 0, f'requires lengths divisible by {divisor}, one is {length}')
        for length in sorted(lengths)
    ]
    return next((requirement for holds, requirement in rules if not holds), '')
