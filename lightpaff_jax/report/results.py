"""The results of a recipe's runs: reads and checks their files, and computes scores and costs.

A task has a row for the teacher and for each student. A row has the results of each seed.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lightpaff_jax import config
from lightpaff_jax.config.objectives import Objective
from lightpaff_jax.errors import UserError, nearest, one_line

T = TypeVar('T')
GREY = '#8a8f98'
# Row -> label and colour. Each colour has a contrast of at least 3 on white and on black.
ROWS = {
    'teacher': ('teacher', GREY),
    'two_stage': ('two-stage', '#1f80e0'),
    'two_stage_unlabelled': ('two-stage, unlabelled text too', '#d6409f'),
    'stage1_only': ('stage 1 only', '#12977f'),
    'stage2_only': ('stage 2 only', '#a26be0'),
    'no_teacher': ('no teacher', '#d9480f'),
    'no_teacher_equal_flops': ('no teacher, equal FLOPs', '#b07d05'),
}
# Keys of result.json.
COSTS = ['updates', 'tokens', 'seconds', 'flops', 'tokens_per_second', 'parameters', 'bytes']
PROVENANCE = ['versions', 'git_commit', 'hardware', 'seed', 'teacher_hash', 'tokenizer_hash']
RESULT_KEYS = ['objective', 'protocol', 'scores', *PROVENANCE]
# `outputs` of an objective -> keys of scores.test, in addition to the metric and its companions.
SCORES = {
    'sums': ['ce', 'perplexity', 'accuracy', 'tokens'],
    'rows': ['ce', 'perplexity', 'word_perplexity', 'accuracy', 'tokens', 'words'],
    'logits': ['ce', 'accuracy', 'examples'],
}
SPEED_KEYS = ('task', 'batch_size', 'length', 'pairs', 'hardware', 'teacher', 'student', 'ratios')
# Key in speed.json -> label, factor, decimal places, and the key of its ratio.
SPEED = {
    'parameters': ('parameters', 1, 0, 'parameters'),
    'bytes': ('size, MB', 1e-6, 1, 'bytes'),
    'flops': ('FLOPs per example', 1, 0, 'flops'),
    'latency_ms': ('latency, ms', 1, 2, 'latency'),
    'tokens_per_second': ('tokens/s', 1, 0, 'throughput'),
}
_TIMED = ('latency', 'throughput')

# The results of one seed's runs: pre-training, unless the teacher is imported, then fine-tuning.
Results = Sequence[dict]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A test score on which the runs of a task are compared."""

    key: str  # in scores.test of result.json, and the value of its key 'metric'
    name: str
    higher_is_better: bool
    factor: float  # from the stored to the printed value
    unit: str
    gap_unit: str  # of a difference
    maximum: float  # largest possible stored value
    companions: tuple[str, ...] = ()  # keys of the scores that are printed next to it

    def value(self, results: Results) -> float:
        """Returns the score of one seed's last run, as printed."""
        return self.factor * score(self.key)(results)

    @property
    def label(self) -> str:
        """Label of a column or an axis."""
        return f'{self.name},{self.unit}' if self.unit else self.name


