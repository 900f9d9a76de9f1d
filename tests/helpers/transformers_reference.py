"""Transformers' networks with every tensor filled with noise, and what is compared with ours."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models.huggingface import weights

SIZES = {
    'Bert': {
        'vocab_size': 201, 'hidden_size': 48, 'num_hidden_layers': 3, 'num_attention_heads': 4,
        'intermediate_size': 80, 'max_position_embeddings': 40, 'type_vocab_size': 3,
    },
    'GPT2': {
        'vocab_size': 201, 'n_embd': 48, 'n_layer': 3, 'n_head': 4, 'n_inner': 80,
        'n_positions': 40, 'bos_token_id': None, 'eos_token_id': None,
    },
    'Bart': {
        'vocab_size': 201, 'd_model': 48, 'encoder_layers': 3, 'decoder_layers': 2,
        'encoder_attention_heads': 4, 'decoder_attention_heads': 4, 'encoder_ffn_dim': 80,
        'decoder_ffn_dim': 80, 'max_position_embeddings': 40,
    },
}  # fmt: skip
_NO_DROPOUT = {
    'Bert': ('hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'GPT2': ('resid_pdrop', 'embd_pdrop', 'attn_pdrop'),
    'Bart': ('dropout',),
}


class Inputs(NamedTuple):
    """Arrays of one batch; all rows but the first end in padding."""

    ids: np.ndarray
    real: np.ndarray
    """1 where `ids` is no padding, else 0."""
    types: np.ndarray
    source: np.ndarray
    source_real: np.ndarray
    positions: np.ndarray
    """Predicted ones of an encoder."""
    labels: np.ndarray
    """Of every position; -100 on padding."""
    classes: np.ndarray
    """0 or 1 for each row."""
    direction: np.ndarray
    """Of a loss that is linear in the features."""

    def masked_labels(self) -> np.ndarray:
        """Labels at the predicted positions; -100 elsewhere."""
        chosen = np.zeros_like(self.real)
        np.put_along_axis(chosen, self.positions, 1, axis=1)
        return np.where(chosen, self.labels, -100)


def inputs(rows: int = 3, length: int = 33, source: int = 29, vocabulary: int = 201,
           width: int = 48, padding: int = 1) -> Inputs:  # fmt: skip
    rng = np.random.default_rng(0)

    def padded(size):
        lengths = np.array([size, *rng.integers(size // 2, size, rows - 1)])
        real = (np.arange(size) < lengths[:, None]).astype(np.int32)
        return np.where(real, rng.integers(4, vocabulary, (rows, size)), padding), real

    ids, real = padded(length)
    source_ids, source_real = padded(source)
    positions = np.stack([rng.choice(length // 2, 5, replace=False) for _ in range(rows)])
    return Inputs(
        ids, real, np.where(real, rng.integers(0, 2, ids.shape), 0), source_ids, source_real,
        positions, np.where(real, rng.integers(4, vocabulary, ids.shape), -100),
        rng.integers(0, 2, rows), 0.1 * rng.normal(size=width).astype(np.float32),
    )  # fmt: skip


def make(architecture: str, matrices: float = 0.1, **changes):
    """A reference network in float32: scales of norms 1 + 0.1 n, matrices `matrices` n, all else
    0.1 n, with n standard normal.
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


def theirs(network, x: Inputs):
    """Outputs by name, and the loss, of transformers."""
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
    bart = {'input_ids': to(x.source), 'attention_mask': to(x.source_real),
            'decoder_input_ids': ids, 'decoder_attention_mask': real}  # fmt: skip
    if name == 'BartForConditionalGeneration':
        out = network(**bart, labels=to(x.labels))
        return {'logits': out.logits}, out.loss
    if name == 'GPT2LMHeadModel':
        # It shifts the labels itself.
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
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=2)[..., 0]
    return -jnp.sum(picked * (labels >= 0)) / jnp.sum(labels >= 0)


def ours(model: models.Model, params, x: Inputs, architecture: str):
    """The same outputs, and the same loss, of ours."""
    bert, mass = (model.network.family == name for name in ('bert', 'mass'))
    every = Batch(
        x.ids, x.labels, x.real, segments=x.real, type_ids=x.types if bert else None,
        source=x.source if mass else None, source_segments=x.source_real if mass else None,
    )  # fmt: skip
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
    """Of which the first position is predicted, where a classifier's features are."""
    return dataclasses.replace(batch, positions=jnp.zeros((len(batch.tokens), 1), jnp.int32))


def _classifier(model: models.Model, classes: int) -> models.Model:
    shape = model.network.to_dict() | {'head': 'classify', 'classes': classes}
    return models.build(config.network(**shape))


def _pooled(params, output) -> models.Params:
    """A classifier's parameters: trunk and pooler of another head, and `output`."""
    heads = ('transform', 'transform_norm', 'output_bias', 'next_sentence')
    return {k: v for k, v in params.items() if k not in heads} | {'classifier': output}


def gradients(network, model: models.Model) -> dict:
    """Of transformers' parameters, as our tree; 0 where the loss gives none."""
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
