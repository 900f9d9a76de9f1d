"""The frozen teacher: read from a run's workdir, checked against the student, identified."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import checkpoint, config, digests, models, sharding
from lightpaff_jax.config import UserError


class Teacher(NamedTuple):
    """A frozen network: an argument of the step, in no optimizer and no checkpoint."""

    model: models.Model
    params: models.Params
    hash: str
    """Identity of its parameters."""


def load(c: ConfigDict, mesh: Mesh, tokenizer_hash: str) -> Teacher | None:
    """The teacher of `config.teacher`; None where its path is ''.

    Raises:
      UserError: no such run, another shape than the configuration says, another vocabulary
        or another tokenizer than the student's.
    """
    if not c.teacher.path:
        return None
    shape = read_shape('teacher.path', c.teacher.path)
    if c.teacher.layers:
        _same_shape('teacher', c.teacher, shape, c.teacher.path)
    if shape.vocab_size != c.student.vocab_size:
        raise UserError(
            f'config.student.vocab_size = {c.student.vocab_size}: must equal that of the teacher '
            f'in {c.teacher.path} = {shape.vocab_size}'
        )
    if shape.positions < c.data.length:
        raise UserError(
            f'config.data.length = {c.data.length}: must be at most the positions of the teacher '
            f'in {c.teacher.path} = {shape.positions}'
        )
    _, params = read_run('teacher.path', c.teacher.path, mesh, tokenizer_hash)
    identity = digests.identity(params)
    dtype = _dtype(c)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    model = models.build(shape, compute_dtype=c.train.compute_dtype)
    return Teacher(model, params, identity)


def load_initial(c: ConfigDict, mesh: Mesh, tokenizer_hash: str) -> models.Params | None:
    """The parameters that `config.student.init` starts from; None for 'scratch'.

    Raises:
      UserError: no such run, or another shape or tokenizer than the student's.
    """
    path = c.student.init
    if path == 'scratch':
        return None
    _same_shape('student', c.student, read_shape('student.init', path), path)
    return read_run('student.init', path, mesh, tokenizer_hash)[1]


def _same_shape(name: str, wanted: ConfigDict, found: ConfigDict, path: str) -> None:
    for key, value in found.items():
        if key != 'dropout' and wanted[key] != value:
            raise UserError(f'config.{name}.{key} = {wanted[key]}: {path} has {value}')


def _dtype(c: ConfigDict):
    if c.teacher.dtype == 'auto':
        return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    return jnp.dtype(c.teacher.dtype)


def read_shape(key: str, path: str) -> ConfigDict:
    """Shape of the network that a run trained; raises UserError where no run has finished."""
    folder = pathlib.Path(path).expanduser()
    for name in ('checkpoints', 'config.json', 'result.json'):
        if not (folder / name).exists():
            raise UserError(
                f'config.{key} = {path}: must be the workdir of a finished run, has no {name}'
            )
    theirs = config.read(folder).student
    return config.network(**{name: theirs[name] for name in config.network()})


def read_run(
    key: str, path: str, mesh: Mesh, tokenizer_hash: str
) -> tuple[ConfigDict, models.Params]:
    """Shape and float32 parameters of the network that a run trained.

    Args:
      key: the configuration's key, for the message.
      path: the run's workdir.
      mesh: devices to put the parameters on, by sharding's rules.
      tokenizer_hash: what the run must have been trained with.

    Raises:
      UserError: the run is missing, or has another tokenizer.
    """
    shape, saved = read_shape(key, path), pathlib.Path(path).expanduser() / 'checkpoints'
    found = checkpoint.read_meta(saved)['tokenizer_hash']
    if found != tokenizer_hash:
        raise UserError(
            f'config.{key} = {path}: its tokenizer has hash {found}, the data here {tokenizer_hash}'
        )
    abstract = models.build(shape).abstract
    places = sharding.of_params(mesh, abstract)
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places
    )
    return shape, checkpoint.load_params(saved, abstract)
