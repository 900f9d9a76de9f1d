"""The loss under other chunks, padding, parts and devices; its products, traffic and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loss_reference as reference
from helpers.losses import (
    D_TEACHER,
    POSITIONS,
    B,
    D,
    V,
    assert_close,
    dense,
    fused,
    loss_sums,
    make,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from lightpaff_jax.losses import Head, Predictor, automatic_chunk, distillation_loss
from lightpaff_jax.preflight import hlo

pytestmark = pytest.mark.usefixtures('full_compilation')

# Invariance


@pytest.mark.parametrize('chunk', [0, 1, 7, 41])
def test_chunk_size_changes_rounding_only(chunk):
    inputs = make(14)
    assert B * POSITIONS == 40
    assert_close(fused(*inputs, chunk=chunk), dense(*inputs))


def test_padding_changes_rounding_only():
    student, teacher, labels, weights = inputs = make(15)
    (value, sums), gradient = fused(*inputs, temperature=2.0)

    def pad(x, fill):
        widths = [(0, 3), (0, 4)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=fill)

    padded = fused(
        Predictor(pad(student.features, 7.0), student.head),
        Predictor(pad(teacher.features, -7.0), teacher.head),
        pad(labels, 1),
        pad(weights, 0.0),
        temperature=2.0,
    )
    features = padded[1].features
    assert np.all(features[B:] == 0)
    assert np.all(features[:, POSITIONS:] == 0)
    assert_close(
        (*padded[0], Predictor(features[:B, :POSITIONS], padded[1].head)), (value, sums, gradient)
    )


def test_batch_of_padding_has_zero_loss_and_gradient():
    student, teacher, labels, weights = make(16)
    for other in (teacher, None):
        actual = fused(student, other, labels, np.zeros_like(weights))
        assert all(np.all(x == 0) for x in jax.tree.leaves(actual))


def test_sums_and_gradients_of_parts_add_up():
    student, teacher, labels, weights = inputs = make(17)
    lambda_ = np.linspace(0, 1, B, dtype=np.float32)
    parts = []
    for rows in (slice(0, 3), slice(3, B)):
        predictors = (Predictor(p.features[rows], p.head) for p in (student, teacher))
        parts.append(fused(*predictors, labels[rows], weights[rows], lambda_=lambda_[rows]))
    added = jax.tree.map(lambda *x: sum(x), *((p[0], p[1].head) for p in parts))
    features = np.concatenate([p[1].features for p in parts])
    whole = fused(*inputs, lambda_=lambda_)
    assert_close((added[0], Predictor(features, added[1])), whole)


def test_vocabulary_padding_has_no_effect_and_no_gradient():
    student, teacher, labels, weights = inputs = make(18)

    def pad(predictor, extra=13):
        weight = np.pad(predictor.head.weight, [(0, extra), (0, 0)], constant_values=1.0)
        bias = np.pad(predictor.head.bias, [(0, extra)], constant_values=-1e9)
        return Predictor(predictor.features, Head(weight, bias))

    for other in (teacher, None):
        actual, gradient = fused(
            pad(student), other and pad(other), labels, weights, temperature=2.0
        )
        assert np.all(gradient.head.weight[V:] == 0)
        assert np.all(gradient.head.bias[V:] == 0)
        head = jax.tree.map(lambda x: x[:V], gradient.head)
        whole = fused(student, other, *inputs[2:], temperature=2.0)
        assert_close((actual, Predictor(gradient.features, head)), whole)


def mesh_of(data, fsdp, tensor):
    return jax.make_mesh(
        (data, fsdp, tensor),
        ('data', 'fsdp', 'tensor'),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[: data * fsdp * tensor],
    )


def shardings(mesh):
    rows, head = P(('data', 'fsdp')), Head(P('tensor', 'fsdp'), P('tensor'))
    of_model = Predictor(rows, head)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        (of_model, of_model, rows, rows),
        is_leaf=lambda x: isinstance(x, P),
    )


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 1), (8, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_device_count_changes_rounding_only(shape):
    inputs = make(19, vocabulary=64)  # divisible by tensor = 2
    mesh = mesh_of(*shape)
    with jax.set_mesh(mesh):
        inputs_on_mesh = jax.device_put(inputs, shardings(mesh))
        actual = jax.block_until_ready(fused(*inputs_on_mesh, chunk=3, temperature=2.0))
    assert_close(actual, dense(*inputs, temperature=2.0))


def test_device_count_changes_no_sum_without_gradient():
    inputs = make(19, vocabulary=64)
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        inputs_on_mesh = jax.device_put(inputs, shardings(mesh))
        actual = jax.block_until_ready(loss_sums(*inputs_on_mesh, temperature=2.0))
    assert_close(actual, loss_sums(*inputs, temperature=2.0))


# Cost


def abstract(shape, vocabulary, width, teacher_width):
    def predictor(width):
        return Predictor(
            jax.ShapeDtypeStruct((*shape, width), jnp.float32),
            Head(
                jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
                jax.ShapeDtypeStruct((vocabulary,), jnp.float32),
            ),
        )

    return (
        predictor(width),
        predictor(teacher_width),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )


def equations(jaxpr):
    """Yields all equations of a jaxpr and its inner jaxprs; the body of a loop counts once."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


