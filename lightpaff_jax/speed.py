"""Teacher against student: size, FLOPs, latency, throughput, timed in pairs in one process."""

import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import checkpoint, command, config, models, sharding, teacher, workdir
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import UserError
from lightpaff_jax.losses import Head, Predictor, distillation_loss

USAGE = """
python -m lightpaff_jax.speed --config=FILE[:VARIANT] [--config.KEY=VALUE ...]

Compares the network trained in config.workdir with the teacher in config.teacher.path, and
writes config.workdir/speed.json. Latency: one sequence of config.data.length tokens scored.
Throughput: config.eval.batch_size sequences at a time.
"""

_PAIRS = 9
_SECONDS = 0.1  # least time of one measurement


def compare(big: str, small: str, length: int, batch_size: int, tokenizer_hash: str) -> dict:
    """Two trained networks side by side, in float32 on the first device.

    Args:
      big: workdir of the teacher.
      small: workdir of the student.
      length: T, tokens a sequence.
      batch_size: sequences at a time, for throughput.
      tokenizer_hash: what both were trained with.

    Returns:
      what speed.json holds; ratios are teacher / student (throughput: student / teacher), for
      times the median over pairs of measurements that follow each other.
    """
    c = config.default()
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    sides, calls = {}, {}
    with jax.set_mesh(mesh):
        for name, key, path in (('teacher', 'teacher.path', big), ('student', 'workdir', small)):
            shape, params = teacher.read_run(key, path, mesh, tokenizer_hash)
            model = models.build(shape)
            sides[name] = {
                'parameters': model.parameters,
                'bytes': 4 * model.parameters,
                'flops_per_token': model.flops(length, length) / length,
            }
            calls[name] = {b: _scorer(model, params, b, length) for b in (1, batch_size)}
        one = _pairs(calls['teacher'][1], calls['student'][1])
        many = _pairs(calls['teacher'][batch_size], calls['student'][batch_size])
    for index, side in enumerate(sides.values()):
        side['latency_ms'] = 1e3 * statistics.median(pair[index] for pair in one)
        seconds = statistics.median(pair[index] for pair in many)
        side['tokens_per_second'] = batch_size * length / seconds
    sizes = ('parameters', 'bytes', 'flops_per_token')
    ratios = {key: sides['teacher'][key] / sides['student'][key] for key in sizes}
    ratios['latency'] = statistics.median(a / b for a, b in one)
    ratios['throughput'] = statistics.median(a / b for a, b in many)
    device = jax.devices()[0]
    hardware = f'1 x {device.device_kind}, {os.cpu_count()} cores'
    return {
        'batch_size': batch_size, 'length': length, 'pairs': _PAIRS, **sides,
        'ratios': ratios, 'hardware': hardware,
    }  # fmt: skip


def _scorer(model: models.Model, params, batch_size: int, length: int) -> Callable[[], None]:
    """A compiled call that scores random sequences: features, head, negative log-likelihood."""
    ids = np.random.default_rng(0).integers(0, model.vocab_size, (batch_size, length + 1))
    tokens, labels = jnp.asarray(ids[:, :-1], jnp.int32), jnp.asarray(ids[:, 1:], jnp.int32)
    batch = Batch(tokens, labels, jnp.ones((batch_size, length)))

    @jax.jit
    def score(params, batch):
        mine = Predictor(model.features(params, batch), Head(*model.head(params)))
        return distillation_loss(mine, None, batch.labels, batch.weights)['ce']

    def call():
        score(params, batch).block_until_ready()

    call()
    return call


def _pairs(a: Callable[[], None], b: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds a call of `a` and of `b`, measured in turn."""

    def rounds(call):
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < _SECONDS:
            call()
            count += 1
        return spent / count

    rounds(a), rounds(b)
    return [(rounds(a), rounds(b)) for _ in range(_PAIRS)]


def run(c: ConfigDict) -> None:
    """Compares the networks of `c.teacher.path` and `c.workdir`; writes and prints speed.json."""
    if not c.teacher.path:
        raise UserError("config.teacher.path = '': must be the workdir of a run")
    teacher.read_shape('workdir', c.workdir)
    folder = pathlib.Path(c.workdir)
    tokenizer_hash = checkpoint.read_meta(folder / 'checkpoints')['tokenizer_hash']
    found = compare(c.teacher.path, c.workdir, c.data.length, c.eval.batch_size, tokenizer_hash)
    text = json.dumps(found, indent=2)
    workdir.write(folder / 'speed.json', text + '\n')
    print(text)


if __name__ == '__main__':
    sys.exit(command.main(run, USAGE))
