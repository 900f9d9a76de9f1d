"""The plots of a report: inline SVG in the colours and the font of the page."""

import functools
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightpaff_jax.config import UserError
from lightpaff_jax.results import GREY, Row, mean, values

INK = '#010203'  # stands for the page's text colour in a plot
PHASES = ('Pre-training', 'Fine-tuning')


def _curve(path: pathlib.Path, kind: str) -> tuple[list[int], list[float]]:
    lines = []
    for number, text in enumerate(path.read_text('utf-8').splitlines() if path.exists() else ()):
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
            if len(runs) > phase:
                owners.setdefault(runs[phase], []).append(row)
                units.add('example' if chain[phase]['objective'] == 'classify' else 'token')
    late, labels = [], set()
    for run, of in owners.items():
        label = ' and '.join(dict.fromkeys(row.label for row in of))  # tasks share their labels
        steps, ces = _curve(workdir / run / 'metrics.jsonl', 'train')
        points = _curve(workdir / run / 'metrics.jsonl', 'validation')
        new = None if label in labels else label
        ax.plot(steps, ces, color=of[0].colour, lw=1, alpha=0.75, label=new)
        ax.plot(*points, 'o', color=of[0].colour, ms=4, mec='none')
        late += [ce for step, ce in zip(steps, ces, strict=True) if step > steps[-1] / 10]
        late += points[1]
        labels.add(label)
    late = [ce for ce in late if math.isfinite(ce)]
    if late:
        room = 0.04 * (max(late) - min(late)) or 0.1
        ax.set_ylim(min(late) - room, max(late) + room)
    ax.set(xlabel='updates', ylabel=f'cross-entropy, nats per {" or ".join(sorted(units))}')
    cast(Figure, ax.figure).legend(loc='outside lower left', ncols=2, frameon=False)


def _quality(rows: dict[str, Row]) -> str:
    return f'test {next(iter(rows.values())).metric.label}'


def _draw_arms(ax: Axes, rows: dict[str, Row]) -> None:
    arms = [row for key, row in rows.items() if key != 'teacher'][::-1]
    for y, row in enumerate(arms):
        dots = values(row)
        ax.plot(dots, [y] * len(dots), 'o', color=row.colour, ms=7, alpha=0.65, mec='none')
        ax.plot([mean(row)] * 2, [y - 0.28, y + 0.28], color=row.colour, lw=2)
    ax.set_yticks(range(len(arms)), [row.label for row in arms])
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
        'ytick.color': INK, 'xtick.major.size': 0, 'ytick.major.size': 0, 'legend.fontsize': 9,
        'axes.unicode_minus': False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.8, 3.5), layout='constrained')
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
    if all(len(runs) <= phase for row in rows for runs in row.runs):
        return ''
    draw = functools.partial(_draw_curves, workdir=workdir, rows=rows, phase=phase)
    return _svg(draw, f'{PHASES[phase]}: lines train, dots validation', task)
