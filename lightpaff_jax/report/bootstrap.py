"""By how much the two-stage student leads, with its error over test examples and seeds.

Both students have the same examples and the same seeds, so all errors are those of their differences.
The variance of the lead adds up two parts:

    examples  variance of the mean lead over seeds, from a paired bootstrap of the examples
    seeds     s^2 / k, from the leads of k seeds. Resampling so few seeds would underestimate it

The interval and p are those of a t distribution. Its degrees of freedom are k - 1 if only seeds vary,
and grow as examples dominate (Satterthwaite). With one seed, only the examples count.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Satterthwaite, An
Approximate Distribution of Estimates of Variance Components, 1946.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lightpaff_jax.errors import UserError
from lightpaff_jax.report.results import Metric, Row
from lightpaff_jax.runtime import json_file

RESAMPLES = 10_000
_LEAST_P = 2 / (RESAMPLES + 1)  # so many resamples cannot support a smaller p
_CELLS = 1 << 18  # examples that are drawn at a time; their counts fit into the cache
_MULTINOMIAL = 20  # drawing one count costs about as much as drawing this many examples

# Metric -> form of a line of predictions/test.jsonl.
_CLASS = {'index': int, 'label': int, 'predicted': int}
_LINES = {
    'accuracy': _CLASS,
    'f1': _CLASS,
    'perplexity': {'index': int, 'nll': float, 'tokens': int},
}

Sums = Float[np.ndarray, 'N 2']
"""Two sums of each example, of which `_score` computes the metric."""


class Lead(NamedTuple):
    """The lead of the two-stage student over another one; positive is better."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    p: float  # two-sided, at least _LEAST_P
    examples: int
    by_seed: Float[np.ndarray, ' S']
    resamples: Float[np.ndarray, ' R']
    """Means over seeds, on resampled examples."""

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    def __str__(self) -> str:
        return f'{self.mean:+.2f} [{self.low:.2f}, {self.high:.2f}], {self.format_p()}'

    def format_p(self) -> str:
        """Formats p as 'p = 0.042' or 'p < 0.001'."""
        return 'p < 0.001' if self.p < 0.001 else f'p = {self.p:.3f}'


Leads = dict[str, Lead]
"""Student -> the lead of two-stage over it."""


def leads(workdir: pathlib.Path, rows: dict[str, Row]) -> Leads:
    """Compares the two-stage student of a task with each other student, on the test split.

    Returns:
      student -> the lead over it, without those of which a file of predictions does not exist; {}
      for a metric that is no function of sums over examples, such as BLEU.

    Raises:
      UserError: a file of predictions is invalid, or two files have different examples.
    """
    if 'two_stage' not in rows or rows['two_stage'].metric.key not in _LINES:
        return {}
    sums: dict[str, dict[int, Sums]] = {}
    indices: list[int] = []
    for key, row in rows.items():
        paths = {
            seed: workdir / runs[-1] / 'predictions' / 'test.jsonl'
            for seed, runs in zip(row.seeds, row.runs, strict=True)
        }
        if key == 'teacher' or not all(path.is_file() for path in paths.values()):
            continue
        sums[key] = {}
        for seed, path in paths.items():
            lines = json_file.read_lines(path, _LINES[row.metric.key])
            lines.sort(key=lambda line: line['index'])
            indices = indices or [line['index'] for line in lines]
            if not lines or [line['index'] for line in lines] != indices:
                raise UserError(f'{path}: must have the same examples as the other students')
            sums[key][seed] = _sums(row.metric.key, lines)
    two_stage, metric = sums.pop('two_stage', {}), rows['two_stage'].metric
    return {
        key: _lead(metric, two_stage, other)
        for key, other in sums.items()
        if two_stage.keys() & other.keys()
    }


