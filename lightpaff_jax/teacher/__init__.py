"""Loads the frozen teacher of a run, and the parameters that its student starts from."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import config, models, networks, pretrained, sharding
from lightpaff_jax.config import matching
from lightpaff_jax.data import sources
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import fingerprint


class Teacher(NamedTuple):
    """A frozen network: an argument of the step, in no optimizer and no checkpoint."""

    model: models.Model
    params: models.Params
    hash: str
    """The fingerprint of its parameters in float32."""


def load(c: ConfigDict, mesh: Mesh, tokenizer: Tokenizer) -> Teacher | None:
    """Loads the teacher in `config.teacher.path` onto the mesh; None if the path is ''.

    If the tokenizer is a reduction of the teacher's, the teacher keeps the rows of its ids only: the
    embeddings that it reads, and the outputs that it predicts. Nothing else sees the difference.

    Args:
      c: the configuration of the run.
      mesh: the devices of the run.
      tokenizer: the tokenizer of the data.

    Raises:
      UserError: as `open`; or the tokenizer is neither the teacher's nor a reduction of it, or
        parameters are missing.
    """
    if not c.teacher.path:
        return None
    source = open(c)
    ids_V = _whole_ids(c, source, tokenizer)
    network = config.network(**{**source.network, 'vocab_size': c.student.vocab_size})
    model = networks.teacher(c, network)
    class_names = _class_names(c) if reads_head(c) else ()
    params = source.read_params(models.build(source.network), mesh, class_names=class_names)
    params_fingerprint = fingerprint.fingerprint(params)
    params = _select_ids(source, mesh, params, ids_V)
    dtype = networks.teacher_dtype(c)
    params = jax.tree.map(lambda x: _cast(x, dtype), params)
    shardings = sharding.param_shardings(mesh, model.abstract_params, c.mesh.teacher)
    return Teacher(model, jax.device_put(params, shardings), params_fingerprint)


def _whole_ids(
    c: ConfigDict, source: pretrained.Pretrained, tokenizer: Tokenizer
) -> Int[np.ndarray, ' V'] | None:
    """Returns the teacher's id of each id of the data; None if they are the same.

    Raises:
      UserError: the teacher cannot read the ids, or `config.student.vocab_size` is not their number.
    """
    ids_V = source.whole_ids(tokenizer, c.tokenizer.lowercase)
    size = source.network.vocab_size if ids_V is None else len(ids_V)
    if c.student.vocab_size != size:
        owner = f'the teacher in {source.path}' if ids_V is None else tokenizer.path
        raise UserError(
            f'config.student.vocab_size = {c.student.vocab_size}: must equal that of {owner} = {size}'
        )
    return ids_V


def _select_ids(
    source: pretrained.Pretrained,
    mesh: Mesh,
    params: models.Params,
    ids_V: Int[np.ndarray, ' V'] | None,
) -> models.Params:
    """Returns the teacher's parameters with rows for `ids_V` only; None keeps all rows."""
    if ids_V is None:
        return params
    model = models.build(source.network)
    select = functools.partial(pretrained.select_ids, model, ids_V=ids_V)
    shardings = sharding.param_shardings(mesh, jax.eval_shape(select, params))
    return jax.jit(select, out_shardings=shardings)(params)


def _class_names(c: ConfigDict) -> tuple[str, ...]:
    return sources.class_names(c) if c.student.head == 'classify' else ()


