"""Transformers' networks with noisy parameters, their outputs, and our outputs for comparison."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models.huggingface import weights

# Keys of the sizes of each family, and transformers' defaults.
DEFAULTS = {
    'Bert': {
        'vocab_size': 30522,
        'hidden_size': 768,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'intermediate_size': 3072,
        'max_position_embeddings': 512,
        'type_vocab_size': 2,
    },
    'GPT2': {
        'vocab_size': 50257,
        'n_embd': 768,
        'n_layer': 12,
        'n_head': 12,
        'n_inner': None,
        'n_positions': 1024,
    },
    'Bart': {
        'vocab_size': 50265,
        'd_model': 1024,
        'encoder_layers': 12,
        'decoder_layers': 12,
        'encoder_attention_heads': 16,
        'decoder_attention_heads': 16,
        'encoder_ffn_dim': 4096,
        'decoder_ffn_dim': 4096,
        'max_position_embeddings': 1024,
    },
}
# The small networks of the tests, in the order of the keys above.
_SMALL = {
    'Bert': (201, 48, 3, 4, 80, 40, 3),
    'GPT2': (201, 48, 3, 4, 80, 40),
    'Bart': (201, 48, 3, 2, 4, 4, 80, 80, 40),
}
SIZES = {family: dict(zip(keys, _SMALL[family], strict=True)) for family, keys in DEFAULTS.items()}
SIZES['GPT2'] |= {'bos_token_id': None, 'eos_token_id': None}
_NO_DROPOUT = {
    'Bert': ('hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'GPT2': ('resid_pdrop', 'embd_pdrop', 'attn_pdrop'),
    'Bart': ('dropout',),
}


class Inputs(NamedTuple):
    """Arrays of one batch; all rows but the first end in padding."""

    ids: np.ndarray
    real: np.ndarray  # 1 at ids, 0 at padding
    types: np.ndarray
    source: np.ndarray
    source_real: np.ndarray
    positions: np.ndarray  # predicted positions of an encoder
    labels: np.ndarray  # of all positions; -100 on padding
    classes: np.ndarray  # 0 or 1 for each row
    direction: np.ndarray  # of a loss that is linear in the features

    def masked_labels(self) -> np.ndarray:
        """Returns the labels at the predicted positions; -100 elsewhere."""
        chosen = np.zeros_like(self.real)
        np.put_along_axis(chosen, self.positions, 1, axis=1)
        return np.where(chosen, self.labels, -100)


def inputs(rows=3, length=33, vocabulary=201, width=48, *, source=29, padding=1) -> Inputs:
    rng = np.random.default_rng(0)

    def draw(size):
        lengths = np.array([size, *rng.integers(size // 2, size, rows - 1)])
        real = (np.arange(size) < lengths[:, None]).astype(np.int32)
        return np.where(real, rng.integers(4, vocabulary, (rows, size)), padding), real

    ids, real = draw(length)
    source_ids, source_real = draw(source)
    positions = np.stack([rng.choice(length // 2, 5, replace=False) for _ in range(rows)])
    return Inputs(
        ids=ids,
        real=real,
        types=np.where(real, rng.integers(0, 2, ids.shape), 0),
        source=source_ids,
        source_real=source_real,
        positions=positions,
        labels=np.where(real, rng.integers(4, vocabulary, ids.shape), -100),
        classes=rng.integers(0, 2, rows),
        direction=0.1 * rng.normal(size=width).astype(np.float32),
    )


def make(architecture: str, matrices: float = 0.1, **changes):
    """Returns a network of transformers in float32 with noisy parameters.

    Scales of norms are 1 + 0.1 n, matrices `matrices` n, all others 0.1 n, n standard normal.
    """
    import torch
    import transformers

    family = next(name for name in SIZES if architecture.startswith(name))
    settings = SIZES[family] | dict.fromkeys(_NO_DROPOUT[family], 0.0) | changes
    c = getattr(transformers, f'{family}Config')(**settings)
    generator = torch.Generator().manual_seed(0)
    network = getattr(transformers, architecture)(c).float().eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                matrix = tensor.ndim == 2 and name != 'final_logits_bias'
                noise = torch.randn(tensor.shape, generator=generator)
                norm = name.endswith('weight') and tensor.ndim == 1
                tensor.copy_((matrices if matrix else 0.1) * noise + (1 if norm else 0))
    return network


def reference_outputs(network, x: Inputs):
    """Returns the outputs by name and the loss of transformers."""
    import torch

    to = torch.tensor
    ids, real, name = to(x.ids), to(x.real), type(network).__name__
    bert = {'input_ids': ids, 'attention_mask': real, 'token_type_ids': to(x.types)}
    if name == 'BertForMaskedLM':
        out = network(**bert, labels=to(x.masked_labels()))
        return {'logits': out.logits}, out.loss
    if name == 'BertForPreTraining':
        out = network(**bert, labels=to(x.masked_labels()), next_sentence_label=to(x.classes))
        return {'logits': out.prediction_logits, 'classes': out.seq_relationship_logits}, out.loss
    if name == 'BertForSequenceClassification':
        out = network(**bert, labels=to(x.classes))
        return {'classes': out.logits}, out.loss
    bart = {'input_ids': to(x.source), 'attention_mask': to(x.source_real)}
    bart |= {'decoder_input_ids': ids, 'decoder_attention_mask': real}
    if name == 'BartForConditionalGeneration':
        out = network(**bart, labels=to(x.labels))
        return {'logits': out.logits}, out.loss
    if name == 'GPT2LMHeadModel':
        # GPT2LMHeadModel shifts the labels.
        labels = torch.cat([to(x.labels)[:, :1], to(x.labels)[:, :-1]], dim=1)
        out = network(ids, attention_mask=real, labels=labels)
        return {'logits': out.logits}, out.loss
    gpt2 = {'input_ids': ids, 'attention_mask': real}
    out = network(**{'BertModel': bert, 'GPT2Model': gpt2, 'BartModel': bart}[name])
    features = out.last_hidden_state
    loss = (features[real == 1] @ to(x.direction)).mean()
    if name != 'BertModel':
        return {'features': features}, loss
    pooled = out.pooler_output
    return {'features': features, 'pooled': pooled}, loss + (pooled @ to(x.direction)).mean()


def _cross_entropy(logits_BPV, labels_BP):
    log_p = jax.nn.log_softmax(logits_BPV)
    labels = jnp.asarray(labels_BP)
    label_log_p = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=2)[..., 0]
    return -jnp.sum(label_log_p * (labels >= 0)) / jnp.sum(labels >= 0)


def jax_outputs(model: models.Model, params, x: Inputs, architecture: str):
    """Returns the same outputs and the same loss of our model."""
    bert, mass = (model.network.family == name for name in ('bert', 'mass'))
    every = Batch(x.ids, x.labels, x.real, segments=x.real)
    if bert:
        every = dataclasses.replace(every, type_ids=x.types)
    if mass:
        every = dataclasses.replace(every, source=x.source, source_segments=x.source_real)
    if architecture in ('BertForMaskedLM', 'BertForPreTraining'):
        outputs = {'logits': model.logits(params, every)}
        masked = dataclasses.replace(every, positions=x.positions)
        labels = np.take_along_axis(x.labels, x.positions, axis=1)
        loss = _cross_entropy(model.logits(params, masked), labels)
        if architecture == 'BertForPreTraining':
            output = params['next_sentence']
            outputs['classes'] = _classifier(model, 2).logits(_pooled(params, output), first(every))
            loss += _cross_entropy(outputs['classes'], x.classes[:, None])
        return outputs, loss
    if architecture == 'BertForSequenceClassification':
        logits = model.logits(params, first(every))
        return {'classes': logits}, _cross_entropy(logits, x.classes[:, None])
    if architecture in ('GPT2LMHeadModel', 'BartForConditionalGeneration'):
        logits = model.logits(params, every)
        # GPT2LMHeadModel predicts nothing from the last position.
        end = -1 if architecture == 'GPT2LMHeadModel' else None
        return {'logits': logits}, _cross_entropy(logits[:, :end], x.labels[:, :end])
    outputs = {'features': model.features(params, every)}
    loss = jnp.sum((outputs['features'] @ x.direction) * x.real) / x.real.sum()
    if architecture == 'BertModel':
        blank = {'table': jnp.zeros((2, model.network.width)), 'bias': jnp.zeros(2)}
        features = _classifier(model, 2).features(_pooled(params, blank), first(every))
        outputs['pooled'] = features
        loss += jnp.mean(features @ x.direction)
    return outputs, loss


def first(batch: Batch) -> Batch:
    """Returns a batch that predicts the first position, which has a classifier's features."""
    return dataclasses.replace(batch, positions=jnp.zeros((len(batch.tokens), 1), jnp.int32))


def _classifier(model: models.Model, classes: int) -> models.Model:
    shape = model.network.to_dict() | {'head': 'classify', 'classes': classes}
    return models.build(config.network(**shape))


def _pooled(params, output) -> models.Params:
    """Returns a classifier's parameters: trunk and pooler of another head, and `output`."""
    heads = ('transform', 'transform_norm', 'output_bias', 'next_sentence')
    return {k: v for k, v in params.items() if k not in heads} | {'classifier': output}


def gradients(network, model: models.Model) -> dict:
    """Returns the gradients of transformers as our tree; 0 if the loss gives none."""
    tensors = {
        name: (0 * tensor if tensor.grad is None else tensor.grad).detach().numpy()
        for name, tensor in network.named_parameters()
    }
    return tree(tensors, model)


def tree(tensors: dict, model: models.Model) -> dict:
    names = models.MODELS[model.network.family][0].NAMES
    return weights.from_huggingface(
        'reference', tensors, model.table, names, model.abstract_params, model.network.vocab_size
    )
