"""The training step of every network: one jitted, sharded function.

    step(state, teacher_params, batch, hyperparameters) -> state, sums

The step computes the teacher's outputs on the device. It is pure: randomness is a function of the
seed and the step. Each device adds up the gradient of its own examples over all micro-batches. The
gradient is reduced over the devices once, and divided once by the total weight of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lightpaff_jax import config, optimizer, sharding
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
    opt_state: Any
    bad_steps: Int[Array, '']
    """Number of updates skipped in a row, up to the last one."""


def init_state(student: Model, rule: Rule, seed: int | Int[Array, '']) -> TrainState:
    """Initialises a state, a function of the seed."""
    params = student.init(jax.random.key(seed))
    # Two arrays: the step donates both.
    step, bad_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, params, rule.init(params), bad_steps)


def state_shardings(c: ConfigDict, mesh: Mesh, student: Model, rule: Rule) -> TrainState:
    """Places a state on the mesh; moments are placed like their parameters."""
    params = sharding.param_shardings(mesh, student.abstract_params, c.mesh.student)
    replicated: Any = sharding.replicated(mesh)
    moments = optax.tree_map_params(
        rule,
        lambda _, param_sharding: param_sharding,
        jax.eval_shape(rule.init, student.abstract_params),
        params,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, params, moments, replicated)


def abstract_state(c: ConfigDict, mesh: Mesh, student: Model, rule: Rule) -> TrainState:
    """Describes a state as ShapeDtypeStructs with its shardings."""
    shapes = jax.eval_shape(lambda: init_state(student, rule, 0))
    return sharding.abstract_arrays(shapes, state_shardings(c, mesh, student, rule))


def make_step(
    c: ConfigDict, mesh: Mesh, student: Model, teacher: Model | None, rule: Rule
) -> jax.stages.Wrapped:
    """Builds the jitted step `(state, teacher_params, batch, hyperparameters) -> state, sums`.

    The step donates the state, never the teacher. The batch has micro-batches [M, B/M, ...]. The
    default hyperparameters are those of `c`. The sums are those of `distillation_loss` over the
    whole batch, and RATES.

    If the loss or the norm of the gradient is not finite, the update is skipped: parameters and
    optimizer keep their bits, `skipped` is 1, all other sums are 0, and `step` advances.
    """
    gradient = make_gradient(c, mesh, student, teacher)
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

    state_sharding = state_shardings(c, mesh, student, rule)
    return jax.jit(
        step, donate_argnums=0, out_shardings=(state_sharding, sharding.replicated(mesh))
    )


def make_gradient(
    c: ConfigDict, mesh: Mesh, student: Model, teacher: Model | None
) -> Callable[[Params, Params | None, Batch, Array], tuple[Sums, Params]]:
    """Builds the step's `(params, teacher_params, batch, key) -> sums, summed gradient`."""

    def on_device(
        params: Params, target: Predictor | None, microbatch: Batch, key: Array
    ) -> tuple[Sums, Params]:
        """Computes sums and gradient of the device's examples, with a leading axis of 1."""
        device_key = None
        if c.student.dropout > 0:
            device_key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))

        def loss(params: Params) -> tuple[Float[Array, ''], Sums]:
            with jax.named_scope('student'):
                prediction = _predict(student, params, microbatch, device_key)
            sums = distillation_loss(
                prediction,
                target,
                microbatch.labels,
                microbatch.weights,
                lambda_=c.loss.lambda_,
                temperature=c.loss.temperature,
                chunk=c.loss.chunk,
            )
            return sums['loss'], sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x: x[None], (sums, grads))

    def gradient(
        params: Params, teacher_params: Params | None, batch: Batch, key: Array
    ) -> tuple[Sums, Params]:
        # Gathered over `fsdp` once, not in every micro-batch.
        params = _gather_params(c, mesh, params)
        teacher_head: Any = (
            None if teacher is None else _gather_head(mesh, teacher.head(teacher_params))
        )

        def on_microbatch(microbatch: Batch, index: int | Array) -> tuple[Sums, Params]:
            target, cached = None, microbatch.teacher
            microbatch = dataclasses.replace(microbatch, teacher=None)
            if teacher is not None:
                with jax.named_scope('teacher'):
                    if cached is None:
                        features = _teacher_features(c, mesh, teacher, teacher_params, microbatch)
                    else:
                        features = cached['features'].astype(teacher_head.weight.dtype)
                target = Predictor(features, teacher_head)
            target_spec = None if target is None else _PREDICTOR
            in_specs = _REPLICATED, target_spec, _ROWS, _REPLICATED
            compute = _on_devices(mesh, on_device, in_specs, _ROWS)
            return compute(params, target, microbatch, jax.random.fold_in(key, index))

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