def pool(tasks: Sequence[Lead]) -> Lead:
    """Returns the mean of the leads of several tasks over the same student."""
    # A seed's students share their pre-training, so the tasks of a seed vary together.
    seeds = min(task.seeds for task in tasks)
    by_seed = np.mean([task.by_seed[:seeds] for task in tasks], axis=0)
    resamples = np.mean([task.resamples for task in tasks], axis=0)
    mean = float(np.mean([task.mean for task in tasks]))
    return _summarize(mean, resamples, by_seed, sum(task.examples for task in tasks))


def _sums(metric: str, lines: Sequence[dict[str, Any]]) -> Sums:
    if metric == 'perplexity':
        return np.array([(line['nll'], line['tokens']) for line in lines], float)
    label, predicted = (np.array([line[key] for line in lines]) for key in ('label', 'predicted'))
    correct = label == predicted
    columns = (correct & (label == 1), ~correct) if metric == 'f1' else (correct, correct | True)
    return np.stack(columns, axis=1).astype(float)


def _score(metric: str, sums: Float[np.ndarray, '... 2']) -> Float[np.ndarray, '...']:
    """Returns the score, as a report prints it, of sums over the drawn examples."""
    a, b = sums[..., 0], sums[..., 1]
    if metric == 'f1':  # true positives, errors
        return 100 * 2 * a / np.maximum(2 * a + b, 1)
    ratio = a / np.maximum(b, 1)
    return np.exp(ratio) if metric == 'perplexity' else 100 * ratio


def _lead(metric: Metric, two_stage: dict[int, Sums], other: dict[int, Sums]) -> Lead:
    """Compares two students, given the sums of each seed, on the seeds that both have."""
    seeds = [seed for seed in two_stage if seed in other]
    sums_NK = np.concatenate([of[seed] for of in (two_stage, other) for seed in seeds], axis=1)
    # Equal examples are drawn together: only their number counts.
    distinct, counts = np.unique(sums_NK, axis=0, return_counts=True)
    random = np.random.default_rng(0)
    sums_RK = [counts[None] @ distinct]  # the first line has each example once
    size = max(1, _CELLS // len(sums_NK))
    for start in range(0, RESAMPLES, size):
        drawn = _draw(random, counts, min(size, RESAMPLES - start))
        sums_RK.append(drawn.astype(float) @ distinct)
    scores_RS = _score(metric.key, np.concatenate(sums_RK).reshape(1 + RESAMPLES, -1, 2))
    leads_RS = scores_RS[:, : len(seeds)] - scores_RS[:, len(seeds) :]
    leads_RS = leads_RS if metric.higher_is_better else -leads_RS
    by_seed, resamples = leads_RS[0], leads_RS[1:].mean(axis=1)
    return _summarize(float(by_seed.mean()), resamples, by_seed, len(sums_NK))


def _draw(
    random: np.random.Generator, counts: Int[np.ndarray, ' U'], resamples: int
) -> Int[np.ndarray, 'R U']:
    """Returns how often each distinct example, which occurs `counts` times, is in each resample."""
    examples, distinct = int(counts.sum()), len(counts)
    if _MULTINOMIAL * distinct < examples:
        return random.multinomial(examples, counts / examples, size=resamples)
    drawn = random.integers(examples, size=(resamples, examples))
    drawn = np.repeat(np.arange(distinct), counts)[drawn]
    drawn += distinct * np.arange(resamples)[:, None]  # resamples are counted apart
    return np.bincount(drawn.ravel(), minlength=resamples * distinct).reshape(resamples, -1)


def _summarize(
    mean: float, resamples: Float[np.ndarray, ' R'], by_seed: Float[np.ndarray, ' S'], examples: int
) -> Lead:
    seeds = len(by_seed)
    of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = float(resamples.var()) + of_seeds
    if not variance:
        return Lead(mean, mean, mean, 1.0 if mean == 0 else _LEAST_P, examples, by_seed, resamples)
    degrees = (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds else np.inf
    error = variance**0.5
    reach = float(stats.t.ppf(0.975, degrees)) * error
    p = max(_LEAST_P, 2 * float(stats.t.sf(abs(mean) / error, degrees)))
    return Lead(mean, mean - reach, mean + reach, p, examples, by_seed, resamples)
