"""GPT-2: a decoder of pre-LayerNorm blocks with learned positions and a tied head.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools

import jax
from flax import nnx

from lightpaff_jax.models import layers
from lightpaff_jax.models.huggingface import Names, Row, linear, norm

_EPSILON = 1e-5
_STD = 0.02
_gelu = functools.partial(jax.nn.gelu, approximate=True)


class Block(nnx.Module):
    """Attention and feed-forward, each on normalised features and added to the stream."""

    def __init__(self, c, rngs: nnx.Rngs):
        out_std = _STD / (2 * c.layers) ** 0.5
        self.norm1 = layers.LayerNorm(c.width, _EPSILON)
        self.attention = layers.SelfAttention(c.width, c.heads, _STD, out_std, rngs)
        self.norm2 = layers.LayerNorm(c.width, _EPSILON)
        self.ffn = layers.FeedForward(c.width, c.ffn, _gelu, _STD, out_std, rngs)
        self.dropout = c.dropout

    def __call__(self, x_BTD, key=None, mask=None):
        inner, outer, ffn = layers.split(key, 3)
        mixed_BTD = self.attention(
            self.norm1(x_BTD), causal=True, mask=mask, key=inner, dropout=self.dropout
        )
        x_BTD += layers.drop(mixed_BTD, outer, self.dropout)
        return x_BTD + layers.drop(self.ffn(self.norm2(x_BTD)), ffn, self.dropout)


class GPT2(nnx.Module):
    """Embeddings, blocks, and the last norm; the head is the token embedding."""

    def __init__(self, c, padded_vocab: int, rngs: nnx.Rngs):
        self.token_embedding = layers.Embedding(padded_vocab, c.vocab_size, c.width, _STD, rngs)
        self.position_embedding = layers.Embedding(c.positions, c.positions, c.width, _STD, rngs)
        self.blocks = layers.stack(lambda rngs: Block(c, rngs), c.layers, rngs)
        self.norm = layers.LayerNorm(c.width, _EPSILON)
        self.dropout = c.dropout

    def __call__(self, batch, *, dtype, remat: str, key=None):
        """Ids [B, T] -> features [B, P, D]."""
        embedded, blocks = layers.split(key, 2)
        x_BTD = self.token_embedding(batch.tokens, dtype)
        x_BTD += layers.positions(self.position_embedding, batch.tokens, batch.position_ids, dtype)
        x_BTD = layers.drop(x_BTD, embedded, self.dropout)
        mask = layers.within(batch.segments)
        x_BTD = layers.scan(self.blocks, x_BTD, blocks, remat, mask)
        return self.norm(layers.at(x_BTD, batch.positions))

    def head(self):
        """The tied output matrix [V, D]; GPT-2 has no output bias."""
        return self.token_embedding.table[...], None


def flops(c, shape) -> float:
    """Matrix products of one example's forward pass, head excluded.

    Attention counts the whole T x T square: that is what the XLA path computes.
    """
    return c.layers * layers.block_flops(c, shape.tokens)


NAMES = Names(prefix='transformer.', buffers=r'h\.\d+\.attn\.(bias|masked_bias)')


def table(c) -> tuple[Row, ...]:
    """Our parameters in Hugging Face's names, which store matrices as [in, out], as we do."""
    layer = 'transformer.h.{layer}'
    return (
        Row('transformer.wte.weight', 'token_embedding/table', vocab=True,
            same=('lm_head.weight',)),
        Row('transformer.wpe.weight', 'position_embedding/table'),
        *norm(f'{layer}.ln_1', 'blocks/norm1'),
        *linear(f'{layer}.attn.c_attn', 'blocks/attention/qkv', transpose=False),
        *linear(f'{layer}.attn.c_proj', 'blocks/attention/out', transpose=False),
        *norm(f'{layer}.ln_2', 'blocks/norm2'),
        *linear(f'{layer}.mlp.c_fc', 'blocks/ffn/up', transpose=False),
        *linear(f'{layer}.mlp.c_proj', 'blocks/ffn/down', transpose=False),
        *norm('transformer.ln_f', 'norm'),
    )  # fmt: skip
