"""The results of a recipe's runs: reads and checks their files, and computes scores and costs.

A task has a row for the teacher and for each student. A row has the results of each seed.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence

from lightpaff_jax import config
from lightpaff_jax.errors import UserError, one_line

GREY = '#8a8f98'
ROWS = {
    'teacher': ('teacher', GREY),
    'two_stage': ('two-stage', '#1f80e0'),
    'two_stage_unlabelled': ('two-stage, unlabelled text too', '#d6409f'),
    'stage1_only': ('stage 1 only', '#12977f'),
    'stage2_only': ('stage 2 only', '#a26be0'),
    'no_teacher': ('no teacher', '#d9480f'),
    'no_teacher_equal_flops': ('no teacher, equal FLOPs', '#b07d05'),
}
"""Row -> label and colour. Each colour has a contrast of at least 3 on white and on black."""
NUMBERS = ('updates', 'tokens', 'seconds', 'flops', 'tokens_per_second', 'parameters', 'bytes')
RESULT_KEYS = (
    *NUMBERS,
    'scores',
    'versions',
    'git_commit',
    'hardware',
    'seed',
    'teacher_hash',
    'tokenizer_hash',
    'protocol',
    'objective',
)
SPEED_KEYS = ('task', 'batch_size', 'length', 'pairs', 'hardware', 'teacher', 'student', 'ratios')
SPEED = {
    'parameters': ('parameters', 1, 0, 'parameters'),
    'bytes': ('size, MB', 1e-6, 1, 'bytes'),
    'flops': ('FLOPs per example', 1, 0, 'flops'),
    'latency_ms': ('latency, ms', 1, 2, 'latency'),
    'tokens_per_second': ('tokens/s', 1, 0, 'throughput'),
}
"""Key in speed.json -> label, factor, decimal places, and the key of its ratio."""
_TIMED = ('latency', 'throughput')

Results = Sequence[dict]
"""The results of one seed's runs in order: pre-training, if it is part of the recipe, then fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A test score on which the runs of a task are compared."""

    key: str
    """Key in scores.test of result.json, and value of its key 'metric'."""
    name: str
    higher_is_better: bool
    factor: float
    """Factor from the stored to the printed value."""
    unit: str
    gap_unit: str
    """Unit of a difference."""
    maximum: float
    """Largest possible stored value."""
    companions: tuple[str, ...] = ()
    """Keys of the scores that are printed next to it."""

    def value(self, results: Results) -> float:
        """Returns the score of one seed's last run, as printed."""
        return self.factor * score(self.key)(results)

    def format(self, value: float) -> str:
        """Formats a value for a sentence: '31.05' or '91.20 %'."""
        return f'{value:.2f}{self.unit}'

    @property
    def label(self) -> str:
        """Label of a column or an axis."""
        return f'{self.name},{self.unit}' if self.unit else self.name


_CLASSIFICATION = (True, 100, ' %', ' percentage points', 1)
_GENERATION = (True, 1, '', ' points', 100)
METRICS = {
    'accuracy': Metric('accuracy', 'accuracy', *_CLASSIFICATION),
    'f1': Metric('f1', 'F1', *_CLASSIFICATION, ('accuracy',)),
    'perplexity': Metric('perplexity', 'perplexity', False, 1, '', '', math.inf),
    'bleu': Metric('bleu', 'BLEU', *_GENERATION),
    'rouge1': Metric('rouge1', 'ROUGE-1', *_GENERATION, ('rouge2', 'rougeL')),
    'rouge2': Metric('rouge2', 'ROUGE-2', *_GENERATION, ('rouge1', 'rougeL')),
    'rougeL': Metric('rougeL', 'ROUGE-L', *_GENERATION, ('rouge1', 'rouge2')),
}
"""Metric by its key."""
SCORES = {
    'sums': ('ce', 'perplexity', 'accuracy', 'tokens'),
    'rows': ('ce', 'perplexity', 'word_perplexity', 'accuracy', 'tokens', 'words'),
    'logits': ('ce', 'accuracy', 'examples'),
}
"""`outputs` of an objective -> keys that scores.test has in addition to the metric and its companions."""


