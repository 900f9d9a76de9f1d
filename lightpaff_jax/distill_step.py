"""The training step of every network: one jitted, sharded function.

    step(state, teacher_params, batch, hyperparameters) -> state, sums

The step computes the teacher's outputs on the device. It is pure: randomness is a function of the
seed and the step. Each device adds up the gradient of its own examples over all micro-batches. The
gradient is reduced over the devices once, and divided once by the total weight of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lightpaff_jax import config, matching, optimizer, sharding
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.losses import BATCH_AXES, Head, Predictor, Sums, distillation_loss
from lightpaff_jax.models import Model, Params

# Values of a step that are not sums; a skipped update has its mean_loss too.
RATES = ('mean_loss', 'grad_norm', 'learning_rate', 'bad_steps')
SCOPES = ('teacher', 'student', 'loss', 'update')  # parts of the step in profiles of it
_MAX_ACTIVATIONS = 1 << 27  # feed-forward activations of the teacher on a device at a time

Rule: TypeAlias = optax.GradientTransformationExtraArgs

_ROWS: Any = P(BATCH_AXES)
_REPLICATED: Any = P()
_PREDICTOR = Predictor(_ROWS, Head(_REPLICATED, _REPLICATED))  # its PartitionSpecs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a step changes: arrays only."""

    step: Int[Array, '']
    """Number of updates, the skipped ones included."""
    params: Params
    """Those of the student and, under `matching.PROJECTIONS`, those of the matching losses."""
    opt_state: Any
    bad_steps: Int[Array, '']
    """Number of updates skipped in a row, up to the last one."""


class Target(NamedTuple):
    """The outputs of the teacher for a micro-batch."""

    predictor: Predictor | None
    """None if the loss reads no logits of the teacher."""
    taps: dict[matching.Tap, Array]


def init_state(
    student: Model,
    rule: Rule,
    seed: int | Int[Array, ''],
    matching_losses: matching.Matching | None = None,
) -> TrainState:
    """Initialises a state, a function of the seed."""
    key = jax.random.key(seed)
    params = student.init(key)
    if matching_losses is not None:
        params |= matching_losses.init(jax.random.fold_in(key, 1))
    # Two arrays: the step donates both.
    step, bad_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, params, rule.init(params), bad_steps)


def state_shardings(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    rule: Rule,
    matching_losses: matching.Matching | None = None,
) -> TrainState:
    """Places a state on the mesh; moments are placed like their parameters."""
    abstract = jax.eval_shape(lambda: init_state(student, rule, 0, matching_losses))
    params = sharding.param_shardings(mesh, abstract.params, c.mesh.student)
    replicated: Any = sharding.replicated(mesh)
    moments = optax.tree_map_params(
        rule,
        lambda _, param_sharding: param_sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, params, moments, replicated)


def abstract_state(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    rule: Rule,
    matching_losses: matching.Matching | None = None,
) -> TrainState:
    """Describes a state as ShapeDtypeStructs with its shardings."""
    shapes = jax.eval_shape(lambda: init_state(student, rule, 0, matching_losses))
    shardings = state_shardings(c, mesh, student, rule, matching_losses)
    return sharding.abstract_arrays(shapes, shardings)


def make_step(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    rule: Rule,
    matching_losses: matching.Matching | None = None,
) -> jax.stages.Wrapped:
    """Builds the jitted step `(state, teacher_params, batch, hyperparameters) -> state, sums`.

    The step donates the state, never the teacher. The batch has micro-batches [M, B/M, ...]. The
    default hyperparameters are those of `c`. The sums are those of `distillation_loss` and of the
    matching losses over the whole batch, and RATES.

    If the loss or the norm of the gradient is not finite, the update is skipped: parameters and
    optimizer keep their bits, `skipped` is 1, all other sums are 0, and `step` advances.
    """
    gradient = make_gradient(c, mesh, student, teacher, matching_losses)
    defaults = optimizer.hyperparameters(c)

    def step(
        state: TrainState,
        teacher_params: Params | None,
        batch: Batch,
        hyperparameters: optimizer.Hyperparameters = defaults,
    ) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
        learning_rate = optimizer.learning_rate(c.optim, hyperparameters, state.step)
        sums, grads = gradient(state.params, teacher_params, batch, key)
        with jax.named_scope('update'):
            grads = jax.tree.map(lambda g: g / jnp.maximum(sums['count'], 1), grads)
            mean_loss = sums['loss'] / jnp.maximum(sums['count'], 1)
            grad_norm = optax.tree.norm(grads)
            finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
            updates, opt_state = rule.update(grads, state.opt_state, state.params, finite=finite)
            params = jax.tree.map(
                lambda p, u: jnp.where(finite, p + learning_rate * u, p), state.params, updates
            )
            sums = jax.tree.map(lambda x: jnp.where(finite, x, 0), sums)
            bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        sums |= {'skipped': 1 - finite.astype(jnp.float32), 'mean_loss': mean_loss}
        sums |= {'grad_norm': grad_norm, 'learning_rate': learning_rate}
        sums['bad_steps'] = bad_steps.astype(jnp.float32)  # a copy: the state's is donated
        return TrainState(state.step + 1, params, opt_state, bad_steps), sums

    state_sharding = state_shardings(c, mesh, student, rule, matching_losses)
    return jax.jit(
        step, donate_argnums=0, out_shardings=(state_sharding, sharding.replicated(mesh))
    )


