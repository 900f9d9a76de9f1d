"""Scores on real files, in the folder that the environment variable LIGHTPAFF_DATA names."""

import csv
import json
import math
import os
import pathlib

import jax
import numpy as np
import pytest

from lightpaff_jax import config, evaluate, models, sharding
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.tokenizers import selection

DATA = os.environ.get('LIGHTPAFF_DATA', '')
pytestmark = pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')
SMALL = {'layers': 1, 'width': 16, 'heads': 2, 'ffn': 32, 'positions': 64}


def make_config(cache, source, folder, tokenizer):
    c = config.default()
    c.student.update(SMALL)
    c.data.update({'source': source, 'path': f'{DATA}/{folder}', 'cache': str(cache), 'length': 64})
    c.tokenizer.path = f'{DATA}/tokenizers/{tokenizer}'
    c.student.vocab_size = tokenizers.read(c.tokenizer.path).vocab_size
    return c


def evaluate_split(c, split, folder):
    """Returns scores, lines of predictions, and the data and network that made them."""
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    model, mesh = models.build(c.student), sharding.make_mesh(c)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(2)))
    with jax.set_mesh(mesh):
        evaluation = evaluate.Evaluation(c, mesh, model, None, prepared, tokenizer)
        scores = evaluation.finish(evaluation.score(split, params), params, folder)
    lines = [json.loads(x) for x in (folder / f'{split}.jsonl').read_text().splitlines()]
    return scores, lines, (prepared, tokenizer, model, params)


def test_perplexity_of_ptb_equals_a_float64_reference(tmp_path):
    c = make_config(tmp_path / 'cache', 'text', 'ptb', 'gpt2')
    c.data.documents, c.eval.batches = 'line', 4
    scores, lines, (prepared, tokenizer, model, params) = evaluate_split(c, 'test', tmp_path)
    weight_VD, bias_V = (np.asarray(x, np.float64) for x in model.head(params))
    nll = count = 0.0
    row_nll = []
    for batch in batches.evaluation(c, prepared, tokenizer, 'test'):
        features_BTD = np.asarray(model.features(params, batch), np.float64)
        for x_TD, labels_T, weights_T in zip(
            features_BTD, np.asarray(batch.labels), np.asarray(batch.weights), strict=True
        ):
            logits_TV = x_TD @ weight_VD.T + bias_V
            top_T = logits_TV.max(1)
            lse_T = np.log(np.exp(logits_TV - top_T[:, None]).sum(1)) + top_T
            nll_T = weights_T * (lse_T - logits_TV[np.arange(len(labels_T)), labels_T])
            row_nll.append(nll_T.sum())
            nll, count = nll + nll_T.sum(), count + weights_T.sum()
    assert scores['tokens'] == count == 4 * 16 * 64
    # Sums of 64 terms in float32, then float64.
    assert scores['ce'] == pytest.approx(nll / count, rel=1e-6)
    assert scores['perplexity'] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert [line['nll'] for line in lines] == pytest.approx(row_nll, rel=1e-5)


@pytest.mark.compare
@pytest.mark.parametrize(('source', 'folder'), [('qqp', 'QQP'), ('sst2', 'SST-2')])
def test_accuracy_and_f1_of_glue_equal_scikit_learn(tmp_path, source, folder):
    reference = pytest.importorskip('sklearn.metrics')
    c = make_config(tmp_path / 'cache', source, folder, 'bert-base-uncased')
    c.objective, c.data.held_out = 'classify', 0.01
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': 2})
    scores, lines, _ = evaluate_split(c, 'test', tmp_path)
    with (pathlib.Path(DATA) / folder / 'dev.tsv').open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    labels = [int(row['is_duplicate' if source == 'qqp' else 'label']) for row in rows]
    predicted = [line['predicted'] for line in lines]
    assert 0 < sum(predicted) < len(labels)
    assert scores['examples'] == len(labels)
    assert scores['accuracy'] == reference.accuracy_score(labels, predicted)
    assert scores['f1'] == pytest.approx(reference.f1_score(labels, predicted), rel=1e-14)
    p = np.array([line['probabilities'] for line in lines])
    assert scores['ce'] == pytest.approx(reference.log_loss(labels, p), rel=1e-9)
    text = rows[5]['question1'] if source == 'qqp' else rows[5]['sentence']
    assert lines[5]['text'].startswith(text.strip())
