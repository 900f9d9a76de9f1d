"""Models: a family's network as pure functions over a nested dict of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lightpaff_jax.batch import Batch
from lightpaff_jax.models import gpt2
from lightpaff_jax.models.huggingface import Row

Params = dict[str, Any]

_MASKED = -1e9  # finite: an infinite bias of a padding id makes KL NaN

MODELS: dict[str, tuple[ModuleType, Callable[..., nnx.Module]]] = {
    'gpt2': (gpt2, gpt2.GPT2),
}
"""Family name -> its file and its network."""


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
    """params -> output matrix and bias; the bias of a padding id is -1e9."""
    flops: Callable[[int, int], float]
    """(T, P) -> floating-point operations of one example's forward pass, head included."""
    table: tuple[Row, ...]
    """Our parameters in Hugging Face's names."""
    vocab_size: int
    """Ids in use, without padding."""

    @property
    def abstract(self) -> Params:
        """ShapeDtypeStructs of the parameters."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    @property
    def parameters(self) -> int:
        """Parameters in use: padding of the vocabulary is not counted."""
        axes = {row.path: row.vocab_axis for row in self.table}
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.abstract):
            shape = list(leaf.shape)
            axis = axes['/'.join(k.key for k in path)]
            if axis is not None:
                shape[axis] = self.vocab_size
            total += math.prod(shape)
        return total

    def logits(self, params: Params, batch: Batch) -> Float[Array, 'B P V']:
        """All logits, in float32: for small inputs and for comparisons."""
        weight, bias = self.head(params)
        features = self.features(params, batch)
        product = jnp.einsum('bpd,vd->bpv', features, weight, preferred_element_type=jnp.float32)
        return product + bias


def padded(vocab_size: int) -> int:
    """The vocabulary's size in memory: the next multiple of 128."""
    return -(-vocab_size // 128) * 128


def build(c: ConfigDict, *, compute_dtype: str = 'float32', remat: str = 'none') -> Model:
    """The functions of one network.

    Args:
      c: a section with the keys of `config.network()`.
      compute_dtype: of features and matrix products; norms and softmax stay float32.
      remat: 'block' computes each block again in the backward pass instead of keeping it.
    """
    module, network = MODELS[c.family]
    rows, dtype = padded(c.vocab_size), jnp.dtype(compute_dtype)
    make = functools.partial(network, c, rows)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))

    def bind(params):
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def features(params, batch, *, key=None):
        x_BTD = bind(params)(batch, dtype=dtype, remat=remat, key=key)
        if batch.positions is None:
            return x_BTD
        return jnp.take_along_axis(x_BTD, batch.positions[..., None], axis=1)

    def head(params):
        weight, bias = bind(params).head()
        bias = jnp.zeros((rows,)) if bias is None else bias
        return weight.astype(dtype), jnp.where(jnp.arange(rows) < c.vocab_size, bias, _MASKED)

    def flops(length, predicted):
        return length * module.flops_per_token(c, length) + 2.0 * predicted * c.width * rows

    return Model(init, features, head, flops, module.TABLE, c.vocab_size)
