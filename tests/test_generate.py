"""Generation by itself: caches against whole passes, ends, sampling, bad input, the command."""

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
def made(case: str):
    """A model whose tokens depend on what was read: kernels 0.4 n, token embeddings 0.1 n."""
    model, params = network_cases.model_and_params(case)
    larger = jax.tree_util.tree_map_with_path(
        lambda path, x: 4 * x if path[-1].key == 'kernel' else x, params
    )
    return model, larger


def prompt_of(case: str, rows: int = 4, length: int = 6) -> Batch:
    """Rows of 1 ... length ids, padded on the right; the last one is nothing but padding."""
    ids = network_cases.random_ids(rows, length).astype(np.int32)
    lengths = np.arange(rows)[::-1] * length // (rows - 1)
    real = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = np.where(real, ids, PAD)
    if case == 'gpt2':
        return Batch(ids, ids, real, segments=real)
    return Batch(ids[:, :1], ids, real, source=ids, source_segments=real)


@functools.cache
def written(case: str, eos_id: int = -1, **settings):
    model, params = made(case)
    s = generate.Settings(**{'max_length': SIZE} | settings)
    make = generate.make_generate(model, s, start_id=START, eos_id=eos_id, pad_id=PAD)
    key = jax.random.key(3) if s.sample else None
    return jax.device_get(jax.jit(make)(params, prompt_of(case), key))


def log_p(case: str, ids_BN):
    """Log-probabilities [B, N, V] of each new token after those before it, by one whole pass."""
    params = made(case)[1]
    prompt, (rows, size) = prompt_of(case), ids_BN.shape
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
    return jax.jit(made(case)[0].logits)


def at(log_p_BNV, ids_BN):
    return np.take_along_axis(log_p_BNV, ids_BN[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize('case', DECODERS)
def test_greedy_tokens_are_the_best_of_a_pass_without_a_cache(case):
    found = written(case)
    log_p_BNV = log_p(case, found.ids)
    # The cache's features differ from the whole pass' by rounding.
    assert (log_p_BNV.max(-1) - at(log_p_BNV, found.ids) < 1e-5).all()
    np.testing.assert_allclose(found.scores, at(log_p_BNV, found.ids).sum(1), rtol=1e-5)
    assert (found.lengths == SIZE).all()
    assert len({*map(tuple, found.ids)}) > 1


@pytest.mark.parametrize('case', DECODERS)
def test_a_beam_of_the_whole_vocabulary_finds_the_best_of_all_texts(case):
    model, params = made(case)
    vocab = network_cases.VOCABULARY
    s = generate.Settings(max_length=2, beams=vocab)
    make = generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD)
    found = jax.device_get(jax.jit(make)(params, prompt_of(case)))
    first_BV = log_p(case, np.zeros((4, 1), np.int32))[:, 0, :vocab]
    best = np.full(4, -np.inf)
    for token in range(vocab):
        pair = np.full((4, 2), token, np.int32)
        best = np.maximum(best, first_BV[:, token] + log_p(case, pair)[:, 1].max(-1))
    np.testing.assert_allclose(found.scores, best / 2, rtol=1e-5)


@pytest.mark.parametrize('case', DECODERS)
@pytest.mark.parametrize('beams', [1, 3])
def test_texts_end_at_the_first_end_and_are_padded_after_it(case, beams):
    free = written(case, beams=beams).ids
    eos = int(free[0, 2])
    found = written(case, eos_id=eos, beams=beams)
    assert found.lengths.min() < SIZE
    for row, (ids, length) in enumerate(zip(found.ids, found.lengths, strict=True)):
        assert eos not in ids[: length - 1]
        assert length == SIZE or ids[length - 1] == eos
        assert (ids[length:] == PAD).all()
        if beams == 1:  # the end changes nothing of what is before it
            assert (ids[:length] == free[row, :length]).all()
    longer = written(case, eos_id=eos, beams=beams, min_length=5)
    assert not (longer.ids[:, :5] == eos).any()
    assert longer.lengths.min() > 5


@pytest.mark.parametrize('case', DECODERS)
@pytest.mark.parametrize('beams', [1, 3])
def test_rows_alone_and_on_several_devices_write_what_they_write_together(case, beams):
    together = written(case, beams=beams)
    model, params = made(case)
    s = generate.Settings(max_length=SIZE, beams=beams)
    call = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD))
    prompt = prompt_of(case)
    for row in range(4):
        alone = call(params, jax.tree.map(lambda x, r=row: x[r : r + 1], prompt))
        assert (alone.ids[0] == together.ids[row]).all()
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(prompt, NamedSharding(mesh, PartitionSpec('data')))
    spread = call(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), sharded)
    assert (np.asarray(spread.ids) == together.ids).all()


