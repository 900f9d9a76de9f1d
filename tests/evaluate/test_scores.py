"""Scores equal those of scikit-learn and of the command lines of sacrebleu and rouge-score.

Real text is in the folder that the environment variable LIGHTPAFF_DATA names.
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
import sacrebleu
from rouge_score import rouge_scorer

from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import scores

DATA = os.environ.get('LIGHTPAFF_DATA')
needs_data = pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')

REFERENCES = [
    'A dog runs across the green field.',
    'Two children are playing in the snow!',
    'Nobody knew, he said, that it was "over".',
    'Returns the sums and the count.',
    'One word.',
]
TEXTS = [
    'A dog is running across a green field.',
    'Two kids play in the snow!',
    'He said nobody knew that it was over .',
    'Returns the sums and the count.',
    '',
]


def perturb(lines, seed=0):
    """Returns the lines with random words dropped, doubled and swapped."""
    draw, texts = random.Random(seed), []
    for line in lines:
        words = line.split()
        words = [w for w in words for _ in range(draw.choice((0, 1, 1, 1, 1, 1, 2)))]
        if len(words) > 3 and draw.random() < 0.5:
            i = draw.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        texts.append(' '.join(words))
    return texts


def run_module(*words):
    process = subprocess.run([sys.executable, '-m', *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def write_lines(folder, name, lines):
    path = folder / name
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return str(path)


def assert_bleu_equals_sacrebleu(folder, texts, references):
    """Compares with the JSON of the command, which has all digits."""
    words = (
        write_lines(folder, 'references', references),
        '-i',
        write_lines(folder, 'texts', texts),
    )
    expected = json.loads(run_module('sacrebleu', *words, '--format', 'json', '--width', '14'))
    result = scores.bleu(texts, references)
    assert result['bleu'] == pytest.approx(expected['score'], rel=1e-12)
    assert result['bleu_signature'] == expected['signature']
    assert result['bleu'] > 1
    return result


def assert_rouge_equals_rouge_score(folder, texts, references):
    """Compares with the F-measure of each text; --aggregate would add a random interval."""
    out = folder / 'rouge.csv'
    words = [
        *('rouge_score.rouge', '--use_stemmer', '--noaggregate', f'--output_filename={out}'),
        f'--target_filepattern={write_lines(folder, "references", references)}',
        f'--prediction_filepattern={write_lines(folder, "texts", texts)}',
        '--rouge_types=rouge1,rouge2,rougeL',
    ]
    run_module(*words)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(texts)
    result = scores.rouge(texts, references)
    for name in ('rouge1', 'rouge2', 'rougeL'):
        # The file has six decimals per text.
        mean = 100 * sum(float(row[f'{name}-F']) for row in rows) / len(rows)
        assert result[name] == pytest.approx(mean, abs=1e-4)
        assert result[name] > 1
    return result


@pytest.mark.e2e
def test_bleu_equals_the_command_line_of_sacrebleu(tmp_path):
    assert_bleu_equals_sacrebleu(tmp_path, TEXTS, REFERENCES)


@pytest.mark.e2e
def test_rouge_equals_the_command_line_of_rouge_score(tmp_path):
    assert_rouge_equals_rouge_score(tmp_path, TEXTS, REFERENCES)


@pytest.mark.e2e
@needs_data
def test_bleu_of_translations_equals_the_command_line(tmp_path):
    file = pathlib.Path(DATA) / 'multi30k/test_2016_flickr.de'
    references = file.read_text(encoding='utf-8').splitlines()
    result = assert_bleu_equals_sacrebleu(tmp_path, perturb(references), references)
    assert 20 < result['bleu'] < 90


@pytest.mark.e2e
@needs_data
def test_rouge_of_summaries_equals_the_command_line(tmp_path):
    folder = pathlib.Path(DATA) / 'gigaword'
    articles, titles = (
        (folder / f'test.{side}.txt').read_text(encoding='utf-8').splitlines()
        for side in ('article', 'title')
    )
    texts = [' '.join(article.split()[:8]) for article in articles]  # the classic baseline
    result = assert_rouge_equals_rouge_score(tmp_path, texts, titles)
    assert 15 < result['rouge1'] < 40


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
def test_accuracy_f1_and_loss_equal_scikit_learn(share):
    reference = pytest.importorskip('sklearn.metrics')
    draw = np.random.default_rng(0)
    labels = (draw.random(997) < share).astype(np.int64)
    logits = (draw.normal(size=(997, 2)) + 0.7 * np.eye(2)[labels]).astype(np.float32)
    assert_scikit_learn(reference, logits, labels)


@pytest.mark.compare
@needs_data
def test_scores_of_real_labels_equal_scikit_learn():
    reference = pytest.importorskip('sklearn.metrics')
    with (pathlib.Path(DATA) / 'QQP/dev.tsv').open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    labels = np.array([int(row['is_duplicate']) for row in rows])
    pairs = [(set(row['question1'].split()), set(row['question2'].split())) for row in rows]
    alike = np.array([len(a & b) / len(a | b) for a, b in pairs])
    assert_scikit_learn(reference, np.stack([0.5 - alike, alike], 1).astype(np.float32), labels)


def assert_scikit_learn(reference, logits, labels):
    result = scores.classifier_scores(logits, labels)
    predicted = logits.argmax(1)
    assert result['accuracy'] == reference.accuracy_score(labels, predicted)
    assert result['f1'] == pytest.approx(reference.f1_score(labels, predicted), rel=1e-14)
    p = np.exp(scores.log_softmax(logits))
    assert result['ce'] == pytest.approx(reference.log_loss(labels, p), rel=1e-12)


def test_teacher_is_compared_at_the_temperature():
    logits, teacher = np.float32([[1, 2], [0, 3]]), np.float32([[2, 1], [1, 3]])
    result = scores.classifier_scores(logits, np.array([0, 1]), teacher, 2.0)
    kl = 0.0
    for s, t in zip(logits.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(x / 2) for x in row] for row in (s, t))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        kl += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / 2
    assert result['kl'] == pytest.approx(kl, rel=1e-12)
    assert result['agreement'] == 0.5
    nll = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))
    assert result['teacher_ce'] == pytest.approx(nll / 2, rel=1e-12)


def test_f1_requires_two_classes():
    result = scores.classifier_scores(np.eye(3, dtype=np.float32), np.arange(3))
    assert set(result) == {'ce', 'accuracy'}


# Texts of other scripts. Each is 4 words or more, and its own reference.
SCRIPTS = {
    'Latin': 'Der Hund läuft über die grüne Wiese.',
    'Cyrillic': 'собака бежит по зелёному полю',
    'Greek': 'ένας σκύλος τρέχει στο πράσινο λιβάδι',
    'Hebrew': 'הכלב רץ על פני השדה הירוק',
    'Devanagari': 'कुत्ता हरे मैदान में दौड़ता है',
    'Hangul': '개가 푸른 들판을 가로질러 달린다',
    'Han': '一只狗在绿色的草地上奔跑',
    'Japanese': '犬が緑の野原をかけていく',
    'Thai': 'สุนัขวิ่งข้ามทุ่งหญ้าสีเขียว',
}
READ = {  # metric, config.eval.tokenize -> the scripts that it divides into words
    ('bleu', 'default'): ('Latin', 'Cyrillic', 'Greek', 'Hebrew', 'Devanagari', 'Hangul'),
    ('bleu', 'intl'): ('Latin', 'Cyrillic', 'Greek', 'Hebrew', 'Devanagari', 'Hangul'),
    ('bleu', 'zh'): ('Latin', 'Cyrillic', 'Greek', 'Hebrew', 'Devanagari', 'Hangul', 'Han'),
    ('bleu', 'char'): tuple(SCRIPTS),
    ('rougeL', 'default'): ('Latin',),
    ('rougeL', 'intl'): ('Latin', 'Cyrillic', 'Greek', 'Hebrew', 'Devanagari', 'Hangul'),
    ('rougeL', 'zh'): ('Latin', 'Cyrillic', 'Greek', 'Hebrew', 'Devanagari', 'Hangul', 'Han'),
    ('rougeL', 'char'): tuple(SCRIPTS),
}


@pytest.mark.parametrize(('metric', 'tokenize'), READ)
def test_equal_texts_score_100_or_are_refused(metric, tokenize):
    for script, text in SCRIPTS.items():
        score = scores.GENERATION_SCORES[metric]
        if script in READ[metric, tokenize]:
            assert score([text], [text], tokenize)[metric] == pytest.approx(100)
            continue
        with pytest.raises(UserError) as caught:
            score([''], [text], tokenize)
        usable = [other for name, other in READ if name == metric and script in READ[name, other]]
        line = str(caught.value)
        assert line.startswith(f'config.eval.tokenize = {tokenize!r}: {metric[:5]} finds no words')
        assert line.endswith(f'must be {" or ".join(map(repr, usable))} for this text')


def test_a_few_letters_of_another_script_are_not_refused():
    references = [*REFERENCES, 'The Greek letter π is used.']
    assert scores.bleu(references, references)['bleu'] == pytest.approx(100)
    assert scores.rouge(references, references)['rouge1'] == pytest.approx(100)
    with pytest.raises(UserError, match="4% of the letters of the references, such as 'п'"):
        scores.rouge(REFERENCES, [*REFERENCES[:-1], 'привп'])


@pytest.mark.parametrize('tokenize', ['intl', 'zh', 'char'])
def test_scores_of_other_words_equal_sacrebleu_and_rouge_score(tokenize):
    references = [*REFERENCES, SCRIPTS['Latin'], 'собака, бежит.'] * 2
    texts = perturb(references, 3)
    texts[0] = ''
    expected = sacrebleu.corpus_bleu(texts, [references], tokenize=tokenize)
    assert scores.bleu(texts, references, tokenize)['bleu'] == expected.score

    class Words:
        def tokenize(self, text):
            words = sacrebleu.BLEU(tokenize=tokenize).tokenizer(text.lower())
            return list(text.lower().replace(' ', '')) if tokenize == 'char' else words.split()

    scorer = rouge_scorer.RougeScorer(['rouge2'], tokenizer=Words())
    rows = [scorer.score(r, t)['rouge2'].fmeasure for r, t in zip(references, texts, strict=True)]
    result = scores.rouge(texts, references, tokenize)
    assert result['rouge2'] == pytest.approx(100 * sum(rows) / len(rows), rel=1e-12)
    assert 0 < result['rouge2'] < 100


def test_bleu_of_references_below_4_words_is_refused():
    assert scores.bleu(['', ''], ['Three words here', 'here are four words'])['bleu'] == 0
    line = 'bleu: no reference has 4 words, so that even equal texts would have 0'
    with pytest.raises(UserError, match=line):
        scores.bleu(['Three words here'], ['Three words here'])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    logits, labels = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    damaged = logits.copy()
    damaged[1, 0] = value
    with pytest.raises(UserError, match=r'^logits: must be finite, those of 1 examples are not$'):
        scores.classifier_scores(damaged, labels)
    with pytest.raises(UserError, match=r'^teacher_logits: must be finite'):
        scores.classifier_scores(logits, labels, damaged)


def test_the_first_of_equal_logits_is_predicted():
    result = scores.classifier_scores(np.ones((4, 3), np.float32), np.array([0, 0, 1, 2]))
    assert result['accuracy'] == 0.5
    assert result['ce'] == pytest.approx(math.log(3), rel=1e-12)


@pytest.mark.parametrize('score', [scores.accuracy, scores.f1, scores.bleu, scores.rouge])
@pytest.mark.parametrize('pair', [(TEXTS, REFERENCES[1:]), ([], [])])
def test_different_or_no_lengths_are_an_error(score, pair):
    line = f'{len(pair[0])} predictions and {len(pair[1])} references: must be equally many'
    with pytest.raises(UserError, match=line):
        score(*pair)


def test_format_scores_is_one_line():
    assert scores.format_scores({'bleu': 12.34567891, 'bleu_signature': 'a|b'}) == (
        'bleu 12.3457, bleu_signature a|b'
    )
