"""AdamW with warm-up, decay of the learning rate, gradient clipping and a decay mask."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
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


def make(optim: ConfigDict) -> optax.GradientTransformation:
    """Builds the update rule at a learning rate of 1; its state is float32."""
    b1, b2, weight_decay = optim.b1, optim.b2, optim.weight_decay
    adamw = optax.adamw(1.0, b1, b2, optim.eps, weight_decay=weight_decay, mask=decay_mask)
    if not optim.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), adamw)


def decay_mask(params: Any) -> Any:
    """Returns True for matrices; names decide, because stacked biases have two axes too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ('kernel', 'table'), params
    )
