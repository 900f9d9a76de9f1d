"""The step: one gradient on any mesh, compiled once, one reduction, teacher untouched."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding
from lightpaff_jax.batch import Batch
from lightpaff_jax.preflight import hlo
from lightpaff_jax.runtime import fingerprint

BATCH, LENGTH, VOCAB = 16, 24, 200


def configured(mesh=(1, 1, 1), grad_accum_steps=1, remat='none', rows=0, **student):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    c.train.grad_accum_steps, c.train.remat, c.teacher.microbatch_size = (
        grad_accum_steps,
        remat,
        rows,
    )
    c.student.update({'layers': 2, 'width': 32, 'heads': 4, 'ffn': 64, 'vocab_size': VOCAB})
    c.student.update(student)
    c.data.batch_size = BATCH
    c.loss.temperature = 2.0
    c.loss.chunk = 32  # several chunks on each device
    return c


UNTRAINED = ('output_bias/bias',)  # of MASS, a constant of imported checkpoints
# Family and head -> what differs from `configured`.
NETWORKS = {
    'gpt2': {},
    'bert': {'family': 'bert'},
    'classifier': {'family': 'bert', 'head': 'classify', 'classes': 5},
    'mass': {'family': 'mass', 'decoder_layers': 2},
}


def padded_batch(grad_accum_steps=1, kind='gpt2'):
    """Random ids; some positions and two whole examples are padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    predicted = {'gpt2': LENGTH, 'bert': 4, 'classifier': 1, 'mass': LENGTH}[kind]
    weights = (rng.random((BATCH, predicted)) < 0.7).astype(np.float32)
    weights[3:5] = 0
    labels = ids[:, 1 : predicted + 1] % (5 if kind == 'classifier' else VOCAB)
    fields = {'tokens': ids[:, :-1], 'labels': labels, 'weights': weights}
    segments = (np.arange(LENGTH) < rng.integers(8, LENGTH, (BATCH, 1))).astype(np.int32)
    if kind in ('bert', 'classifier'):
        positions = np.arange(predicted) * np.ones((BATCH, 1))
        fields |= {'segments': segments, 'positions': positions.astype(np.int32)}
    if kind == 'mass':
        fields |= {'source': ids[:, ::-1][:, 1:].copy(), 'source_segments': segments}
        fields |= {'position_ids': np.broadcast_to(np.arange(3, LENGTH + 3), segments.shape)}
    parts = (grad_accum_steps, BATCH // grad_accum_steps)
    return Batch(**{k: x.reshape(*parts, x.shape[1]) for k, x in fields.items()})


class Run:
    """Student, teacher and batch of a configuration, placed on its mesh."""

    def __init__(self, c, with_teacher=True, kind='gpt2'):
        self.c = c
        c.student.update(NETWORKS[kind])
        devices = int(np.prod([c.mesh.data, c.mesh.fsdp, c.mesh.tensor]))
        self.mesh = sharding.make_mesh(c, jax.devices()[:devices])
        self.student = networks.student(c)
        shape = config.network(layers=3, width=48, heads=4, ffn=96, vocab_size=VOCAB)
        shape.update(NETWORKS[kind])
        self.teacher = models.build(shape) if with_teacher else None
        self.rule = optimizer.make(c.optim)
        places = distill_step.state_shardings(c, self.mesh, self.student, self.rule)
        self.state = jax.device_put(
            distill_step.init_state(self.student, self.rule, c.seed), places
        )
        self.teacher_params = None
        if with_teacher:
            params = self.teacher.init(jax.random.key(9))
            # Larger weights than a fresh network's, so that teacher and student disagree; at 4 the
            # softmaxes of post-LayerNorm networks saturate, and rounding grows a thousandfold.
            scale = 4 if kind == 'gpt2' else 2
            params = jax.tree.map(lambda x: scale * x, params)
            self.teacher_params = jax.device_put(
                params, sharding.param_shardings(self.mesh, params)
            )
        batch = padded_batch(c.train.grad_accum_steps, kind)
        self.batch = sharding.put_batch(self.mesh, batch, micro=True)

    def gradient(self):
        function = jax.jit(
            distill_step.make_gradient(self.c, self.mesh, self.student, self.teacher)
        )
        arguments = self.state.params, self.teacher_params, self.batch, jax.random.key(0)
        with jax.set_mesh(self.mesh):
            compiled = function.lower(*arguments).compile()
            return jax.device_get(compiled(*arguments)), compiled.as_text()

    def step(self):
        return distill_step.make_step(self.c, self.mesh, self.student, self.teacher, self.rule)


@pytest.fixture(scope='module')
def reference():
    """Sums and gradient on one device, in one piece."""
    return Run(configured()).gradient()[0]


def check_gradient(reference, *settings):
    (sums, grads), _ = Run(configured(*settings)).gradient()
    largest = max(np.abs(x).max() for x in jax.tree.leaves(reference[1]))
    # Sums of a few hundred float32 terms in another order differ by some 1e-7 of the largest.
    chex.assert_trees_all_close(grads, reference[1], rtol=0, atol=1e-5 * largest)
    chex.assert_trees_all_close(sums, reference[0], rtol=1e-5)


@pytest.mark.parametrize(
    ('mesh', 'grad_accum_steps', 'remat'),
    [
        ((1, 1, 1), 4, 'dots'),
        ((8, 1, 1), 1, 'none'),
        ((4, 1, 1), 4, 'block'),
        ((2, 2, 2), 2, 'dots'),
        ((1, 4, 2), 1, 'block'),
    ],
)
def test_gradient_is_the_same_on_every_mesh_split_and_remat(
    reference, mesh, grad_accum_steps, remat
):
    check_gradient(reference, mesh, grad_accum_steps, remat)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize('remat', config.REMAT)
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_gradient_is_the_same_in_each_combination(reference, mesh, grad_accum_steps, remat):
    check_gradient(reference, mesh, grad_accum_steps, remat)


@pytest.mark.parametrize('kind', ['bert', 'classifier', 'mass'])
def test_gradient_of_every_family_is_the_same_on_a_mesh_of_three_axes(kind):
    (sums, grads), _ = Run(configured(), kind=kind).gradient()
    (split_sums, split), _ = Run(configured((2, 2, 2), 2), kind=kind).gradient()
    largest = max(np.abs(x).max() for x in jax.tree.leaves(grads))
    chex.assert_trees_all_close(split, grads, rtol=0, atol=1e-5 * largest)
    chex.assert_trees_all_close(split_sums, sums, rtol=1e-5)
    assert all(np.any(x) for name, x in fingerprint.flatten(grads).items() if name not in UNTRAINED)


@pytest.mark.usefixtures('full_compilation')
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_gradient_is_reduced_once_and_no_chunk_or_micro_batch_communicates(grad_accum_steps):
    _, text = Run(configured((8, 1, 1), grad_accum_steps)).gradient()
    assert [(one.kind, one.loops) for one in hlo.collectives(text)] == [('all-reduce', 0)]
    assert hlo.loops(text) >= 1  # over chunks, at least


@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 4, 2)])
def test_step_compiles_once_and_leaves_the_teacher_as_it_was(mesh):
    run = Run(configured(mesh, 2))
    before = jax.device_get(run.teacher_params)
    step, state = run.step(), run.state
    with jax.set_mesh(run.mesh):
        for _ in range(3):
            state, sums = step(state, run.teacher_params, run.batch)
            jax.block_until_ready(sums)
    assert step._cache_size() == 1
    assert int(state.step) == 3
    chex.assert_trees_all_equal(jax.device_get(run.teacher_params), before)


