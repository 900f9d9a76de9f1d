"""MASS: an encoder-decoder of post-LayerNorm blocks with learned positions.

The network is a BART that scales its token embeddings by sqrt(D). In pre-training the decoder
predicts one masked fragment of the source, at the fragment's own positions.

Sources: Song et al., "MASS: Masked Sequence to Sequence Pre-training for Language Generation",
2019; for the layers Lewis et al., "BART", 2019.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lightpaff_jax.batch import Shape
from lightpaff_jax.matching import Tap, group_by_layer
from lightpaff_jax.models import attention, kv_cache, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm

_EPSILON = 1e-5
_ACTIVATIONS: dict[str, Callable] = {
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
}


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the source, feed-forward; a norm after each."""

    def __init__(self, c: ConfigDict, rngs: nnx.Rngs):
        std = layers.initial_std(c.width)
        self.attention = layers.SelfAttention(c.width, c.heads, std, std, rngs)
        self.attention_norm = layers.LayerNorm(c.width, _EPSILON)
        self.cross = layers.CrossAttention(c.width, c.heads, std, rngs)
        self.cross_norm = layers.LayerNorm(c.width, _EPSILON)
        activation = _ACTIVATIONS[c.activation]
        self.ffn = layers.FeedForward(c, activation, std, std, rngs)
        self.ffn_norm = layers.LayerNorm(c.width, _EPSILON)
        self.dropout = c.dropout

    def __call__(self, x_BTD, key, mask, source_BSD, source_mask):
        rate = self.dropout
        weights_key, attention_key, cross_weights_key, cross_key, ffn_key = layers.split_key(key, 5)
        mixed_BTD = self.attention(x_BTD, mask, weights_key, rate)
        x_BTD = self.attention_norm(x_BTD + layers.dropout(mixed_BTD, attention_key, rate))
        mixed_BTD = self.cross(x_BTD, source_BSD, source_mask, cross_weights_key, rate)
        x_BTD = self.cross_norm(x_BTD + layers.dropout(mixed_BTD, cross_key, rate))
        return self.ffn_norm(x_BTD + layers.dropout(self.ffn(x_BTD), ffn_key, rate))

    def attention_inputs(self, x_BTD):
        return self.attention.qkv.parts(x_BTD)

    def decode_step(self, x_BWD, cache, step, visible, source_visible):
        mixed_BWD, generated = self.attention.decode_step(
            x_BWD, step, [visible], cache['generated']
        )
        x_BWD = self.attention_norm(x_BWD + mixed_BWD)
        mixed_BWD = self.cross.decode_step(x_BWD, cache['source'], source_visible)
        x_BWD = self.cross_norm(x_BWD + mixed_BWD)
        return self.ffn_norm(x_BWD + self.ffn(x_BWD)), cache | {'generated': generated}


