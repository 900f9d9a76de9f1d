"""The frozen teacher: read, checked against the student, identified; and the student's start."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import models, networks, pretrained, sharding
from lightpaff_jax.config import STARTS
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import fingerprint


class Teacher(NamedTuple):
    """A frozen network: an argument of the step, in no optimizer and no checkpoint."""

    model: models.Model
    params: models.Params
    hash: str
    """Identity of its parameters."""


def load(c: ConfigDict, mesh: Mesh, tokenizer: Tokenizer) -> Teacher | None:
    """The teacher of `config.teacher`; None where its path is ''.

    Raises:
      UserError: nothing to read there, another shape than the configuration says, another
        family, vocabulary, tokenizer or number of classes than the student's, or no such head.
    """
    path = c.teacher.path
    if not path:
        return None
    shape = network(c)
    pretrained.check_tokenizer('teacher.path', path, tokenizer, c.tokenizer.lowercase)
    model = networks.teacher(c, shape)
    params = pretrained.read_params('teacher.path', path, model, mesh)
    identity = fingerprint.fingerprint(params)
    dtype = networks.teacher_dtype(c)
    params = jax.tree.map(lambda x: _narrowed(x, dtype), params)
    places = sharding.param_shardings(mesh, model.abstract_params, c.mesh.teacher)
    return Teacher(model, jax.device_put(params, places), identity)


def _narrowed(x: jax.Array, dtype: Any) -> jax.Array:
    """An array in another type, its memory given back: a large teacher is not there twice."""
    if x.dtype == dtype:
        return x
    narrow = jax.block_until_ready(x.astype(dtype))
    x.delete()
    return narrow


def network(c: ConfigDict) -> ConfigDict:
    """The shape of the network in `config.teacher.path`, a section like `config.network()`.

    Raises:
      UserError: as `load`, but for what is not of its shape.
    """
    path = c.teacher.path
    shape = pretrained.read_network('teacher.path', path)
    if shape.head == 'pretraining':  # the masked-LM half of it
        shape.head = 'lm'
    if shape.head == 'none':  # what it lacks is named on reading
        shape.head, shape.classes = c.student.head, c.student.classes
    if c.teacher.layers:
        _same_shape('teacher', c.teacher, shape, path, but=('head',))
    for key in ('family', 'head', 'classes', 'vocab_size'):
        if shape[key] != c.student[key]:
            raise UserError(
                f'config.student.{key} = {c.student[key]}: must equal that of the teacher '
                f'in {path} = {shape[key]}'
            )
    for key in ('length', 'target_length'):
        if c.data[key] > shape.positions:
            raise UserError(
                f'config.data.{key} = {c.data[key]}: must be at most the positions of the teacher '
                f'in {path} = {shape.positions}'
            )
    return shape


def load_initial(
    c: ConfigDict, mesh: Mesh, tokenizer: Tokenizer, teacher: Teacher | None
) -> models.Params | None:
    """The parameters that `config.student.init` starts from; None for 'scratch'.

    Raises:
      UserError: nothing to read there, or another shape or tokenizer than the student's, or a
        head that is not there and `config.student.init_new_head` does not ask for.
    """
    path = c.student.init
    if path == 'scratch':
        return None
    student = models.build(c.student)
    if path == 'teacher_layers':
        assert teacher is not None, 'validation checks it'
        model = models.build(teacher.model.network)
        params = pretrained.read_params('teacher.path', c.teacher.path, model, mesh)
        return pretrained.of_layers(c, model, params, student)
    found = pretrained.read_network('student.init', path)
    _same_shape('student', c.student, found, path, but=('head', 'classes'))
    pretrained.check_tokenizer('student.init', path, tokenizer, c.tokenizer.lowercase)

    def fresh():
        return student.init(jax.random.key(c.seed))

    return pretrained.read_params(
        'student.init', path, student, mesh, fresh if c.student.init_new_head else None
    )


def paths(c: ConfigDict) -> list[tuple[str, str]]:
    """(key, path) of the networks that a run starts from."""
    found = [('teacher.path', c.teacher.path)] if c.teacher.path else []
    return found + ([] if c.student.init in STARTS else [('student.init', c.student.init)])


def _same_shape(name: str, wanted: ConfigDict, found: ConfigDict, path: str, but=()) -> None:
    for key, value in found.items():
        if key not in ('dropout', *but) and wanted[key] != value:
            raise UserError(f'config.{name}.{key} = {wanted[key]}: {path} has {value}')