def make_gradient(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    matching_losses: matching.Matching | None = None,
) -> Callable[[Params, Params | None, Batch, Array], tuple[Sums, Params]]:
    """Builds the step's `(params, teacher_params, batch, key) -> sums, summed gradient`."""
    device_loss = _make_loss(c, student, matching_losses)
    compute_target = _make_target(c, mesh, student, teacher, matching_losses)

    def on_device(
        params: Params, target: Target | None, microbatch: Batch, scales: Sums, key: Array
    ) -> tuple[Sums, Params]:
        """Computes sums and gradient of the device's examples, with a leading axis of 1."""
        device_key = None
        if c.student.dropout > 0:
            device_key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))

        def loss(params: Params) -> tuple[Float[Array, ''], Sums]:
            sums = device_loss(params, target, microbatch, scales, device_key)
            return sums['loss'], sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x: x[None], (sums, grads))

    def gradient(
        params: Params, teacher_params: Params | None, batch: Batch, key: Array
    ) -> tuple[Sums, Params]:
        # Gathered over `fsdp` once, not in every micro-batch.
        params = _gather_params(c, mesh, params)
        target_of = compute_target(teacher_params)
        scales = {} if matching_losses is None else _scales(matching_losses, batch)

        def on_microbatch(microbatch: Batch, index: int | Array) -> tuple[Sums, Params]:
            target = target_of(microbatch)
            microbatch = dataclasses.replace(microbatch, teacher=None)
            in_specs = _REPLICATED, _target_specs(target), _ROWS, _REPLICATED, _REPLICATED
            compute = _on_devices(mesh, on_device, in_specs, _ROWS)
            return compute(params, target, microbatch, scales, jax.random.fold_in(key, index))

        first = jax.tree.map(lambda x: x[0], batch)
        if c.train.grad_accum_steps == 1:
            total = on_microbatch(first, 0)
        else:
            by_device = sharding.batch_sharding(mesh, micro=False)
            zero = jax.tree.map(
                lambda x: jax.lax.with_sharding_constraint(jnp.zeros(x.shape, x.dtype), by_device),
                jax.eval_shape(on_microbatch, first, 0),
            )

            def add(total: Any, arrays: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, on_microbatch(*arrays)), None

            total, _ = jax.lax.scan(add, zero, (batch, jnp.arange(c.train.grad_accum_steps)))
        # The leading axis is the devices': this sum is the only reduction.
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), total)

    return gradient


def _make_loss(
    c: ConfigDict, student: Model, matching_losses: matching.Matching | None
) -> Callable[..., Sums]:
    """Builds `(params, target, microbatch, scales, key) -> sums` of the examples of a device."""
    predicts = config.OBJECTIVES[c.objective].outputs != 'matching'
    taps = () if matching_losses is None else matching_losses.student_taps

    def loss(
        params: Params, target: Target | None, microbatch: Batch, scales: Sums, key: Array | None
    ) -> Sums:
        params, projections = matching.split_params(params)
        with jax.named_scope('student'):
            outputs = student.features(params, microbatch, key=key, taps=taps)
            features, activations = outputs if taps else (outputs, {})
        if predicts:
            sums = distillation_loss(
                Predictor(features, student.head(params)),
                None if target is None else target.predictor,
                microbatch.labels,
                microbatch.weights,
                lambda_=c.loss.lambda_,
                temperature=c.loss.temperature,
                chunk=c.loss.chunk,
            )
        else:
            sums = {'loss': jnp.zeros(()), 'count': jnp.sum(microbatch.weights)}
        if matching_losses is None:
            return sums
        assert target is not None, 'validation requires a teacher'
        with jax.named_scope('loss'):
            terms = matching_losses.sums(projections, activations, target.taps, microbatch)
        for name, scale in scales.items():
            sums['loss'] += scale * terms[name]
        return sums | terms

    return loss


