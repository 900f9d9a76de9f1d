"""Scores of predictions against what is right: lists in, numbers out."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lightpaff_jax.errors import UserError

ROUGE = ('rouge1', 'rouge2', 'rougeL')


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Share of the predictions that are the label.

    Raises:
      UserError: there are none, or not as many of both; so of all scores here.
    """
    _check(predicted, labels)
    return sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)


def f1(predicted: Sequence[int], labels: Sequence[int], positive: int = 1) -> float:
    """F1 of one class: 2 TP / (2 TP + FP + FN); 0 where it is neither predicted nor a label."""
    _check(predicted, labels)
    pairs = [(p == positive, y == positive) for p, y in zip(predicted, labels, strict=True)]
    hits, either = sum(p and y for p, y in pairs), sum(p + y for p, y in pairs)
    return 2 * hits / either if either else 0.0


def bleu(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """BLEU of a corpus with one reference each, in percent, as sacrebleu computes it by default.

    Returns:
      bleu, and bleu_signature: sacrebleu's text that says how. Post, arXiv 1804.08771.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check(texts, references)
    metric = BLEU()
    found = metric.corpus_score(list(texts), [list(references)])
    return {'bleu': found.score, 'bleu_signature': str(metric.get_signature())}


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """ROUGE-1, -2 and -L: F of each text, words stemmed (Porter), their mean, in percent.

    As rouge-score computes it, which lowers the case and drops all but a-z and 0-9.

    Returns:
      rouge1, rouge2, rougeL. Lin, 2004: ROUGE, a package for automatic evaluation of summaries.
    """
    from rouge_score import rouge_scorer  # 1.5 s of nltk, which few commands need

    _check(texts, references)
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    found = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    return {
        name: 100 * math.fsum(one[name].fmeasure for one in found) / len(found) for name in ROUGE
    }


OF_TEXTS = {'bleu': bleu, **dict.fromkeys(ROUGE, rouge)}
"""Metric of `config.GENERATION_METRICS` -> function `(texts, references) -> scores`."""


def of_logits(logits_BV: Float[np.ndarray, 'B V'], labels_B: Int[np.ndarray, ' B'],
              teacher_BV: Float[np.ndarray, 'B V'] | None = None,
              temperature: float = 1.0) -> dict[str, float]:  # fmt: skip
    """Scores of a classifier, in float64.

    Args:
      logits_BV: of each example.
      labels_B: the right classes, each below V.
      teacher_BV: the teacher's logits, or None.
      temperature: both are softened with for `kl`.

    Returns:
      ce (nats an example), accuracy, of two classes also f1 of class 1; with a teacher kl
      (KL(teacher || student), nats), agreement (same class), teacher_ce.
    """
    labels, predicted = labels_B.tolist(), logits_BV.argmax(1).tolist()
    found = {'ce': _nll(logits_BV, labels_B), 'accuracy': accuracy(predicted, labels)}
    if logits_BV.shape[1] == 2:
        found['f1'] = f1(predicted, labels)
    if teacher_BV is None:
        return found
    log_p = log_softmax(logits_BV / temperature)
    log_q = log_softmax(teacher_BV / temperature)
    return found | {
        'kl': float((np.exp(log_q) * (log_q - log_p)).sum(1).mean()),
        'agreement': accuracy(predicted, teacher_BV.argmax(1).tolist()),
        'teacher_ce': _nll(teacher_BV, labels_B),
    }


def log_softmax(logits_BV: Float[np.ndarray, 'B V']) -> Float[np.ndarray, 'B V']:
    """Logarithms of the probabilities, float64."""
    x = logits_BV.astype(np.float64)
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def said(scores: dict[str, float | str]) -> str:
    """Scores as a line for people."""
    return ', '.join(
        f'{name} {value}' if isinstance(value, str) else f'{name} {value:.6g}'
        for name, value in scores.items()
    )


def _nll(logits_BV, labels_B) -> float:
    log_p = log_softmax(logits_BV)
    return float(-np.take_along_axis(log_p, labels_B[:, None], 1).mean())


def _check(predicted: Sequence, references: Sequence) -> None:
    if len(predicted) != len(references) or not len(predicted):
        raise UserError(
            f'{len(predicted)} predictions and {len(references)} references: must be as many of '
            'both, at least one'
        )
