"""GPT-2: a decoder of pre-LayerNorm blocks with learned positions and a tied head.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.matching import Tap, group_by_layer
from lightpaff_jax.models import attention, kv_cache, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm

_EPSILON = 1e-5
_STD = 0.02
_gelu = functools.partial(jax.nn.gelu, approximate=True)


class Block(nnx.Module):
    """Attention and feed-forward, each on normalised features with a residual addition."""

    def __init__(self, c: ConfigDict, rngs: nnx.Rngs):
        out_std = _STD / (2 * c.layers) ** 0.5
        self.norm1 = layers.LayerNorm(c.width, _EPSILON)
        self.attention = layers.SelfAttention(c.width, c.heads, _STD, out_std, rngs)
        self.norm2 = layers.LayerNorm(c.width, _EPSILON)
        self.ffn = layers.FeedForward(c, _gelu, _STD, out_std, rngs)
        self.dropout = c.dropout

    def __call__(self, x_BTD, key, mask):
        weights_key, attention_key, ffn_key = layers.split_key(key, 3)
        mixed_BTD = self.attention(self.norm1(x_BTD), mask, weights_key, self.dropout)
        x_BTD += layers.dropout(mixed_BTD, attention_key, self.dropout)
        return x_BTD + layers.dropout(self.ffn(self.norm2(x_BTD)), ffn_key, self.dropout)

    def attention_inputs(self, x_BTD):
        return self.attention.qkv.parts(self.norm1(x_BTD))

    def cache(self, x_BTD):
        return self.attention.cache(self.norm1(x_BTD))

    def decode_step(self, x_BWD, cache, step, visible):
        mixed_BWD, generated = self.attention.decode_step(
            self.norm1(x_BWD), step, visible, cache['prompt'], cache['generated']
        )
        x_BWD += mixed_BWD
        return x_BWD + self.ffn(self.norm2(x_BWD)), cache | {'generated': generated}


class GPT2(nnx.Module):
    """Embeddings, blocks and a last norm; the head is the token embedding."""

    def __init__(self, c: ConfigDict, padded_vocab: int, rngs: nnx.Rngs):
        self.token_embedding = layers.Embedding(padded_vocab, c.vocab_size, c.width, _STD, rngs)
        self.position_embedding = layers.Embedding(c.positions, c.positions, c.width, _STD, rngs)
        self.blocks = layers.stack(lambda rngs: Block(c, rngs), c.layers, rngs)
        self.norm = layers.LayerNorm(c.width, _EPSILON)
        self.dropout = c.dropout

    def __call__(
        self,
        batch: Batch,
        *,
        compute: layers.Compute,
        key: Array | None = None,
        taps: Sequence[Tap] = (),
    ) -> tuple[Float[Array, 'B P D'], dict[Tap, Array]]:
        embedding_key, blocks_key = layers.split_key(key, 2)
        tables = self.token_embedding, self.position_embedding
        x_BTD = layers.embed(*tables, batch.tokens, batch.position_ids, compute.dtype)
        x_BTD = layers.dropout(x_BTD, embedding_key, self.dropout)
        mask = attention.self_mask(batch.segments, True, compute.attention)
        by_layer = group_by_layer(taps, 'decoder')
        x_BTD, activations = layers.scan(
            self.blocks, x_BTD, blocks_key, compute.remat, by_layer, mask
        )
        return self.norm(layers.gather_positions(x_BTD, batch.positions)), activations

    def prefill(self, batch: Batch, *, start_id: int, steps: int, beams: int, dtype: Any):
        """Returns the prompt's last tokens [B], and the cache of the tokens before them."""
        del start_id  # of decoders without a prompt
        layers.check_positions(self.position_embedding, batch.tokens.shape[1] + steps)
        real_BT = jnp.ones_like(batch.tokens) if batch.segments is None else batch.segments != 0
        last_B = jnp.maximum(jnp.sum(real_BT, axis=1, dtype=jnp.int32) - 1, 0)
        tables = self.token_embedding, self.position_embedding
        x_BTD = layers.embed(*tables, batch.tokens, None, dtype)
        causal = attention.self_mask(None, True)
        prompt = kv_cache.scan_caches(self.blocks, x_BTD, Block.cache, causal)
        cache = {
            'layers': kv_cache.layer_caches('prompt', prompt, beams * steps),
            'visible': jnp.arange(batch.tokens.shape[1]) < last_B[:, None],
            'position': last_B,
        }
        return jnp.take_along_axis(batch.tokens, last_B[:, None], axis=1)[:, 0], cache

    def unstack_params(self, dtype: Any) -> list[nnx.State]:
        return layers.unstack_params(self.blocks, dtype)

    def decode_step(self, blocks, cache, tokens_BW, step, visible_BWS, *, dtype: Any):
        """Computes the features [B, W, D] of one token of each hypothesis, and the new cache."""
        x_BWD = self.token_embedding(tokens_BW, dtype)
        x_BWD += self.position_embedding(cache['position'] + step, dtype)[:, None]
        visible = cache['visible'][:, None], visible_BWS
        x_BWD, new = layers.decode_step(self.blocks, blocks, x_BWD, cache['layers'], step, visible)
        return self.norm(x_BWD), cache | {'layers': new}

    def head(self) -> tuple[Array, None]:
        """Returns the tied output matrix [V, D]; GPT-2 has no output bias."""
        return self.token_embedding.table[...], None


def flops(c: ConfigDict, shape: Shape, taps: Sequence[Tap] = ()) -> float:
    """Computes the FLOPs of one example's forward pass, head excluded.

    Attention counts the whole T x T square, which the kernel 'xla' computes.
    """
    del taps  # no block is computed in part
    return c.layers * layers.block_flops(c, shape.tokens)


NAMES = Names(prefix='transformer.', buffers=r'h\.\d+\.attn\.(bias|masked_bias)')


def table(c: ConfigDict) -> tuple[Row, ...]:
    """Lists the parameters' names in Hugging Face's format, whose matrices are [in, out] too."""
    del c
    layer, tokens = 'transformer.h.{layer}', 'transformer.wte.weight'
    return (
        Row(tokens, 'token_embedding/table', vocab=True, same=('lm_head.weight',)),
        Row('transformer.wpe.weight', 'position_embedding/table'),
        *norm(f'{layer}.ln_1', 'blocks/norm1'),
        *linear(f'{layer}.attn.c_attn', 'blocks/attention/qkv', transpose=False),
        *linear(f'{layer}.attn.c_proj', 'blocks/attention/out', transpose=False),
        *norm(f'{layer}.ln_2', 'blocks/norm2'),
        *linear(f'{layer}.mlp.c_fc', 'blocks/ffn/up', transpose=False),
        *linear(f'{layer}.mlp.c_proj', 'blocks/ffn/down', transpose=False),
        *norm('transformer.ln_f', 'norm'),
    )