def _scales(matching_losses: matching.Matching, batch: Batch) -> Sums:
    """Computes the factor of each term's sum in the sum of the loss.

    The step divides the sum of the loss by the count of predicted positions, so a term with another
    count is multiplied by the quotient of both. They are counts of the whole batch, so that
    micro-batches and devices change nothing.
    """
    counts = matching_losses.counts(batch)
    count = jnp.maximum(jnp.sum(batch.weights), 1)
    return {
        name: weight * count / jnp.maximum(counts[f'{name}_count'], 1)
        for name, weight in matching_losses.weights.items()
    }


def _make_target(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    matching_losses: matching.Matching | None,
) -> Callable[[Params | None], Callable[[Batch], Target | None]]:
    """Builds `(teacher_params) -> (microbatch) -> target`; the first call gathers the head."""
    taps = () if matching_losses is None else matching_losses.teacher_taps

    def with_params(teacher_params: Params | None) -> Callable[[Batch], Target | None]:
        if teacher is None:
            return lambda microbatch: None
        head = None
        if has_same_head(student, teacher):
            head = _gather_head(mesh, teacher.head(teacher_params))

        def target(microbatch: Batch) -> Target:
            cached = microbatch.teacher
            with jax.named_scope('teacher'):
                if cached is not None:
                    dtype = jnp.dtype(c.train.compute_dtype)
                    features = cached['features'].astype(dtype)
                    activations = {tap: cached[tap.name].astype(dtype) for tap in taps}
                else:
                    features, activations = _teacher_outputs(
                        c, mesh, teacher, teacher_params, microbatch, taps
                    )
            return Target(None if head is None else Predictor(features, head), activations)

        return target

    return with_params


def has_same_head(student: Model, teacher: Model) -> bool:
    """Returns whether both have the same head, so that the loss can compare their logits."""
    s, t = student.network, teacher.network
    return (s.head, s.classes) == (t.head, t.classes) and s.head != 'none'


def _target_specs(target: Target | None) -> Any:
    if target is None:
        return None
    predictor = None if target.predictor is None else _PREDICTOR
    return Target(predictor, dict.fromkeys(target.taps, _ROWS))


