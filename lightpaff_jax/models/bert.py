"""BERT: an encoder of post-LayerNorm blocks with learned positions and token types.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2018.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.matching import Tap, group_by_layer
from lightpaff_jax.models import attention, layers
from lightpaff_jax.models.huggingface.weights import Names, Row, linear, norm, output

_EPSILON = 1e-12
_gelu = functools.partial(jax.nn.gelu, approximate=False)


class BERT(nnx.Module):
    """Embeddings, blocks, and the layers that the head needs.

    The masked-LM head has a transform and the token embedding as its matrix. The classifier has a
    pooler and a matrix. The head 'pretraining' has both, 'none' has a pooler only.
    """

    def __init__(self, c: ConfigDict, padded_vocab: int, rngs: nnx.Rngs):
        std = layers.initial_std(c.width)
        embedding = functools.partial(layers.Embedding, width=c.width, std=std, rngs=rngs)
        self.token_embedding = embedding(padded_vocab, c.vocab_size)
        self.position_embedding = embedding(c.positions, c.positions)
        self.type_embedding = embedding(c.type_vocab_size, c.type_vocab_size)
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
        self.head_type = c.head
        self.layers = c.layers
        self.dropout = c.dropout

    def __call__(
        self,
        batch: Batch,
        *,
        compute: layers.Compute,
        key: Array | None = None,
        taps: Sequence[Tap] = (),
    ) -> tuple[Float[Array, 'B P D'], dict[Tap, Array]]:
        """Maps ids [B, T] to features; the last block and the head skip other positions."""
        embedding_key, blocks_key, pooler_key = layers.split_key(key, 3)
        tables = self.token_embedding, self.position_embedding
        x_BTD = layers.embed(*tables, batch.tokens, batch.position_ids, compute.dtype)
        types = jnp.zeros_like(batch.tokens) if batch.type_ids is None else batch.type_ids
        x_BTD += self.type_embedding(types, compute.dtype)
        x_BTD = layers.dropout(self.embedding_norm(x_BTD), embedding_key, self.dropout)
        mask = attention.self_mask(batch.segments, False, compute.attention)
        by_layer = group_by_layer(taps, 'encoder')
        positions_BP = batch.positions
        if positions_BP is None or self.layers - 1 in by_layer:
            x_BTD, activations = layers.scan(
                self.blocks, x_BTD, blocks_key, compute.remat, by_layer, mask
            )
            x_BPD = layers.gather_positions(x_BTD, positions_BP)
        else:
            query_mask = attention.query_mask(batch.segments, positions_BP)
            x_BPD, activations = layers.scan(
                *(self.blocks, x_BTD, blocks_key, compute.remat, by_layer, mask),
                last=lambda block, x_BTD, key: block.at_positions(
                    x_BTD, key, query_mask, positions_BP
                ),
            )
        return self._head_features(x_BPD, pooler_key), activations

    def _head_features(self, x_BPD: Array, key: Array | None) -> Float[Array, 'B P D']:
        if self.head_type == 'none':
            return x_BPD
        if self.head_type == 'classify':
            return layers.dropout(jnp.tanh(self.pooler(x_BPD)), key, self.dropout)
        return self.transform_norm(_gelu(self.transform(x_BPD)))

    def head(self) -> tuple[Array, Array]:
        """Returns the output matrix [V, D] and bias [V], for V ids or classes."""
        if self.head_type == 'none':
            raise ValueError("a BERT with head 'none' predicts nothing")
        if self.head_type == 'classify':
            return self.classifier.table[...], self.classifier.bias[...]
        return self.token_embedding.table[...], self.output_bias.bias[...]


def flops(c: ConfigDict, shape: Shape, taps: Sequence[Tap] = ()) -> float:
    """Computes the FLOPs of one example's forward pass, head excluded.

    The last block computes its output at the predicted positions only, unless a tap reads it.
    """
    transform = 0 if c.head == 'none' else 2.0 * shape.predicted * c.width**2
    whole = (c.layers - 1) * layers.block_flops(c, shape.tokens)
    queries = shape.tokens if any(tap.layer == c.layers - 1 for tap in taps) else shape.predicted
    return whole + layers.block_flops(c, shape.tokens, queries) + transform


NAMES = Names(
    prefix='bert.',
    buffers=r'embeddings\.(position_ids|token_type_ids)',
    heads=r'(cls\.(predictions|seq_relationship)|pooler\.dense|classifier)\..*',
)


def table(c: ConfigDict) -> tuple[Row, ...]:
    """Lists the parameters' names in Hugging Face's format."""
    layer, embeddings = 'bert.encoder.layer.{layer}', 'bert.embeddings'
    cls, tokens = 'cls.predictions', f'{embeddings}.word_embeddings.weight'
    tied = (f'{cls}.decoder.weight',) if c.head in ('lm', 'pretraining') else ()
    rows = [
        Row(tokens, 'token_embedding/table', vocab=True, same=tied),
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
    ]
    if c.head in ('lm', 'pretraining'):
        decoder_bias = (f'{cls}.decoder.bias',)
        rows += [
            *linear(f'{cls}.transform.dense', 'transform', head=True),
            *norm(f'{cls}.transform.LayerNorm', 'transform_norm', head=True),
            Row(f'{cls}.bias', 'output_bias/bias', vocab=True, head=True, same=decoder_bias),
        ]
    if c.head != 'lm':
        rows += linear('bert.pooler.dense', 'pooler', head=True)
    if c.head == 'classify':
        rows += output('classifier', 'classifier')
    if c.head == 'pretraining':
        rows += output('cls.seq_relationship', 'next_sentence')
    return tuple(rows)
