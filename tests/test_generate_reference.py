"""Generated texts equal those of `generate` in transformers."""

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
ENDS = {
    'GPT2LMHeadModel': 22,
    'BartForConditionalGeneration': 59,
}  # ids that these networks generate


@pytest.fixture(scope='module', params=list(ENDS))
def network(request, tmp_path_factory):
    """Yields a network of transformers with weights of std 0.3, and our model and parameters."""
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads are slower for products this small
    changes = {'GPT2LMHeadModel': {}, 'BartForConditionalGeneration': {'scale_embedding': True}}
    reference_network = reference_cases.make(request.param, 0.3, **changes[request.param])
    reference_network.generation_config.forced_eos_token_id = None
    folder = tmp_path_factory.mktemp('network')
    reference_network.save_pretrained(folder)
    with jax.default_matmul_precision('highest'):
        model = models.build(checkpoint_dir.read_network('--model', folder))
    yield reference_network, model, checkpoint_dir.read_params('--model', folder, model)
    torch.set_num_threads(threads)


def prompts(length: int):
    """Returns 20 prompts of 3 to `length` ids, padded on the right, and their mask."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, length + 1, PROMPTS)
    real = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return np.where(real, rng.integers(4, 201, real.shape), PAD).astype(np.int32), real


def reference(network, ids, **settings):
    """Returns new ids and scores by transformers, one unpadded prompt at a time."""
    import torch
    import transformers

    seq2seq = network.config.is_encoder_decoder
    c = transformers.GenerationConfig(
        max_new_tokens=LONGEST,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    texts, scores = [], []
    for row in ids:
        with torch.no_grad():
            output = network.generate(torch.tensor(row)[None], generation_config=c)
        texts.append(output.sequences[0, 1 if seq2seq else len(row) :].tolist())
        scores.append(output.sequences_scores.item() if 'sequences_scores' in output else np.nan)
    return texts, scores


def generate_batch(model, params, ids, real, eos, **settings):
    """Returns new ids and scores by this package, in one padded batch."""
    s = generate.Settings(max_length=LONGEST, **settings)
    call = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=eos, pad_id=PAD))
    if model.network.family == 'mass':
        blank = np.zeros((len(ids), 1), np.int32)
        prompt = Batch(blank, blank, blank, source=ids, source_segments=real)
    else:
        prompt = Batch(ids, ids, real, segments=real)
    generated = jax.device_get(call(params, prompt))
    assert (
        generated.ids
        == np.where(np.arange(LONGEST) < generated.lengths[:, None], generated.ids, PAD)
    ).all()
    return [
        x[:n].tolist() for x, n in zip(generated.ids, generated.lengths, strict=True)
    ], generated.scores


CASES = {
    'greedy': {},
    'greedy, at least 9 tokens': {'min_length': 9},
    'beam 5': {'beams': 5},
    'beam 5, no early stop': {'beams': 5, 'early_stop': False},
    'beam 5, long texts': {'beams': 5, 'early_stop': False, 'length_penalty': 2.0},
    'beam 5, short texts': {'beams': 5, 'early_stop': False, 'length_penalty': -0.5},
    'beam 3, at least 9 tokens': {'beams': 3, 'min_length': 9, 'length_penalty': 0.6},
    'beam 2': {'beams': 2, 'length_penalty': 0.0},
    'greedy, no repeated pair': {'no_repeat_ngram_size': 2, 'repetition_penalty': 1.3},
    'greedy, forced': {'forced_eos_token_id': 8, 'forced_bos_token_id': 7},
    'beam 3, edited': {
        'beams': 3,
        'no_repeat_ngram_size': 2,
        'repetition_penalty': 0.8,
        'forced_eos_token_id': 8,
        'forced_bos_token_id': 7,
    },
    'beam 4, three ends': {'beams': 4, 'ends': (9, 30)},
}
NAMES = {
    'beams': 'num_beams',
    'early_stop': 'early_stopping',
    'min_length': 'min_new_tokens',
}


# The others take the same paths with other numbers.
QUICK = (
    'beam 5',
    'beam 5, long texts',
    'beam 3, edited',
    'beam 4, three ends',
    'greedy, no repeated pair',
)


@pytest.mark.parametrize(
    'case',
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_texts_equal_transformers(network, case):
    reference_network, model, params = network
    eos = ENDS[type(reference_network).__name__]
    settings = {'early_stop': True} | CASES[case] if 'beam' in case else CASES[case] | {}
    eos = [eos, *settings.pop('ends', ())]
    if model.network.family == 'gpt2':  # transformers forces the first token of a decoder only
        settings.pop('forced_bos_token_id', None)
    ids, real = prompts(15)
    options = {NAMES.get(key, key): value for key, value in settings.items()}
    unpadded = [row[: n.sum()] for row, n in zip(ids, real, strict=True)]
    expected, expected_scores = reference(reference_network, unpadded, eos_token_id=eos, **options)
    with jax.default_matmul_precision('highest'):
        texts, scores = generate_batch(model, params, ids, real, eos, **settings)
    ended = sum(len(x) < LONGEST for x in expected)
    print(f'{case}: {ended} of {PROMPTS} ended')
    assert texts == expected  # all 20 texts, so no near-ties need an exception
    if 'beam' in case:
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


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
def test_filtered_logits_equal_transformers(options):
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
    filtered = decoding.filter_logits(logits, generate.Settings(1, sample=True, **options))
    np.testing.assert_allclose(filtered, expected.numpy(), rtol=1e-6)
