"""The plots of a report, as inline SVG in the colours and the font of the page."""

import functools
import html
import io
import itertools
import math
import pathlib
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightpaff_jax import config
from lightpaff_jax.config.objectives import Objective
from lightpaff_jax.report.results import GREY, Row, mean, teacher_share, values
from lightpaff_jax.runtime import json_file

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


# A line of metrics.jsonl; null stands for a number that is not finite.
_LINE = {'kind': str, 'step': int, **dict.fromkeys(('ce?', 'loss?', 'matching?'), float | None)}
Curve = tuple[str, str, str, float]  # run, label, colour and width of a line


def _draw_curves(
    ax: Axes,
    workdir: pathlib.Path,
    curves: Sequence[Curve],
    ylabel: str,
    scores: tuple[str, ...] = ('ce',),
) -> None:
    """Draws the first of the scores that a line of metrics.jsonl has; skips lines without any."""
    shown: list[float] = []
    for run, label, colour, width in curves:
        path = workdir / run / 'metrics.jsonl'
        lines = json_file.read_lines(path, _LINE) if path.exists() else []
        ces = []
        for x in lines:
            for key in [key for key in scores if key in x][:1]:
                ces.append((x['kind'], x['step'], math.nan if x[key] is None else x[key]))
        steps, losses = ([point[n] for point in ces if point[0] == 'train'] for n in (1, 2))
        validation = [[point[n] for point in ces if point[0] == 'validation'] for n in (1, 2)]
        ax.plot(steps, losses, color=colour, lw=width, alpha=0.8, label=label)
        ax.plot(*validation, 'o', color=colour, ms=4, mec='none')
        # The first tenth falls steeply and would flatten the rest of the plot.
        late = [ce for step, ce in zip(steps, losses, strict=True) if step > steps[-1] / 10]
        shown += [loss for loss in late + validation[1] if math.isfinite(loss)]
    if shown:
        margin = 0.04 * (max(shown) - min(shown)) or 0.1
        ax.set_ylim(min(shown) - margin, max(shown) + margin)
    ax.set(xlabel='updates', ylabel=ylabel)


def _draw_overview(ax: Axes, tasks: dict[str, dict[str, Row]]) -> None:
    names = [*tasks][::-1]
    for y, rows in enumerate(tasks[name] for name in names):
        students = [row for key, row in rows.items() if key != 'teacher' and 'teacher' in rows]
        for number, row in enumerate(students):
            if shares := teacher_share(row, rows['teacher']):
                at = y + 0.3 - 0.6 * number / max(len(students) - 1, 1)
                ax.plot([min(shares), max(shares)], [at] * 2, color=row.colour, lw=2, alpha=0.4)
                x = statistics.fmean(shares)
                ax.plot(x, at, 'o', color=row.colour, ms=6, mec='none', label=row.label)
    ax.axvline(100, color=GREY, lw=1.5, ls='--')
    ax.axvline(95, color=GREY, lw=1, ls=':')
    # matplotlib would read text between dollar signs as a formula.
    ax.set_yticks(range(len(names)), [name.replace('$', r'\$') for name in names])
    ax.set(xlabel='share of teacher score, % (lines: 95 and 100)', ylim=(-0.6, len(names) - 0.4))
    ax.grid(axis='y', visible=False)


def _draw_students(ax: Axes, rows: dict[str, Row], label: str) -> None:
    students = [row for key, row in rows.items() if key != 'teacher'][::-1]
    for y, row in enumerate(students):
        scores = values(row)
        ax.plot(scores, [y] * len(scores), 'o', color=row.colour, ms=7, alpha=0.65, mec='none')
        ax.plot([mean(row)] * 2, [y - 0.28, y + 0.28], color=row.colour, lw=2)
    ax.set_yticks(range(len(students)), [textwrap.fill(row.label, 24) for row in students])
    ax.set(xlabel=label, ylim=(-0.6, len(students) - 0.1))
    if 'teacher' in rows:
        x = mean(rows['teacher'])
        ax.axvline(x, color=GREY, lw=1.5, ls='--')
        top = (x, len(students) - 0.15)
        ax.annotate('teacher', top, (5, 0), textcoords='offset points', va='top', color=GREY)
    ax.grid(axis='y', visible=False)


def _draw_sizes(ax: Axes, rows: dict[str, Row], label: str) -> None:
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
    ax.set(xlabel='parameters (log scale)', ylabel=label)


