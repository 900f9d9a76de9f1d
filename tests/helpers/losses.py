"""Inputs of the loss tests, and the loss in its two implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from helpers import loss_reference as reference
from lightpaff_jax.losses import Head, Predictor, distillation_loss

EXACT = 1e-5
"""Tolerance, relative to the largest value. float32 rounds to 6e-8; sums of up to 10^3 terms in
another order differ by some 1e-6. A wrong term or weight changes a tenth or more."""

B, POSITIONS, D, D_TEACHER, V = 8, 5, 12, 20, 67


def predictor(random, width, shape=(B, POSITIONS), vocabulary=V, dtype=jnp.float32):
    sizes = (*shape, width), (vocabulary, width), (vocabulary,)
    features, weight, bias = (random.standard_normal(s).astype(dtype) for s in sizes)
    return Predictor(features, Head(weight, bias))


def make(seed=0, shape=(B, POSITIONS), vocabulary=V, dtype=jnp.float32):
    """Returns student, wider teacher, labels (some -1) and weights (some 0, not all equal)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, vocabulary, shape)
    labels = np.where(random.random(shape) < 0.2, -1, labels).astype(np.int32)
    weights = random.choice([0.0, 0.5, 1.0, 1.0], shape).astype(np.float32)
    return (
        predictor(random, D, shape, vocabulary, dtype),
        predictor(random, D_TEACHER, shape, vocabulary, dtype),
        labels,
        weights,
    )


@functools.partial(jax.jit, static_argnames=('temperature', 'chunk'))
def fused(student, teacher, labels, weights, lambda_=0.5, temperature=1.0, chunk=16):
    """Returns ((loss, sums), gradient of the student) of `distillation_loss`."""

    def loss(student):
        sums = distillation_loss(
            student, teacher, labels, weights, lambda_=lambda_, temperature=temperature, chunk=chunk
        )
        return sums['loss'], sums

    return jax.value_and_grad(loss, has_aux=True)(student)


@functools.partial(jax.jit, static_argnames='temperature')
def dense(student, teacher, labels, weights, lambda_=0.5, temperature=1.0):
    """Returns the same as `fused`, by autodiff through all logits."""
    return reference.value_and_grad(
        student, teacher, labels, weights, lambda_=lambda_, temperature=temperature
    )


loss_sums = jax.jit(distillation_loss, static_argnames=('temperature', 'chunk'))


def assert_close(actual, expected, tolerance=EXACT):
    """Asserts that each array is within `tolerance` of its own largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.max(np.abs(y)))
