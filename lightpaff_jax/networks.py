"""The networks of a configuration, built as its `train` section says they are computed."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lightpaff_jax import models
from lightpaff_jax.batch import Shape
from lightpaff_jax.data import objectives
from lightpaff_jax.errors import UserError
from lightpaff_jax.models import attention


def shapes(c: ConfigDict) -> list[Shape]:
    """Lengths that a batch of a run may have, rising: one, or one a bucket."""
    return [objectives.OBJECTIVES[c.objective].shape(b) for b in objectives.buckets(c)]


def student(c: ConfigDict, platform: str | None = None) -> models.Model:
    """The network that is trained, for 'cpu', 'gpu' or 'tpu'; None is what there is.

    Raises:
      UserError: it cannot have `config.train.attention`.
    """
    return models.build(
        c.student,
        compute_dtype=c.train.compute_dtype,
        remat=c.train.remat,
        attention=kernel(c, 'student', c.student, platform, c.student.dropout),
    )


def teacher(c: ConfigDict, net: Any, platform: str | None = None) -> models.Model:
    """A frozen teacher of shape `net`, as `student`; raises UserError alike."""
    return models.build(
        net,
        compute_dtype=c.train.compute_dtype,
        attention=kernel(c, 'teacher', net, platform),
    )


def teacher_dtype(c: ConfigDict, platform: str | None = None):
    """Of a teacher's parameters: `config.teacher.dtype`."""
    if c.teacher.dtype == 'auto':
        return jnp.float32 if (platform or jax.default_backend()) == 'cpu' else jnp.bfloat16
    return jnp.dtype(c.teacher.dtype)


def kernel(c: ConfigDict, name: str, net: Any, platform: str | None, dropout: float = 0.0) -> str:
    """The attention of one network, one of attention.KERNELS."""
    platform = platform or jax.default_backend()
    asked = c.train.attention
    about = platform, net, shapes(c), c.train.compute_dtype, c.mesh.tensor, dropout
    if asked == 'auto':
        return attention.choose_kernel(*about)
    rule = attention.unmet_requirement(asked, *about)
    if rule:
        raise UserError(f'config.train.attention = {asked!r}: of the {name}: {rule}')
    return asked
