"""Compares the training step with dense logits, PyTorch, Tunix and the limit of the device.

    ./launch/benchmark.sh [--pairs=K] [--only=ours,dense,eager,...] [--dtype=bfloat16] [--out=FILE] ...

A GPT-2 student learns from a GPT-2 teacher: forward passes of both, loss, gradient, clipping,
AdamW. The contestants train networks of the same sizes on the same ids. Each has its own process;
they take turns, round after round. Figures are medians over rounds, without compilation and first
updates. Memory on a CPU is the peak of the process during an update beyond its memory before the
networks were built.

ours     the step of the package, compiled as in a run
dense    the same step with a loss that takes the logits of the whole batch
eager    networks of transformers with `scaled_dot_product_attention`, losses of
         torch.nn.functional, fused AdamW
compile  as eager, with forward passes and loss compiled by torch.compile
plain    as eager, with the default activation of GPT-2 in transformers and `cross_entropy` next to
         the KL
liger    as compile, with heads and loss computed by Liger's fused linear loss: `pip install
         --no-deps liger-kernel`
tunix    the networks of the package in Tunix's DistillationTrainer, which calls `train`. Tunix
         requires an older safetensors than the package: `pip install google-tunix`, then `pip
         install 'safetensors>=0.8'`
limit    the FLOPs of the matrix products, by formula, at the rate at which the device multiplies
         two square matrices; an upper bound

--parts measures the parts of the package's step, each compiled on its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable

import contestant_process
import jax
import jax.numpy as jnp
import optax
from arguments import integer, make_parser, output_file
from contestants import CONTESTANTS, make_batch, make_config
from ml_collections import ConfigDict

from lightpaff_jax import config, distill_step, losses, models, networks, optimizer
from lightpaff_jax.batch import Shape
from lightpaff_jax.errors import UserError

GIB = 1 << 30


def count_flops(c: ConfigDict) -> float:
    """Returns the FLOPs of the matrix products of an update."""
    shape = Shape(c.data.length, c.data.length)
    student, teacher = (models.build(network).flops(shape) for network in (c.student, c.teacher))
    return c.data.batch_size * (3 * student + teacher)  # the backward pass costs two forward ones


def make_parts(c: ConfigDict) -> dict[str, tuple[Callable, float]]:
    """Compiles the parts of a step; returns (function, FLOPs of its matrix products) by name."""
    student, teacher = networks.student(c), networks.teacher(c, c.teacher)
    gradient_transform = optimizer.make(c.optim)
    state = distill_step.init_state(student, gradient_transform, 0)
    teacher_params = teacher.init(jax.random.key(1))
    teacher_params = jax.tree.map(lambda x: x.astype(networks.teacher_dtype(c)), teacher_params)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), make_batch(c))
    shape = Shape(c.data.length, c.data.length)

    def compile_call(function, *inputs):
        program = jax.jit(function).lower(*inputs).compile()
        return lambda: jax.block_until_ready(program(*inputs))

    def sum_features(params):
        return jnp.sum(student.features(params, batch), dtype=jnp.float32)

    def compute_loss(student_output, teacher_output):
        sums = losses.distillation_loss(
            student_output,
            teacher_output,
            batch.labels,
            batch.weights,
            lambda_=c.loss.lambda_,
            temperature=c.loss.temperature,
            chunk=c.loss.chunk,
        )
        return sums['loss']

    def update(grads, opt_state, params):
        updates, opt_state = gradient_transform.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def predict(model, params):
        return losses.Predictor(jax.jit(model.features)(params, batch), model.head(params))

    body_flops, head_flops = {}, {}
    for name, network in (('student', c.student), ('teacher', c.teacher)):
        head_flops[name] = models.head_flops(network, shape)
        body_flops[name] = models.build(network).flops(shape) - head_flops[name]
    n = c.data.batch_size
    outputs = predict(student, state.params), predict(teacher, teacher_params)
    return {
        'teacher, forward': (
            compile_call(lambda params: teacher.features(params, batch), teacher_params),
            n * body_flops['teacher'],
        ),
        'student, forward and backward': (
            compile_call(jax.grad(sum_features), state.params),
            3 * n * body_flops['student'],
        ),
        'loss and its gradient': (
            compile_call(jax.value_and_grad(compute_loss), *outputs),
            n * (3 * head_flops['student'] + head_flops['teacher']),
        ),
        'clipping and AdamW': (
            compile_call(update, state.params, state.opt_state, state.params),
            0.0,
        ),
    }


def measure_matmul_rate(dtype: str) -> float:
    """Returns the FLOPs per second of products of two square matrices; the best of ten runs."""
    # A GPU needs larger matrices for its full rate, and several products per call to hide the
    # latency of the launch.
    size, count = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 16)
    y = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5

    def multiply(x):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ y, x)

    program = jax.jit(multiply).lower(y).compile()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        program(y).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 * count / min(times)


def measure_seconds(call: Callable) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict:
    """Builds, runs and prints; returns the content of the file of `--out`."""
    c = make_config(options)
    baseline = options.only[0]
    rounds: list[dict[str, float]] = []
    # Measured in every round, because a machine can become faster or slower meanwhile.
    matmul_rates = [measure_matmul_rate(options.dtype)]
    with contextlib.ExitStack() as stack:
        processes: dict[str, contestant_process.ContestantProcess] = {}
        for name in options.only:
            processes[name] = stack.enter_context(contestant_process.start(name, options))
            print(f'{name}: first loss {processes[name].loss:.4f}', flush=True)
        for _ in range(options.pairs):
            rounds.append({n: process.seconds(options.steps) for n, process in processes.items()})
            matmul_rates.append(measure_matmul_rate(options.dtype))
            print(
                '  '.join(f'{n} {seconds:.3f} s' for n, seconds in rounds[-1].items()), flush=True
            )
    flops, matmul_rate = count_flops(c), max(matmul_rates)
    tokens = c.data.batch_size * c.data.length
    limit = matmul_rate / flops * tokens
    table = {}
    for name, process in processes.items():
        rate = statistics.median(tokens / seconds[name] for seconds in rounds)
        table[name] = {
            'tokens_per_second': rate,
            'share_of_limit': rate / limit,
            'bytes': process.memory,
            'ours_is_faster': statistics.median(r[name] / r[baseline] for r in rounds),
        }
    hardware = f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
    print(f'{hardware}, jax {jax.__version__}; {flops:.3g} FLOPs per update')
    print(f'limit {limit:.0f} tokens/s, at {matmul_rate / 1e9:.0f} GFLOP/s')
    for name, row in table.items():
        memory = '' if row['bytes'] is None else f'; memory {row["bytes"] / GIB:.2f} GiB'
        print(
            f'{name:8} {row["tokens_per_second"]:.0f} tokens/s, {row["share_of_limit"]:.0%} of the '
            f'limit; {row["ours_is_faster"]:.2f} x the time of {baseline}{memory}'
        )
    result = {
        'teacher': options.teacher,
        'student': options.student,
        'vocabulary': options.vocabulary,
        'batch': options.batch,
        'length': options.length,
        'dtype': options.dtype,
        'remat': options.remat,
        'flops': flops,
        'matmul_rate': matmul_rate,
        'limit': limit,
        'rounds': rounds,
        'contestants': table,
        'hardware': hardware,
        'jax': jax.__version__,
    }
    if options.parts:
        result['parts'] = measure_parts(c, 2 * options.pairs + 1, matmul_rate)
    return result


def measure_parts(c: ConfigDict, calls: int, matmul_rate: float) -> dict[str, dict[str, float]]:
    """Times and prints the parts of the package's step; returns their figures by name."""
    figures = {}
    print('parts of the step, each compiled on its own: seconds, share of the rate above')
    for name, (call, flops) in make_parts(c).items():
        call()
        seconds = statistics.median(measure_seconds(call) for _ in range(calls))
        share = flops / seconds / matmul_rate
        figures[name] = {'seconds': seconds, 'flops': flops, 'share_of_limit': share}
        print(f'  {name}: {seconds:.3f} s, {share:.0%}', flush=True)
    return figures


