"""Matching losses: compare activations of the student with those of the teacher.

Three terms, each a mean with a weight of its own. All compare the same tokens of both networks.

    relations   for queries, keys and values A = softmax(X X^T / sqrt(K)) within each of R relation
                heads: KL(A_teacher || A_student), a mean over query positions, heads and the three.
                Source: MiniLM v2, arXiv 2012.15828
    hidden      |x_student W + b - x_teacher|^2 / E, a mean over positions.
                Source: TinyBERT, arXiv 1909.10351
    pooled      the same of one vector for each text: the mean of its positions, or the first one.
                Source: Reimers and Gurevych, arXiv 2004.09813

W and b are learned projections, one for each pair of layers. They belong to the training state, under
`PROJECTIONS`, and to no network. Padding has no part in any term, packed texts are separate, and a
query of a decoder sees no key after it. A term is computed a few rows at a time and recomputed in the
backward pass, so its temporary arrays do not grow with the batch; the tapped activations do.

Axes: B rows, T positions, S keys, R relation heads, K width of one, D width of the student, E width of
the teacher.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.losses import Sums

PROJECTIONS = 'projections'  # name of their parameters next to those of the student
_QKV = ('queries', 'keys', 'values')
_MASKED = -1e9  # finite, so that its product with a probability of 0 is 0
_MAX_VALUES = 1 << 22  # numbers of one activation in a visit: 16 MiB


class Tap(NamedTuple):
    """Names an activation of a network."""

    stack: str
    """'encoder' or 'decoder'."""
    layer: int
    """The number of the layer in its stack, from 0."""
    kind: str
    """'hidden' [B, T, D], the output of the layer; 'queries', 'keys' or 'values' [B, T, H, K]."""

    @property
    def name(self) -> str:
        return '_'.join(map(str, self))


Taps = Mapping[Tap, Array]


class Pair(NamedTuple):
    """Layers to compare."""

    stack: str
    student: int
    teacher: int


@dataclasses.dataclass(frozen=True)
class Matching:
    """The matching losses of a run.

    Attributes:
      weights: term -> its weight; only terms with a weight above 0.
      pairs: term -> the layers that it compares.
      relation_heads: R; divides both widths.
      pooling: 'mean' or 'first'.
      widths: of student and teacher.
    """

    weights: Mapping[str, float]
    pairs: Mapping[str, tuple[Pair, ...]]
    relation_heads: int
    pooling: str
    widths: tuple[int, int]

    @property
    def student_taps(self) -> tuple[Tap, ...]:
        return self._taps(lambda pair: pair.student)

    @property
    def teacher_taps(self) -> tuple[Tap, ...]:
        return self._taps(lambda pair: pair.teacher)

    def _taps(self, layer: Callable[[Pair], int]) -> tuple[Tap, ...]:
        return tuple(
            dict.fromkeys(
                Tap(pair.stack, layer(pair), kind)
                for name in self.weights
                for pair in self.pairs[name]
                for kind in (_QKV if name == 'relations' else ('hidden',))
            )
        )

    def flops(self, shape: Shape) -> float:
        """Computes the FLOPs of the terms for one example: forward and backward pass.

        A backward pass costs two forward passes; the teacher's relations have none.
        """
        student_width, teacher_width = self.widths
        total = 0.0
        for name in self.weights:
            for pair in self.pairs[name]:
                source = shape.source if pair.stack == 'encoder' else 0
                length = source or shape.tokens
                if name == 'relations':
                    total += 2.0 * len(_QKV) * length**2 * (3 * student_width + teacher_width)
                else:
                    total += 3 * 2.0 * length * student_width * teacher_width
        return total

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises the projections: {PROJECTIONS: ...}, or {} if no term has one.

        A kernel has orthonormal rows or columns. It is the identity if the widths are equal, so that
        a student that equals its teacher has a loss of 0.
        """
        projected = [
            (name, pair) for name in ('hidden', 'pooled') for pair in self.pairs.get(name, ())
        ]
        student_width, teacher_width = self.widths
        orthogonal = jax.nn.initializers.orthogonal()
        kernels: dict[str, Any] = {}
        for index, (name, pair) in enumerate(projected):
            kernel = jnp.eye(student_width)
            if student_width != teacher_width:
                kernel = orthogonal(jax.random.fold_in(key, index), self.widths, jnp.float32)
            layer = {'kernel': kernel, 'bias': jnp.zeros((teacher_width,), jnp.float32)}
            kernels.setdefault(name, {})[_projection_name(pair)] = layer
        return {PROJECTIONS: kernels} if kernels else {}

    def counts(self, batch: Batch) -> Sums:
        """Counts what each term is a mean of, as `<term>_count`; depends on the batch only.

        `batch` may have a leading axis of micro-batches.
        """
        counts = {}
        for name in self.weights:
            total = jnp.zeros((), jnp.float32)
            for pair in self.pairs[name]:
                segments = _segments(batch, pair.stack)
                if name == 'pooled':
                    total += jnp.sum(_first_positions(segments), dtype=jnp.float32)
                else:
                    total += jnp.sum(segments > 0, dtype=jnp.float32)
            counts[f'{name}_count'] = total * (
                len(_QKV) * self.relation_heads if name == 'relations' else 1
            )
        return counts

    def sums(self, projections: Any, student: Taps, teacher: Taps, batch: Batch) -> Sums:
        """Computes the sum of each term and its count; the gradient reaches `student` only.

        Args:
          projections: the content of PROJECTIONS.
          student: activations at `student_taps`.
          teacher: activations at `teacher_taps`.
          batch: the rows that both networks have read.
        """
        sums = self.counts(batch)
        for name in self.weights:
            with jax.named_scope(name):
                sums[name] = jnp.zeros(())
                for pair in self.pairs[name]:
                    sums[name] += self._term(name, pair, projections, student, teacher, batch)
        return sums

    def _term(
        self, name: str, pair: Pair, projections: Any, student: Taps, teacher: Taps, batch: Batch
    ) -> Float[Array, '']:
        segments_BT = _segments(batch, pair.stack)
        kinds = _QKV if name == 'relations' else ('hidden',)
        both = [
            (
                student[Tap(pair.stack, pair.student, kind)],
                jax.lax.stop_gradient(teacher[Tap(pair.stack, pair.teacher, kind)]),
            )
            for kind in kinds
        ]
        if name == 'relations':
            heads, causal = self.relation_heads, pair.stack == 'decoder'
            return sum(
                (
                    relation_loss(*arrays, segments_BT, heads=heads, causal=causal)
                    for arrays in both
                ),
                start=jnp.zeros(()),
            )
        projection = projections[name][_projection_name(pair)]
        pooling = self.pooling if name == 'pooled' else ''
        return hidden_loss(*both[0], segments_BT, projection, pooling=pooling)


