"""Batches: arrays of fixed shapes that data/ makes and models/ read."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, BFloat16, Float, Int


class Shape(NamedTuple):
    """Lengths of one example.

    Attributes:
      tokens: T, input length of the stack that predicts: the decoder of an encoder-decoder.
      predicted: P, number of predicted positions.
      source: S, input length of the encoder of an encoder-decoder; 0 for other families.
    """

    tokens: int
    predicted: int
    source: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch or micro-batch: B sequences of T tokens, with P predicted positions each.

    The step receives every array with a leading axis of M micro-batches. A field that is None does
    not exist in the compiled program.

    Attributes:
      tokens: input ids, in an encoder-decoder those of the decoder.
      labels: id or class of each predicted position; -1 if unlabelled: the student learns only from
        the teacher there.
      weights: weight of each predicted position in the loss; 0 on padding.
      positions: indices of the predicted positions; None predicts all (P = T).
      segments: a position attends to its own segment only; 0 is padding. None is a single segment.
      type_ids: token types, 0 in the first text of a pair and 1 in the second; None is 0.
      position_ids: rows of the position table; None is 0 ... T-1.
      source: input ids of the encoder of an encoder-decoder.
      source_segments: segments of the source. A target position attends to its own segment of the
        source, or to all of the source but 0 if `segments` is None. None has no padding.
      source_position_ids: rows of the encoder's position table; None is 0 ... S-1.
      teacher: arrays of the teacher for these sequences, read from a cache: `features` [B, P, D] at
        the predicted positions, and activations [B, T, D] by the name of their tap. None: the step
        computes them.
    """

    tokens: Int[Array, '*m B T']
    labels: Int[Array, '*m B P']
    weights: Float[Array, '*m B P']
    positions: Int[Array, '*m B P'] | None = None
    segments: Int[Array, '*m B T'] | None = None
    type_ids: Int[Array, '*m B T'] | None = None
    position_ids: Int[Array, '*m B T'] | None = None
    source: Int[Array, '*m B S'] | None = None
    source_segments: Int[Array, '*m B S'] | None = None
    source_position_ids: Int[Array, '*m B S'] | None = None
    teacher: dict[str, BFloat16[Array, '*m B _ _']] | None = None

    @property
    def shape(self) -> Shape:
        source = 0 if self.source is None else self.source.shape[-1]
        return Shape(self.tokens.shape[-1], self.labels.shape[-1], source)
