"""The report of a recipe: what its runs wrote -> report.md, report.html.

    python -m lightpaff_jax.report WORKDIR

Every number comes from recipe.json, speed.json and the result.json and metrics.jsonl of the runs.
"""

import dataclasses
import html
import pathlib
import sys
from collections.abc import Sequence

from lightpaff_jax.config import UserError
from lightpaff_jax.findings import headlines, speed_sentence
from lightpaff_jax.plots import curves, figures
from lightpaff_jax.results import read, read_speed
from lightpaff_jax.tables import Table, main_table, provenance, speed_table


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


def _bullets(said: Sequence[str]) -> str:
    return '\n'.join(f'- {_plain(sentence)}' for sentence in said)


def _html_list(said: Sequence[str]) -> str:
    items = ''.join(
        f'<li{" class=warn" * s.startswith("Warning")}>{html.escape(s)}</li>' for s in said
    )
    return f'<ul class="said">{items}</ul>' if said else ''


def _html_table(table: Table, said: Sequence[str] = ()) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f'<tr><th>{first}</th>{"".join(f"<{tag}>{cell}</{tag}>" for cell in rest)}</tr>'

    head = line(table.header, 'th') if any(table.header) else ''
    body = ''.join(line(cells, 'td') for cells in table.lines)
    kind = 'scroll' if head else 'scroll facts'
    return (
        f'<h2>{html.escape(table.title)}</h2>{_html_list(said)}'
        f'<div class="{kind}" tabindex="0"><table>'
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


@dataclasses.dataclass(frozen=True)
class Part:
    """A task's share of the report: what its numbers say, its results, its plots as HTML."""

    said: Sequence[str]
    table: Table
    plots: str


def page(title: str, said: Sequence[str], parts: Sequence[Part], shared: str,
         tables: Sequence[Table]) -> str:  # fmt: skip
    """The self-contained HTML page; plots are HTML, everything else is text.

    Args:
      title: of the page.
      said: sentences that stand above all parts.
      parts: one a task.
      shared: plots of what several tasks share, or ''.
      tables: those behind the parts.
    """
    body = [_html_table(p.table, p.said) + f'<div class="plots">{p.plots}</div>' for p in parts]
    if shared:
        body.append(f'<h2>Shared by all tasks</h2><div class="plots">{shared}</div>')
    body += [_html_table(table) for table in tables]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{CSS}</style></head><body>'
        f'<h1>{html.escape(title)}</h1>{_html_list(said)}{"".join(body)}</body></html>\n'
    )


def write(workdir: pathlib.Path) -> str:
    """Writes report.md and report.html into a recipe's workdir.

    Returns:
      The tables of results in markdown; each has a heading where there are several tasks.

    Raises:
      UserError: no such folder, no finished run, or a file that cannot be read; names it.
    """
    recipe, tasks, missing = read(workdir)
    speed = read_speed(workdir)
    several = len(recipe['tasks']) > 1
    parts, said = [], []
    for task, rows in tasks.items():
        if several:
            plots = figures(workdir, rows, (1,), task)
            parts.append(Part(headlines(rows, None), main_table(rows, task), plots))
        else:
            said = headlines(rows, speed)
            parts.append(Part((), main_table(rows), figures(workdir, rows)))
    if several and speed:
        said.append(speed_sentence(speed))
    facts, warnings = provenance(workdir, recipe, tasks)
    said += warnings
    if missing:
        said.append(f'Warning: left out, as there is no result: {", ".join(missing)}.')
    if speed is None:
        said.append('Warning: there is no speed.json, so nothing about speed.')
    measured = next(iter(recipe['tasks'])) if several else ''
    tables = [*([speed_table(speed, measured)] if speed else []), facts]
    title = f'Distillation report: {recipe["name"]}'
    text = _markdown_page(title, said, parts, tables)
    (workdir / 'report.md').write_text(text, 'utf-8')
    rows_of_all = [row for rows in tasks.values() for row in rows.values()]
    shared = curves(workdir, rows_of_all, 0) if several else ''
    (workdir / 'report.html').write_text(page(title, said, parts, shared, tables), 'utf-8')
    return '\n\n'.join(
        (f'## {_plain(p.table.title)}\n\n' if several else '') + markdown(p.table) for p in parts
    )


def _markdown_page(title: str, said: Sequence[str], parts: Sequence[Part],
                   tables: Sequence[Table]) -> str:  # fmt: skip
    text = [f'# {_plain(title)}', _bullets(said)]
    for table, sentences in [*((p.table, p.said) for p in parts), *((t, ()) for t in tables)]:
        text += [f'## {_plain(table.title)}', _bullets(sentences), markdown(table)]
        text.append(_plain(table.note))
    return '\n\n'.join(block for block in text if block) + '\n'


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
