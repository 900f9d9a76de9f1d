"""Converts Hugging Face's config.json to and from the keys of `config.network()`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface.values import check, is_integer, is_number

# Name -> our family and head. The first name of a pair is the one that we write.
ARCHITECTURES = {
    'BertForMaskedLM': ('bert', 'lm'),
    'BertForPreTraining': ('bert', 'pretraining'),
    'BertModel': ('bert', 'none'),
    'BertForSequenceClassification': ('bert', 'classify'),
    'GPT2LMHeadModel': ('gpt2', 'lm'),
    'GPT2Model': ('gpt2', 'lm'),  # the head is the embedding and needs no tensor
    'BartForConditionalGeneration': ('mass', 'lm'),
    'BartModel': ('mass', 'lm'),
}

_MODEL_TYPES = {'bert': 'bert', 'gpt2': 'gpt2', 'mass': 'bart'}
# Names that transformers reads as another key.
_ALIASES = {
    'bert': {},
    'gpt2': {
        'hidden_size': 'n_embd',
        'max_position_embeddings': 'n_positions',
        'num_attention_heads': 'n_head',
        'num_hidden_layers': 'n_layer',
    },
    'mass': {
        'hidden_size': 'd_model',
        'num_attention_heads': 'encoder_attention_heads',
        'num_hidden_layers': 'encoder_layers',
    },
}

# Our key -> Hugging Face's key, and transformers' default.
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
        'ffn': ('n_inner', 0),  # 0 or null means 4 n_embd
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
# Our networks have one rate for all dropouts: the reader takes the first key, the writer sets all.
# The others change training only, no result of a teacher.
_DROPOUTS = {
    'bert': ('hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'gpt2': ('resid_pdrop', 'embd_pdrop', 'attn_pdrop'),
    'mass': ('dropout', 'attention_dropout'),
}

# Key -> the values that our networks compute. The first is written. Transformers' default is always
# among them, so an absent key needs no check.
_RULES: dict[str, dict[str, tuple]] = {
    'all': {
        'quantization_config': (None,),
        'pruned_heads': (None, {}),
        'per_layer_config': (None,),
        'auto_map': (None,),  # code of the folder, which is not executed
    },
    'bert': {
        'hidden_act': ('gelu',),
        'layer_norm_eps': (1e-12,),
        'position_embedding_type': ('absolute',),
        'is_decoder': (False,),
        'is_encoder_decoder': (False,),
        'add_cross_attention': (False,),
    },
    'gpt2': {
        'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
        'layer_norm_epsilon': (1e-5,),
        'scale_attn_weights': (True,),
        'scale_attn_by_inverse_layer_idx': (False,),
        'is_encoder_decoder': (False,),
        'add_cross_attention': (False,),
        'tie_word_embeddings': (True,),
    },
    # Transformers' BART no longer has the three keys of norms; CTranslate2 requires them.
    'mass': {
        'activation_function': ('gelu', 'relu'),
        'normalize_before': (False,),
        'add_final_layer_norm': (False,),
        'normalize_embedding': (True,),
        'is_encoder_decoder': (True,),
        'is_decoder': (False,),
        'tie_encoder_decoder': (False,),
        'static_position_embeddings': (False,),
        'extra_pos_embeddings': (2,),
    },
}
_BERT_HEAD_RULES: dict[str, dict[str, tuple]] = {
    'lm': {'tie_word_embeddings': (True,)},
    'pretraining': {'tie_word_embeddings': (True,)},
    'classify': {'problem_type': ('single_label_classification', None)},
    'none': {},
}
# Larger numbers are damage. They would cost hours and memory until a tensor is missing.
_MAX_CLASSES, _MAX_LAYERS, _MAX_SIZE = 10**6, 10**3, 10**7
# fairseq's key: if not all embeddings are one matrix, decoder and output may be.
_SHARED_OUTPUT = 'share_decoder_input_output_embed'
_TOKENS = {
    'bert': ('pad_token_id',),
    'gpt2': ('pad_token_id', 'bos_token_id', 'eos_token_id'),
    'mass': (
        'pad_token_id',
        'bos_token_id',
        'eos_token_id',
        'decoder_start_token_id',
        'forced_eos_token_id',
    ),
}
TOKEN_DEFAULTS: dict[str, dict[str, int]] = {
    'bert': {'pad_token_id': 0},
    'gpt2': {'bos_token_id': 50256, 'eos_token_id': 50256},
    'mass': {
        'pad_token_id': 1,
        'bos_token_id': 0,
        'eos_token_id': 2,
        'decoder_start_token_id': 2,
        'forced_eos_token_id': 2,
    },
}
"""Ids of special tokens that transformers assumes for absent keys of config.json."""


def read(
    where: str, values: Mapping[str, Any], tensors: Callable[[], Iterable[str]] = tuple
) -> ConfigDict:
    """Reads the network of a config.json; absent keys have transformers' defaults.

    Dropout is that of the hidden states; another rate for attention is dropped.

    Args:
      where: the folder, the start of the messages.
      values: config.json.
      tensors: returns the names of the tensors, which decide the head if config.json names no
        architecture.

    Raises:
      UserError: an architecture or a setting that our networks do not have.
    """
    where = f'{where}: config.json'
    family, head = _architecture(where, values, tensors)
    rules = _rules(family, head)
    values = _resolve_aliases(where, values, _ALIASES[family])
    values = _defaults(family) | {key: allowed[0] for key, allowed in rules.items()} | values
    for key, allowed in rules.items():
        rule = f'must be {" or ".join(map(repr, allowed))}'
        check(where, values, key, values[key] in allowed, rule)
    dropout_key = _DROPOUTS[family][0]
    rate = values[dropout_key]
    is_rate = is_number(rate) and 0 <= rate < 1
    check(where, values, dropout_key, is_rate, 'must be in [0, 1)')
    network = {'family': family, 'head': head, 'dropout': float(rate)}
    network |= _sizes(where, family, values)
    if head == 'classify':
        network['classes'] = len(_class_names(where, values))
    if family == 'mass':
        network |= _mass_settings(where, values)
    return config.network(**network)


def _architecture(
    where: str, values: Mapping[str, Any], tensors: Callable[[], Iterable[str]]
) -> tuple[str, str]:
    """Returns family and head, from the architecture or else from model_type and tensors."""
    names, model_type = values.get('architectures'), values.get('model_type')
    types = {hf_type: family for family, hf_type in _MODEL_TYPES.items()}
    if names is None or names == []:
        family = types.get(model_type) if isinstance(model_type, str) else None
        if family is None:
            raise UserError(
                f'{where} has neither architectures nor a known model_type: add '
                f'"architectures": [NAME], where NAME is one of {", ".join(ARCHITECTURES)}'
            )
        return family, _head(where, family, [*tensors()])
    name = names[0] if isinstance(names, list) else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f'{where} has architectures = {names!r:.80}: must be one of {", ".join(ARCHITECTURES)}'
        )
    family, head = ARCHITECTURES[name]
    rule = f"must be '{_MODEL_TYPES[family]}' with architectures = {names}"
    is_known = model_type in (None, _MODEL_TYPES[family])
    check(where, {'model_type': model_type}, 'model_type', is_known, rule)
    return family, head


def _head(where: str, family: str, tensors: Sequence[str]) -> str:
    """Returns the head whose tensors a checkpoint has."""
    if family != 'bert':
        return 'lm'

    def has(name: str) -> bool:
        return any(f'.{tensor}'.find(f'.{name}.') >= 0 for tensor in tensors)

    if has('classifier'):
        if not has('pooler.dense'):
            raise UserError(
                f'{where} has no architectures, and its tensors are those of a token '
                'classifier: must be one of ' + ', '.join(ARCHITECTURES)
            )
        return 'classify'
    if has('cls.predictions') or has('cls.predictions.transform'):
        return 'pretraining' if has('cls.seq_relationship') else 'lm'
    return 'none'


def _resolve_aliases(
    where: str, values: Mapping[str, Any], aliases: Mapping[str, str]
) -> dict[str, Any]:
    resolved = {key: value for key, value in values.items() if key not in aliases}
    for alias, key in aliases.items():
        if alias in values:
            rule = f'must equal {key} = {resolved.get(key)!r}: both name one setting'
            check(
                where, values, alias, resolved.setdefault(key, values[alias]) == values[alias], rule
            )
    return resolved


def read_class_names(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a classifier's classes in the order of their ids; () if unnamed.

    LABEL_0, LABEL_1, ... are the names that transformers gives to classes without a name.

    Raises:
      UserError: id2label has no name for an id, or one name twice, or contradicts num_labels or
        label2id.
    """
    names = _class_names(f'{where}: config.json', values)
    return () if _is_default(names) else names


