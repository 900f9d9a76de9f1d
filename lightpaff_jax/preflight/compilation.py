"""Compiles the training step of a run for TPU chips that are not attached, and sizes its memory."""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding, teacher
from lightpaff_jax.data import batches
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import chips, storage
from lightpaff_jax.teacher import cache

_USED = re.compile(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm')
_TEMPORARY = re.compile(r'required for HLO temporaries \(([\d.]+)([KMGT])\)')
_UNITS = {'K': 1 << 10, 'M': 1 << 20, 'G': chips.GIB, 'T': 1 << 40}


class Program(NamedTuple):
    """The compiler's report about one chip; sizes in bytes."""

    total: float
    """Peak memory."""
    temporary: float | None
    """Memory besides arguments and results; None if the step does not fit."""
    text: str
    """The optimized HLO; '' if the step does not fit."""
    seconds: float
    """Compilation time."""


def compile_step(c: ConfigDict, mesh: Mesh, network: Any) -> Program:
    """Compiles the step of a run for its longest batch shape.

    Args:
      c: configuration of the run.
      mesh: mesh of described TPU chips.
      network: optional shape of the teacher.

    Raises:
      UserError: the compiler fails for another reason than memory.
    """
    student = networks.student(c, 'tpu')
    teacher_model = None if network is None else networks.teacher(c, network, 'tpu')
    rule = optimizer.make(c.optim)
    losses = network and networks.matching_losses(c, network)
    state = distill_step.abstract_state(c, mesh, student, rule, losses)
    batch = batches.abstract_batches(c)[-1]
    if c.teacher.cache and network is not None:
        batch = dataclasses.replace(batch, teacher=cache.abstract_arrays(network, batch, losses))
    place = sharding.batch_sharding(mesh, micro=True)
    batch = sharding.abstract_arrays(batch, jax.tree.map(lambda _: place, batch))
    step = distill_step.make_step(c, mesh, student, teacher_model, rule, losses)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        params = _teacher_params(c, mesh, teacher_model)
        lowered = step.lower(state, params, batch, optimizer.hyperparameters(c))
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        total = required_bytes(str(error), resident_bytes(c, mesh, network))
        return Program(total, None, '', time.perf_counter() - start)
    memory: Any = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total = arguments - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes + temporary
    return Program(total, temporary, program.as_text() or '', time.perf_counter() - start)


def required_bytes(message: str, resident: dict[str, float]) -> float:
    """Returns the memory that a program needs, from the compiler's out-of-memory error.

    Raises:
      UserError: the error has another reason.
    """
    used, temporary = _USED.search(message), _TEMPORARY.search(message)
    if used:
        return float(used[1]) * _UNITS[used[2]]
    if temporary:
        return float(temporary[1]) * _UNITS[temporary[2]] + sum(resident.values())
    raise UserError(f'the compiler for TPUs: {" ".join(message.split())[:300]}')


def teacher_network(c: ConfigDict) -> ConfigDict | None:
    """Returns the shape of the teacher, from its path or from `config.teacher`; None without teacher.

    Raises:
      UserError: the shape is not known, or is not that of a teacher of the student.
    """
    if c.teacher.path:
        storage.check_reachable(c.teacher.path)
        if storage.to_path(c.teacher.path).is_dir():
            network = teacher.open(c).network
            network.vocab_size = c.student.vocab_size  # the run reduces its vocabulary
            return network
    if c.teacher.layers:
        if teacher.reads_head(c) and c.teacher.head != c.student.head:
            raise UserError(
                f'config.teacher.head = {c.teacher.head!r}: must equal student.head = '
                f'{c.student.head!r}'
            )
        network = config.network(**{key: c.teacher[key] for key in config.network()})
        network.vocab_size = c.student.vocab_size  # the run reduces its vocabulary
        return network
    if c.teacher.path:
        raise UserError(
            f'config.teacher.path = {c.teacher.path}: does not exist, and config.teacher.layers = 0: '
            'set the shape of the teacher in config.teacher'
        )
    return None


def _teacher_params(c: ConfigDict, mesh: Mesh, teacher_model: models.Model | None) -> Any:
    if teacher_model is None:
        return None
    dtype = networks.teacher_dtype(c, 'tpu')
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype), teacher_model.abstract_params
    )
    return sharding.abstract_arrays(params, sharding.param_shardings(mesh, params, c.mesh.teacher))


def resident_bytes(c: ConfigDict, mesh: Mesh, network: Any) -> dict[str, float]:
    """Returns the bytes of a chip that stay in use between steps."""
    student = networks.student(c, 'tpu')
    losses = network and networks.matching_losses(c, network)
    state = distill_step.abstract_state(c, mesh, student, optimizer.make(c.optim), losses)
    teacher_model = None if network is None else networks.teacher(c, network, 'tpu')

    def size(tree: Any) -> float:
        return sum(
            int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    return {
        'parameters': size(state.params),
        'optimizer': size(state.opt_state),
        'teacher': size(_teacher_params(c, mesh, teacher_model)),
    }
