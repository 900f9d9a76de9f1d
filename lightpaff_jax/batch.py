"""The Batch: what data/ makes and models/ read. Fixed shapes, arrays only."""

import dataclasses

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, or one of its micro-batches; B sequences, T tokens, P predicted positions.

    On the way to the step every array has one more leading axis, M micro-batches.
    """

    tokens: Int[Array, '*m B T']
    """Input ids."""
    labels: Int[Array, '*m B P']
    """Id to predict at each predicted position; -1: no label, only the teacher speaks."""
    weights: Float[Array, '*m B P']
    """Weight of each predicted position in the loss; 0 on padding."""
    positions: Int[Array, '*m B P'] | None = None
    """Which positions are predicted; None: every one (P = T)."""
    lambda_: Float[Array, '*m B'] | None = None
    """Weight of the teacher for each example; None: the configuration's."""