def _is_default(names: Iterable[str]) -> bool:
    return all(name == f'LABEL_{i}' for i, name in enumerate(names))


def _class_names(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    by_id, count = values.get('id2label'), values.get('num_labels')
    if by_id is None:
        count = 2 if count is None else count
        check(where, values, 'num_labels', is_integer(count, 2), 'must be at least 2')
        rule = f'must be at most {_MAX_CLASSES}'
        check(where, values, 'num_labels', count <= _MAX_CLASSES, rule)
        by_id = {str(i): f'LABEL_{i}' for i in range(count)}
    ids = [str(i) for i in range(len(by_id))] if isinstance(by_id, dict) else []
    valid = bool(ids) and {*by_id} == {*ids}
    valid = valid and all(isinstance(name, str) for name in by_id.values())
    check(where, values, 'id2label', valid, 'must name the classes 0, 1, ...')
    names = tuple(by_id[i] for i in ids)
    inverse = {name: i for i, name in enumerate(names)}
    check(where, values, 'id2label', len(inverse) == len(names), 'must name no class twice')
    check(where, {'num_labels': len(ids)}, 'num_labels', len(ids) >= 2, 'must be at least 2')
    rule = f'must be {len(ids)}, the number of classes in id2label'
    check(where, values, 'num_labels', count in (None, len(ids)), rule)
    reverse = values.get('label2id')
    default = {f'LABEL_{i}': i for i in range(len(reverse))} if isinstance(reverse, dict) else {}
    rule = f'must be the inverse of id2label = {by_id!r:.200}'
    check(where, values, 'label2id', reverse in (None, inverse, default), rule)
    return names


def _rules(family: str, head: str) -> dict[str, tuple]:
    head_rules = _BERT_HEAD_RULES[head] if family == 'bert' else {}
    return _RULES['all'] | _RULES[family] | head_rules


def _defaults(family: str) -> dict[str, Any]:
    """Returns transformers' defaults of the keys without a rule."""
    values: dict[str, Any] = {_DROPOUTS[family][0]: 0.1, **dict(_SIZES[family].values())}
    if family == 'bert':
        values |= {'id2label': None, 'num_labels': None}
    if family == 'mass':
        values |= {'decoder_attention_heads': 16, 'decoder_ffn_dim': 4096}
        values |= {'tie_word_embeddings': True, 'scale_embedding': False, _SHARED_OUTPUT: False}
    return values


def _sizes(where: str, family: str, values: dict[str, Any]) -> dict[str, int]:
    keys = {key: hf_key for key, (hf_key, _) in _SIZES[family].items()}
    if family == 'gpt2' and not values['n_inner'] and is_integer(values['n_embd'], 1):
        values['n_inner'] = 4 * values['n_embd']
    for hf_key in keys.values():
        is_size = is_integer(values[hf_key], 1)
        check(where, values, hf_key, is_size, 'must be a whole number above 0')
        maximum = _MAX_LAYERS if 'layer' in hf_key else _MAX_SIZE
        check(where, values, hf_key, values[hf_key] <= maximum, f'must be at most {maximum}')
    width, heads = values[keys['width']], values[keys['heads']]
    rule = f'must divide {keys["width"]} = {width}'
    check(where, values, keys['heads'], width % heads == 0, rule)
    return {key: values[hf_key] for key, hf_key in keys.items()}


def _mass_settings(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that only BART has; our encoder and decoder have equal heads and width."""
    for key in ('attention_heads', 'ffn_dim'):
        encoder, decoder = f'encoder_{key}', f'decoder_{key}'
        equal = values[encoder] == values[decoder]
        check(where, values, decoder, equal, f'must equal {encoder} = {values[encoder]}')
    for key in ('tie_word_embeddings', 'scale_embedding', _SHARED_OUTPUT):
        check(where, values, key, isinstance(values[key], bool), 'must be true or false')
    untied = 'decoder' if values[_SHARED_OUTPUT] else 'none'
    return {
        'activation': values['activation_function'],
        'scale_embedding': values['scale_embedding'],
        'tied': 'all' if values['tie_word_embeddings'] else untied,
    }


def write(c: ConfigDict, ids: Mapping[str, int], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Builds the config.json of a network.

    Args:
      c: the keys of `config.network()`.
      ids: ids of special tokens by transformers' keys ('pad_token_id', ...); others are null.
      labels: names of the classes of a classifier; () if unnamed.
    """
    family = c.family
    names = [name for name, pair in ARCHITECTURES.items() if pair == (family, c.head)]
    values: dict[str, Any] = {'architectures': names[:1], 'model_type': _MODEL_TYPES[family]}
    values |= {hf_key: c[key] for key, (hf_key, _) in _SIZES[family].items()}
    values |= dict.fromkeys(_DROPOUTS[family], c.dropout)
    rules = {key: rule for key, rule in _rules(family, c.head).items() if key not in _RULES['all']}
    values |= {key: allowed[0] for key, allowed in rules.items()}
    if c.head == 'classify':
        labels = labels or [f'LABEL_{i}' for i in range(c.classes)]
        values['id2label'] = {str(i): name for i, name in enumerate(labels)}
        values['label2id'] = {name: i for i, name in enumerate(labels)}
    if family == 'mass':
        values |= {
            'activation_function': c.activation,
            'decoder_attention_heads': c.heads,
            'decoder_ffn_dim': c.ffn,
            'scale_embedding': c.scale_embedding,
            'tie_word_embeddings': c.tied == 'all',
            _SHARED_OUTPUT: c.tied == 'decoder',
        }
    return values | dict.fromkeys(_TOKENS[family]) | {**ids}
