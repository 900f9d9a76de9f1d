"""The plots of a report: inline SVG in the colours and the font of the page."""

import functools
import html
import io
import itertools
import json
import math
import pathlib
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.report.results import GREY, ROWS, Row, kept, mean, values

INK = '#010203'  # stands for the page's text colour in a plot
PHASES = ('Pre-training', 'Fine-tuning')
CANDIDATES = ('#1f80e0', '#d9480f', '#12977f', '#a26be0', '#b07d05', '#d6409f', GREY)


def _curve(path: pathlib.Path, kind: str) -> tuple[list[int], list[float]]:
    lines = []
    # A byte that is no UTF-8 is no JSON either.
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else ()):
        try:
            line = json.loads(text)
            if line['kind'] == kind:
                lines.append((line['step'], line['ce']))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: line {number + 1} cannot be read: {error}') from error
    return [step for step, _ in lines], [ce for _, ce in lines]


def _draw_curves(ax: Axes, workdir: pathlib.Path, rows: Sequence[Row], phase: int) -> None:
    owners: dict[str, list[Row]] = {}  # run -> the rows it is part of
    units = set()
    for row in rows:
        for runs, chain in zip(row.runs, row.chains, strict=True):
            if _has(runs, phase):
                at = phase - len(PHASES)  # from the end: an imported teacher has the last alone
                owners.setdefault(runs[at], []).append(row)
                units.add(config.OBJECTIVES[chain[at]['objective']].unit)
    late, labels = [], set()
    for run, of in owners.items():
        label = _joined([*dict.fromkeys(row.label for row in of)])  # tasks share their labels
        steps, ces = _curve(workdir / run / 'metrics.jsonl', 'train')
        points = _curve(workdir / run / 'metrics.jsonl', 'validation')
        new = None if label in labels else label
        ax.plot(steps, ces, color=of[0].colour, lw=1, alpha=0.75, label=new)
        ax.plot(*points, 'o', color=of[0].colour, ms=4, mec='none')
        late += _late(steps, ces) + points[1]
        labels.add(label)
    _show(ax, late)
    ax.set(xlabel='updates', ylabel=f'cross-entropy, nats per {" or ".join(sorted(units))}')
    _legend(ax)


def _joined(labels: Sequence[str]) -> str:
    return ' and '.join(labels) if len(labels) < 3 else '; '.join(labels)


def _legend(ax: Axes) -> None:
    """Below the plot, in one column where a name is long."""
    figure = cast(Figure, ax.figure)
    longest = max(map(len, ax.get_legend_handles_labels()[1]), default=0)
    figure.legend(loc='outside lower left', ncols=1 + (longest < 32), frameon=False)


def _has(runs: Sequence[str], phase: int) -> bool:
    return len(runs) >= len(PHASES) - phase


def _late(steps: Sequence[int], ces: Sequence[float]) -> list[float]:
    """What follows the steep beginning."""
    return [ce for step, ce in zip(steps, ces, strict=True) if step > steps[-1] / 10]


def _show(ax: Axes, ces: Sequence[float]) -> None:
    """Limits the axis to these values."""
    finite = [ce for ce in ces if math.isfinite(ce)]
    if finite:
        room = 0.04 * (max(finite) - min(finite)) or 0.1
        ax.set_ylim(min(finite) - room, max(finite) + room)


def _draw_search(ax: Axes, workdir: pathlib.Path, lines: dict[str, tuple[str, bool]]) -> None:
    late = []
    for (run, (label, chosen)), colour in zip(lines.items(), itertools.cycle(CANDIDATES)):
        steps, ces = _curve(workdir / run / 'metrics.jsonl', 'train')
        points = _curve(workdir / run / 'metrics.jsonl', 'validation')
        label = f'{label}, chosen' if chosen else label
        ax.plot(steps, ces, color=colour, lw=2 if chosen else 0.9, alpha=0.8, label=label)
        ax.plot(*points, 'o', color=colour, ms=4, mec='none')
        late += _late(steps, ces) + points[1]
    _show(ax, late)
    ax.set(xlabel='updates', ylabel='cross-entropy, nats')
    _legend(ax)


def _draw_overview(ax: Axes, tasks: dict[str, dict[str, Row]]) -> None:
    names = [*tasks][::-1]
    drawn = set()
    for y, rows in enumerate(tasks[name] for name in names):
        arms = [key for key in rows if key != 'teacher'] if 'teacher' in rows else []
        for number, key in enumerate(arms):
            shares = kept(rows[key], rows['teacher'])
            if shares:
                at = y + 0.3 - 0.6 * number / max(len(arms) - 1, 1)
                label = None if key in drawn else ROWS[key][0]
                x = sum(shares) / len(shares)
                ax.plot([min(shares), max(shares)], [at] * 2, color=ROWS[key][1], lw=2, alpha=0.4)
                ax.plot(x, at, 'o', color=ROWS[key][1], ms=6, mec='none', label=label)
                drawn.add(key)
    ax.axvline(100, color=GREY, lw=1.5, ls='--')
    ax.axvline(95, color=GREY, lw=1, ls=':')
    ax.set_yticks(range(len(names)), [name.replace('$', r'\$') for name in names])  # no formulas
    ax.set(xlabel="of the teacher's score, % (lines: 95 and 100)", ylim=(-0.6, len(names) - 0.4))
    ax.grid(axis='y', visible=False)
    if drawn:
        _legend(ax)


def _quality(rows: dict[str, Row]) -> str:
    return f'test {next(iter(rows.values())).metric.label}'


