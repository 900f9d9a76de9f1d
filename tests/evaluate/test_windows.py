"""Evaluation over sliding windows predicts every token once, from the expected context."""

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import evaluate, models, sharding
from lightpaff_jax.data import batches, prepare
from lightpaff_jax.data.records import Record
from lightpaff_jax.data.tokenizers import selection


class Blocks:
    """A stream of ids as blocks of T + 1 ids, one every T ids."""

    def __init__(self, ids, length):
        starts = range(0, max(1, len(ids) - 1), length)
        self.blocks = [Record(np.array(ids[s : s + length + 1], np.int32)) for s in starts]

    def __len__(self):
        return len(self.blocks)

    def read(self, indices):
        return [self.blocks[i] for i in indices]


@pytest.mark.parametrize('count', [2, 3, 8, 9, 10, 17, 18, 30, 41])
@pytest.mark.parametrize('stride', [1, 3, 5, 7])
def test_windows_predict_each_id_once_from_its_context(count, stride):
    length, ids = 8, list(range(100, 100 + count))
    windows = batches._Windows(Blocks(ids, length), length, stride)
    numbers = list(range(len(windows)))
    weights = windows.weights(numbers)
    predicted = {}
    for number, record in zip(numbers, windows.read(numbers), strict=True):
        window = record.first.tolist()
        start = number * stride
        assert window == ids[start : start + length + 1]
        for t, label in enumerate(window[1:]):
            if weights[number, t]:
                assert label not in predicted
                predicted[label] = t + 1  # number of ids before it
    assert sorted(predicted) == ids[1:]
    for label, context in predicted.items():
        place = label - 100
        least = min(place, length - stride + 1)
        assert least <= context <= length


@pytest.fixture
def c(data_cache):
    c = corpus.tiny_config(data_cache)
    c.student.update({'layers': 1, 'width': 32, 'heads': 2, 'ffn': 32})
    c.eval.batch_size = 24
    return c


def test_perplexity_of_windows_equals_a_float64_reference(c):
    c.data.packages = ('ml_collections',)
    c.eval.stride = 8
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    blocks = prepared.records('test')
    ids = [x for i in range(len(blocks)) for x in blocks[i].first[:32].tolist()]
    last = blocks[len(blocks) - 1].first
    ids += last[32:].tolist()
    model = models.build(c.student)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))
    mesh = sharding.make_mesh(c)
    stats = prepared.split('test')
    with jax.set_mesh(mesh):
        evaluation = evaluate.Evaluation(c, mesh, model, None, prepared, tokenizer)
        scores = evaluation.score('test', params).scores
    assert scores['tokens'] == stats['tokens'] == len(ids) - 1
    assert scores['words'] == stats['words']

    nll, place = 0.0, 1
    while place < len(ids):
        start = 0 if place == 1 else place - (32 - 8) - 1
        window = np.array(ids[start : start + 33], np.int32)
        tokens = np.zeros((1, 32), np.int32)
        tokens[0, : len(window) - 1] = window[:-1]
        batch = batches.batch_lib.Batch(
            tokens=tokens, labels=tokens, weights=np.ones((1, 32), np.float32)
        )
        logits = np.asarray(model.logits(params, batch), np.float64)[0]
        log = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for t in range(place - 1 - start, len(window) - 1):
            nll -= log[t, window[t + 1]]
        place = start + len(window)
    assert scores['ce'] == pytest.approx(nll / (len(ids) - 1), rel=1e-5)  # float32 sums


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_windows_of_several_processes_are_equal(c, processes):
    c.eval.stride, c.eval.batch_size = 10, 8
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    whole = list(batches.evaluation(c, prepared, tokenizer, 'test'))
    for process in range(processes):
        rows = np.arange(8)[process::processes]  # as on a mesh in another device order
        part = list(batches.evaluation(c, prepared, tokenizer, 'test', rows))
        assert len(part) == len(whole)
        for local, batch in zip(part, whole, strict=True):
            for name in ('tokens', 'labels', 'weights'):
                assert np.array_equal(getattr(local, name), getattr(batch, name)[rows])
    assert sum(b.weights.sum() for b in whole) == prepared.split('test')['tokens']
