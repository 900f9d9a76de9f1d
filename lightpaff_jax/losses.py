"""The distillation loss: one function for every family and task.

For a predicted position with student logits s, teacher logits t, label y, weight w:

    L = sum w [(1 - lambda) CE(y, s) + lambda tau^2 KL(softmax(t / tau) || softmax(s / tau))]
    dL/ds = w [(1 - lambda)(softmax(s) - onehot(y)) + lambda tau (softmax(s / tau) - softmax(t / tau))]

Logits of the whole batch never exist. A chunk of positions visits the heads once; its logits are
made there and dropped, their gradient with its group, so memory grows with the chunk.

Letters: B examples, P predicted positions, C positions of a chunk, G chunks of a group,
N = G * C, D features (teacher's and student's may differ), V vocabulary or classes.

Source: LightPAFF, arXiv 2004.12817; temperature as in Hinton et al., arXiv 1503.02531.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

BATCH_AXES = ('data', 'fsdp')
"""Mesh axes that split the examples."""

_MOST, _LEAST = 1 << 24, 1 << 18
"""Logits of an automatic chunk: 64 MiB in float32 for each of teacher and student, and 1 MiB."""

_IDS = 1 << 24
"""Ids that float32 holds exactly."""

_PRECISE = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Head(NamedTuple):
    """Output matrix and bias: logits = features @ weight.T + bias."""

    weight: Float[Array, 'V D']
    bias: Float[Array, ' V']


class Predictor(NamedTuple):
    """What the loss sees of a model: features at the predicted positions, and its head."""

    features: Float[Array, 'B P D']
    head: Head


def distillation_loss(
    student: Predictor,
    teacher: Predictor | None,
    labels: Int[Array, 'B P'],
    weights: Float[Array, 'B P'],
    *,
    lambda_: float | Float[Array, ''] | Float[Array, ' B'] = 0.5,
    temperature: float = 1.0,
    chunk: int = 0,
) -> dict[str, Float[Array, '']]:
    """Sums over all predicted positions; divide by the counts once, after adding up.

    Under a mesh (`jax.set_mesh`) whose axes include `data` or `fsdp`, the examples are
    split over them and the sums cover all devices; inside a `shard_map` that is already
    manual over these axes, the sums and gradients are the device's own.

    Args:
      student: receives the gradient, through `loss` alone.
      teacher: same V; None trains on the labels alone and costs nothing.
      labels: ids below V, -1 where there is none: only the teacher speaks there (lambda is 1).
      weights: w, 0 on padding.
      lambda_: weight of the teacher in [0, 1], one number or one for each example.
      temperature: tau > 0.
      chunk: C, positions in a visit; 0 chooses, see `automatic_chunk`.

    Returns:
      `loss`, `count` (sum of w), and for the labelled positions `ce`, `correct` and
      `labelled` (sum of w); with a teacher also `kl` (at tau, not multiplied by tau^2),
      `agree` (same top-1), and `teacher_ce` (labelled positions).

    Raises:
      ValueError: shapes that do not fit, V above 2^24, temperature <= 0, lambda outside [0, 1].
    """
    _check(student, teacher, labels, weights, lambda_, temperature, chunk)
    batch = labels.shape[0]
    rows = jnp.broadcast_to(jnp.asarray(lambda_, jnp.float32), (batch,))
    rows = jax.lax.stop_gradient(rows)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    teacher = jax.lax.stop_gradient(teacher)
    with jax.named_scope('loss'):
        return _loss(float(temperature), chunk, student, teacher, labels, weights, rows)


def automatic_chunk(vocabulary: int, width: int) -> int:
    """Positions in a visit of the heads: a power of two.

    As many as the student's features are wide: a visit reads the head and adds to its gradient, V * D
    numbers, and goes over C * V logits. But no more than keeps C * V at 2^24, no less than 2^18 (each
    rounded down to a power of two), and no less than 16.
    """
    wanted = max(width, _LEAST // vocabulary)
    return max(16, 1 << max(1, min(wanted, _MOST // vocabulary)).bit_length() - 1)


def _check(student, teacher, labels, weights, lambda_, temperature, chunk):
    if labels.ndim != 2 or student.features.shape[:2] != labels.shape:
        raise ValueError(
            f'features {student.features.shape} must be [B, P, D], labels {labels.shape} [B, P]'
        )
    if weights.shape != labels.shape:
        raise ValueError(f'weights {weights.shape} must have the shape of labels {labels.shape}')
    if teacher is not None:
        if teacher.features.shape[:2] != labels.shape:
            raise ValueError(
                f'teacher features {teacher.features.shape} must be [B, P, D] for {labels.shape}'
            )
        if teacher.head.weight.shape[0] != student.head.weight.shape[0]:
            raise ValueError(
                f'teacher V = {teacher.head.weight.shape[0]} must equal student V = {student.head.weight.shape[0]}'
            )
    if student.head.weight.shape[0] > _IDS:
        raise ValueError(f'V = {student.head.weight.shape[0]}: must be at most {_IDS}')
    if not temperature > 0:
        raise ValueError(f'temperature = {temperature}: must be above 0')
    if chunk < 0:
        raise ValueError(f'chunk = {chunk}: must be at least 0')
    if np.shape(lambda_) not in ((), labels.shape[:1]):
        raise ValueError(
            f'lambda_ {np.shape(lambda_)} must be one number or one for each of {labels.shape[0]} examples'
        )
    if not isinstance(lambda_, jax.core.Tracer):
        values = np.asarray(lambda_)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f'lambda_ = {lambda_}: must be in [0, 1]')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(tau, chunk, student, teacher, labels, weights, lambda_):
    return _on_shards(tau, chunk, False, student, teacher, labels, weights, lambda_)


def _loss_fwd(tau, chunk, student, teacher, labels, weights, lambda_):
    return _on_shards(tau, chunk, True, student, teacher, labels, weights, lambda_)


def _loss_bwd(tau, chunk, gradient, cotangents):
    scale = cotangents['loss']
    scaled = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
    return scaled, None, None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _on_shards(tau, chunk, differentiate, student, teacher, labels, weights, lambda_):
    """The chunk loop on each device's examples: heads gathered once before, sums reduced once after."""
    local = functools.partial(_chunks, tau, chunk, differentiate)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if name in BATCH_AXES and kind != jax.sharding.AxisType.Manual
    )
    if not axes:
        return local(student, teacher, labels, weights, lambda_)

    def shard(*arguments):
        result = local(*arguments)
        if not differentiate:
            return jax.lax.psum(result, axes)
        sums, gradient = result
        sums, head = jax.lax.psum((sums, gradient.head), axes)
        return sums, Predictor(gradient.features, head)

    rows: Any = P(axes)
    whole: Any = P()
    of_model = Predictor(rows, Head(whole, whole))
    return jax.shard_map(
        shard,
        in_specs=(of_model, None if teacher is None else of_model, rows, rows, rows),
        out_specs=(whole, of_model) if differentiate else whole,
        axis_names=set(axes),
        check_vma=False,
    )(student, teacher, labels, weights, lambda_)


