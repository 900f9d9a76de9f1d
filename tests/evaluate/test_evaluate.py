"""Scores of a language model count every token once and equal a float64 reference."""

import math

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import config, evaluate, models, sharding
from lightpaff_jax.data import batches
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.teacher import Teacher


@pytest.fixture(scope='module')
def scored(data_cache):
    """Returns a student with random weights, its teacher, and a function that scores it."""
    c = corpus.tiny_config(data_cache)
    c.student.update({'layers': 1, 'width': 32, 'heads': 2, 'ffn': 32})
    c.eval.batch_size = 24
    prepared, tokenizer = corpus.prepare_dataset(c), selection.load(c)
    mesh = sharding.make_mesh(c)
    student = models.build(c.student)
    shape = config.network(layers=1, width=16, heads=2, ffn=32, vocab_size=c.student.vocab_size)
    teacher = models.build(shape)
    params = jax.tree.map(lambda x: 3 * x, student.init(jax.random.key(0)))
    teacher_params = jax.tree.map(lambda x: 3 * x, teacher.init(jax.random.key(1)))

    def scores():
        frozen = Teacher(teacher, teacher_params, '')
        with jax.set_mesh(mesh):
            evaluation = evaluate.Evaluation(c, mesh, student, frozen, prepared, tokenizer)
            return evaluation.score('test', params).scores

    return c, prepared, (student, params), (teacher, teacher_params), scores


def test_split_without_a_predicted_token_is_an_error():
    c = config.default()
    c.objective = 'mlm'
    with pytest.raises(UserError, match='no token of the split is predicted, must be at least 1'):
        evaluate.compute_scores(c, {'ce': 0.0, 'correct': 0.0, 'labelled': 0.0}, {})


def test_perplexity_and_agreement_equal_a_float64_reference(scored):
    c, prepared, (student, params), (teacher, teacher_params), scores = scored
    result = scores()
    nll = correct = agree = divergence = count = 0.0
    for batch in batches.evaluation(c, prepared, selection.load(c), 'test'):
        s = np.asarray(student.logits(params, batch), np.float64)
        t = np.asarray(teacher.logits(teacher_params, batch), np.float64)
        log_s = s - np.logaddexp.reduce(s, axis=-1, keepdims=True)
        log_t = t - np.logaddexp.reduce(t, axis=-1, keepdims=True)
        w = np.asarray(batch.weights, np.float64)
        labels = np.asarray(batch.labels)
        nll -= (w * np.take_along_axis(log_s, labels[..., None], -1)[..., 0]).sum()
        divergence += (w * (np.exp(log_t) * (log_t - log_s)).sum(-1)).sum()
        correct += (w * (s.argmax(-1) == labels)).sum()
        agree += (w * (s.argmax(-1) == t.argmax(-1))).sum()
        count += w.sum()
    stats = prepared.split('test')
    assert result['tokens'] == count == stats['tokens']
    # Chunks are summed in float32, which loses about 1e-6 in a sum of a few thousand terms.
    assert result['ce'] == pytest.approx(nll / count, rel=1e-5)
    assert result['kl'] == pytest.approx(divergence / count, rel=1e-4)
    assert result['perplexity'] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert result['word_perplexity'] == pytest.approx(math.exp(nll / stats['words']), rel=1e-3)
    assert result['accuracy'] == pytest.approx(correct / count, abs=2 / count)
    assert result['agreement'] == pytest.approx(agree / count, abs=2 / count)


def test_scores_do_not_depend_on_the_batch_size(scored):
    c, *_, scores = scored
    result = scores()
    c.eval.batch_size = 8
    other = scores()
    c.eval.batch_size = 24
    assert result.keys() == other.keys()
    for name, value in result.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name
