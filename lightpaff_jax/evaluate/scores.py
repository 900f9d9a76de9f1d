"""Computes scores of predicted classes, of logits and of generated text.

All scores of two sequences raise UserError if these are empty or differ in length.
"""

import collections
import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from lightpaff_jax import config
from lightpaff_jax.errors import Diverged, UserError

# Scripts without spaces between words, by the names of their letters. The tokenizer zh divides the
# first.
_SPACELESS = ('CJK ', 'HIRAGANA', 'KATAKANA', 'THAI', 'LAO', 'KHMER', 'MYANMAR', 'TIBETAN')
_OTHER_SCRIPTS = 0.01  # share of the letters of the references; names and quotations have some
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


def bleu(
    texts: Sequence[str], references: Sequence[str], tokenize: str = 'default'
) -> dict[str, float | str]:
    """Computes corpus BLEU in percent, with one reference each, as sacrebleu does.

    Args:
      texts: the generated texts.
      references: the texts to compare them with.
      tokenize: one of config.TOKENIZE; 'default' is sacrebleu's 13a.

    Returns:
      `bleu`, and `bleu_signature`, sacrebleu's description of its settings (Post, 2018, arXiv
      1804.08771).

    Raises:
      UserError: the references are in a script that this tokenizer does not divide into words, or
        none has the 4 words that BLEU needs.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check_lengths(texts, references)
    check_references('bleu', references, tokenize)
    metric = BLEU(tokenize=_bleu_tokenizer(tokenize))
    corpus_bleu = metric.corpus_score(list(texts), [list(references)])
    return {'bleu': corpus_bleu.score, 'bleu_signature': str(metric.get_signature())}


def rouge(
    texts: Sequence[str], references: Sequence[str], tokenize: str = 'default'
) -> dict[str, float | str]:
    """Computes ROUGE-1, -2 and -L (Lin, 2004): the mean F-measure of the texts in percent.

    The package rouge-score computes it. By default it lower-cases, drops all characters but a-z and
    0-9, and stems the words (Porter). Otherwise a tokenizer of sacrebleu divides the lower-cased
    text, and no word is stemmed.

    Args:
      texts: the generated texts.
      references: the texts to compare them with.
      tokenize: one of config.TOKENIZE.

    Returns:
      `rouge1`, `rouge2` and `rougeL`.

    Raises:
      UserError: the references are in a script that this tokenizer does not divide into words.
    """
    from rouge_score import rouge_scorer  # imports nltk, which takes 1.5 s

    _check_lengths(texts, references)
    check_references('rouge', references, tokenize)
    is_default = tokenize == 'default'
    words = None if is_default else _Words(tokenize)
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=is_default, tokenizer=words)
    rows = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    return {name: 100 * math.fsum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}


class _Words:
    """A tokenizer of sacrebleu with the interface of one of rouge-score."""

    def __init__(self, tokenize: str):
        from sacrebleu.metrics.bleu import BLEU

        self._tokenize = BLEU(tokenize=_bleu_tokenizer(tokenize)).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text.lower()).split()


def _bleu_tokenizer(tokenize: str) -> str:
    return '13a' if tokenize == 'default' else tokenize


def check_references(metric: str, references: Sequence[str], tokenize: str) -> None:
    """Checks that a metric can score the texts of a network against these references.

    Args:
      metric: 'bleu' or the name of a ROUGE.
      references: texts.
      tokenize: one of config.TOKENIZE.

    Raises:
      UserError: the references are in a script that this tokenizer does not divide into words, or
        none has the 4 words that BLEU needs.
    """
    _check_script(metric, references, tokenize)
    if metric != 'bleu':
        return
    words = _Words(tokenize)
    if all(len(words.tokenize(text)) < 4 for text in references):
        raise UserError('bleu: no reference has 4 words, so that even equal texts would have 0')


def _check_script(metric: str, references: Iterable[str], tokenize: str) -> None:
    """Checks that a metric divides references into words.

    rouge-score reads only Latin letters. The tokenizers of sacrebleu divide at spaces and
    punctuation, which some scripts lack between words: a long clause would be one word.

    Raises:
      UserError: more than _OTHER_SCRIPTS of the letters are of scripts that it does not divide.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in references:
        counts.update(text)
    letters = {char: count for char, count in counts.items() if char.isalpha()}
    unread = {
        choice: [char for char in letters if not _is_read(char, metric, choice)]
        for choice in config.TOKENIZE
    }
    total = sum(letters.values())
    share = {
        choice: sum(letters[char] for char in chars) / max(total, 1)
        for choice, chars in unread.items()
    }
    if share[tokenize] > _OTHER_SCRIPTS:
        usable = [choice for choice in config.TOKENIZE if share[choice] <= _OTHER_SCRIPTS]
        example = max(unread[tokenize], key=letters.__getitem__)
        raise UserError(
            f'config.eval.tokenize = {tokenize!r}: {metric} finds no words in {share[tokenize]:.0%} '
            f'of the letters of the references, such as {example!r}; must be '
            f'{" or ".join(map(repr, usable))} for this text'
        )


def _is_read(char: str, metric: str, tokenize: str) -> bool:
    script = unicodedata.name(char, '')
    if metric != 'bleu' and tokenize == 'default':
        return script.startswith('LATIN ')
    spaceless = {'zh': _SPACELESS[1:], 'char': ()}.get(tokenize, _SPACELESS)
    return not script.startswith(spaceless)


GENERATION_SCORES = {'bleu': bleu, **dict.fromkeys(ROUGE, rouge)}
"""Each metric of `config.GENERATION_METRICS` -> the function `(texts, references, tokenize) -> scores`."""


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
      Among classes with equal logits, the first is the prediction.

    Raises:
      Diverged: a logit is not finite.
    """
    for name, x_BV in (('logits', logits_BV), ('teacher_logits', teacher_BV)):
        if x_BV is not None and not np.isfinite(x_BV).all():
            rows = len(x_BV) - int(np.isfinite(x_BV).all(1).sum())
            raise Diverged(f'{name}: must be finite, those of {rows} examples are not')
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


def format_scores(scores: dict[str, float | str | None]) -> str:
    """Formats scores as one line, numbers with six digits; None is a number that is not finite."""

    def text(value: float | str | None) -> str:
        if isinstance(value, str):
            return value
        return 'not finite' if value is None or not math.isfinite(value) else f'{value:.6g}'

    return ', '.join(f'{name} {text(value)}' for name, value in scores.items())


def _cross_entropy(logits_BV, labels_B) -> float:
    log_p_BV = log_softmax(logits_BV)
    return float(-np.take_along_axis(log_p_BV, labels_B[:, None], 1).mean())


def _check_lengths(predicted: Sequence, references: Sequence) -> None:
    if len(predicted) != len(references) or not len(predicted):
        raise UserError(
            f'{len(predicted)} predictions and {len(references)} references: must be equally many, '
            'at least 1'
        )
