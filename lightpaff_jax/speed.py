"""Teacher against student: size, FLOPs, latency, throughput, timed in pairs in one process."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lightpaff_jax import check, config, models, pretrained, sharding, workdir
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import flags
from lightpaff_jax.data import batches, objectives, prepare
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.losses import Predictor, distillation_loss
from lightpaff_jax.runtime import distributed

USAGE = """
python -m lightpaff_jax.speed --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Compares the network trained in config.workdir with the teacher in config.teacher.path on test
data, and writes config.workdir/speed.json. Latency: one example scored. Throughput:
config.eval.batch_size examples at a time.
"""

_PAIRS = 9
_SECONDS = 0.1  # least time of one measurement


def compare(c: ConfigDict) -> dict:
    """Two trained networks side by side, in float32 on the first device; process 0 measures.

    Args:
      c: configuration of the student's run: `workdir`, and the teacher to compare with in
        `teacher.path`.

    Returns:
      what speed.json holds; ratios are teacher / student (throughput: student / teacher), for
      times the median over pairs of measurements that follow each other. On other processes
      than 0, which only read what it reads, nothing.
    """
    student = pretrained.open('config.workdir', c.workdir)
    teacher = pretrained.open('config.teacher.path', c.teacher.path)
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    whole = next(batches.evaluation(c, prepared, tokenizer, 'test'))
    shape = objectives.OBJECTIVES[c.objective].shape(c)
    size, length = c.eval.batch_size, shape.tokens + shape.source
    inputs = {rows: jax.tree.map(lambda x, rows=rows: x[:rows], whole) for rows in (1, size)}
    mesh = sharding.make_mesh(config.default(), jax.local_devices()[:1])
    sides, calls = {}, {}
    with jax.set_mesh(mesh):
        for name, source in (('teacher', teacher), ('student', student)):
            model = models.build(source.network)
            source.check_tokenizer(tokenizer, c.tokenizer.lowercase)
            params = source.read_params(model, mesh)
            sides[name] = {
                'parameters': model.parameter_count,
                'bytes': 4 * model.parameter_count,
                'flops': model.flops(shape),
            }
            if distributed.is_primary():
                calls[name] = {n: _scorer(model, params, batch) for n, batch in inputs.items()}
        if not calls:
            return {}
        one = _pairs(calls['teacher'][1], calls['student'][1])
        many = _pairs(calls['teacher'][size], calls['student'][size])
    for index, side in enumerate(sides.values()):
        side['latency_ms'] = 1e3 * statistics.median(pair[index] for pair in one)
        seconds = statistics.median(pair[index] for pair in many)
        side['tokens_per_second'] = size * length / seconds
    sizes = ('parameters', 'bytes', 'flops')
    ratios = {key: sides['teacher'][key] / sides['student'][key] for key in sizes}
    ratios['latency'] = statistics.median(a / b for a, b in one)
    ratios['throughput'] = statistics.median(a / b for a, b in many)
    classifies = config.OBJECTIVES[c.objective].outputs == 'logits'
    task = 'classifies a text' if classifies else 'scores a sequence'
    device = jax.devices()[0]
    hardware = f'1 x {device.device_kind}, {os.cpu_count()} cores'
    return {
        'task': task,
        'batch_size': size, 'length': length, 'pairs': _PAIRS, **sides, 'ratios': ratios,
        'hardware': hardware,
    }  # fmt: skip


def _scorer(model: models.Model, params, batch: Batch) -> Callable[[], None]:
    """A compiled call that scores a batch: features, head, negative log-likelihood."""
    batch = jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def score(params, batch):
        mine = Predictor(model.features(params, batch), model.head(params))
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
        raise UserError("config.teacher.path = '': must be a workdir or a Hugging Face folder")
    check.check(c, runs=False, devices=())
    comparison = compare(c)
    workdir.write_json(workdir.folder(c) / 'speed.json', comparison)
    distributed.log_primary(json.dumps(comparison, indent=2))


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