def test_draws_have_the_probabilities_of_the_network():
    case, rows = 'gpt2', 4000
    model, params = made(case)
    ids = np.tile(network_cases.random_ids(1, 5), (rows, 1)).astype(np.int32)
    s = generate.Settings(max_length=1, sample=True, top_k=4)
    make = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD))
    found = jax.device_get(make(params, Batch(ids, ids, ids), jax.random.key(0)))
    logits = np.asarray(model.logits(params, Batch(ids[:1], ids, ids)))[0, -1]
    best = np.argsort(logits)[-4:]
    p = np.exp(logits[best] - logits[best].max())
    shares = np.array([(found.ids[:, 0] == i).mean() for i in best])
    # Three standard deviations of a share of 4000 draws.
    np.testing.assert_allclose(shares, p / p.sum(), atol=3 * 0.5 / rows**0.5)
    again = jax.device_get(make(params, Batch(ids, ids, ids), jax.random.key(0)))
    assert (again.ids == found.ids).all()


def test_a_sampler_that_keeps_one_token_is_greedy():
    greedy = written('gpt2')
    for options in ({'top_k': 1}, {'top_p': 1e-6}, {'temperature': 1e-6}):
        found = written('gpt2', sample=True, **options)
        assert (found.ids == greedy.ids).all()
        np.testing.assert_allclose(found.scores, greedy.scores, rtol=1e-5)


@pytest.mark.parametrize('count', [1, 3, 10])
def test_the_largest_of_long_rows_are_those_of_top_k_ties_included(count):
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(3, 2560)), rng.integers(0, 9, (3, 2560)), np.zeros((3, 2560))):
        x = jnp.asarray(values, jnp.float32)
        for found, expected in zip(
            decoding.blocked_top_k(x, count), jax.lax.top_k(x, count), strict=True
        ):
            assert (found == expected).all()


def test_nothing_of_the_memory_moves_when_beams_change_places():
    """Keys and values are only written, a token at a time: no gather or copy of a whole memory."""
    model, params = made('mass all')
    s = generate.Settings(max_length=SIZE, beams=3)
    make = generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD)
    jaxpr = jax.make_jaxpr(make)(params, prompt_of('mass all'))
    (loop,) = [e for e in jaxpr.eqns if e.primitive.name == 'while']
    body = loop.params['body_jaxpr'].jaxpr
    memories = [v for v in body.invars if v.aval.shape == (4, 4, SIZE * 3, 12)]
    assert len(memories) == 2 * 2
    readers = {e.primitive.name for e in body.eqns if any(v in memories for v in e.invars)}
    assert readers == {'dynamic_update_slice'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'max_length': 0}, 'max_length = 0: must be at least 1'),
        ({'min_length': 8}, 'min_length = 8: must be in [0, 7]'),
        ({'beams': 0}, 'beams = 0: must be at least 1'),
        ({'beams': 2, 'sample': True}, 'sample = True: must be False with 2 beams'),
        ({'temperature': 0.0}, 'temperature = 0.0: must be above 0'),
        ({'top_k': -1}, 'top_k = -1: must be at least 0'),
        ({'top_p': 0.0}, 'top_p = 0.0: must be in (0, 1]'),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(UserError) as error:
        written('gpt2', **change)
    assert str(error.value) == message


