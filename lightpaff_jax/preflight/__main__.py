"""The command `preflight`: compiles the step of a run for a TPU slice, without a TPU."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import check, config, distill_step, models, networks, sharding, workdir
from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError
from lightpaff_jax.preflight import compilation, hlo
from lightpaff_jax.preflight.compilation import Program
from lightpaff_jax.runtime import chips, distributed, storage
from lightpaff_jax.runtime.chips import GIB

USAGE = """
python -m lightpaff_jax.preflight --topology=CHIP:SHAPE --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Compiles the training step of a run for a TPU slice, on a machine without TPUs. Prints the memory of
a chip, the largest batch that fits, collectives, FLOPs and an estimate of the time of a step. The
exit code is 1 if the step does not fit.

  --topology=...  chips of v4, v5e, v5p or v6e, for example v5e:4x4 or v5p:2x2x2
  --slices=1      number of slices, joined by the network of the data centre
  --out=FILE      writes the same as JSON
  --quick         compiles the step as configured and does not search for a larger batch

The command needs no data and no weights. The shape of the teacher is read from config.teacher.path
if it exists, else from config.teacher. Keys, defaults and units: lightpaff_jax/config/__init__.py
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if the step does not fit."""
    # Compilation for described chips needs no attached device and no other hosts of a pod.
    jax.config.update('jax_platforms', 'cpu')
    os.environ |= {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}
    return flags.main(run, USAGE, argv, {'topology': '', 'slices': 1, 'out': '', 'quick': False})


def run(c: ConfigDict, topology: str, slices: int, out: str, quick: bool) -> int:
    """Prints and writes the result; returns 1 if the step does not fit."""
    if not topology:
        raise UserError('--topology=CHIP:SHAPE: must be given, for example v5e:4x4')
    if slices < 1:
        raise UserError(f'--slices={slices}: must be a whole number of at least 1')
    path = pathlib.Path(out).expanduser()
    if out and not path.absolute().parent.is_dir():
        raise UserError(f'--out={out}: its folder must exist')
    result = preflight(c, topology, slices, largest=not quick)
    distributed.log_primary(summary(result))
    if out:
        storage.write_json(path, result)
    return int(not result['fits'])


def preflight(c: ConfigDict, topology: str, slices: int = 1, largest: bool = True) -> dict:
    """Compiles the step of a run for a TPU slice and analyses the program.

    Args:
      c: configuration of the run; states the shape of a teacher whose path does not exist.
      topology: as for `chips.devices`.
      slices: as for `chips.devices`.
      largest: whether to search for the most sequences per chip that fit, by two more programs.

    Returns:
      The content of --out; bytes are per chip, FLOPs per step of the slice.

    Raises:
      UserError: the configuration does not fit the slice.
    """
    devices = chips.devices(topology, slices)
    check.check(c, files=False, devices=devices)
    mesh = sharding.make_mesh(c, devices)
    network = compilation.teacher_network(c)
    program = compilation.compile_step(c, mesh, network)
    chip = chips.CHIPS[topology.partition(':')[0]]
    result: dict[str, Any] = {
        'topology': topology,
        'slices': slices,
        'chips': mesh.size,
        'hbm': chip.hbm,
        'fits': bool(program.text),
        'bytes': program.total,
        'temporary': program.temporary,
        'held': compilation.resident_bytes(c, mesh, network),
        'sequences': c.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp']),
        'attention': networks.kernel(c, 'student', c.student, 'tpu', c.student.dropout),
        'remat': c.train.remat,
        'grad_accum_steps': c.train.grad_accum_steps,
        'flops': flops(c, network),
        'seconds_to_compile': program.seconds,
        'jax': jax.__version__,
        'git_commit': workdir.git_commit(),
    }
    if program.text:
        collectives = hlo.collectives(program.text)
        result['collectives'] = [collective._asdict() for collective in collectives]
        result['estimate'] = _estimate(result, chip, collectives)
        result['cycles'] = hlo.cycles(program.text, distill_step.SCOPES)
    else:
        result['keys'] = _advice(c, network)
    if largest:
        try:
            result['largest'] = find_largest(c, mesh, network, program, chip)
        except UserError as error:  # the compiler failed for another batch; the result still holds
            result['largest_failed'] = str(error)
    return result


def flops(c: ConfigDict, network: Any) -> dict[str, float]:
    """Returns the FLOPs of the matrix products of a step, by formula.

    A backward pass costs two forward passes; the teacher has only a forward pass.

    Args:
      c: configuration of the run.
      network: optional shape of the teacher, whose features a cache may hold.
    """
    shape, size = networks.shapes(c)[-1], c.data.batch_size
    teacher = None if network is None else models.build(network)
    losses = network and networks.matching_losses(c, network)
    update = networks.update_flops(models.build(c.student), teacher, losses, shape)
    head = 3 * models.head_flops(c.student, shape)
    return {
        'student': size * (update.student - head),
        'teacher': 0.0 if c.teacher.cache else size * update.teacher,
        'loss': size * (head + update.teacher_head),
    }


def _estimate(
    result: dict, chip: chips.Chip, collectives: list[hlo.Collective]
) -> dict[str, float]:
    held = result['held']
    # Parameters and moments are read and written, temporaries written and read, at least once.
    memory = 2 * (held['parameters'] + held['optimizer'] + result['temporary']) + held['teacher']
    bounds = {
        'products': sum(result['flops'].values()) / result['chips'] / chip.flops,
        'memory': memory / chip.hbm_rate,
    }
    if result['slices'] == 1:  # the network between slices has another rate than the chip
        bytes_ = sum(collective.bytes * collective.times for collective in collectives)
        bounds['collectives'] = bytes_ / chip.ici_rate
    return bounds


def find_largest(
    c: ConfigDict, mesh: Mesh, network: Any, program: Program, chip: chips.Chip
) -> dict:
    """Finds the most sequences of a micro-batch that fit on a chip.

    Memory grows linearly with the number of sequences: a line through two programs gives the
    largest number, and further programs confirm or correct it.
    """
    factor = mesh.shape['data'] * mesh.shape['fsdp'] * c.train.grad_accum_steps
    first = c.data.batch_size // factor
    programs = {first: program}

    def total(rows: int) -> float:
        if rows not in programs:
            changed = config.copy(c)
            changed.data.batch_size = rows * factor
            if c.teacher.microbatch_size and rows % c.teacher.microbatch_size:
                changed.teacher.microbatch_size = 0
            programs[rows] = compilation.compile_step(changed, mesh, network)
        return programs[rows].total

    low, high = sorted((first, max(1, first // 2) if first > 1 else 2))
    slope = (total(high) - total(low)) / (high - low)
    rows = _round(low + (chip.hbm - total(low)) / slope) if slope > 0 else high
    for _ in range(3):
        if rows < 1:
            break
        excess = total(rows) - chip.hbm
        if programs[rows].text or slope <= 0:  # without a slope, fewer rows need no less memory
            break
        rows = min(_round(rows - excess / slope), _round(rows - 1))
    return {
        'sequences': max((n for n, compiled in programs.items() if compiled.text), default=0),
        'tried': {
            n: {'bytes': compiled.total, 'fits': bool(compiled.text)}
            for n, compiled in sorted(programs.items())
        },
    }


def _round(rows: float) -> int:
    """Rounds down to a whole number; from 16 on to a multiple of 8, which batches usually are."""
    return int(rows) // 8 * 8 if rows >= 16 else int(rows)


def _advice(c: ConfigDict, network: Any) -> list[str]:
    settings = ['mesh.fsdp up']
    if network is not None and c.teacher.microbatch_size != 1:
        settings.insert(0, 'teacher.microbatch_size down')
    if c.student.dropout and c.train.attention == 'auto':
        settings.insert(0, 'student.dropout = 0, which allows attention without T x T weights')
    if c.train.remat != 'block':
        settings.insert(0, "train.remat = 'block'")
    if c.data.batch_size // c.train.grad_accum_steps > 1:
        settings.insert(0, 'train.grad_accum_steps up or data.batch_size down')
    return settings


def _join(values: dict[str, float], form: str) -> str:
    return ', '.join(f'{name} {value:{form}}' for name, value in values.items())


def summary(result: dict) -> str:
    """Formats the result of `preflight` as lines of text."""
    size, hbm, fits = result['bytes'] / GIB, result['hbm'] / GIB, result['fits']
    slices = f'{result["slices"]} x ' if result['slices'] > 1 else ''
    excess = '' if fits else f': {size - hbm:.2f} GiB too much'
    temporary = f'; temporary: {result["temporary"] / GIB:.2f} GiB' if fits else ''
    held = _join({name: value / GIB for name, value in result['held'].items()}, '.2f')
    lines = [
        f'{slices}{result["topology"]}, {result["chips"]} chips; {result["sequences"]} sequences per '
        f'chip in {result["grad_accum_steps"]} micro-batches; attention {result["attention"]}, remat '
        f'{result["remat"]}',
        f'memory of a chip: {size:.2f} GiB of {hbm:.2f} GiB{excess}',
        f'  between steps: {held} GiB{temporary}',
    ]
    if not fits:
        lines.append(f'  does not fit; change {"; ".join(result["keys"])}')
    label = 'most sequences of a micro-batch on a chip'
    if 'largest' in result:
        tried = ', '.join(
            f'{rows}: {program["bytes"] / GIB:.2f}{"" if program["fits"] else " (too much)"}'
            for rows, program in result['largest']['tried'].items()
        )
        lines.append(f'{label}: {result["largest"]["sequences"]} (GiB by sequences: {tried})')
    if 'largest_failed' in result:
        lines.append(f'{label}: unknown, {result["largest_failed"]}')
    total = sum(result['flops'].values())
    lines.append(f'FLOPs of a step, by formula: {total:.3g} ({_join(result["flops"], ".3g")})')
    if not fits:
        return '\n'.join(lines)
    lines += hlo.summary([hlo.Collective(**fields) for fields in result['collectives']])
    bounds = {name: 1e3 * value for name, value in result['estimate'].items()}
    lines.append(
        f'roofline, an estimate and not measured: a step takes at least {max(bounds.values()):.1f} ms '
        f'(ms at the full rate: {_join(bounds, ".1f")})'
    )
    if cycles := sum(result['cycles'].values()):  # older compilers give no estimate
        shares = _join({name: n / cycles for name, n in result['cycles'].items()}, '.0%')
        lines.append(
            f"cycles by the compiler's estimate, without Pallas kernels: {cycles:.3g} ({shares})"
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