def metric_name(result: dict) -> str:
    """Returns the key of a run's metric; older result files lack it and have the default metric."""
    return result.get('metric', config.OBJECTIVES[result['objective']].metrics[0])


def metric_of(name: str, objective: str) -> Metric:
    """Returns a metric; the name of a perplexity includes the unit it is averaged over."""
    metric = METRICS[name]
    if name == 'perplexity':
        unit = config.OBJECTIVES[objective].perplexity_unit
        return dataclasses.replace(metric, name=f'perplexity per {unit}')
    return metric


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a task's table: the teacher or a student, with an entry for each finished seed."""

    label: str
    colour: str
    seeds: tuple[int, ...]
    runs: tuple[tuple[str, ...], ...]
    """Names of each seed's runs."""
    results: tuple[tuple[dict, ...], ...]
    """Results of each seed's runs."""

    @property
    def objective(self) -> str:
        """Objective of the last runs; all rows of a task have the same."""
        return self.results[0][-1]['objective']

    @property
    def metric(self) -> Metric:
        """Metric of the row; all rows of a task have the same."""
        return metric_of(metric_name(self.results[0][-1]), self.objective)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return self.results[0][-1]['parameters']


def score(name: str) -> Callable[[Results], float]:
    """Returns a function that reads a test score of one seed's last run."""
    return lambda results: results[-1]['scores']['test'][name]


def has_scores(row: Row, *names: str) -> bool:
    """Returns whether every seed has these test scores."""
    return all(name in results[-1]['scores']['test'] for results in row.results for name in names)


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


def _read_json(path: pathlib.Path, keys: Sequence[str]) -> dict:
    try:
        value = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read: {one_line(error)}') from error
    absent = [key for key in keys if not isinstance(value, dict) or key not in value]
    if absent:
        raise UserError(f'{path}: must have the key {absent[0]!r}')
    return value


def _read_result(folder: pathlib.Path) -> dict | None:
    """Returns the checked result.json of a run, or None if the run is not finished."""
    path = folder / 'result.json'
    if not path.exists():
        return None
    result = _read_json(path, RESULT_KEYS)
    for key in NUMBERS:
        if not isinstance(result[key], int | float):
            raise UserError(f'{path}: {key} = {result[key]!r}: must be a number')
    _check_choice(path, 'objective', result['objective'], config.OBJECTIVES)
    metrics = config.OBJECTIVES[result['objective']].metrics
    _check_choice(path, 'metric', metric_name(result), metrics)
    if not isinstance(result['scores'], dict):
        raise UserError(f'{path}: scores: must be an object')
    if 'test' in result['scores']:
        _check_scores(path, result, result['scores']['test'])
    return result


def _check_choice(
    path: pathlib.Path, key: str, value: object, choices: Sequence[str] | dict
) -> None:
    if value not in choices:
        raise UserError(f'{path}: {key} = {value!r}: must be one of {", ".join(choices)}')


def _check_scores(path: pathlib.Path, result: dict, test: object) -> None:
    test = test if isinstance(test, dict) else {}
    metric, objective = metric_name(result), config.OBJECTIVES[result['objective']]
    for key in dict.fromkeys((*SCORES[objective.outputs], metric, *METRICS[metric].companions)):
        if not isinstance(test.get(key), int | float):
            raise UserError(f'{path}: scores.test.{key}: must be a number')
        bounded = key in objective.metrics and math.isfinite(test[key])
        if bounded and not 0 <= test[key] <= METRICS[key].maximum:
            rule = f'must be in [0, {METRICS[key].maximum}]'
            raise UserError(f'{path}: scores.test.{key} = {test[key]}: {rule}')
    count = f'{objective.unit}s'
    if not test[count] >= 1:
        raise UserError(f'{path}: scores.test.{count} = {test[count]}: must be at least 1')


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
    entries = {task: _entries(workdir, task, value) for task, value in recipe['tasks'].items()}
    runs = dict.fromkeys(run for task in entries.values() for _, _, runs in task for run in runs)
    results = {run: _read_result(workdir / run) for run in runs}
    missing = [run for run, result in results.items() if result is None]
    tasks = {
        task: _rows(f'{workdir}/recipe.json: task {task!r}', entries[task], results, missing)
        for task in entries
    }
    tasks = {task: rows for task, rows in tasks.items() if rows}
    if not tasks:
        raise UserError(f'{workdir}: nothing is finished, no result of {", ".join(missing)}')
    return recipe, tasks, missing


