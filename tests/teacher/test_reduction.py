"""Teachers of students with a reduced vocabulary: outputs, meshes, initial parameters, refusals."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reductions

from lightpaff_jax import distill_step, losses, models, networks, pretrained, sharding, teacher
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.preflight import compilation
from lightpaff_jax.runtime import fingerprint

SIZE = reductions.SIZE


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
    """Returns a configuration with a teacher, its tokenizer, and the teacher's model and parameters."""
    folder = tmp_path_factory.mktemp('teacher')
    model, params = reductions.write_teacher(folder / 'teacher')
    c = reductions.make_config(folder)
    c.teacher.path = str(folder / 'teacher')
    return c, selection.load(c), model, params


def load(c, tokenizer, devices=1):
    mesh = sharding.make_mesh(c, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return teacher.load(c, mesh, tokenizer)


def random_batch(rows=8, length=12):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE, (rows, length)).astype(np.int32)
    segments = (np.arange(length) < rng.integers(5, length, (rows, 1))).astype(np.int32)
    weights = segments[:, :4].astype(np.float32)
    positions = np.tile(np.arange(4, dtype=np.int32), (rows, 1))
    return Batch(ids, ids[:, 4:8], weights, positions, segments)


def test_reduced_teacher_equals_a_dense_reference(setup):
    """Compares logits and KL with the whole teacher on mapped ids; 1e-5 is rounding."""
    c, tokenizer, whole, params = setup
    frozen, batch = load(c, tokenizer), random_batch()
    ids = pretrained.open('teacher', c.teacher.path).whole_ids(tokenizer, True)
    mapped = dataclasses.replace(batch, tokens=ids[batch.tokens])
    logits = whole.logits(params, mapped)[..., ids]
    reduced = frozen.model.logits(frozen.params, batch)
    np.testing.assert_allclose(reduced[..., :SIZE], logits, rtol=1e-5, atol=1e-5)
    assert reduced.shape[-1] == models.pad_vocab(SIZE)
    np.testing.assert_allclose(reduced[..., SIZE:], -1e9, rtol=1e-6)

    student = models.build(c.student)
    student_params = student.init(jax.random.key(1))
    log_p = jax.nn.log_softmax(logits)
    log_q = jax.nn.log_softmax(student.logits(student_params, batch)[..., :SIZE])
    expected = jnp.sum(batch.weights * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))
    sums = losses.distillation_loss(
        losses.Predictor(student.features(student_params, batch), student.head(student_params)),
        losses.Predictor(
            frozen.model.features(frozen.params, batch), frozen.model.head(frozen.params)
        ),
        batch.labels,
        batch.weights,
    )
    np.testing.assert_allclose(sums['kl'], expected, rtol=1e-5)


def test_reduced_teacher_keeps_its_fingerprint(setup):
    c, tokenizer, _, params = setup
    assert load(c, tokenizer).hash == fingerprint.fingerprint(params)


def test_mesh_changes_no_sum_of_a_reduced_teacher(setup):
    """Sums of 2 x 2 x 2 devices equal those of one to the rounding of float32."""
    c, tokenizer, _, _ = setup
    batch, sums = random_batch(), []
    for shape in ((1, 1, 1), (2, 2, 2)):
        c.mesh.update(dict(zip(('data', 'fsdp', 'tensor'), shape, strict=True)))
        mesh = sharding.make_mesh(c, jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            frozen, student = teacher.load(c, mesh, tokenizer), networks.student(c)
            params = student.init(jax.random.key(1))
            params = jax.device_put(params, sharding.param_shardings(mesh, params))
            evaluate = distill_step.make_evaluation(c, mesh, student, frozen.model)
            placed = sharding.put_batch(mesh, batch, micro=False)
            sums.append(jax.device_get(evaluate(params, frozen.params, placed)))
    c.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1})
    assert np.sum(sums[0]['kl']) > 1
    chex.assert_trees_all_close(sums[1], sums[0], rtol=2e-5, atol=1e-5)


