"""Parameters in Hugging Face's format: round trips, other names, inconsistent tensors."""

import json
import logging

import chex
import jax
import numpy as np
import pytest
from helpers.folders import WHOLE, read, refusal, rewrite, write_folder
from helpers.networks import CASES, network, noisy
from safetensors import safe_open
from safetensors.numpy import load_file

from lightpaff_jax import models
from lightpaff_jax.models.huggingface import checkpoint_dir, weights


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('padding', [0, 1])
def test_import_of_an_export_is_bitwise_equal(case, padding, tmp_path):
    model, params = write_folder(tmp_path / 'one', case, ids={'pad_token_id': padding})
    assert json.loads((tmp_path / 'one/config.json').read_text())['pad_token_id'] == padding
    read_back = checkpoint_dir.read_network('--model', tmp_path / 'one')
    assert read_back.to_dict() == model.network.to_dict()
    back = read(tmp_path / 'one')
    chex.assert_trees_all_equal(back, params)
    assert {x.dtype for x in jax.tree.leaves(back)} == {np.dtype(np.float32)}
    checkpoint_dir.write(tmp_path / 'two', model, back, ids={'pad_token_id': padding})
    for name in (WHOLE, 'config.json'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def test_matrices_and_fused_parts_match_their_names(tmp_path):
    _, params = write_folder(tmp_path, 'bert lm')
    tensors = load_file(tmp_path / WHOLE)
    attention = 'bert.encoder.layer.2.attention'
    fused = params['blocks']['attention']['qkv']
    for part, name in enumerate(('query', 'key', 'value')):
        kernel = fused['kernel'][2, :, part].reshape(48, 48)
        np.testing.assert_array_equal(tensors[f'{attention}.self.{name}.weight'], kernel.T)
        bias = fused['bias'][2, part].reshape(48)
        np.testing.assert_array_equal(tensors[f'{attention}.self.{name}.bias'], bias)
    out = params['blocks']['attention']['out']['kernel'][2].reshape(48, 48)
    np.testing.assert_array_equal(tensors[f'{attention}.output.dense.weight'], out.T)
    table = params['token_embedding']['table'][:201]
    np.testing.assert_array_equal(tensors['bert.embeddings.word_embeddings.weight'], table)


def test_bart_position_tables_have_two_extra_rows(tmp_path):
    _, params = write_folder(tmp_path, 'mass all')
    name = 'model.decoder.embed_positions.weight'
    rows = load_file(tmp_path / WHOLE)[name]
    assert rows.shape == (42, 48)
    assert np.all(rows[:2] == 0)
    np.testing.assert_array_equal(rows[2:], params['decoder_position']['table'])
    rewrite(tmp_path, lambda tensors: tensors | {name: np.concatenate([rows[:2] + 7, rows[2:]])})
    chex.assert_trees_all_equal(read(tmp_path), params)


@pytest.mark.parametrize('case', CASES)
def test_names_are_read_with_and_without_prefix(case, tmp_path):
    model, params = write_folder(tmp_path, case)
    prefix = models.MODELS[model.network.family][0].NAMES.prefix
    full = weights.to_huggingface(params, model.table, 201)
    bare = {name.removeprefix(prefix): x for name, x in full.items()}
    assert bare.keys() != full.keys()
    for names in (bare, full):
        rewrite(tmp_path, lambda _, names=names: names)
        chex.assert_trees_all_equal(read(tmp_path), params)


def test_norms_are_read_by_their_old_names(tmp_path):
    _, params = write_folder(tmp_path, 'bert pretraining')

    def old(name):
        name = name.replace('LayerNorm.weight', 'LayerNorm.gamma')
        return name.replace('LayerNorm.bias', 'LayerNorm.beta')

    rewrite(tmp_path, lambda tensors: {old(name): x for name, x in tensors.items()})
    with safe_open(tmp_path / WHOLE, 'np') as file:
        assert 'cls.predictions.transform.LayerNorm.gamma' in file.keys()  # noqa: SIM118
    chex.assert_trees_all_equal(read(tmp_path), params)


@pytest.mark.parametrize(
    ('case', 'name'),
    [
        ('bert lm', 'bert.embeddings.position_ids'),
        ('bert none', 'embeddings.position_ids'),
        ('gpt2', 'transformer.h.1.attn.bias'),
        ('gpt2', 'h.2.attn.masked_bias'),
        ('mass all', 'model.encoder.version'),
        ('mass none', 'model.shared.weight'),
    ],
)
def test_buffers_are_ignored_without_a_message(case, name, tmp_path, caplog):
    _, params = write_folder(tmp_path, case)
    rewrite(tmp_path, lambda tensors: tensors | {name: np.arange(40)})
    with caplog.at_level(logging.INFO):
        chex.assert_trees_all_equal(read(tmp_path), params)
    assert not caplog.messages


TIED = [
    ('bert lm', 'cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
    ('bert lm', 'cls.predictions.decoder.bias', 'cls.predictions.bias'),
    ('gpt2', 'lm_head.weight', 'transformer.wte.weight'),
    ('mass all', 'lm_head.weight', 'model.shared.weight'),
    ('mass all', 'model.encoder.embed_tokens.weight', 'model.shared.weight'),
    ('mass all', 'model.decoder.embed_tokens.weight', 'model.shared.weight'),
    ('mass decoder', 'lm_head.weight', 'model.decoder.embed_tokens.weight'),
]


@pytest.mark.parametrize(('case', 'again', 'name'), TIED)
def test_tied_tensors_may_repeat_but_not_differ(case, again, name, tmp_path):
    _, params = write_folder(tmp_path, case)
    tensors = load_file(tmp_path / WHOLE)
    rewrite(tmp_path, lambda _: tensors | {again: tensors[name]})
    chex.assert_trees_all_equal(read(tmp_path), params)
    renamed = {key: x for key, x in tensors.items() if key != name}
    rewrite(tmp_path, lambda _: renamed | {again: tensors[name]})
    chex.assert_trees_all_equal(read(tmp_path), params)
    rewrite(tmp_path, lambda _: tensors | {again: tensors[name] + 1})
    assert f'{again}: must equal {name}, which it repeats' in refusal(tmp_path)


def test_absent_output_bias_of_bart_is_zero(tmp_path):
    _, params = write_folder(tmp_path, 'mass all')
    bias = 'final_logits_bias'
    rewrite(tmp_path, lambda tensors: {name: x for name, x in tensors.items() if name != bias})
    expected = params | {'output_bias': {'bias': np.zeros(256, np.float32)}}
    chex.assert_trees_all_equal(read(tmp_path), expected)


def test_one_message_lists_every_inconsistent_tensor(tmp_path):
    write_folder(tmp_path, 'gpt2')

    def change(tensors):
        tensors['extra'] = tensors.pop('transformer.h.1.ln_1.bias')
        tensors['transformer.ln_f.bias'] = np.zeros(47, np.float32)
        tensors['transformer.wte.weight'] = np.zeros((200, 48), np.float32)
        tensors['transformer.h.3.ln_1.bias'] = tensors['transformer.ln_f.weight']
        tensors['transformer.ln_f.weight'] = np.ones(48, np.int8)
        return tensors

    rewrite(tmp_path, change)
    message = refusal(tmp_path)
    for part in (
        '- transformer.h.1.ln_1.bias',
        '+ extra',
        '+ transformer.h.3.ln_1.bias',
        'transformer.ln_f.bias: (47,) does not fit (48,)',
        'transformer.wte.weight: (200, 48) does not fit (201, 48)',
        'transformer.ln_f.weight: int8 must be one of float32, float16, bfloat16',
    ):
        assert part in message


def test_one_tensor_under_two_names_is_refused(tmp_path):
    write_folder(tmp_path, 'gpt2')
    rewrite(tmp_path, lambda tensors: tensors | {'ln_f.bias': np.zeros(48, np.float32)})
    assert refusal(tmp_path).startswith('tensors do not fit the model: + ')


def other_head(case: str, head: str, **changes):
    return models.build(network(case, head=head, **changes))


def test_tensors_of_other_heads_are_ignored_and_logged(tmp_path, caplog):
    _, params = write_folder(tmp_path, 'bert pretraining')
    model = other_head('bert pretraining', 'lm')
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        actual = checkpoint_dir.read_params(f'config.teacher.path = {tmp_path}', tmp_path, model)
    chex.assert_trees_all_equal(actual, {name: params[name] for name in model.abstract_params})
    (line,) = caplog.messages
    heads = 'bert.pooler.dense', 'cls.seq_relationship'
    ignored = [f'{name}.{part}' for name in heads for part in ('bias', 'weight')]
    assert line.split(': ')[:2] == [f'config.teacher.path = {tmp_path}', 'ignored, of other heads']
    assert sorted(line.split(': ')[2].split(', ')) == ignored


def test_missing_head_is_initialised_only_if_allowed(tmp_path, caplog):
    _, params = write_folder(tmp_path, 'bert lm')
    model = other_head('bert lm', 'classify', classes=3)
    initial = noisy(model, seed=5)
    message = refusal(tmp_path, model)
    for name in ('bert.pooler.dense.weight', 'classifier.weight', 'classifier.bias'):
        assert f'- {name}' in message
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        actual = checkpoint_dir.read_params('--model', tmp_path, model, initial)
    heads = ('pooler', 'classifier')
    expected = {
        name: (initial if name in heads else params)[name] for name in model.abstract_params
    }
    chex.assert_trees_all_equal(actual, expected)
    assert [line for line in caplog.messages if 'newly initialised: ' in line]


@pytest.mark.parametrize(
    'name', ['bert.embeddings.LayerNorm.bias', 'bert.encoder.layer.1.output.dense.weight']
)
def test_missing_trunk_tensor_is_always_an_error(name, tmp_path):
    write_folder(tmp_path, 'bert lm')
    model = other_head('bert lm', 'classify', classes=3)
    rewrite(tmp_path, lambda tensors: {key: x for key, x in tensors.items() if key != name})
    assert refusal(tmp_path, model, noisy(model)) == f'tensors do not fit the model: - {name}'