def main() -> None:
    """Runs the comparison and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument('--teacher', default='12x768x12', help='layers x width x heads')
    parser.add_argument('--student', default='4x384x6', help='layers x width x heads')
    parser.add_argument('--vocabulary', type=integer(2), default=50304, help='entries')
    parser.add_argument('--batch', type=integer(1), default=8, help='sequences')
    parser.add_argument('--length', type=integer(1), default=128, help='tokens per sequence')
    parser.add_argument('--dtype', choices=config.DTYPES, default='float32')
    parser.add_argument('--remat', choices=config.REMAT, default='none')
    parser.add_argument(
        '--chunk', type=integer(0), default=0, help='positions per chunk of the loss; 0: automatic'
    )
    parser.add_argument('--pairs', type=integer(1), default=5, help='rounds')
    parser.add_argument(
        '--steps', type=integer(1), default=2, help='updates of a contestant per round'
    )
    parser.add_argument(
        '--only',
        default='ours,dense,eager,compile',
        help='contestants; times are relative to the first',
    )
    parser.add_argument(
        '--parts', action='store_true', help="also measure the parts of the package's step"
    )
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    options.only = options.only.split(',')
    for name in options.only:
        if name not in CONTESTANTS:
            parser.error(f'--only={name}: must be one of {", ".join(CONTESTANTS)}')
    for key in ('student', 'teacher'):
        setting = f'--{key}={getattr(options, key)}'
        sizes = getattr(options, key).split('x')
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            parser.error(f'{setting}: must be layers x width x heads, such as 4x384x6')
        if int(sizes[1]) % int(sizes[2]):
            parser.error(f'{setting}: the width must be a multiple of the heads')
    try:
        result = measure(options)
    except UserError as error:
        parser.error(str(error))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
