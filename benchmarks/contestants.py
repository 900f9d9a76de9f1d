"""What benchmarks/step.py compares: the same update of the same sizes, as it is made here and elsewhere."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding
from lightpaff_jax.batch import Batch


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
    """(a call of one update, which returns its loss; bytes at its peak by the compiler, networks included)."""
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    student = networks.student(c)
    teacher = networks.teacher(c, c.teacher)
    rule = optimizer.make(c.optim)
    places = distill_step.state_shardings(c, mesh, student, rule)
    state = jax.device_put(distill_step.init_state(student, rule, 0), places)
    dtype = networks.teacher_dtype(c)
    params = jax.tree.map(lambda x: x.astype(dtype), teacher.init(jax.random.key(1)))
    params = jax.device_put(params, sharding.param_shardings(mesh, params))
    batch = sharding.put_batch(mesh, batch_of(c), micro=True)
    loss = distill_step.distillation_loss
    distill_step.distillation_loss = dense_loss if dense else loss
    try:
        step = distill_step.make_step(c, mesh, student, teacher, rule)
        with jax.set_mesh(mesh):
            program = step.lower(state, params, batch, optimizer.hyperparameters(c)).compile()
    finally:
        distill_step.distillation_loss = loss

    def call() -> float:
        nonlocal state
        state, sums = program(state, params, batch, optimizer.hyperparameters(c))
        return float(sums['loss'] / sums['count'])

    m = program.memory_analysis()
    inside = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return call, inside + m.temp_size_in_bytes


def _transformer(net, activation: str):
    import transformers

    shape = transformers.GPT2Config(
        vocab_size=models.pad_vocab(net.vocab_size), n_positions=net.positions, n_embd=net.width,
        n_layer=net.layers, n_head=net.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation='sdpa', use_cache=False, activation_function=activation,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(shape)


def theirs(c, loss: str = 'fast', compiled: bool = False):
    """As `ours`, by torch and transformers; memory is that of a GPU alone.

    Args:
      c: the run.
      loss: 'fast'; 'plain', where nothing is chosen for speed; 'liger', heads and loss by Liger.
      compiled: by torch.compile.
    """
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        torch.set_float32_matmul_precision('high')  # TF32, which jax takes of itself
    before = torch.cuda.memory_allocated() if device == 'cuda' else 0

    torch.manual_seed(0)
    activation = (
        'gelu_new' if loss == 'plain' else 'gelu_pytorch_tanh'
    )  # the first is five operations
    student, teacher = (_transformer(net, activation).to(device) for net in (c.student, c.teacher))
    teacher = teacher.eval().requires_grad_(False).to(getattr(torch, c.teacher.dtype))
    update = torch.optim.AdamW(
        student.parameters(), lr=c.optim.peak_lr, betas=(c.optim.b1, c.optim.b2),
        weight_decay=c.optim.weight_decay, fused=True,
    )  # fmt: skip
    batch = batch_of(c)
    ids = torch.tensor(batch.tokens[0], dtype=torch.long, device=device)
    labels = torch.tensor(batch.labels[0], dtype=torch.long, device=device).reshape(-1)
    if loss == 'liger':
        run = _liger_loss(c, student, teacher, device)
    else:
        run = _torch_loss(c, student, teacher, device, plain=loss == 'plain')
        run = torch.compile(run) if compiled else run

    def call() -> float:
        update.zero_grad(set_to_none=True)
        value = run(ids, labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), c.optim.clip_norm)
        update.step()
        return value.item()

    call()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        call()
        return call, torch.cuda.max_memory_allocated() - before
    return call, None


def _autocast(c, device: str):
    import torch

    low = c.train.compute_dtype == 'bfloat16'
    return torch.autocast(device, dtype=torch.bfloat16, enabled=low)


def _torch_loss(c, student, teacher, device: str, plain: bool):
    """`(ids, labels) -> loss`, from the logits of the whole batch."""
    import torch
    import torch.nn.functional as F

    weight, tau = c.loss.lambda_, c.loss.temperature

    def loss_of(ids, labels):
        with _autocast(c, device):
            with torch.no_grad():
                target = teacher(ids).logits.flatten(0, 1)
            logits = student(ids).logits.flatten(0, 1)
        logits, target = logits.float(), target.float()
        soft = log_p = F.log_softmax(logits, -1)
        if tau != 1:
            soft = F.log_softmax(logits / tau, -1)
        ce = F.cross_entropy(logits, labels) if plain else F.nll_loss(log_p, labels)
        kl = F.kl_div(soft, F.log_softmax(target / tau, -1), log_target=True, reduction='batchmean')
        return (1 - weight) * ce + weight * tau**2 * kl

    return loss_of


def _liger_loss(c, student, teacher, device: str):
    """Likewise, heads and loss by Liger in chunks of the size it chooses; the rest by torch.compile."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    weight, tau = c.loss.lambda_, c.loss.temperature
    # beta 0 is the KL from the teacher.
    fused = LigerFusedLinearJSDLoss(1 - weight, weight * tau**2, beta=0.0, temperature=tau)

    @torch.compile
    def features_of(ids):
        with _autocast(c, device):
            with torch.no_grad():
                target = teacher.transformer(ids).last_hidden_state.flatten(0, 1)
            return student.transformer(ids).last_hidden_state.flatten(0, 1), target

    def loss_of(ids, labels):
        features, target = features_of(ids)
        with _autocast(c, device):
            return fused(features, student.lm_head.weight, target, teacher.lm_head.weight, labels)

    return loss_of


def of_tunix(c):
    """As `theirs`, by Tunix: its strategy of logits has the same loss, from one-hot labels."""
    from flax import nnx
    from tunix.distillation import distillation_trainer as tunix, strategies

    def network(params):
        return nnx.Dict(
            {k: network(x) if isinstance(x, dict) else nnx.Param(x) for k, x in params.items()}
        )

    def forward(model):
        def logits(module, input_tokens, input_mask):
            params = nnx.to_pure_dict(nnx.state(module))
            return model.logits(
                params, Batch(input_tokens[:, :-1], input_tokens[:, 1:], input_mask)
            )

        return logits

    student, teacher = networks.student(c), networks.teacher(c, c.teacher)
    frozen = teacher.init(jax.random.key(1))
    frozen = jax.tree.map(lambda x: x.astype(networks.teacher_dtype(c)), frozen)
    strategy = strategies.LogitStrategy(
        forward(student), forward(teacher),
        lambda input_tokens, input_mask: jax.nn.one_hot(
            input_tokens[:, 1:], models.head_rows(c.student)
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
        network(student.init(jax.random.key(0))), network(frozen), strategy, rule,
        tunix.TrainingConfig(eval_every_n_steps=1 << 30),
    )  # fmt: skip
    trainer.is_managed_externally = True  # it is called again and again
    batch = batch_of(c)
    ids = np.concatenate([batch.tokens[0], batch.labels[0][:, -1:]], axis=1)
    given = tunix.TrainingInput(input_tokens=ids, input_mask=batch.weights[0])
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ('fsdp',), auto, devices=jax.devices()[:1])

    def call() -> float:
        with mesh:
            trainer.train([given])
        return float(trainer._prev_buffered_train_metrics.loss)

    return call, None


CONTESTANTS = {
    'ours': functools.partial(ours, dense=False),
    'dense': functools.partial(ours, dense=True),
    'eager': theirs,
    'compile': functools.partial(theirs, compiled=True),
    'plain': functools.partial(theirs, loss='plain'),
    'liger': functools.partial(theirs, loss='liger'),
    'tunix': of_tunix,
}
"""Name -> its maker; the last three run where they are asked for."""
