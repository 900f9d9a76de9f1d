"""Attention: who sees whom, and the kernels that compute it.

Letters: B batch, T queries, S keys, H heads, K head width.

| kernel | where | memory | dropout |
| xla | everywhere | T x S a head, kept for the backward pass | yes |
| cudnn | NVIDIA GPU, bfloat16, T and S even | of the features; T x S once where segments mask | no |
| splash | TPU, T and S multiples of 128, K of 64 | of the features | no |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from lightpaff_jax.batch import Shape
from lightpaff_jax.config import ATTENTION

KERNELS = tuple(name for name in ATTENTION if name != 'auto')
_ROWS, _HEADS = ('data', 'fsdp'), 'tensor'
_BLOCKS = (512, 256, 128)


class AttentionMask(NamedTuple):
    """Which keys a query sees: those of its own segment and, where causal, none after it."""

    causal: bool
    queries: Int[Array, 'B T'] | None = None
    """Segment of each query. None: all are one."""
    keys: Int[Array, 'B S'] | None = None
    """Segment of each key; None where `queries` is."""
    kernel: str = 'xla'
    """One of KERNELS."""

    @property
    def mask(self) -> Bool[Array, 'B T S'] | None:
        """True where a query and a key are of one segment; None: everywhere."""
        if self.queries is None or self.keys is None:
            return None
        return self.queries[:, :, None] == self.keys[:, None, :]


def self_mask(
    segments_BT: Int[Array, 'B T'] | None, causal: bool, kernel: str = 'xla'
) -> AttentionMask:
    """Of positions that see those of their own segment; padding sees padding."""
    return AttentionMask(causal, segments_BT, segments_BT, kernel)


def cross_mask(segments_BT: Int[Array, 'B T'] | None, source_segments_BS: Int[Array, 'B S'] | None,
           targets: Int[Array, 'B T'], kernel: str = 'xla') -> AttentionMask:  # fmt: skip
    """Of target positions that see their own segment of the source; of one segment, all of it.

    Args:
      segments_BT: of the targets; None: all see what is not 0.
      source_segments_BS: of the source; None: there is no padding.
      targets: any array with the targets' shape.
      kernel: one of KERNELS.
    """
    if source_segments_BS is None:
        return AttentionMask(False, kernel=kernel)
    if segments_BT is None:
        ones = jnp.ones(targets.shape, jnp.int32)
        return AttentionMask(False, ones, (source_segments_BS != 0).astype(jnp.int32), kernel)
    return AttentionMask(False, segments_BT, source_segments_BS, kernel)


def attention(q_BTHK, k_BSHK, v_BSHK, sight: AttentionMask, key=None, rate: float = 0.0):
    """Softmax attention; of its weights, `rate` are dropped where a key is given.

    A query that sees nothing gets an average that depends on the kernel; it is padding.

    Args:
      q_BTHK: queries.
      k_BSHK: keys.
      v_BSHK: values.
      sight: who sees whom, and the kernel.
      key: of the dropout, or None.
      rate: of the dropout, which only kernel 'xla' has.
    """
    if key is not None and rate:
        assert sight.kernel == 'xla', 'obstacle() names it'
        return _dropping(q_BTHK, k_BSHK, v_BSHK, sight, key, rate)
    if sight.kernel == 'splash':
        return _splash(q_BTHK, k_BSHK, v_BSHK, sight)
    mask = None if sight.mask is None else sight.mask[:, None]
    library: Any = sight.kernel
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSHK, v_BSHK, mask=mask, is_causal=sight.causal, implementation=library
    )


def _dropping(q_BTHK, k_BSHK, v_BSHK, sight, key, rate):
    logits_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    logits_BHTS *= q_BTHK.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min
    if sight.causal:
        seen_TS = jnp.tri(q_BTHK.shape[1], k_BSHK.shape[1], dtype=bool)
        logits_BHTS = jnp.where(seen_TS, logits_BHTS, lowest)
    if sight.mask is not None:
        logits_BHTS = jnp.where(sight.mask[:, None], logits_BHTS, lowest)
    weights_BHTS = jax.nn.softmax(logits_BHTS).astype(q_BTHK.dtype)
    keep = jax.random.bernoulli(key, 1 - rate, weights_BHTS.shape)
    weights_BHTS = jnp.where(keep, weights_BHTS / (1 - rate), 0).astype(q_BTHK.dtype)
    return jnp.einsum('bhts,bshk->bthk', weights_BHTS, v_BSHK)


def _splash(q_BTHK, k_BSHK, v_BSHK, sight):
    """On each device its own examples and heads: the partitioner cannot split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }

    def local(q, k, v, queries, keys):
        from jax.experimental.pallas.ops.tpu import splash_attention as splash

        (T, H), S = q.shape[1:3], k.shape[1]
        one = splash.CausalMask((T, S)) if sight.causal else splash.FullMask((T, S))
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([one] * H), block_sizes=_block_sizes(T, S), head_shards=1,
            q_seq_shards=1,
        )  # fmt: skip
        ids = None if queries is None else splash.SegmentIds(queries, keys)
        q, k, v = ((q * q.shape[-1] ** -0.5).swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2))
        mixed_BHTK = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(q, k, v, ids)
        return mixed_BHTK.swapaxes(1, 2)

    rows: Any = tuple(name for name in _ROWS if name in free) or None
    heads = _HEADS if _HEADS in free else None
    arguments = q_BTHK, k_BSHK, v_BSHK, sight.queries, sight.keys
    if not free:
        return local(*arguments)
    features = P(rows, None, heads)
    segments = None if sight.queries is None else P(rows)
    return jax.shard_map(
        local,
        in_specs=(features, features, features, segments, segments),
        out_specs=features,
        axis_names=free,
        check_vma=False,
    )(*arguments)