def products(function, *inputs):
    """Returns the result shapes of all products of two matrices, not of a vector and a matrix."""
    all_equations = equations(jax.make_jaxpr(function)(*inputs).jaxpr)
    shapes = [
        eqn.outvars[0].aval.shape for eqn in all_equations if eqn.primitive.name == 'dot_general'
    ]
    return sorted(shape for shape in shapes if len(shape) > 1)


def test_gradient_has_four_products_and_value_two():
    inputs = make()
    logits, hidden, head = (16, V), (16, D), (V, D)

    def value(student, teacher):
        return distillation_loss(student, teacher, *inputs[2:], chunk=16)['loss']

    student, teacher = inputs[:2]
    assert products(value, student, teacher) == [logits] * 2
    assert products(lambda s: value(s, None), student) == [logits]
    assert products(jax.grad(value), student, teacher) == sorted([logits, logits, hidden, head])
    assert products(jax.grad(lambda s: value(s, None)), student) == sorted([logits, hidden, head])


@pytest.mark.parametrize('shape', [(8, 1, 1), (4, 2, 1)])
def test_devices_communicate_outside_the_chunk_loop_only(shape):
    inputs = abstract((B, 16), 64, D, D_TEACHER)
    mesh = mesh_of(*shape)
    with jax.set_mesh(mesh):
        inputs = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), inputs, shardings(mesh)
        )
        text = fused.lower(*inputs, chunk=8).compile().as_text()
    actual = hlo.collectives(text)
    assert hlo.loops(text) >= 1
    assert 'all-reduce' in {x.kind for x in actual}
    assert not any(x.loops for x in actual)


def test_collective_in_a_loop_is_detected():
    mesh = mesh_of(8, 1, 1)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P('data'), out_specs=P(), check_vma=False)
    def every_step(rows):
        return jax.lax.scan(lambda c, row: (c + jax.lax.psum(row, 'data'), None), rows[0], rows)[0]

    text = every_step.lower(jnp.ones((8 * 64, 256))).compile().as_text()
    assert hlo.loops(text) == 1
    assert 'all-reduce' in {x.kind for x in hlo.collectives(text) if x.loops == 1}


def test_memory_is_below_a_twentieth_of_dense_autodiff():
    inputs = abstract((8, 1024), 50304, 768, 1024)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    options = {'in_shardings': device, 'out_shardings': device}

    def temporary(loss):
        value_and_grad = jax.value_and_grad(lambda *inputs: loss(*inputs)['loss'])
        compiled = jax.jit(value_and_grad, **options).lower(*inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    dense_bytes, fused_bytes = temporary(reference.sums), temporary(distillation_loss)
    assert dense_bytes > 2 * 4 * 8192 * 50304  # at least the logits of both
    assert fused_bytes <= dense_bytes / 20, (fused_bytes, dense_bytes)


@pytest.mark.parametrize('width', [8, 768, 1 << 18])
def test_automatic_chunk_shrinks_with_the_vocabulary(width):
    sizes = [automatic_chunk(v, width) for v in (2, 30522, 50304, 250_000, 10**9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 16
    assert all(size & (size - 1) == 0 for size in sizes)
    assert all(
        size * v <= 1 << 24 for size, v in zip(sizes[:4], (2, 30522, 50304, 250_000), strict=True)
    )


@pytest.mark.parametrize(
    ('vocabulary', 'width', 'chunk'),
    [
        (8192, 200, 128),  # as wide as the features
        (50304, 1024, 256),  # limited by the number of logits
        (2048, 88, 128),  # at least 2^18 logits
    ],
)
def test_automatic_chunk_is_the_width_within_limits(vocabulary, width, chunk):
    assert automatic_chunk(vocabulary, width) == chunk
