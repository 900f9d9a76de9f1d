"""Computes scores of predicted classes, of logits and of generated text.

All scores of two sequences raise UserError if these are empty or differ in length.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lightpaff_jax.errors import UserError

ROUGE = ('rouge1', 'rouge2', 'rougeL')


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Computes the fraction of predictions that equal their label."""
    _check_lengths(predicted, labels)
    return sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)


def f1(predicted: Sequence[int], labels: Sequence[int], positive: int = 1) -> float:
    """Computes F1 = 2 TP / (2 TP + FP + FN) of one class; 0 if it is never predicted nor a label."""
    _check_lengths(predicted, labels)
    pairs = [(p == positive, y == positive) for p, y in zip(predicted, labels, strict=True)]
    true_positives, positives = sum(p and y for p, y in pairs), sum(p + y for p, y in pairs)
    return 2 * true_positives / positives if positives else 0.0


def bleu(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Computes corpus BLEU in percent, with one reference each, by sacrebleu's defaults.

    Returns:
      `bleu`, and `bleu_signature`, sacrebleu's description of its settings (Post, 2018, arXiv
      1804.08771).
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_lengths(texts, references)
    metric = BLEU()
    corpus_bleu = metric.corpus_score(list(texts), [list(references)])
    return {'bleu': corpus_bleu.score, 'bleu_signature': str(metric.get_signature())}


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Computes ROUGE-1, -2 and -L (Lin, 2004): the mean F-measure of the texts in percent.

    The package rouge-score computes it: it lower-cases, drops all characters but a-z and 0-9, and
    stems the words (Porter).

    Returns:
      `rouge1`, `rouge2` and `rougeL`.
    """
    from rouge_score import rouge_scorer  # imports nltk, which takes 1.5 s

    _check_lengths(texts, references)
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    rows = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    return {name: 100 * math.fsum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}


GENERATION_SCORES = {'bleu': bleu, **dict.fromkeys(ROUGE, rouge)}
"""Each metric of `config.GENERATION_METRICS` -> the function `(texts, references) -> scores`."""


def classifier_scores(
    logits_BV: Float[np.ndarray, 'B V'],
    labels_B: Int[np.ndarray, ' B'],
    teacher_BV: Float[np.ndarray, 'B V'] | None = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Computes the scores of a classifier in float64.

    Args:
      logits_BV: the logits of each example.
      labels_B: the correct classes, each below V.
      teacher_BV: the teacher's logits, or None.
      temperature: the temperature of `kl`.

    Returns:
      `ce` (nats per example), `accuracy`, and for two classes `f1` of class 1. With a teacher also
      `kl` (KL(teacher || student), nats), `agreement` (share of equal predictions) and `teacher_ce`.
    """
    labels, predicted = labels_B.tolist(), logits_BV.argmax(1).tolist()
    scores = {'ce': _cross_entropy(logits_BV, labels_B), 'accuracy': accuracy(predicted, labels)}
    if logits_BV.shape[1] == 2:
        scores['f1'] = f1(predicted, labels)
    if teacher_BV is None:
        return scores
    log_p_BV = log_softmax(logits_BV / temperature)
    log_q_BV = log_softmax(teacher_BV / temperature)
    return scores | {
        'kl': float((np.exp(log_q_BV) * (log_q_BV - log_p_BV)).sum(1).mean()),
        'agreement': accuracy(predicted, teacher_BV.argmax(1).tolist()),
        'teacher_ce': _cross_entropy(teacher_BV, labels_B),
    }


def log_softmax(logits_BV: Float[np.ndarray, 'B V']) -> Float[np.ndarray, 'B V']:
    """Computes log-probabilities in float64."""
    x_BV = logits_BV.astype(np.float64)
    x_BV -= x_BV.max(1, keepdims=True)
    return x_BV - np.log(np.exp(x_BV).sum(1, keepdims=True))


def format_scores(scores: dict[str, float | str]) -> str:
    """Formats scores as one line, numbers with six digits."""
    return ', '.join(
        f'{name} {value}' if isinstance(value, str) else f'{name} {value:.6g}'
        for name, value in scores.items()
    )


def _cross_entropy(logits_BV, labels_B) -> float:
    log_p_BV = log_softmax(logits_BV)
    return float(-np.take_along_axis(log_p_BV, labels_B[:, None], 1).mean())


def _check_lengths(predicted: Sequence, references: Sequence) -> None:
    if len(predicted) != len(references) or not len(predicted):
        raise UserError(
            f'{len(predicted)} predictions and {len(references)} references: must be equally many, '
            'at least 1'
        )
