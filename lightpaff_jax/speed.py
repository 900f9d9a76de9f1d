"""Compares teacher and student: size, FLOPs, latency and throughput, timed in one process."""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
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
data, and writes config.workdir/speed.json. Latency is the time to score one example; throughput is
measured on batches of config.eval.batch_size examples.
"""

_PAIRS = 9
_SECONDS = 0.1  # minimum duration of a measurement


def compare(c: ConfigDict) -> dict[str, Any]:
    """Compares two trained networks, in float32 on the first device of process 0.

    Times are medians over pairs of measurements, teacher and student in turn, so that a slow phase
    of the machine affects both.

    Args:
      c: the configuration of the student's run; `teacher.path` is the teacher.

    Returns:
      the content of speed.json, {} on other processes. Ratios are teacher / student; for
      throughput, student / teacher.

    Raises:
      UserError: a path has no trained network, or its tokenizer is not that of the data.
    """
    student = pretrained.open('config.workdir', c.workdir)
    teacher = pretrained.open('config.teacher.path', c.teacher.path)
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    batch = next(batches.evaluation(c, prepared, tokenizer, 'test'))
    shape = objectives.OBJECTIVES[c.objective].shape(c)
    size, length = c.eval.batch_size, shape.tokens + shape.source
    mesh = sharding.make_mesh(config.default(), jax.local_devices()[:1])
    report: dict[str, dict[str, float]] = {}
    calls = {}
    with jax.set_mesh(mesh):
        for name, source in (('teacher', teacher), ('student', student)):
            model = models.build(source.network)
            ids_V = source.whole_ids(tokenizer, c.tokenizer.lowercase)
            params = source.read_params(model, mesh)
            count = model.parameter_count
            report[name] = {'parameters': count, 'bytes': 4 * count, 'flops': model.flops(shape)}
            if distributed.is_primary():
                texts = batch if ids_V is None else _map_ids(batch, ids_V)
                calls[name] = [_compile_score(model, params, texts, rows) for rows in (1, size)]
        if not calls:
            return {}
        latency, batch_seconds = map(_time_pairs, calls['teacher'], calls['student'])
    for index, entry in enumerate(report.values()):
        entry['latency_ms'] = 1e3 * statistics.median(pair[index] for pair in latency)
        seconds = statistics.median(pair[index] for pair in batch_seconds)
        entry['tokens_per_second'] = size * length / seconds
    sizes = ('parameters', 'bytes', 'flops')
    ratios = {key: report['teacher'][key] / report['student'][key] for key in sizes}
    ratios['latency'] = statistics.median(t / s for t, s in latency)
    ratios['throughput'] = statistics.median(t / s for t, s in batch_seconds)
    is_classifier = config.OBJECTIVES[c.objective].outputs == 'logits'
    return {
        'task': 'classifies a text' if is_classifier else 'scores a sequence',
        'batch_size': size,
        'length': length,
        'pairs': _PAIRS,
        **report,
        'ratios': ratios,
        'hardware': f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores',
    }


def _map_ids(batch: Batch, ids_V: Int[np.ndarray, ' V']) -> Batch:
    """Returns the batch of a reduced tokenizer in the ids of the whole one."""
    source = None if batch.source is None else ids_V[batch.source]
    return dataclasses.replace(batch, tokens=ids_V[batch.tokens], source=source)


def _compile_score(model: models.Model, params, batch: Batch, rows: int) -> Callable[[], None]:
    batch = jax.tree.map(lambda x: jnp.asarray(x[:rows]), batch)

    @jax.jit
    def score(params, batch):
        predictor = Predictor(model.features(params, batch), model.head(params))
        return distillation_loss(predictor, None, batch.labels, batch.weights)['ce']

    def call():
        score(params, batch).block_until_ready()

    call()
    return call


def _time_pairs(a: Callable[[], None], b: Callable[[], None]) -> list[tuple[float, float]]:
    """Measures the seconds per call of `a` and of `b` in turn, _PAIRS times."""

    def measure(call):
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < _SECONDS:
            call()
            count += 1
        return seconds / count

    measure(a), measure(b)  # the first measurements are slower
    return [(measure(a), measure(b)) for _ in range(_PAIRS)]


def run(c: ConfigDict) -> None:
    """Compares the networks in `c.teacher.path` and `c.workdir`; writes and prints speed.json."""
    if not c.teacher.path:
        raise UserError("config.teacher.path = '': must be a workdir or a Hugging Face folder")
    if config.OBJECTIVES[c.objective].outputs == 'matching':
        raise UserError(f'config.objective = {c.objective!r}: has no outputs to time')
    check.check(c, runs=False, devices=())
    folder = workdir.folder(c)
    with workdir.held(folder):
        comparison = compare(c)
        workdir.write_json(folder / 'speed.json', comparison)
    distributed.log_primary(json.dumps(comparison, indent=2))


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
