"""What the runs of a recipe wrote, read and checked: a task's rows, its metric, means and errors."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence

from lightpaff_jax import config
from lightpaff_jax.errors import UserError

GREY = '#8a8f98'
# Row -> label and colour; the colours hold a contrast of 3 on white and on black.
ROWS = {
    'teacher': ('teacher', GREY),
    'two_stage': ('two-stage', '#1f80e0'),
    'two_stage_unlabelled': ('two-stage, unlabelled text too', '#d6409f'),
    'stage1_only': ('stage 1 only', '#12977f'),
    'stage2_only': ('stage 2 only', '#a26be0'),
    'no_teacher': ('no teacher', '#d9480f'),
    'no_teacher_equal_flops': ('no teacher, equal FLOPs', '#b07d05'),
}
NUMBERS = ('updates', 'tokens', 'seconds', 'flops', 'tokens_per_second', 'parameters', 'bytes')
NEEDED = (
    *NUMBERS, 'scores', 'versions', 'git_commit', 'hardware', 'seed', 'teacher_hash',
    'tokenizer_hash', 'protocol', 'objective',
)  # fmt: skip
SPEED_NEEDED = ('task', 'batch_size', 'length', 'pairs', 'hardware', 'teacher', 'student', 'ratios')
# Key in speed.json -> name, factor, digits, and the key of its ratio.
SPEED = {
    'parameters': ('parameters', 1, 0, 'parameters'),
    'bytes': ('size, MB', 1e-6, 1, 'bytes'),
    'flops': ('FLOPs per example', 1, 0, 'flops'),
    'latency_ms': ('latency, ms', 1, 2, 'latency'),
    'tokens_per_second': ('tokens/s', 1, 0, 'throughput'),
}

_TIMED = ('latency', 'throughput')


@dataclasses.dataclass(frozen=True)
class Metric:
    """The test score that the runs of a task are compared by."""

    key: str
    """In scores.test of result.json, and in its metric."""
    name: str
    higher: bool
    """Whether higher is better."""
    factor: float
    """From the file to what is shown."""
    unit: str
    of_gap: str
    """Unit of a difference."""
    most: float
    """The highest there is, in the file."""
    companions: tuple[str, ...] = ()
    """Keys of the scores that are printed beside it."""

    def of(self, chain: Sequence[dict]) -> float:
        """The score of a chain: that of its last run, as shown."""
        return self.factor * score(self.key)(chain)

    def show(self, value: float) -> str:
        """For a sentence: '31.05' or '91.20 %'."""
        return f'{value:.2f}{self.unit}'

    @property
    def label(self) -> str:
        """For a column or an axis."""
        return f'{self.name},{self.unit}' if self.unit else self.name


_OF_CLASSES = (True, 100, ' %', ' percentage points', 1)
_OF_TEXTS = (True, 1, '', ' points', 100)
METRICS = {
    'accuracy': Metric('accuracy', 'accuracy', *_OF_CLASSES),
    'f1': Metric('f1', 'F1', *_OF_CLASSES, ('accuracy',)),
    'perplexity': Metric('perplexity', 'perplexity', False, 1, '', '', math.inf),
    'bleu': Metric('bleu', 'BLEU', *_OF_TEXTS),
    'rouge1': Metric('rouge1', 'ROUGE-1', *_OF_TEXTS, ('rouge2', 'rougeL')),
    'rouge2': Metric('rouge2', 'ROUGE-2', *_OF_TEXTS, ('rouge1', 'rougeL')),
    'rougeL': Metric('rougeL', 'ROUGE-L', *_OF_TEXTS, ('rouge1', 'rouge2')),
}
"""Name in result.json -> how a task is judged."""
SCORES = {
    'sums': ('ce', 'perplexity', 'accuracy', 'tokens'),
    'rows': ('ce', 'perplexity', 'word_perplexity', 'accuracy', 'tokens', 'words'),
    'logits': ('ce', 'accuracy', 'examples'),
}
"""`outputs` of an objective -> numbers that scores.test must have, beside those of the metric."""


def metric_name(result: dict) -> str:
    """What a run is compared by; results of before there was a choice do not say it."""
    return (
        result['metric']
        if 'metric' in result
        else config.OBJECTIVES[result['objective']].metrics[0]
    )


def metric_of(name: str, objective: str) -> Metric:
    """The metric, its perplexity named by what the objective predicts."""
    metric = METRICS[name]
    if name == 'perplexity':
        unit = config.OBJECTIVES[objective].perplexity_unit
        return dataclasses.replace(metric, name=f'perplexity per {unit}')
    return metric


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a task's table: for each finished seed its chain of runs and their results."""

    label: str
    colour: str
    seeds: tuple[int, ...]
    runs: tuple[tuple[str, ...], ...]
    chains: tuple[tuple[dict, ...], ...]

    @property
    def objective(self) -> str:
        """Of the last runs; one for all rows of a task."""
        return self.chains[0][-1]['objective']

    @property
    def metric(self) -> Metric:
        """What the row is judged by; one for all rows of a task."""
        return metric_of(metric_name(self.chains[0][-1]), self.objective)


