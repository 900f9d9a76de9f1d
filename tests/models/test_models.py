"""Models of all families: parameter counts, dependencies, padding, dropout, remat, head."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.networks import CASES, FAMILIES, batch_of, model_and_params, network, noisy, random_ids

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.matching import Tap
from lightpaff_jax.models import layers, mass


@pytest.fixture(scope='module', params=CASES)
def any_case(request):
    return model_and_params(request.param)


@pytest.fixture(scope='module', params=FAMILIES)
def any_family(request):
    return model_and_params(request.param)


def sizes(family, vocab_size, positions, layers, width, heads, **more):
    """Returns the keys of a network with a feed-forward width of 4 D."""
    more |= {'vocab_size': vocab_size, 'positions': positions, 'layers': layers}
    return {'family': family, 'width': width, 'heads': heads, 'ffn': 4 * width, **more}


SIZES = {
    'bert teacher': sizes('bert', 30522, 512, 12, 768, 12),
    'bert student': sizes('bert', 30522, 512, 3, 512, 8),
    'gpt2 teacher': sizes('gpt2', 50257, 1024, 24, 1024, 16),
    'gpt2 student': sizes('gpt2', 50257, 1024, 4, 768, 12),
    'translation teacher': sizes('mass', 64139, 512, 6, 1024, 16, decoder_layers=6, tied='decoder'),
    'translation student': sizes('mass', 64139, 512, 4, 512, 8, decoder_layers=4),
    'middle teacher': sizes('mass', 30522, 512, 6, 1024, 16, decoder_layers=6),
    'middle student': sizes('mass', 30522, 512, 4, 512, 8, decoder_layers=2),
}


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('bert teacher', 109_514_298),
        ('bert student', 25_642_810),
        ('gpt2 teacher', 354_823_168),
        ('gpt2 student', 67_736_832),
    ],
)
def test_parameter_counts_equal_the_paper(name, count):
    assert models.build(config.network(**SIZES[name])).parameter_count == count


@pytest.mark.parametrize(
    ('name', 'millions', 'rounding'),
    [
        ('translation teacher', 308.8, 0.05),
        ('translation student', 62.8, 0.05),
        ('middle teacher', 208, 1),
        ('middle student', 37, 0.5),
    ],
)
def test_parameter_counts_of_mass_round_to_the_paper(name, millions, rounding):
    """Counts without `output_bias`, which is not trained.

    Translation has the 64,139 ids of the published English-French vocabulary and ties the decoder's
    embedding and the output.
    """
    c = config.network(**SIZES[name])
    trained = models.build(c).parameter_count - c.vocab_size
    assert abs(trained / 1e6 - millions) < rounding


def influence(features, params, rows: int):
    """Returns [P, rows]: how much features [1, P, D] depend on the first token embeddings."""
    table = jnp.asarray(params['token_embedding']['table'])

    def total(delta):
        changed = params | {'token_embedding': {'table': table.at[:rows].add(delta)}}
        # A sum of normalised features is constant; the last norm's random scale undoes that.
        return features(changed)[0].sum(axis=-1)

    return np.abs(jax.jit(jax.jacobian(total))(jnp.zeros((rows, table.shape[1])))).sum(axis=-1)


def test_gpt2_depends_on_all_earlier_positions_only():
    model, params = model_and_params('gpt2')
    batch = batch_of(jnp.arange(12)[None])
    influences = influence(lambda p: model.features(p, batch), params, 12)
    assert np.all(np.triu(influences, 1) == 0)
    assert np.all(influences[np.tril_indices(12)] > 0)


def test_bert_depends_on_all_positions():
    model, params = model_and_params('bert lm')
    batch = batch_of(jnp.arange(12)[None])
    assert np.all(influence(lambda p: model.features(p, batch), params, 12) > 0)


def test_mass_decoder_depends_on_earlier_positions_and_source():
    model, params = model_and_params('mass all')
    batch = batch_of(jnp.arange(12)[None], source=jnp.arange(12, 27)[None])
    influences = influence(lambda p: model.features(p, batch), params, 27)
    assert np.all(np.triu(influences[:, :12], 1) == 0)
    assert np.all(influences[:, :12][np.tril_indices(12)] > 0)
    assert np.all(influences[:, 12:] > 0)


def test_mass_encoder_depends_on_all_positions():
    model, params = model_and_params('mass all')
    graph, state = nnx.split(nnx.eval_shape(lambda: mass.MASS(model.network, 256, nnx.Rngs(0))))

    def encode(params):
        nnx.replace_by_pure_dict(state, params)
        batch = batch_of(jnp.zeros((1, 3), jnp.int32), source=jnp.arange(12)[None])
        return nnx.merge(graph, state).encode(batch, compute=layers.Compute(jnp.float32))

    assert np.all(influence(encode, params, 12) > 0)


def padded_batch(ids, source, padding: int) -> Batch:
    """Returns ids and source with 4 positions of padding at the end."""
    ids, source = (np.pad(x, ((0, 0), (0, 4)), constant_values=padding) for x in (ids, source))
    real = (np.arange(ids.shape[1]) < ids.shape[1] - 4).astype(np.int32)
    real = np.broadcast_to(real, ids.shape)
    source_real = (np.arange(source.shape[1]) < source.shape[1] - 4).astype(np.int32)
    source_segments = np.broadcast_to(source_real, source.shape)
    return batch_of(
        ids, source=source, segments=real, type_ids=real, source_segments=source_segments
    )


def test_padding_leaves_features_unchanged(any_family):
    model, params = any_family
    ids, source = random_ids(2, 11), random_ids(2, 9, seed=3)
    features = jax.jit(model.features)
    plain = features(params, batch_of(ids, source=source, type_ids=np.ones_like(ids)))
    zeros, ones, last = (
        features(params, padded_batch(ids, source, padding))[:, :11] for padding in (0, 1, 200)
    )
    np.testing.assert_array_equal(zeros, ones)  # one program, so not even rounding differs
    np.testing.assert_array_equal(zeros, last)
    np.testing.assert_allclose(zeros, plain, atol=2e-5)  # float32 sums in another order


def test_rows_of_padding_have_finite_features_and_gradients(any_family):
    model, params = any_family
    ids = jnp.zeros((2, 8), jnp.int32)
    batch = batch_of(ids, segments=ids, source_segments=ids)

    def loss(params):
        return jnp.sum(model.features(params, batch) ** 2)

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize('case', ['bert lm', 'gpt2'])
def test_packed_texts_do_not_attend_to_each_other(case):
    (model, params), ids = model_and_params(case), random_ids(1, 15)
    packed = batch_of(
        ids,
        segments=np.array([[1] * 9 + [2] * 6]),
        position_ids=np.concatenate([np.arange(9), np.arange(6)])[None],
    )
    separate = [model.features(params, batch_of(part)) for part in (ids[:, :9], ids[:, 9:])]
    np.testing.assert_allclose(
        model.features(params, packed), jnp.concatenate(separate, axis=1), atol=2e-5
    )


def test_mass_decoder_uses_position_ids():
    (model, params), batch = model_and_params('mass all'), batch_of(random_ids(1, 6))
    shifted = dataclasses.replace(batch, position_ids=jnp.arange(3, 9)[None])
    moved = params | {
        'decoder_position': {'table': np.roll(params['decoder_position']['table'], -3, axis=0)}
    }
    np.testing.assert_array_equal(model.features(params, shifted), model.features(moved, batch))


@pytest.mark.parametrize('case', [*FAMILIES, 'bert classify', 'mass none'])
def test_padding_ids_have_no_probability_and_no_gradient(case):
    (model, params), batch = model_and_params(case), batch_of(random_ids(2, 12))
    used = model.network.classes or 201

    def loss(params):
        logits = model.logits(params, batch)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0]), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert logits.shape == (2, 12, model.network.classes or 256)
    assert np.all(jax.nn.softmax(logits)[..., used:] == 0)
    padded = [x for x in jax.tree.leaves(gradient) if x.shape[0] == 256]
    assert padded
    for leaf in padded:
        assert np.all(leaf[201:] == 0)
    assert np.any(gradient['token_embedding']['table'][:201] != 0)


def test_head_of_a_network_without_a_head_raises():
    model = models.build(network('bert none'))
    with pytest.raises(ValueError, match="head 'none' predicts nothing"):
        model.head(noisy(model))


def test_mass_output_bias_shifts_logits_without_gradient():
    (model, params), batch = model_and_params('mass all'), batch_of(random_ids(2, 5))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.logits(p, batch)[..., :201] ** 2)))(params)
    assert np.all(gradient['output_bias']['bias'] == 0)
    moved = params | {'output_bias': {'bias': params['output_bias']['bias'] + 1}}
    logits = jax.jit(model.logits)
    apart = logits(moved, batch) - logits(params, batch)
    np.testing.assert_allclose(apart[..., :201], 1, atol=1e-4)


def test_features_at_positions_are_rows_of_all_features(any_case):
    model, params = any_case
    batch = batch_of(random_ids(2, 12))
    positions = np.array([[1, 7, 3], [0, 11, 11]])
    chosen = dataclasses.replace(batch, positions=positions)
    features = jax.jit(model.features)
    every = np.asarray(features(params, batch))
    expected = np.stack([every[i, positions[i]] for i in range(2)])
    # The transforms of 3 and of 12 rows are different products.
    np.testing.assert_allclose(features(params, chosen), expected, atol=1e-5)


def test_equal_configurations_share_one_model():
    c = network('gpt2')
    assert models.build(c) is models.build(network('gpt2'))
    assert models.build(c) is not models.build(c, remat='block')


@pytest.mark.parametrize(
    ('case', 'dropout'),
    [
        *((case, 0.0) for case in FAMILIES if case != 'mass all'),
        pytest.param('mass all', 0.0, marks=pytest.mark.slow),
        ('gpt2', 0.2),
    ],
)
def test_remat_changes_no_gradient(case, dropout):
    c = network(case, dropout=dropout)
    params, batch = noisy(models.build(c)), batch_of(random_ids(2, 12))
    key = jax.random.key(5) if dropout else None

    def gradient(remat):
        model = models.build(c, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(model.features(p, batch, key=key) ** 3)))(params)

    expected = gradient('none')
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    for remat in ('dots', 'block'):
        chex.assert_trees_all_close(gradient(remat), expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize('case', ['bert lm', 'bert classify', 'gpt2', 'mass all'])
def test_dropout_is_a_function_of_the_key(case):
    model = models.build(network(case, dropout=0.3))
    params, batch = noisy(model), batch_of(random_ids(1, 8))
    features = jax.jit(lambda key: model.features(params, batch, key=key))
    plain, first, again, other = (
        features(None if seed is None else jax.random.key(seed)) for seed in (None, 1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(plain, first)
    assert not np.allclose(first, other)
    without = jax.jit(models.build(network(case)).features)(params, batch)
    np.testing.assert_allclose(plain, without, atol=1e-5)  # two programs


def test_dropout_preserves_the_mean():
    dropped = layers.dropout(jnp.ones(100_000), jax.random.key(0), 0.3)
    # The mean of 1e5 values has standard error sqrt(0.3 / 0.7 / 1e5) = 0.002.
    assert abs(float(dropped.mean()) - 1) < 0.01


@pytest.mark.parametrize('case', ['bert lm', 'bert classify', 'gpt2', 'mass all'])
@pytest.mark.usefixtures('full_compilation')
def test_flops_equal_the_compiled_matrix_products(case):
    decoder = {'decoder_layers': 1} if case == 'mass all' else {}
    c = network(
        case, layers=1, width=128, heads=2, ffn=512, positions=64, vocab_size=2048, **decoder
    )
    model, position = models.build(c), jnp.zeros((1, 1), jnp.int32)
    ids, source = jnp.zeros((1, 64), jnp.int32), jnp.zeros((1, 48), jnp.int32)
    batch = batch_of(ids, source=source, positions=position if case == 'bert classify' else None)
    compiled = jax.jit(model.logits).lower(model.abstract_params, batch).compile()
    shape = Shape(64, 1 if case == 'bert classify' else 64, 48)
    # The compiler also counts softmax, norms and GELU, here under a tenth.
    assert 0.9 < model.flops(shape) / compiled.cost_analysis()['flops'] < 1.0


@pytest.mark.parametrize('case', ['bert lm', 'bert classify'])
def test_last_block_at_positions_equals_the_whole_block(case):
    """The last block of BERT computes the predicted positions only, unless a tap reads it."""
    model, params = model_and_params(case)
    ids, positions = random_ids(3, 12), np.array([[0, 5, 11], [2, 0, 0], [7, 8, 9]], np.int32)
    segments = np.array([[1] * 12, [1] * 4 + [0] * 8, [1] * 6 + [2] * 6], np.int32)
    batch = batch_of(ids, source=None, positions=positions, segments=segments)
    tap = Tap('encoder', 2, 'hidden')

    def loss(params, taps):
        outputs = model.features(params, batch, taps=taps)
        return jnp.sum((outputs[0] if taps else outputs) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, ())
    expected, expected_grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, (tap,))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected_grads))
    chex.assert_trees_all_close(grads, expected_grads, rtol=0, atol=1e-5 * largest)
