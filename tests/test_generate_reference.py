"""Generation equals transformers' `generate`, text by text."""

import jax
import numpy as np
import pytest
from helpers import transformers_reference as reference_cases

from lightpaff_jax import generate, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models import decoding
from lightpaff_jax.models.huggingface import checkpoint_dir

pytestmark = [pytest.mark.compare, pytest.mark.usefixtures('full_compilation')]

PROMPTS = 20
LONGEST = 24
PAD, START = 1, 2
ENDS = {'GPT2LMHeadModel': 22, 'BartForConditionalGeneration': 59}  # ids that these networks write


@pytest.fixture(scope='module', params=list(ENDS))
def network(request, tmp_path_factory):
    """Transformers' network with weights of std 0.3, and ours read from its folder."""
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of products this small, several threads make only waiting
    changes = {'GPT2LMHeadModel': {}, 'BartForConditionalGeneration': {'scale_embedding': True}}
    theirs = reference_cases.make(request.param, 0.3, **changes[request.param])
    theirs.generation_config.forced_eos_token_id = None
    folder = tmp_path_factory.mktemp('network')
    theirs.save_pretrained(folder)
    with jax.default_matmul_precision('highest'):
        model = models.build(checkpoint_dir.read_network('--model', folder))
    yield theirs, model, checkpoint_dir.read_params('--model', folder, model)
    torch.set_num_threads(threads)


def prompts(length: int):
    """20 prompts of 3 to `length` ids, and their mask, padded on the right."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, length + 1, PROMPTS)
    real = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return np.where(real, rng.integers(4, 201, real.shape), PAD).astype(np.int32), real


def reference(network, ids, **settings):
    """Transformers' new ids of each prompt, one at a time and unpadded, and its scores."""
    import torch
    import transformers

    seq2seq = network.config.is_encoder_decoder
    c = transformers.GenerationConfig(
        max_new_tokens=LONGEST, pad_token_id=PAD, decoder_start_token_id=START,
        do_sample=False, output_scores=True, return_dict_in_generate=True, **settings,
    )  # fmt: skip
    texts, scores = [], []
    for one in ids:
        with torch.no_grad():
            found = network.generate(torch.tensor(one)[None], generation_config=c)
        texts.append(found.sequences[0, 1 if seq2seq else len(one) :].tolist())
        scores.append(found.sequences_scores.item() if 'sequences_scores' in found else np.nan)
    return texts, scores


def ours(model, params, ids, real, eos, **settings):
    """The same of ours, all in one padded batch."""
    s = generate.Settings(max_length=LONGEST, **settings)
    call = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=eos, pad_id=PAD))
    if model.network.family == 'mass':
        blank = np.zeros((len(ids), 1), np.int32)
        prompt = Batch(blank, blank, blank, source=ids, source_segments=real)
    else:
        prompt = Batch(ids, ids, real, segments=real)
    found = jax.device_get(call(params, prompt))
    assert (
        found.ids == np.where(np.arange(LONGEST) < found.lengths[:, None], found.ids, PAD)
    ).all()
    return [x[:n].tolist() for x, n in zip(found.ids, found.lengths, strict=True)], found.scores


CASES = {
    'greedy': {},
    'greedy, at least 9 tokens': {'min_length': 9},
    'beam 5': {'beams': 5},
    'beam 5, until none can win': {'beams': 5, 'early_stop': False},
    'beam 5, long ones': {'beams': 5, 'early_stop': False, 'length_penalty': 2.0},
    'beam 5, short ones': {'beams': 5, 'early_stop': False, 'length_penalty': -0.5},
    'beam 3, at least 9 tokens': {'beams': 3, 'min_length': 9, 'length_penalty': 0.6},
    'beam 2': {'beams': 2, 'length_penalty': 0.0},
}
NAMES = {
    'beams': 'num_beams', 'early_stop': 'early_stopping', 'min_length': 'min_new_tokens',
    'length_penalty': 'length_penalty',
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_texts_equal_the_reference(network, case):
    theirs, model, params = network
    eos = ENDS[type(theirs).__name__]
    settings = {'early_stop': True} | CASES[case] if 'beam' in case else CASES[case]
    ids, real = prompts(15)
    options = {NAMES[key]: value for key, value in settings.items()}
    unpadded = [row[: n.sum()] for row, n in zip(ids, real, strict=True)]
    expected, wanted = reference(theirs, unpadded, eos_token_id=eos, **options)
    with jax.default_matmul_precision('highest'):
        found, scores = ours(model, params, ids, real, eos, **settings)
    ended = sum(len(x) < LONGEST for x in expected)
    print(f'{case}: {ended} of {PROMPTS} ended')
    assert found == expected  # 20 of 20: no margin of the reference had to be looked at
    if 'beam' in case:
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    'options',
    [
        {'temperature': 0.7},
        {'top_k': 5},
        {'top_p': 0.8},
        {'temperature': 1.7, 'top_k': 30, 'top_p': 0.6},
        {'top_k': 500},
        {'top_p': 0.001},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_the_reference(options):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    warpers = {
        'temperature': transformers.TemperatureLogitsWarper,
        'top_k': lambda k: transformers.TopKLogitsWarper(min(k, 201)),
        'top_p': transformers.TopPLogitsWarper,
    }
    logits = np.random.default_rng(0).normal(0, 3, (50, 201)).astype(np.float32)
    expected = torch.tensor(logits)
    for name, value in options.items():
        expected = warpers[name](value)(None, expected)
    found = decoding.filter_logits(logits, generate.Settings(1, sample=True, **options))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