def _entries(
    workdir: pathlib.Path, name: str, task: dict
) -> list[tuple[str, int | None, list[str]]]:
    """Returns the row, the seed and the runs of each entry of a task in recipe.json.

    The seed of the teacher is None, since only its result.json has it.
    """
    where = f'{workdir}/recipe.json: task {name!r}'
    if (
        not isinstance(task, dict)
        or not {'teacher', 'students'} <= set(task)
        or not task['teacher']
    ):
        raise UserError(f'{where}: must have teacher, its runs, and students')
    entries: list = [('teacher', None, task['teacher'])]
    for entry in task['students']:
        if not {'student', 'seed', 'runs'} <= set(entry) or not entry['runs']:
            raise UserError(f'{where}: {entry}: must have student, seed and runs')
        student = entry['student']
        if student not in ROWS or student == 'teacher':
            raise UserError(f'{where}: student = {student!r}: must be one of {[*ROWS][1:]}')
        entries.append((student, entry['seed'], entry['runs']))
    return entries


def _rows(
    where: str, entries: Sequence, results: dict[str, dict | None], missing: list[str]
) -> dict[str, Row]:
    """Returns the finished rows of a task; adds runs without a valid score to `missing`."""
    seeds: dict[str, list] = {key: [] for key in ROWS}
    settings: dict[str, set[str]] = {'objective': set(), 'metric': set()}
    for key, seed, runs in entries:
        finished = tuple(result for run in runs if (result := results[run]) is not None)
        if len(finished) < len(runs):
            continue
        if reason := _invalid_score(finished):
            missing.append(f'{runs[-1]} ({reason})')
            continue
        last = finished[-1]
        settings['objective'].add(last['objective'])
        settings['metric'].add(metric_name(last))
        seeds[key].append((last['seed'] if seed is None else seed, tuple(runs), finished))
    for setting, names in settings.items():
        if len(names) > 1:
            rule = f'its last runs must have one {setting}, not {" and ".join(sorted(names))}'
            raise UserError(f'{where}: {rule}')
    return {
        key: Row(*ROWS[key], *zip(*columns, strict=True))
        for key, columns in seeds.items()
        if columns
    }


def _invalid_score(results: Results) -> str:
    """Returns why the last run cannot be compared: it has no test scores or diverged; else ''."""
    if 'test' not in results[-1]['scores']:
        return 'no test scores'
    metric = METRICS[metric_name(results[-1])]
    scores = {
        f'test {metric.key}': metric.value(results),
        'test cross-entropy': score('ce')(results),
    }
    diverged = [f'{name} {value}' for name, value in scores.items() if not math.isfinite(value)]
    return diverged[0] if diverged else ''


def read_speed(workdir: pathlib.Path) -> dict | None:
    """Returns the checked speed.json, or None if the file does not exist.

    Raises:
      UserError: a ratio is not positive, or a ratio of sizes or FLOPs is not teacher / student.
    """
    path = workdir / 'speed.json'
    if not path.exists():
        return None
    speed = _read_json(path, SPEED_KEYS)
    for key, (*_, ratio) in SPEED.items():
        try:
            quotient, value = _ratios(speed, key, ratio)
            positive = quotient > 0 and value > 0
        except (KeyError, TypeError, ZeroDivisionError) as error:
            rule = f'must have {key} of teacher and student, and ratios.{ratio}'
            raise UserError(f'{path}: {rule}') from error
        consistent = ratio in _TIMED or math.isclose(value, quotient, rel_tol=1e-3)
        if not (positive and consistent):
            raise UserError(
                f'{path}: ratios.{ratio} = {value:.3g}: must be {quotient:.3g}, above 0'
            )
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
