"""THE step: one jitted function trains every network of this project.

    step(state, teacher_params, batch, hyperparameters) -> state, sums

The teacher's outputs are computed in it, on the device. Pure: randomness is a function of
the seed and the step. Each device adds up the gradient of its own examples over all
micro-batches; it is reduced over the devices once, and divided once by the weights of all.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from lightpaff_jax import config, optimizer, sharding
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.losses import BATCH_AXES, Head, Predictor, distillation_loss
from lightpaff_jax.models import Model, Params

SCOPES = ('teacher', 'student', 'loss', 'update')
"""Parts of the step, by these names in its program and in a profile of it."""

_WIDEST = 1 << 27


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, arrays only."""

    step: Int[Array, '']
    """Updates done."""
    params: Params
    opt_state: Any


def init_state(student: Model, rule: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state, a function of the seed."""
    params = student.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, rule.init(params))


def state_shardings(c: ConfigDict, mesh: Mesh, student: Model, rule: optax.GradientTransformation):
    """A TrainState of NamedShardings: parameters by rule, their moments like them."""
    params = sharding.param_shardings(mesh, student.abstract_params, c.mesh.student)
    whole: Any = sharding.replicated(mesh)
    moments = optax.tree_map_params(
        rule,
        lambda _, place: place,
        jax.eval_shape(rule.init, student.abstract_params),
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, params, moments)


def abstract_state(
    c: ConfigDict, mesh: Mesh, student: Model, rule: optax.GradientTransformation
) -> TrainState:
    """ShapeDtypeStructs of a state, placed as `state_shardings` says."""
    return sharding.abstract_arrays(
        jax.eval_shape(
            lambda seed: init_state(student, rule, seed), optimizer.hyperparameters(c).seed
        ),
        state_shardings(c, mesh, student, rule),
    )


def make_step(
    c: ConfigDict,
    mesh: Mesh,
    student: Model,
    teacher: Model | None,
    rule: optax.GradientTransformation,
) -> jax.stages.Wrapped:
    """The jitted step `(state, teacher_params, batch, hyperparameters) -> state, sums`.

    Donates the state, never the teacher. Its batch has micro-batches [M, B/M, ...]; hyperparameters are
    those of `c` where none are given. It returns the sums of `distillation_loss` over the whole
    batch, `grad_norm` of the mean gradient and `learning_rate`.
    """
    gradient = functools.partial(_gradient, c, mesh, student, teacher)
    defaults = optimizer.hyperparameters(c)

    def step(state: TrainState, teacher_params: Params | None, batch: Batch,
             hyperparameters: optimizer.Hyperparameters = defaults):  # fmt: skip
        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
        rate = optimizer.learning_rate(c, hyperparameters, state.step)
        sums, grads = gradient(state.params, teacher_params, batch, key)
        with jax.named_scope('update'):
            grads = jax.tree.map(lambda g: g / jnp.maximum(sums['count'], 1), grads)
            updates, opt_state = rule.update(grads, state.opt_state, state.params)
            updates = jax.tree.map(lambda u: rate * u, updates)
            params = optax.apply_updates(state.params, updates)
            sums['grad_norm'] = optax.tree.norm(grads)
        sums['learning_rate'] = rate
        return TrainState(state.step + 1, params, opt_state), sums

    states = state_shardings(c, mesh, student, rule)
    return jax.jit(step, donate_argnums=0, out_shardings=(states, sharding.replicated(mesh)))


def make_gradient(c: ConfigDict, mesh: Mesh, student: Model, teacher: Model | None):
    """`(params, teacher_params, batch, key) -> sums, summed gradient`, as the step computes it."""
    return functools.partial(_gradient, c, mesh, student, teacher)


def _gradient(c, mesh, student, teacher, params, teacher_params, batch, key):
    # Gathered over `fsdp` once, not in every micro-step.
    params = _gather(c, mesh, params)
    teacher_head: Any = None
    if teacher is not None:
        teacher_head = _gather_head(mesh, teacher.head(teacher_params))
    keyed = c.student.dropout > 0

    def local(params, target, part, key):
        key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES)) if keyed else None

        def loss(params):
            with jax.named_scope('student'):
                mine = Predictor(
                    student.features(params, part, key=key), Head(*student.head(params))
                )
            sums = distillation_loss(
                mine,
                target,
                part.labels,
                part.weights,
                lambda_=c.loss.lambda_ if part.lambda_ is None else part.lambda_,
                temperature=c.loss.temperature,
                chunk=c.loss.chunk,
            )
            return sums['loss'], sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x: x[None], (sums, grads))

    def one(part, index):
        target, target_spec = None, None
        rows: Any = P(BATCH_AXES)
        whole: Any = P()
        if teacher is not None:
            with jax.named_scope('teacher'):
                features = _guidance(c, mesh, teacher, teacher_params, part)
            target = Predictor(features, teacher_head)
            target_spec = Predictor(rows, Head(whole, whole))
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(whole, target_spec, rows, whole),
            out_specs=rows,
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )(params, target, part, jax.random.fold_in(key, index))

    if c.train.grad_accum_steps == 1:
        total = one(jax.tree.map(lambda x: x[0], batch), 0)
    else:
        indices = jnp.arange(c.train.grad_accum_steps)
        first = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batch), 0)
        zero = jax.tree.map(lambda x: _of_shards(mesh, jnp.zeros(x.shape, x.dtype)), first)
        total, _ = jax.lax.scan(
            lambda carry, x: (jax.tree.map(jnp.add, carry, one(*x)), None), zero, (batch, indices)
        )
    # The leading axis is the devices': this sum is the one reduction.
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), total)


def _guidance(c, mesh, teacher, params, part):
    """The teacher's features. They are all it keeps, so it reads some rows of a device at a time."""
    devices = mesh.shape['data'] * mesh.shape['fsdp']
    local = part.labels.shape[0] // devices
    parts = local // (
        c.teacher.microbatch_size or _teacher_rows(local, part.shape, teacher.network.ffn)
    )
    if parts == 1:
        return teacher.features(params, part)
    rows, of_parts = P(BATCH_AXES), P(None, BATCH_AXES)

    def over_rows(reshape, before, after):  # a device's own: no row moves
        return jax.shard_map(
            lambda tree: jax.tree.map(reshape, tree),
            mesh=mesh, in_specs=before, out_specs=after, axis_names=set(BATCH_AXES),
            check_vma=False,
        )  # fmt: skip

    split = over_rows(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows, of_parts)
    join = over_rows(lambda x: x.reshape(-1, *x.shape[2:]), of_parts, rows)
    return join(jax.lax.map(functools.partial(teacher.features, params), split(part)))