def test_preflight_knows_the_reduced_vocabulary(setup):
    c = setup[0]
    assert compilation.teacher_network(c).vocab_size == SIZE
    assert teacher.open(c).network.vocab_size == 96


def test_student_of_teacher_layers_has_the_kept_rows(setup):
    c, tokenizer, _, params = setup
    c = c.copy_and_resolve_references()
    c.student.init, c.student.init_layers = 'teacher_layers', (1,)
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    with jax.set_mesh(mesh):
        frozen = teacher.load(c, mesh, tokenizer)
        initial = fingerprint.flatten(teacher.load_initial(c, mesh, tokenizer, frozen))
    ids = pretrained.open('teacher', c.teacher.path).whole_ids(tokenizer, True)
    expected = fingerprint.flatten(params)
    for name in ('token_embedding/table', 'output_bias/bias'):
        np.testing.assert_array_equal(initial[name][:SIZE], expected[name][ids], name)
        assert not initial[name][SIZE:].any(), name
    name = 'blocks/ffn/up/kernel'
    np.testing.assert_array_equal(initial[name], expected[name][1:])


def test_classifier_keeps_its_head(tmp_path):
    model, params = reductions.write_teacher(tmp_path / 'teacher', head='classify', classes=3)
    c = reductions.make_config(tmp_path)
    c.objective, c.teacher.path = 'classify', str(tmp_path / 'teacher')
    c.student.update({'head': 'classify', 'classes': 3})
    tokenizer = selection.load(c)
    frozen = load(c, tokenizer)
    chex.assert_trees_all_equal(frozen.params['classifier'], params['classifier'])
    ids = pretrained.open('teacher', c.teacher.path).whole_ids(tokenizer, True)
    batch = dataclasses.replace(random_batch(), positions=np.zeros((8, 1), np.int32))
    mapped = dataclasses.replace(batch, tokens=ids[batch.tokens])
    np.testing.assert_allclose(
        frozen.model.logits(frozen.params, batch),
        model.logits(params, mapped),
        rtol=1e-5,
        atol=1e-5,
    )


def test_saved_reduction_as_path_is_the_same_teacher(setup, tmp_path):
    """A run may name the tokenizer of another run instead of the texts that chose it."""
    c, tokenizer, _, _ = setup
    expected = load(c, tokenizer)
    tokenizer.save(tmp_path / 'tokenizer', 'bert')
    c = c.copy_and_resolve_references()
    c.tokenizer.reduce, c.tokenizer.path = (), str(tmp_path / 'tokenizer')
    frozen = load(c, selection.load(c))
    chex.assert_trees_all_equal(frozen.params, expected.params)
    c.student.vocab_size = SIZE + 1
    with pytest.raises(
        UserError, match=rf'vocab_size = {SIZE + 1}: must equal that of .* = {SIZE}'
    ):
        load(c, selection.load(c))


def test_other_tokenizer_is_refused_with_its_reason(setup, tmp_path):
    c, tokenizer, _, _ = setup
    reductions.write_vocabulary(tmp_path / 'other')
    file = tmp_path / 'other' / 'vocab.txt'
    file.write_text(file.read_text(encoding='utf-8').replace('moon', 'mars'), encoding='utf-8')
    c = c.copy_and_resolve_references()
    c.tokenizer.reduce, c.tokenizer.path = (), str(tmp_path / 'other')
    other = tokenizers.read(c.tokenizer.path)
    c.student.vocab_size = other.vocab_size
    with pytest.raises(UserError) as error:
        load(c, other)
    line = str(error.value)
    assert line.startswith(f'config.teacher.path = {c.teacher.path}: its tokenizer has hash ')
    assert line.endswith("which is no reduction of it: its piece 'mars' must be in the other")
    c.student.vocab_size, c.tokenizer.path = 40, ''
    with pytest.raises(UserError, match=r'config.student.vocab_size = 40: must be at least the 96'):
        selection.load(c)
    with pytest.raises(
        UserError, match=r'config.student.vocab_size = 40: must equal that of the t'
    ):
        load(c, tokenizer)
