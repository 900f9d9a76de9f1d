"""Generation: the cache, end tokens, sampling, errors and the command."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import corpus, networks as network_cases
from jax.sharding import NamedSharding, PartitionSpec

import lightpaff_jax
from lightpaff_jax import generate, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.models import decoding

SIZE, PAD, START = 7, 0, 2
DECODERS = ('gpt2', 'mass all', 'mass none')


@functools.cache
def build(case: str):
    """Returns a network whose tokens depend on its input: kernels of std 0.4, embeddings of 0.1."""
    model, params = network_cases.model_and_params(case)
    larger = jax.tree_util.tree_map_with_path(
        lambda path, x: 4 * x if path[-1].key == 'kernel' else x, params
    )
    return model, larger


def make_prompt(case: str, rows: int = 4, length: int = 6) -> Batch:
    """Returns rows of up to `length` ids, padded on the right; the last row is only padding."""
    ids = network_cases.random_ids(rows, length).astype(np.int32)
    lengths = np.arange(rows)[::-1] * length // (rows - 1)
    real = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = np.where(real, ids, PAD)
    if case == 'gpt2':
        return Batch(ids, ids, real, segments=real)
    return Batch(ids[:, :1], ids, real, source=ids, source_segments=real)


@functools.cache
def generate_ids(case: str, eos_id: int = -1, **settings):
    model, params = build(case)
    s = generate.Settings(**{'max_length': SIZE} | settings)
    make = generate.make_generate(model, s, start_id=START, eos_id=eos_id, pad_id=PAD)
    key = jax.random.key(3) if s.sample else None
    return jax.device_get(jax.jit(make)(params, make_prompt(case), key))


def log_p(case: str, ids_BN):
    """Computes log-probabilities [B, N, V] of new tokens by one pass without cache."""
    params = build(case)[1]
    prompt, (rows, size) = make_prompt(case), ids_BN.shape
    if case == 'gpt2':
        lengths = np.maximum(prompt.segments.sum(1), 1)
        whole = np.zeros((rows, prompt.tokens.shape[1] + size), np.int32)
        at = lengths[:, None] - 1 + np.arange(size)
        for row, n, new, before in zip(whole, lengths, ids_BN, prompt.tokens, strict=True):
            row[:n], row[n : n + size] = before[:n], new
        batch = Batch(whole, whole, whole, positions=at)
    else:
        tokens = np.concatenate([np.full((rows, 1), START), ids_BN[:, :-1]], 1)
        batch = dataclasses.replace(prompt, tokens=tokens)
    return np.asarray(jax.nn.log_softmax(_logits(case)(params, batch)))


@functools.cache
def _logits(case: str):
    return jax.jit(build(case)[0].logits)


def at(log_p_BNV, ids_BN):
    return np.take_along_axis(log_p_BNV, ids_BN[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize('case', DECODERS)
def test_greedy_tokens_equal_a_pass_without_cache(case):
    generated = generate_ids(case)
    log_p_BNV = log_p(case, generated.ids)
    # Features with and without cache differ by rounding.
    assert (log_p_BNV.max(-1) - at(log_p_BNV, generated.ids) < 1e-5).all()
    np.testing.assert_allclose(generated.scores, at(log_p_BNV, generated.ids).sum(1), rtol=1e-5)
    assert (generated.lengths == SIZE).all()
    assert len({*map(tuple, generated.ids)}) > 1


@pytest.mark.parametrize('case', DECODERS)
def test_beam_as_wide_as_vocabulary_is_exhaustive(case):
    model, params = build(case)
    vocab = network_cases.VOCABULARY
    s = generate.Settings(max_length=2, beams=vocab)
    make = generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD)
    generated = jax.device_get(jax.jit(make)(params, make_prompt(case)))
    first_BV = log_p(case, np.zeros((4, 1), np.int32))[:, 0, :vocab]
    best = np.full(4, -np.inf)
    for token in range(vocab):
        pair = np.full((4, 2), token, np.int32)
        best = np.maximum(best, first_BV[:, token] + log_p(case, pair)[:, 1].max(-1))
    np.testing.assert_allclose(generated.scores, best / 2, rtol=1e-5)


@pytest.mark.parametrize('case', DECODERS)
@pytest.mark.parametrize('beams', [1, 3])
def test_texts_stop_at_first_end_token_and_are_padded(case, beams):
    free = generate_ids(case, beams=beams).ids
    eos = int(free[0, 2])
    generated = generate_ids(case, eos_id=eos, beams=beams)
    assert generated.lengths.min() < SIZE
    for row, (ids, length) in enumerate(zip(generated.ids, generated.lengths, strict=True)):
        assert eos not in ids[: length - 1]
        assert length == SIZE or ids[length - 1] == eos
        assert (ids[length:] == PAD).all()
        if beams == 1:  # the end token changes no token before it
            assert (ids[:length] == free[row, :length]).all()
    longer = generate_ids(case, eos_id=eos, beams=beams, min_length=5)
    assert not (longer.ids[:, :5] == eos).any()
    assert longer.lengths.min() > 5


@pytest.mark.parametrize('case', DECODERS)
@pytest.mark.parametrize('beams', [1, 3])
def test_rows_do_not_depend_on_batch_or_devices(case, beams):
    together = generate_ids(case, beams=beams)
    model, params = build(case)
    s = generate.Settings(max_length=SIZE, beams=beams)
    call = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD))
    prompt = make_prompt(case)
    for row in range(4):
        row_alone = call(params, jax.tree.map(lambda x, r=row: x[r : r + 1], prompt))
        assert (row_alone.ids[0] == together.ids[row]).all()
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(prompt, NamedSharding(mesh, PartitionSpec('data')))
    spread = call(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), sharded)
    assert (np.asarray(spread.ids) == together.ids).all()


def test_samples_have_the_probabilities_of_the_network():
    case, rows = 'gpt2', 4000
    model, params = build(case)
    ids = np.tile(network_cases.random_ids(1, 5), (rows, 1)).astype(np.int32)
    s = generate.Settings(max_length=1, sample=True, top_k=4)
    make = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD))
    generated = jax.device_get(make(params, Batch(ids, ids, ids), jax.random.key(0)))
    logits = np.asarray(model.logits(params, Batch(ids[:1], ids, ids)))[0, -1]
    best = np.argsort(logits)[-4:]
    p = np.exp(logits[best] - logits[best].max())
    shares = np.array([(generated.ids[:, 0] == i).mean() for i in best])
    # Three standard deviations of a frequency in 4000 samples.
    np.testing.assert_allclose(shares, p / p.sum(), atol=3 * 0.5 / rows**0.5)
    again = jax.device_get(make(params, Batch(ids, ids, ids), jax.random.key(0)))
    assert (again.ids == generated.ids).all()


def test_sampling_from_one_token_is_greedy():
    greedy = generate_ids('gpt2')
    for options in ({'top_k': 1}, {'top_p': 1e-6}, {'temperature': 1e-6}):
        generated = generate_ids('gpt2', sample=True, **options)
        assert (generated.ids == greedy.ids).all()
        np.testing.assert_allclose(generated.scores, greedy.scores, rtol=1e-5)


@pytest.mark.parametrize('count', [1, 3, 10])
def test_blocked_top_k_equals_top_k_with_ties(count):
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(3, 2560)), rng.integers(0, 9, (3, 2560)), np.zeros((3, 2560))):
        x = jnp.asarray(values, jnp.float32)
        for result, expected in zip(
            decoding.blocked_top_k(x, count), jax.lax.top_k(x, count), strict=True
        ):
            assert (result == expected).all()


def test_beam_reordering_moves_no_cache():
    """Keys and values are only written, one token at a time; no cache is gathered or copied."""
    model, params = build('mass all')
    s = generate.Settings(max_length=SIZE, beams=3)
    make = generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD)
    jaxpr = jax.make_jaxpr(make)(params, make_prompt('mass all'))
    (loop,) = [e for e in jaxpr.eqns if e.primitive.name == 'while']
    body = loop.params['body_jaxpr'].jaxpr
    caches = [v for v in body.invars if v.aval.shape == (4, 4, SIZE * 3, 12)]
    assert len(caches) == 2 * 2
    readers = {e.primitive.name for e in body.eqns if any(v in caches for v in e.invars)}
    assert readers == {'dynamic_update_slice'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'max_length': 0}, 'max_length = 0: must be at least 1'),
        ({'min_length': 8}, 'min_length = 8: must be in [0, 7]'),
        ({'beams': 0}, 'beams = 0: must be at least 1'),
        ({'beams': 2, 'sample': True}, 'sample = True: must be False with 2 beams'),
        ({'temperature': 0.0}, 'temperature = 0.0: must be above 0'),
        ({'temperature': 1e-40}, 'temperature = 1e-40: must be in [1 / 1e+30, 1e+30]'),
        ({'top_p': 1e-300}, 'top_p = 1e-300: must be in [1 / 1e+30, 1e+30]'),
        (
            {'repetition_penalty': 1e300},
            'repetition_penalty = 1e+300: must be in [1 / 1e+30, 1e+30]',
        ),
        (
            {'beams': 2, 'length_penalty': -1e9},
            'length_penalty = -1000000000.0: 7 ** length_penalty must be in [1 / 1e+30, 1e+30]',
        ),
        ({'top_k': -1}, 'top_k = -1: must be at least 0'),
        ({'top_p': 0.0}, 'top_p = 0.0: must be in (0, 1]'),
    ],
)
def test_settings_out_of_range_are_errors(change, message):
    with pytest.raises(UserError) as error:
        generate_ids('gpt2', **change)
    assert str(error.value) == message


def test_encoder_and_too_many_tokens_are_errors():
    with pytest.raises(UserError, match="family 'bert' generates no text"):
        generate.make_generate(
            build('bert lm')[0], generate.Settings(4), start_id=2, eos_id=3, pad_id=0
        )
    for case, most in (('gpt2', 34), ('mass all', 40)):
        with pytest.raises(ValueError, match='41 tokens, must be at most the 40 positions'):
            generate_ids(case, max_length=most + 1)
    model, params = build('gpt2')
    s = generate.Settings(3, sample=True)
    drawing = generate.make_generate(model, s, start_id=2, eos_id=3, pad_id=0)
    with pytest.raises(ValueError, match='key = None'):
        drawing(params, make_prompt('gpt2'))


@pytest.fixture(scope='module')
def folders(data_cache, tmp_path_factory):
    """Writes a Hugging Face folder of each family, with 32 positions."""
    root = tmp_path_factory.mktemp('folders')
    for family in ('bert', 'gpt2', 'mass'):
        c = corpus.tiny_config(data_cache)
        c.student.update({'family': family, 'layers': 2, 'width': 16, 'heads': 2, 'ffn': 24})
        c.student.update({'decoder_layers': 2 * (family == 'mass'), 'positions': 32})
        model = models.build(c.student)
        params = model.init(jax.random.key(5))
        lightpaff_jax.save(str(root / family), model, params, selection.load(c))
    return root


@pytest.mark.parametrize('family', ['gpt2', pytest.param('mass', marks=pytest.mark.slow)])
def test_command_prints_one_line_per_prompt(folders, family, tmp_path, capsys):
    file = tmp_path / 'prompts.txt'
    file.write_text('import jax\n\nclass A:\n', encoding='utf-8')
    common = [f'--model={folders / family}', '--max-length=6']
    assert generate.main([*common, f'--file={file}', '--batch-size=2']) == 0
    lines = capsys.readouterr().out.split('\n')[:-1]
    assert len(lines) == 3
    assert generate.main([*common, '--prompt=import jax']) == 0
    assert capsys.readouterr().out == lines[0] + '\n'
    assert generate.main([*common, '--prompt=import jax', '--beams=3']) == 0
    drawn = ['--prompt=import jax', '--sample', '--temperature=2', '--seed=']
    samples = []
    for seed in (1, 1, 2):
        assert generate.main([*common, *drawn[:-1], f'{drawn[-1]}{seed}']) == 0
        samples.append(capsys.readouterr().out.split('\n')[-2])
    assert samples[0] == samples[1] != samples[2]


def test_batches_and_seeds_sample_independently(folders, capsys, tmp_path):
    file = tmp_path / 'prompts.txt'
    file.write_text('import jax\n' * 4)
    drawn = []
    for seed in (0, 1):
        words = (f'--model={folders}/gpt2', f'--file={file}', '--batch-size=1', '--sample')
        assert generate.main([*words, '--max-length=12', f'--seed={seed}']) == 0
        drawn.append(capsys.readouterr().out.splitlines())
    assert len({*drawn[0], *drawn[1]}) == 8


def test_only_line_feeds_separate_prompts(folders, capsys, tmp_path):
    file = tmp_path / 'prompts.txt'
    file.write_text('one\u2028two\r\nthree\x0cfour\n\nlast', encoding='utf-8', newline='')
    assert generate.main([f'--model={folders}/gpt2', f'--file={file}', '--max-length=2']) == 0
    assert capsys.readouterr().out.count('\n') == 4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model={}/gpt2'], 'one of --prompt=TEXT and --file=FILE must be given'),
        (['--model={}/gpt2', '--prompt=a', '--beams=x'], '--beams=x: must be a whole number'),
        (['--model={}/gpt2', '--prompt=a', '--beams=0'], 'beams = 0: must be at least 1'),
        (['--model={}/gpt2', '--prompt=a', '--top-k=4'], 'top_k = 4: must be 0 without sampling'),
        (
            ['--model={}/gpt2', '--prompt=a', '--sample', '--beams=2'],
            'sample = True: must be False with 2 beams',
        ),
        (['--model={}/gpt2', '--prompt=a', '--batch-size=0'], '--batch-size=0: must be at least 1'),
        (
            ['--model={}/gpt2', '--prompt=a', '--sample', '--seed=2147483648'],
            '--seed=2147483648: must be at least 0 and below 2**31',
        ),
        (['--model={}/gpt2', '--prompt=a', '--seed=3'], '--seed: requires --sample'),
        (
            ['--model={}/gpt2', '--prompt=a', '--length-penalty=2'],
            '--length-penalty: requires --beams >= 2',
        ),
        (
            ['--model={}/gpt2', '--prompt=a', '--no-early-stop'],
            '--no-early-stop: requires --beams >= 2',
        ),
        (
            ['--model={}/gpt2', '--prompt=a', '--beams=3', '--length-penalty=1e999'],
            'length_penalty = inf: must be finite',
        ),
        (
            ['--model={}/gpt2', '--prompt=a', '--beams=1000000000', '--max-length=8'],
            'batch_size = 1, beams = 1000000000, max_length = 8: needs at least ',
        ),
        (
            ['--model={}/mass', '--prompt=a', '--max-length=9223372036854775807'],
            'prompt 1 has 2 tokens and max_length is 9223372036854775807: must each be at most',
        ),
        (
            ['--model={}/gpt2', '--prompt=a', '--min-length=1000000000'],
            'min_length = 1000000000: must be in [0, 64]',
        ),
        (['--model={}/bert', '--prompt=a'], "a network of the family 'bert' generates no text"),
        (
            ['--model={}/none', '--prompt=a'],
            '--model={}/none: must be the workdir of a finished run, or a folder with config.json '
            'and model.safetensors',
        ),
        (['--model={}/gpt2', '--file={}/none'], '--file={}/none: No such file or directory'),
        (
            ['--model={}/gpt2', '--prompt=a', '--max-length=32'],
            "prompt 1 has 1 tokens and max_length is 32: must together be at most the network's 32 "
            'positions',
        ),
        (
            ['--model={}/mass', '--prompt=a', '--max-length=33'],
            "prompt 1 has 2 tokens and max_length is 33: must each be at most the network's 32 "
            'positions',
        ),
    ],
)
def test_mistake_of_the_command_is_one_line(folders, arguments, message, capsys):
    assert generate.main([x.format(folders) for x in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {message.format(folders)}')
    assert error.count('\n') == 1


def test_ngrams_longer_than_all_texts_change_nothing():
    long = generate_ids('gpt2', no_repeat_ngram_size=10**9)
    assert (long.ids == generate_ids('gpt2').ids).all()


def test_huge_batch_is_refused_before_allocation():
    model, params = build('gpt2')
    prompts = generate.texts(
        model, params, _Words(), ['a'], generate.Settings(2), batch_size=10**12
    )
    with pytest.raises(
        UserError, match='batch_size = 1000000000000, beams = 1, max_length = 2: nee'
    ):
        next(prompts)


class _Words:
    eos_id, pad_id, around = 2, 0, ((), ())

    def encode(self, texts):
        return [[3] for _ in texts]
