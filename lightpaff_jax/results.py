"""What the runs of a recipe wrote, as rows, sentences and tables."""

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
EQUAL_UPDATES = ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
LEAST_HEADROOM = 0.05  # a teacher less than this better than the student has little to give
FLOPS_TOLERANCE = 0.05  # training FLOPs that differ by less count as the same
NEEDED = (
    'updates', 'tokens', 'seconds', 'flops', 'tokens_per_second', 'parameters', 'bytes', 'scores',
    'versions', 'git_commit', 'hardware', 'seed', 'teacher_hash', 'tokenizer_hash', 'protocol',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: for each finished seed its chain of runs and their results."""

    label: str
    colour: str
    seeds: tuple[int, ...]
    runs: tuple[tuple[str, ...], ...]
    chains: tuple[tuple[dict, ...], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the lines. No header: facts, one a line."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str


def score(name: str) -> Callable[[Sequence[dict]], float]:
    """Reads a test score of a chain: that of its last run."""
    return lambda chain: chain[-1]['scores']['test'][name]


def cost(name: str) -> Callable[[Sequence[dict]], float]:
    """Adds a cost over the runs of a chain."""
    return lambda chain: sum(result[name] for result in chain)


def throughput(chain: Sequence[dict]) -> float:
    """Training tokens/s of a chain: its tokens over the time they took at each run's own rate."""
    return cost('tokens')(chain) / sum(r['tokens'] / r['tokens_per_second'] for r in chain)


perplexity = score('perplexity')


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sd / sqrt(n) with n - 1 in sd; None for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def plus_minus(values: Sequence[float], digits: int) -> str:
    """'12.30 ± 0.04': mean and standard error, with more digits where the error needs them."""
    mean, error = mean_error(values)
    if error is None:
        return f'{mean:.{digits}f}'
    digits = _digits(error, digits)
    return f'{mean:.{digits}f} ± {error:.{digits}f}'


def _digits(error: float, least: int) -> int:
    return min(max(least, -math.floor(math.log10(error))), least + 2) if error else least


def _count(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):,.0f}'


def _powers(values: Sequence[float]) -> str:
    return f'{statistics.fmean(values):.2e}'.replace('e+0', 'e').replace('e+', 'e')


# Name, value of a chain, text of the values of all seeds.
COLUMNS: tuple[tuple[str, Callable, Callable], ...] = (
    ('perplexity per token', perplexity, lambda v: plus_minus(v, 2)),
    ('perplexity per word', score('word_perplexity'), lambda v: plus_minus(v, 2)),
    ('accuracy', score('accuracy'), lambda v: plus_minus(v, 3)),
    ('seeds', len, lambda v: str(len(v))),
    ('parameters', lambda chain: chain[-1]['parameters'], _count),
    ('size, MB', lambda chain: chain[-1]['bytes'] / 1e6, lambda v: f'{statistics.fmean(v):,.1f}'),
    ('updates', cost('updates'), _count),
    ('train FLOPs', cost('flops'), _powers),
    ('train seconds', cost('seconds'), _count),
    ('train tokens/s', throughput, _count),
)
SPEED_NEEDED = ('batch_size', 'length', 'pairs', 'hardware', 'teacher', 'student', 'ratios')
# Key in speed.json -> name, factor, digits, and the key of its ratio.
SPEED = {
    'parameters': ('parameters', 1, 0, 'parameters'),
    'bytes': ('size, MB', 1e-6, 1, 'bytes'),
    'flops_per_token': ('FLOPs per token', 1, 0, 'flops_per_token'),
    'latency_ms': ('latency, ms', 1, 2, 'latency'),
    'tokens_per_second': ('tokens/s', 1, 0, 'throughput'),
}


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
    test = result['scores'].get('test') if isinstance(result['scores'], dict) else None
    for key in ('perplexity', 'word_perplexity', 'accuracy'):
        if not isinstance(test, dict) or not isinstance(test.get(key), int | float):
            raise UserError(f'{path}: scores.test.{key}: must be a number')
    for key in NEEDED[:7]:
        if not isinstance(result[key], int | float):
            raise UserError(f'{path}: {key} = {result[key]!r}: must be a number')
    return result


