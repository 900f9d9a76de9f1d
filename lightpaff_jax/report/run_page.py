"""The page of a single run: its scores, costs, learning curve and mistakes."""

import math
import pathlib
from typing import Any

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.report import mistakes
from lightpaff_jax.report.findings import speed_sentence
from lightpaff_jax.report.html_page import Part
from lightpaff_jax.report.plots import run_curve
from lightpaff_jax.report.results import METRICS, read_result, read_speed
from lightpaff_jax.report.tables import Table, speed_table

_PERCENT = ('accuracy', 'f1', 'agreement')
_COSTS = {
    'updates': ('updates', 1, ',.0f'),
    'best_update': ('best update', 1, ',.0f'),
    'seconds': ('train seconds', 1, ',.0f'),
    'flops': ('train FLOPs', 1, '.2e'),
    'flops_saved': ('FLOPs saved by the cache of the teacher', 1, '.2e'),
    'tokens_per_second': ('train tokens/s', 1, ',.0f'),
    'parameters': ('parameters', 1, ',.0f'),
    'bytes': ('size, MB', 1e-6, ',.1f'),
}
_FACTS = {
    'protocol': 'protocol',
    'keep_best': 'checkpoint kept by',
    'seed': 'seed',
    'hardware': 'hardware',
    'git_commit': 'git commit',
    'tokenizer_hash': 'tokenizer',
    'data_hash': 'data',
    'teacher_hash': 'teacher hash',
}


def build(workdir: pathlib.Path) -> tuple[str, list[str], list[Part], list[Table]]:
    """Returns the title of the page, its findings, its parts, and the tables at its end.

    Raises:
      UserError: result.json or another file of the run is invalid.
    """
    result = read_result(workdir)
    assert result is not None, 'the caller has seen result.json'
    speed = read_speed(workdir)
    name = result.get('task') or workdir.resolve().name
    examples = mistakes.find(workdir, result)
    findings = [_headline(workdir, result)]
    findings += [speed_sentence(speed)] if speed else []
    findings += [examples.summary] if examples else []
    curve = run_curve(workdir, config.OBJECTIVES[result['objective']])
    parts = [Part((), _score_table(result), curve, '', examples)]
    lines = [
        (label, format(factor * result[key], spec).replace('e+', 'e'))
        for key, (label, factor, spec) in _COSTS.items()
        if key in result
    ]
    lines += [
        (label, str(result[key])) for key, label in _FACTS.items() if result.get(key) is not None
    ]
    lines += [(f'version of {key}', value) for key, value in sorted(result['versions'].items())]
    lines.append(('this report', f'python -m lightpaff_jax.report {workdir}'))
    facts = Table('Costs and provenance', ('', ''), lines, '')
    return f'Run: {name}', findings, parts, [*([speed_table(speed)] if speed else []), facts]


def _headline(workdir: pathlib.Path, result: dict[str, Any]) -> str:
    scores, metric = result['scores'], METRICS[result['metric']]
    split = next((x for x in ('test', 'validation') if metric.key in scores.get(x, {})), '')
    if not split:
        rule = f'scores: must have validation or test with {metric.key!r}'
        raise UserError(f'{workdir / "result.json"}: {rule}')
    value = _format(metric.key, scores[split][metric.key])
    return (
        f'{split.capitalize()} {metric.name} {value}{metric.unit}, with '
        f'{result["parameters"] / 1e6:.3g} M parameters after {result["updates"]:,} updates.'
    )


def _format(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return 'not finite'
    if key in _PERCENT:
        return f'{100 * value:.2f}'
    return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def _score_table(result: dict[str, Any]) -> Table:
    """Returns a line for each score and a column for each split."""
    splits = [split for split in ('validation', 'test') if split in result['scores']]
    keys = dict.fromkeys(key for split in splits for key in result['scores'][split])
    lines = []
    for key in (result['metric'], *(key for key in keys if key != result['metric'])):
        scores = [result['scores'][split].get(key) for split in splits]
        cells = ['-' if score is None else _format(key, score) for score in scores]
        lines.append([f'{key}, %' if key in _PERCENT else key, *cells])
    return Table('Scores', ('', *splits), lines, config.OBJECTIVES[result['objective']].note)