def score(name: str) -> Callable[[Sequence[dict]], float]:
    """Reads a test score of a chain: that of its last run."""
    return lambda chain: chain[-1]['scores']['test'][name]


def has_scores(row: Row, *names: str) -> bool:
    """Whether the test scores of every seed have these."""
    return all(name in chain[-1]['scores']['test'] for chain in row.chains for name in names)


def cost(name: str) -> Callable[[Sequence[dict]], float]:
    """Adds a cost over the runs of a chain."""
    return lambda chain: sum(result[name] for result in chain)


def throughput(chain: Sequence[dict]) -> float:
    """Training tokens/s of a chain: its tokens over the time they took at each run's own rate."""
    return cost('tokens')(chain) / sum(r['tokens'] / r['tokens_per_second'] for r in chain)


def binomial_error(chain: Sequence[dict]) -> float:
    """Standard error of one run's accuracy p over n test examples, 100 sqrt(p (1 - p) / n)."""
    p, n = score('accuracy')(chain), score('examples')(chain)
    return 100 * math.sqrt(p * (1 - p) / n)


def values(row: Row, of: Callable | None = None) -> list[float]:
    """One value of each seed; of the row's metric where nothing else is named."""
    return [(of or row.metric.of)(chain) for chain in row.chains]


def mean(row: Row, of: Callable | None = None) -> float:
    """Mean over seeds; of the row's metric where nothing else is named."""
    return statistics.fmean(values(row, of))


def kept(row: Row, teacher: Row) -> list[float] | None:
    """Share of the teacher's mean score that each seed of a row keeps, in %.

    The ratio of scores; of perplexities the teacher's nll per token over the student's. None
    where there is no ratio: a denominator of 0.
    """
    if row.metric.higher:
        base = mean(teacher)
        return [100 * value / base for value in values(row)] if base else None
    nlls = values(row, score('ce'))
    return [100 * mean(teacher, score('ce')) / nll for nll in nlls] if all(nlls) else None


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sd / sqrt(n) with n - 1 in sd; None for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def plus_minus(values: Sequence[float], digits: int) -> str:
    """'12.30 ± 0.04': mean and standard error, with more digits where the error needs them."""
    mean, error = mean_error(values)
    if error is None:
        return f'{mean:.{digits}f}'
    digits = digits_of(error, digits)
    return f'{mean:.{digits}f} ± {error:.{digits}f}'


def digits_of(error: float, least: int) -> int:
    """Digits behind the point that show an error, at least and at most two more than `least`."""
    return min(max(least, -math.floor(math.log10(error))), least + 2) if error else least


def _read_json(path: pathlib.Path, keys: Sequence[str]) -> dict:
    try:
        value = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read: {" ".join(str(error).split())}') from error
    absent = [k for k in keys if not isinstance(value, dict) or k not in value]
    if absent:
        raise UserError(f'{path}: must have the key {absent[0]!r}')
    return value


def _read_result(folder: pathlib.Path) -> dict | None:
    path = folder / 'result.json'
    if not path.exists():
        return None
    result = _read_json(path, NEEDED)
    for key in NUMBERS:
        if not isinstance(result[key], int | float):
            raise UserError(f'{path}: {key} = {result[key]!r}: must be a number')
    _check_name(path, 'objective', result['objective'], config.OBJECTIVES)
    metrics = config.OBJECTIVES[result['objective']].metrics
    _check_name(path, 'metric', metric_name(result), metrics)
    if not isinstance(result['scores'], dict):
        raise UserError(f'{path}: scores: must be an object')
    if 'test' in result['scores']:
        _check_scores(path, result, result['scores']['test'])
    return result


def _check_name(path: pathlib.Path, key: str, value: object, known: Sequence[str] | dict) -> None:
    if value not in known:
        raise UserError(f'{path}: {key} = {value!r}: must be one of {", ".join(known)}')


def _check_scores(path: pathlib.Path, result: dict, test: object) -> None:
    test = test if isinstance(test, dict) else {}
    metric, objective = metric_name(result), config.OBJECTIVES[result['objective']]
    for key in dict.fromkeys((*SCORES[objective.outputs], metric, *METRICS[metric].companions)):
        if not isinstance(test.get(key), int | float):
            raise UserError(f'{path}: scores.test.{key}: must be a number')
        if (
            key in objective.metrics
            and math.isfinite(test[key])
            and not 0 <= test[key] <= METRICS[key].most
        ):
            rule = f'must be in [0, {METRICS[key].most}]'
            raise UserError(f'{path}: scores.test.{key} = {test[key]}: {rule}')
    count = f'{objective.unit}s'
    if not test[count] >= 1:
        raise UserError(f'{path}: scores.test.{count} = {test[count]}: must be at least 1')


