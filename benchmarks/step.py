"""The training step: ours against whole-batch logits, against PyTorch, and against the device's limit.

    ./launch/benchmark.sh [--pairs=K] [--only=ours,dense,eager,...] [--dtype=bfloat16] [--out=FILE] ...

A GPT-2 student learns from a GPT-2 teacher: forward pass of both, loss, gradient, clipping, AdamW.
Contestants run the same sizes on the same ids in one process, in turn, round after round; the figures
are medians over rounds, the first calls and compiling excluded.

ours     the step of the package, as a run compiles it
dense    the same step, but its loss takes the logits of the whole batch at once
eager    transformers' networks with attention of `scaled_dot_product_attention`, losses of
         torch.nn.functional, fused AdamW
compile  the same, forward passes and loss by torch.compile
tunix    the networks of the package in Tunix's DistillationTrainer, by its own `train`. Tunix wants an older
         safetensors than the package: `pip install google-tunix`, then `pip install 'safetensors>=0.8'`
limit    FLOPs of the matrix products, by formula, at the rate that the device multiplies two square
         matrices with; nothing can be faster
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding
from lightpaff_jax.batch import Batch

GIB = 1 << 30


def configured(a: argparse.Namespace):
    """The run that is measured."""
    c = config.default()
    for net, text in ((c.student, a.student), (c.teacher, a.teacher)):
        layers, width, heads = map(int, text.split('x'))
        net.update({'layers': layers, 'width': width, 'heads': heads, 'ffn': 4 * width})
        net.update({'vocab_size': a.vocabulary, 'positions': a.length})
    c.data.length, c.data.batch_size = a.length, a.batch
    c.train.update({'compute_dtype': a.dtype, 'remat': a.remat})
    c.teacher.dtype = a.dtype
    c.loss.chunk = a.chunk
    c.optim.warmup = 1
    return c


def batch_of(c) -> Batch:
    """Seeded random ids, one micro-batch."""
    ids = np.random.default_rng(0).integers(
        0, c.student.vocab_size, (1, c.data.batch_size, c.data.length + 1)
    )
    ids = ids.astype(np.int32)
    return Batch(ids[..., :-1], ids[..., 1:], np.ones(ids[..., 1:].shape, np.float32))


def dense_loss(student, teacher, labels, weights, *, lambda_, temperature, chunk):
    """As `losses.distillation_loss`, from the logits of the whole batch."""
    del chunk

    def logits(one):
        product = jnp.einsum(
            'bpd,vd->bpv', one.features, one.head.weight, preferred_element_type=jnp.float32
        )
        return product + one.head.bias

    s, t = logits(student), jax.lax.stop_gradient(logits(teacher))
    ce = optax.softmax_cross_entropy_with_integer_labels(s, labels)
    log_p, log_q = jax.nn.log_softmax(s / temperature), jax.nn.log_softmax(t / temperature)
    kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
    loss = jnp.sum(weights * ((1 - lambda_) * ce + lambda_ * temperature**2 * kl))
    return {'loss': loss, 'count': jnp.sum(weights)}


def ours(c, dense: bool):
    """(a call of one update, which returns its loss; bytes of temporary memory)."""
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    student = networks.student(c)
    teacher = networks.guide(c, c.teacher)
    rule = optimizer.make(c)
    places = distill_step.state_shardings(c, mesh, student, rule)
    state = jax.device_put(distill_step.init_state(student, rule, 0), places)
    dtype = networks.guide_dtype(c)
    params = jax.tree.map(lambda x: x.astype(dtype), teacher.init(jax.random.key(1)))
    params = jax.device_put(params, sharding.of_params(mesh, params))
    batch = sharding.put_batch(mesh, batch_of(c), micro=True)
    loss = distill_step.distillation_loss
    distill_step.distillation_loss = dense_loss if dense else loss
    try:
        step = distill_step.make_step(c, mesh, student, teacher, rule)
        with jax.set_mesh(mesh):
            program = step.lower(state, params, batch, optimizer.knobs(c)).compile()
    finally:
        distill_step.distillation_loss = loss

    def call() -> float:
        nonlocal state
        state, sums = program(state, params, batch, optimizer.knobs(c))
        return float(sums['loss'] / sums['count'])

    return call, program.memory_analysis().temp_size_in_bytes


def theirs(c, compiled: bool):
    """As `ours`, by torch and transformers; memory is measured on a GPU alone."""
    import torch
    import torch.nn.functional as F
    import transformers

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    low = c.train.compute_dtype == 'bfloat16'

    def network(net):
        shape = transformers.GPT2Config(
            vocab_size=models.padded(net.vocab_size), n_positions=net.positions, n_embd=net.width,
            n_layer=net.layers, n_head=net.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            attn_implementation='sdpa', use_cache=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(shape).to(device)

    torch.manual_seed(0)
    student, teacher = network(c.student), network(c.teacher).eval().requires_grad_(False)
    teacher = teacher.to(getattr(torch, c.teacher.dtype))
    update = torch.optim.AdamW(
        student.parameters(), lr=c.optim.peak_lr, betas=(c.optim.b1, c.optim.b2),
        weight_decay=c.optim.weight_decay, fused=True,
    )  # fmt: skip
    batch = batch_of(c)
    ids = torch.tensor(batch.tokens[0], dtype=torch.long, device=device)
    labels = torch.tensor(batch.labels[0], dtype=torch.long, device=device).reshape(-1)
    weight, tau = c.loss.lambda_, c.loss.temperature

    def loss_of(ids, labels):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            with torch.no_grad():
                target = teacher(ids).logits.flatten(0, 1)
            logits = student(ids).logits.flatten(0, 1)
        logits, target = logits.float(), target.float()
        ce = F.cross_entropy(logits, labels)
        kl = F.kl_div(
            F.log_softmax(logits / tau, -1), F.log_softmax(target / tau, -1), log_target=True,
            reduction='batchmean',
        )  # fmt: skip
        return (1 - weight) * ce + weight * tau**2 * kl

    run = torch.compile(loss_of) if compiled else loss_of

    def call() -> float:
        update.zero_grad(set_to_none=True)
        loss = run(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), c.optim.clip_norm)
        update.step()
        return loss.item()

    call()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        call()
        return call, torch.cuda.max_memory_allocated()
    return call, None


def of_tunix(c):
    """As `theirs`, by Tunix: its strategy of logits has the same loss, from one-hot labels."""
    from flax import nnx
    from tunix.distillation import distillation_trainer as tunix
    from tunix.distillation import strategies

    class Network(nnx.Module):
        def __init__(self, params):
            self.params = nnx.Dict(jax.tree.map(nnx.Param, params))

    def forward(model):
        def logits(module, input_tokens, input_mask):
            params = nnx.to_pure_dict(nnx.state(module))['params']
            return model.logits(
                params, Batch(input_tokens[:, :-1], input_tokens[:, 1:], input_mask)
            )

        return logits

    student, teacher = networks.student(c), networks.guide(c, c.teacher)
    frozen = teacher.init(jax.random.key(1))
    frozen = jax.tree.map(lambda x: x.astype(networks.guide_dtype(c)), frozen)
    strategy = strategies.LogitStrategy(
        forward(student), forward(teacher),
        lambda input_tokens, input_mask: jax.nn.one_hot(
            input_tokens[:, 1:], models.outputs(c.student)
        ),
        temperature=c.loss.temperature, alpha=c.loss.lambda_,
    )  # fmt: skip
    rule = optax.chain(
        optax.clip_by_global_norm(c.optim.clip_norm),
        optax.adamw(
            c.optim.peak_lr, c.optim.b1, c.optim.b2, weight_decay=c.optim.weight_decay
        ),
    )  # fmt: skip
    trainer = tunix.DistillationTrainer(
        Network(student.init(jax.random.key(0))), Network(frozen), strategy, rule,
        tunix.TrainingConfig(eval_every_n_steps=1 << 30),
    )  # fmt: skip
    trainer.is_managed_externally = True  # it is called again and again
    batch = batch_of(c)
    ids = np.concatenate([batch.tokens[0], batch.labels[0][:, -1:]], axis=1)
    given = tunix.TrainingInput(input_tokens=ids, input_mask=batch.weights[0])
    mesh = jax.make_mesh((1,), ('fsdp',), devices=jax.devices()[:1])

    def call() -> float:
        with mesh:
            trainer.train([given])
        return float(trainer._buffered_train_metrics.loss)

    return call, None


def flops(c) -> float:
    """Of the matrix products of one update."""
    from lightpaff_jax.batch import Shape

    shape = Shape(c.data.length, c.data.length)
    student, teacher = (models.build(net).flops(shape) for net in (c.student, c.teacher))
    return c.data.batch_size * (3 * student + teacher)


def rate(dtype: str, size: int = 2048) -> float:
    """FLOPs a second of a product of two square matrices; the best of ten."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def seconds(call, steps: int) -> float:
    """Of one update, over `steps` of them."""
    began = time.perf_counter()
    for _ in range(steps):
        call()
    return (time.perf_counter() - began) / steps


