"""Batches of several lengths, and mixtures of datasets."""

import collections
import json

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import distill_step, models
from lightpaff_jax.batch import Shape
from lightpaff_jax.data import batches, objectives, prepare
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.train import train

EXAMPLES = pytest.mark.parametrize('view', ['pairs', 'summary'])


def configured(data_cache, view):
    c = corpus.examples_config(data_cache, view)
    c.data.length, c.data.buckets = 384, (128, 256, 384)
    c.data.target_length = 192 if view == 'summary' else 0
    return c


@EXAMPLES
def test_batch_has_the_length_of_its_bucket(data_cache, vocabulary, view):
    c = configured(data_cache, view)
    prepared = prepare.prepare(c, vocabulary)
    shapes = [objectives.OBJECTIVES[c.objective].shape(s) for s in objectives.buckets(c)]
    assert [s.source or s.tokens for s in shapes] == [128, 256, 384]
    c.data.batch_size, n = 8, prepared.split('train')['records']
    seen = collections.Counter()
    tokens = 0
    for index in range(-(-n // 8)):
        batch = corpus.batch_at(c, prepared, vocabulary, index)
        assert batch.shape in shapes
        seen[batch.shape] += 1
        tokens += (batch.source_segments if view == 'summary' else batch.segments).sum()
    assert len(seen) == 3
    c.data.buckets = ()
    whole = sum(
        (b.source_segments if view == 'summary' else b.segments).sum()
        for b in (corpus.batch_at(c, prepared, vocabulary, i) for i in range(n // 8))
    )
    assert abs(int(tokens) - int(whole)) <= 8 * 384 * 2  # the last batch reaches into epoch 1


@EXAMPLES
def test_bucket_rows_equal_full_rows_without_padding(data_cache, vocabulary, view):
    c = configured(data_cache, view)
    prepared = prepare.prepare(c, vocabulary)
    full = corpus.examples_config(data_cache, view)
    full.data.length, full.data.target_length = 384, c.data.target_length
    records = prepared.records('train')
    n = len(records)
    fields = objectives.OBJECTIVES[c.objective].arrays(
        full, vocabulary, [records[i] for i in range(n)], [(0, 0, i) for i in range(n)]
    )
    want = collections.Counter(_row(fields, i) for i in range(n))
    got = collections.Counter()
    for index in range(n // c.data.batch_size):
        batch = corpus.batch_at(c, prepared, vocabulary, index)
        fields = {k: v for k, v in vars(batch).items() if v is not None}
        flat = {k: np.reshape(v, (-1, v.shape[-1])) for k, v in fields.items()}
        got.update(_row(flat, i) for i in range(c.data.batch_size))
    assert not got - want
    assert sum((want - got).values()) < c.data.batch_size


def _row(arrays, i):
    def real(name, mask):
        return tuple(arrays[name][i][arrays[mask][i] > 0].tolist())

    if 'source' in arrays:
        return (
            real('source', 'source_segments'),
            real('tokens', 'weights'),
            real('labels', 'weights'),
        )
    return (
        real('tokens', 'segments'),
        real('type_ids', 'segments'),
        tuple(arrays['labels'][i].tolist()),
    )


@EXAMPLES
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_use_the_same_bucket(data_cache, vocabulary, view, processes):
    c = configured(data_cache, view)
    prepared = prepare.prepare(c, vocabulary)
    for index in range(6):
        batch = corpus.batch_at(c, prepared, vocabulary, index)
        parts = [
            corpus.batch_at(c, prepared, vocabulary, index, p, processes) for p in range(processes)
        ]
        together = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        pairs = zip(jax.tree.leaves(together), jax.tree.leaves(batch), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_tokens_and_flops_count_buckets_after_resume(data_cache, tmp_path, monkeypatch):
    """One program is compiled for each bucket."""
    compiled = []

    class Counted:
        def __init__(self, step):
            self.step = step

        def lower(self, state, teacher_params, batch, hyperparameters):
            compiled.append(batch.shape)
            return self.step.lower(state, teacher_params, batch, hyperparameters)

    make = distill_step.make_step
    monkeypatch.setattr(distill_step, 'make_step', lambda *args: Counted(make(*args)))

    def run(updates):
        c = configured(data_cache, 'pairs')
        c.workdir = str(tmp_path)
        c.student.update(
            {'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'vocab_size': 512, 'positions': 384}
        )
        c.data.batch_size, c.train.grad_accum_steps, c.eval.batches = 8, 1, 1
        c.train.update({'updates': updates, 'save_every': 5, 'log_every': 5})
        c.optim.warmup = 2
        return c, train(c)

    run(5)
    c, result = run(10)
    prepared, tokenizer = corpus.prepare_dataset(c), selection.load(c)
    shapes = [corpus.batch_at(c, prepared, tokenizer, i).shape for i in range(10)]
    assert len(set(shapes)) > 1
    assert compiled == [*dict.fromkeys(shapes[:5]), *dict.fromkeys(shapes[5:])]
    assert result['tokens'] == sum(8 * shape.tokens for shape in shapes)
    flops = models.build(c.student).flops
    assert result['flops'] == sum(8 * 3 * flops(shape) for shape in shapes)
    assert shapes[0] == Shape(shapes[0].tokens, 1, 0)
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [5, 5, 10, 10]


def test_mixture_of_text_folders_has_their_shares(tmp_path, data_cache):
    for name, letter in (('one', 'a'), ('two', 'b')):
        (tmp_path / name).mkdir()
        for split in ('train', 'validation', 'test'):
            text = '\n\n'.join(f'{letter} {letter}{letter} ' * (5 + i) for i in range(40))
            (tmp_path / name / f'{split}.txt').write_text(text + '\n')
    c = corpus.tiny_config(data_cache)
    c.data.packages = ()
    c.data.source, c.data.length = 'mixture', 8
    c.data.mixture = (f'text:{tmp_path}/one=1', f'text:{tmp_path}/two=3')
    tokenizer = corpus.wordpiece_tokenizer(tmp_path)
    c.tokenizer.path = tokenizer.path
    prepared = prepare.prepare(c, tokenizer)
    a, b = tokenizer.encode(['a', 'b'])
    counts = collections.Counter()
    for batch in (corpus.batch_at(c, prepared, tokenizer, i) for i in range(20)):
        for row in batch.tokens.reshape(-1, 8):
            counts['a' if np.isin(row, a).any() else 'b'] += 1
            assert np.isin(row, a).any() != np.isin(row, b).any()
    assert (counts['a'], counts['b']) == (40, 120)
    passed = list(batches.evaluation(c, prepared, tokenizer, 'test'))
    assert sum(b.weights.sum() for b in passed) == prepared.split('test')['tokens']
    halves = [part.split('test')['tokens'] for part in prepared.parts]
    assert prepared.split('test')['tokens'] == sum(halves)
    c.eval.batches, c.eval.batch_size = 2, 8
    (first, _) = batches.evaluation(c, prepared, tokenizer, 'test')
    kinds = [bool(np.isin(row, a).any()) for row in first.tokens]
    assert 0 < sum(kinds) < 8  # the first batch has rows of both parts
