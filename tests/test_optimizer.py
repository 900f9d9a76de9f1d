"""The update rule: schedule, decay mask, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightpaff_jax import config, models, optimizer


def schedule(c):
    """Returns a function from an update, counted from 0, to its learning rate."""
    return functools.partial(optimizer.learning_rate, c.optim, optimizer.hyperparameters(c))


def config_with(**changes):
    c = config.default()
    c.train.updates = 100
    c.optim.update({'peak_lr': 1.0, 'warmup': 10, 'final_lr': 0.1, **changes})
    return c


@pytest.mark.parametrize('decay', ['linear', 'cosine', 'constant'])
def test_learning_rate_rises_to_peak_and_falls_to_final(decay):
    rate = schedule(config_with(schedule=decay))
    values = np.array([float(rate(n)) for n in range(101)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert values.max() == pytest.approx(1)
    assert np.all(np.diff(values[10:]) <= 1e-7)
    assert values[100] == pytest.approx(1 if decay == 'constant' else 0.1)


def test_linear_schedule_is_halfway_at_half_time():
    rate = schedule(config_with(schedule='linear'))
    assert float(rate(55)) == pytest.approx(0.55)


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert float(schedule(config_with(warmup=0))(0)) == pytest.approx(1)


def test_only_matrices_decay():
    c = config_with(weight_decay=0.5, schedule='constant', warmup=0)
    params = models.build(c.student).init(jax.random.key(0))
    params = jax.tree.map(jnp.ones_like, params)
    rule = optimizer.make(c.optim)
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        expected = -0.5 if path[-1].key in ('kernel', 'table') else 0.0
        np.testing.assert_array_equal(update, expected, err_msg=str(path))


def test_only_gradients_above_the_norm_are_clipped():
    # Without momentum AdamW's update depends on the direction only, so the test reads the moments.
    c = config_with(clip_norm=1.0, b1=0.0)
    rule = optimizer.make(c.optim)
    params = {'kernel': jnp.zeros((2, 2))}
    for scale, norm in ((10.0, 1.0), (0.1, 0.2)):
        gradient = {'kernel': jnp.full((2, 2), scale)}
        _, state = rule.update(gradient, rule.init(params), params)
        moments = [x for x in jax.tree.leaves(state) if x.shape == (2, 2)]
        assert float(jnp.linalg.norm(moments[0])) == pytest.approx(norm, rel=1e-5)
