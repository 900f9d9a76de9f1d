"""The loss as its formula reads, with all logits at once: what the fused loss must equal."""

import jax
import jax.numpy as jnp
import numpy as np


def log_softmax(xp, logits):
    logits = logits - xp.max(logits, axis=-1, keepdims=True)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))


def sums(student, teacher, labels, weights, *, lambda_=0.5, temperature=1.0, xp=jnp):
    """All sums of `distillation_loss`, in the arrays' own precision.

    Args:
      student: (features [B, P, D], (weight [V, D], bias [V])).
      teacher: the same, or None.
      labels: [B, P], -1 where there is none.
      weights: [B, P].
      lambda_: one number or [B].
      temperature: tau.
      xp: jax.numpy, or numpy for float64 whatever jax is set to.
    """

    def logits(predictor):
        features, (weight, bias) = predictor
        return features @ weight.T + bias

    def ce(logits):
        picked = xp.take_along_axis(
            log_softmax(xp, logits), xp.maximum(labels, 0)[..., None], axis=-1
        )
        return -picked[..., 0]

    s = logits(student)
    labelled = weights * (labels >= 0)
    top = xp.argmax(s, axis=-1)
    found = {
        'count': weights.sum(),
        'labelled': labelled.sum(),
        'ce': (labelled * ce(s)).sum(),
        'correct': (labelled * (top == labels)).sum(),
    }
    if teacher is None:
        return found | {'loss': found['ce']}
    t = logits(teacher)
    log_p = log_softmax(xp, s / temperature)
    log_q = log_softmax(xp, t / temperature)
    kl = (xp.exp(log_q) * (log_q - log_p)).sum(axis=-1)
    lambda_ = xp.broadcast_to(xp.asarray(lambda_), labels.shape[:1])[:, None]
    lambda_ = xp.where(labels >= 0, lambda_, 1.0)
    loss = labelled * (1 - lambda_) * ce(s) + weights * lambda_ * temperature**2 * kl
    return found | {
        'loss': loss.sum(),
        'kl': (weights * kl).sum(),
        'agree': (weights * (top == xp.argmax(t, axis=-1))).sum(),
        'teacher_ce': (labelled * ce(t)).sum(),
    }


def value_and_grad(student, teacher, labels, weights, **options):
    """((loss, sums), gradient of the student) by autodiff through the whole logits."""

    def loss(student):
        found = sums(student, teacher, labels, weights, **options)
        return found['loss'], found

    return jax.value_and_grad(loss, has_aux=True)(student)


def float64(tree):
    """Floating leaves as numpy float64, the others as numpy."""

    def convert(x):
        x = np.asarray(x)
        return x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)

    return jax.tree.map(convert, tree)
