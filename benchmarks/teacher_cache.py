"""Compares updates that compute the teacher's features with updates that read them from a cache.

    python benchmarks/teacher_cache.py [--teacher=6x384x12] [--student=3x192x3] [--pairs=9] [--out=FILE] ...

A BERT classifier of the built-in corpus (the package of a docstring) learns from a teacher with
random weights. Builds the cache in a temporary folder, and runs the compiled steps of training in
turn, with the threads that read the batches. Prints the ratio of the times of an update, median
over pairs; the time to build the cache; and the ratio of the times of a sweep of --runs runs of --epochs
epochs, which builds it once.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from arguments import integer, make_parser, output_file
from jax.sharding import Mesh
from ml_collections import ConfigDict

import lightpaff_jax
from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding, train
from lightpaff_jax.data import batches, sources
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.teacher import cache as teacher_cache


def make_config(options: argparse.Namespace, folder: str) -> ConfigDict:
    """Returns the configuration of the student's run; writes the teacher into `folder`."""
    c = config.default()
    c.objective, c.data.view, c.data.length = 'classify', 'topic', options.length
    c.data.packages = tuple(options.packages.split(','))
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': sources.classes(c)})
    c.student.update({'vocab_size': options.vocabulary, 'positions': options.length})
    c.student.update(config.shape(*sizes(options.student)))
    c.mesh.data, c.data.batch_size = 1, options.batch
    network = config.network(**{key: c.student[key] for key in config.network()})
    network.update(config.shape(*sizes(options.teacher)))
    teacher = models.build(network)
    tokenizer = selection.load(c)
    c.teacher.path = f'{folder}/teacher'
    lightpaff_jax.save(c.teacher.path, teacher, teacher.init(jax.random.key(0)), tokenizer)
    c.teacher.cache = f'{folder}/cache'
    return c


def sizes(text: str) -> list[int]:
    """Returns layers, width and heads of '6x384x12'."""
    return [int(number) for number in text.split('x')]


def make_run(
    c: ConfigDict, mesh: Mesh, inputs: train.Inputs, cache: teacher_cache.Cache | None
) -> Callable[[int], float]:
    """Returns a function that runs some updates and returns their seconds."""
    student, rule, teacher = networks.student(c), optimizer.make(c.optim), inputs.teacher
    step = distill_step.make_step(c, mesh, student, teacher.model, rule)
    run_step = train.compile_by_shape(step, teacher.params, optimizer.hyperparameters(c))
    state = train.initial_state(c, mesh, student, rule, inputs)
    read_teacher = None if cache is None else cache.read

    def stream() -> Iterator:
        read = batches.training(c, inputs.prepared, inputs.tokenizer, 0, None, read_teacher)
        with contextlib.closing(read):
            yield from sharding.prefetch(mesh, read)

    read = stream()

    def run(updates: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for batch in itertools.islice(read, updates):
            state, *_ = run_step(state, batch, None)
            jax.block_until_ready(state)
        return time.perf_counter() - start

    run(2)  # compiles
    return run


def measure(options: argparse.Namespace, folder: str) -> dict:
    """Measures and prints; returns the content of the file of `--out`."""
    c = make_config(options, folder)
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    with jax.set_mesh(mesh):
        inputs = train.load_inputs(c, mesh)
        start = time.perf_counter()
        cache = teacher_cache.open_or_build(
            c, mesh, inputs.teacher, inputs.prepared, inputs.tokenizer
        )
        build_seconds = time.perf_counter() - start
        live, cached = make_run(c, mesh, inputs, None), make_run(c, mesh, inputs, cache)
        pairs = [(live(options.updates), cached(options.updates)) for _ in range(options.pairs)]
    seconds = {
        name: statistics.median(pair[i] for pair in pairs) / options.updates
        for i, name in enumerate(('live', 'cached'))
    }
    ratio = statistics.median(a / b for a, b in pairs)
    records = inputs.prepared.split('train')['records']
    updates = options.runs * options.epochs * records / options.batch
    sweep = updates * seconds['live'] / (build_seconds + updates * seconds['cached'])
    hardware = f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
    print(f'{hardware}, jax {jax.__version__}; {records:,} records of {options.length} tokens')
    print(f'update: live {seconds["live"]:.4f} s, cached {seconds["cached"]:.4f} s, {ratio:.2f} x')
    print(
        f'cache: {cache.size / 1e6:.1f} MB in {build_seconds:.1f} s; sweep of {options.runs} runs of '
        f'{options.epochs} epochs: {sweep:.2f} x as fast'
    )
    settings = (
        'teacher',
        'student',
        'packages',
        'vocabulary',
        'batch',
        'length',
        'runs',
        'epochs',
        'updates',
    )
    return {
        **{name: getattr(options, name) for name in settings},
        'records': records,
        'pairs': pairs,
        'ratio': ratio,
        'build_seconds': build_seconds,
        'sweep': sweep,
        'hardware': hardware,
        'jax': jax.__version__,
    }


def main() -> None:
    """Runs the comparison and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument('--teacher', default='6x384x12', help='layers x width x heads')
    parser.add_argument('--student', default='3x192x3', help='layers x width x heads')
    parser.add_argument('--packages', default='flax,optax,chex,grain', help='docstrings to read')
    parser.add_argument('--vocabulary', type=integer(2), default=8192, help='entries')
    parser.add_argument('--batch', type=integer(1), default=32, help='sequences per update')
    parser.add_argument('--length', type=integer(8), default=64, help='tokens per sequence')
    parser.add_argument('--updates', type=integer(1), default=4, help='updates of a measurement')
    parser.add_argument('--pairs', type=integer(1), default=9, help='pairs of measurements')
    parser.add_argument('--runs', type=integer(1), default=6, help='runs of the sweep')
    parser.add_argument('--epochs', type=integer(1), default=3, help='epochs of a run')
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    for key in ('student', 'teacher'):
        numbers = getattr(options, key).split('x')
        if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
            parser.error(f'--{key}={getattr(options, key)}: must be layers x width x heads')
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, folder)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
