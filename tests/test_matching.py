"""Matching losses: values and gradients of a dense reference, padding, packing, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightpaff_jax import config, distill_step, matching, models, networks, optimizer, sharding
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.errors import UserError
from lightpaff_jax.matching import PROJECTIONS, Matching, Pair, Tap
from lightpaff_jax.models import layers

ROWS, LENGTH, VOCAB = 16, 12, 96
FAMILIES = ('bert', 'gpt2', 'mass')
WEIGHTS = {'relations': 0.7, 'hidden': 1.3, 'pooled': 0.4}


def network(family, **changes):
    shape = config.network(
        family=family, layers=3, width=24, heads=2, ffn=48, positions=32, vocab_size=VOCAB
    )
    shape.decoder_layers = 3 if family == 'mass' else 0
    shape.update(changes)
    return shape


@functools.cache
def run(family, grad_accum_steps=1, mesh=(1, 1, 1), objective=''):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    c.train.grad_accum_steps, c.data.batch_size = grad_accum_steps, ROWS
    c.objective = objective or {'bert': 'mlm', 'gpt2': 'clm', 'mass': 'mass'}[family]
    c.student.update(network(family, head=config.OBJECTIVES[c.objective].head))
    c.matching.update(WEIGHTS | {'relation_heads': 4, 'pooling': 'mean', 'hidden_layers': ('0=2',)})
    return c


@functools.cache
def student_and_teacher(family, objective=''):
    student = networks.student(run(family, objective=objective))
    wider = network(family, width=48, heads=4, layers=5)
    wider.decoder_layers = 4 if family == 'mass' else 0
    teacher = models.build(wider)
    params = teacher.init(jax.random.key(1))
    # Larger weights make the two networks differ by more than their initial noise.
    return student, teacher, jax.tree.map(lambda x: 2 * x, params)


def padded(family, packed, rows=ROWS):
    """Returns random rows with padding, one of them empty, and two texts per row if `packed`."""
    rng = np.random.default_rng(0)
    shape = ROWS, LENGTH
    ids = [rng.integers(0, VOCAB, shape).astype(np.int32) for _ in range(3)]
    lengths = rng.integers(4, LENGTH + 1, ROWS)
    lengths[2] = 0
    real = np.arange(LENGTH) < lengths[:, None]
    second = np.arange(LENGTH) >= lengths[:, None] // 2
    segments = (real * (1 + (second if packed else 0))).astype(np.int32)
    start = np.where(second, lengths[:, None] // 2, 0) if packed else 0
    position_ids = np.where(real, np.arange(LENGTH) - start, 0).astype(np.int32)
    fields = {'tokens': ids[0], 'labels': ids[1], 'weights': real.astype(np.float32)}
    if family == 'bert':
        fields |= {'segments': segments, 'positions': np.arange(LENGTH) * np.ones(shape, np.int32)}
        fields['positions'] = fields['positions'].astype(np.int32)
    if family == 'mass':
        fields |= {'source': ids[2], 'source_segments': segments}
    if packed:
        fields |= {'segments': segments, 'position_ids': position_ids}
    return Batch(**{k: x[:rows] for k, x in fields.items()})


def segments_of(batch, stack):
    if stack == 'encoder' and batch.source is not None:
        return np.asarray(batch.source_segments)
    return np.asarray(batch.weights > 0 if batch.segments is None else batch.segments).astype(int)


def dense_term(losses, name, pair, projections, taps, teacher_taps, batch):
    """Returns sum and count of one term, text by text, from arrays of the whole batch."""
    segments, total, count = segments_of(batch, pair.stack), 0.0, 0
    for text in sorted({*segments.ravel().tolist()} - {0}):
        inside = segments == text
        if name == 'relations':
            keep = inside[:, :, None] & inside[:, None, :]
            keep = (np.tril(keep) if pair.stack == 'decoder' else keep)[:, None]
            keep = np.repeat(keep, losses.relation_heads, axis=1)
            for kind in ('queries', 'keys', 'values'):
                x = taps[Tap(pair.stack, pair.student, kind)]
                y = teacher_taps[Tap(pair.stack, pair.teacher, kind)]
                p, q = (dense_relations(z, losses.relation_heads, keep) for z in (x, y))
                total += jnp.sum(jnp.where(keep, q * (jnp.log(q) - jnp.log(p)), 0))
            count += 3 * losses.relation_heads * inside.sum()
            continue
        x = taps[Tap(pair.stack, pair.student, 'hidden')]
        y = teacher_taps[Tap(pair.stack, pair.teacher, 'hidden')]
        if name == 'pooled':
            first = np.cumsum(inside, axis=1) * inside == 1
            weights = inside if losses.pooling == 'mean' else first
            weights = weights / np.maximum(weights.sum(1, keepdims=True), 1)
            x, y = (jnp.einsum('bt,btd->bd', weights, z)[:, None] for z in (x, y))
            inside = inside.any(1, keepdims=True)
        layer = projections[name][f'{pair.stack}_{pair.student}_{pair.teacher}']
        error = x @ layer['kernel'] + layer['bias'] - y
        total += jnp.sum(jnp.mean(error**2, axis=-1)[inside])
        count += inside.sum()
    return total, count


def dense_relations(x, heads, keep):
    """Returns the distributions of a text; 1 outside of it, whose logarithm has a gradient."""
    split = x.reshape(*x.shape[:2], heads, -1)
    scores = jnp.einsum('btrk,bsrk->brts', split, split) / split.shape[-1] ** 0.5
    exps = jnp.where(keep, jnp.exp(scores), 0)
    total = jnp.sum(exps, axis=-1, keepdims=True)
    return jnp.where(keep, exps / jnp.where(total > 0, total, 1), 1)


def dense_loss(losses, params, projections, family, batch):
    """Returns the weighted sum of the means of all terms."""
    student, teacher, teacher_params = student_and_teacher(family)
    _, taps = student.features(params, batch, taps=losses.student_taps)
    _, teacher_taps = teacher.features(teacher_params, batch, taps=losses.teacher_taps)
    loss = 0.0
    for name, weight in losses.weights.items():
        terms = [
            dense_term(losses, name, pair, projections, taps, teacher_taps, batch)
            for pair in losses.pairs[name]
        ]
        loss += weight * sum(total for total, _ in terms) / sum(count for _, count in terms)
    return loss


@functools.cache
def losses_of(family, pooling='mean'):
    c = config.copy(run(family))
    c.matching.pooling = pooling
    return networks.matching_losses(c, student_and_teacher(family)[1].network)


def params_of(family):
    student, losses = student_and_teacher(family)[0], losses_of(family)
    projections = losses.init(jax.random.key(2))[PROJECTIONS]
    return student.init(jax.random.key(0)), jax.tree.map(lambda x: x + 0.1, projections)


def assert_close(actual, expected, tolerance):
    """Compares trees of arrays; the tolerance is a share of the largest expected value."""
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    ('family', 'packed'),
    [
        ('bert', True),
        ('gpt2', False),
        pytest.param('mass', True, marks=pytest.mark.slow),
        pytest.param('bert', False, marks=pytest.mark.slow),
        pytest.param('gpt2', True, marks=pytest.mark.slow),
        pytest.param('mass', False, marks=pytest.mark.slow),
    ],
)
def test_matching_losses_equal_a_dense_reference(family, packed, monkeypatch):
    # Two rows a visit, so that the sum over visits is part of the test.
    monkeypatch.setattr(matching, '_MAX_VALUES', 2 * 48 * LENGTH)
    batch = padded(family, packed, rows=4)
    student, teacher, teacher_params = student_and_teacher(family)
    losses = losses_of(family, 'first' if packed else 'mean')

    def loss(params, projections):
        _, taps = student.features(params, batch, taps=losses.student_taps)
        _, teacher_taps = teacher.features(teacher_params, batch, taps=losses.teacher_taps)
        sums = losses.sums(projections, taps, teacher_taps, batch)
        return sum(
            weight * sums[name] / sums[f'{name}_count'] for name, weight in losses.weights.items()
        )

    def expected_loss(params, projections):
        return dense_loss(losses, params, projections, family, batch)

    arguments = params_of(family)
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    expected, expected_grads = jax.jit(jax.value_and_grad(expected_loss, (0, 1)))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(grads, expected_grads, 1e-4)
    assert np.any(jax.tree.leaves(grads[1])[0])


@functools.cache
def step_gradient(family, grad_accum_steps=1, mesh=(1, 1, 1), objective=''):
    """Returns sums and gradient of the step."""
    c = run(family, grad_accum_steps, mesh, objective)
    student, teacher, teacher_params = student_and_teacher(family, objective)
    losses = networks.matching_losses(c, teacher.network)
    devices = sharding.make_mesh(c, jax.devices()[: int(np.prod(mesh))])
    rule = optimizer.make(c.optim)
    state = distill_step.init_state(student, rule, 0, losses)
    shardings = distill_step.state_shardings(c, devices, student, rule, losses)
    micro = (grad_accum_steps, ROWS // grad_accum_steps)
    fields = padded(family, packed=True)
    if objective == 'match':
        ones = np.ones((ROWS, 1), np.float32)
        fields = Batch(
            tokens=fields.tokens,
            labels=0 * ones.astype(np.int32),
            weights=ones,
            positions=0 * ones.astype(np.int32),
            segments=fields.segments,
            position_ids=fields.position_ids,
        )
    batch = jax.tree.map(lambda x: x.reshape(*micro, x.shape[-1]), fields)
    with jax.set_mesh(devices):
        gradient = jax.jit(distill_step.make_gradient(c, devices, student, teacher, losses))
        params = jax.device_put(state.params, shardings.params)
        placed = jax.device_put(teacher_params, sharding.param_shardings(devices, teacher_params))
        batch = sharding.put_batch(devices, batch, micro=True)
        return jax.device_get(gradient(params, placed, batch, jax.random.key(0)))


@pytest.mark.parametrize(
    ('family', 'grad_accum_steps', 'mesh'),
    [
        ('bert', 2, (8, 1, 1)),
        ('bert', 1, (2, 2, 2)),
        pytest.param('gpt2', 2, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param('gpt2', 1, (8, 1, 1), marks=pytest.mark.slow),
        pytest.param('mass', 2, (8, 1, 1), marks=pytest.mark.slow),
        pytest.param('mass', 1, (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_step_with_matching_is_equal_on_meshes(family, grad_accum_steps, mesh):
    expected_sums, expected = step_gradient(family)
    sums, grads = step_gradient(family, grad_accum_steps, mesh)
    # The order of float32 sums differs.
    assert_close(grads, expected, 1e-5)
    for name, value in expected_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
    assert {*WEIGHTS} <= {*sums}


def test_step_of_match_adds_the_weighted_means():
    sums, grads = step_gradient('bert', objective='match')
    terms = sum(w * sums[name] / sums[f'{name}_count'] for name, w in WEIGHTS.items())
    np.testing.assert_allclose(sums['loss'] / sums['count'], terms, rtol=1e-5)
    assert sums['count'] == ROWS
    assert not np.any(grads['pooler']['kernel'])  # no prediction has a gradient
    assert np.any(grads[PROJECTIONS]['hidden']['encoder_0_2']['kernel'])


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_teacher_as_student_has_no_loss_and_no_gradient(stack):
    losses = Matching(WEIGHTS, dict.fromkeys(WEIGHTS, (Pair(stack, 1, 1),)), 4, 'mean', (24, 24))
    batch = padded('bert', packed=True)
    shapes = {tap: (24,) if tap.kind == 'hidden' else (2, 12) for tap in losses.student_taps}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    taps = {
        tap: jax.random.normal(key, (ROWS, LENGTH, *shape))
        for key, (tap, shape) in zip(keys, shapes.items(), strict=True)
    }
    projections = losses.init(jax.random.key(1))[PROJECTIONS]

    @jax.jit
    @jax.grad
    def gradient(taps, teacher_taps):
        sums = losses.sums(projections, taps, teacher_taps, batch)
        return sum(sums[name] / sums[f'{name}_count'] for name in WEIGHTS)

    others = {tap: x[::-1] for tap, x in taps.items()}
    own, other = ([*gradient(taps, x).values()] for x in (taps, others))
    # The same numbers in two parts of a program differ by rounding.
    assert max(jnp.abs(x).max() for x in own) < 1e-5 * max(jnp.abs(x).max() for x in other)
    sums = losses.sums(projections, taps, taps, batch)
    assert all(abs(sums[name] / sums[f'{name}_count']) < 1e-6 for name in WEIGHTS)


@pytest.mark.parametrize('family', FAMILIES)
def test_taps_leave_the_features_as_they_are(family):
    student, _, _ = student_and_teacher(family)
    params, batch = student.init(jax.random.key(0)), padded(family, packed=True, rows=2)
    taps = losses_of(family).student_taps
    features, activations = student.features(params, batch, taps=taps)
    assert {*activations} == {*taps}
    np.testing.assert_allclose(features, student.features(params, batch), atol=1e-5)


def test_projections_belong_to_no_network():
    student, losses = student_and_teacher('bert')[0], losses_of('bert')
    state = distill_step.init_state(student, optimizer.make(config.default().optim), 0, losses)
    network_params, projections = matching.split_params(state.params)
    assert PROJECTIONS not in student.abstract_params
    assert jax.tree.structure(network_params) == jax.tree.structure(student.abstract_params)
    assert {*projections} == {'hidden', 'pooled'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'hidden': 1.0, 'hidden_layers': ('1=9',)}, "the teacher's encoder, 0 to 4"),
        ({'relations': 1.0, 'relation_heads': 12}, 'must divide the width of the teacher = 40'),
    ],
)
def test_layers_and_heads_the_teacher_lacks_are_refused(changes, message):
    c = config.default()
    c.student.update(network('bert'))
    c.matching.update(changes)
    with pytest.raises(UserError, match=message):
        networks.matching_losses(c, network('bert', layers=5, width=40))


def test_other_padding_changes_no_term():
    losses, batch = losses_of('bert'), padded('bert', packed=False)
    keys = iter(jax.random.split(jax.random.key(3), 20))
    real = (batch.segments > 0).reshape(ROWS, LENGTH, 1)

    def activations(taps, width):
        shapes = {tap: (width,) if tap.kind == 'hidden' else (2, width // 2) for tap in taps}
        return {tap: jax.random.normal(next(keys), (ROWS, LENGTH, *x)) for tap, x in shapes.items()}

    def with_padding(taps, value):
        return {
            t: jnp.where(real.reshape(ROWS, LENGTH, *[1] * (x.ndim - 2)), x, value)
            for t, x in taps.items()
        }

    both = activations(losses.student_taps, 24), activations(losses.teacher_taps, 48)
    projections = losses.init(next(keys))[PROJECTIONS]
    results = [
        jax.device_get(losses.sums(projections, *(with_padding(x, value) for x in both), batch))
        for value in (0.0, 7.0)
    ]
    assert results[0] == results[1]


def test_flops_of_a_tapped_last_block_are_whole():
    student, teacher, _ = student_and_teacher('bert')
    losses, shape = losses_of('bert'), Shape(LENGTH, 1)
    plain, tapped = (networks.update_flops(student, teacher, x, shape) for x in (None, losses))
    block = layers.block_flops(student.network, LENGTH)
    skipped = block - layers.block_flops(student.network, LENGTH, 1)
    assert tapped.student - plain.student == pytest.approx(3 * skipped + losses.flops(shape))
    # relations of three kinds, two hidden pairs and one pooled pair of widths 24 and 48
    terms = 3 * LENGTH**2 * (3 * 24 + 48) + 3 * 2 * LENGTH * 24 * 48
    assert losses.flops(shape) == 2 * terms