def _svg(draw: Callable[[Axes], None], title: str, task: str) -> str:
    """Returns an inline SVG figure that uses the page's text colour and font.

    The ids in the SVG are unique on the page if `task` and `title` together are.
    """
    name = f'{task}: {title}' if task else title
    with matplotlib.rc_context(STYLE | {'svg.hashsalt': name}):
        figure = Figure(figsize=(4.2, 3.3), layout='constrained')
        ax = figure.add_subplot()
        draw(ax)
        handles, labels = ax.get_legend_handles_labels()
        if entries := dict(zip(labels, handles, strict=True)):  # seeds and tasks share a label
            columns = 1 if max(map(len, labels)) >= 32 else 2
            figure.legend(
                entries.values(), entries, loc='outside lower left', ncols=columns, frameon=False
            )
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
    students = functools.partial(_draw_students, rows=rows, label=f'test {metric.label}')
    sizes = functools.partial(_draw_sizes, rows=rows, label=f'test {metric.label}')
    return ''.join(
        (
            _svg(students, f'Test {score}: a dot per seed, a bar at the mean', task),
            _svg(sizes, f'Size against score: {side} and left is better', task),
            *(learning_curves(workdir, [*rows.values()], phase, task) for phase in phases),
        )
    )


def learning_curves(workdir: pathlib.Path, rows: Sequence[Row], phase: int, task: str = '') -> str:
    """Returns a plot with each run of a phase once, or '' if no row has the phase."""
    rows_of_run: dict[str, list[Row]] = {}  # rows can share a run of pre-training
    units = set()
    at = phase - len(PHASES)  # from the end: an imported teacher has one run only
    for row in rows:
        for runs, results in zip(row.runs, row.results, strict=True):
            if len(runs) >= -at:
                rows_of_run.setdefault(runs[at], []).append(row)
                units.add(config.OBJECTIVES[results[at]['objective']].unit)
    curves: list[Curve] = []
    for run, run_rows in rows_of_run.items():
        labels = dict.fromkeys(row.label for row in run_rows)
        label = (' and ' if len(labels) < 3 else '; ').join(labels)
        curves.append((run, label, run_rows[0].colour, 1.0))
    ylabel = f'cross-entropy, nats per {" or ".join(sorted(units))}'
    draw = functools.partial(_draw_curves, workdir=workdir, curves=curves, ylabel=ylabel)
    title = f'{PHASES[phase]}: lines are training, dots are validation'
    return _svg(draw, title, task) if curves else ''


def run_curve(workdir: pathlib.Path, objective: Objective) -> str:
    """Returns a plot of the losses of a single run, or '' without metrics.jsonl."""
    if not (workdir / 'metrics.jsonl').exists():
        return ''
    curves: list[Curve] = [('', 'training', CANDIDATE_COLOURS[0], 1.0)]
    arguments: dict[str, Any] = {'ylabel': f'cross-entropy, nats per {objective.unit}'}
    if objective.outputs == 'matching':
        arguments = {'ylabel': 'matching loss', 'scores': ('matching', 'loss')}
    draw = functools.partial(_draw_curves, workdir=workdir, curves=curves, **arguments)
    return _svg(draw, 'Loss: the line is training, dots are validation', '')


def sweep_curves(workdir: pathlib.Path, title: str, candidates: dict[str, tuple[str, bool]]) -> str:
    """Returns a plot of the runs of a sweep, or '' if the runs were deleted.

    Args:
      workdir: workdir of the recipe.
      title: title of the sweep.
      candidates: run -> its label in the legend, and whether it was chosen.
    """
    if not any((workdir / run / 'metrics.jsonl').exists() for run in candidates):
        return ''
    curves = [
        (run, f'{label}, chosen' if chosen else label, colour, 2 if chosen else 0.9)
        for (run, (label, chosen)), colour in zip(
            candidates.items(), itertools.cycle(CANDIDATE_COLOURS), strict=False
        )
    ]
    ylabel = 'cross-entropy, nats'
    draw = functools.partial(_draw_curves, workdir=workdir, curves=curves, ylabel=ylabel)
    return _svg(draw, title, 'Sweep')


def overview(tasks: dict[str, dict[str, Row]]) -> str:
    """Returns a plot of the share of the teacher's score that each student reaches in each task."""
    title = 'Share of teacher score: a dot at the mean, a bar over the seeds'
    return _svg(functools.partial(_draw_overview, tasks=tasks), title, 'All tasks')
