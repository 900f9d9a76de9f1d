"""GPT-2: a decoder of pre-LayerNorm blocks with learned positions and a tied head.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lightpaff_jax.models import attention, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm

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

    def __call__(self, x_BTD, key, sight):
        inner, outer, ffn = layers.split_key(key, 3)
        mixed_BTD = self.attention(self.norm1(x_BTD), sight, inner, self.dropout)
        x_BTD += layers.dropout(mixed_BTD, outer, self.dropout)
        return x_BTD + layers.dropout(self.ffn(self.norm2(x_BTD)), ffn, self.dropout)

    def keys(self, x_BTD):
        """What later tokens attend to."""
        return self.attention.keys(self.norm1(x_BTD))

    def step(self, x_BWD, memory, step, seen):
        """One token of each hypothesis: features, and the layer's memory with it."""
        mixed_BWD, own = self.attention.step(
            self.norm1(x_BWD), memory['own'], step, seen, memory['prompt']
        )
        x_BWD += mixed_BWD
        return x_BWD + self.ffn(self.norm2(x_BWD)), memory | {'own': own}


class GPT2(nnx.Module):
    """Embeddings, blocks, and the last norm; the head is the token embedding."""

    def __init__(self, c, padded_vocab: int, rngs: nnx.Rngs):
        self.token_embedding = layers.Embedding(padded_vocab, c.vocab_size, c.width, _STD, rngs)
        self.position_embedding = layers.Embedding(c.positions, c.positions, c.width, _STD, rngs)
        self.blocks = layers.stack(lambda rngs: Block(c, rngs), c.layers, rngs)
        self.norm = layers.LayerNorm(c.width, _EPSILON)
        self.dropout = c.dropout

    def __call__(self, batch, *, how: layers.Compute, key=None):
        """Ids [B, T] -> features [B, P, D]."""
        embedded, blocks = layers.split_key(key, 2)
        x_BTD = self.token_embedding(batch.tokens, how.dtype)
        x_BTD += layers.position_embeddings(
            self.position_embedding, batch.tokens, batch.position_ids, how.dtype
        )
        x_BTD = layers.dropout(x_BTD, embedded, self.dropout)
        sight = attention.self_mask(batch.segments, True, how.attention)
        x_BTD = layers.scan(self.blocks, x_BTD, blocks, how.remat, sight)
        return self.norm(layers.gather_positions(x_BTD, batch.positions))

    def begin(self, batch, start_id: int, steps: int, beams: int, *, dtype):
        """The first token to step from, [B], and the memory of those before it.

        That is the last of the prompt (`start_id` is for decoders that have none).
        """
        del start_id
        layers.check_positions(self.position_embedding, batch.tokens.shape[1] + steps)
        real_BT = jnp.ones_like(batch.tokens) if batch.segments is None else batch.segments != 0
        last_B = jnp.maximum(jnp.sum(real_BT, axis=1, dtype=jnp.int32) - 1, 0)
        x_BTD = self.token_embedding(batch.tokens, dtype)
        x_BTD += layers.position_embeddings(self.position_embedding, batch.tokens, None, dtype)
        prompt = layers.scan_caches(self.blocks, x_BTD, Block.keys, attention.self_mask(None, True))
        memory = {
            'layers': [
                {'prompt': one, 'own': layers.empty_cache(one, beams * steps)}
                for one in layers.unstack(prompt)
            ],
            'seen': jnp.arange(batch.tokens.shape[1]) < last_B[:, None],
            'position': last_B,
        }
        tokens_B = jnp.take_along_axis(batch.tokens, last_B[:, None], axis=1)[:, 0]
        return tokens_B, memory

    def single(self, dtype):
        """Parameters of each layer that a token goes through."""
        return layers.unstack_params(self.blocks, dtype)

    def step(self, blocks, memory, tokens_BW, step, seen_BWS, *, dtype):
        """One token of each hypothesis: features [B, W, D], and the memory with it."""
        x_BWD = self.token_embedding(tokens_BW, dtype)
        x_BWD += self.position_embedding(memory['position'] + step, dtype)[:, None]
        seen, new = (memory['seen'][:, None], seen_BWS), []
        for params, old in zip(blocks, memory['layers'], strict=True):
            x_BWD, one = layers.bind_layer(self.blocks, params).step(x_BWD, old, step, seen)
            new.append(one)
        return self.norm(x_BWD), memory | {'layers': new}

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