def _block_sizes(T: int, S: int):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    q, kv = (next(block for block in _BLOCKS if size % block == 0) for size in (T, S))
    return splash.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )


def choose_kernel(
    platform: str, net: Any, shapes: Sequence[Shape], dtype: str, tensor: int, dropout: float = 0.0
) -> str:
    """The kernel of 'auto': the first of splash, cudnn and xla that nothing stands in the way of."""
    for kernel in ('splash', 'cudnn'):
        if not unmet_requirement(kernel, platform, net, shapes, dtype, tensor, dropout):
            return kernel
    return 'xla'


def unmet_requirement(
    kernel: str, platform: str, net: Any, shapes: Sequence[Shape], dtype: str, tensor: int,
    dropout: float = 0.0,
) -> str:  # fmt: skip
    """Why a kernel cannot compute a network, as the rule that is broken; '' where it can.

    Args:
      kernel: one of KERNELS.
      platform: 'cpu', 'gpu' or 'tpu'.
      net: a section with the keys of `config.network()`.
      shapes: the lengths of its batches.
      dtype: of the matrix products, one of config.DTYPES.
      tensor: devices that share the heads.
      dropout: share of the attention's weights that is dropped in training.
    """
    if kernel == 'xla':
        return ''
    needed = {'splash': 'tpu', 'cudnn': 'gpu'}[kernel]
    if platform != needed:
        return f'needs platform {needed!r}, this is {platform!r}'
    if dropout:
        return f'has no dropout of attention weights: needs dropout 0, this is {dropout:g}'
    width = net.width // net.heads
    lengths = [n for shape in shapes for n in (shape.tokens, shape.source)]
    if kernel == 'cudnn':
        if dtype != 'bfloat16':
            return f"needs config.train.compute_dtype 'bfloat16', this is {dtype!r}"
        if width % 8 or width > 128:
            return f'needs a head width of 8, 16, ... 128, this is {width}'
        for length in lengths:
            if length % 2:
                return f'needs even lengths, one is {length}'
        return ''
    if width % 64:
        return f'needs a head width that 64 divides, this is {width}'
    for length in lengths:
        if length % 128:
            return f'needs lengths that 128 divides, one is {length}'
    if net.heads % tensor:
        return f'needs heads that config.mesh.tensor = {tensor} divides, these are {net.heads}'
    return ''
