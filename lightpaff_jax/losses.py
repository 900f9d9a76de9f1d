"""Distillation loss: one function for every family and task.

For a predicted position with student logits s, teacher logits t, label y, weight w:

    L = sum w [(1 - lambda) CE(y, s) + lambda tau^2 KL(softmax(t / tau) || softmax(s / tau))]
    dL/ds = w [(1 - lambda)(softmax(s) - onehot(y)) + lambda tau (softmax(s / tau) - softmax(t / tau))]

Full-batch logits never exist. The loss computes the logits of one chunk of positions at a time
together with their gradient, so its memory grows with the chunk and not with the batch.

Axes: B examples, P predicted positions, C positions of a chunk, G chunks of a group, N = G * C,
D features (student and teacher may differ), V vocabulary or classes.

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

BATCH_AXES = ('data', 'fsdp')  # mesh axes that split the examples
_MAX_LOGITS, _MIN_LOGITS = 1 << 24, 1 << 18  # of an automatic chunk: 64 MiB and 1 MiB a model
_MAX_VOCAB = 1 << 24  # float32 holds all smaller ids exactly, see `_by_comparison`

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

Sums = dict[str, Float[Array, '']]


class Head(NamedTuple):
    """Output matrix and bias: logits = features @ weight.T + bias."""

    weight: Float[Array, 'V D']
    bias: Float[Array, ' V']


class Predictor(NamedTuple):
    """The part of a model that the loss reads."""

    features: Float[Array, 'B P D']
    head: Head


class _Inputs(NamedTuple):
    student: Predictor
    teacher: Predictor | None
    labels: Int[Array, 'B P']
    weights: Float[Array, 'B P']
    lambda_: Any  # scalar or [B] for the checks, then [B]


_Result = tuple[Sums, Predictor | None]  # sums, and the gradient of `loss` by the student


def distillation_loss(
    student: Predictor,
    teacher: Predictor | None,
    labels: Int[Array, 'B P'],
    weights: Float[Array, 'B P'],
    *,
    lambda_: float | Float[Array, ''] | Float[Array, ' B'] = 0.5,
    temperature: float = 1.0,
    chunk: int = 0,
) -> Sums:
    """Computes the sums of the loss and its metrics; the caller divides by a count, once.

    Under a mesh (`jax.set_mesh`) with an axis `data` or `fsdp`, the examples are split over these
    axes and the sums cover all devices. Inside a `shard_map` that is already manual over these axes,
    the sums and gradients cover the device's own examples.

    Args:
      student: receives the gradient, through `loss` only.
      teacher: has the student's V; None trains on the labels only, at no cost for the teacher.
      labels: ids below V, or -1 if unlabelled; lambda is 1 at unlabelled positions.
      weights: w, 0 on padding.
      lambda_: weight of the teacher in [0, 1], a scalar or one per example.
      temperature: tau > 0.
      chunk: C, positions per chunk; 0 uses `automatic_chunk`.

    Returns:
      `loss`, `count` (sum of w), and over labelled positions `ce`, `correct` and `labelled` (sum of
      w). With a teacher also `kl` (at tau, without the factor tau^2), `agree` (equal top-1), and
      over labelled positions `teacher_ce`.

    Raises:
      ValueError: for inconsistent shapes, V above 2^24, temperature <= 0 or lambda outside [0, 1].
    """
    _check(_Inputs(student, teacher, labels, weights, lambda_), temperature, chunk)
    lambda_B = jnp.broadcast_to(jnp.asarray(lambda_, jnp.float32), labels.shape[:1])
    lambda_B = jax.lax.stop_gradient(lambda_B)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    teacher = jax.lax.stop_gradient(teacher)
    with jax.named_scope('loss'):
        return _loss(
            float(temperature), chunk, _Inputs(student, teacher, labels, weights, lambda_B)
        )


def automatic_chunk(vocab: int, width: int) -> int:
    """Chooses the number of positions in a chunk, a power of two.

    A chunk reads the head and adds to its gradient, V * D numbers, and makes C * V logits. With C = D
    both cost the same. C * V is limited to [2^18, 2^24], rounded down to a power of two, and C is at
    least 16.
    """
    positions = max(width, _MIN_LOGITS // vocab)
    return max(16, 1 << max(1, min(positions, _MAX_LOGITS // vocab)).bit_length() - 1)


def _check(inputs: _Inputs, temperature: float, chunk: int) -> None:
    student, teacher, labels, weights, lambda_ = inputs
    shape, features, vocab = labels.shape, student.features.shape, len(student.head.weight)
    lambda_shape = np.shape(lambda_)
    rules = [
        (len(shape) == 2 and features[:2] == shape, f'features {features} must fit labels {shape}'),
        (weights.shape == shape, f'weights {weights.shape} must fit labels {shape}'),
        (vocab <= _MAX_VOCAB, f'V = {vocab}: must be at most {_MAX_VOCAB}'),
        (temperature > 0, f'temperature = {temperature}: must be above 0'),
        (chunk >= 0, f'chunk = {chunk}: must be at least 0'),
        (lambda_shape in ((), shape[:1]), f'lambda_ {lambda_shape} must be () or {shape[:1]}'),
    ]
    if teacher is not None:
        features, teacher_vocab = teacher.features.shape, len(teacher.head.weight)
        rules += [
            (features[:2] == shape, f'teacher features {features} must fit labels {shape}'),
            (teacher_vocab == vocab, f'teacher V = {teacher_vocab} must equal student V = {vocab}'),
        ]
    if not isinstance(lambda_, jax.core.Tracer):
        in_range = np.all((np.asarray(lambda_) >= 0) & (np.asarray(lambda_) <= 1))
        rules.append((bool(in_range), f'lambda_ = {lambda_}: must be in [0, 1]'))
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(tau: float, chunk: int, inputs: _Inputs) -> Sums:
    return _loss_on_devices(tau, chunk, False, inputs)[0]


def _loss_fwd(tau: float, chunk: int, inputs: _Inputs) -> _Result:
    return _loss_on_devices(tau, chunk, True, inputs)


def _loss_bwd(tau: float, chunk: int, gradient: Predictor, cotangents: Sums) -> tuple[_Inputs]:
    zero: Any = None
    scaled = jax.tree.map(lambda g: (g * cotangents['loss']).astype(g.dtype), gradient)
    return (_Inputs(scaled, zero, zero, zero, zero),)


_loss.defvjp(_loss_fwd, _loss_bwd)


def free_axes() -> tuple[str, ...]:
    """Lists the axes of the current mesh, without those that a `shard_map` already splits."""
    mesh = jax.sharding.get_abstract_mesh()
    axis_types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in axis_types if kind != jax.sharding.AxisType.Manual)


def _loss_on_devices(tau: float, chunk: int, differentiate: bool, inputs: _Inputs) -> _Result:
    """Scans the chunks of each device's own examples; the gradient is None if not asked for.

    Heads are gathered once, before the loop; sums and the head's gradient are reduced once, after it.
    """
    axes = tuple(name for name in free_axes() if name in BATCH_AXES)
    if not axes:
        return _scan_chunks(tau, chunk, differentiate, inputs)

    def on_device(inputs: _Inputs) -> _Result:
        sums, gradient = _scan_chunks(tau, chunk, differentiate, inputs)
        if gradient is None:
            return jax.lax.psum(sums, axes), None
        sums, head = jax.lax.psum((sums, gradient.head), axes)
        return sums, gradient._replace(head=head)

    rows: Any = P(axes)
    replicated: Any = P()
    predictor = Predictor(rows, Head(replicated, replicated))
    teacher = None if inputs.teacher is None else predictor
    return jax.shard_map(
        on_device,
        in_specs=(_Inputs(predictor, teacher, rows, rows, rows),),
        out_specs=(replicated, predictor if differentiate else None),
        axis_names=set(axes),
        check_vma=False,
    )(inputs)


def _scan_chunks(tau: float, chunk: int, differentiate: bool, inputs: _Inputs) -> _Result:
    """Adds up `_chunk_loss` over chunks of positions; the gradient has the student's dtypes."""
    student, teacher, labels, weights, lambda_B = inputs
    total = labels.size
    chunk = chunk or automatic_chunk(*student.head.weight.shape)
    chunk = min(chunk, -(-total // 8) * 8)
    count = -(-total // chunk)
    width, dtype = student.features.shape[-1], student.features.dtype
    # The head and its gradient go through memory once a group, not once a chunk. A group has as many
    # chunks as take no more memory than one chunk in float32.
    group = math.gcd(count, max(1, 4 // dtype.itemsize))

    def split(x: Array) -> Array:
        x = x.reshape(total, *x.shape[2:])
        x = jnp.pad(x, [(0, count * chunk - total)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count // group, group, chunk, *x.shape[1:])

    chunks = (
        split(student.features),
        None if teacher is None else split(teacher.features),
        split(labels),
        split(weights),
        split(jnp.broadcast_to(lambda_B[:, None], labels.shape)),
    )

    def scan_chunk(sums: Sums, arrays: Any) -> tuple[Sums, Any]:
        features_CD, teacher_features_CD, *targets = arrays
        logits_CV = _logits(features_CD, student.head)
        teacher_CV = None if teacher is None else _logits(teacher_features_CD, teacher.head)
        terms, gradient_CV = _chunk_loss(tau, differentiate, logits_CV, teacher_CV, *targets)
        # The products below multiply numbers of one type.
        gradient_CV = None if gradient_CV is None else gradient_CV.astype(dtype)
        return jax.tree.map(jnp.add, sums, terms), gradient_CV

    def scan_group(carry: Any, arrays: Any) -> tuple[Any, Any]:
        sums, head_gradient = carry
        sums, gradient_GCV = jax.lax.scan(scan_chunk, sums, arrays)
        if not differentiate:
            return (sums, head_gradient), None
        gradient_NV = gradient_GCV.reshape(group * chunk, -1)
        features_gradient_ND = _einsum('nv,vd->nd', gradient_NV, student.head.weight)
        weight = _einsum('nv,nd->vd', gradient_NV, arrays[0].reshape(-1, width))
        # The bias adds up the numbers of the products above, rounded like them in bfloat16. XLA's CPU
        # backend computes a product three times as fast as column sums.
        ones_N = jnp.ones(group * chunk, dtype)
        bias = _einsum('n,nv->v', ones_N, gradient_NV, precision=jax.lax.Precision.HIGHEST)
        head_gradient = jax.tree.map(jnp.add, head_gradient, Head(weight, bias))
        return (sums, head_gradient), features_gradient_ND.astype(dtype)

    names = ('loss', 'count', 'ce', 'correct', 'labelled')
    teacher_names = () if teacher is None else ('kl', 'agree', 'teacher_ce')
    zero_sums = {name: jnp.zeros((), jnp.float32) for name in (*names, *teacher_names)}
    head = student.head if differentiate else None
    zero_head = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), head)
    carry, features_gradient = jax.lax.scan(scan_group, (zero_sums, zero_head), chunks)
    sums, head_gradient = carry
    if not differentiate:
        return sums, None
    features_gradient = features_gradient.reshape(count * chunk, -1)[:total]
    gradient = Predictor(features_gradient.reshape(student.features.shape), head_gradient)
    return sums, jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, student)


def _chunk_loss(
    tau: float,
    differentiate: bool,
    logits_CV: Float[Array, 'C V'],
    teacher_CV: Float[Array, 'C V'] | None,
    labels_C: Int[Array, ' C'],
    weights_C: Float[Array, ' C'],
    lambda_C: Float[Array, ' C'],
) -> tuple[Sums, Float[Array, 'C V'] | None]:
    """Computes the sums of one chunk, and the gradient of `loss` by its logits."""
    onehot_CV = labels_C[:, None] == jnp.arange(logits_CV.shape[1])
    labelled_C = weights_C * (labels_C >= 0)
    student = _top_and_label(logits_CV, labels_C)
    p = _softmax(logits_CV, student.top_C)
    ce_C = p.lse_C - student.label_C
    sums = {
        'count': jnp.sum(weights_C),
        'ce': jnp.sum(labelled_C * ce_C),
        'correct': jnp.sum(labelled_C * (student.id_C == labels_C)),
        'labelled': jnp.sum(labelled_C),
    }
    if teacher_CV is None:
        sums['loss'] = sums['ce']
        label_weight_C, terms = labelled_C, [(p, labelled_C)]
    else:
        teacher = _top_and_label(teacher_CV, labels_C)
        q = _softmax(teacher_CV, teacher.top_C)
        p_tau, q_tau = p, q
        if tau != 1:
            p_tau = _softmax(logits_CV / tau, student.top_C / tau)
            q_tau = _softmax(teacher_CV / tau, teacher.top_C / tau)
        # sum q (log q - log p); the normalisers do not depend on the id and leave the sum.
        mean_C = _sum(q_tau.exp_CV * (teacher_CV - logits_CV)) / q_tau.total_C
        kl_C = mean_C / tau + p_tau.lse_C - q_tau.lse_C
        lambda_C = jnp.where(labels_C >= 0, lambda_C, 1.0)
        label_weight_C = labelled_C * (1 - lambda_C)
        kl_weight_C = weights_C * lambda_C
        teacher_ce_C = q.lse_C - teacher.label_C
        sums |= {
            'loss': jnp.sum(label_weight_C * ce_C + tau**2 * kl_weight_C * kl_C),
            'kl': jnp.sum(weights_C * kl_C),
            'agree': jnp.sum(weights_C * (student.id_C == teacher.id_C)),
            'teacher_ce': jnp.sum(labelled_C * teacher_ce_C),
        }
        terms = [(p, label_weight_C), (p_tau, tau * kl_weight_C), (q_tau, -tau * kl_weight_C)]
        if tau == 1:  # p and p_tau are the same: one product per element less
            terms = [(p, label_weight_C + kl_weight_C), (q, -kl_weight_C)]
    if not differentiate:
        return sums, None
    gradient_CV = -jnp.where(onehot_CV, label_weight_C[:, None], 0.0)
    for softmax, weight_C in terms:
        gradient_CV += softmax.exp_CV * (weight_C / softmax.total_C)[:, None]
    return sums, gradient_CV


def _sum(x_CV: Float[Array, 'C V']) -> Float[Array, ' C']:
    # On CPU a product, because XLA sums slowly if it does not fuse the operand.
    ones_V = jnp.ones(x_CV.shape[1], x_CV.dtype)
    product = functools.partial(_einsum, 'cv,v->c', precision=jax.lax.Precision.HIGHEST)
    return jax.lax.platform_dependent(
        x_CV, ones_V, cpu=product, default=lambda x_CV, ones_V: jnp.sum(x_CV, axis=1)
    )


def _logits(features_CD: Float[Array, 'C D'], head: Head) -> Float[Array, 'C V']:
    return _einsum('cd,vd->cv', features_CD, head.weight) + head.bias.astype(jnp.float32)


class _Softmax(NamedTuple):
    """Exponentials and their sum. Users divide late, which saves a pass over the chunk."""

    top_C: Float[Array, ' C']
    exp_CV: Float[Array, 'C V']
    total_C: Float[Array, ' C']

    @property
    def lse_C(self) -> Float[Array, ' C']:
        return jnp.log(self.total_C) + self.top_C


def _softmax(logits_CV: Float[Array, 'C V'], top_C: Float[Array, ' C']) -> _Softmax:
    exp_CV = jnp.exp(logits_CV - top_C[:, None])
    return _Softmax(top_C, exp_CV, jnp.sum(exp_CV, axis=1))


class _TopAndLabel(NamedTuple):
    """Largest logit, the first id that has it, and the label's logit (0 if unlabelled)."""

    top_C: Float[Array, ' C']
    id_C: Int[Array, ' C']
    label_C: Float[Array, ' C']


def _top_and_label(logits_CV: Float[Array, 'C V'], labels_C: Int[Array, ' C']) -> _TopAndLabel:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get('tensor', 1) > 1:
        return _by_comparison(logits_CV, labels_C)
    return jax.lax.platform_dependent(logits_CV, labels_C, cpu=_by_index, default=_by_comparison)


def _by_comparison(logits_CV: Float[Array, 'C V'], labels_C: Int[Array, ' C']) -> _TopAndLabel:
    # Comparing every id needs no gather, which would be a collective in every chunk if V is sharded.
    # Ids are float32 like the logits: XLA's TPU backend fuses reductions of one type into one pass.
    ids_V = jnp.arange(logits_CV.shape[1], dtype=jnp.float32)
    top_C = jnp.max(logits_CV, axis=1)
    id_C = jnp.min(jnp.where(logits_CV == top_C[:, None], ids_V, jnp.inf), axis=1)
    label_CV = jnp.where(labels_C[:, None] == ids_V, logits_CV, -jnp.inf)
    label_C = jnp.where(_is_id(labels_C, logits_CV), jnp.max(label_CV, axis=1), 0.0)
    return _TopAndLabel(top_C, id_C.astype(jnp.int32), label_C)


def _by_index(logits_CV: Float[Array, 'C V'], labels_C: Int[Array, ' C']) -> _TopAndLabel:
    # XLA's CPU backend would make a separate pass for each comparison. The block with the largest
    # maximum has the largest logit, so only that block is searched.
    size = math.gcd(logits_CV.shape[1], 128)
    tops_CN = jax.lax.reduce_window(logits_CV, -jnp.inf, jax.lax.max, (1, size), (1, size), 'VALID')
    ids_CS = jnp.argmax(tops_CN, axis=1)[:, None] * size + jnp.arange(size)
    first_C = jnp.argmax(jnp.take_along_axis(logits_CV, ids_CS, axis=1), axis=1)
    id_C = (ids_CS[:, 0] + first_C).astype(jnp.int32)
    is_id_C = _is_id(labels_C, logits_CV)
    label_C = jnp.take_along_axis(logits_CV, jnp.where(is_id_C, labels_C, 0)[:, None], axis=1)[:, 0]
    return _TopAndLabel(jnp.max(tops_CN, axis=1), id_C, jnp.where(is_id_C, label_C, 0.0))


def _is_id(labels_C: Int[Array, ' C'], logits_CV: Float[Array, 'C V']) -> Array:
    # Labels of padding may be any number, and must not reach the sums.
    return (labels_C >= 0) & (labels_C < logits_CV.shape[1])
