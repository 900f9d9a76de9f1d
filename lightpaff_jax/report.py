"""The report of a recipe: what its runs wrote -> report.md, report.html.

    python -m lightpaff_jax.report WORKDIR

Every number comes from recipe.json, speed.json and the result.json and metrics.jsonl of the runs.
"""

import functools
import html
import io
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightpaff_jax.config import UserError
from lightpaff_jax.results import (
    GREY,
    Row,
    Table,
    headlines,
    main_table,
    mean,
    perplexity,
    provenance,
    read,
    read_speed,
    speed_table,
    values,
)

INK = '#010203'  # stands for the page's text colour in a plot


def markdown(table: Table) -> str:
    """The table with aligned columns, for a file and for a terminal."""
    lines = [[_plain(cell) for cell in line] for line in (table.header, *table.lines)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    right = [column > 0 and any(table.header) for column in range(len(widths))]
    rule = ['-' * (w - r) + ':' * r for w, r in zip(widths, right, strict=True)]
    text = []
    for line in (lines[0], rule, *lines[1:]):
        cells = zip(line, widths, right, strict=True)
        text.append(' | '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells))
    return '\n'.join(f'| {line} |' for line in text)


def _plain(text: str) -> str:
    return html.escape(text, quote=False).replace('|', '\\|')


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


def _draw_curves(ax: Axes, workdir: pathlib.Path, rows: dict[str, Row], phase: int) -> None:
    owners: dict[str, list[Row]] = {}  # run -> the rows it is part of
    for row in rows.values():
        for runs in row.runs:
            if len(runs) > phase:
                owners.setdefault(runs[phase], []).append(row)
    late, labels = [], set()
    for run, of in owners.items():
        label = ' and '.join(row.label for row in of)
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
    ax.set(xlabel='updates', ylabel='cross-entropy, nats per token')
    cast(Figure, ax.figure).legend(loc='outside lower left', ncols=2, frameon=False)


def _draw_arms(ax: Axes, rows: dict[str, Row]) -> None:
    arms = [row for key, row in rows.items() if key != 'teacher'][::-1]
    for y, row in enumerate(arms):
        dots = values(row, perplexity)
        ax.plot(dots, [y] * len(dots), 'o', color=row.colour, ms=7, alpha=0.65, mec='none')
        ax.plot([mean(row)] * 2, [y - 0.28, y + 0.28], color=row.colour, lw=2)
    ax.set_yticks(range(len(arms)), [row.label for row in arms])
    ax.set(xlabel='test perplexity per token', ylim=(-0.6, len(arms) - 0.1))
    if 'teacher' in rows:
        x = mean(rows['teacher'])
        ax.axvline(x, color=GREY, lw=1.5, ls='--')
        top = (x, len(arms) - 0.15)
        ax.annotate('teacher', top, (5, 0), textcoords='offset points', va='top', color=GREY)
    ax.grid(axis='y', visible=False)


