"""AdamW with warm-up, decay of the learning rate, clipping, and a decay mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict


class Hyperparameters(NamedTuple):
    """Arguments of a step that differ between the runs of a recipe: these share one program."""

    seed: np.int32
    peak_lr: np.float32
    warmup: np.int32
    updates: np.int32


def hyperparameters(c: ConfigDict) -> Hyperparameters:
    """Those of a run."""
    o = c.optim
    return Hyperparameters(
        np.int32(c.seed), np.float32(o.peak_lr), np.int32(o.warmup), np.int32(c.train.updates)
    )


def learning_rate(c: ConfigDict, k: Hyperparameters, step) -> Float[Array, '']:
    """Linear warm-up to the peak, then `optim.schedule` down to `optim.final_lr` of it."""
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - k.warmup) / jnp.maximum(1, k.updates - k.warmup), 0, 1)
    left = {
        'linear': lambda: 1 - done,
        'cosine': lambda: (1 + jnp.cos(jnp.pi * done)) / 2,
        'constant': lambda: jnp.ones(()),
    }[c.optim.schedule]()
    # The first update already moves: update n of the warm-up has (n + 1) / warmup of the peak.
    rising = (step + 1) / jnp.maximum(1, k.warmup)
    final = c.optim.final_lr
    return k.peak_lr * jnp.where(step < k.warmup, rising, final + (1 - final) * left)


def make(c: ConfigDict) -> optax.GradientTransformation:
    """The update rule of `config.optim` at a learning rate of 1; its state is float32."""
    o = c.optim
    adamw = optax.adamw(
        1.0, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw) if o.clip_norm else adamw


def decay_mask(params):
    """True for matrices; biases and norms do not decay. Stacked biases are known by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ('kernel', 'table'), params
    )