def split_params(params: Any) -> tuple[Any, Any]:
    """Splits trained parameters into those of the student and the content of PROJECTIONS."""
    student = {name: x for name, x in params.items() if name != PROJECTIONS}
    return student, params.get(PROJECTIONS, {})


def relation_loss(
    student: Float[Array, 'B T *D'],
    teacher: Float[Array, 'B T *E'],
    segments_BT: Int[Array, 'B T'],
    *,
    heads: int,
    causal: bool,
) -> Float[Array, '']:
    """Sums KL(A_teacher || A_student) over query positions and relation heads.

    Args:
      student: queries, keys or values, whole or in heads.
      teacher: the same of the teacher, perhaps of another width.
      segments_BT: positions of one number attend to each other; 0 is padding.
      heads: R; divides both widths.
      causal: whether a query sees no key after it.
    """

    def on_rows(arrays: Any) -> Float[Array, '']:
        student, teacher, segments_BT = arrays
        mask_B1TS = _visible(segments_BT, causal)[:, None]
        log_p_BRTS = _relations(student, heads, mask_B1TS)
        log_q_BRTS = _relations(teacher, heads, mask_B1TS)
        kl_BRT = jnp.sum(jnp.exp(log_q_BRTS) * (log_q_BRTS - log_p_BRTS), axis=-1)
        return jnp.sum(kl_BRT * (segments_BT > 0)[:, None])

    values = heads * segments_BT.shape[1] ** 2
    return _sum_over_rows(on_rows, values, (student, teacher, segments_BT))


def _relations(x: Array, heads: int, mask_B1TS: Bool[Array, 'B 1 T S']) -> Float[Array, 'B R T S']:
    rows, length = x.shape[:2]
    x_BTRK = x.reshape(rows, length, heads, -1)
    scores_BRTS = jnp.einsum('btrk,bsrk->brts', x_BTRK, x_BTRK, preferred_element_type=jnp.float32)
    scores_BRTS *= x_BTRK.shape[-1] ** -0.5
    return jax.nn.log_softmax(jnp.where(mask_B1TS, scores_BRTS, _MASKED))


