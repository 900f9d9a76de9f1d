"""The training step: ours against whole-batch logits, against PyTorch, and against the device's limit.

    ./launch/benchmark.sh [--pairs=K] [--only=ours,dense,eager,...] [--dtype=bfloat16] [--out=FILE] ...

A GPT-2 student learns from a GPT-2 teacher: forward pass of both, loss, gradient, clipping, AdamW.
Contestants run the same sizes on the same ids, each in a process of its own, in turn, round after round;
the figures are medians over rounds, the first calls and compiling excluded. Memory on a CPU: the most that
the process has during an update beyond what it had before its networks were built.

ours     the step of the package, as a run compiles it
dense    the same step, but its loss takes the logits of the whole batch at once
eager    transformers' networks with attention of `scaled_dot_product_attention`, losses of
         torch.nn.functional, fused AdamW
compile  the same, forward passes and loss by torch.compile
plain    as eager, with the activation that transformers gives GPT-2 and `cross_entropy` beside the KL
liger    as compile, heads and loss by Liger's fused linear loss: `pip install --no-deps liger-kernel`
tunix    the networks of the package in Tunix's DistillationTrainer, by its own `train`. Tunix wants an older
         safetensors than the package: `pip install google-tunix`, then `pip install 'safetensors>=0.8'`
limit    FLOPs of the matrix products, by formula, at the rate that the device multiplies two square
         matrices with; nothing can be faster

--parts shows what is left: the parts of our step, each compiled alone, at which share of that rate.
"""

import argparse
import contextlib
import json
import os
import statistics
import time

import apart
import jax
import jax.numpy as jnp
import optax
from arguments import file_to_write, whole
from contestants import CONTESTANTS, batch_of, configured

from lightpaff_jax import config, distill_step, losses, models, networks, optimizer
from lightpaff_jax.batch import Shape
from lightpaff_jax.errors import UserError

GIB = 1 << 30


def flops(c) -> float:
    """Of the matrix products of one update."""
    shape = Shape(c.data.length, c.data.length)
    student, teacher = (models.build(net).flops(shape) for net in (c.student, c.teacher))
    return c.data.batch_size * (3 * student + teacher)


def parts(c) -> dict:
    """What a step is made of -> (a call of it alone, FLOPs of its matrix products)."""
    student, teacher = networks.student(c), networks.teacher(c, c.teacher)
    rule = optimizer.make(c.optim)
    state = distill_step.init_state(student, rule, 0)
    frozen = teacher.init(jax.random.key(1))
    frozen = jax.tree.map(lambda x: x.astype(networks.teacher_dtype(c)), frozen)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), batch_of(c))
    shape = Shape(c.data.length, c.data.length)

    def compiled(function, *arguments):
        program = jax.jit(function).lower(*arguments).compile()
        return lambda: jax.block_until_ready(program(*arguments))

    def whole(params):
        return jnp.sum(student.features(params, batch), dtype=jnp.float32)

    def loss(mine, target):
        sums = losses.distillation_loss(
            mine, target, batch.labels, batch.weights, lambda_=c.loss.lambda_,
            temperature=c.loss.temperature, chunk=c.loss.chunk,
        )  # fmt: skip
        return sums['loss']

    def update(grads, opt_state, params):
        updates, opt_state = rule.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def predictor(model, params):
        return losses.Predictor(jax.jit(model.features)(params, batch), model.head(params))

    body, head = {}, {}
    for name, net in (('student', c.student), ('teacher', c.teacher)):
        head[name] = 2.0 * c.data.length * net.width * models.head_rows(net)
        body[name] = models.build(net).flops(shape) - head[name]
    pair = predictor(student, state.params), predictor(teacher, frozen)
    n = c.data.batch_size
    return {
        'teacher, forward': (
            compiled(lambda params: teacher.features(params, batch), frozen), n * body['teacher'],
        ),
        'student, forward and backward': (
            compiled(jax.grad(whole), state.params), 3 * n * body['student'],
        ),
        'loss and its gradient': (
            compiled(jax.value_and_grad(loss), *pair), n * (3 * head['student'] + head['teacher']),
        ),
        'clipping and AdamW': (
            compiled(update, state.params, state.opt_state, state.params), 0.0,
        ),
    }  # fmt: skip


def rate(dtype: str) -> float:
    """FLOPs a second of products of two square matrices; the best of ten."""
    size, count = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 16)
    y = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5

    def products(x):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ y, x)

    program = jax.jit(products).lower(y).compile()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        program(y).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 * count / min(times)