def _chunks(tau, chunk, differentiate, student, teacher, labels, weights, lambda_):
    """Scans `_visit` over chunks of positions; the gradient has the student's tree and dtypes."""
    batch, positions = labels.shape
    total = batch * positions
    chunk = chunk or automatic_chunk(*student.head.weight.shape)
    chunk = min(chunk, -(-total // 8) * 8)
    count = -(-total // chunk)
    width, dtype = student.features.shape[-1], student.features.dtype
    # Gradients of a group are multiplied together, so that the head and its gradient go through memory
    # once for all: as many chunks as take no more than one takes in float32.
    group = math.gcd(count, max(1, 4 // dtype.itemsize))

    def split(x):
        x = x.reshape(total, *x.shape[2:])
        x = jnp.pad(x, [(0, count * chunk - total)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count // group, group, chunk, *x.shape[1:])

    inputs = (
        split(student.features),
        None if teacher is None else split(teacher.features),
        split(labels),
        split(weights),
        split(jnp.broadcast_to(lambda_[:, None], labels.shape)),
    )
    teacher_head = None if teacher is None else teacher.head

    def visit(sums: Any, row: Any):
        found, gradient_CV = _visit(tau, differentiate, student.head, teacher_head, *row)
        if differentiate:
            gradient_CV = gradient_CV.astype(dtype)  # as the logits' products: one dtype in
        return jax.tree.map(jnp.add, sums, found), gradient_CV

    def visit_group(carry: Any, rows: Any):
        sums, head_gradient = carry
        sums, gradient_GCV = jax.lax.scan(visit, sums, rows)
        if not differentiate:
            return (sums, head_gradient), None
        gradient_NV = gradient_GCV.reshape(group * chunk, -1)
        features_gradient_ND = _PRECISE('nv,vd->nd', gradient_NV, student.head.weight)
        weight = _PRECISE('nv,nd->vd', gradient_NV, rows[0].reshape(-1, width))
        # Of the numbers that the matrix's gradient is made of, in bfloat16 rounded as they are. As a
        # product, which XLA's CPU computes three times as fast as sums of columns.
        ones_N = jnp.ones(group * chunk, dtype)
        bias = _PRECISE('n,nv->v', ones_N, gradient_NV, precision=jax.lax.Precision.HIGHEST)
        head_gradient = jax.tree.map(jnp.add, head_gradient, Head(weight, bias))
        return (sums, head_gradient), features_gradient_ND.astype(dtype)

    names = ['loss', 'count', 'ce', 'correct', 'labelled']
    names += [] if teacher is None else ['kl', 'agree', 'teacher_ce']
    zero = {name: jnp.zeros((), jnp.float32) for name in names}
    head_zero: Any = None
    if differentiate:
        head_zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), student.head)
    carry, features_gradient = jax.lax.scan(visit_group, (zero, head_zero), inputs)
    sums, head_gradient = carry
    if not differentiate:
        return sums
    features_gradient = features_gradient.reshape(count * chunk, -1)[:total]
    gradient = Predictor(features_gradient.reshape(student.features.shape), head_gradient)
    return sums, jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, student)


def _visit(tau, differentiate, head, teacher_head, features_CD, teacher_features_CD, labels_C,
           weights_C, lambda_C):  # fmt: skip
    """Sums of one chunk and the gradient of its logits [C, V], in float32."""
    logits_CV = _logits(features_CD, head)
    onehot_CV = labels_C[:, None] == jnp.arange(logits_CV.shape[1])
    labelled_C = weights_C * (labels_C >= 0)
    chosen = _chosen(logits_CV, labels_C)
    p = _softmax(logits_CV, chosen.top_C)
    ce_C = p.lse_C - chosen.label_C
    sums = {
        'count': jnp.sum(weights_C),
        'ce': jnp.sum(labelled_C * ce_C),
        'correct': jnp.sum(labelled_C * (chosen.id_C == labels_C)),
        'labelled': jnp.sum(labelled_C),
    }
    if teacher_head is None:
        sums['loss'] = sums['ce']
        label_weight_C, terms = labelled_C, [(p, labelled_C)]
    else:
        teacher_CV = _logits(teacher_features_CD, teacher_head)
        guide = _chosen(teacher_CV, labels_C)
        q = _softmax(teacher_CV, guide.top_C)
        soft, target = p, q
        if tau != 1:
            soft = _softmax(logits_CV / tau, chosen.top_C / tau)
            target = _softmax(teacher_CV / tau, guide.top_C / tau)
        # sum q (log q - log p), with the normalisers outside of the sum
        moved_C = _sum(target.raised_CV * (teacher_CV - logits_CV)) / target.total_C
        kl_C = moved_C / tau + soft.lse_C - target.lse_C
        lambda_C = jnp.where(labels_C >= 0, lambda_C, 1.0)
        label_weight_C = labelled_C * (1 - lambda_C)
        kl_weight_C = weights_C * lambda_C
        teacher_ce_C = q.lse_C - guide.label_C
        sums |= {
            'loss': jnp.sum(label_weight_C * ce_C + tau**2 * kl_weight_C * kl_C),
            'kl': jnp.sum(weights_C * kl_C),
            'agree': jnp.sum(weights_C * (chosen.id_C == guide.id_C)),
            'teacher_ce': jnp.sum(labelled_C * teacher_ce_C),
        }
        terms = [(p, label_weight_C), (soft, tau * kl_weight_C), (target, -tau * kl_weight_C)]
        if tau == 1:  # one product an element less
            terms = [(p, label_weight_C + kl_weight_C), (q, -kl_weight_C)]
    if not differentiate:
        return sums, None
    gradient_CV = -jnp.where(onehot_CV, label_weight_C[:, None], 0.0)
    for one, weight_C in terms:
        gradient_CV += one.raised_CV * (weight_C / one.total_C)[:, None]
    return sums, gradient_CV


def _sum(x_CV):
    """Over V; on a CPU as a product: XLA adds up faster what it does not compute in the same loop."""
    ones_V = jnp.ones(x_CV.shape[1], x_CV.dtype)
    by_product = functools.partial(_PRECISE, 'cv,v->c', precision=jax.lax.Precision.HIGHEST)
    return jax.lax.platform_dependent(
        x_CV, ones_V, cpu=by_product, default=lambda x_CV, ones_V: jnp.sum(x_CV, axis=1)
    )


def _logits(features_CD, head):
    return _PRECISE('cd,vd->cv', features_CD, head.weight) + head.bias.astype(jnp.float32)


class _Softmax(NamedTuple):
    """Exponentials and their sum: divided only where used, which saves a pass over the chunk."""

    top_C: Float[Array, ' C']
    raised_CV: Float[Array, 'C V']
    total_C: Float[Array, ' C']

    @property
    def lse_C(self):
        return jnp.log(self.total_C) + self.top_C


def _softmax(logits_CV, top_C):
    raised_CV = jnp.exp(logits_CV - top_C[:, None])
    return _Softmax(top_C, raised_CV, jnp.sum(raised_CV, axis=1))


class _Chosen(NamedTuple):
    """Largest logit, its first id, and the label's logit, which is 0 without a label."""

    top_C: Float[Array, ' C']
    id_C: Int[Array, ' C']
    label_C: Float[Array, ' C']


def _chosen(logits_CV, labels_C):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get('tensor', 1) > 1:
        return _compared(logits_CV, labels_C)
    return jax.lax.platform_dependent(logits_CV, labels_C, cpu=_looked_up, default=_compared)


def _compared(logits_CV, labels_C):
    """By comparison with every id, in the passes that other sums take, and with no gather, which over
    a sharded V would be a collective in every chunk.
    """
    # In float32, as the other sums: XLA's TPU puts reductions of one type into one pass.
    ids_V = jnp.arange(logits_CV.shape[1], dtype=jnp.float32)
    top_C = jnp.max(logits_CV, axis=1)
    id_C = jnp.min(jnp.where(logits_CV == top_C[:, None], ids_V, jnp.inf), axis=1)
    of_label_CV = jnp.where(labels_C[:, None] == ids_V, logits_CV, -jnp.inf)
    label_C = jnp.where(_known(labels_C, logits_CV), jnp.max(of_label_CV, axis=1), 0.0)
    return _Chosen(top_C, id_C.astype(jnp.int32), label_C)


def _looked_up(logits_CV, labels_C):
    """By index: XLA's CPU gives each comparison passes of its own. The largest of each block leads to
    the largest of all, which is then looked for in one block alone.
    """
    size = math.gcd(logits_CV.shape[1], 128)
    tops_CN = jax.lax.reduce_window(logits_CV, -jnp.inf, jax.lax.max, (1, size), (1, size), 'VALID')
    ids_CS = jnp.argmax(tops_CN, axis=1)[:, None] * size + jnp.arange(size)
    first_C = jnp.argmax(jnp.take_along_axis(logits_CV, ids_CS, axis=1), axis=1)
    id_C = (ids_CS[:, 0] + first_C).astype(jnp.int32)
    known_C = _known(labels_C, logits_CV)
    label_C = jnp.take_along_axis(logits_CV, jnp.where(known_C, labels_C, 0)[:, None], axis=1)[:, 0]
    return _Chosen(jnp.max(tops_CN, axis=1), id_C, jnp.where(known_C, label_C, 0.0))


def _known(labels_C, logits_CV):
    """An id: else, on padding, nothing of it may reach the sums."""
    return (labels_C >= 0) & (labels_C < logits_CV.shape[1])
