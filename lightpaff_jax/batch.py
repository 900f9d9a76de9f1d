"""The Batch: what data/ makes and models/ read. Fixed shapes, arrays only."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Shape(NamedTuple):
    """Lengths of one example."""

    tokens: int
    """T, read by the stack whose features are predicted from."""
    predicted: int
    """P, predicted positions."""
    source: int = 0
    """S, read by the encoder of an encoder-decoder."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, or one of its micro-batches; B sequences, T tokens, P predicted positions.

    On the way to the step every array has one more leading axis, M micro-batches. A field that
    is None is nowhere in the compiled program.
    """

    tokens: Int[Array, '*m B T']
    """Input ids; of an encoder-decoder, the decoder's."""
    labels: Int[Array, '*m B P']
    """Id or class to predict at each predicted position; -1: no label, only the teacher speaks."""
    weights: Float[Array, '*m B P']
    """Weight of each predicted position in the loss; 0 on padding."""
    positions: Int[Array, '*m B P'] | None = None
    """Which positions are predicted; None: every one (P = T)."""
    lambda_: Float[Array, '*m B'] | None = None
    """Weight of the teacher for each example; None: the configuration's."""
    segments: Int[Array, '*m B T'] | None = None
    """A position attends to those of its own segment; padding is 0. None: all are one segment."""
    type_ids: Int[Array, '*m B T'] | None = None
    """Token types: 0 in the first text of a pair, 1 in the second; None: 0."""
    position_ids: Int[Array, '*m B T'] | None = None
    """Rows of the position table; None: 0 ... T-1."""
    source: Int[Array, '*m B S'] | None = None
    """Ids that the encoder of an encoder-decoder reads."""
    source_segments: Int[Array, '*m B S'] | None = None
    """Of the source, as `segments`. A target position attends to its own segment of the source; where
    `segments` is None, to all that is not 0. None: no padding."""
    source_position_ids: Int[Array, '*m B S'] | None = None
    """Rows of the encoder's position table; None: 0 ... S-1."""

    @property
    def shape(self) -> Shape:
        """Lengths of its examples."""
        source = 0 if self.source is None else self.source.shape[-1]
        return Shape(self.tokens.shape[-1], self.labels.shape[-1], source)
