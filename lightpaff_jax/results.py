"""What the runs of a recipe wrote, read and checked: a task's rows, its metric, means and errors."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence

from lightpaff_jax.config import UserError

GREY = '#8a8f98'
# Row -> label and colour; the colours hold a contrast of 3 on white and on black.
ROWS = {
    'teacher': ('teacher', GREY),
    'two_stage': ('two-stage', '#1f80e0'),
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


@dataclasses.dataclass(frozen=True)
class Metric:
    """The test score that the runs of a task are compared by."""

    key: str
    """In scores.test of result.json."""
    name: str
    higher: bool
    """Whether higher is better."""
    factor: float
    """From the file to what is shown."""
    unit: str
    of_gap: str
    """Unit of a difference."""

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


def _perplexity(each: str) -> Metric:
    return Metric('perplexity', f'perplexity per {each}', False, 1, '', '')


METRICS = {
    'clm': _perplexity('token'),
    'mlm': _perplexity('predicted token'),
    'mass': _perplexity('predicted token'),
    'classify': Metric('accuracy', 'accuracy', True, 100, ' %', ' percentage points'),
    'seq2seq': _perplexity('token'),
}
"""Objective of a task's last run -> how the task is judged."""
_WORDS = ('ce', 'perplexity', 'word_perplexity', 'accuracy', 'tokens', 'words')
_TOKENS = ('ce', 'perplexity', 'accuracy', 'tokens')
SCORES = {
    'clm': _WORDS,
    'mlm': _TOKENS,
    'mass': _TOKENS,
    'classify': ('ce', 'accuracy', 'examples'),
    'seq2seq': _WORDS,
}
"""Objective -> numbers that scores.test must have."""


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
        """What the row is judged by."""
        return METRICS[self.objective]


def score(name: str) -> Callable[[Sequence[dict]], float]:
    """Reads a test score of a chain: that of its last run."""
    return lambda chain: chain[-1]['scores']['test'][name]


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
    if result['objective'] not in SCORES:
        rule = f'must be one of {", ".join(SCORES)}'
        raise UserError(f'{path}: objective = {result["objective"]!r}: {rule}')
    scores = result['scores']
    test = scores.get('test') if isinstance(scores, dict) else None
    test = test if isinstance(test, dict) else {}
    for key in SCORES[result['objective']]:
        if not isinstance(test.get(key), int | float):
            raise UserError(f'{path}: scores.test.{key}: must be a number')
    if result['objective'] == 'classify':
        share, examples = test['accuracy'], test['examples']
        if math.isfinite(share) and not 0 <= share <= 1:
            raise UserError(f'{path}: scores.test.accuracy = {share}: must be in [0, 1]')
        if not examples >= 1:
            raise UserError(f'{path}: scores.test.examples = {examples}: must be at least 1')
    return result


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
    if not isinstance(task, dict) or not {'teacher', 'arms'} <= set(task) or not task['teacher']:
        raise UserError(f'{where}: must have teacher, its runs, and arms')
    chains: list = [('teacher', None, task['teacher'])]
    for arm in task['arms']:
        if not {'arm', 'seed', 'runs'} <= set(arm) or not arm['runs']:
            raise UserError(f'{where}: {arm}: must have arm, seed and runs')
        if arm['arm'] not in ROWS or arm['arm'] == 'teacher':
            raise UserError(f'{where}: arm {arm["arm"]!r}: must be one of {[*ROWS][1:]}')
        chains.append((arm['arm'], arm['seed'], arm['runs']))
    return chains


def _rows(workdir: pathlib.Path, name: str, chains: Sequence, results: dict,
          missing: list[str]) -> dict[str, Row]:  # fmt: skip
    """The finished rows of a task; names the chains that diverged in `missing`."""
    done: dict[str, list] = {key: [] for key in ROWS}
    objectives = set()
    for key, seed, runs in chains:
        chain = tuple(result for run in runs if (result := results[run]) is not None)
        if len(chain) < len(runs):
            continue
        objectives.add(chain[-1]['objective'])
        metric = METRICS[chain[-1]['objective']]
        scores = {f'test {metric.key}': metric.of(chain), 'test cross-entropy': score('ce')(chain)}
        broken = [f'{what} {value}' for what, value in scores.items() if not math.isfinite(value)]
        if broken:
            missing.append(f'{runs[-1]} ({broken[0]})')
        else:
            done[key].append((chain[-1]['seed'] if seed is None else seed, tuple(runs), chain))
    if len(objectives) > 1:
        rule = f'its last runs must have one objective, not {" and ".join(sorted(objectives))}'
        raise UserError(f'{workdir}/recipe.json: task {name!r}: {rule}')
    return {k: Row(*ROWS[k], *zip(*found, strict=True)) for k, found in done.items() if found}


def read_speed(workdir: pathlib.Path) -> dict | None:
    """speed.json, or None; its ratios must be teacher / student, throughput student / teacher."""
    path = workdir / 'speed.json'
    if not path.exists():
        return None
    speed = _read_json(path, SPEED_NEEDED)
    for key, (_, _, _, ratio) in SPEED.items():
        try:
            quotient = speed['teacher'][key] / speed['student'][key]
            value = speed['ratios'][ratio]
        except (KeyError, TypeError, ZeroDivisionError) as error:
            rule = f'must have {key} of teacher and student, and ratios.{ratio}'
            raise UserError(f'{path}: {rule}') from error
        quotient = 1 / quotient if ratio == 'throughput' else quotient
        if not 0.5 < value / quotient < 2:
            raise UserError(f'{path}: ratios.{ratio} = {value:.3g}: must be near {quotient:.3g}')
    return speed