def _teacher_rows(local: int, shape: Shape, ffn: int) -> int:
    """The most of `local` rows, a divisor, whose feed-forward features are 2^27 numbers or fewer."""
    most = max(1, _WIDEST // (max(shape.tokens, shape.source) * ffn))
    return max(rows for rows in range(1, local + 1) if local % rows == 0 and rows <= most)


def _of_shards(mesh, x):
    spec = jax.sharding.NamedSharding(mesh, P(BATCH_AXES))
    return jax.lax.with_sharding_constraint(x, spec)


def _gather(c, mesh, params):
    places = sharding.param_shardings(mesh, params, {'tensor'} & {*c.mesh.student})
    return jax.tree.map(jax.lax.with_sharding_constraint, params, places)


def _gather_head(mesh, head):
    place = sharding.head_sharding(mesh, head[0].shape)
    return Head(
        jax.lax.with_sharding_constraint(head[0], place),
        jax.lax.with_sharding_constraint(head[1], sharding.replicated(mesh)),
    )


def make_evaluation(c: ConfigDict, mesh: Mesh, student: Model, teacher: Model | None):
    """The jitted `(params, teacher_params, batch) -> found` over one batch [B, ...].

    What is found is whole on every device and in every process, by the `outputs` of the objective:

        'sums'    sums of `distillation_loss` over the batch
        'rows'    sums of `distillation_loss` for each row, [B]; ids [B, T], those that are
                  predicted (-1: none); source [B, S] alike
        'logits'  logits [B, V], teacher_logits [B, V], label [B], ids [B, T] (-1: padding)

    As in training, `kl` is at `config.loss.temperature`.
    """
    outputs = {'sums': _sums, 'rows': _sums_of_rows, 'logits': _classified}
    find = outputs[config.OBJECTIVES[c.objective].outputs]

    def evaluate(params, teacher_params, batch):
        params = _gather(c, mesh, params)
        return find(c, mesh, student, teacher, params, teacher_params, batch)

    return jax.jit(evaluate, out_shardings=sharding.replicated(mesh))


def _classified(c, mesh, student, teacher, params, teacher_params, batch):
    del c, mesh
    found = {'logits': student.logits(params, batch)[:, 0]}
    if teacher is not None:
        found['teacher_logits'] = teacher.logits(teacher_params, batch)[:, 0]
    ids_BT = jnp.where(batch.segments > 0, batch.tokens, -1)
    return found | {'label': batch.labels[:, 0], 'ids': ids_BT}


def _sums(c, mesh, student, teacher, params, teacher_params, batch):
    del mesh
    mine, target = _predictors(student, teacher, params, teacher_params, batch)
    return distillation_loss(
        mine, target, batch.labels, batch.weights,
        temperature=c.loss.temperature, chunk=c.loss.chunk,
    )  # fmt: skip


def _sums_of_rows(c, mesh, student, teacher, params, teacher_params, batch):
    def local(mine, target, labels, weights):
        def row(x):
            features, teacher_features, labels, weights = jax.tree.map(lambda x: x[None], x)
            return distillation_loss(
                Predictor(features, mine.head),
                None if target is None else Predictor(teacher_features, target.head),
                labels, weights, temperature=c.loss.temperature, chunk=c.loss.chunk,
            )  # fmt: skip

        teacher_features = None if target is None else target.features
        return jax.lax.map(row, (mine.features, teacher_features, labels, weights))

    mine, target = _predictors(student, teacher, params, teacher_params, batch)
    rows: Any = P(BATCH_AXES)
    whole: Any = P()
    of_model = Predictor(rows, Head(whole, whole))
    found = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_model, None if target is None else of_model, rows, rows),
        out_specs=rows,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )(mine, target, batch.labels, batch.weights)
    found |= {'ids': jnp.where(batch.weights > 0, batch.labels, -1)}
    if batch.source is not None:
        found['source'] = jnp.where(batch.source_segments > 0, batch.source, -1)
    return found


def _predictors(student, teacher, params, teacher_params, batch):
    mine = Predictor(student.features(params, batch), Head(*student.head(params)))
    if teacher is None:
        return mine, None
    features = teacher.features(teacher_params, batch)
    return mine, Predictor(features, Head(*teacher.head(teacher_params)))
