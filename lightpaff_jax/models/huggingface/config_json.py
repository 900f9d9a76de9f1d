"""Hugging Face's config.json and the keys of `config.network()`, in both directions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.errors import UserError

ARCHITECTURES = {
    'BertForMaskedLM': ('bert', 'lm'),
    'BertForPreTraining': ('bert', 'pretraining'),
    'BertModel': ('bert', 'none'),
    'BertForSequenceClassification': ('bert', 'classify'),
    'GPT2LMHeadModel': ('gpt2', 'lm'),
    'GPT2Model': ('gpt2', 'lm'),  # a head that is the embedding needs no tensor
    'BartForConditionalGeneration': ('mass', 'lm'),
    'BartModel': ('mass', 'lm'),
}
"""Name -> our family and head; the first of a pair is the one we write."""


class Rule(NamedTuple):
    """A setting that our networks have built in."""

    key: str
    default: Any
    """Transformers' value where the key is absent."""
    allowed: tuple
    """Values that mean what we compute; the first is written."""


_MODEL_TYPES = {'bert': 'bert', 'gpt2': 'gpt2', 'mass': 'bart'}

# Our key -> theirs, and transformers' default.
_SIZES: dict[str, dict[str, tuple[str, int]]] = {
    'bert': {
        'vocab_size': ('vocab_size', 30522),
        'width': ('hidden_size', 768),
        'layers': ('num_hidden_layers', 12),
        'heads': ('num_attention_heads', 12),
        'ffn': ('intermediate_size', 3072),
        'positions': ('max_position_embeddings', 512),
        'type_vocab_size': ('type_vocab_size', 2),
    },
    'gpt2': {
        'vocab_size': ('vocab_size', 50257),
        'width': ('n_embd', 768),
        'layers': ('n_layer', 12),
        'heads': ('n_head', 12),
        'ffn': ('n_inner', 0),  # or null: 4 n_embd
        'positions': ('n_positions', 1024),
    },
    'mass': {
        'vocab_size': ('vocab_size', 50265),
        'width': ('d_model', 1024),
        'layers': ('encoder_layers', 12),
        'decoder_layers': ('decoder_layers', 12),
        'heads': ('encoder_attention_heads', 16),
        'ffn': ('encoder_ffn_dim', 4096),
        'positions': ('max_position_embeddings', 1024),
    },
}
# The first is the one that is read: a network of ours has one rate for all. The others are for
# training alone, so they change no result of a teacher.
_DROPOUTS = {
    'bert': ('hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'gpt2': ('resid_pdrop', 'embd_pdrop', 'attn_pdrop'),
    'mass': ('dropout', 'attention_dropout'),
}
_DROPOUT = 0.1  # transformers' default of the first, in all three families
_RULES = {
    'bert': (
        Rule('hidden_act', 'gelu', ('gelu',)),
        Rule('layer_norm_eps', 1e-12, (1e-12,)),
        Rule('position_embedding_type', 'absolute', ('absolute',)),
        Rule('is_decoder', False, (False,)),
        Rule('add_cross_attention', False, (False,)),
    ),
    'gpt2': (
        Rule('activation_function', 'gelu_new', ('gelu_new', 'gelu_pytorch_tanh')),
        Rule('layer_norm_epsilon', 1e-5, (1e-5,)),
        Rule('scale_attn_weights', True, (True,)),
        Rule('scale_attn_by_inverse_layer_idx', False, (False,)),
        Rule('add_cross_attention', False, (False,)),
        Rule('tie_word_embeddings', True, (True,)),
    ),
    # The three of norms are no keys of transformers' BART any more; CTranslate2 asks for them.
    'mass': (
        Rule('activation_function', 'gelu', ('gelu', 'relu')),
        Rule('normalize_before', False, (False,)),
        Rule('add_final_layer_norm', False, (False,)),
        Rule('normalize_embedding', True, (True,)),
        Rule('is_encoder_decoder', True, (True,)),
        Rule('static_position_embeddings', False, (False,)),
        Rule('extra_pos_embeddings', 2, (2,)),
    ),
}
_HEAD_RULES = {
    'lm': (Rule('tie_word_embeddings', True, (True,)),),
    'pretraining': (Rule('tie_word_embeddings', True, (True,)),),
    'classify': (
        Rule('problem_type', None, ('single_label_classification', None)),
    ),
    'none': (),
}  # fmt: skip
# fairseq's name: where not everything is one matrix, decoder and output may be.
_SHARED_OUTPUT = 'share_decoder_input_output_embed'
_TOKENS = {
    'bert': ('pad_token_id',),
    'gpt2': ('pad_token_id', 'bos_token_id', 'eos_token_id'),
    'mass': ('pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id',
             'forced_eos_token_id'),
}  # fmt: skip


def read(where: str, found: Mapping[str, Any]) -> ConfigDict:
    """The network that a config.json describes; absent keys have transformers' defaults.

    Dropout is that of the hidden states: one that differs for attention is not kept.

    Args:
      where: begins the messages.
      found: config.json.

    Raises:
      UserError: an architecture or a setting that our networks do not have.
    """
    found = {'architectures': None, **found}
    names = found['architectures']
    name = str(names[0]) if isinstance(names, list) and names else ''
    if name not in ARCHITECTURES:
        raise UserError(
            f'{where}: config.json has architectures = {names}: must be one of '
            f'{", ".join(ARCHITECTURES)}'
        )
    family, head = ARCHITECTURES[name]
    rules = (*_rules(family, head), Rule('quantization_config', None, (None,)))
    found = _defaults(family) | {rule.key: rule.default for rule in rules} | found
    for rule in rules:
        must = f'must be {" or ".join(map(repr, rule.allowed))}'
        _check(where, found, rule.key, found[rule.key] in rule.allowed, must)
    rate = found[_DROPOUTS[family][0]]
    _check(where, found, _DROPOUTS[family][0], _number(rate) and 0 <= rate < 1, 'must be in [0, 1)')
    changes = {'family': family, 'head': head, 'dropout': float(rate)}
    changes |= _sizes(where, family, found)
    if head == 'classify':
        labels = found['id2label']
        found['num_labels'] = len(labels) if isinstance(labels, dict) else found['num_labels']
        _check(where, found, 'num_labels', _whole(found['num_labels'], 2), 'must be at least 2')
        changes['classes'] = found['num_labels']
    if family == 'mass':
        changes |= _mass(where, found)
    return config.network(**changes)


def _rules(family: str, head: str) -> tuple[Rule, ...]:
    return _RULES[family] + (_HEAD_RULES[head] if family == 'bert' else ())


def _defaults(family: str) -> dict[str, Any]:
    """Transformers' values of the keys that are read and no Rule."""
    values: dict[str, Any] = {_DROPOUTS[family][0]: _DROPOUT}
    values |= dict(_SIZES[family].values())
    if family == 'bert':
        values |= {'id2label': None, 'num_labels': 2}
    if family == 'mass':
        values |= {'decoder_attention_heads': 16, 'decoder_ffn_dim': 4096}
        values |= {'tie_word_embeddings': True, 'scale_embedding': False, _SHARED_OUTPUT: False}
    return values


def _check(where: str, found: Mapping, key: str, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'{where}: config.json has {key} = {found[key]!r}: {rule}')


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value, least: int) -> bool:
    return _number(value) and isinstance(value, int) and value >= least


