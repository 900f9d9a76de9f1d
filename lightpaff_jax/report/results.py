"""The results of a recipe's runs: reads and checks their files, and computes scores and costs.

A task has a row for the teacher and for each student. A row has the results of each seed.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightpaff_jax import config
from lightpaff_jax.config.objectives import Objective
from lightpaff_jax.errors import UserError, nearest
from lightpaff_jax.runtime import json_file, storage

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
    'no_teacher_equal_time': ('no teacher, equal time', '#7d8b12'),
}
STAGE1 = ('two_stage', 'two_stage_unlabelled', 'stage1_only')  # rows whose pre-training distills
# Keys of result.json.
COSTS = ['updates', 'tokens', 'seconds', 'flops', 'tokens_per_second', 'parameters', 'bytes']
_RESULT = {
    **dict.fromkeys(COSTS, float),
    **dict.fromkeys(('objective', 'protocol', 'hardware', 'tokenizer_hash'), str),
    **dict.fromkeys(('git_commit', 'teacher_hash'), str | None),
    **dict.fromkeys(('metric?', 'task?', 'keep_best?'), str),
    'class_names?': [str],
    'flops_saved?': float,
    'best_update?': int,
    'scores': {str: {str: float | str | None}},
    'seed': int,
    'versions': {str: str},
}
_CANDIDATE = {'run': str, 'peak_lr': float, 'lambda_': float, 'score': float | None}
_SWEEP = dict.fromkeys(('phase', 'task', 'student', 'metric', 'chosen'), str)
RECIPE = {
    'name': str,
    'tasks': {str: {'teacher': [str], 'students': [{'student': str, 'seed': int, 'runs': [str]}]}},
    'notes?': [str],
    'teacher_cache?': {'flops': float, 'flops_saved': float},
    'sweeps?': [_SWEEP | {'candidates': [_CANDIDATE], 'share?': float}],
    'step_time_ratios?': {str: float},
    **dict.fromkeys(('family?', 'scale?', 'title?', 'command?'), str),
}
"""The form of recipe.json."""
# `outputs` of an objective -> keys of scores.test, in addition to the metric and its companions.
SCORES = {
    'sums': ['ce', 'perplexity', 'accuracy', 'tokens'],
    'rows': ['ce', 'perplexity', 'word_perplexity', 'accuracy', 'tokens', 'words'],
    'logits': ['ce', 'accuracy', 'examples'],
    'matching': ['matching', 'rows'],
}
# Key in speed.json -> label, factor, decimal places, and the key of its ratio.
SPEED = {
    'parameters': ('parameters', 1, 0, 'parameters'),
    'bytes': ('size, MB', 1e-6, 1, 'bytes'),
    'flops': ('FLOPs per example', 1, 0, 'flops'),
    'latency_ms': ('latency, ms', 1, 2, 'latency'),
    'tokens_per_second': ('tokens/s', 1, 0, 'throughput'),
}
_TIMED = ('latency', 'throughput')
_SPEED_FILE: dict[str, Any] = {
    **dict.fromkeys(('task', 'hardware'), str),
    **dict.fromkeys(('batch_size', 'length', 'pairs'), int),
    **dict.fromkeys(('teacher', 'student'), dict.fromkeys(SPEED, float)),
    'ratios': dict.fromkeys([ratio for *_, ratio in SPEED.values()], float),
}

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
        Metric('matching', 'matching loss', False, 1, '', '', math.inf),
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


def live_flops(results: Results) -> float:
    """Returns training FLOPs over one seed's runs, with the teacher counted in every update.

    A run with a cache of the teacher computes less, and its `flops_saved` is the rest.
    """
    return sum(result['flops'] + result.get('flops_saved', 0.0) for result in results)


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


def read_result(folder: pathlib.Path) -> dict | None:
    """Returns the checked result.json of a run, or None if the file does not exist.

    Raises:
      UserError: the file is invalid.
    """
    path = folder / 'result.json'
    if not path.exists():
        return None
    result = json_file.read(path, _RESULT)
    for key in COSTS:
        if not 0 < result[key] < math.inf:
            raise UserError(f'{path}: {key} = {result[key]}: must be above 0 and finite')
    check_choice(f'{path}: objective', result['objective'], config.OBJECTIVES)
    metrics = config.OBJECTIVES[result['objective']].metrics
    result.setdefault('metric', metrics[0])  # older files do not have it
    check_choice(f'{path}: metric', result['metric'], metrics)
    for scores in result['scores'].values():  # null stands for a number that is not finite
        scores |= {name: math.nan for name, value in scores.items() if value is None}
    if 'test' in result['scores']:
        _check_scores(f'{path}: scores.test', result)
    return result


def _check_scores(where: str, result: dict) -> None:
    test, objective = result['scores']['test'], config.OBJECTIVES[result['objective']]
    metric = METRICS[result['metric']]
    required = [*SCORES[objective.outputs], metric.key, *metric.companions]
    others = test.keys() - {'bleu_signature'}
    json_file.check(test, dict.fromkeys([*required, *others], float), where)
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
    recipe = json_file.read(workdir / 'recipe.json', RECIPE)
    if not recipe['tasks']:
        raise UserError(f'{workdir}/recipe.json: tasks: must name at least one task')
    places = {task: f'{workdir}/recipe.json: task {task!r}' for task in recipe['tasks']}
    entries = {task: _entries(places[task], entry) for task, entry in recipe['tasks'].items()}
    runs = dict.fromkeys(run for task in entries.values() for _, _, runs in task for run in runs)
    place = f'{workdir}/recipe.json: a run'
    results = {run: read_result(storage.member(workdir, run, place)) for run in runs}
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
    entries: list = [('teacher', None, task['teacher'])]
    for entry in task['students']:
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
    rows = {key: _row(key, *zip(*seeds[key], strict=True)) for key in seeds if seeds[key]}
    for setting in ('objective', 'metric'):
        names = {results[-1][setting] for row in rows.values() for results in row.results}
        if len(names) > 1:
            rule = f'its last runs must have one {setting}, not {" and ".join(sorted(names))}'
            raise UserError(f'{where}: {rule}')
    return rows


def _row(key: str, seeds: tuple, runs: tuple, results: tuple) -> Row:
    """Returns a row; its label tells whether its stage 1 was by matching losses."""
    label, colour = ROWS[key]
    objective = config.OBJECTIVES[results[0][0]['objective']]
    if key in STAGE1 and len(results[0]) > 1 and objective.outputs == 'matching':
        label += ', matching'
    return Row(label, colour, seeds, runs, results)


def stage1_note(rows: dict[str, Row]) -> str:
    """Returns a sentence on what stage 1 learned from the teacher; '' without a stage 1."""
    for key in STAGE1:
        if key in rows and len(rows[key].results[0]) > 1:
            objective = config.OBJECTIVES[rows[key].results[0][0]['objective']]
            if objective.outputs == 'matching':
                return (
                    'Stage 1 matches activations of the teacher; students without it, the baselines '
                    'included, are pre-trained on the same text by their own objective. '
                )
            return "Stage 1 learns from the teacher's logits. "
    return ''


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
    speed = json_file.read(path, _SPEED_FILE)
    for name in ('teacher', 'student', 'ratios'):
        for key in _SPEED_FILE[name]:
            if not 0 < speed[name][key] < math.inf:
                rule = 'must be above 0 and finite'
                raise UserError(f'{path}: {name}.{key} = {speed[name][key]}: {rule}')
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
