"""Scores of a model on a split: every example once, padding with weight 0."""

from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh

from lightpaff_jax import metrics, sharding
from lightpaff_jax.batch import Batch


def language_model(evaluate: Callable, params, teacher_params, batches: Iterable[Batch],
                   mesh: Mesh, stats: dict) -> dict[str, float]:  # fmt: skip
    """Perplexity of one pass over a split, where every token of a text is predicted.

    Per token: exp(nll / predicted tokens). Per word: exp(nll / words), words as counted in the
    original text with one end of line each, so that tokenizers can be compared.

    Args:
      evaluate: `distill_step.make_evaluation`'s function.
      params: of the model that is scored.
      teacher_params: of the teacher to compare with, or None.
      batches: every example of the split once.
      mesh: where the batches go.
      stats: the split's `tokens` and `words`, as prepared.

    Returns:
      ce (nats a token), perplexity, word_perplexity, accuracy, tokens, words; with a teacher
      also its kl, agreement and teacher_ce. Of a split read in part, words are counted in
      proportion.
    """
    total = _total(evaluate, params, teacher_params, batches, mesh)
    words = stats['words'] * total['labelled'] / stats['tokens']
    scores = _scores(total, 'tokens', 'perplexity')
    return scores | {'word_perplexity': metrics.exp(total['ce'] / words), 'words': round(words)}


def masked(evaluate: Callable, params, teacher_params, batches: Iterable[Batch], mesh: Mesh,
           stats: dict) -> dict[str, float]:  # fmt: skip
    """Perplexity of masked tokens, or of a masked fragment: arguments of `language_model`.

    Returns:
      ce (nats a predicted token), perplexity, accuracy, tokens; kl, agreement, teacher_ce.
    """
    del stats
    return _scores(_total(evaluate, params, teacher_params, batches, mesh), 'tokens', 'perplexity')


def classification(evaluate: Callable, params, teacher_params, batches: Iterable[Batch],
                   mesh: Mesh, stats: dict) -> dict[str, float]:  # fmt: skip
    """Accuracy of a classifier: arguments of `language_model`.

    Returns:
      accuracy, ce (nats an example), examples; kl, agreement, teacher_ce.
    """
    del stats
    return _scores(_total(evaluate, params, teacher_params, batches, mesh), 'examples')


def _total(evaluate, params, teacher_params, batches, mesh) -> dict[str, float]:
    """The sums of all batches, in float64."""
    total = None
    for batch in batches:
        sums = evaluate(params, teacher_params, sharding.put_batch(mesh, batch, micro=False))
        sums = {name: float(x) for name, x in jax.device_get(sums).items()}
        total = sums if total is None else metrics.add(total, sums)
    assert total is not None, 'an empty split stops in data/'
    return total


def _scores(total: dict[str, float], unit: str, *more: str) -> dict[str, float]:
    means = metrics.means(total)
    compared = ('kl', 'agreement', 'teacher_ce') if 'kl' in means else ()
    scores = {name: means[name] for name in ('ce', *more, 'accuracy', *compared)}
    return scores | {unit: round(total['labelled'])}


EVALS = {
    'clm': language_model,
    'mlm': masked,
    'mass': masked,
    'classify': classification,
    'seq2seq': language_model,
}
"""Objective -> its scores."""