def read(workdir: pathlib.Path) -> tuple[dict, dict[str, dict[str, Row]], list[str]]:
    """recipe.json, each task's finished rows in the table's order, and what is left out and why.

    Raises:
      UserError: no such folder, or a file that cannot be read; names it.
    """
    if not workdir.is_dir():
        raise UserError(f'{workdir}: no such folder')
    recipe = _read_json(workdir / 'recipe.json', ('name', 'tasks'))
    if not isinstance(recipe['tasks'], dict) or not recipe['tasks']:
        raise UserError(f'{workdir}/recipe.json: tasks: must name at least one task')
    chains = {name: _chains(workdir, name, task) for name, task in recipe['tasks'].items()}
    runs = dict.fromkeys(run for of in chains.values() for _, _, runs in of for run in runs)
    results = {run: _read_result(workdir / run) for run in runs}
    missing = [run for run, result in results.items() if result is None]
    tasks = {name: _rows(workdir, name, of, results, missing) for name, of in chains.items()}
    tasks = {name: rows for name, rows in tasks.items() if rows}
    if not tasks:
        raise UserError(f'{workdir}: nothing is finished, no result of {", ".join(missing)}')
    return recipe, tasks, missing


def _chains(workdir: pathlib.Path, name: str, task: dict) -> list[tuple[str, int | None, list]]:
    """Row, seed (None: the teacher's own) and runs of each chain of a task."""
    where = f'{workdir}/recipe.json: task {name!r}'
    if (
        not isinstance(task, dict)
        or not {'teacher', 'students'} <= set(task)
        or not task['teacher']
    ):
        raise UserError(f'{where}: must have teacher, its runs, and students')
    chains: list = [('teacher', None, task['teacher'])]
    for entry in task['students']:
        if not {'student', 'seed', 'runs'} <= set(entry) or not entry['runs']:
            raise UserError(f'{where}: {entry}: must have student, seed and runs')
        student = entry['student']
        if student not in ROWS or student == 'teacher':
            raise UserError(f'{where}: student = {student!r}: must be one of {[*ROWS][1:]}')
        chains.append((student, entry['seed'], entry['runs']))
    return chains


def _rows(workdir: pathlib.Path, name: str, chains: Sequence, results: dict,
          missing: list[str]) -> dict[str, Row]:  # fmt: skip
    """The finished rows of a task; names the chains without a score in `missing`."""
    done: dict[str, list] = {key: [] for key in ROWS}
    found: dict[str, set[str]] = {'objective': set(), 'metric': set()}
    for key, seed, runs in chains:
        chain = tuple(result for run in runs if (result := results[run]) is not None)
        if len(chain) < len(runs):
            continue
        if fault := _without_score(chain):
            missing.append(f'{runs[-1]} ({fault})')
            continue
        found['objective'].add(chain[-1]['objective'])
        found['metric'].add(metric_name(chain[-1]))
        done[key].append((chain[-1]['seed'] if seed is None else seed, tuple(runs), chain))
    for what, names in found.items():
        if len(names) > 1:
            rule = f'its last runs must have one {what}, not {" and ".join(sorted(names))}'
            raise UserError(f'{workdir}/recipe.json: task {name!r}: {rule}')
    return {k: Row(*ROWS[k], *zip(*seeds, strict=True)) for k, seeds in done.items() if seeds}


def _without_score(chain: Sequence[dict]) -> str:
    """Why a chain cannot be compared: not scored on the test split, or diverged; else ''."""
    if 'test' not in chain[-1]['scores']:
        return 'no test scores'
    metric = METRICS[metric_name(chain[-1])]
    scores = {f'test {metric.key}': metric.of(chain), 'test cross-entropy': score('ce')(chain)}
    broken = [f'{what} {value}' for what, value in scores.items() if not math.isfinite(value)]
    return broken[0] if broken else ''


def read_speed(workdir: pathlib.Path) -> dict | None:
    """speed.json, or None; ratios of what is counted must be teacher / student."""
    path = workdir / 'speed.json'
    if not path.exists():
        return None
    speed = _read_json(path, SPEED_NEEDED)
    for key, (_, _, _, ratio) in SPEED.items():
        try:
            quotient, value = _quotients(speed, key, ratio)
            positive = quotient > 0 and value > 0
        except (KeyError, TypeError, ZeroDivisionError) as error:
            rule = f'must have {key} of teacher and student, and ratios.{ratio}'
            raise UserError(f'{path}: {rule}') from error
        as_counted = ratio in _TIMED or math.isclose(value, quotient, rel_tol=1e-3)
        if not (positive and as_counted):
            raise UserError(
                f'{path}: ratios.{ratio} = {value:.3g}: must be {quotient:.3g}, above 0'
            )
    return speed


def unsteady(speed: dict) -> list[str]:
    """What was timed and tells two ratios that differ twofold: of the pairs, and of the medians."""
    found = {ratio: _quotients(speed, key, ratio) for key, (*_, ratio) in SPEED.items()}
    return [ratio for ratio in _TIMED if not 0.5 < found[ratio][1] / found[ratio][0] < 2]


def _quotients(speed: dict, key: str, ratio: str) -> tuple[float, float]:
    """Teacher / student by speed.json's two sides, and as it says; throughput student / teacher."""
    quotient = speed['teacher'][key] / speed['student'][key]
    return (1 / quotient if ratio == 'throughput' else quotient), speed['ratios'][ratio]