def seconds(call) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(a: argparse.Namespace) -> dict:
    """Builds, runs and prints; returns what `--out` writes."""
    c = configured(a)
    rounds: list[dict[str, float]] = []
    limits = [rate(a.dtype)]
    with contextlib.ExitStack() as stack:
        made: dict[str, apart.Apart] = {}
        for name in a.only:
            made[name] = stack.enter_context(apart.started(name, a))
            print(f'{name}: first loss {made[name].loss:.4f}', flush=True)
        for _ in range(a.pairs):
            rounds.append({name: one.seconds(a.steps) for name, one in made.items()})
            limits.append(rate(a.dtype))
            print('  '.join(f'{k} {x:.3f} s' for k, x in rounds[-1].items()), flush=True)
    tokens = c.data.batch_size * c.data.length
    limit = max(limits) / flops(c) * tokens
    table = {}
    for name, one in made.items():
        each = [tokens / r[name] for r in rounds]
        speed = statistics.median(each)
        table[name] = {
            'tokens_per_second': speed,
            'share_of_limit': speed / limit,
            'bytes': one.memory,
            'ours_is_faster': statistics.median(r[name] / r[a.only[0]] for r in rounds),
        }
    device = jax.devices()[0]
    result = {
        'teacher': a.teacher, 'student': a.student, 'vocabulary': a.vocabulary, 'batch': a.batch,
        'length': a.length, 'dtype': a.dtype, 'remat': a.remat, 'flops': flops(c),
        'matmul_rate': max(limits), 'limit': limit, 'rounds': rounds, 'contestants': table,
        'hardware': f'1 x {device.device_kind}, {os.cpu_count()} cores', 'jax': jax.__version__,
    }  # fmt: skip
    print(f'{result["hardware"]}, jax {jax.__version__}; {flops(c):.3g} FLOPs an update')
    print(f'limit {limit:.0f} tokens/s, at {max(limits) / 1e9:.0f} GFLOP/s')
    for name, row in table.items():
        memory = '' if row['bytes'] is None else f'; memory {row["bytes"] / GIB:.2f} GiB'
        print(
            f'{name:8} {row["tokens_per_second"]:.0f} tokens/s, {100 * row["share_of_limit"]:.0f} % of the '
            f'limit; {a.only[0]} takes 1/{row["ours_is_faster"]:.2f} of its time{memory}'
        )
    if a.parts:
        result['parts'] = {}
        print('alone, seconds, and the share of the rate above:')
        for name, (call, products) in parts(c).items():
            call()
            took = statistics.median(seconds(call) for _ in range(2 * a.pairs + 1))
            share = products / took / max(limits)
            result['parts'][name] = {'seconds': took, 'flops': products, 'share_of_limit': share}
            print(f'  {name}: {took:.3f}, {100 * share:.0f} %', flush=True)
    return result


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--teacher', default='12x768x12', help='layers x width x heads')
    parser.add_argument('--student', default='4x384x6', help='likewise')
    parser.add_argument('--vocabulary', type=whole(2), default=50304)
    parser.add_argument('--batch', type=whole(1), default=8)
    parser.add_argument('--length', type=whole(1), default=128)
    parser.add_argument('--dtype', choices=config.DTYPES, default='float32')
    parser.add_argument('--remat', choices=config.REMAT, default='none')
    parser.add_argument(
        '--chunk', type=whole(0), default=0, help='positions in a visit of the heads'
    )
    parser.add_argument('--pairs', type=whole(1), default=5, help='rounds')
    parser.add_argument('--steps', type=whole(1), default=2, help='updates of each in a round')
    parser.add_argument(
        '--only', default='ours,dense,eager,compile', help='the first is compared with'
    )
    parser.add_argument('--parts', action='store_true', help='also each part of our step alone')
    parser.add_argument('--out', type=file_to_write, help='JSON file for the figures')
    a = parser.parse_args()
    a.only = a.only.split(',')
    for name in a.only:
        if name not in CONTESTANTS:
            parser.error(f'--only={name}: must be of {", ".join(CONTESTANTS)}')
    for name in ('student', 'teacher'):
        sizes = getattr(a, name).split('x')
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            parser.error(f'--{name}={getattr(a, name)}: must be layers x width x heads, as 4x384x6')
        if int(sizes[1]) % int(sizes[2]):
            parser.error(f'--{name}={getattr(a, name)}: its heads must divide its width')
    try:
        result = measure(a)
    except UserError as error:
        parser.error(str(error))
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
