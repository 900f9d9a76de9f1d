"""The contestants of benchmarks/step.py: implementations of the same training step.

A contestant is a function from a configuration to (update, memory). `update()` makes one update and
returns its loss. `memory` is the peak of an update in bytes, or None if only the process can tell.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lightpaff_jax import config, distill_step, models, networks, optimizer, sharding
from lightpaff_jax.batch import Batch

Contestant = tuple[Callable[[], float], int | None]


def make_config(options: argparse.Namespace) -> ConfigDict:
    """Returns the configuration of the run that all contestants train."""
    c = config.default()
    for network, sizes in ((c.student, options.student), (c.teacher, options.teacher)):
        layers, width, heads = map(int, sizes.split('x'))
        network.update({'layers': layers, 'width': width, 'heads': heads, 'ffn': 4 * width})
        network.update({'vocab_size': options.vocabulary, 'positions': options.length})
    c.data.length, c.data.batch_size = options.length, options.batch
    c.train.update({'compute_dtype': options.dtype, 'remat': options.remat})
    c.teacher.dtype = options.dtype
    c.loss.chunk = options.chunk
    c.optim.warmup = 1
    return c


def make_batch(c: ConfigDict) -> Batch:
    """Returns seeded random ids as one micro-batch: arrays [1, B, T]."""
    shape = (1, c.data.batch_size, c.data.length + 1)
    ids = np.random.default_rng(0).integers(0, c.student.vocab_size, shape).astype(np.int32)
    return Batch(ids[..., :-1], ids[..., 1:], np.ones(ids[..., 1:].shape, np.float32))


def dense_loss(student, teacher, labels, weights, *, lambda_, temperature, chunk):
    """Computes `losses.distillation_loss` from the logits of the whole batch."""
    del chunk

    def logits(predictor):
        product_BPV = jnp.einsum(
            'bpd,vd->bpv',
            predictor.features,
            predictor.head.weight,
            preferred_element_type=jnp.float32,
        )
        return product_BPV + predictor.head.bias

    s, t = logits(student), jax.lax.stop_gradient(logits(teacher))
    ce = optax.softmax_cross_entropy_with_integer_labels(s, labels)
    log_p, log_q = jax.nn.log_softmax(s / temperature), jax.nn.log_softmax(t / temperature)
    kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
    loss = jnp.sum(weights * ((1 - lambda_) * ce + lambda_ * temperature**2 * kl))
    return {'loss': loss, 'count': jnp.sum(weights)}


def package_step(c: ConfigDict, dense: bool) -> Contestant:
    """Builds the package's step; its memory includes the networks and is the compiler's figure.

    Args:
      c: the configuration.
      dense: whether the loss takes the logits of the whole batch.
    """
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    student = networks.student(c)
    teacher = networks.teacher(c, c.teacher)
    gradient_transform = optimizer.make(c.optim)
    shardings = distill_step.state_shardings(c, mesh, student, gradient_transform)
    state = jax.device_put(distill_step.init_state(student, gradient_transform, 0), shardings)
    dtype = networks.teacher_dtype(c)
    params = jax.tree.map(lambda x: x.astype(dtype), teacher.init(jax.random.key(1)))
    params = jax.device_put(params, sharding.param_shardings(mesh, params))
    batch = sharding.put_batch(mesh, make_batch(c), micro=True)
    # The step has no option for its loss, so the dense one replaces the function during tracing.
    package_loss = distill_step.distillation_loss
    distill_step.distillation_loss = dense_loss if dense else package_loss
    try:
        step = distill_step.make_step(c, mesh, student, teacher, gradient_transform)
        with jax.set_mesh(mesh):
            program = step.lower(state, params, batch, optimizer.hyperparameters(c)).compile()
    finally:
        distill_step.distillation_loss = package_loss

    def update() -> float:
        nonlocal state
        state, sums = program(state, params, batch, optimizer.hyperparameters(c))
        return float(sums['loss'] / sums['count'])

    analysis = program.memory_analysis()
    # The state is donated, so its output uses the memory of its input: count it once.
    arrays = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return update, arrays + analysis.temp_size_in_bytes


def _make_gpt2(network: ConfigDict, activation: str):
    """Returns a GPT-2 of transformers with the sizes of a network of the package."""
    import transformers

    gpt2_config = transformers.GPT2Config(
        vocab_size=models.pad_vocab(network.vocab_size),
        n_positions=network.positions,
        n_embd=network.width,
        n_layer=network.layers,
        n_head=network.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation='sdpa',
        use_cache=False,
        activation_function=activation,
    )
    return transformers.GPT2LMHeadModel(gpt2_config)


def torch_step(c: ConfigDict, loss: str = 'fast', compiled: bool = False) -> Contestant:
    """Builds the step in torch and transformers; its memory is known on a GPU only.

    Args:
      c: the configuration.
      loss: 'fast'; 'plain', which chooses nothing for speed; or 'liger', heads and loss by Liger.
      compiled: whether forward passes and loss go through torch.compile.
    """
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        torch.set_float32_matmul_precision('high')  # TF32, which JAX uses by default
    initial_bytes = torch.cuda.memory_allocated() if device == 'cuda' else 0

    torch.manual_seed(0)
    # 'gelu_new' computes the same function, as five operations instead of one.
    activation = 'gelu_new' if loss == 'plain' else 'gelu_pytorch_tanh'
    student, teacher = (_make_gpt2(n, activation).to(device) for n in (c.student, c.teacher))
    teacher = teacher.eval().requires_grad_(False).to(getattr(torch, c.teacher.dtype))
    adamw = torch.optim.AdamW(
        student.parameters(),
        lr=c.optim.peak_lr,
        betas=(c.optim.b1, c.optim.b2),
        weight_decay=c.optim.weight_decay,
        fused=True,
    )
    batch = make_batch(c)
    ids = torch.tensor(batch.tokens[0], dtype=torch.long, device=device)
    labels = torch.tensor(batch.labels[0], dtype=torch.long, device=device).reshape(-1)
    if loss == 'liger':
        compute_loss = _liger_loss(c, student, teacher, device)
    else:
        compute_loss = _torch_loss(c, student, teacher, device, plain=loss == 'plain')
        compute_loss = torch.compile(compute_loss) if compiled else compute_loss

    def update() -> float:
        adamw.zero_grad(set_to_none=True)
        value = compute_loss(ids, labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), c.optim.clip_norm)
        adamw.step()
        return value.item()

    update()
    if device == 'cuda':
        # The first update compiles and allocates the optimizer's state; the second is typical.
        torch.cuda.reset_peak_memory_stats()
        update()
        return update, torch.cuda.max_memory_allocated() - initial_bytes
    return update, None


def _autocast(c: ConfigDict, device: str):
    """Returns the context of the forward passes: autocast if the compute type is bfloat16."""
    import torch

    low_precision = c.train.compute_dtype == 'bfloat16'
    return torch.autocast(device, dtype=torch.bfloat16, enabled=low_precision)


def _torch_loss(c: ConfigDict, student, teacher, device: str, plain: bool):
    """Returns a function (ids, labels) -> loss that uses the logits of the whole batch."""
    import torch
    import torch.nn.functional as F

    lambda_, tau = c.loss.lambda_, c.loss.temperature

    def compute_loss(ids, labels):
        with _autocast(c, device):
            with torch.no_grad():
                target = teacher(ids).logits.flatten(0, 1)
            logits = student(ids).logits.flatten(0, 1)
        logits, target = logits.float(), target.float()
        # At temperature 1 both terms share one log-softmax, unless `plain`.
        scaled_log_p = log_p = F.log_softmax(logits, -1)
        if tau != 1:
            scaled_log_p = F.log_softmax(logits / tau, -1)
        ce = F.cross_entropy(logits, labels) if plain else F.nll_loss(log_p, labels)
        log_q = F.log_softmax(target / tau, -1)
        kl = F.kl_div(scaled_log_p, log_q, log_target=True, reduction='batchmean')
        return (1 - lambda_) * ce + lambda_ * tau**2 * kl

    return compute_loss


def _liger_loss(c: ConfigDict, student, teacher, device: str):
    """Returns a function (ids, labels) -> loss.

    Liger computes heads and loss in chunks whose size it chooses; torch.compile compiles the rest.
    """
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    lambda_, tau = c.loss.lambda_, c.loss.temperature
    # With beta = 0 the divergence is the KL from the teacher to the student.
    fused = LigerFusedLinearJSDLoss(1 - lambda_, lambda_ * tau**2, beta=0.0, temperature=tau)

    @torch.compile
    def compute_features(ids):
        with _autocast(c, device):
            with torch.no_grad():
                target = teacher.transformer(ids).last_hidden_state.flatten(0, 1)
            return student.transformer(ids).last_hidden_state.flatten(0, 1), target

    def compute_loss(ids, labels):
        features, target = compute_features(ids)
        with _autocast(c, device):
            return fused(features, student.lm_head.weight, target, teacher.lm_head.weight, labels)

    return compute_loss


def tunix_step(c: ConfigDict) -> Contestant:
    """Builds the step with the package's networks in Tunix's trainer; its memory is unknown.

    Tunix's LogitStrategy has the same loss, from one-hot labels.
    """
    from flax import nnx
    from tunix.distillation import distillation_trainer as tunix, strategies

    def to_module(params):
        return nnx.Dict(
            {k: to_module(x) if isinstance(x, dict) else nnx.Param(x) for k, x in params.items()}
        )

    def make_forward(model):
        def forward(module, input_tokens, input_mask):
            params = nnx.to_pure_dict(nnx.state(module))
            batch = Batch(input_tokens[:, :-1], input_tokens[:, 1:], input_mask)
            return model.logits(params, batch)

        return forward

    def one_hot_labels(input_tokens, input_mask):
        return jax.nn.one_hot(input_tokens[:, 1:], models.head_rows(c.student))

    student, teacher = networks.student(c), networks.teacher(c, c.teacher)
    teacher_params = teacher.init(jax.random.key(1))
    teacher_params = jax.tree.map(lambda x: x.astype(networks.teacher_dtype(c)), teacher_params)
    strategy = strategies.LogitStrategy(
        make_forward(student),
        make_forward(teacher),
        one_hot_labels,
        temperature=c.loss.temperature,
        alpha=c.loss.lambda_,
    )
    adamw = optax.adamw(c.optim.peak_lr, c.optim.b1, c.optim.b2, weight_decay=c.optim.weight_decay)
    trainer = tunix.DistillationTrainer(
        to_module(student.init(jax.random.key(0))),
        to_module(teacher_params),
        strategy,
        optax.chain(optax.clip_by_global_norm(c.optim.clip_norm), adamw),
        tunix.TrainingConfig(eval_every_n_steps=1 << 30),
    )
    trainer.is_managed_externally = True  # `train` is called for each update and must not close it
    batch = make_batch(c)
    ids = np.concatenate([batch.tokens[0], batch.labels[0][:, -1:]], axis=1)
    training_input = tunix.TrainingInput(input_tokens=ids, input_mask=batch.weights[0])
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ('fsdp',), axis_types, devices=jax.devices()[:1])

    def update() -> float:
        with mesh:
            trainer.train([training_input])
        return float(trainer._prev_buffered_train_metrics.loss)

    return update, None


# 'plain', 'liger' and 'tunix' run only if `--only` names them.
CONTESTANTS: dict[str, Callable[[ConfigDict], Contestant]] = {
    'ours': functools.partial(package_step, dense=False),
    'dense': functools.partial(package_step, dense=True),
    'eager': torch_step,
    'compile': functools.partial(torch_step, compiled=True),
    'plain': functools.partial(torch_step, loss='plain'),
    'liger': functools.partial(torch_step, loss='liger'),
    'tunix': tunix_step,
}
