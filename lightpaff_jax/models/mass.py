"""MASS: an encoder-decoder of post-LayerNorm blocks with learned positions.

Layer for layer a BART that scales its token embeddings by sqrt(D). In pre-training the decoder
predicts one masked fragment of the source, at the fragment's own positions.

Source: Song et al., "MASS: Masked Sequence to Sequence Pre-training for Language Generation",
2019; the layout: Lewis et al., "BART", 2019.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lightpaff_jax.models import attention, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm

_EPSILON = 1e-5
_ACTIVATIONS: dict[str, Callable] = {
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
}


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the source, feed-forward; a norm after each."""

    def __init__(self, c, rngs: nnx.Rngs):
        std = layers.initial_std(c.width)
        self.attention = layers.SelfAttention(c.width, c.heads, std, std, rngs)
        self.attention_norm = layers.LayerNorm(c.width, _EPSILON)
        self.cross = layers.CrossAttention(c.width, c.heads, std, rngs)
        self.cross_norm = layers.LayerNorm(c.width, _EPSILON)
        activation = _ACTIVATIONS[c.activation]
        self.ffn = layers.FeedForward(c.width, c.ffn, activation, std, std, rngs)
        self.ffn_norm = layers.LayerNorm(c.width, _EPSILON)
        self.dropout = c.dropout

    def __call__(self, x_BTD, key, sight, source_BSD, source_sight):
        rate = self.dropout
        inner, outer, cross_inner, cross_outer, ffn = layers.split_key(key, 5)
        mixed_BTD = self.attention(x_BTD, sight, inner, rate)
        x_BTD = self.attention_norm(x_BTD + layers.dropout(mixed_BTD, outer, rate))
        mixed_BTD = self.cross(x_BTD, source_BSD, source_sight, cross_inner, rate)
        x_BTD = self.cross_norm(x_BTD + layers.dropout(mixed_BTD, cross_outer, rate))
        return self.ffn_norm(x_BTD + layers.dropout(self.ffn(x_BTD), ffn, rate))

    def step(self, x_BWD, memory, step, seen, source_seen):
        """One token of each hypothesis: features, and the layer's memory with it."""
        mixed_BWD, own = self.attention.step(x_BWD, memory['own'], step, [seen])
        x_BWD = self.attention_norm(x_BWD + mixed_BWD)
        x_BWD = self.cross_norm(x_BWD + self.cross.step(x_BWD, memory['source'], source_seen))
        return self.ffn_norm(x_BWD + self.ffn(x_BWD)), memory | {'own': own}


