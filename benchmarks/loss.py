"""Value and gradient of the distillation loss: in chunks against dense autodiff, in one run.

    ./launch/benchmark_loss.sh [--tokens=N] [--pairs=K] [--out=FILE] ...
    ./launch/benchmark_loss.sh --topology=v5e:1x1 --tokens=16384 --dtype=bfloat16

Memory is what the compiler plans beside inputs and outputs. Speed is measured in pairs (A B A
B ...), each figure a median over pairs, compiling excluded. The dense loss is what one writes
without this package: logits of the whole batch, `optax` for the labels, `jax.nn.log_softmax`
for the teacher, `jax.value_and_grad`. Both return the loss and the gradient, no other sums.
With --topology both are compiled for one chip of a TPU slice that is not there, and not run.
"""

import argparse
import functools
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import file_to_write, number, whole

from lightpaff_jax import config, losses
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import chips

GIB = 1 << 30


def dense(student, teacher, labels, weights, *, lambda_, temperature):
    """The same loss from the logits of the whole batch."""
    logits = student.features @ student.head.weight.T + student.head.bias
    target = teacher.features @ teacher.head.weight.T + teacher.head.bias
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    log_p = jax.nn.log_softmax(logits / temperature)
    log_target = jax.nn.log_softmax(jax.lax.stop_gradient(target) / temperature)
    kl = jnp.sum(jnp.exp(log_target) * (log_target - log_p), axis=-1)
    return jnp.sum(weights * ((1 - lambda_) * ce + lambda_ * temperature**2 * kl))


def fused(student, teacher, labels, weights, *, lambda_, temperature):
    """The loss of the package."""
    sums = losses.distillation_loss(
        student, teacher, labels, weights, lambda_=lambda_, temperature=temperature
    )
    return sums['loss']


def make_inputs(a: argparse.Namespace):
    """Seeded student, teacher, labels and weights; logits have a spread of about 3."""
    random = np.random.default_rng(0)

    def predictor(width):
        def normal(*shape):
            return random.standard_normal(shape, np.float32)

        head = losses.Head(normal(a.vocabulary, width) * (3 / width**0.5), normal(a.vocabulary))
        made = losses.Predictor(normal(a.batch, a.tokens // a.batch, width), head)
        return jax.tree.map(lambda x: jnp.asarray(x, a.dtype), made)

    shape = (a.batch, a.tokens // a.batch)
    labels = random.integers(0, a.vocabulary, shape).astype(np.int32)
    inputs = (predictor(a.width), predictor(a.teacher_width), labels, np.ones(shape, np.float32))
    return jax.tree.map(jnp.asarray, inputs)


def placed(a: argparse.Namespace):
    """The inputs, described only where the device is not there; and its name."""
    if not a.topology:
        return make_inputs(a), f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
    jax.config.update('jax_platforms', 'cpu')  # no device is needed, nor waited for
    where = jax.sharding.SingleDeviceSharding(chips.devices(a.topology)[0])

    def described(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(described, jax.eval_shape(lambda: make_inputs(a))), a.topology


def seconds(call, inputs) -> float:
    """One call, its result dropped."""
    began = time.perf_counter()
    jax.block_until_ready(call(*inputs))
    return time.perf_counter() - began


def error(found, wanted) -> float:
    """Largest difference between two gradients, as a share of the largest value of its array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for x, y in pairs)


def run(a: argparse.Namespace) -> dict:
    """Compiles, runs and prints; returns what `--out` writes."""
    inputs, hardware = placed(a)
    compiled = {}
    for name, loss in (('fused', fused), ('dense', dense)):
        call = functools.partial(loss, lambda_=a.lambda_, temperature=a.temperature)
        compiled[name] = jax.jit(jax.value_and_grad(call)).lower(*inputs).compile()
    memory = {n: c.memory_analysis().temp_size_in_bytes for n, c in compiled.items()}
    result = {
        'tokens': a.tokens,
        'vocabulary': a.vocabulary,
        'widths': [a.width, a.teacher_width],
        'lambda': a.lambda_,
        'temperature': a.temperature,
        'dtype': a.dtype,
        'hardware': hardware,
        'jax': jax.__version__,
        'temporary_bytes': memory | {'ratio': memory['dense'] / memory['fused']},
    }
    print(
        f'{a.tokens} tokens, V = {a.vocabulary}, widths {a.width} and {a.teacher_width}, {a.dtype}, '
        f'{result["hardware"]}, jax {jax.__version__}'
    )
    print(
        f'temporary memory: fused {memory["fused"] / GIB:.3f} GiB, dense {memory["dense"] / GIB:.3f} GiB, '
        f'dense / fused {result["temporary_bytes"]["ratio"]:.1f}',
        flush=True,
    )
    if a.topology or not a.pairs:
        return result

    value, gradient = compiled['fused'](*inputs)  # warms up, and shows that both agree
    wanted, dense_gradient = compiled['dense'](*inputs)
    result['difference'] = {
        'value': abs(float(value) / float(wanted) - 1),
        'gradient': error(gradient, dense_gradient),
    }
    del gradient, dense_gradient
    pairs = []
    for _ in range(a.pairs):
        pair = {name: seconds(compiled[name], inputs) for name in ('fused', 'dense')}
        pairs.append(pair)
        print(
            f'fused {pair["fused"]:.2f} s, dense {pair["dense"]:.2f} s, '
            f'dense / fused {pair["dense"] / pair["fused"]:.2f}',
            flush=True,
        )
    result['pairs'] = pairs
    result['seconds'] = {n: statistics.median(p[n] for p in pairs) for n in compiled}
    result['speed_ratio'] = statistics.median(p['dense'] / p['fused'] for p in pairs)
    print(
        f'median of {a.pairs} pairs: fused {result["seconds"]["fused"]:.2f} s, '
        f'dense {result["seconds"]["dense"]:.2f} s, dense / fused {result["speed_ratio"]:.2f}; '
        f'relative difference of values {result["difference"]["value"]:.1e}, '
        f'of gradients {result["difference"]["gradient"]:.1e}'
    )
    return result


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--tokens', type=whole(1), default=8192, help='predicted positions')
    parser.add_argument('--batch', type=whole(1), default=8, help='examples they come from')
    parser.add_argument('--vocabulary', type=whole(2), default=50304)
    parser.add_argument('--width', type=whole(1), default=768, help='of the student')
    parser.add_argument('--teacher-width', type=whole(1), default=1024)
    share = number(lambda x: 0 <= x <= 1, 'must be in [0, 1]')
    parser.add_argument('--lambda', type=share, default=0.5, dest='lambda_')
    above_0 = number(lambda x: 0 < x < float('inf'), 'must be above 0 and finite')
    parser.add_argument('--temperature', type=above_0, default=1.0)
    parser.add_argument('--dtype', choices=config.DTYPES, default='float32')
    parser.add_argument('--topology', help='a slice, as v5e:1x1; needs the extra tpu')
    parser.add_argument(
        '--pairs', type=whole(0), default=5, help='0 reads the memory and runs nothing'
    )
    parser.add_argument('--out', type=file_to_write, help='JSON file for the figures')
    a = parser.parse_args()
    if a.tokens % a.batch:
        parser.error(f'--tokens={a.tokens}: must be a multiple of --batch={a.batch}')
    try:
        result = run(a)
    except UserError as error:
        parser.error(str(error))
    except jax.errors.JaxRuntimeError as error:  # the memory of a chip, mostly
        parser.error(' '.join(str(error).split())[:300])
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