def _predict(
    model: Model, params: Params | None, batch: Batch, key: Array | None = None
) -> Predictor:
    return Predictor(model.features(params, batch, key=key), model.head(params))


def _teacher_features(
    c: ConfigDict, mesh: Mesh, teacher: Model, params: Params | None, batch: Batch
) -> Float[Array, 'B P D']:
    """Computes the teacher's features some rows at a time, which bounds its activation memory."""
    local_rows = batch.labels.shape[0] // (mesh.shape['data'] * mesh.shape['fsdp'])
    size = c.teacher.microbatch_size
    parts = local_rows // (size or _microbatch_size(local_rows, batch.shape, teacher.network.ffn))
    if parts == 1:
        return teacher.features(params, batch)
    # Each device reshapes its own rows: no row moves to another device.
    rows_of_parts = P(None, BATCH_AXES)
    split = _on_devices(
        mesh,
        lambda batch: jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch),
        _ROWS,
        rows_of_parts,
    )
    join = _on_devices(mesh, lambda x: x.reshape(-1, *x.shape[2:]), rows_of_parts, _ROWS)
    return join(jax.lax.map(functools.partial(teacher.features, params), split(batch)))


def make_teacher_arrays(c: ConfigDict, mesh: Mesh, teacher: Model) -> jax.stages.Wrapped:
    """Builds the jitted `(teacher_params, batch) -> arrays` over one batch [B, ...].

    The arrays are those of `Batch.teacher`, in bfloat16; every device and process gets all of them.
    """

    def compute(params: Params, batch: Batch) -> dict[str, Array]:
        features = _teacher_features(c, mesh, teacher, params, batch)
        return {'features': features.astype(jnp.bfloat16)}

    return jax.jit(compute, out_shardings=sharding.replicated(mesh))


def _microbatch_size(rows: int, shape: Shape, ffn: int) -> int:
    """Returns the largest divisor of `rows` with at most _MAX_ACTIVATIONS numbers."""
    limit = max(1, _MAX_ACTIVATIONS // (max(shape.tokens, shape.source) * ffn))
    return max(size for size in range(1, rows + 1) if rows % size == 0 and size <= limit)


def _gather_params(c: ConfigDict, mesh: Mesh, params: Params) -> Params:
    """Gathers parameters over `fsdp`; matrices stay split over `tensor`."""
    shardings = sharding.param_shardings(mesh, params, {'tensor'} & {*c.mesh.student})
    return jax.tree.map(jax.lax.with_sharding_constraint, params, shardings)


def _gather_head(mesh: Mesh, head: Head) -> Head:
    shardings = sharding.head_sharding(mesh, head.weight.shape), sharding.replicated(mesh)
    return Head(*map(jax.lax.with_sharding_constraint, head, shardings))


def make_evaluation(
    c: ConfigDict, mesh: Mesh, student: Model, teacher: Model | None
) -> jax.stages.Wrapped:
    """Builds the jitted `(params, teacher_params, batch) -> outputs` over one batch [B, ...].

    Every device and process gets all outputs. The objective's `outputs` decides which:

        'sums'    sums of `distillation_loss` over the batch
        'rows'    sums of `distillation_loss` of each row [B]; ids [B, T] that are predicted, and
                  source [B, S]; other positions are -1
        'logits'  logits and teacher_logits [B, V], label [B], ids [B, T], with -1 on padding

    As in training, `kl` is at `config.loss.temperature`.
    """
    outputs = config.OBJECTIVES[c.objective].outputs
    loss = functools.partial(distillation_loss, temperature=c.loss.temperature, chunk=c.loss.chunk)

    def evaluate(params: Params, teacher_params: Params | None, batch: Any) -> dict[str, Array]:
        params = _gather_params(c, mesh, params)
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
