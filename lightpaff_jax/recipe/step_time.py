"""The ratio of the step times of two runs, measured in turn in one process."""

import itertools
import statistics
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import distill_step, networks, optimizer, sharding, train
from lightpaff_jax.data import batches
from lightpaff_jax.runtime import distributed

_PAIRS = 9
_UPDATES = 4  # of a measurement


def ratio(a: ConfigDict, b: ConfigDict) -> float:
    """Returns the time of an update of run `a` divided by that of run `b`, equal on all processes.

    Both run the compiled steps of training on their own networks and first batches. The ratio is
    the median over pairs of measurements, so that a slow phase of the machine affects both.
    """
    train.use_compilation_cache(a.train.compilation_cache)
    mesh = sharding.make_mesh(a)
    with jax.set_mesh(mesh):
        measure_a, measure_b = _stopwatch(a, mesh), _stopwatch(b, mesh)
        pairs = [(measure_a(), measure_b()) for _ in range(1 + _PAIRS)]
    # The first measurements compile, and are slower.
    median = statistics.median(x / y for x, y in pairs[1:])
    return distributed.broadcast_from_primary(lambda: median)


def _stopwatch(c: ConfigDict, mesh: Mesh) -> Callable[[], float]:
    """Returns a function that takes a few updates of a run and returns their seconds."""
    inputs = train.load_inputs(c, mesh)
    student, rule, teacher = networks.student(c), optimizer.make(c.optim), inputs.teacher
    model, teacher_params = (teacher.model, teacher.params) if teacher else (None, None)
    step = distill_step.make_step(c, mesh, student, model, rule, inputs.matching)
    run_step = train.compile_by_shape(step, teacher_params, optimizer.hyperparameters(c))
    rows = sharding.local_rows(mesh, c.data.batch_size // c.train.grad_accum_steps)
    stream = batches.training(c, inputs.prepared, inputs.tokenizer, 0, rows)
    examples = [*sharding.prefetch(mesh, itertools.islice(stream, _UPDATES))]
    state = train.initial_state(c, mesh, student, rule, inputs)

    def measure() -> float:
        nonlocal state
        start = time.perf_counter()
        for batch in examples:
            state, *_ = run_step(state, batch, None)
            jax.block_until_ready(state)
        return time.perf_counter() - start

    return measure