def _sizes(where: str, family: str, found: dict[str, Any]) -> dict[str, int]:
    keys = {ours: theirs for ours, (theirs, _) in _SIZES[family].items()}
    if family == 'gpt2' and not found['n_inner'] and _whole(found['n_embd'], 1):
        found['n_inner'] = 4 * found['n_embd']
    for theirs in keys.values():
        _check(where, found, theirs, _whole(found[theirs], 1), 'must be a whole number above 0')
    width = found[keys['width']]
    _check(
        where, found, keys['heads'], width % found[keys['heads']] == 0,
        f'must divide {keys["width"]} = {width}',
    )  # fmt: skip
    return {ours: found[theirs] for ours, theirs in keys.items()}


def _mass(where: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What BART alone has; encoder and decoder of ours have the same heads and width."""
    for key in ('attention_heads', 'ffn_dim'):
        one, other = f'encoder_{key}', f'decoder_{key}'
        same = found[one] == found[other]
        _check(where, found, other, same, f'must equal {one} = {found[one]}')
    for key in ('tie_word_embeddings', 'scale_embedding', _SHARED_OUTPUT):
        _check(where, found, key, isinstance(found[key], bool), 'must be true or false')
    untied = 'decoder' if found[_SHARED_OUTPUT] else 'none'
    return {
        'activation': found['activation_function'],
        'scale_embedding': found['scale_embedding'],
        'tied': 'all' if found['tie_word_embeddings'] else untied,
    }


def write(c: ConfigDict, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json of a network.

    Args:
      c: the keys of `config.network()`.
      ids: of special tokens, by transformers' keys ('pad_token_id', ...); those not given are
        null, and a sequence is forced to end in eos_token_id.
    """
    family = c.family
    names = [name for name, pair in ARCHITECTURES.items() if pair == (family, c.head)]
    values: dict[str, Any] = {'architectures': names[:1], 'model_type': _MODEL_TYPES[family]}
    values |= {theirs: c[ours] for ours, (theirs, _) in _SIZES[family].items()}
    values |= dict.fromkeys(_DROPOUTS[family], c.dropout)
    values |= {rule.key: rule.allowed[0] for rule in _rules(family, c.head)}
    if c.head == 'classify':
        values['id2label'] = {str(i): f'LABEL_{i}' for i in range(c.classes)}
        values['label2id'] = {f'LABEL_{i}': i for i in range(c.classes)}
    if family == 'mass':
        values |= {
            'activation_function': c.activation,
            'decoder_attention_heads': c.heads,
            'decoder_ffn_dim': c.ffn,
            'scale_embedding': c.scale_embedding,
            'tie_word_embeddings': c.tied == 'all',
            _SHARED_OUTPUT: c.tied == 'decoder',
        }
    tokens: dict[str, int | None] = dict.fromkeys(_TOKENS[family])
    tokens |= ids
    if family == 'mass' and 'forced_eos_token_id' not in ids:
        tokens['forced_eos_token_id'] = tokens['eos_token_id']
    return values | tokens
