"""The fused loss equals the formula and rejects inconsistent arguments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import loss_reference as reference
from helpers.losses import (
    EXACT,
    POSITIONS,
    B,
    D,
    V,
    assert_close,
    dense,
    fused,
    loss_sums,
    make,
    predictor,
)

from lightpaff_jax.losses import Head, Predictor, _by_comparison, _by_index, distillation_loss

# The formula


@pytest.mark.parametrize('temperature', [1.0, 2.0, 8.0])
@pytest.mark.parametrize('lambda_', [0.0, 0.5, 1.0])
def test_value_sums_and_gradient_equal_dense_autodiff(lambda_, temperature):
    inputs, options = make(), {'lambda_': lambda_, 'temperature': temperature}
    assert_close(fused(*inputs, **options), dense(*inputs, **options))


def test_lambda_may_vary_per_example():
    lambda_ = np.linspace(0, 1, B, dtype=np.float32)
    options = {'lambda_': lambda_, 'temperature': 2.0}
    inputs = make(1)
    assert_close(fused(*inputs, **options), dense(*inputs, **options))
    together = fused(*inputs, **options)[1].features
    for i in (0, 3, 7):
        row = slice(i, i + 1)
        predictors = (Predictor(p.features[row], p.head) for p in inputs[:2])
        single = fused(*predictors, *(x[row] for x in inputs[2:]), lambda_[i], temperature=2.0)
        assert_close(together[row], single[1].features)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 8.0])
def test_gradient_equals_the_closed_form(temperature):
    student, teacher, labels, weights = inputs = make(2)
    s, t, labels, weights, head = reference.float64(
        (
            student.features @ student.head.weight.T + student.head.bias,
            teacher.features @ teacher.head.weight.T + teacher.head.bias,
            labels,
            weights,
            student.head,
        )
    )

    def softmax(x):
        return np.exp(reference.log_softmax(np, x))

    lambda_ = np.where(labels >= 0, 0.3, 1.0)[..., None]
    onehot = labels[..., None] == np.arange(V)
    logits_gradient = weights[..., None] * (
        (1 - lambda_) * (softmax(s) - onehot)
        + lambda_ * temperature * (softmax(s / temperature) - softmax(t / temperature))
    )
    features = np.asarray(student.features, np.float64)
    closed = Predictor(
        logits_gradient @ head.weight,
        Head(
            np.einsum('bpv,bpd->vd', logits_gradient, features),
            logits_gradient.sum(axis=(0, 1)),
        ),
    )
    assert_close(fused(*inputs, lambda_=0.3, temperature=temperature)[1], closed)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 8.0])
@pytest.mark.parametrize('part', ['features', 'weight', 'bias'])
def test_gradient_equals_finite_differences_in_float64(part, temperature):
    # The loss computes in float32, where a difference loses half the digits. Differences are those of
    # the formula in float64: with h = 1e-4 their error is h^2 = 1e-8 times the third derivative, well
    # below the float32 rounding that EXACT allows.
    inputs = make(3)
    (_, sums), gradient = fused(*inputs, lambda_=0.3, temperature=temperature)
    student, *others = reference.float64(inputs)
    random = np.random.default_rng(0)
    size = {'features': student.features, 'weight': student.head.weight, 'bias': student.head.bias}

    def value(shift):
        features, (weight, bias) = student
        moved = Predictor(
            features + (shift if part == 'features' else 0),
            Head(
                weight + (shift if part == 'weight' else 0), bias + (shift if part == 'bias' else 0)
            ),
        )
        return reference.sums(moved, *others, lambda_=0.3, temperature=temperature, xp=np)['loss']

    assert_close(sums['loss'], value(0))
    slope = gradient.features if part == 'features' else getattr(gradient.head, part)
    slope = np.asarray(slope, np.float64)
    for _ in range(5):
        direction = random.standard_normal(size[part].shape)
        direction /= np.linalg.norm(direction)
        difference = (value(1e-4 * direction) - value(-1e-4 * direction)) / 2e-4
        assert abs(difference - np.sum(slope * direction)) <= EXACT * np.linalg.norm(slope)


def test_sums_equal_the_formula_in_float64():
    inputs = make(4)
    actual = loss_sums(*inputs, lambda_=0.3, temperature=2.0)
    expected = reference.sums(*reference.float64(inputs), lambda_=0.3, temperature=2.0, xp=np)
    assert_close(actual, expected)
    assert 0 < expected['labelled'] < expected['count']
    student, _, *targets = reference.float64(inputs)
    sums = loss_sums(inputs[0], None, *inputs[2:])
    assert_close(sums, reference.sums(student, None, *targets, xp=np))


def test_correct_and_agree_count_equal_top_ids():
    student, teacher, _, weights = make(5)
    top_student, top_teacher = (
        np.argmax(p.features @ p.head.weight.T + p.head.bias, axis=-1) for p in (student, teacher)
    )
    # Odd positions have the student's answer as label, others a wrong one; some rows have none.
    odd = np.arange(POSITIONS) % 2 == 1
    labels = np.where(odd, top_student, np.where(top_student == 0, 1, 0))
    labels[::5] = -1
    sums = loss_sums(student, teacher, labels, weights)
    assert sums['correct'] == np.sum(weights * odd * (labels >= 0))
    assert sums['agree'] == np.sum(weights * (top_student == top_teacher))
    sums = loss_sums(student, student, labels, weights)
    assert sums['agree'] == sums['count'] == np.sum(weights)


def test_first_of_equal_logits_is_on_top():
    student, teacher, labels, weights = make()
    level = Predictor(np.zeros_like(student.features), Head(student.head.weight, np.zeros(V)))
    weights = np.ones_like(weights)
    labels = np.zeros_like(labels)
    labels[0] = 1
    sums = loss_sums(level, teacher, labels, weights)
    assert sums['correct'] == (B - 1) * POSITIONS
    assert loss_sums(level, level, labels, weights)['agree'] == B * POSITIONS


@pytest.mark.parametrize('vocabulary', [1, 67, 96, 384])
def test_top_and_label_by_index_equal_those_by_comparison(vocabulary):
    random = np.random.default_rng(0)
    # With few values the largest is in several places, in one block and in several.
    logits = random.integers(-3, 3, (50, vocabulary)).astype(np.float32)
    logits[0] = -1e9
    labels = random.integers(-1, vocabulary, 50)
    labels[1] = vocabulary  # not an id, as on padding
    is_id = (labels >= 0) & (labels < vocabulary)
    for function in (_by_comparison, _by_index):
        actual = jax.jit(function)(logits, labels)
        np.testing.assert_array_equal(actual.top_C, logits.max(1))
        np.testing.assert_array_equal(actual.id_C, logits.argmax(1))
        expected = np.where(is_id, logits[np.arange(50), np.where(is_id, labels, 0)], 0)
        np.testing.assert_array_equal(actual.label_C, expected)


def test_loss_is_the_same_with_64_bit_jax():
    inputs, options = make(), {'lambda_': 0.5, 'temperature': 2.0}
    expected = fused(*inputs, **options)
    with jax.enable_x64(True):
        assert_close(fused(*inputs, **options), expected)


def test_unlabelled_rows_train_on_the_teacher_only():
    student, teacher, labels, weights = make(6)
    nothing = np.full_like(labels, -1)
    (value, sums), gradient = fused(
        student, teacher, nothing, weights, lambda_=0.0, temperature=2.0
    )
    assert sums['ce'] == sums['correct'] == sums['labelled'] == sums['teacher_ce'] == 0
    assert sums['count'] == np.sum(weights)
    full = fused(student, teacher, np.abs(labels), weights, lambda_=1.0, temperature=2.0)
    assert_close((value, sums['kl'], gradient), (full[0][0], full[0][1]['kl'], full[1]))
    (value, _), gradient = fused(student, None, nothing, weights)
    assert value == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))


def test_unlabelled_rows_have_lambda_one_bit_for_bit():
    student, teacher, labels, weights = make(6)
    labels = np.where(np.arange(B)[:, None] % 3 == 0, -1, np.abs(labels))
    lambda_B = np.where(labels[:, 0] < 0, 1.0, 0.3).astype(np.float32)
    inputs = student, teacher, labels, weights
    for temperature in (1.0, 2.0):
        actual = fused(*inputs, lambda_=0.3, temperature=temperature)
        expected = fused(*inputs, lambda_=lambda_B, temperature=temperature)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('temperature', [1.0, 2.0, 8.0])
def test_student_equal_to_teacher_has_zero_kl_and_gradient(temperature):
    student, _, labels, weights = make(7)
    (value, sums), gradient = fused(
        student, student, labels, weights, lambda_=1.0, temperature=temperature
    )
    assert value == 0
    assert sums['kl'] == 0
    # A fused multiply-add may round p - p to other values than 0: below 6e-8 for each p <= 1.
    _, against_labels = fused(student, None, np.abs(labels), weights)
    for zero, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(against_labels), strict=True):
        assert np.max(np.abs(zero)) <= 1e-6 * np.max(np.abs(other))


def test_loss_without_a_teacher_is_cross_entropy():
    student, teacher, labels, weights = make(8)

    def plain(student):
        logits = student.features @ student.head.weight.T + student.head.bias
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(labels, 0))
        return jnp.sum(jnp.where(labels >= 0, weights * ce, 0))

    value, gradient = jax.jit(jax.value_and_grad(plain))(student)
    (actual, sums), actual_gradient = fused(student, None, labels, weights)
    assert_close((actual, actual_gradient), (value, gradient))
    assert actual == sums['ce']
    assert set(sums) == {'loss', 'count', 'ce', 'correct', 'labelled'}

    labels = np.maximum(labels, 0)  # unlabelled rows would train on the teacher
    value, gradient = jax.jit(jax.value_and_grad(plain))(student)
    (actual, _), actual_gradient = fused(student, teacher, labels, weights, lambda_=0.0)
    assert_close((actual, actual_gradient), (value, gradient))


def test_lambda_weights_and_teacher_get_no_gradient():
    student, teacher, labels, weights = make(9)

    def loss(student, teacher, weights, lambda_):
        return distillation_loss(student, teacher, labels, weights, lambda_=lambda_)['loss']

    gradient, *others = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(
        student, teacher, weights, np.full(B, 0.5, np.float32)
    )
    assert all(np.any(g != 0) for g in jax.tree.leaves(gradient))
    assert all(np.all(g == 0) for g in jax.tree.leaves(others))


def test_other_sums_have_no_gradient():
    student, *others = make(10)

    def added(student):
        sums = distillation_loss(student, *others)
        return sum(value for name, value in sums.items() if name != 'loss')

    assert all(np.all(g == 0) for g in jax.tree.leaves(jax.jit(jax.grad(added))(student)))


def test_gradient_scales_with_the_cotangent_of_the_loss():
    student, *others = make(11)
    gradient = jax.grad(lambda s: 0.25 * loss_sums(s, *others)['loss'])(student)
    whole = fused(student, *others)[1]
    assert_close(gradient, jax.tree.map(lambda g: 0.25 * g, whole))


@pytest.mark.parametrize('temperature', [1.0, 8.0])
def test_large_logits_stay_finite(temperature):
    student, teacher, labels, weights = make(12)
    student = student._replace(features=student.features * 1e4)
    teacher = teacher._replace(features=teacher.features * -1e4)
    logits = student.features @ student.head.weight.T
    assert np.max(np.abs(logits)) > 1e4
    actual = fused(student, teacher, labels, weights, temperature=temperature)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual))
    # A logit of 1e5 is rounded by 8e-3, and so is every difference. That is negligible for losses of
    # 1e5 and small for a gradient of one-hots, unless the two largest logits are close.
    expected = reference.sums(
        *reference.float64((student, teacher, labels, weights)), temperature=temperature, xp=np
    )
    assert_close(actual[0][1], expected)


@pytest.mark.parametrize('chunk', [16, 10])  # 3 groups of one chunk, and 2 of two
def test_bfloat16_gradients_are_near_float32(chunk):
    student, teacher, labels, weights = make(13, dtype=jnp.bfloat16)
    (value, sums), gradient = fused(student, teacher, labels, weights, chunk=chunk)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert {s.dtype for s in sums.values()} == {jnp.dtype(jnp.float32)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
    (expected, _), expected_gradient = fused(*wide, labels, weights)
    # Both have the same inputs, and products add up in float32.
    assert_close(value, expected)
    # One rounding to 8 bits at the end (2^-9 = 2e-3), and one to the type of the products.
    assert_close(gradient, expected_gradient, 6e-3)
    # Networks have a float32 bias. Its gradient has the second rounding only.
    mixed = student._replace(head=student.head._replace(bias=wide[0].head.bias))
    bias = fused(mixed, teacher, labels, weights, chunk=chunk)[1].head.bias
    assert bias.dtype == jnp.float32
    assert_close(bias, expected_gradient.head.bias, 3e-3)


# Errors


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'temperature': 0.0}, 'temperature = 0.0'),
        ({'temperature': -1.0}, 'temperature = -1.0'),
        ({'temperature': float('nan')}, 'temperature = nan'),
        ({'lambda_': 1.5}, 'lambda_ = 1.5'),
        ({'lambda_': -0.1}, 'lambda_ = -0.1'),
        ({'lambda_': float('nan')}, 'lambda_ = nan'),
        ({'lambda_': np.array([0.5] * (B - 1) + [2.0])}, 'must be in'),
        ({'lambda_': np.full(B + 1, 0.5)}, 'lambda_ '),
        ({'lambda_': np.full((B, POSITIONS), 0.5)}, 'lambda_ '),
        ({'chunk': -1}, 'chunk = -1'),
        ({'labels': jnp.zeros((B, POSITIONS + 1), jnp.int32)}, 'features'),
        ({'labels': jnp.zeros(B, jnp.int32)}, 'labels'),
        ({'weights': jnp.ones(B)}, 'weights'),
        (
            {'teacher': predictor(np.random.default_rng(0), D, (B, POSITIONS + 1))},
            'teacher features',
        ),
        ({'teacher': predictor(np.random.default_rng(0), D, vocabulary=V + 1)}, 'teacher V = 68'),
    ],
)
def test_inconsistent_arguments_raise(change, message):
    arguments = dict(zip(('student', 'teacher', 'labels', 'weights'), make(), strict=True))
    with pytest.raises(ValueError, match=message):
        distillation_loss(**(arguments | change))


def test_vocabulary_above_2_to_24_raises():
    def value(features, weight, bias):
        head = Head(weight, bias)
        labels = jnp.zeros((1, 1), jnp.int32)
        return distillation_loss(Predictor(features, head), None, labels, jnp.ones((1, 1)))['loss']

    for ids, refused in ((1 << 24, False), ((1 << 24) + 1, True)):
        shapes = (1, 1, 2), (ids, 2), (ids,)
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        if refused:
            with pytest.raises(ValueError, match=f'V = {ids}: must be at most'):
                jax.eval_shape(value, *inputs)
        else:
            assert jax.eval_shape(value, *inputs).shape == ()


def test_traced_lambda_of_a_wrong_shape_raises():
    inputs = make()
    with pytest.raises(ValueError, match='lambda_'):
        jax.jit(lambda x: distillation_loss(*inputs, lambda_=x))(jnp.full((B, POSITIONS), 0.5))


def test_bfloat16_products_accumulate_in_float32():
    student, teacher, labels, weights = make(13, dtype=jnp.bfloat16)
    text = jax.jit(lambda x: fused(x, teacher, labels, weights)).lower(student).as_text()
    products = re.findall(r'dot_general .*: \((.*), (.*)\) -> (.*)', text)
    operands = [
        {re.split(r'[x<>]', x)[-2] for x in (a, b)}
        for a, b, result in products
        if result.count('x') == 2  # of two matrices; products with a vector of ones only sum
    ]
    assert operands == [{'bf16'}] * 4
    assert all(result.endswith('xf32>') for *_, result in products)
