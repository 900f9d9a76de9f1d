"""The plots of a report, as inline SVG in the colours and the font of the page."""

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
from lightpaff_jax.report.results import GREY, ROWS, Row, mean, teacher_share, values

INK = '#010203'  # is replaced by the page's text colour, which depends on the reader's theme
PHASES = ('Pre-training', 'Fine-tuning')
CANDIDATE_COLOURS = ('#1f80e0', '#d9480f', '#12977f', '#a26be0', '#b07d05', '#d6409f', GREY)
STYLE: Any = {  # Any: the keys of matplotlib.typing are literals
    'svg.fonttype': 'none',  # text stays text, in the font of the page
    'font.size': 9.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.15,
    'grid.color': INK,
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': GREY,
    'xtick.color': INK,
    'ytick.color': INK,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'legend.fontsize': 8.5,
    'legend.handlelength': 1.2,
    'legend.columnspacing': 1.2,
    'axes.unicode_minus': False,
}


def _read_curve(workdir: pathlib.Path, run: str, kind: str) -> tuple[list[int], list[float]]:
    """Returns the steps and cross-entropies of a run: of 'train' or of 'validation'."""
    path = workdir / run / 'metrics.jsonl'
    points = []
    # Reads bytes, so that invalid UTF-8 is reported as an invalid line of JSON.
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            line = json.loads(text)
            if line['kind'] == kind:
                points.append((line['step'], line['ce']))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: line {number} cannot be read: {error}') from error
    return [step for step, _ in points], [ce for _, ce in points]


def _draw_run(
    ax: Axes, workdir: pathlib.Path, run: str, colour: str, **line_style: Any
) -> list[float]:
    """Draws the learning curve of a run; returns the values that the axis must show."""
    steps, losses = _read_curve(workdir, run, 'train')
    validation = _read_curve(workdir, run, 'validation')
    ax.plot(steps, losses, color=colour, **line_style)
    ax.plot(*validation, 'o', color=colour, ms=4, mec='none')
    # The first tenth falls steeply and would flatten the rest of the plot.
    late = [ce for step, ce in zip(steps, losses, strict=True) if step > steps[-1] / 10]
    return late + validation[1]


def _draw_curves(ax: Axes, workdir: pathlib.Path, rows: Sequence[Row], phase: int) -> None:
    rows_of_run: dict[str, list[Row]] = {}  # rows can share a run of pre-training
    units = set()
    for row in rows:
        for runs, results in zip(row.runs, row.results, strict=True):
            if _has_phase(runs, phase):
                at = phase - len(PHASES)  # from the end: an imported teacher has one run only
                rows_of_run.setdefault(runs[at], []).append(row)
                units.add(config.OBJECTIVES[results[at]['objective']].unit)
    shown, labels = [], set()
    for run, run_rows in rows_of_run.items():
        label = _join([*dict.fromkeys(row.label for row in run_rows)])
        legend_label = None if label in labels else label  # seeds and tasks share a label
        colour = run_rows[0].colour
        shown += _draw_run(ax, workdir, run, colour, lw=1, alpha=0.75, label=legend_label)
        labels.add(label)
    _limit_axis(ax, shown)
    ax.set(xlabel='updates', ylabel=f'cross-entropy, nats per {" or ".join(sorted(units))}')
    _add_legend(ax)


def _join(labels: Sequence[str]) -> str:
    return ' and '.join(labels) if len(labels) < 3 else '; '.join(labels)


def _add_legend(ax: Axes) -> None:
    """Adds a legend below the plot, in one column if a label is long."""
    figure = cast(Figure, ax.figure)
    longest = max(map(len, ax.get_legend_handles_labels()[1]), default=0)
    figure.legend(loc='outside lower left', ncols=1 + (longest < 32), frameon=False)


def _has_phase(runs: Sequence[str], phase: int) -> bool:
    return len(runs) >= len(PHASES) - phase


