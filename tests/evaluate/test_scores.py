"""Scores of lists: equal to scikit-learn and to the command lines of sacrebleu and rouge-score.

Real text is read from the folder that the environment variable LIGHTPAFF_DATA names.
"""

import csv
import json
import math
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import scores

DATA = os.environ.get('LIGHTPAFF_DATA')
needs_data = pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')

REFERENCES = [
    'A dog runs across the green field.', 'Two children are playing in the snow!',
    'Nobody knew, he said, that it was "over".', 'Returns the sums and the count.', 'One word.',
]  # fmt: skip
TEXTS = [
    'A dog is running across a green field.', 'Two kids play in the snow!',
    'He said nobody knew that it was over .', 'Returns the sums and the count.', '',
]  # fmt: skip


def disturbed(lines, seed=0):
    """Lines as a mediocre network would write them: words dropped, doubled and exchanged."""
    draw, found = random.Random(seed), []
    for line in lines:
        words = line.split()
        words = [w for w in words for _ in range(draw.choice((0, 1, 1, 1, 1, 1, 2)))]
        if len(words) > 3 and draw.random() < 0.5:
            i = draw.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        found.append(' '.join(words))
    return found


def ran(*words):
    done = subprocess.run([sys.executable, '-m', *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder, name, lines):
    path = folder / name
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return str(path)


def assert_bleu_is_the_command_lines(folder, texts, references):
    """The command writes one digit, or all there are in JSON."""
    words = (written(folder, 'references', references), '-i', written(folder, 'texts', texts))
    theirs = json.loads(ran('sacrebleu', *words, '--format', 'json', '--width', '14'))
    ours = scores.bleu(texts, references)
    assert ours['bleu'] == pytest.approx(theirs['score'], rel=1e-12)
    assert ours['bleu_signature'] == theirs['signature']
    assert ours['bleu'] > 1
    return ours


def assert_rouge_is_the_command_lines(folder, texts, references):
    """The command writes each text's F; with --aggregate a random interval around their mean."""
    out = folder / 'rouge.csv'
    ran(
        'rouge_score.rouge', '--use_stemmer', '--noaggregate', f'--output_filename={out}',
        f'--target_filepattern={written(folder, "references", references)}',
        f'--prediction_filepattern={written(folder, "texts", texts)}',
        '--rouge_types=rouge1,rouge2,rougeL',
    )  # fmt: skip
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(texts)
    ours = scores.rouge(texts, references)
    for name in ('rouge1', 'rouge2', 'rougeL'):
        # Six decimals a text in the file.
        mean = 100 * sum(float(row[f'{name}-F']) for row in rows) / len(rows)
        assert ours[name] == pytest.approx(mean, abs=1e-4)
        assert ours[name] > 1
    return ours


@pytest.mark.e2e
def test_bleu_is_that_of_the_command_line(tmp_path):
    assert_bleu_is_the_command_lines(tmp_path, TEXTS, REFERENCES)


@pytest.mark.e2e
def test_rouge_is_that_of_the_command_line(tmp_path):
    assert_rouge_is_the_command_lines(tmp_path, TEXTS, REFERENCES)


@pytest.mark.e2e
@needs_data
def test_bleu_of_real_translations_is_that_of_the_command_line(tmp_path):
    file = pathlib.Path(DATA) / 'multi30k/test_2016_flickr.de'
    references = file.read_text(encoding='utf-8').splitlines()
    found = assert_bleu_is_the_command_lines(tmp_path, disturbed(references), references)
    assert 20 < found['bleu'] < 90


@pytest.mark.e2e
@needs_data
def test_rouge_of_real_summaries_is_that_of_the_command_line(tmp_path):
    folder = pathlib.Path(DATA) / 'gigaword'
    articles, titles = (
        (folder / f'test.{side}.txt').read_text(encoding='utf-8').splitlines()
        for side in ('article', 'title')
    )
    texts = [' '.join(article.split()[:8]) for article in articles]  # the classic baseline
    found = assert_rouge_is_the_command_lines(tmp_path, texts, titles)
    assert 15 < found['rouge1'] < 40


@pytest.mark.parametrize(
    ('predicted', 'labels', 'accuracy', 'f1'),
    [
        ([1, 1, 0, 0], [1, 0, 1, 0], 0.5, 0.5),
        ([1, 1, 1, 0], [1, 1, 0, 0], 0.75, 0.8),
        ([0, 0, 0], [0, 0, 0], 1.0, 0.0),
        ([1, 1], [0, 0], 0.0, 0.0),
    ],
)
def test_accuracy_and_f1_of_small_cases(predicted, labels, accuracy, f1):
    assert scores.accuracy(predicted, labels) == accuracy
    assert scores.f1(predicted, labels) == pytest.approx(f1, abs=1e-15)


@pytest.mark.compare
@pytest.mark.parametrize('share', [0.02, 0.5, 0.9])
def test_accuracy_f1_and_loss_are_those_of_scikit_learn(share):
    reference = pytest.importorskip('sklearn.metrics')
    draw = np.random.default_rng(0)
    labels = (draw.random(997) < share).astype(np.int64)
    logits = (draw.normal(size=(997, 2)) + 0.7 * np.eye(2)[labels]).astype(np.float32)
    assert_scikit_learn(reference, logits, labels)


@pytest.mark.compare
@needs_data
def test_scores_of_real_labels_are_those_of_scikit_learn():
    reference = pytest.importorskip('sklearn.metrics')
    with (pathlib.Path(DATA) / 'QQP/dev.tsv').open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    labels = np.array([int(row['is_duplicate']) for row in rows])
    pairs = [(set(row['question1'].split()), set(row['question2'].split())) for row in rows]
    alike = np.array([len(a & b) / len(a | b) for a, b in pairs])
    assert_scikit_learn(reference, np.stack([0.5 - alike, alike], 1).astype(np.float32), labels)


def assert_scikit_learn(reference, logits, labels):
    found = scores.classifier_scores(logits, labels)
    predicted = logits.argmax(1)
    assert found['accuracy'] == reference.accuracy_score(labels, predicted)
    assert found['f1'] == pytest.approx(reference.f1_score(labels, predicted), rel=1e-14)
    p = np.exp(scores.log_softmax(logits))
    assert found['ce'] == pytest.approx(reference.log_loss(labels, p), rel=1e-12)


def test_a_teacher_is_compared_with_at_the_temperature():
    logits, teacher = np.float32([[1, 2], [0, 3]]), np.float32([[2, 1], [1, 3]])
    found = scores.classifier_scores(logits, np.array([0, 1]), teacher, 2.0)
    kl = 0.0
    for s, t in zip(logits.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(x / 2) for x in row] for row in (s, t))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        kl += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / 2
    assert found['kl'] == pytest.approx(kl, rel=1e-12)
    assert found['agreement'] == 0.5
    nll = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))
    assert found['teacher_ce'] == pytest.approx(nll / 2, rel=1e-12)


def test_f1_is_of_two_classes_alone():
    found = scores.classifier_scores(np.eye(3, dtype=np.float32), np.arange(3))
    assert set(found) == {'ce', 'accuracy'}


@pytest.mark.parametrize('score', [scores.accuracy, scores.f1, scores.bleu, scores.rouge])
@pytest.mark.parametrize('pair', [(TEXTS, REFERENCES[1:]), ([], [])])
def test_as_many_predictions_as_references_are_needed(score, pair):
    line = f'{len(pair[0])} predictions and {len(pair[1])} references: must be equally many'
    with pytest.raises(UserError, match=line):
        score(*pair)


def test_scores_are_said_in_one_line():
    assert scores.format_scores({'bleu': 12.34567891, 'bleu_signature': 'a|b'}) == (
        'bleu 12.3457, bleu_signature a|b'
    )