_CLASSIFICATION = (True, 100, ' %', ' percentage points', 1)
_GENERATION = (True, 1, '', ' points', 100)
# Where several scores of a task are printed, they have this order.
METRICS = {
    metric.key: metric
    for metric in (
        Metric('f1', 'F1', *_CLASSIFICATION, ('accuracy',)),
        Metric('accuracy', 'accuracy', *_CLASSIFICATION),
        Metric('perplexity', 'perplexity', False, 1, '', '', math.inf),
        Metric('bleu', 'BLEU', *_GENERATION),
        Metric('rouge1', 'ROUGE-1', *_GENERATION, ('rouge2', 'rougeL')),
        Metric('rouge2', 'ROUGE-2', *_GENERATION, ('rouge1', 'rougeL')),
        Metric('rougeL', 'ROUGE-L', *_GENERATION, ('rouge1', 'rouge2')),
    )
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a task's table: the teacher or a student, with an entry for each finished seed."""

    label: str
    colour: str
    seeds: tuple[int, ...]
    runs: tuple[tuple[str, ...], ...]  # names of each seed's runs
    results: tuple[tuple[dict, ...], ...]  # results of each seed's runs

    @property
    def objective(self) -> Objective:
        """Objective of the last runs; all rows of a task have the same."""
        return config.OBJECTIVES[self.results[0][-1]['objective']]

    @property
    def metric(self) -> Metric:
        """Metric of the last runs; all rows of a task have the same."""
        metric = METRICS[self.results[0][-1]['metric']]
        if metric.key != 'perplexity':
            return metric
        unit = self.objective.perplexity_unit
        return dataclasses.replace(metric, name=f'perplexity per {unit}')

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return self.results[0][-1]['parameters']


def score(name: str) -> Callable[[Results], float]:
    """Returns a function that reads a test score of one seed's last run."""
    return lambda results: results[-1]['scores']['test'][name]


def has_score(row: Row, name: str) -> bool:
    """Returns whether the last run of every seed has a test score."""
    return all(name in results[-1]['scores']['test'] for results in row.results)


def total(name: str) -> Callable[[Results], float]:
    """Returns a function that adds up a cost over one seed's runs."""
    return lambda results: sum(result[name] for result in results)


def throughput(results: Results) -> float:
    """Returns training tokens/s over all runs of a seed: their tokens divided by their time.

    The time of a run is computed from its own rate, which excludes start-up and evaluation.
    """
    seconds = sum(result['tokens'] / result['tokens_per_second'] for result in results)
    return total('tokens')(results) / seconds


def binomial_error(results: Results) -> float:
    """Returns the standard error of an accuracy p over n examples, 100 sqrt(p (1 - p) / n), in %."""
    p, n = score('accuracy')(results), score('examples')(results)
    return 100 * math.sqrt(p * (1 - p) / n)


def values(row: Row, measure: Callable[[Results], float] | None = None) -> list[float]:
    """Returns the measure of each seed; the default measure is the row's metric."""
    return [(measure or row.metric.value)(results) for results in row.results]


def mean(row: Row, measure: Callable[[Results], float] | None = None) -> float:
    """Returns the mean of a measure over seeds; the default measure is the row's metric."""
    return statistics.fmean(values(row, measure))


def teacher_share(row: Row, teacher: Row) -> list[float] | None:
    """Returns each seed's share of the teacher's mean score, in %.

    The share is the ratio of the scores. For perplexity it is the teacher's negative
    log-likelihood per token divided by that of the row, since perplexity has no upper limit.

    Returns:
      One value per seed, or None if a denominator is 0.
    """
    if row.metric.higher_is_better:
        reference = mean(teacher)
        return [100 * value / reference for value in values(row)] if reference else None
    nlls = values(row, score('ce'))
    return [100 * mean(teacher, score('ce')) / nll for nll in nlls] if all(nlls) else None


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error sd / sqrt(n), with n - 1 in sd.

    The error of a single value is None.
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def format_mean(values: Sequence[float], digits: int) -> str:
    """Formats mean and standard error as '12.30 ± 0.04', with more digits for a small error."""
    mean, error = mean_error(values)
    if error is None:
        return f'{mean:.{digits}f}'
    digits = error_digits(error, digits)
    return f'{mean:.{digits}f} ± {error:.{digits}f}'


def error_digits(error: float, digits: int) -> int:
    """Returns the decimal places that show an error: at least `digits`, and at most two more."""
    return min(max(digits, -math.floor(math.log10(error))), digits + 2) if error else digits


def check_choice(where: str, value: object, choices: Iterable[str]) -> None:
    """Raises UserError if a value is not one of the choices."""
    choices = list(choices)
    if value not in choices:
        listed = ', '.join(choice or "''" for choice in choices)
        near = nearest(str(value), choices)
        raise UserError(f'{where} = {value!r}: must be one of {listed}{near}')


def check_keys(where: str, record: object, keys: Iterable[str]) -> None:
    """Raises UserError if a value from a JSON file is not an object with the keys."""
    for key in keys:
        if not isinstance(record, dict) or key not in record:
            raise UserError(f'{where}: must have the key {key!r}')


def check_numbers(where: str, record: object, keys: Sequence[str]) -> None:
    """Raises UserError if a value from a JSON file is not an object with numbers under the keys."""
    check_keys(where, record, keys)
    assert isinstance(record, dict)
    for key in keys:
        if not isinstance(record[key], int | float):
            raise UserError(f'{where}: {key} = {record[key]!r}: must be a number')


def read_lines(path: pathlib.Path, parse: Callable[[Any], T]) -> list[T]:
    """Returns `parse` of each value in a file of JSON lines.

    Raises:
      UserError: a line is not JSON, or lacks a key or a type that `parse` needs.
    """
    values = []
    # Reads bytes, so that invalid UTF-8 is reported as an invalid line of JSON.
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            values.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: line {number} cannot be read: {error}') from error
    return values


def _read_json(path: pathlib.Path, keys: Iterable[str]) -> dict:
    try:
        record = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read: {one_line(error)}') from error
    check_keys(str(path), record, keys)
    return record


def _read_result(folder: pathlib.Path) -> dict | None:
    path = folder / 'result.json'
    if not path.exists():
        return None
    result = _read_json(path, RESULT_KEYS)
    check_numbers(str(path), result, COSTS)
    check_choice(f'{path}: objective', result['objective'], config.OBJECTIVES)
    metrics = config.OBJECTIVES[result['objective']].metrics
    result.setdefault('metric', metrics[0])  # older files do not have it
    check_choice(f'{path}: metric', result['metric'], metrics)
    if not isinstance(result['scores'], dict):
        raise UserError(f'{path}: scores: must be an object')
    if 'test' in result['scores']:
        _check_scores(f'{path}: scores.test', result)
    return result


def _check_scores(where: str, result: dict) -> None:
    test, objective = result['scores']['test'], config.OBJECTIVES[result['objective']]
    metric = METRICS[result['metric']]
    check_numbers(where, test, [*SCORES[objective.outputs], metric.key, *metric.companions])
    for key in objective.metrics:
        maximum, value = METRICS[key].maximum, test.get(key, 0)
        if math.isfinite(value) and not 0 <= value <= maximum:
            raise UserError(f'{where}.{key} = {value}: must be in [0, {maximum}]')
    count = f'{objective.unit}s'
    if not test[count] >= 1:
        raise UserError(f'{where}.{count} = {test[count]}: must be at least 1')


def read(workdir: pathlib.Path) -> tuple[dict, dict[str, dict[str, Row]], list[str]]:
    """Reads recipe.json and the results of its runs.

    Returns:
      recipe: content of recipe.json.
      tasks: task name -> its finished rows, in the order of ROWS; a task without any is absent.
      missing: the runs that are not counted, with the reason if they have a result.

    Raises:
      UserError: the folder does not exist, no row is finished, or a file is invalid.
    """
    if not workdir.is_dir():
        raise UserError(f'{workdir}: no such folder')
    recipe = _read_json(workdir / 'recipe.json', ('name', 'tasks'))
    if not isinstance(recipe['tasks'], dict) or not recipe['tasks']:
        raise UserError(f'{workdir}/recipe.json: tasks: must name at least one task')
    places = {task: f'{workdir}/recipe.json: task {task!r}' for task in recipe['tasks']}
    entries = {task: _entries(places[task], entry) for task, entry in recipe['tasks'].items()}
    runs = dict.fromkeys(run for task in entries.values() for _, _, runs in task for run in runs)
    results = {run: _read_result(workdir / run) for run in runs}
    missing = [run for run, result in results.items() if result is None]
    rows = {task: _rows(places[task], entries[task], results, missing) for task in entries}
    tasks = {task: rows[task] for task in rows if rows[task]}
    if not tasks:
        raise UserError(f'{workdir}: nothing is finished, no result of {", ".join(missing)}')
    return recipe, tasks, missing


def _entries(where: str, task: dict) -> list[tuple[str, Any, list[str]]]:
    """Returns the row, the seed and the runs of each entry of a task in recipe.json.

    The seed of the teacher is None, since only its result.json has it.
    """
    check_keys(where, task, ('teacher', 'students'))
    entries: list = [('teacher', None, task['teacher'])]
    for entry in task['students']:
        check_keys(f'{where}: {entry}', entry, ('student', 'seed', 'runs'))
        check_choice(f'{where}: student', entry['student'], [*ROWS][1:])
        entries.append((entry['student'], entry['seed'], entry['runs']))
    if not all(runs for _, _, runs in entries):
        raise UserError(f'{where}: teacher and runs: must name at least one run')
    return entries


def _rows(
    where: str, entries: Sequence, results: dict[str, dict | None], missing: list[str]
) -> dict[str, Row]:
    """Returns the finished rows of a task; adds runs without a valid score to `missing`."""
    seeds: dict[str, list] = {key: [] for key in ROWS}
    for key, seed, runs in entries:
        finished = tuple(result for run in runs if (result := results[run]) is not None)
        if len(finished) < len(runs):
            continue
        if reason := _invalid_score(finished[-1]):
            missing.append(f'{runs[-1]} ({reason})')
            continue
        seed = finished[-1]['seed'] if seed is None else seed
        seeds[key].append((seed, tuple(runs), finished))
    rows = {key: Row(*ROWS[key], *zip(*seeds[key], strict=True)) for key in seeds if seeds[key]}
    for setting in ('objective', 'metric'):
        names = {results[-1][setting] for row in rows.values() for results in row.results}
        if len(names) > 1:
            rule = f'its last runs must have one {setting}, not {" and ".join(sorted(names))}'
            raise UserError(f'{where}: {rule}')
    return rows


def _invalid_score(result: dict) -> str:
    """Returns why a run cannot be compared: it has no test scores or diverged; else ''."""
    if 'test' not in result['scores']:
        return 'no test scores'
    for key, name in ((result['metric'], result['metric']), ('ce', 'cross-entropy')):
        value = result['scores']['test'][key]
        if not math.isfinite(value):
            return f'test {name} {value}'
    return ''


def read_speed(workdir: pathlib.Path) -> dict | None:
    """Returns the checked speed.json, or None if the file does not exist.

    Raises:
      UserError: a number is not positive, or a ratio of sizes or FLOPs is not teacher / student.
    """
    path = workdir / 'speed.json'
    if not path.exists():
        return None
    speed, ratios = _read_json(path, SPEED_KEYS), [ratio for *_, ratio in SPEED.values()]
    for name, keys in (('teacher', [*SPEED]), ('student', [*SPEED]), ('ratios', ratios)):
        check_numbers(f'{path}: {name}', speed[name], keys)
        for key in keys:
            if not speed[name][key] > 0:
                raise UserError(f'{path}: {name}.{key} = {speed[name][key]}: must be above 0')
    for key, (*_, ratio) in SPEED.items():
        quotient, value = _ratios(speed, key, ratio)
        if ratio not in _TIMED and not math.isclose(value, quotient, rel_tol=1e-3):
            raise UserError(f'{path}: ratios.{ratio} = {value:.3g}: must be {quotient:.3g}')
    return speed


def unstable_timings(speed: dict) -> list[str]:
    """Returns the timed ratios of which two estimates differ twofold.

    One estimate is the median over pairs of measurements, the other the ratio of medians. They
    differ if another program ran during a part of the measurement.
    """
    ratios = {ratio: _ratios(speed, key, ratio) for key, (*_, ratio) in SPEED.items()}
    return [ratio for ratio in _TIMED if not 0.5 < ratios[ratio][1] / ratios[ratio][0] < 2]


def _ratios(speed: dict, key: str, ratio: str) -> tuple[float, float]:
    """Returns teacher / student (throughput: student / teacher), computed and as stored."""
    quotient = speed['teacher'][key] / speed['student'][key]
    return (1 / quotient if ratio == 'throughput' else quotient), speed['ratios'][ratio]
