"""The step: one gradient on any mesh, compiled once, one reduction, teacher untouched."""

import dataclasses
import functools
import math

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
UNTRAINED = ('output_bias/bias',)  # of MASS, a constant of imported checkpoints
NETWORKS = {
    'gpt2': {},
    'bert': {'family': 'bert'},
    'classifier': {'family': 'bert', 'head': 'classify', 'classes': 5},
    'mass': {'family': 'mass', 'decoder_layers': 2},
}


def padded_batch(grad_accum_steps=1, network='gpt2'):
    """Returns random ids; some positions and two whole examples are padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    predicted = {'gpt2': LENGTH, 'bert': 4, 'classifier': 1, 'mass': LENGTH}[network]
    weights = (rng.random((BATCH, predicted)) < 0.7).astype(np.float32)
    weights[3:5] = 0
    labels = ids[:, 1 : predicted + 1] % (5 if network == 'classifier' else VOCAB)
    fields = {'tokens': ids[:, :-1], 'labels': labels, 'weights': weights}
    segments = (np.arange(LENGTH) < rng.integers(8, LENGTH, (BATCH, 1))).astype(np.int32)
    if network in ('bert', 'classifier'):
        positions = np.arange(predicted) * np.ones((BATCH, 1))
        fields |= {'segments': segments, 'positions': positions.astype(np.int32)}
    if network == 'mass':
        fields |= {'source': ids[:, ::-1][:, 1:].copy(), 'source_segments': segments}
        fields |= {'position_ids': np.broadcast_to(np.arange(3, LENGTH + 3), segments.shape)}
    parts = (grad_accum_steps, BATCH // grad_accum_steps)
    return Batch(**{k: x.reshape(*parts, x.shape[1]) for k, x in fields.items()})


class Setup:
    """Student, teacher and step of a configuration on its mesh. `setup` shares them."""

    def __init__(self, mesh, grad_accum_steps, remat, rows, network, has_teacher, dropout):
        c = self.c = config.default()
        c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
        c.train.update({'grad_accum_steps': grad_accum_steps, 'remat': remat})
        c.teacher.microbatch_size = rows
        c.student.update({'layers': 2, 'width': 32, 'heads': 4, 'ffn': 64, 'vocab_size': VOCAB})
        c.student.update(NETWORKS[network] | {'dropout': dropout})
        c.data.batch_size = BATCH
        c.loss.temperature = 2.0
        c.loss.chunk = 32  # several chunks on each device
        self.network = network
        self.mesh = sharding.make_mesh(c, jax.devices()[: int(np.prod(mesh))])
        self.student = networks.student(c)
        self.rule = optimizer.make(c.optim)
        self.teacher, self.teacher_params = None, None
        if has_teacher:
            self.teacher, params = teacher_of(network)
            places = sharding.param_shardings(self.mesh, params)
            self.teacher_params = jax.device_put(params, places)

    def state(self):
        shardings = distill_step.state_shardings(self.c, self.mesh, self.student, self.rule)
        # The step donates its state, so each call copies the shared arrays.
        return jax.device_put(jax.tree.map(jnp.copy, initial_state(self.network)), shardings)

    def batch(self):
        batch = padded_batch(self.c.train.grad_accum_steps, self.network)
        return sharding.put_batch(self.mesh, batch, micro=True)

    def compile_gradient(self, batch, **options):
        function = distill_step.make_gradient(self.c, self.mesh, self.student, self.teacher)
        arguments = self.state().params, self.teacher_params, batch, jax.random.key(0)
        with jax.set_mesh(self.mesh):
            return jax.jit(function).lower(*arguments).compile(options), arguments

    def gradient(self, batch=None):
        compiled, arguments = self.compile_gradient(self.batch() if batch is None else batch)
        return jax.device_get(compiled(*arguments))

    @functools.cached_property
    def step(self):
        step = distill_step.make_step(self.c, self.mesh, self.student, self.teacher, self.rule)

        def call(*arguments):
            with jax.set_mesh(self.mesh):
                return step(*arguments)

        call.programs = step._cache_size
        return call


@functools.cache
def setup(
    mesh=(1, 1, 1),
    grad_accum_steps=1,
    remat='none',
    rows=0,
    network='gpt2',
    has_teacher=True,
    dropout=0.0,
):
    return Setup(mesh, grad_accum_steps, remat, rows, network, has_teacher, dropout)


@functools.cache
def initial_state(network):
    first = setup(network=network, has_teacher=False)
    return distill_step.init_state(first.student, first.rule, first.c.seed)


@functools.cache
def teacher_of(network):
    shape = config.network(layers=3, width=48, heads=4, ffn=96, vocab_size=VOCAB)
    shape.update(NETWORKS[network])
    model = models.build(shape)
    # Weights above their initial size make teacher and student disagree. At 4 the softmaxes of
    # post-LayerNorm networks saturate, and rounding grows a thousandfold.
    scale = 4 if network == 'gpt2' else 2
    return model, jax.tree.map(lambda x: scale * x, model.init(jax.random.key(9)))


@functools.cache
def reference(network='gpt2'):
    """Returns sums and gradient on one device, without micro-batches."""
    return setup(network=network).gradient()


def check_gradient(mesh, grad_accum_steps, remat='none', rows=0, network='gpt2'):
    expected_sums, expected = reference(network)
    sums, grads = setup(mesh, grad_accum_steps, remat, rows, network).gradient()
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    # Sums of a few hundred float32 terms in another order differ by some 1e-7 of the largest.
    chex.assert_trees_all_close(grads, expected, rtol=0, atol=1e-5 * largest)
    chex.assert_trees_all_close(sums, expected_sums, rtol=1e-5)
    return grads


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
def test_gradient_is_equal_for_meshes_microbatches_and_remat(mesh, grad_accum_steps, remat):
    check_gradient(mesh, grad_accum_steps, remat)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize('remat', config.REMAT)
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_gradient_is_equal_in_each_combination(mesh, grad_accum_steps, remat):
    check_gradient(mesh, grad_accum_steps, remat)


@pytest.mark.parametrize(
    'network', ['bert', 'classifier', pytest.param('mass', marks=pytest.mark.slow)]
)
def test_gradient_of_each_family_is_equal_on_three_axes(network):
    grads = check_gradient((2, 2, 2), 2, network=network)
    assert all(np.any(x) for name, x in fingerprint.flatten(grads).items() if name not in UNTRAINED)


@pytest.mark.usefixtures('full_compilation')
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_gradient_is_reduced_once_outside_all_loops(grad_accum_steps):
    case = Setup((8, 1, 1), grad_accum_steps, 'none', 0, 'gpt2', True, 0.0)
    # The level changes the machine code only, not the HLO that the test reads.
    text = case.compile_gradient(case.batch(), xla_backend_optimization_level=0)[0].as_text()
    assert [(x.kind, x.loops) for x in hlo.collectives(text)] == [('all-reduce', 0)]
    assert hlo.loops(text) >= 1  # the loop over chunks, at least


@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 4, 2)])
def test_step_compiles_once_and_keeps_the_teacher(mesh):
    case = setup(mesh, 2)
    before = jax.device_get(case.teacher_params)
    state, batch = case.state(), case.batch()
    for _ in range(3):
        state, sums = case.step(state, case.teacher_params, batch)
        jax.block_until_ready(sums)
    assert case.step.programs() == 1
    assert int(state.step) == 3
    chex.assert_trees_all_equal(jax.device_get(case.teacher_params), before)


def test_step_donates_the_state():
    case = setup()
    state = case.state()
    case.step(state, case.teacher_params, case.batch())
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(case.teacher_params))


def test_step_divides_by_the_total_weight():
    """Additional rows of padding change neither gradient nor update."""
    case, batch = setup(), padded_batch()
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)], axis=1), batch)
    (state, sums), (other_state, other_sums) = (
        case.step(case.state(), case.teacher_params, x) for x in (case.batch(), doubled)
    )
    chex.assert_trees_all_close(state.params, other_state.params, rtol=0, atol=1e-5)
    assert float(sums['count']) == float(other_sums['count']) == batch.weights.sum()
    np.testing.assert_allclose(sums['grad_norm'], other_sums['grad_norm'], rtol=1e-5)
    assert int(state.step) == int(other_state.step) == 1


def bad_batch(case):
    """Returns a batch whose loss is NaN, for one position of one example."""
    batch = padded_batch(case.c.train.grad_accum_steps)
    weights = batch.weights.copy()
    weights[-1, -1, -1] = math.nan
    return sharding.put_batch(case.mesh, dataclasses.replace(batch, weights=weights), micro=True)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
@pytest.mark.parametrize(('mesh', 'grad_accum_steps'), [((1, 1, 1), 1), ((1, 4, 2), 2)])
def test_bad_step_changes_no_parameter_and_no_moment(mesh, grad_accum_steps, kind):
    case = setup(mesh, grad_accum_steps)
    state, _ = case.step(case.state(), case.teacher_params, case.batch())
    batch = bad_batch(case)
    if kind == 'gradient':  # its squares overflow, the loss does not
        state.params['norm']['scale'] *= 1e25
        batch = case.batch()
    kept = bits((state.params, state.opt_state))
    for count in (1, 2):
        state, sums = case.step(state, case.teacher_params, batch)
        assert bits((state.params, state.opt_state)) == kept
        assert (int(state.bad_steps), int(state.step)) == (count, 1 + count)
        assert not np.isfinite(sums['grad_norm'])
        assert np.isfinite(sums['mean_loss']) == (kind == 'gradient')
        sums = {name: float(x) for name, x in sums.items() if name not in distill_step.RATES}
        assert sums.pop('skipped') == 1
        assert {*sums.values()} == {0}


def test_good_step_after_bad_steps_is_that_of_its_number():
    case = setup((2, 1, 1), has_teacher=False, dropout=0.5)
    expected, _ = case.step(
        dataclasses.replace(case.state(), step=jnp.int32(2)), None, case.batch()
    )
    state = case.state()
    for batch in (bad_batch(case), bad_batch(case), case.batch()):
        state, sums = case.step(state, None, batch)
    assert bits(state) == bits(expected)
    assert int(state.bad_steps) == float(sums['skipped']) == 0


def test_dropout_is_a_function_of_seed_and_step():
    case, losses = setup((2, 1, 1), has_teacher=False, dropout=0.5), []
    for seed, updates in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state = dataclasses.replace(case.state(), step=jnp.array(updates, jnp.int32))
        hyperparameters = optimizer.hyperparameters(case.c)._replace(seed=np.int32(seed))
        losses.append(float(case.step(state, None, case.batch(), hyperparameters)[1]['loss']))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def half_batch():
    return jax.tree.map(lambda x: x.reshape(BATCH, -1)[: BATCH // 2], padded_batch())


@functools.cache
def loss_of_half_batch(dropout):
    batch = jax.tree.map(lambda x: x[None], half_batch())
    sums, _ = setup(has_teacher=False, dropout=dropout).gradient(batch)
    return float(sums['loss'])


@pytest.mark.parametrize(('mesh', 'grad_accum_steps'), [((2, 1, 1), 1), ((1, 1, 1), 2)])
def test_dropout_differs_between_devices_and_microbatches(mesh, grad_accum_steps):
    shape = grad_accum_steps, BATCH // grad_accum_steps, -1
    twice = jax.tree.map(lambda x: jnp.tile(x, (2, 1)).reshape(shape), half_batch())

    def loss_of_repeated_rows(dropout):
        case = setup(mesh, grad_accum_steps, has_teacher=False, dropout=dropout)
        batch = sharding.put_batch(case.mesh, twice, micro=True)
        return float(case.gradient(batch)[0]['loss'])

    assert loss_of_repeated_rows(0.0) == pytest.approx(2 * loss_of_half_batch(0.0), rel=1e-5)
    assert loss_of_repeated_rows(0.5) != pytest.approx(2 * loss_of_half_batch(0.5), rel=1e-5)


@pytest.mark.parametrize(
    ('mesh', 'grad_accum_steps', 'rows'), [((4, 1, 1), 2, 1), ((2, 2, 2), 1, 2)]
)
def test_teacher_microbatches_change_no_gradient(mesh, grad_accum_steps, rows):
    check_gradient(mesh, grad_accum_steps, rows=rows)


def test_step_without_a_teacher_has_no_distillation_sums():
    case = setup(has_teacher=False)
    hyperparameters = optimizer.hyperparameters(case.c)
    _, sums = case.step(case.state(), None, case.batch(), hyperparameters)
    assert {'loss', 'ce', 'count', 'grad_norm', 'learning_rate'} <= set(sums)
    assert not {'kl', 'agree', 'teacher_ce'} & set(sums)


def test_loss_on_one_batch_falls_below_half():
    case, losses = setup(has_teacher=False), []
    hyperparameters = optimizer.hyperparameters(case.c)
    hyperparameters = hyperparameters._replace(peak_lr=np.float32(1e-2), updates=np.int32(100))
    state, batch = case.state(), case.batch()
    for _ in range(60):
        state, sums = case.step(state, None, batch, hyperparameters)
        losses.append(float(sums['loss'] / sums['count']))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embedding_gradients_add_up_in_float32(dtype):
    """In bfloat16 a sum of 4096 equal terms would stop at 256 of them."""
    ids = jnp.full((32, 128), 7)

    def total(table):
        embedding = models.gpt2.layers.Embedding(256, 200, 32, 0.02, nnx.Rngs(0))
        embedding.table = nnx.Param(table)
        return 0.01 * jnp.sum(embedding(ids, jnp.dtype(dtype)), dtype=jnp.float32)

    gradient = jax.grad(total)(jnp.zeros((256, 32)))
    np.testing.assert_allclose(gradient[7], 40.96, rtol=1e-2)