def read(workdir: pathlib.Path) -> tuple[dict, dict[str, Row], list[str]]:
    """recipe.json, its finished rows in the table's order, and what is left out and why.

    Raises:
      UserError: no such folder, or a file that cannot be read; names it.
    """
    if not workdir.is_dir():
        raise UserError(f'{workdir}: no such folder')
    recipe = _read_json(workdir / 'recipe.json', ('name', 'teacher', 'arms'))
    chains = [('teacher', None, recipe['teacher'])]
    for arm in recipe['arms']:
        if not {'arm', 'seed', 'runs'} <= set(arm) or not arm['runs']:
            raise UserError(f'{workdir}/recipe.json: {arm}: must have arm, seed and runs')
        if arm['arm'] not in ROWS or arm['arm'] == 'teacher':
            raise UserError(
                f'{workdir}/recipe.json: arm {arm["arm"]!r}: must be one of {[*ROWS][1:]}'
            )
        chains.append((arm['arm'], arm['seed'], arm['runs']))
    results = {run: _read_result(workdir / run) for _, _, runs in chains for run in runs}
    missing = [run for run, result in results.items() if result is None]
    done: dict[str, list] = {key: [] for key in ROWS}
    for key, seed, runs in chains:
        chain = tuple(result for run in runs if (result := results[run]) is not None)
        if len(chain) < len(runs):
            continue
        if not math.isfinite(perplexity(chain)):
            missing.append(f'{runs[-1]} (test perplexity {perplexity(chain)})')
        else:
            done[key].append((chain[-1]['seed'] if seed is None else seed, tuple(runs), chain))
    rows = {k: Row(*ROWS[k], *zip(*found, strict=True)) for k, found in done.items() if found}
    if not rows:
        raise UserError(f'{workdir}: nothing is finished, no result of {", ".join(missing)}')
    return recipe, rows, missing


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


def values(row: Row, of: Callable) -> list[float]:
    """One value of each seed."""
    return [of(chain) for chain in row.chains]


def mean(row: Row, of: Callable = perplexity) -> float:
    """Mean over seeds."""
    return statistics.fmean(values(row, of))


def _certainty(a: Row, b: Row) -> str:
    """Whether two means differ by more than sqrt(se_a^2 + se_b^2)."""
    (mean_a, error_a), (mean_b, error_b) = (mean_error(values(r, perplexity)) for r in (a, b))
    if error_a is None or error_b is None:
        return 'One seed cannot tell whether that is chance.'
    gap, error = abs(mean_a - mean_b), math.hypot(error_a, error_b)
    more, digits = 'more' if gap > error else 'not more', _digits(error, 2)
    return (
        f'The difference of {gap:.{digits}f} is {more} than its standard error of '
        f'{error:.{digits}f} ({len(a.seeds)} and {len(b.seeds)} seeds).'
    )


def headlines(rows: dict[str, Row], speed: dict | None) -> list[str]:
    """What the numbers say, for and against; silent where a run it needs is missing."""
    said = []
    two, teacher, plain = (rows.get(k) for k in ('two_stage', 'teacher', 'no_teacher'))
    if two and teacher:
        share = 100 * two.chains[0][-1]['parameters'] / teacher.chains[0][-1]['parameters']
        fast = ''
        if speed:
            ratio = speed['ratios']['latency']
            times = f'{ratio:.1f}x faster' if ratio >= 1 else f'{1 / ratio:.1f}x slower'
            fast = f' and scores a sequence of {speed["length"]} tokens {times}'
        against = f'; the same student without a teacher has {mean(plain):.2f}' if plain else ''
        said.append(
            f"The two-stage student has {share:.0f} % of the teacher's parameters{fast}. "
            f'Its test perplexity per token is {mean(two):.2f}, '
            f"the teacher's {mean(teacher):.2f}{against}."
        )
    return said + _best_arm(rows) + _equal_flops(rows) + _headroom(teacher, plain)


def _best_arm(rows: dict[str, Row]) -> list[str]:
    arms = [rows[key] for key in EQUAL_UPDATES if key in rows]
    if 'two_stage' not in rows or len(arms) < 2:
        return []
    two, rival = arms[0], min(arms[1:], key=mean)
    best = 'is the best' if mean(two) < mean(rival) else 'is not the best'
    finished = '' if len(arms) == len(EQUAL_UPDATES) else ' finished'
    said = [
        f'Two-stage {best} of the {len(arms)}{finished} arms with equal updates: {mean(two):.2f} '
        f'against {mean(rival):.2f} ({rival.label}). {_certainty(two, rival)}'
    ]
    updates = {arm.label: mean(arm, cost('updates')) for arm in arms}
    if len(set(updates.values())) > 1:
        each = ', '.join(f'{label} {n:,.0f}' for label, n in updates.items())
        said.append(f'Warning: the updates are not equal: {each}.')
    return said


