"""Scores of a model on a split: every example once, padding with weight 0."""

from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh

from lightpaff_jax import metrics, sharding
from lightpaff_jax.batch import Batch


def language_model(evaluate: Callable, params, teacher_params, batches: Iterable[Batch],
                   mesh: Mesh, stats: dict) -> dict[str, float]:  # fmt: skip
    """Perplexity of one pass over a split.

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
      also its kl and agreement. Of a split read in part, words are counted in proportion.
    """
    total = None
    for batch in batches:
        sums = evaluate(params, teacher_params, sharding.put_batch(mesh, batch, micro=False))
        sums = {name: float(x) for name, x in jax.device_get(sums).items()}  # float64 from here
        total = sums if total is None else metrics.add(total, sums)
    assert total is not None, 'an empty split stops in data/'
    means = metrics.means(total)
    words = stats['words'] * total['labelled'] / stats['tokens']
    scores = {
        'ce': means['ce'],
        'perplexity': means['perplexity'],
        'word_perplexity': metrics.exp(total['ce'] / words),
        'accuracy': means['accuracy'],
        'tokens': round(total['labelled']),
        'words': round(words),
    }
    if 'kl' in means:
        scores |= {name: means[name] for name in ('kl', 'agreement', 'teacher_ce')}
    return scores


EVALS = {'clm': language_model}
"""Objective -> its scores."""