def _limit_axis(ax: Axes, losses: Sequence[float]) -> None:
    """Limits the axis to the finite values, with a margin."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite:
        margin = 0.04 * (max(finite) - min(finite)) or 0.1
        ax.set_ylim(min(finite) - margin, max(finite) + margin)


def _draw_sweep(ax: Axes, workdir: pathlib.Path, candidates: dict[str, tuple[str, bool]]) -> None:
    shown = []
    colours = itertools.cycle(CANDIDATE_COLOURS)
    for (run, (label, chosen)), colour in zip(candidates.items(), colours, strict=False):
        label = f'{label}, chosen' if chosen else label
        width = 2 if chosen else 0.9
        shown += _draw_run(ax, workdir, run, colour, lw=width, alpha=0.8, label=label)
    _limit_axis(ax, shown)
    ax.set(xlabel='updates', ylabel='cross-entropy, nats')
    _add_legend(ax)


def _draw_overview(ax: Axes, tasks: dict[str, dict[str, Row]]) -> None:
    names = [*tasks][::-1]
    drawn = set()
    for y, rows in enumerate(tasks[name] for name in names):
        students = [key for key in rows if key != 'teacher'] if 'teacher' in rows else []
        for number, key in enumerate(students):
            shares = teacher_share(rows[key], rows['teacher'])
            if shares:
                at = y + 0.3 - 0.6 * number / max(len(students) - 1, 1)
                label = None if key in drawn else ROWS[key][0]
                x = sum(shares) / len(shares)
                ax.plot([min(shares), max(shares)], [at] * 2, color=ROWS[key][1], lw=2, alpha=0.4)
                ax.plot(x, at, 'o', color=ROWS[key][1], ms=6, mec='none', label=label)
                drawn.add(key)
    ax.axvline(100, color=GREY, lw=1.5, ls='--')
    ax.axvline(95, color=GREY, lw=1, ls=':')
    ax.set_yticks(range(len(names)), [_escape_formula(name) for name in names])
    ax.set(xlabel='share of teacher score, % (lines: 95 and 100)', ylim=(-0.6, len(names) - 0.4))
    ax.grid(axis='y', visible=False)
    if drawn:
        _add_legend(ax)


def _escape_formula(name: str) -> str:
    """Escapes the sign by which matplotlib recognises a formula."""
    return name.replace('$', r'\$')


def _score_label(rows: dict[str, Row]) -> str:
    return f'test {next(iter(rows.values())).metric.label}'


def _draw_students(ax: Axes, rows: dict[str, Row]) -> None:
    students = [row for key, row in rows.items() if key != 'teacher'][::-1]
    for y, row in enumerate(students):
        scores = values(row)
        ax.plot(scores, [y] * len(scores), 'o', color=row.colour, ms=7, alpha=0.65, mec='none')
        ax.plot([mean(row)] * 2, [y - 0.28, y + 0.28], color=row.colour, lw=2)
    ax.set_yticks(range(len(students)), [textwrap.fill(row.label, 24) for row in students])
    ax.set(xlabel=_score_label(rows), ylim=(-0.6, len(students) - 0.1))
    if 'teacher' in rows:
        x = mean(rows['teacher'])
        ax.axvline(x, color=GREY, lw=1.5, ls='--')
        top = (x, len(students) - 0.15)
        ax.annotate('teacher', top, (5, 0), textcoords='offset points', va='top', color=GREY)
    ax.grid(axis='y', visible=False)


def _draw_sizes(ax: Axes, rows: dict[str, Row]) -> None:
    points = [(mean(row), row.parameters, row) for row in rows.values()]
    points.sort(key=lambda point: point[0])
    lowest, highest = points[0][0], points[-1][0]
    # Least distance of two labels, so that labels of equal scores do not overlap.
    distance = 0.075 * (1 if math.isclose(lowest, highest) else highest - lowest)
    at = -math.inf
    for y, x, row in points:
        at = max(at + distance, y)
        ax.plot(x, y, 'o', color=row.colour, ms=8, mec='none')
        coordinates = ('offset points', 'data')
        ax.annotate(
            row.label, (x, y), (12, at), textcoords=coordinates, va='center', color=row.colour
        )
    ax.set_ylim(lowest - distance, at + distance)
    ax.set_xscale('log')
    sizes = sorted({x for _, x, _ in points})
    ax.set_xticks(sizes, [f'{x / 1e6:.3g} M' for x in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(sizes[0] * 0.85, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.3 * 1.2)
    ax.set(xlabel='parameters (log scale)', ylabel=_score_label(rows))


def _svg(draw: Callable[[Axes], None], title: str, task: str) -> str:
    """Returns an inline SVG figure that uses the page's text colour and font.

    The ids in the SVG are unique on the page if `task` and `title` together are.
    """
    name = f'{task}: {title}' if task else title
    with matplotlib.rc_context(STYLE | {'svg.hashsalt': name}):
        figure = Figure(figsize=(4.2, 3.3), layout='constrained')
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format='svg', transparent=True)
    svg = file.getvalue()
    # Metadata has the time and links; ids of groups repeat from figure to figure.
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.S)
    svg = re.sub(r'(?<=<g) id="[^"]*"', '', svg).replace(INK, 'currentColor')
    label = f'role="img" aria-label="{html.escape(name)}">'
    svg = re.sub(r'<svg[^>]*?( viewBox="[^"]*")[^>]*>', lambda m: f'<svg{m[1]} {label}', svg)
    return f'<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>'


def task_plots(
    workdir: pathlib.Path, rows: dict[str, Row], phases: Sequence[int] = (0, 1), task: str = ''
) -> str:
    """Returns the plots of a task: scores, size against score, and learning curves.

    Args:
      workdir: workdir of the recipe.
      rows: finished rows of the task.
      phases: phases with a plot of learning curves; 0 is pre-training, 1 is fine-tuning.
      task: name of the task, or '' if the recipe has one task.
    """
    metric = next(iter(rows.values())).metric
    score = metric.name.split()[0]
    side = 'up' if metric.higher_is_better else 'down'
    plots: dict[str, Callable[[Axes], None]] = {
        f'Test {score}: a dot per seed, a bar at the mean': lambda ax: _draw_students(ax, rows),
        f'Size against score: {side} and left is better': lambda ax: _draw_sizes(ax, rows),
    }
    text = ''.join(_svg(draw, title, task) for title, draw in plots.items())
    curves = (learning_curves(workdir, [*rows.values()], phase, task) for phase in phases)
    return text + ''.join(curves)


def learning_curves(workdir: pathlib.Path, rows: Sequence[Row], phase: int, task: str = '') -> str:
    """Returns a plot with each run of a phase once, or '' if no row has the phase."""
    if not any(_has_phase(runs, phase) for row in rows for runs in row.runs):
        return ''
    draw = functools.partial(_draw_curves, workdir=workdir, rows=rows, phase=phase)
    return _svg(draw, f'{PHASES[phase]}: lines are training, dots are validation', task)


def sweep_curves(workdir: pathlib.Path, title: str, candidates: dict[str, tuple[str, bool]]) -> str:
    """Returns a plot of the runs of a sweep, or '' if the runs were deleted.

    Args:
      workdir: workdir of the recipe.
      title: title of the sweep.
      candidates: run -> its label in the legend, and whether it was chosen.
    """
    if not any((workdir / run / 'metrics.jsonl').exists() for run in candidates):
        return ''
    draw = functools.partial(_draw_sweep, workdir=workdir, candidates=candidates)
    return _svg(draw, title, 'Sweep')


def overview(tasks: dict[str, dict[str, Row]]) -> str:
    """Returns a plot of the share of the teacher's score that each student reaches in each task."""
    title = 'Share of teacher score: a dot at the mean, a bar over the seeds'
    return _svg(functools.partial(_draw_overview, tasks=tasks), title, 'All tasks')
