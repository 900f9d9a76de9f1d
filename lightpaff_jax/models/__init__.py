"""Models: a family's network as pure functions over a nested dict of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict, FrozenConfigDict

from lightpaff_jax import config
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.models import bert, gpt2, mass
from lightpaff_jax.models.huggingface.weights import Row
from lightpaff_jax.models.layers import Compute

Params = dict[str, Any]

_MASKED = -1e9  # finite: an infinite bias of a padding id makes KL NaN

MODELS: dict[str, tuple[ModuleType, Callable[..., nnx.Module]]] = {
    'bert': (bert, bert.BERT),
    'gpt2': (gpt2, gpt2.GPT2),
    'mass': (mass, mass.MASS),
}
"""Family name -> its file and its network."""
DECODERS = ('gpt2', 'mass')
"""Families that write texts."""


class Decoder(NamedTuple):
    """A network that writes texts token by token: pure functions, as `Model`'s.

    B rows, W hypotheses of each (beams), N steps, D width. A memory is a nested dict of arrays of
    fixed size, keys and values of what was read; hypotheses of a row share it.
    """

    begin: Callable[..., tuple[Int[Array, ' B'], Any]]
    """(params, prompt, *, start_id, steps, beams) -> the first token, and the memory before it.

    The prompt of a GPT-2 is `tokens`, padded on the right where `segments` is 0, and its last token
    is the first to step from; of an encoder-decoder, it is `source`, and the first token `start_id`.
    Raises ValueError where prompt and steps exceed the positions of the network."""
    single: Callable[[Params], Any]
    """params -> each layer's own arrays, for `step`: to be made once, before a loop."""
    step: Callable[..., tuple[Float[Array, 'B W D'], Any]]
    """(params, single, memory, tokens [B, W], step, seen [B, W, N W]) -> features, new memory.

    `seen` [b, w, n W + v]: whether hypothesis w has the token that was v's at step n; its own of
    this step is among them. B may be 1."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions of one architecture. Nothing outside models/ sees a module.

    B batch, T time, P predicted positions, D width, V vocabulary padded to a multiple of 128.
    """

    init: Callable[[Array], Params]
    """key -> parameters, float32."""
    features: Callable[..., Float[Array, 'B P D']]
    """(params, batch, *, key=None) -> features at the predicted positions; key: dropout is on."""
    head: Callable[[Params], tuple[Float[Array, 'V D'], Float[Array, ' V']]]
    """params -> output matrix and bias; the bias of a padding id is -1e9. V is the number of
    classes for a classifier."""
    decoder: Decoder | None
    """What generation needs; None: an encoder."""
    flops: Callable[[Shape], float]
    """Floating-point operations of one example's forward pass, head included."""
    table: tuple[Row, ...]
    """Our parameters in Hugging Face's names."""
    network: ConfigDict
    """What it was built from, frozen: the keys of `config.network()`."""

    @property
    def vocab_size(self) -> int:
        """Ids in use, without padding."""
        return self.network.vocab_size

    @functools.cached_property
    def abstract_params(self) -> Params:
        """ShapeDtypeStructs of the parameters."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    @property
    def parameter_count(self) -> int:
        """Parameters in use: padding of the vocabulary is not counted."""
        padded_rows = {row.path for row in self.table if row.vocab}
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.abstract_params):
            rows, *rest = leaf.shape
            if '/'.join(k.key for k in path) in padded_rows:
                rows = self.vocab_size
            total += math.prod((rows, *rest))
        return total

    def logits(self, params: Params, batch: Batch) -> Float[Array, 'B P V']:
        """All logits, in float32: for small inputs and for comparisons."""
        weight, bias = self.head(params)
        features = self.features(params, batch)
        product = jnp.einsum('bpd,vd->bpv', features, weight, preferred_element_type=jnp.float32)
        return product + bias


def pad_vocab(vocab_size: int) -> int:
    """The vocabulary's size in memory: the next multiple of 128."""
    return -(-vocab_size // 128) * 128


def head_rows(c: ConfigDict) -> int:
    """Rows of a network's head: classes, or ids with padding."""
    return c.classes if c.head == 'classify' else pad_vocab(c.vocab_size)


def build(
    c: ConfigDict, *, compute_dtype: str = 'float32', remat: str = 'none', attention: str = 'xla'
) -> Model:
    """The functions of one network.

    Args:
      c: a section with the keys of `config.network()`.
      compute_dtype: of features and matrix products; norms and softmax stay float32.
      remat: what the backward pass computes again, one of config.REMAT.
      attention: one of attention.KERNELS; generation takes 'xla'.

    Returns:
      the same functions for the same arguments: what jax made of them is found again.
    """
    frozen = FrozenConfigDict({key: c[key] for key in config.network()})
    return _built(frozen, compute_dtype, remat, attention)


@functools.lru_cache(maxsize=64)
def _built(c: FrozenConfigDict, compute_dtype: str, remat: str, attention: str) -> Model:
    module, network = MODELS[c.family]
    vocab, dtype = pad_vocab(c.vocab_size), jnp.dtype(compute_dtype)
    how = Compute(dtype, remat, attention)
    rows, used = head_rows(c), c.classes if c.head == 'classify' else c.vocab_size
    make = functools.partial(network, c, vocab)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))

    def bind(params):
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def features(params, batch, *, key=None):
        return bind(params)(batch, how=how, key=key)

    def head(params):
        weight, bias = bind(params).head()
        bias = jnp.zeros((rows,)) if bias is None else bias
        return weight.astype(dtype), jnp.where(jnp.arange(rows) < used, bias, _MASKED)

    def flops(shape):
        return module.flops(c, shape) + 2.0 * shape.predicted * c.width * rows

    def begin(params, prompt, *, start_id, steps, beams):
        return bind(params).begin(prompt, start_id, steps, beams, dtype=dtype)

    def single(params):
        return bind(params).single(dtype)

    def step(params, layers, memory, tokens, step, seen):
        return bind(params).step(layers, memory, tokens, step, seen, dtype=dtype)

    decoder = Decoder(begin, single, step) if c.family in DECODERS else None
    return Model(init, features, head, decoder, flops, module.table(c), c)
