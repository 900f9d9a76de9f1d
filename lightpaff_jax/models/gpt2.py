"""GPT-2: a decoder of pre-LayerNorm blocks with learned positions and a tied head.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lightpaff_jax.models import layers
from lightpaff_jax.models.huggingface import Row

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

    def __call__(self, x_BTD, key=None):
        inner, outer, ffn = layers.split(key, 3)
        mixed_BTD = self.attention(self.norm1(x_BTD), causal=True, key=inner, dropout=self.dropout)
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
        """[B, T] ids -> features [B, T, D]."""
        embedded, blocks = layers.split(key, 2)
        x_BTD = self.token_embedding(batch.tokens, dtype)
        x_BTD += self.position_embedding(jnp.arange(batch.tokens.shape[1]), dtype)
        x_BTD = layers.drop(x_BTD, embedded, self.dropout)
        return self.norm(layers.scan(self.blocks, x_BTD, blocks, remat))

    def head(self):
        """The tied output matrix [V, D]; GPT-2 has no output bias."""
        return self.token_embedding.table[...], None


def flops_per_token(c, length: int) -> float:
    """Matrix products of one forward pass for one token of T = `length`, head excluded.

    Attention counts the whole T x T square: that is what the XLA path computes.
    """
    matrices = c.layers * (4 * c.width**2 + 2 * c.width * c.ffn)
    return 2.0 * (matrices + c.layers * 2 * length * c.width)


# Hugging Face stores GPT-2's matrices as [in, out], so nothing is transposed.
TABLE = (
    Row('wte.weight', 'token_embedding/table', vocab_axis=0),
    Row('wpe.weight', 'position_embedding/table'),
    Row('h.{layer}.ln_1.weight', 'blocks/norm1/scale'),
    Row('h.{layer}.ln_1.bias', 'blocks/norm1/bias'),
    Row('h.{layer}.attn.c_attn.weight', 'blocks/attention/qkv/kernel'),
    Row('h.{layer}.attn.c_attn.bias', 'blocks/attention/qkv/bias'),
    Row('h.{layer}.attn.c_proj.weight', 'blocks/attention/out/kernel'),
    Row('h.{layer}.attn.c_proj.bias', 'blocks/attention/out/bias'),
    Row('h.{layer}.ln_2.weight', 'blocks/norm2/scale'),
    Row('h.{layer}.ln_2.bias', 'blocks/norm2/bias'),
    Row('h.{layer}.mlp.c_fc.weight', 'blocks/ffn/up/kernel'),
    Row('h.{layer}.mlp.c_fc.bias', 'blocks/ffn/up/bias'),
    Row('h.{layer}.mlp.c_proj.weight', 'blocks/ffn/down/kernel'),
    Row('h.{layer}.mlp.c_proj.bias', 'blocks/ffn/down/bias'),
    Row('ln_f.weight', 'norm/scale'),
    Row('ln_f.bias', 'norm/bias'),
)
