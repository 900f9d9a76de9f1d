"""AdamW with warm-up, decay of the learning rate, gradient clipping and a decay mask."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict


class Hyperparameters(NamedTuple):
    """Arguments of the step that differ between runs of a recipe, which share one program."""

    seed: np.int32
    peak_lr: np.float32
    warmup: np.int32
    updates: np.int32


def hyperparameters(c: ConfigDict) -> Hyperparameters:
    """Reads the hyperparameters of a run."""
    o = c.optim
    return Hyperparameters(
        np.int32(c.seed), np.float32(o.peak_lr), np.int32(o.warmup), np.int32(c.train.updates)
    )


def learning_rate(
    optim: ConfigDict, hyperparameters: Hyperparameters, step: int | Int[Array, '']
) -> Float[Array, '']:
    """Rises linearly to the peak, then falls by `schedule` to `final_lr` times the peak."""
    _, peak_lr, warmup, updates = hyperparameters
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / jnp.maximum(1, updates - warmup), 0, 1)
    decay = {
        'linear': lambda: 1 - progress,
        'cosine': lambda: (1 + jnp.cos(jnp.pi * progress)) / 2,
        'constant': lambda: jnp.ones(()),
    }[optim.schedule]()
    # Update n of the warm-up has (n + 1) / warmup of the peak, so the first one has an effect.
    rise = (step + 1) / jnp.maximum(1, warmup)
    final = optim.final_lr
    return peak_lr * jnp.where(step < warmup, rise, final + (1 - final) * decay)


def make(optim: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Builds the update rule at a learning rate of 1; its state is float32.

    Its `update(grads, state, params, finite=True)` returns the old state if `finite` is False.
    """
    adamw = optax.chain(
        _scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, decay_mask),
        optax.scale_by_learning_rate(1.0),
    )
    if not optim.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), adamw)


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns `optax.scale_by_adam` with the argument `finite`.

    The old or the new moments are selected before they are used. If they were selected after
    `optax.adamw`, parameters and state would depend on different moments, and XLA would compute the
    moments twice and copy them.
    """

    def update(grads, state, params=None, *, finite: bool | Bool[Array, ''] = True, **_):
        count, mu, nu = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (
                optax.safe_increment(state.count),
                optax.tree.update_moment(grads, state.mu, b1, 1),
                optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2),
            ),
            (state.count, state.mu, state.nu),
        )
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


def decay_mask(params: Any) -> Any:
    """Returns True for matrices; names decide, because stacked biases have two axes too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ('kernel', 'table'), params
    )