class MASS(nnx.Module):
    """Encoder and decoder; `tied` says which of their embeddings and the output are one matrix."""

    def __init__(self, c, padded_vocab: int, rngs: nnx.Rngs):
        std = layers.initial_std(c.width)
        if c.scale_embedding:
            std = c.width**-0.5  # unit variance once it is scaled

        def table():
            return layers.Embedding(padded_vocab, c.vocab_size, c.width, std, rngs)

        def positions():
            return layers.Embedding(c.positions, c.positions, c.width, std, rngs)

        self.token_embedding = table()
        if c.tied != 'all':
            self.decoder_token_embedding = table()
        if c.tied == 'none':
            self.output = table()
        self.output_bias = layers.Bias(padded_vocab)
        activation = _ACTIVATIONS[c.activation]
        self.encoder_position = positions()
        self.encoder_norm = layers.LayerNorm(c.width, _EPSILON)
        self.encoder = layers.stack(
            lambda rngs: layers.PostNormBlock(c, activation, _EPSILON, rngs), c.layers, rngs
        )
        self.decoder_position = positions()
        self.decoder_norm = layers.LayerNorm(c.width, _EPSILON)
        self.decoder = layers.stack(lambda rngs: DecoderBlock(c, rngs), c.decoder_layers, rngs)
        self.scale = c.width**0.5 if c.scale_embedding else 1.0
        self.tied = c.tied
        self.dropout = c.dropout

    def __call__(self, batch, *, how: layers.Compute, key=None):
        """Source ids [B, S] and decoder inputs [B, T] -> the decoder's features [B, P, D]."""
        encoder, embedded, blocks = layers.split_key(key, 3)
        x_BSD = self.encode(batch, how=how, key=encoder)
        y_BTD = self.embedded(batch.tokens, how.dtype)
        y_BTD += layers.position_embeddings(
            self.decoder_position, batch.tokens, batch.position_ids, how.dtype
        )
        y_BTD = layers.dropout(self.decoder_norm(y_BTD), embedded, self.dropout)
        sight = attention.self_mask(batch.segments, True, how.attention)
        source_sight = attention.cross_mask(
            batch.segments, batch.source_segments, batch.tokens, how.attention
        )
        y_BTD = layers.scan(self.decoder, y_BTD, blocks, how.remat, sight, x_BSD, source_sight)
        return layers.gather_positions(y_BTD, batch.positions)

    def embedded(self, ids, dtype):
        """Embeddings of the decoder's ids, scaled."""
        embedding = self.token_embedding if self.tied == 'all' else self.decoder_token_embedding
        return embedding(ids, dtype) * self.scale

    def encode(self, batch, *, how: layers.Compute, key=None):
        """Source ids [B, S] -> the encoder's features [B, S, D]."""
        embedded, blocks = layers.split_key(key, 2)
        x_BSD = self.token_embedding(batch.source, how.dtype) * self.scale
        x_BSD += layers.position_embeddings(
            self.encoder_position, batch.source, batch.source_position_ids, how.dtype
        )
        x_BSD = layers.dropout(self.encoder_norm(x_BSD), embedded, self.dropout)
        sight = attention.self_mask(batch.source_segments, False, how.attention)
        return layers.scan(self.encoder, x_BSD, blocks, how.remat, sight)

    def begin(self, batch, start_id: int, steps: int, beams: int, *, dtype):
        """The first token to step from, [B] times `start_id`, and the memory of the source.

        The source goes through the encoder, and is projected for every decoder layer, once.
        """
        layers.check_positions(self.decoder_position, steps)
        x_BSD = self.encode(batch, how=layers.Compute(dtype))
        source = jax.lax.map(
            lambda one: layers.bind_layer(self.decoder, one).cross.keys(x_BSD),
            nnx.split(self.decoder)[1],
        )
        real = batch.source_segments
        memory = {
            'layers': [
                {'source': one, 'own': layers.empty_cache(one, beams * steps)}
                for one in layers.unstack(source)
            ],
            'seen': jnp.ones((1, batch.source.shape[1]), bool) if real is None else real != 0,
        }
        return jnp.full(len(batch.source), start_id, jnp.int32), memory

    def single(self, dtype):
        """Parameters of each layer that a token goes through."""
        return layers.unstack_params(self.decoder, dtype)

    def step(self, blocks, memory, tokens_BW, step, seen_BWS, *, dtype):
        """One token of each hypothesis: features [B, W, D], and the memory with it."""
        x_BWD = self.embedded(tokens_BW, dtype) + self.decoder_position(step, dtype)
        x_BWD = self.decoder_norm(x_BWD)
        source_seen, new = memory['seen'][:, None], []
        for params, old in zip(blocks, memory['layers'], strict=True):
            x_BWD, one = layers.bind_layer(self.decoder, params).step(
                x_BWD, old, step, seen_BWS, source_seen
            )
            new.append(one)
        return x_BWD, memory | {'layers': new}

    def head(self):
        """Output matrix [V, D], and the bias [V] of an imported checkpoint, which is not trained."""
        matrix = {
            'all': lambda: self.token_embedding,
            'decoder': lambda: self.decoder_token_embedding,
            'none': lambda: self.output,
        }[self.tied]()
        return matrix.table[...], jax.lax.stop_gradient(self.output_bias.bias[...])


def flops(c, shape) -> float:
    """Matrix products of one example's forward pass, head excluded."""
    target, source, width = shape.tokens, shape.source, c.width
    cross = 2.0 * (2 * (target + source) * width**2 + 2 * target * source * width)
    encoder = c.layers * layers.block_flops(c, source)
    return encoder + c.decoder_layers * (layers.block_flops(c, target) + cross)


NAMES = Names(prefix='model.', buffers=r'(encoder|decoder)\.version|shared\.weight')
_OFFSET = 2  # rows of BART's position tables before position 0


def table(c) -> tuple[Row, ...]:
    """Our parameters in the names of Hugging Face's BART.

    Where not everything is one matrix, its `shared.weight` is no part of the network: it is not
    read, and written only because transformers asks for it.
    """
    cross = 'model.decoder.layers.{layer}.encoder_attn'
    return (
        *_tables(c),
        Row('final_logits_bias', 'output_bias/bias', vocab=True, lead=True, optional=True),
        *_stack('encoder'),
        *_stack('decoder'),
        *linear(f'{cross}.q_proj', 'decoder/cross/query'),
        *linear(f'{cross}.k_proj', 'decoder/cross/kv', part=0),
        *linear(f'{cross}.v_proj', 'decoder/cross/kv', part=1),
        *linear(f'{cross}.out_proj', 'decoder/cross/out'),
        *norm(f'{cross}_layer_norm', 'decoder/cross_norm'),
    )


def _tables(c) -> list[Row]:
    shared, head = 'model.shared.weight', 'lm_head.weight'
    encoder, decoder = 'model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight'
    ours = ('token_embedding/table', 'decoder_token_embedding/table', 'output/table')
    if c.tied == 'all':
        return [Row(shared, ours[0], vocab=True, same=(encoder, decoder, head))]
    rows = [Row(encoder, ours[0], vocab=True, copies=(shared,))]
    if c.tied == 'decoder':
        return [*rows, Row(decoder, ours[1], vocab=True, same=(head,), copies=(head,))]
    return [*rows, Row(decoder, ours[1], vocab=True), Row(head, ours[2], vocab=True, head=True)]


def _stack(side: str) -> list[Row]:
    """Rows that the encoder and the decoder both have."""
    stack, layer = f'model.{side}', f'model.{side}.layers.{{layer}}'
    return [
        Row(f'{stack}.embed_positions.weight', f'{side}_position/table', offset=_OFFSET),
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
