"""GPT-2: counts, causality, names in both directions, and equality with the reference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import UserError
from lightpaff_jax.models import huggingface

TINY = {'layers': 3, 'width': 48, 'heads': 4, 'ffn': 80, 'positions': 40, 'vocab_size': 201}


def batch_of(ids) -> Batch:
    ids = jnp.asarray(ids, jnp.int32)
    return Batch(ids, ids, jnp.ones(ids.shape))


@pytest.fixture(scope='module')
def tiny():
    """A model, and parameters none of which is 0 or 1, padding of the vocabulary aside."""
    model = models.build(config.network(**TINY))
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    used = jnp.arange(256)[:, None] < 201
    table = params['token_embedding']['table']
    params['token_embedding']['table'] = jnp.where(used, table, 0)
    return model, params


@pytest.mark.parametrize(
    ('shape', 'count'),
    [
        ({'layers': 24, 'width': 1024, 'heads': 16, 'ffn': 4096}, 354_823_168),
        ({'layers': 4, 'width': 768, 'heads': 12, 'ffn': 3072}, 67_736_832),
    ],
)
def test_parameter_counts_are_those_of_the_paper(shape, count):
    c = config.network(positions=1024, vocab_size=50257, **shape)
    assert models.build(c).parameters == count


def test_no_position_depends_on_a_later_one_and_each_on_all_before(tiny):
    model, params = tiny
    ids = jax.random.randint(jax.random.key(2), (1, 12), 0, 201)
    embedded = jnp.take(params['token_embedding']['table'], ids, axis=0)

    def logits(delta):
        changed = dict(params)
        # One row a position, so that the gradient tells positions apart.
        table = jnp.concatenate([embedded[0] + delta, jnp.zeros((244, 48))])
        changed['token_embedding'] = {'table': table}
        return model.features(changed, batch_of(jnp.arange(12)[None]))[0].sum(axis=-1)

    # A sum of normalised features is constant; the last norm's random scale undoes that.
    influence_TT = np.abs(jax.jacobian(logits)(jnp.zeros((12, 48)))).sum(axis=-1)
    assert np.all(np.triu(influence_TT, 1) == 0)
    assert np.all(np.tril(influence_TT)[np.tril_indices(12)] > 0)


def test_padding_ids_of_the_vocabulary_have_no_probability_and_no_gradient(tiny):
    model, params = tiny
    batch = batch_of(jax.random.randint(jax.random.key(2), (2, 12), 0, 201))
    logits = model.logits(params, batch)
    assert logits.shape == (2, 12, 256)
    assert np.all(jax.nn.softmax(logits)[..., 201:] == 0)

    def loss(params):
        return -jnp.mean(jax.nn.log_softmax(model.logits(params, batch))[..., 0])

    gradient = jax.grad(loss)(params)['token_embedding']['table']
    assert np.all(gradient[201:] == 0)
    assert np.any(gradient[:201] != 0)


def test_features_at_chosen_positions_are_rows_of_all_features(tiny):
    model, params = tiny
    batch = batch_of(jax.random.randint(jax.random.key(2), (2, 12), 0, 201))
    positions = jnp.asarray([[1, 7, 3], [0, 11, 11]])
    chosen = Batch(batch.tokens, positions, jnp.ones((2, 3)), positions=positions)
    every = model.features(params, batch)
    expected = jnp.stack([every[i, positions[i]] for i in range(2)])
    np.testing.assert_array_equal(model.features(params, chosen), expected)


@pytest.mark.parametrize('key', [None, 5])
def test_remat_changes_no_gradient(tiny, key):
    _, params = tiny
    c = config.network(**TINY, dropout=0.2)
    batch = batch_of(jax.random.randint(jax.random.key(2), (2, 12), 0, 201))
    key = None if key is None else jax.random.key(key)

    def gradient(remat):
        model = models.build(c, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(model.features(p, batch, key=key) ** 3)))(params)

    chex.assert_trees_all_close(gradient('block'), gradient('none'), rtol=1e-4, atol=1e-4)


def test_dropout_needs_a_key_and_keeps_the_mean():
    c = config.network(**TINY, dropout=0.3)
    model = models.build(c)
    params = model.init(jax.random.key(0))
    batch = batch_of(jnp.zeros((1, 8), jnp.int32))
    plain = model.features(params, batch)
    np.testing.assert_array_equal(plain, model.features(params, batch))
    dropped = model.features(params, batch, key=jax.random.key(1))
    assert not np.allclose(plain, dropped)
    kept = models.gpt2.layers.drop(jnp.ones(100_000), jax.random.key(0), 0.3)
    # The mean of 1e5 of them has standard error sqrt(0.3 / 0.7 / 1e5) = 0.002.
    assert abs(float(kept.mean()) - 1) < 0.01


def test_attention_with_dropout_equals_the_library_where_nothing_is_dropped():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 10, 4, 8))
    ours = models.gpt2.layers._attention_with_dropout(q, k, v, True, jax.random.key(1), 1e-9)
    library = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(ours, library, atol=1e-5)  # float32 sums of 10 terms


def test_import_of_an_export_is_the_identity_bit_for_bit(tiny):
    model, params = tiny
    tensors = huggingface.to_huggingface(params, model.table, model.vocab_size)
    assert tensors['wte.weight'].shape == (201, 48)
    assert tensors['h.2.attn.c_attn.weight'].shape == (48, 144)
    back = huggingface.from_huggingface(tensors, model.table, model.abstract)
    chex.assert_trees_all_equal(back, jax.device_get(params))


def test_import_names_missing_unexpected_and_misshapen_tensors(tiny):
    model, params = tiny
    tensors = huggingface.to_huggingface(params, model.table, model.vocab_size)
    tensors['extra'] = tensors.pop('h.1.ln_1.bias')
    tensors['ln_f.bias'] = np.zeros(47, np.float32)
    with pytest.raises(UserError) as error:
        huggingface.from_huggingface(tensors, model.table, model.abstract)
    for part in ('- h.1.ln_1.bias', '+ extra', 'ln_f.bias: (47,) does not fit (48,)'):
        assert part in str(error.value)


def test_forward_flops_count_every_matrix_product_of_the_compiled_program():
    c = config.network(layers=1, width=128, heads=2, ffn=512, positions=64, vocab_size=2048)
    model = models.build(c)
    batch = batch_of(jnp.zeros((1, 64), jnp.int32))
    compiled = jax.jit(model.logits).lower(model.abstract, batch).compile()
    # The compiler also counts softmax, norms and GELU, here under a tenth.
    assert 0.9 < model.flops(64, 64) / compiled.cost_analysis()['flops'] < 1.0


def reference_model():
    """Transformers' GPT-2 of the same shape, every tensor filled with noise."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    c = transformers.GPT2Config(
        vocab_size=201, n_positions=40, n_embd=48, n_layer=3, n_head=4, n_inner=80,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(c)
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            scale = name.endswith('weight') and tensor.ndim == 1
            tensor.copy_(0.1 * torch.randn(tensor.shape) + (1 if scale else 0))
    return torch, reference