def _cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Converts an array and frees its memory, so that a large teacher is never held twice."""
    if x.dtype == dtype:
        return x
    y = jax.block_until_ready(x.astype(dtype))
    x.delete()
    return y


_REMEDIES = {
    'lm': 'use matching losses (config.matching with objective match, or with config.loss.lambda_ = 0), '
    'or train a masked-LM head first: a run with config.student.init = this path, '
    'config.student.init_new_head = True and no teacher',
    'classify': 'fine-tune it first: a run with config.student.init = this path, '
    'config.student.init_new_head = True and no teacher',
}


def reads_head(c: ConfigDict) -> bool:
    """Returns whether the loss reads logits of the teacher, or its matching losses only."""
    if config.OBJECTIVES[c.objective].outputs == 'matching':
        return False
    return c.loss.lambda_ > 0 or not matching.is_used(c)


def open(c: ConfigDict) -> pretrained.Pretrained:
    """Opens the teacher in `config.teacher.path`; reads no parameters.

    A teacher with the pre-training head of BERT is used as a masked language model. If the loss reads
    no logits, see `reads_head`, the teacher may have any head or none.

    Raises:
      UserError: the path has no trained network, or its shape differs from `config.teacher`, or
        does not fit the student or the lengths of the data.
    """
    source = pretrained.open('config.teacher.path', c.teacher.path)
    network = source.network
    if network.head == 'pretraining':
        network.head = 'lm'
    has_same_family = network.family == c.student.family
    if network.head == 'none' and reads_head(c) and has_same_family:
        raise UserError(
            f'{source.label}: has no head, whose logits the student of objective {c.objective!r} '
            f'learns from; {_REMEDIES[c.student.head]}'
        )
    if c.teacher.layers:
        _check_same_shape('teacher', c.teacher, source, but=('head',))
    # Another tokenizer than the teacher's may be a reduction of it: `load` checks it.
    may_reduce = bool(c.tokenizer.reduce or c.tokenizer.path)
    for key in ('family', 'vocab_size', *(('head', 'classes') if reads_head(c) else ())):
        reduces = key == 'vocab_size' and may_reduce and network[key] > c.student[key]
        if network[key] != c.student[key] and not reduces:
            raise UserError(
                f'config.student.{key} = {c.student[key]}: must equal that of the teacher '
                f'in {source.path} = {network[key]}'
            )
    for key in ('length', 'target_length'):
        if c.data[key] > network.positions:
            raise UserError(
                f'config.data.{key} = {c.data[key]}: must be at most the positions of the teacher '
                f'in {source.path} = {network.positions}'
            )
    return source


def load_initial(
    c: ConfigDict, mesh: Mesh, tokenizer: Tokenizer, teacher: Teacher | None
) -> models.Params | None:
    """Loads the parameters that `config.student.init` names; None for 'scratch'.

    The arguments are those of `load`, and its result, which 'teacher_layers' and
    'teacher_embeddings' require. The latter returns the embeddings only.

    Raises:
      UserError: the path has no trained network, or one of another shape or tokenizer than the
        student's, or its head is missing and `config.student.init_new_head` is False.
    """
    if c.student.init == 'scratch':
        return None
    student = models.build(c.student)
    if c.student.init in config.STARTS:
        assert teacher is not None, 'validation checks it'
        # Read again, since the teacher's own parameters may be in bfloat16.
        source = open(c)
        model = models.build(source.network)
        params = source.read_params(model, mesh, class_names=_class_names(c))
        params = _select_ids(source, mesh, params, _whole_ids(c, source, tokenizer))
        if c.student.init == 'teacher_embeddings':
            return pretrained.project_embeddings(teacher.model, params, student)
        return pretrained.select_layers(c.student, teacher.model, params, student)
    source = pretrained.open('config.student.init', c.student.init)
    _check_same_shape('student', c.student, source, but=('head', 'classes'))
    source.check_tokenizer(tokenizer, c.tokenizer.lowercase)
    head_seed = c.seed if c.student.init_new_head else None
    return source.read_params(student, mesh, head_seed, _class_names(c))


def _check_same_shape(
    section: str, expected: ConfigDict, source: pretrained.Pretrained, but: tuple[str, ...]
) -> None:
    for key, value in source.network.items():
        if key not in ('dropout', *but) and expected[key] != value:
            raise UserError(f'config.{section}.{key} = {expected[key]}: {source.path} has {value}')
