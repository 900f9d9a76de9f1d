"""Models: each family's network as pure functions over a nested dict of arrays."""

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
from lightpaff_jax.losses import Head
from lightpaff_jax.models import bert, gpt2, mass
from lightpaff_jax.models.huggingface.weights import Row
from lightpaff_jax.models.layers import Compute

Params = dict[str, Any]

_PADDING_BIAS = -1e9  # finite: an infinite bias of a padding id makes KL NaN

# Family name -> its module and its network.
MODELS: dict[str, tuple[ModuleType, Callable[..., nnx.Module]]] = {
    'bert': (bert, bert.BERT),
    'gpt2': (gpt2, gpt2.GPT2),
    'mass': (mass, mass.MASS),
}
DECODERS = ('gpt2', 'mass')  # families that generate text


class Decoder(NamedTuple):
    """Pure functions that generate text token by token; each calls the method of its name.

    B rows, W hypotheses (beams) per row, N steps, D width. The cache is a nested dict of arrays of
    fixed size with the keys and values of the tokens so far; the hypotheses of a row share it.

    Attributes:
      prefill: (params, prompt, *, start_id, steps, beams) -> the tokens that the first step reads,
        and the cache of those before them. GPT-2 steps from the last of the prompt's `tokens`, which are
        padded on the right; an encoder-decoder reads `source` and steps from `start_id`. Raises
        ValueError if prompt and steps exceed the network's positions.
      unstack_params: params -> the `layers` of `decode_step`; called once, before the loop.
      decode_step: (params, layers, cache, tokens [B, W], step, visible [B, W, N W]) -> features,
        new cache. visible[b, w, n W + v] is whether hypothesis w descends from hypothesis v at step
        n; the current step is included. Its B may be 1.
    """

    prefill: Callable[..., tuple[Int[Array, ' B'], Any]]
    unstack_params: Callable[[Params], Any]
    decode_step: Callable[..., tuple[Float[Array, 'B W D'], Any]]


@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions of one architecture. Flax modules stay inside models/.

    B batch, T time, P predicted positions, D width, V vocabulary padded to a multiple of 128, or
    classes of a classifier.

    Attributes:
      init: key -> parameters, float32.
      features: (params, batch, *, key=None, taps=()) -> features at the predicted positions; with
        taps also a dict of the activations that they name. A key turns dropout on.
      head: params -> output matrix and bias; the bias of a padding id is -1e9.
      decoder: functions for generation; None for an encoder.
      flops: (shape, taps=()) -> floating-point operations of one example's forward pass, head
        included.
      table: names of the parameters in Hugging Face's format.
      network: the keys of `config.network()` that the model was built from, frozen.
      class_names: names of a classifier's classes in the order of its logits; () if unnamed.
    """

    init: Callable[[Array], Params]
    features: Callable[..., Any]
    head: Callable[[Params | None], Head]
    decoder: Decoder | None
    flops: Callable[..., float]
    table: tuple[Row, ...]
    network: ConfigDict
    class_names: tuple[str, ...] = ()

    @functools.cached_property
    def abstract_params(self) -> Params:
        """ShapeDtypeStructs of the parameters."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    @property
    def parameter_count(self) -> int:
        """Number of parameters, without the padding of the vocabulary."""
        padded = {row.path for row in self.table if row.vocab}
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.abstract_params):
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            rows = self.network.vocab_size if name in padded else leaf.shape[0]
            total += math.prod((rows, *leaf.shape[1:]))
        return total

    def logits(self, params: Params | None, batch: Batch) -> Float[Array, 'B P V']:
        """Computes all logits in float32, for small inputs and comparisons."""
        weight, bias = self.head(params)
        features = self.features(params, batch)
        product = jnp.einsum('bpd,vd->bpv', features, weight, preferred_element_type=jnp.float32)
        return product + bias


def pad_vocab(vocab_size: int) -> int:
    """Rounds the size of the vocabulary up to a multiple of 128."""
    return -(-vocab_size // 128) * 128


def head_rows(c: ConfigDict) -> int:
    """Counts the rows of a network's head: classes, or ids with padding."""
    return c.classes if c.head == 'classify' else pad_vocab(c.vocab_size)


def head_flops(c: ConfigDict, shape: Shape) -> float:
    """Computes the FLOPs of the logits of one example; 0 without a head."""
    return 0.0 if c.head == 'none' else 2.0 * shape.predicted * c.width * head_rows(c)


def build(
    c: ConfigDict, *, compute_dtype: str = 'float32', remat: str = 'none', attention: str = 'xla'
) -> Model:
    """Builds the functions of one network.

    Equal arguments return the same functions, so that jax finds its compiled programs again.

    Args:
      c: a section with the keys of `config.network()`.
      compute_dtype: type of features and matrix products; norms and softmax stay float32.
      remat: activations that the backward pass recomputes, one of config.REMAT.
      attention: one of attention.KERNELS; generation always uses 'xla'.
    """
    frozen = FrozenConfigDict({key: c[key] for key in config.network()})
    return _build(frozen, Compute(jnp.dtype(compute_dtype), remat, attention))


@functools.lru_cache(maxsize=64)
def _build(c: FrozenConfigDict, compute: Compute) -> Model:
    module, network = MODELS[c.family]
    dtype = compute.dtype
    rows, used = head_rows(c), c.classes if c.head == 'classify' else c.vocab_size
    make = functools.partial(network, c, pad_vocab(c.vocab_size))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))

    def bind(params):
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def features(params, batch, *, key=None, taps=()):
        features_BPD, activations = bind(params)(batch, compute=compute, key=key, taps=taps)
        return (features_BPD, activations) if taps else features_BPD

    def head(params):
        weight, bias = bind(params).head()
        bias = jnp.zeros((rows,)) if bias is None else bias
        return Head(weight.astype(dtype), jnp.where(jnp.arange(rows) < used, bias, _PADDING_BIAS))

    def flops(shape, taps=()):
        return module.flops(c, shape, taps) + head_flops(c, shape)

    def method(name):
        return lambda params, *args, **options: getattr(bind(params), name)(
            *args, **options, dtype=dtype
        )

    decoder = Decoder(*map(method, Decoder._fields)) if c.family in DECODERS else None
    return Model(init, features, head, decoder, flops, module.table(c), c)