def _draw_sizes(ax: Axes, rows: dict[str, Row]) -> None:
    points = [(mean(row), row.chains[0][-1]['parameters'], row) for row in rows.values()]
    points.sort(key=lambda point: point[0])
    step = 0.075 * (points[-1][0] - points[0][0] or 1)  # least distance of two names
    at = -math.inf
    for y, x, row in points:
        at = max(at + step, y)
        ax.plot(x, y, 'o', color=row.colour, ms=8, mec='none')
        ax.annotate(
            row.label, (x, y), (12, at), textcoords=('offset points', 'data'), va='center',
            color=row.colour,
        )  # fmt: skip
    ax.set_xscale('log')
    sizes = sorted({x for _, x, _ in points})
    ax.set_xticks(sizes, [f'{x / 1e6:.3g} M' for x in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(sizes[0] * 0.85, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.3 * 1.2)
    ax.set(xlabel='parameters (log scale)', ylabel='test perplexity per token')


def _svg(draw: Callable[[Axes], None], title: str) -> str:
    """An inline SVG figure: the page's text colour and font, no reference to anything outside."""
    style: Any = {
        'svg.fonttype': 'none', 'svg.hashsalt': title, 'font.size': 9.5, 'axes.spines.top': False,
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
    label = rf'<svg\1 role="img" aria-label="{title}">'
    svg = re.sub(r'<svg[^>]*?( viewBox="[^"]*")[^>]*>', label, svg)
    return f'<figure><figcaption>{title}</figcaption>{svg}</figure>'


def figures(workdir: pathlib.Path, rows: dict[str, Row]) -> str:
    """The plots, each an inline SVG."""
    plots: dict[str, Callable[[Axes], None]] = {
        'Test perplexity: a dot for each seed, a bar at the mean': lambda ax: _draw_arms(ax, rows),
        'Size against quality: down and to the left is better': lambda ax: _draw_sizes(ax, rows),
    }
    for phase, name in enumerate(('Pre-training', 'Fine-tuning')):
        if any(len(runs) > phase for row in rows.values() for runs in row.runs):
            draw = functools.partial(_draw_curves, workdir=workdir, rows=rows, phase=phase)
            plots[f'{name}: lines train, dots validation'] = draw
    return ''.join(_svg(draw, title) for title, draw in plots.items())


def _html_table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f'<tr><th>{first}</th>{"".join(f"<{tag}>{cell}</{tag}>" for cell in rest)}</tr>'

    head = line(table.header, 'th') if any(table.header) else ''
    body = ''.join(line(cells, 'td') for cells in table.lines)
    kind = 'scroll' if head else 'scroll facts'
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="{kind}" tabindex="0"><table>'
        f'<thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{html.escape(table.note)}</p>'
    )


CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3; --page: #fff;
  --card: #f6f7f9; --warn: #b54708 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa4b1; --line: #333a44;
  --page: #111418; --card: #191e24; --warn: #f5a623 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 2rem 1.1rem 3rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1.2rem; letter-spacing: -.02em }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.said { padding: 0; list-style: none; max-width: 50rem }
.said li { margin: .6rem 0; padding-left: .9rem; border-left: 3px solid var(--line) }
.said li:first-child { font-size: 1.15rem; border-color: #1f80e0 }
.said li.warn { border-color: var(--warn); color: var(--warn) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px }
table { border-collapse: collapse; width: 100%; font-size: .82rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .45rem .55rem; text-align: right; white-space: nowrap }
thead th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom;
  line-height: 1.25; background: var(--card) }
tbody tr { border-bottom: 1px solid var(--line) }
tbody tr:last-child { border: 0 }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--page) }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 100% }
.facts th { font-weight: 500; color: var(--soft) }
.note { color: var(--soft); font-size: .85rem; max-width: 50rem; margin: .6rem 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; margin-top: 1.6rem }
figure { margin: 0; padding: .9rem; background: var(--card); border-radius: 8px }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .6rem }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
@media (max-width: 34rem) { tbody th { white-space: normal; min-width: 6.2rem }
  figure { padding: .7rem .4rem } figcaption { padding: 0 .3rem } }
"""


def page(title: str, said: Sequence[str], tables: Sequence[Table], plots: str) -> str:
    """The self-contained HTML page; `plots` is HTML, everything else is text."""
    items = ''.join(
        f'<li{" class=warn" * s.startswith("Warning")}>{html.escape(s)}</li>' for s in said
    )
    first, *rest = (_html_table(table) for table in tables)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{CSS}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><ul class="said">{items}</ul>{first}'
        f'<div class="plots">{plots}</div>{"".join(rest)}</body></html>\n'
    )


def write(workdir: pathlib.Path) -> str:
    """Writes report.md and report.html into a recipe's workdir.

    Returns:
      The table of results in markdown.

    Raises:
      UserError: no such folder, no finished run, or a file that cannot be read; names it.
    """
    recipe, rows, missing = read(workdir)
    speed = read_speed(workdir)
    facts, warnings = provenance(workdir, recipe, rows)
    said = headlines(rows, speed) + warnings
    if missing:
        said.append(f'Warning: left out, as there is no result: {", ".join(missing)}.')
    if speed is None:
        said.append('Warning: there is no speed.json, so nothing about speed.')
    tables = [main_table(rows), *([speed_table(speed)] if speed else []), facts]
    title = f'Distillation report: {recipe["name"]}'
    text = [f'# {_plain(title)}', '\n'.join(f'- {_plain(s)}' for s in said)]
    for table in tables:
        text += [
            f'## {table.title}',
            markdown(table),
            *([_plain(table.note)] if table.note else []),
        ]
    (workdir / 'report.md').write_text('\n\n'.join(text) + '\n', 'utf-8')
    plots = figures(workdir, rows)
    (workdir / 'report.html').write_text(page(title, said, tables, plots), 'utf-8')
    return markdown(tables[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and where the report is; 2 after one line on stderr for bad input."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or argv[0].startswith('-'):
        print('usage: python -m lightpaff_jax.report WORKDIR', file=sys.stderr)
        return 2
    try:
        print(write(pathlib.Path(argv[0])))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'wrote {argv[0]}/report.md and report.html')
    return 0


if __name__ == '__main__':
    sys.exit(main())
