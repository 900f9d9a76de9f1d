"""Compares value and gradient of the chunked distillation loss with dense autodiff, in one run.

    ./launch/benchmark_loss.sh [--tokens=N] [--pairs=K] [--out=FILE] ...
    ./launch/benchmark_loss.sh --topology=v5e:1x1 --tokens=16384 --dtype=bfloat16

Memory is the compiler's plan, without inputs and outputs. Speed is measured in pairs (A B A B ...);
figures are medians over pairs, without compilation. The dense loss is what a user writes without
this package: logits of the whole batch, `optax` for the labels, `jax.nn.log_softmax` for the
teacher, `jax.value_and_grad`. Both return only the loss and its gradient.

With --topology, both are compiled for a chip of a TPU slice, which needs no TPU, and are not run.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import integer, make_parser, number, output_file

from lightpaff_jax import config, losses
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import chips

GIB = 1 << 30


def dense(student, teacher, labels, weights, *, lambda_, temperature):
    """Computes the loss from the logits of the whole batch."""
    logits = student.features @ student.head.weight.T + student.head.bias
    target = teacher.features @ teacher.head.weight.T + teacher.head.bias
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    log_p = jax.nn.log_softmax(logits / temperature)
    log_target = jax.nn.log_softmax(jax.lax.stop_gradient(target) / temperature)
    kl = jnp.sum(jnp.exp(log_target) * (log_target - log_p), axis=-1)
    return jnp.sum(weights * ((1 - lambda_) * ce + lambda_ * temperature**2 * kl))


def fused(student, teacher, labels, weights, *, lambda_, temperature):
    """Computes the loss of the package, chunk by chunk."""
    sums = losses.distillation_loss(
        student, teacher, labels, weights, lambda_=lambda_, temperature=temperature
    )
    return sums['loss']


def make_inputs(options: argparse.Namespace) -> tuple:
    """Returns seeded (student, teacher, labels, weights); logits have a spread of about 3."""
    random = np.random.default_rng(0)
    shape = (options.batch, options.tokens // options.batch)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    def predictor(width):
        weight = normal(options.vocabulary, width) * (3 / width**0.5)
        head = losses.Head(weight, normal(options.vocabulary))
        features_and_head = losses.Predictor(normal(*shape, width), head)
        return jax.tree.map(lambda x: jnp.asarray(x, options.dtype), features_and_head)

    labels = random.integers(0, options.vocabulary, shape).astype(np.int32)
    student, teacher = predictor(options.width), predictor(options.teacher_width)
    return jax.tree.map(jnp.asarray, (student, teacher, labels, np.ones(shape, np.float32)))


def place_inputs(options: argparse.Namespace) -> tuple[tuple, str]:
    """Returns the inputs and the name of the hardware; with --topology the inputs are shapes."""
    if not options.topology:
        hardware = f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
        return make_inputs(options), hardware
    jax.config.update('jax_platforms', 'cpu')  # do not wait for a TPU
    sharding = jax.sharding.SingleDeviceSharding(chips.devices(options.topology)[0])

    def describe(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(lambda: make_inputs(options))
    return jax.tree.map(describe, shapes), options.topology


def measure_seconds(call: Callable, inputs: tuple) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    jax.block_until_ready(call(*inputs))
    return time.perf_counter() - start


def relative_difference(gradient, expected) -> float:
    """Returns the largest difference relative to the largest value of its array."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for x, y in pairs)


def measure(options: argparse.Namespace) -> dict:
    """Compiles, runs and prints; returns the content of the file of `--out`."""
    inputs, hardware = place_inputs(options)
    programs = {}
    for name, loss in (('fused', fused), ('dense', dense)):
        call = functools.partial(loss, lambda_=options.lambda_, temperature=options.temperature)
        programs[name] = jax.jit(jax.value_and_grad(call)).lower(*inputs).compile()
    memory = {n: program.memory_analysis().temp_size_in_bytes for n, program in programs.items()}
    memory_ratio = memory['dense'] / memory['fused']
    result = {
        'tokens': options.tokens,
        'vocabulary': options.vocabulary,
        'widths': [options.width, options.teacher_width],
        'lambda': options.lambda_,
        'temperature': options.temperature,
        'dtype': options.dtype,
        'hardware': hardware,
        'jax': jax.__version__,
        'temporary_bytes': memory | {'ratio': memory_ratio},
    }
    print(
        f'{options.tokens} tokens, V = {options.vocabulary}, widths {options.width} and '
        f'{options.teacher_width}, {options.dtype}, {hardware}, jax {jax.__version__}'
    )
    print(
        f'temporary memory: fused {memory["fused"] / GIB:.3f} GiB, '
        f'dense {memory["dense"] / GIB:.3f} GiB, dense / fused {memory_ratio:.1f}',
        flush=True,
    )
    if options.topology or not options.pairs:
        return result

    # The first calls warm up and show that both compute the same.
    value, gradient = programs['fused'](*inputs)
    dense_value, dense_gradient = programs['dense'](*inputs)
    difference = {
        'value': abs(float(value) / float(dense_value) - 1),
        'gradient': relative_difference(gradient, dense_gradient),
    }
    del gradient, dense_gradient  # frees their memory before the timing
    pairs = []
    for _ in range(options.pairs):
        pair = {name: measure_seconds(program, inputs) for name, program in programs.items()}
        pairs.append(pair)
        print(
            f'fused {pair["fused"]:.2f} s, dense {pair["dense"]:.2f} s, '
            f'dense / fused {pair["dense"] / pair["fused"]:.2f}',
            flush=True,
        )
    seconds = {name: statistics.median(pair[name] for pair in pairs) for name in programs}
    speed_ratio = statistics.median(pair['dense'] / pair['fused'] for pair in pairs)
    print(
        f'median of {options.pairs} pairs: fused {seconds["fused"]:.2f} s, '
        f'dense {seconds["dense"]:.2f} s, dense / fused {speed_ratio:.2f}; '
        f'relative difference of values {difference["value"]:.1e}, '
        f'of gradients {difference["gradient"]:.1e}'
    )
    return result | {
        'difference': difference,
        'pairs': pairs,
        'seconds': seconds,
        'speed_ratio': speed_ratio,
    }


def main() -> None:
    """Runs the comparison and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument('--tokens', type=integer(1), default=8192, help='predicted positions')
    parser.add_argument('--batch', type=integer(1), default=8, help='examples with these positions')
    parser.add_argument('--vocabulary', type=integer(2), default=50304, help='entries')
    parser.add_argument('--width', type=integer(1), default=768, help="the student's width")
    parser.add_argument('--teacher-width', type=integer(1), default=1024)
    fraction = number(lambda x: 0 <= x <= 1, 'must be in [0, 1]')
    parser.add_argument('--lambda', type=fraction, default=0.5, dest='lambda_')
    positive = number(lambda x: 0 < x < float('inf'), 'must be above 0 and finite')
    parser.add_argument('--temperature', type=positive, default=1.0)
    parser.add_argument('--dtype', choices=config.DTYPES, default='float32')
    parser.add_argument('--topology', help='a TPU slice such as v5e:1x1; needs the extra tpu')
    parser.add_argument(
        '--pairs', type=integer(0), default=5, help='timed pairs; 0 only plans the memory'
    )
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    if options.tokens % options.batch:
        parser.error(f'--tokens={options.tokens}: must be a multiple of --batch={options.batch}')
    try:
        result = measure(options)
    except UserError as error:
        parser.error(str(error))
    except jax.errors.JaxRuntimeError as error:  # usually too little memory on a chip
        parser.error(' '.join(str(error).split())[:300])
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
