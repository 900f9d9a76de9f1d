"""config.json: unsupported values, defaults of absent keys, written values."""

import pytest
from helpers.folders import reconfigure, refusal, write_folder
from helpers.networks import network

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import config_json

BERT_BASE = {'family': 'bert', 'layers': 12, 'width': 768, 'heads': 12, 'ffn': 3072}
BERT_BASE |= {'positions': 512, 'vocab_size': 30522}
GPT2 = {'family': 'gpt2', 'layers': 12, 'positions': 1024, 'vocab_size': 50257}
BART_LARGE = {'family': 'mass', 'layers': 12, 'decoder_layers': 12, 'width': 1024, 'heads': 16}
BART_LARGE |= {'ffn': 4096, 'positions': 1024, 'vocab_size': 50265}
BART_LARGE |= {'scale_embedding': False, 'dropout': 0.3}


@pytest.mark.parametrize('value', [['T5ForConditionalGeneration'], 'BertModel', [{}], [None], 3])
def test_unknown_architecture_is_refused_with_known_names(value, tmp_path):
    write_folder(tmp_path, 'gpt2')
    reconfigure(tmp_path, architectures=value)
    message = refusal(tmp_path)
    assert message.startswith(f'config.json has architectures = {value!r}: must be one of ')
    for name in config_json.ARCHITECTURES:
        assert name in message


@pytest.mark.parametrize(
    ('case', 'key', 'value', 'rule'),
    [
        ('bert lm', 'hidden_act', 'relu', "must be 'gelu'"),
        ('bert lm', 'layer_norm_eps', 1e-5, 'must be 1e-12'),
        ('bert lm', 'position_embedding_type', 'relative_key', "must be 'absolute'"),
        ('bert lm', 'is_decoder', True, 'must be False'),
        ('bert lm', 'add_cross_attention', True, 'must be False'),
        ('bert lm', 'tie_word_embeddings', False, 'must be True'),
        ('bert pretraining', 'tie_word_embeddings', False, 'must be True'),
        ('bert lm', 'num_attention_heads', 5, 'must divide hidden_size = 48'),
        ('bert lm', 'num_hidden_layers', 0, 'must be a whole number above 0'),
        ('bert lm', 'hidden_size', '48', 'must be a whole number above 0'),
        ('bert lm', 'vocab_size', 201.5, 'must be a whole number above 0'),
        ('bert lm', 'vocab_size', 10**30, 'must be at most 10000000'),
        ('mass all', 'decoder_layers', 10**8, 'must be at most 1000'),
        ('bert lm', 'hidden_dropout_prob', 1.0, 'must be in [0, 1)'),
        ('bert lm', 'quantization_config', {'bits': 4}, 'must be None'),
        ('gpt2', 'auto_map', {'AutoModel': 'code.Model'}, 'must be None'),
        (
            'bert classify',
            'problem_type',
            'regression',
            "must be 'single_label_classification' or None",
        ),
        ('gpt2', 'activation_function', 'gelu', "must be 'gelu_new' or 'gelu_pytorch_tanh'"),
        ('gpt2', 'layer_norm_epsilon', 1e-6, 'must be 1e-05'),
        ('gpt2', 'scale_attn_weights', False, 'must be True'),
        ('gpt2', 'scale_attn_by_inverse_layer_idx', True, 'must be False'),
        ('gpt2', 'add_cross_attention', True, 'must be False'),
        ('gpt2', 'tie_word_embeddings', False, 'must be True'),
        ('gpt2', 'n_head', 7, 'must divide n_embd = 48'),
        ('mass all', 'activation_function', 'swish', "must be 'gelu' or 'relu'"),
        ('mass all', 'normalize_before', True, 'must be False'),
        ('mass all', 'add_final_layer_norm', True, 'must be False'),
        ('mass all', 'normalize_embedding', False, 'must be True'),
        ('mass all', 'static_position_embeddings', True, 'must be False'),
        ('mass all', 'decoder_attention_heads', 2, 'must equal encoder_attention_heads = 4'),
        ('mass all', 'decoder_ffn_dim', 96, 'must equal encoder_ffn_dim = 80'),
        ('mass all', 'scale_embedding', None, 'must be true or false'),
    ],
)
def test_unsupported_setting_is_refused(case, key, value, rule, tmp_path):
    write_folder(tmp_path, case)
    reconfigure(tmp_path, **{key: value})
    assert refusal(tmp_path) == f'config.json has {key} = {value!r}: {rule}'


def test_regression_head_is_refused(tmp_path):
    write_folder(tmp_path, 'bert classify')
    reconfigure(tmp_path, id2label={'0': 'score'})
    assert refusal(tmp_path) == 'config.json has num_labels = 1: must be at least 2'


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ({'architectures': ['BertModel']}, BERT_BASE | {'head': 'none', 'type_vocab_size': 2}),
        (
            {'architectures': ['GPT2Model'], 'n_embd': 1024, 'n_head': 16},
            GPT2 | {'width': 1024, 'heads': 16, 'ffn': 4096},
        ),
        ({'architectures': ['BartForConditionalGeneration'], 'dropout': 0.3}, BART_LARGE),
        (
            {'architectures': ['BertForSequenceClassification'], 'num_labels': 5},
            BERT_BASE | {'head': 'classify', 'classes': 5},
        ),
    ],
)
def test_absent_keys_have_transformers_defaults(values, expected):
    expected = {'dropout': 0.1} | expected
    assert config_json.read('', values).to_dict() == config.network(**expected).to_dict()


def test_bart_config_states_its_norms():
    values = config_json.write(network('mass all'), {'eos_token_id': 3})
    expected = {'normalize_before': False, 'add_final_layer_norm': False}
    expected |= {'normalize_embedding': True, 'forced_eos_token_id': None, 'pad_token_id': None}
    assert expected.items() <= values.items()


@pytest.mark.parametrize('value', [None, {}, 'wide'])
def test_width_that_is_not_a_number_is_refused(value):
    values = {'architectures': ['GPT2LMHeadModel'], 'n_embd': value}
    with pytest.raises(UserError, match=r'n_embd = .*: must be a whole number above 0'):
        config_json.read('here', values)
