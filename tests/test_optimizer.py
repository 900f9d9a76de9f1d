"""The update rule: schedule, decay mask, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightpaff_jax import config, models, optimizer


def schedule(c):
    """The learning rate of an update, counted from 0."""
    return functools.partial(optimizer.learning_rate, c.optim, optimizer.hyperparameters(c))


def configured(**changes):
    c = config.default()
    c.train.updates = 100
    c.optim.update({'peak_lr': 1.0, 'warmup': 10, 'final_lr': 0.1, **changes})
    return c


@pytest.mark.parametrize('kind', ['linear', 'cosine', 'constant'])
def test_learning_rate_rises_to_its_peak_and_falls_to_its_end(kind):
    rate = schedule(configured(schedule=kind))
    values = np.array([float(rate(n)) for n in range(101)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert values.max() == pytest.approx(1)
    assert np.all(np.diff(values[10:]) <= 1e-7)
    assert values[100] == pytest.approx(1 if kind == 'constant' else 0.1)


def test_linear_schedule_is_half_way_at_half_of_its_time():
    rate = schedule(configured(schedule='linear'))
    assert float(rate(55)) == pytest.approx(0.55)


def test_no_warmup_begins_at_the_peak():
    assert float(schedule(configured(warmup=0))(0)) == pytest.approx(1)


def test_matrices_decay_and_biases_and_norms_do_not():
    c = configured(weight_decay=0.5, schedule='constant', warmup=0)
    params = models.build(c.student).init(jax.random.key(0))
    params = jax.tree.map(jnp.ones_like, params)
    rule = optimizer.make(c.optim)
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        expected = -0.5 if path[-1].key in ('kernel', 'table') else 0.0
        np.testing.assert_array_equal(update, expected, err_msg=str(path))


def test_a_long_gradient_is_clipped_and_a_short_one_is_not():
    # Without momentum AdamW's update depends on the direction alone, so look at the moments.
    c = configured(clip_norm=1.0, b1=0.0)
    rule = optimizer.make(c.optim)
    params = {'kernel': jnp.zeros((2, 2))}
    for scale, norm in ((10.0, 1.0), (0.1, 0.2)):
        gradient = {'kernel': jnp.full((2, 2), scale)}
        _, state = rule.update(gradient, rule.init(params), params)
        moments = [x for x in jax.tree.leaves(state) if x.shape == (2, 2)]
        assert float(jnp.linalg.norm(moments[0])) == pytest.approx(norm, rel=1e-5)