class MASS(nnx.Module):
    """Encoder and decoder; `tied` states which of their embeddings and the output are one matrix."""

    def __init__(self, c: ConfigDict, padded_vocab: int, rngs: nnx.Rngs):
        # Scaled embeddings have unit variance.
        std = c.width**-0.5 if c.scale_embedding else layers.initial_std(c.width)
        embedding = functools.partial(layers.Embedding, width=c.width, std=std, rngs=rngs)
        self.token_embedding = embedding(padded_vocab, c.vocab_size)
        if c.tied != 'all':
            self.decoder_token_embedding = embedding(padded_vocab, c.vocab_size)
        if c.tied == 'none':
            self.output = embedding(padded_vocab, c.vocab_size)
        self.output_bias = layers.Bias(padded_vocab)
        activation = _ACTIVATIONS[c.activation]
        self.encoder_position = embedding(c.positions, c.positions)
        self.encoder_norm = layers.LayerNorm(c.width, _EPSILON)
        self.encoder = layers.stack(
            lambda rngs: layers.PostNormBlock(c, activation, _EPSILON, rngs), c.layers, rngs
        )
        self.decoder_position = embedding(c.positions, c.positions)
        self.decoder_norm = layers.LayerNorm(c.width, _EPSILON)
        self.decoder = layers.stack(lambda rngs: DecoderBlock(c, rngs), c.decoder_layers, rngs)
        self.scale = c.width**0.5 if c.scale_embedding else 1.0
        self.tied = c.tied
        self.dropout = c.dropout

    def __call__(
        self, batch, *, compute: layers.Compute, key: Array | None = None, taps: Sequence[Tap] = ()
    ) -> tuple[Float[Array, 'B P D'], dict[Tap, Array]]:
        """Maps source ids [B, S] and decoder inputs [B, T] to the decoder's features."""
        encoder_key, embedding_key, blocks_key = layers.split_key(key, 3)
        x_BSD, activations = self.encode(batch, compute=compute, key=encoder_key, taps=taps)
        tables, position_ids = (self._decoder_table(), self.decoder_position), batch.position_ids
        y_BTD = layers.embed(*tables, batch.tokens, position_ids, compute.dtype, self.scale)
        y_BTD = layers.dropout(self.decoder_norm(y_BTD), embedding_key, self.dropout)
        mask = attention.self_mask(batch.segments, True, compute.attention)
        source_mask = attention.cross_mask(
            batch.segments, batch.source_segments, batch.tokens, compute.attention
        )
        by_layer, constants = group_by_layer(taps, 'decoder'), (mask, x_BSD, source_mask)
        y_BTD, decoder_activations = layers.scan(
            self.decoder, y_BTD, blocks_key, compute.remat, by_layer, *constants
        )
        features_BPD = layers.gather_positions(y_BTD, batch.positions)
        return features_BPD, activations | decoder_activations

    def _decoder_table(self) -> layers.Embedding:
        return self.token_embedding if self.tied == 'all' else self.decoder_token_embedding

    def encode(
        self, batch, *, compute: layers.Compute, key: Array | None = None, taps: Sequence[Tap] = ()
    ) -> tuple[Float[Array, 'B S D'], dict[Tap, Array]]:
        """Maps source ids [B, S] to the encoder's features."""
        embedding_key, blocks_key = layers.split_key(key, 2)
        tables, position_ids = (
            (self.token_embedding, self.encoder_position),
            batch.source_position_ids,
        )
        x_BSD = layers.embed(*tables, batch.source, position_ids, compute.dtype, self.scale)
        x_BSD = layers.dropout(self.encoder_norm(x_BSD), embedding_key, self.dropout)
        mask = attention.self_mask(batch.source_segments, False, compute.attention)
        by_layer = group_by_layer(taps, 'encoder')
        return layers.scan(self.encoder, x_BSD, blocks_key, compute.remat, by_layer, mask)

    def prefill(self, batch, *, start_id: int, steps: int, beams: int, dtype: Any):
        """Returns `start_id` for each row [B], and the cache of the source."""
        layers.check_positions(self.decoder_position, steps)
        x_BSD, _ = self.encode(batch, compute=layers.Compute(dtype))
        source = jax.lax.map(
            lambda params: layers.bind_layer(self.decoder, params).cross.cache(x_BSD),
            nnx.split(self.decoder)[1],
        )
        segments = batch.source_segments
        visible = jnp.ones((1, batch.source.shape[1]), bool) if segments is None else segments != 0
        caches = kv_cache.layer_caches('source', source, beams * steps)
        tokens_B = jnp.full(len(batch.source), start_id, jnp.int32)
        return tokens_B, {'layers': caches, 'visible': visible}

    def unstack_params(self, dtype: Any) -> list[nnx.State]:
        return layers.unstack_params(self.decoder, dtype)

    def decode_step(self, blocks, cache, tokens_BW, step, visible_BWS, *, dtype: Any):
        """Computes the features [B, W, D] of one token of each hypothesis, and the new cache."""
        x_BWD = self._decoder_table()(tokens_BW, dtype) * self.scale
        x_BWD = self.decoder_norm(x_BWD + self.decoder_position(step, dtype))
        visible = visible_BWS, cache['visible'][:, None]
        x_BWD, new = layers.decode_step(
            self.decoder, blocks, x_BWD, cache['layers'], step, *visible
        )
        return x_BWD, cache | {'layers': new}

    def head(self) -> tuple[Array, Array]:
        """Returns the output matrix [V, D], and the bias [V] of imported checkpoints, untrained."""
        names = {'all': 'token_embedding', 'decoder': 'decoder_token_embedding', 'none': 'output'}
        table = getattr(self, names[self.tied]).table[...]
        return table, jax.lax.stop_gradient(self.output_bias.bias[...])


