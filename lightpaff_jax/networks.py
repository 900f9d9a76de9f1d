"""Builds the networks of a run with the compute settings of the section `train`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lightpaff_jax import config, distill_step, matching, models
from lightpaff_jax.batch import Shape
from lightpaff_jax.config import matching as config_matching
from lightpaff_jax.data import objectives
from lightpaff_jax.errors import UserError
from lightpaff_jax.models import attention


def shapes(c: ConfigDict) -> list[Shape]:
    """Returns the shapes of a run's batches, the shortest first: one, or one per bucket."""
    return [objectives.OBJECTIVES[c.objective].shape(b) for b in objectives.buckets(c)]


def student(c: ConfigDict, platform: str | None = None) -> models.Model:
    """Builds the student.

    Args:
      c: the configuration of the run.
      platform: 'cpu', 'gpu' or 'tpu'; the default is that of the devices of this process.

    Raises:
      UserError: the network cannot use `config.train.attention`.
    """
    return models.build(
        c.student,
        compute_dtype=c.train.compute_dtype,
        remat=c.train.remat,
        attention=kernel(c, 'student', c.student, platform, c.student.dropout),
    )


def teacher(c: ConfigDict, network: ConfigDict, platform: str | None = None) -> models.Model:
    """Builds the frozen teacher of shape `network`; other arguments and errors as in `student`."""
    return models.build(
        network,
        compute_dtype=c.train.compute_dtype,
        attention=kernel(c, 'teacher', network, platform),
    )


def matching_losses(c: ConfigDict, teacher_network: ConfigDict) -> matching.Matching | None:
    """Builds the matching losses of `config.matching`; None without any.

    Raises:
      UserError: a layer that the teacher does not have, or relation heads that do not divide its
        width.
    """
    settings, stacks = c.matching, config.STACKS[c.student.family]
    terms = {name: term for name, term in config_matching.terms(c).items() if term.weight > 0}
    if not terms:
        return None
    pairs = {}
    for name, (_, layers, key) in terms.items():
        named = config_matching.parse_pairs(key, layers, c.student.family)
        for stack, _, layer in named:
            count = config_matching.layers_of(teacher_network, stack)
            if layer >= count:
                raise UserError(
                    f'config.matching.{key} = {",".join(layers)}: must name layers of the '
                    f"teacher's {stack}, 0 to {count - 1}"
                )
        for stack in () if named else (stacks[:1] if name == 'pooled' else stacks):
            student, teacher = (
                config_matching.layers_of(network, stack) - 1
                for network in (c.student, teacher_network)
            )
            named.append((stack, student, teacher))
        pairs[name] = tuple(matching.Pair(*pair) for pair in named)
    if settings.relations and teacher_network.width % settings.relation_heads:
        raise UserError(
            f'config.matching.relation_heads = {settings.relation_heads}: must divide the width of '
            f'the teacher = {teacher_network.width}'
        )
    widths = c.student.width, teacher_network.width
    weights = {name: term.weight for name, term in terms.items()}
    return matching.Matching(weights, pairs, settings.relation_heads, settings.pooling, widths)


class UpdateFlops(NamedTuple):
    """The FLOPs of an update for one example."""

    student: float
    """Forward and backward pass of the student, three forward passes, and the matching losses."""
    teacher: float
    """Its forward pass without the head."""
    teacher_head: float
    """Its logits; 0 if no loss reads them."""


def update_flops(
    student: models.Model,
    teacher: models.Model | None,
    losses: matching.Matching | None,
    shape: Shape,
) -> UpdateFlops:
    """Counts the FLOPs of an update of a batch with this shape, for one example."""
    taps = ((), ()) if losses is None else (losses.student_taps, losses.teacher_taps)
    terms = 0.0 if losses is None else losses.flops(shape)
    student_flops = 3 * student.flops(shape, taps[0]) + terms
    if teacher is None:
        return UpdateFlops(student_flops, 0.0, 0.0)
    head_flops = models.head_flops(teacher.network, shape)
    body = teacher.flops(shape, taps[1]) - head_flops
    if not distill_step.has_same_head(student, teacher):
        head_flops = 0.0
    return UpdateFlops(student_flops, body, head_flops)


def teacher_dtype(c: ConfigDict, platform: str | None = None) -> jnp.dtype:
    """Returns the type of the teacher's parameters; 'auto' is bfloat16, on a CPU float32."""
    dtype = c.teacher.dtype
    if dtype == 'auto':
        dtype = 'float32' if (platform or jax.default_backend()) == 'cpu' else 'bfloat16'
    return jnp.dtype(dtype)


def kernel(
    c: ConfigDict, name: str, network: ConfigDict, platform: str | None, dropout: float = 0.0
) -> str:
    """Returns the attention kernel of a network, one of `attention.KERNELS`.

    `name` is 'student' or 'teacher'; `dropout` is the rate of attention weights. Other arguments and
    errors are as in `student`.
    """
    platform = platform or jax.default_backend()
    choice = c.train.attention
    work = attention.Workload(
        platform, network, shapes(c), c.train.compute_dtype, c.mesh.tensor, dropout
    )
    if choice == 'auto':
        return attention.choose_kernel(work)
    rule = attention.unmet_requirement(choice, work)
    if rule:
        raise UserError(f'config.train.attention = {choice!r}: of the {name}: {rule}')
    return choice