def _draw_arms(ax: Axes, rows: dict[str, Row]) -> None:
    arms = [row for key, row in rows.items() if key != 'teacher'][::-1]
    for y, row in enumerate(arms):
        dots = values(row)
        ax.plot(dots, [y] * len(dots), 'o', color=row.colour, ms=7, alpha=0.65, mec='none')
        ax.plot([mean(row)] * 2, [y - 0.28, y + 0.28], color=row.colour, lw=2)
    ax.set_yticks(range(len(arms)), [textwrap.fill(row.label, 24) for row in arms])
    ax.set(xlabel=_quality(rows), ylim=(-0.6, len(arms) - 0.1))
    if 'teacher' in rows:
        x = mean(rows['teacher'])
        ax.axvline(x, color=GREY, lw=1.5, ls='--')
        top = (x, len(arms) - 0.15)
        ax.annotate('teacher', top, (5, 0), textcoords='offset points', va='top', color=GREY)
    ax.grid(axis='y', visible=False)


def _draw_sizes(ax: Axes, rows: dict[str, Row]) -> None:
    points = [(mean(row), row.chains[0][-1]['parameters'], row) for row in rows.values()]
    points.sort(key=lambda point: point[0])
    least, most = points[0][0], points[-1][0]
    step = 0.075 * (1 if math.isclose(least, most) else most - least)  # between two names
    at = -math.inf
    for y, x, row in points:
        at = max(at + step, y)
        ax.plot(x, y, 'o', color=row.colour, ms=8, mec='none')
        ax.annotate(
            row.label, (x, y), (12, at), textcoords=('offset points', 'data'), va='center',
            color=row.colour,
        )  # fmt: skip
    ax.set_ylim(least - step, at + step)
    ax.set_xscale('log')
    sizes = sorted({x for _, x, _ in points})
    ax.set_xticks(sizes, [f'{x / 1e6:.3g} M' for x in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(sizes[0] * 0.85, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.3 * 1.2)
    ax.set(xlabel='parameters (log scale)', ylabel=_quality(rows))


def _svg(draw: Callable[[Axes], None], title: str, task: str) -> str:
    """An inline SVG figure: the page's text colour and font, no reference to anything outside.

    Ids inside are unique on a page where `task` and title together are.
    """
    name = f'{task}: {title}' if task else title
    style: Any = {
        'svg.fonttype': 'none', 'svg.hashsalt': name, 'font.size': 9.5, 'axes.spines.top': False,
        'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.15, 'grid.color': INK,
        'text.color': INK, 'axes.labelcolor': INK, 'axes.edgecolor': GREY, 'xtick.color': INK,
        'ytick.color': INK, 'xtick.major.size': 0, 'ytick.major.size': 0, 'legend.fontsize': 8.5, 'legend.handlelength': 1.2, 'legend.columnspacing': 1.2,
        'axes.unicode_minus': False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2, 3.3), layout='constrained')
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format='svg', transparent=True)
    svg = file.getvalue()
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.S)
    svg = re.sub(r'(?<=<g) id="[^"]*"', '', svg).replace(INK, 'currentColor')
    label = f'role="img" aria-label="{html.escape(name)}">'
    svg = re.sub(r'<svg[^>]*?( viewBox="[^"]*")[^>]*>', lambda m: f'<svg{m[1]} {label}', svg)
    return f'<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>'


def figures(workdir: pathlib.Path, rows: dict[str, Row], phases: Sequence[int] = (0, 1),
            task: str = '') -> str:  # fmt: skip
    """The plots of a task, each an inline SVG.

    Args:
      workdir: of the recipe.
      rows: of the task.
      phases: whose curves are drawn: 0 pre-training, 1 fine-tuning.
      task: tells its plots from those of another task; '' where there is one.
    """
    metric = next(iter(rows.values())).metric
    score = metric.name.split()[0]
    side = 'up' if metric.higher else 'down'
    plots: dict[str, Callable[[Axes], None]] = {
        f'Test {score}: a dot for each seed, a bar at the mean': lambda ax: _draw_arms(ax, rows),
        f'Size against quality: {side} and to the left is better': lambda ax: _draw_sizes(ax, rows),
    }
    text = ''.join(_svg(draw, title, task) for title, draw in plots.items())
    return text + ''.join(curves(workdir, [*rows.values()], phase, task) for phase in phases)


def curves(workdir: pathlib.Path, rows: Sequence[Row], phase: int, task: str = '') -> str:
    """The plot of one phase, every run in it once; '' where no row has such a phase."""
    if not any(_has(runs, phase) for row in rows for runs in row.runs):
        return ''
    draw = functools.partial(_draw_curves, workdir=workdir, rows=rows, phase=phase)
    return _svg(draw, f'{PHASES[phase]}: lines train, dots validation', task)


def search_curves(workdir: pathlib.Path, title: str, lines: dict[str, tuple[str, bool]]) -> str:
    """The plot of one search; '' where its runs are gone.

    Args:
      workdir: of the recipe.
      title: of the search.
      lines: run -> its name in the legend, whether it was chosen.
    """
    if not any((workdir / run / 'metrics.jsonl').exists() for run in lines):
        return ''
    return _svg(functools.partial(_draw_search, workdir=workdir, lines=lines), title, 'Search')


def overview(tasks: dict[str, dict[str, Row]]) -> str:
    """The plot of what share of the teacher's score each arm of each task keeps."""
    title = "Share of the teacher's score: a dot at the mean, a bar from seed to seed"
    return _svg(functools.partial(_draw_overview, tasks=tasks), title, 'All tasks')