def test_an_encoder_is_refused_and_so_are_more_tokens_than_positions():
    with pytest.raises(UserError, match="family 'bert' generates no text"):
        generate.make_generate(
            made('bert lm')[0], generate.Settings(4), start_id=2, eos_id=3, pad_id=0
        )
    for case, most in (('gpt2', 34), ('mass all', 40)):
        with pytest.raises(ValueError, match='41 tokens, must be at most the 40 positions'):
            written(case, max_length=most + 1)
    model, params = made('gpt2')
    s = generate.Settings(3, sample=True)
    drawing = generate.make_generate(model, s, start_id=2, eos_id=3, pad_id=0)
    with pytest.raises(ValueError, match='key = None'):
        drawing(params, prompt_of('gpt2'))


@pytest.fixture(scope='module')
def folders(data_cache, tmp_path_factory):
    """A folder of each family in Hugging Face's format, 32 positions."""
    root = tmp_path_factory.mktemp('folders')
    for family in ('bert', 'gpt2', 'mass'):
        c = corpus.tiny_config(data_cache)
        c.student.update({'family': family, 'layers': 2, 'width': 16, 'heads': 2, 'ffn': 24})
        c.student.update({'decoder_layers': 2 * (family == 'mass'), 'positions': 32})
        model = models.build(c.student)
        params = model.init(jax.random.key(5))
        lightpaff_jax.save(str(root / family), model, params, selection.load(c))
    return root


@pytest.mark.parametrize('family', ['gpt2', 'mass'])
def test_the_command_writes_one_line_a_prompt(folders, family, tmp_path, capsys):
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
    found = []
    for seed in (1, 1, 2):
        assert generate.main([*common, *drawn[:-1], f'{drawn[-1]}{seed}']) == 0
        found.append(capsys.readouterr().out.split('\n')[-2])
    assert found[0] == found[1] != found[2]


def test_no_prompt_of_one_seed_is_drawn_as_another_of_the_next(folders, capsys, tmp_path):
    file = tmp_path / 'prompts.txt'
    file.write_text('import jax\n' * 4)
    drawn = []
    for seed in (0, 1):
        words = (f'--model={folders}/gpt2', f'--file={file}', '--batch-size=1', '--sample')
        assert generate.main([*words, '--max-length=12', f'--seed={seed}']) == 0
        drawn.append(capsys.readouterr().out.splitlines())
    assert len({*drawn[0], *drawn[1]}) == 8


def test_a_line_ends_at_its_end_alone(folders, capsys, tmp_path):
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
        (['--model={}/gpt2', '--prompt=a', '--sample', '--beams=2'],
         'sample = True: must be False with 2 beams'),
        (['--model={}/gpt2', '--prompt=a', '--batch-size=0'], '--batch-size=0: must be at least 1'),
        (['--model={}/gpt2', '--prompt=a', '--sample', '--seed=2147483648'],
         '--seed=2147483648: must be at least 0 and below 2**31'),
        (['--model={}/gpt2', '--prompt=a', '--seed=3'], '--seed: requires --sample'),
        (['--model={}/gpt2', '--prompt=a', '--length-penalty=2'],
         '--length-penalty: requires --beams >= 2'),
        (['--model={}/gpt2', '--prompt=a', '--no-early-stop'],
         '--no-early-stop: requires --beams >= 2'),
        (['--model={}/gpt2', '--prompt=a', '--beams=3', '--length-penalty=1e999'],
         'length_penalty = inf: must be finite'),
        (['--model={}/bert', '--prompt=a'], "a network of the family 'bert' generates no text"),
        (['--model={}/none', '--prompt=a'],
         '--model={}/none: must be the workdir of a finished run, or a folder with config.json '
         'and model.safetensors'),
        (['--model={}/gpt2', '--file={}/none'], '--file={}/none: No such file or directory'),
        (['--model={}/gpt2', '--prompt=a', '--max-length=32'],
         "prompt 1 has 1 tokens and max_length is 32: must together be at most the network's 32 "
         'positions'),
        (['--model={}/mass', '--prompt=a', '--max-length=33'],
         "prompt 1 has 2 tokens and max_length is 33: must each be at most the network's 32 "
         'positions'),
    ],
)  # fmt: skip
def test_bad_input_of_the_command_is_one_line(folders, arguments, message, capsys):
    assert generate.main([x.format(folders) for x in arguments]) == 2
    assert capsys.readouterr().err == f'error: {message.format(folders)}\n'
