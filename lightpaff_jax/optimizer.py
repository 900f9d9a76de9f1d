"""AdamW with warm-up, decay of the learning rate, clipping, and a decay mask."""

import jax
import optax
from ml_collections import ConfigDict


def schedule(c: ConfigDict) -> optax.Schedule:
    """Learning rate of an update: linear warm-up to peak_lr, then `optim.schedule`."""
    o = c.optim
    decay_steps = max(1, c.train.updates - o.warmup)
    end = o.peak_lr * o.final_lr
    decay = {
        'linear': lambda: optax.linear_schedule(o.peak_lr, end, decay_steps),
        'cosine': lambda: optax.cosine_decay_schedule(o.peak_lr, decay_steps, o.final_lr),
        'constant': lambda: optax.constant_schedule(o.peak_lr),
    }[o.schedule]()
    # The first update already moves: update n of the warm-up has (n + 1) / warmup of the peak.
    warmup = optax.linear_schedule(o.peak_lr / max(1, o.warmup), o.peak_lr, max(1, o.warmup - 1))
    return optax.join_schedules([warmup, decay], [o.warmup])


def make(c: ConfigDict) -> optax.GradientTransformation:
    """The update rule of `config.optim`; its state is float32."""
    o = c.optim
    adamw = optax.adamw(
        schedule(c), b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw) if o.clip_norm else adamw


def decayed(params):
    """True for matrices; biases and norms do not decay. Stacked biases are known by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ('kernel', 'table'), params
    )