def test_step_donates_the_state():
    run = Run(configured())
    with jax.set_mesh(run.mesh):
        run.step()(run.state, run.teacher_params, run.batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(run.state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(run.teacher_params))


def test_step_divides_by_the_weights_of_the_whole_batch():
    """A batch of padding besides the same rows changes neither gradient nor update."""
    run, doubled = Run(configured()), Run(configured())
    whole = padded_batch()
    twice = [jnp.concatenate([x, jnp.zeros_like(x)], axis=1) for x in jax.tree.leaves(whole)]
    doubled.batch = jax.tree.unflatten(jax.tree.structure(whole), twice)
    results = []
    for each in (run, doubled):
        with jax.set_mesh(each.mesh):
            results.append(each.step()(each.state, each.teacher_params, each.batch))
    (state, sums), (other_state, other_sums) = results
    chex.assert_trees_all_close(state.params, other_state.params, rtol=0, atol=1e-5)
    assert float(sums['count']) == float(other_sums['count']) == whole.weights.sum()
    np.testing.assert_allclose(sums['grad_norm'], other_sums['grad_norm'], rtol=1e-5)
    assert int(state.step) == int(other_state.step) == 1


def test_dropout_is_a_function_of_the_seed_and_the_step():
    run = Run(configured((2, 1, 1), dropout=0.5), with_teacher=False)
    step, losses = run.step(), []
    for seed, updates in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state = distill_step.init_state(run.student, run.rule, 0)
        state = dataclasses.replace(state, step=jnp.array(updates, jnp.int32))
        hyperparameters = optimizer.hyperparameters(run.c)._replace(seed=np.int32(seed))
        with jax.set_mesh(run.mesh):
            losses.append(float(step(state, None, run.batch, hyperparameters)[1]['loss']))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize(('mesh', 'grad_accum_steps'), [((2, 1, 1), 1), ((1, 1, 1), 2)])
def test_equal_rows_of_two_devices_or_micro_batches_drop_different_features(mesh, grad_accum_steps):
    def loss(rate):
        run = Run(configured(mesh, grad_accum_steps, dropout=rate), with_teacher=False)
        half = jax.tree.map(lambda x: x.reshape(BATCH, -1)[: BATCH // 2], padded_batch())
        twice = jax.tree.map(
            lambda x: jnp.tile(x, (2, 1)).reshape(grad_accum_steps, BATCH // grad_accum_steps, -1),
            half,
        )
        total, alone = run, Run(configured((1, 1, 1), 1, dropout=rate), with_teacher=False)
        alone.batch = jax.tree.map(lambda x: x[None], half)
        total.batch = sharding.put_batch(run.mesh, twice, micro=True)
        return [float(one.gradient()[0][0]['loss']) for one in (total, alone)]

    whole, alone = loss(0.0)
    assert whole == pytest.approx(2 * alone, rel=1e-5)
    whole, alone = loss(0.5)
    assert whole != pytest.approx(2 * alone, rel=1e-5)


@pytest.mark.parametrize(
    ('mesh', 'grad_accum_steps', 'rows'), [((4, 1, 1), 2, 1), ((2, 2, 2), 1, 2)]
)
def test_a_teacher_that_reads_some_rows_at_a_time_says_the_same(
    reference, mesh, grad_accum_steps, rows
):
    check_gradient(reference, mesh, grad_accum_steps, 'none', rows)


def test_without_a_teacher_the_step_has_no_distillation_sums_and_takes_none():
    run = Run(configured(), with_teacher=False)
    with jax.set_mesh(run.mesh):
        _, sums = run.step()(run.state, None, run.batch)
    assert {'loss', 'ce', 'count', 'grad_norm', 'learning_rate'} <= set(sums)
    assert not {'kl', 'agree', 'teacher_ce'} & set(sums)


def test_loss_falls_below_half_when_a_student_learns_one_batch():
    c = configured()
    c.optim.peak_lr, c.train.updates = 1e-2, 100
    run = Run(c, with_teacher=False)
    step, state, losses = run.step(), run.state, []
    with jax.set_mesh(run.mesh):
        for _ in range(60):
            state, sums = step(state, None, run.batch)
            losses.append(float(sums['loss'] / sums['count']))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_one_id_seen_often_add_up_in_float32(dtype):
    """In bfloat16 a sum of 4096 equal terms stops at 256 of them."""
    ids = jnp.full((32, 128), 7)

    def total(table):
        embedding = models.gpt2.layers.Embedding(256, 200, 32, 0.02, nnx.Rngs(0))
        embedding.table = nnx.Param(table)
        return 0.01 * jnp.sum(embedding(ids, jnp.dtype(dtype)), dtype=jnp.float32)

    gradient = jax.grad(total)(jnp.zeros((256, 32)))
    np.testing.assert_allclose(gradient[7], 40.96, rtol=1e-2)