@pytest.mark.compare
def test_logits_and_gradients_equal_the_reference():
    torch, reference = reference_model()
    model = models.build(config.network(**TINY))
    prefix = 'transformer.'

    def ours(tensors):
        numpy = {k.removeprefix(prefix): v.detach().numpy().copy() for k, v in tensors}
        return huggingface.from_huggingface(numpy, model.table, model.abstract)

    names = [(k, v) for k, v in reference.named_parameters() if k != 'lm_head.weight']
    params = ours(names)
    ids = np.random.default_rng(0).integers(0, 201, (3, 33))
    theirs = reference(torch.tensor(ids)).logits
    logits = model.logits(params, batch_of(ids))[..., :201]
    largest = float(theirs.detach().abs().max())
    # Float32 sums of up to 80 terms through 3 layers: some 1e-6 of the largest logit.
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-5 * largest)

    labels = torch.tensor(ids)
    loss = torch.nn.functional.cross_entropy(theirs[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()

    def ours_loss(params):
        log_p = jax.nn.log_softmax(model.logits(params, batch_of(ids))[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 1:, None], axis=2))

    gradient = jax.grad(ours_loss)(params)
    expected = ours([(k, v.grad) for k, v in names])
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    # Backwards through 3 layers, sums of some 100 float32 terms each: under 1e-5 is seen.
    chex.assert_trees_all_close(gradient, expected, rtol=0, atol=1e-4 * largest)

    # One AdamW update. With eps 1e-8 Adam would normalise the rounding of gradients that are 0.
    settings = {'lr': 1e-2, 'betas': (0.9, 0.98), 'eps': 1e-3, 'weight_decay': 0.0}
    torch.optim.AdamW([v for _, v in names], **settings).step()
    updated = ours(names)
    rule = optax.adamw(1e-2, b1=0.9, b2=0.98, eps=1e-3, weight_decay=0.0)
    update, _ = rule.update(gradient, rule.init(params), params)
    theirs_update = jax.tree.map(lambda new, old: new - old, updated, params)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(theirs_update))
    chex.assert_trees_all_close(update, theirs_update, rtol=0, atol=2e-4 * largest)
