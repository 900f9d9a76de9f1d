"""The real step of a run, compiled for a TPU slice that is not there: does it fit, what does it do?"""

import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import (
    check,
    config,
    distill_step,
    models,
    networks,
    optimizer,
    sharding,
    teacher,
    workdir,
)
from lightpaff_jax.config import flags
from lightpaff_jax.data import batches
from lightpaff_jax.errors import UserError
from lightpaff_jax.preflight import hlo
from lightpaff_jax.runtime import chips, distributed, storage
from lightpaff_jax.runtime.chips import GIB

USAGE = """
python -m lightpaff_jax.preflight --topology=CHIP:SHAPE --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Compiles the training step of a run for a TPU slice, on a machine that needs none, and prints the
memory of a chip, the largest batch that fits, collectives, FLOPs and an estimate of the step's time.
Ends with 1 where the step does not fit.

  --topology=...  chips of v4, v5e, v5p or v6e, as v5e:4x4 or v5p:2x2x2
  --slices=1      so many of them, joined by the data centre's network
  --out=FILE      gets the same as JSON
  --quick         compiles the step as it is, and searches no larger batch

It needs no data and no weights: the teacher's shape is config.teacher, or that of config.teacher.path
where this is there. Keys, defaults and units: lightpaff_jax/config/__init__.py
"""
_USED = re.compile(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm')
_TEMPORARY = re.compile(r'required for HLO temporaries \(([\d.]+)([KMGT])\)')
_UNITS = {'K': 1 << 10, 'M': 1 << 20, 'G': GIB, 'T': 1 << 40}


class Plan(NamedTuple):
    """What the compiler says of one chip; bytes."""

    total: float
    """At the same time."""
    temporary: float | None
    """Beside arguments and results; None where the step does not fit."""
    text: str
    """Of the program; '' where the step does not fit."""
    seconds: float
    """Of compiling."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if the step does not fit."""
    jax.config.update('jax_platforms', 'cpu')  # no device is needed, nor waited for
    os.environ |= {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}  # nor the other hosts of a pod
    return flags.main(run, USAGE, argv, {'topology': '', 'slices': 1, 'out': '', 'quick': False})


def run(c: ConfigDict, topology: str, slices: int, out: str, quick: bool) -> int:
    """Prints and writes the result; returns 1 if the step does not fit."""
    if not topology:
        raise UserError('--topology=CHIP:SHAPE: must be given, as v5e:4x4')
    if slices < 1:
        raise UserError(f'--slices={slices}: must be a whole number of at least 1')
    path = pathlib.Path(out).expanduser()
    if out and not path.absolute().parent.is_dir():
        raise UserError(f'--out={out}: its folder must exist')
    result = preflight(c, topology, slices, largest=not quick)
    distributed.log_primary(said(result))
    if out:
        path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    return int(not result['fits'])


def preflight(c: ConfigDict, topology: str, slices: int = 1, largest: bool = True) -> dict:
    """Compiles the step of `c` for a slice, and says what the compiler found.

    Args:
      c: a run; where it has a teacher, with its shape.
      topology: as of `chips.devices`.
      slices: likewise.
      largest: whether to find the most sequences a chip that fit, by two more programs.

    Returns:
      what `--out` writes: bytes are of one chip, FLOPs of a whole step.

    Raises:
      UserError: the configuration does not fit the slice.
    """
    devices = chips.devices(topology, slices)
    check.check(c, files=False, devices=devices)
    mesh = sharding.make_mesh(c, devices)
    net = _teacher_network(c)
    plan = compiled(c, mesh, net)
    chip = chips.CHIPS[topology.partition(':')[0]]
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    result: dict[str, Any] = {
        'topology': topology, 'slices': slices, 'chips': mesh.size, 'hbm': chip.hbm,
        'fits': bool(plan.text), 'bytes': plan.total, 'temporary': plan.temporary,
        'held': _held(c, mesh, net), 'sequences': c.data.batch_size // shards,
        'attention': networks.kernel(c, 'student', c.student, 'tpu', c.student.dropout),
        'remat': c.train.remat, 'grad_accum_steps': c.train.grad_accum_steps,
        'flops': _flops(c, net), 'seconds_to_compile': plan.seconds,
        'jax': jax.__version__, 'git_commit': workdir.git_commit(),
    }  # fmt: skip
    if plan.text:
        found = hlo.collectives(plan.text)
        result['collectives'] = [one._asdict() for one in found]
        result['estimate'] = _estimate(result, chip, found)
        result['cycles'] = hlo.cycles(plan.text, distill_step.SCOPES)
    else:
        result['keys'] = _keys(c, net)
    if largest:
        try:
            result['largest'] = _largest(c, mesh, net, plan, chip)
        except UserError as error:  # of the compiler, and another batch: what was found holds
            result['largest_failed'] = str(error)
    return result


def compiled(c: ConfigDict, mesh: Mesh, net: Any) -> Plan:
    """The step of `c`, of its longest bucket, for the devices of a mesh.

    Args:
      c: a run.
      mesh: of described TPU chips.
      net: shape of its teacher, or None.
    """
    student = networks.student(c, 'tpu')
    teacher_model = None if net is None else networks.teacher(c, net, 'tpu')
    rule = optimizer.make(c.optim)
    state = distill_step.abstract_state(c, mesh, student, rule)
    batch = batches.abstract_batches(c)[-1]
    place = sharding.batch_sharding(mesh, micro=True)
    batch = sharding.abstract_arrays(batch, jax.tree.map(lambda _: place, batch))
    step = distill_step.make_step(c, mesh, student, teacher_model, rule)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.lower(
            state, _teacher_params(c, mesh, teacher_model), batch, optimizer.hyperparameters(c)
        )
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return Plan(_needed(str(error), _held(c, mesh, net)), None, '', time.perf_counter() - began)
    m: Any = program.memory_analysis()
    inside = m.temp_size_in_bytes
    total = (m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
             + inside + m.generated_code_size_in_bytes)  # fmt: skip
    return Plan(total, inside, program.as_text() or '', time.perf_counter() - began)


def _needed(message: str, held: dict[str, float]) -> float:
    """Bytes that the compiler says it needs of the memory of a chip, where it ran out of it."""
    used, temporary = _USED.search(message), _TEMPORARY.search(message)
    if used:
        return float(used[1]) * _UNITS[used[2]]
    if temporary:
        return float(temporary[1]) * _UNITS[temporary[2]] + sum(held.values())
    raise UserError(f'the compiler for TPUs: {" ".join(message.split())[:300]}')


def _teacher_network(c: ConfigDict) -> ConfigDict | None:
    if c.teacher.path:
        storage.check_reachable(c.teacher.path)
        if storage.to_path(c.teacher.path).is_dir():
            return teacher.open(c).network
    if c.teacher.layers:
        if c.teacher.head != c.student.head:
            raise UserError(
                f'config.teacher.head = {c.teacher.head!r}: must equal student.head = {c.student.head!r}'
            )
        return config.network(**{key: c.teacher[key] for key in config.network()})
    if c.teacher.path:
        raise UserError(
            f'config.teacher.path = {c.teacher.path}: is not there, and config.teacher.layers = 0: '
            'give the shape of the teacher in config.teacher'
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


def _held(c: ConfigDict, mesh: Mesh, net: Any) -> dict[str, float]:
    """Bytes of a chip that stay from step to step."""
    student = networks.student(c, 'tpu')
    state = distill_step.abstract_state(c, mesh, student, optimizer.make(c.optim))
    teacher_model = None if net is None else networks.teacher(c, net, 'tpu')

    def size(tree) -> float:
        return sum(
            int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    return {
        'parameters': size(state.params),
        'optimizer': size(state.opt_state),
        'teacher': size(_teacher_params(c, mesh, teacher_model)),
    }


def _flops(c: ConfigDict, net: Any) -> dict[str, float]:
    """Of matrix products of a step, by formula: three times the student's forward pass, once the teacher's."""
    shape = networks.shapes(c)[-1]
    size = c.data.batch_size

    def both(net) -> tuple[float, float]:
        model = models.build(net)
        head = 2.0 * shape.predicted * net.width * models.head_rows(net)
        return size * (model.flops(shape) - head), size * head

    body, head = both(c.student)
    teacher_body, teacher_head = (0.0, 0.0) if net is None else both(net)
    return {'student': 3 * body, 'teacher': teacher_body, 'loss': 3 * head + teacher_head}


def _estimate(result: dict, chip: chips.Chip, found: list[hlo.Collective]) -> dict[str, float]:
    """Seconds that a step takes at least: of matrix products, of memory, of collectives."""
    moved = sum(one.bytes * one.times for one in found)
    held = result['held']
    # Parameters and moments are read and written, temporaries written and read, at least once.
    memory = 2 * (held['parameters'] + held['optimizer'] + result['temporary']) + held['teacher']
    bounds = {
        'products': sum(result['flops'].values()) / result['chips'] / chip.flops,
        'memory': memory / chip.hbm_rate,
    }
    if result['slices'] == 1:  # between slices is a network whose rate is not the chip's
        bounds['collectives'] = moved / chip.ici_rate
    return bounds


def _largest(c: ConfigDict, mesh: Mesh, net: Any, plan: Plan, chip: chips.Chip) -> dict:
    """The most sequences of a micro-batch on a chip: by a line through two programs, and one to confirm."""
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    each = shards * c.train.grad_accum_steps
    tried: dict[int, Plan] = {c.data.batch_size // each: plan}

    def total(rows: int) -> Plan:
        if rows not in tried:
            larger = config.copy(c)
            larger.data.batch_size = rows * each
            if c.teacher.microbatch_size and rows % c.teacher.microbatch_size:
                larger.teacher.microbatch_size = 0
            tried[rows] = compiled(larger, mesh, net)
        return tried[rows]

    first = c.data.batch_size // each
    other = max(1, first // 2) if first > 1 else 2
    low, high = sorted((first, other))
    slope = (total(high).total - total(low).total) / (high - low)
    most = high
    if slope > 0:
        most = _round(low + (chip.hbm - total(low).total) / slope)
    confirmed = 0
    for _ in range(3):
        if most < 1 or total(most).text:
            confirmed = max(most, 0)
            break
        if slope <= 0:  # what it needs is not what rows take
            break
        over = total(most).total - chip.hbm
        most = min(_round(most - over / slope), _round(most - 1))
    fitting = [rows for rows, found in tried.items() if found.text]
    return {
        'sequences': max([confirmed, *fitting], default=0),
        'tried': {
            rows: {'bytes': one.total, 'fits': bool(one.text)}
            for rows, one in sorted(tried.items())
        },
    }  # fmt: skip


def _round(rows: float) -> int:
    """A whole number of rows; above 16 a multiple of 8, as a batch is split into."""
    return int(rows) // 8 * 8 if rows >= 16 else int(rows)


def _keys(c: ConfigDict, net: Any) -> list[str]:
    """What may be turned where the step does not fit."""
    found = []
    if c.data.batch_size // c.train.grad_accum_steps > 1:
        found.append('train.grad_accum_steps up or data.batch_size down')
    if c.train.remat != 'block':
        found.append("train.remat = 'block'")
    if c.student.dropout and c.train.attention == 'auto':
        found.append('student.dropout = 0, which allows attention without T x T weights')
    if net is not None and c.teacher.microbatch_size != 1:
        found.append('teacher.microbatch_size down')
    found.append('mesh.fsdp up')
    return found


def said(result: dict) -> str:
    """The result as text."""
    gib = {key: f'{result[key] / GIB:.2f} GiB' for key in ('hbm', 'bytes')}
    held = ', '.join(f'{name} {size / GIB:.2f}' for name, size in result['held'].items())
    of = f'{result["slices"]} x ' if result['slices'] > 1 else ''
    lines = [
        f'{of}{result["topology"]}, {result["chips"]} chips; {result["sequences"]} sequences a chip in '
        f'{result["grad_accum_steps"]} micro-batches; attention {result["attention"]}, remat {result["remat"]}',
        f'memory of a chip: {gib["bytes"]} of {gib["hbm"]}'
        + (
            ''
            if result['fits']
            else f': {(result["bytes"] - result["hbm"]) / GIB:.2f} GiB too much'
        ),
        f'  stays: {held} GiB'
        + (f'; beside it: {result["temporary"] / GIB:.2f} GiB' if result['fits'] else ''),
    ]
    if not result['fits']:
        lines.append(f'  does not fit; turn {"; ".join(result["keys"])}')
    if 'largest' in result:
        tried = ', '.join(
            f'{rows}: {one["bytes"] / GIB:.2f}{"" if one["fits"] else " (too much)"}'
            for rows, one in result['largest']['tried'].items()
        )
        lines.append(
            f'most sequences of a micro-batch on a chip: {result["largest"]["sequences"]} (GiB by '
            f'sequences: {tried})'
        )
    if 'largest_failed' in result:
        lines.append(
            f'most sequences of a micro-batch on a chip: not found, {result["largest_failed"]}'
        )
    flops = result['flops']
    shares = ', '.join(f'{name} {value:.3g}' for name, value in flops.items())
    lines.append(f'FLOPs of a step, by formula: {sum(flops.values()):.3g} ({shares})')
    if result['fits']:
        lines += hlo.said([hlo.Collective(**one) for one in result['collectives']])
        bounds = result['estimate']
        each = ', '.join(f'{name} {1e3 * value:.1f}' for name, value in bounds.items())
        lines.append(
            f'roofline, an estimate and not measured: a step takes at least '
            f'{1e3 * max(bounds.values()):.1f} ms (ms at the full rate: {each})'
        )
        if total := sum(result['cycles'].values()):  # an older compiler estimates none
            parts = result['cycles'].items()
            each = ', '.join(f'{name} {100 * n / total:.0f} %' for name, n in parts)
            lines.append(
                f"cycles by the compiler's estimate, Pallas kernels not counted: {total:.3g} ({each})"
            )
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