def _equal_flops(rows: dict[str, Row]) -> list[str]:
    if not {'two_stage', 'no_teacher_equal_flops'} <= set(rows):
        return []
    two, long = rows['two_stage'], rows['no_teacher_equal_flops']
    gap = mean(long) - mean(two)
    how = 'better' if gap < 0 else 'worse' if gap > 0 else 'as well'
    flops = mean(long, cost('flops')) / mean(two, cost('flops'))
    said = [
        f'At this budget plain training for the same FLOPs does {how}: {mean(long):.2f} against '
        f'{mean(two):.2f} of two-stage. {_certainty(long, two)}'
    ]
    if abs(flops - 1) > FLOPS_TOLERANCE:
        said.append(
            f'Warning: the FLOPs are not the same: plain training had {flops:.2f}x as many.'
        )
    return said


def _headroom(teacher: Row | None, plain: Row | None) -> list[str]:
    if teacher is None or plain is None:
        return []
    lower = 1 - mean(teacher) / mean(plain)
    side = f'{100 * abs(lower):.1f} % {"lower" if lower >= 0 else "higher"}'
    than = f"The teacher's perplexity is {side} than the undistilled student's"
    if lower >= LEAST_HEADROOM:
        return [f'{than}: there is something to distil.']
    return [f'Warning: {than[0].lower()}{than[1:]}: there is little to distil.']


def main_table(rows: dict[str, Row]) -> Table:
    """Quality and cost of every finished row."""
    lines = []
    for row in rows.values():
        first, *rest = (show(values(row, of)) for _, of, show in COLUMNS)
        ratio = '-'
        if 'teacher' in rows:
            base = mean(rows['teacher'])
            ratio = plus_minus([value / base for value in values(row, perplexity)], 3)
        lines.append((row.label, first, ratio, *rest))
    first, *rest = (name for name, _, _ in COLUMNS)
    header = ('', first, 'ratio to teacher', *rest)
    note = (
        'Scores on the test split; ± is the standard error of the mean over seeds (sd / √n). Costs '
        'add up all runs behind a row, means over seeds; a distilled run counts the forward pass '
        'of the teacher, no student counts the training of the teacher.'
    )
    return Table('Results', header, lines, note)


def speed_table(speed: dict) -> Table:
    """Teacher against student, as speed.json has it."""
    lines = []
    for key, (name, factor, digits, ratio) in SPEED.items():
        cells = (f'{speed[who][key] * factor:,.{digits}f}' for who in ('teacher', 'student'))
        lines.append((name, *cells, f'{speed["ratios"][ratio]:.2f}x'))
    note = (
        f'Medians of {speed["pairs"]} pairs of measurements on {speed["hardware"]}: latency of '
        f'scoring one sequence of {speed["length"]} tokens, tokens/s with {speed["batch_size"]} at '
        'a time. Ratio: teacher / student; for tokens/s student / teacher.'
    )
    return Table('Size and speed', ('', 'teacher', 'student', 'ratio'), lines, note)


def provenance(
    workdir: pathlib.Path, recipe: dict, rows: dict[str, Row]
) -> tuple[Table, list[str]]:
    """'What ran where', and a warning for each thing the runs should share and do not."""
    results = [r for row in rows.values() for chain in row.chains for r in chain]
    packages = sorted({name for r in results for name in r['versions']})
    facts = {f'version of {p}': [r['versions'].get(p) for r in results] for p in packages}
    keys = {'git commit': 'git_commit', 'protocol': 'protocol', 'hardware': 'hardware',
            'tokenizer': 'tokenizer_hash'}  # fmt: skip
    facts = {name: [r[key] for r in results] for name, key in keys.items()} | facts
    facts['teacher hash'] = [r['teacher_hash'] for r in results if r['teacher_hash']]
    seen = {name: sorted({str(v or 'unknown') for v in values}) for name, values in facts.items()}
    warnings = [
        f'Warning: the runs differ in {name}: {"; ".join(values)}.'
        for name, values in seen.items()
        if len(values) > 1 and name != 'teacher hash'
    ]
    lines = [(name, '; '.join(values)) for name, values in seen.items() if values]
    seeds = sorted({seed for key, row in rows.items() if key != 'teacher' for seed in row.seeds})
    lines.append(('seeds', ', '.join(map(str, seeds)) or '-'))
    if 'command' in recipe:
        lines.append(('recipe', recipe['command']))
    lines.append(('this report', f'python -m lightpaff_jax.report {workdir}'))
    return Table('What ran where', ('', ''), lines, ''), warnings