def flops(c: ConfigDict, shape: Shape, taps: Sequence[Tap] = ()) -> float:
    """Computes the FLOPs of one example's forward pass, head excluded."""
    del taps  # no block is computed in part
    target, source, width = shape.tokens, shape.source, c.width
    cross = 2.0 * (2 * (target + source) * width**2 + 2 * target * source * width)
    encoder = c.layers * layers.block_flops(c, source)
    return encoder + c.decoder_layers * (layers.block_flops(c, target) + cross)


NAMES = Names(prefix='model.', buffers=r'(encoder|decoder)\.version|shared\.weight')


def table(c: ConfigDict) -> tuple[Row, ...]:
    """Lists the parameters' names in the format of Hugging Face's BART."""
    cross = 'model.decoder.layers.{layer}.encoder_attn'
    return (
        *_embeddings(c),
        Row('final_logits_bias', 'output_bias/bias', vocab=True, lead=True, optional=True),
        *_stack('encoder'),
        *_stack('decoder'),
        *linear(f'{cross}.q_proj', 'decoder/cross/query'),
        *linear(f'{cross}.k_proj', 'decoder/cross/kv', part=0),
        *linear(f'{cross}.v_proj', 'decoder/cross/kv', part=1),
        *linear(f'{cross}.out_proj', 'decoder/cross/out'),
        *norm(f'{cross}_layer_norm', 'decoder/cross_norm'),
    )


def _embeddings(c: ConfigDict) -> list[Row]:
    # Unless all are one matrix, `shared.weight` is not part of the network: it is never read, and
    # written only because transformers requires it.
    shared, head = 'model.shared.weight', 'lm_head.weight'
    encoder, decoder = 'model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight'
    path, decoder_path = 'token_embedding/table', 'decoder_token_embedding/table'
    if c.tied == 'all':
        return [Row(shared, path, vocab=True, same=(encoder, decoder, head))]
    rows = [Row(encoder, path, vocab=True, copies=(shared,))]
    if c.tied == 'decoder':
        return [*rows, Row(decoder, decoder_path, vocab=True, same=(head,), copies=(head,))]
    output = Row(head, 'output/table', vocab=True, head=True)
    return [*rows, Row(decoder, decoder_path, vocab=True), output]


def _stack(side: str) -> list[Row]:
    stack, layer = f'model.{side}', f'model.{side}.layers.{{layer}}'
    return [
        # BART's position tables have two rows before position 0.
        Row(f'{stack}.embed_positions.weight', f'{side}_position/table', offset=2),
        *norm(f'{stack}.layernorm_embedding', f'{side}_norm'),
        *linear(f'{layer}.self_attn.q_proj', f'{side}/attention/qkv', part=0),
        *linear(f'{layer}.self_attn.k_proj', f'{side}/attention/qkv', part=1),
        *linear(f'{layer}.self_attn.v_proj', f'{side}/attention/qkv', part=2),
        *linear(f'{layer}.self_attn.out_proj', f'{side}/attention/out'),
        *norm(f'{layer}.self_attn_layer_norm', f'{side}/attention_norm'),
        *linear(f'{layer}.fc1', f'{side}/ffn/up'),
        *linear(f'{layer}.fc2', f'{side}/ffn/down'),
        *norm(f'{layer}.final_layer_norm', f'{side}/ffn_norm'),
    ]