def hidden_loss(
    student_BTD: Float[Array, 'B T D'],
    teacher_BTE: Float[Array, 'B T E'],
    segments_BT: Int[Array, 'B T'],
    projection: Mapping[str, Array],
    *,
    pooling: str = '',
) -> Float[Array, '']:
    """Sums the squared error, a mean over E, of projected vectors over positions or texts.

    Args:
      student_BTD: hidden states.
      teacher_BTE: hidden states of the teacher.
      segments_BT: positions of one number are a text; 0 is padding.
      projection: `kernel` [D, E] and `bias` [E].
      pooling: '' compares every position, 'mean' the mean of each text, 'first' its first position.
    """

    def on_rows(arrays: Any) -> Float[Array, '']:
        student_BTD, teacher_BTE, segments_BT = arrays
        weights_BT = segments_BT > 0
        x_BTD, y_BTE = (x.astype(jnp.float32) for x in (student_BTD, teacher_BTE))
        if pooling:
            weights_BT = _first_positions(segments_BT)
        if pooling == 'mean':
            x_BTD, y_BTE = (_mean_of_text(x, segments_BT) for x in (x_BTD, y_BTE))
        error_BTE = x_BTD @ projection['kernel'] + projection['bias'] - y_BTE
        return jnp.sum(jnp.mean(error_BTE**2, axis=-1) * weights_BT)

    length, width = teacher_BTE.shape[1:]
    values = length * max(length, width) if pooling == 'mean' else length * width
    return _sum_over_rows(on_rows, values, (student_BTD, teacher_BTE, segments_BT))


def _mean_of_text(x_BTD: Array, segments_BT: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Replaces each position by the mean of its text."""
    same_BTS = _visible(segments_BT, causal=False).astype(jnp.float32)
    total_BTD = jnp.einsum('bts,bsd->btd', same_BTS, x_BTD)
    return total_BTD / jnp.maximum(jnp.sum(same_BTS, axis=-1, keepdims=True), 1)


def _visible(segments_BT: Int[Array, 'B T'], causal: bool) -> Bool[Array, 'B T S']:
    """Returns whether a position is compared with another: both in one text."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    same_BTS &= (segments_BT > 0)[:, :, None]
    return jnp.tril(same_BTS) if causal else same_BTS


def _first_positions(segments: Int[Array, '... T']) -> Bool[Array, '... T']:
    before = jnp.concatenate([jnp.zeros_like(segments[..., :1]), segments[..., :-1]], axis=-1)
    return (segments > 0) & (segments != before)


def _segments(batch: Batch, stack: str) -> Int[Array, '... T']:
    """Returns the text of each position of a stack, from 1; 0 on padding."""
    if stack == 'encoder' and batch.source is not None:
        segments = batch.source_segments
        return jnp.ones(batch.source.shape, jnp.int32) if segments is None else segments
    if batch.segments is not None:
        return batch.segments
    # Every position of a decoder predicts, so its weight shows whether it is padding.
    assert batch.positions is None, 'encoders have segments'
    return (batch.weights > 0).astype(jnp.int32)


def _projection_name(pair: Pair) -> str:
    return f'{pair.stack}_{pair.student}_{pair.teacher}'


def _sum_over_rows(
    function: Callable[[Any], Float[Array, '']], values: int, arrays: Any
) -> Float[Array, '']:
    """Adds up `function` over parts of the rows; `values` is the size of one row's activation."""
    rows = jax.tree.leaves(arrays)[0].shape[0]
    size = largest_divisor(rows, max(1, _MAX_VALUES // values))
    visit = jax.checkpoint(function, prevent_cse=False)
    if size == rows:
        return visit(arrays)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    total, _ = jax.lax.scan(lambda sum_, part: (sum_ + visit(part), None), jnp.zeros(()), parts)
    return total


def largest_divisor(rows: int, limit: int) -> int:
    """Returns the largest divisor of `rows` that is at most `limit`."""
    return max(size for size in range(1, rows + 1) if rows % size == 0 and size <= limit)


def group_by_layer(taps: Sequence[Tap], stack: str) -> dict[int, list[Tap]]:
    """Returns the taps of one stack by their layer, the lowest first."""
    layers: dict[int, list[Tap]] = {}
    for tap in sorted(taps):
        if tap.stack == stack:
            layers.setdefault(tap.layer, []).append(tap)
    return layers