def _on_devices(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over the rows of each device."""
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )


def _predict(model: Model, params: Params | None, batch: Batch) -> Predictor:
    return Predictor(model.features(params, batch), model.head(params))


def _teacher_outputs(
    c: ConfigDict,
    mesh: Mesh,
    teacher: Model,
    params: Params | None,
    batch: Batch,
    taps: tuple[matching.Tap, ...],
) -> tuple[Float[Array, 'B P D'], dict[matching.Tap, Array]]:
    """Computes the teacher's features and taps some rows at a time.

    This bounds the memory of its other activations.
    """
    local_rows = batch.labels.shape[0] // (mesh.shape['data'] * mesh.shape['fsdp'])
    size = c.teacher.microbatch_size
    parts = local_rows // (size or _microbatch_size(local_rows, batch.shape, teacher.network.ffn))

    def compute(batch: Batch) -> Any:
        outputs = teacher.features(params, batch, taps=taps)
        return outputs if taps else (outputs, {})

    if parts == 1:
        return compute(batch)
    # Each device reshapes its own rows: no row moves to another device.
    rows_of_parts = P(None, BATCH_AXES)
    split = _on_devices(
        mesh,
        lambda batch: jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch),
        _ROWS,
        rows_of_parts,
    )
    join = _on_devices(
        mesh,
        lambda x: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), x),
        rows_of_parts,
        _ROWS,
    )
    return join(jax.lax.map(compute, split(batch)))


def make_teacher_arrays(
    c: ConfigDict, mesh: Mesh, teacher: Model, taps: tuple[matching.Tap, ...] = ()
) -> jax.stages.Wrapped:
    """Builds the jitted `(teacher_params, batch) -> arrays` over one batch [B, ...].

    The arrays are those of `Batch.teacher`, in bfloat16; every device and process gets all of them.
    """

    def compute(params: Params, batch: Batch) -> dict[str, Array]:
        features, activations = _teacher_outputs(c, mesh, teacher, params, batch, taps)
        arrays = {'features': features}
        for tap, x in activations.items():
            arrays[tap.name] = x.reshape(*x.shape[:2], -1)
        return {name: x.astype(jnp.bfloat16) for name, x in arrays.items()}

    return jax.jit(compute, out_shardings=sharding.replicated(mesh))


def _microbatch_size(rows: int, shape: Shape, ffn: int) -> int:
    """Returns the largest divisor of `rows` with at most _MAX_ACTIVATIONS numbers."""
    limit = max(1, _MAX_ACTIVATIONS // (max(shape.tokens, shape.source) * ffn))
    return matching.largest_divisor(rows, limit)


def _gather_params(c: ConfigDict, mesh: Mesh, params: Params) -> Params:
    """Gathers parameters over `fsdp`; matrices stay split over `tensor`."""
    shardings = sharding.param_shardings(mesh, params, {'tensor'} & {*c.mesh.student})
    return jax.tree.map(jax.lax.with_sharding_constraint, params, shardings)


def _gather_head(mesh: Mesh, head: Head) -> Head:
    shardings = sharding.head_sharding(mesh, head.weight.shape), sharding.replicated(mesh)
    return Head(*map(jax.lax.with_sharding_constraint, head, shardings))


def make_evaluation(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    matching_losses: matching.Matching | None = None,
) -> jax.stages.Wrapped:
    """Builds the jitted `(params, teacher_params, batch) -> outputs` over one batch [B, ...].

    Every device and process gets all outputs. The objective's `outputs` decides which:

        'sums'    sums of `distillation_loss` over the batch
        'rows'    sums of `distillation_loss` of each row [B]; ids [B, T] that are predicted, and
                  source [B, S]; other positions are -1
        'logits'  logits and teacher_logits [B, V], label [B], ids [B, T], with -1 on padding
        'matching' sums of the matching losses over the batch

    As in training, `kl` is at `config.loss.temperature`.
    """
    outputs = config.OBJECTIVES[c.objective].outputs
    if outputs == 'matching':
        return _make_matching_evaluation(c, mesh, student, teacher, matching_losses)
    if teacher is not None and not has_same_head(student, teacher):
        teacher = None
    loss = functools.partial(distillation_loss, temperature=c.loss.temperature, chunk=c.loss.chunk)

    def evaluate(params: Params, teacher_params: Params | None, batch: Any) -> dict[str, Array]:
        params, _ = matching.split_params(_gather_params(c, mesh, params))
        if outputs == 'logits':
            arrays = {'logits': student.logits(params, batch)[:, 0]}
            if teacher is not None:
                arrays['teacher_logits'] = teacher.logits(teacher_params, batch)[:, 0]
            ids_BT = jnp.where(batch.segments > 0, batch.tokens, -1)
            return arrays | {'label': batch.labels[:, 0], 'ids': ids_BT}
        prediction = _predict(student, params, batch)
        target = None if teacher is None else _predict(teacher, teacher_params, batch)
        if outputs == 'sums':
            return loss(prediction, target, batch.labels, batch.weights)
        sums = _sums_of_rows(mesh, loss, prediction, target, batch)
        sums['ids'] = jnp.where(batch.weights > 0, batch.labels, -1)
        if batch.source is not None:
            sums['source'] = jnp.where(batch.source_segments > 0, batch.source, -1)
        return sums

    return jax.jit(evaluate, out_shardings=sharding.replicated(mesh))


def _make_matching_evaluation(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    matching_losses: matching.Matching | None,
) -> jax.stages.Wrapped:
    assert matching_losses is not None, 'validation requires a teacher and a term'
    loss = _make_loss(c, student, matching_losses)
    compute_target = _make_target(c, mesh, student, teacher, matching_losses)

    def on_device(params: Params, target: Target, batch: Batch) -> Sums:
        return jax.tree.map(lambda x: x[None], loss(params, target, batch, {}, None))

    def evaluate(params: Params, teacher_params: Params | None, batch: Batch) -> Sums:
        params = _gather_params(c, mesh, params)
        target = compute_target(teacher_params)(batch)
        in_specs = _REPLICATED, _target_specs(target), _ROWS
        sums = _on_devices(mesh, on_device, in_specs, _ROWS)(params, target, batch)
        sums.pop('loss')
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    return jax.jit(evaluate, out_shardings=sharding.replicated(mesh))


def _sums_of_rows(
    mesh: Mesh, loss: Callable, prediction: Predictor, target: Predictor | None, batch: Batch
) -> dict[str, Float[Array, ' B']]:
    def on_device(prediction: Predictor, target: Any, labels: Array, weights: Array) -> Any:
        def row_sums(arrays: Any) -> Sums:
            features, teacher_features, labels, weights = jax.tree.map(lambda x: x[None], arrays)
            row_target = None if target is None else Predictor(teacher_features, target.head)
            return loss(Predictor(features, prediction.head), row_target, labels, weights)

        teacher_features = None if target is None else target.features
        return jax.lax.map(row_sums, (prediction.features, teacher_features, labels, weights))

    in_specs = _PREDICTOR, None if target is None else _PREDICTOR, _ROWS, _ROWS
    compute = _on_devices(mesh, on_device, in_specs, _ROWS)
    return compute(prediction, target, batch.labels, batch.weights)