CONTESTANTS = {
    'ours': functools.partial(ours, dense=False),
    'dense': functools.partial(ours, dense=True),
    'eager': functools.partial(theirs, compiled=False),
    'compile': functools.partial(theirs, compiled=True),
    'tunix': of_tunix,
}
"""Name -> its maker; tunix runs where it is asked for."""


def measure(a: argparse.Namespace) -> dict:
    """Builds, runs and prints; returns what `--out` writes."""
    c = configured(a)
    made = {}
    for name in a.only:
        made[name] = CONTESTANTS[name](c)
        loss = made[name][0]()
        print(f'{name}: first loss {loss:.4f}', flush=True)
    rounds: list[dict[str, float]] = []
    limits = [rate(a.dtype)]
    for _ in range(a.pairs):
        rounds.append({name: seconds(call, a.steps) for name, (call, _) in made.items()})
        limits.append(rate(a.dtype))
        print('  '.join(f'{k} {x:.3f} s' for k, x in rounds[-1].items()), flush=True)
    tokens = c.data.batch_size * c.data.length
    limit = max(limits) / flops(c) * tokens
    table = {}
    for name, (_, memory) in made.items():
        each = [tokens / r[name] for r in rounds]
        speed = statistics.median(each)
        table[name] = {
            'tokens_per_second': speed,
            'share_of_limit': speed / limit,
            'bytes': memory,
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
        memory = '' if row['bytes'] is None else f'; temporary memory {row["bytes"] / GIB:.2f} GiB'
        print(
            f'{name:8} {row["tokens_per_second"]:.0f} tokens/s, {100 * row["share_of_limit"]:.0f} % of the '
            f'limit; {a.only[0]} takes 1/{row["ours_is_faster"]:.2f} of its time{memory}'
        )
    return result


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--teacher', default='12x768x12', help='layers x width x heads')
    parser.add_argument('--student', default='4x384x6', help='likewise')
    parser.add_argument('--vocabulary', type=int, default=50304)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--length', type=int, default=128)
    parser.add_argument('--dtype', choices=config.DTYPES, default='float32')
    parser.add_argument('--remat', choices=config.REMAT, default='none')
    parser.add_argument('--chunk', type=int, default=0, help='positions in a visit of the heads')
    parser.add_argument('--pairs', type=int, default=5, help='rounds')
    parser.add_argument('--steps', type=int, default=2, help='updates of each in a round')
    parser.add_argument(
        '--only', default='ours,dense,eager,compile', help='the first is compared with'
    )
    parser.add_argument('--out', type=pathlib.Path, help='JSON file for the figures')
    a = parser.parse_args()
    a.only = a.only.split(',')
    for name in a.only:
        if name not in CONTESTANTS:
            parser.error(f'--only={name}: must be of {", ".join(CONTESTANTS)}')
    for name in ('student', 'teacher'):
        sizes = getattr(a, name).split('x')
        if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
            parser.error(f'--{name}={getattr(a, name)}: must be layers x width x heads, as 4x384x6')
        if int(sizes[1]) % int(sizes[2]):
            parser.error(f'--{name}={getattr(a, name)}: its heads must divide its width')
    for name in ('pairs', 'steps', 'batch', 'length', 'vocabulary'):
        if getattr(a, name) < 1:
            parser.error(f'--{name}={getattr(a, name)}: must be at least 1')
    result = measure(a)
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
