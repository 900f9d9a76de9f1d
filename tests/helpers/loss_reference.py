"""The formula of the loss with all logits at once, the reference of the fused loss."""

import jax
import jax.numpy as jnp
import numpy as np


def log_softmax(xp, logits):
    logits = logits - xp.max(logits, axis=-1, keepdims=True)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))


def sums(student, teacher, labels, weights, *, lambda_=0.5, temperature=1.0, xp=jnp):
    """Returns all sums of `distillation_loss`, in the precision of the arrays.

    Args:
      student: (features [B, P, D], (weight [V, D], bias [V])).
      teacher: the same, or None.
      labels: [B, P], -1 if unlabelled.
      weights: [B, P].
      lambda_: scalar or [B].
      temperature: tau.
      xp: jax.numpy, or numpy for float64 regardless of jax settings.
    """

    def logits(predictor):
        features, (weight, bias) = predictor
        return features @ weight.T + bias

    def ce(logits):
        label_log_p = xp.take_along_axis(
            log_softmax(xp, logits), xp.maximum(labels, 0)[..., None], axis=-1
        )
        return -label_log_p[..., 0]

    s = logits(student)
    labelled = weights * (labels >= 0)
    top = xp.argmax(s, axis=-1)
    result = {
        'count': weights.sum(),
        'labelled': labelled.sum(),
        'ce': (labelled * ce(s)).sum(),
        'correct': (labelled * (top == labels)).sum(),
    }
    if teacher is None:
        return result | {'loss': result['ce']}
    t = logits(teacher)
    log_p = log_softmax(xp, s / temperature)
    log_q = log_softmax(xp, t / temperature)
    kl = (xp.exp(log_q) * (log_q - log_p)).sum(axis=-1)
    lambda_ = xp.broadcast_to(xp.asarray(lambda_), labels.shape[:1])[:, None]
    lambda_ = xp.where(labels >= 0, lambda_, 1.0)
    loss = labelled * (1 - lambda_) * ce(s) + weights * lambda_ * temperature**2 * kl
    return result | {
        'loss': loss.sum(),
        'kl': (weights * kl).sum(),
        'agree': (weights * (top == xp.argmax(t, axis=-1))).sum(),
        'teacher_ce': (labelled * ce(t)).sum(),
    }


def value_and_grad(student, teacher, labels, weights, **options):
    """Returns ((loss, sums), gradient of the student) by autodiff through all logits."""

    def loss(student):
        result = sums(student, teacher, labels, weights, **options)
        return result['loss'], result

    return jax.value_and_grad(loss, has_aux=True)(student)


def float64(tree):
    """Converts floating-point leaves to numpy float64, others to numpy."""

    def convert(x):
        x = np.asarray(x)
        return x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)

    return jax.tree.map(convert, tree)
