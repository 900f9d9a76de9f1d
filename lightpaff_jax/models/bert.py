"""BERT: an encoder of post-LayerNorm blocks with learned positions and token types.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2018.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lightpaff_jax.models import attention, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm

_EPSILON = 1e-12
_gelu = functools.partial(jax.nn.gelu, approximate=False)


class BERT(nnx.Module):
    """Embeddings and blocks, then what the head needs: the transform of the masked-LM head (its
    matrix is the token embedding), the pooler of the classifier, both, or neither.
    """

    def __init__(self, c, padded_vocab: int, rngs: nnx.Rngs):
        std = layers.initial_std(c.width)
        self.token_embedding = layers.Embedding(padded_vocab, c.vocab_size, c.width, std, rngs)
        self.position_embedding = layers.Embedding(c.positions, c.positions, c.width, std, rngs)
        self.type_embedding = layers.Embedding(
            c.type_vocab_size, c.type_vocab_size, c.width, std, rngs
        )
        self.embedding_norm = layers.LayerNorm(c.width, _EPSILON)
        self.blocks = layers.stack(
            lambda rngs: layers.PostNormBlock(c, _gelu, _EPSILON, rngs), c.layers, rngs
        )
        if c.head in ('lm', 'pretraining'):
            self.transform = layers.Linear((c.width, c.width), 1, std, rngs)
            self.transform_norm = layers.LayerNorm(c.width, _EPSILON)
            self.output_bias = layers.Bias(padded_vocab)
        if c.head != 'lm':
            self.pooler = layers.Linear((c.width, c.width), 1, std, rngs)
        if c.head == 'classify':
            self.classifier = layers.Output(c.classes, c.width, std, rngs)
        if c.head == 'pretraining':
            self.next_sentence = layers.Output(2, c.width, std, rngs)
        self.kind = c.head
        self.dropout = c.dropout

    def __call__(self, batch, *, how: layers.Compute, key=None):
        """Ids [B, T] -> features [B, P, D]; the head's transform sees predicted positions only."""
        embedded, blocks, pooled = layers.split_key(key, 3)
        x_BTD = self.token_embedding(batch.tokens, how.dtype)
        x_BTD += layers.position_embeddings(
            self.position_embedding, batch.tokens, batch.position_ids, how.dtype
        )
        types = jnp.zeros_like(batch.tokens) if batch.type_ids is None else batch.type_ids
        x_BTD += self.type_embedding(types, how.dtype)
        x_BTD = layers.dropout(self.embedding_norm(x_BTD), embedded, self.dropout)
        sight = attention.self_mask(batch.segments, False, how.attention)
        x_BTD = layers.scan(self.blocks, x_BTD, blocks, how.remat, sight)
        x_BPD = layers.gather_positions(x_BTD, batch.positions)
        if self.kind == 'none':
            return x_BPD
        if self.kind == 'classify':
            return layers.dropout(jnp.tanh(self.pooler(x_BPD)), pooled, self.dropout)
        return self.transform_norm(_gelu(self.transform(x_BPD)))

    def head(self):
        """Output matrix [V, D] and bias [V], V classes for a classifier."""
        if self.kind == 'none':
            raise ValueError("a BERT with head 'none' predicts nothing")
        if self.kind == 'classify':
            return self.classifier.table[...], self.classifier.bias[...]
        return self.token_embedding.table[...], self.output_bias.bias[...]


def flops(c, shape) -> float:
    """Matrix products of one example's forward pass, head excluded."""
    last = 0 if c.head == 'none' else 2.0 * shape.predicted * c.width**2
    return c.layers * layers.block_flops(c, shape.tokens) + last


NAMES = Names(
    prefix='bert.',
    buffers=r'embeddings\.(position_ids|token_type_ids)',
    heads=r'(cls\.(predictions|seq_relationship)|pooler\.dense|classifier)\..*',
)


def table(c) -> tuple[Row, ...]:
    """Our parameters in Hugging Face's names."""
    layer, embeddings = 'bert.encoder.layer.{layer}', 'bert.embeddings'
    decoder = ('cls.predictions.decoder.weight',) if c.head in ('lm', 'pretraining') else ()
    rows = [
        Row(f'{embeddings}.word_embeddings.weight', 'token_embedding/table', vocab=True,
            same=decoder),
        Row(f'{embeddings}.position_embeddings.weight', 'position_embedding/table'),
        Row(f'{embeddings}.token_type_embeddings.weight', 'type_embedding/table'),
        *norm(f'{embeddings}.LayerNorm', 'embedding_norm'),
        *linear(f'{layer}.attention.self.query', 'blocks/attention/qkv', part=0),
        *linear(f'{layer}.attention.self.key', 'blocks/attention/qkv', part=1),
        *linear(f'{layer}.attention.self.value', 'blocks/attention/qkv', part=2),
        *linear(f'{layer}.attention.output.dense', 'blocks/attention/out'),
        *norm(f'{layer}.attention.output.LayerNorm', 'blocks/attention_norm'),
        *linear(f'{layer}.intermediate.dense', 'blocks/ffn/up'),
        *linear(f'{layer}.output.dense', 'blocks/ffn/down'),
        *norm(f'{layer}.output.LayerNorm', 'blocks/ffn_norm'),
    ]  # fmt: skip
    if c.head in ('lm', 'pretraining'):
        rows += [
            *linear('cls.predictions.transform.dense', 'transform', head=True),
            *norm('cls.predictions.transform.LayerNorm', 'transform_norm', head=True),
            Row('cls.predictions.bias', 'output_bias/bias', vocab=True, head=True,
                same=('cls.predictions.decoder.bias',)),
        ]  # fmt: skip
    if c.head != 'lm':
        rows += linear('bert.pooler.dense', 'pooler', head=True)
    if c.head in ('classify', 'pretraining'):
        theirs, ours = {
            'classify': ('classifier', 'classifier'),
            'pretraining': ('cls.seq_relationship', 'next_sentence'),
        }[c.head]
        rows += [
            Row(f'{theirs}.weight', f'{ours}/table', head=True),
            Row(f'{theirs}.bias', f'{ours}/bias', head=True),
        ]
    return tuple(rows)
