"""The HTML page of a report: tables, plots and examples in one file without external references."""

import dataclasses
import html
from collections.abc import Sequence

from lightpaff_jax.report.disagreements import Disagreements
from lightpaff_jax.report.tables import Table

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3; --page: #fff;
  --card: #f6f7f9; --warn: #b54708; --best: #0b61bd }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa4b1; --line: #333a44;
  --page: #111418; --card: #191e24; --warn: #f5a623; --best: #6bb5ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 2rem 1.1rem 3rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1.2rem; letter-spacing: -.02em }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.findings { padding: 0; list-style: none; max-width: 50rem }
.findings li { margin: .6rem 0; padding-left: .9rem; border-left: 3px solid var(--line) }
.findings li:first-child { font-size: 1.15rem; border-color: #1f80e0 }
.findings li.warn { border-color: var(--warn); color: var(--warn) }
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
tr.quoted th, tr.quoted td { color: var(--soft); font-style: italic; font-weight: 400 }
td strong { font-weight: 700; color: var(--best) }
.note { color: var(--soft); font-size: .85rem; max-width: 50rem; margin: .6rem 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; margin-top: 1.6rem }
figure { margin: 0; padding: .9rem; background: var(--card); border-radius: 8px }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .6rem }
details { margin: 1.2rem 0; border: 1px solid var(--line); border-radius: 8px }
summary { cursor: pointer; padding: .6rem .9rem; font-weight: 600; font-size: .92rem }
details[open] > summary { border-bottom: 1px solid var(--line) }
details > p, details > .plots { margin: .8rem .9rem }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: .8rem; margin: .9rem; padding: 0; list-style: none; font-size: .88rem }
.examples li { padding: .7rem .9rem; background: var(--card); border-radius: 8px }
dl { margin: 0; display: grid; grid-template-columns: minmax(3.6rem, max-content) 1fr;
  gap: .3rem .7rem }
dt { color: var(--soft); font-size: .78rem; line-height: 1.7 }
dd { margin: 0; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
@media (max-width: 34rem) { tbody th { white-space: normal; min-width: 6.2rem }
  figure { padding: .7rem .4rem } figcaption { padding: 0 .3rem } }
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the report: its findings, a table, plots as HTML, and examples."""

    findings: Sequence[str]
    table: Table
    plots: str = ''
    collapsed: str = ''
    """Title of the collapsed section with the plots; '' shows them directly."""
    disagreements: Disagreements | None = None


def _list(findings: Sequence[str]) -> str:
    items = ''.join(
        f'<li{" class=warn" * text.startswith("Warning")}>{html.escape(text)}</li>'
        for text in findings
    )
    return f'<ul class="findings">{items}</ul>' if findings else ''


def _table(table: Table) -> str:
    def cell(tag: str, text: str, best: bool = False) -> str:
        text = html.escape(text)
        return f'<{tag}>{f"<strong>{text}</strong>" if best else text}</{tag}>'

    def line(cells: Sequence[str], tag: str, number: int = -1) -> str:
        css_class = ' class="quoted"' if number in table.quoted else ''
        rest = (cell(tag, c, (number, n) in table.best) for n, c in enumerate(cells[1:], 1))
        return f'<tr{css_class}>{cell("th", cells[0])}{"".join(rest)}</tr>'

    head = line(table.header, 'th') if any(table.header) else ''
    body = ''.join(line(cells, 'td', number) for number, cells in enumerate(table.lines))
    css_class = 'scroll' if head else 'scroll facts'
    return (
        f'<div class="{css_class}" tabindex="0"><table>'
        f'<thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{html.escape(table.note)}</p>'
    )


def _examples(disagreements: Disagreements) -> str:
    cards = ''.join(
        '<li><dl>'
        + ''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in example)
        + '</dl></li>'
        for example in disagreements.examples
    )
    if not cards:
        return ''
    count = len(disagreements.examples)
    title = f'Student against teacher: {count} test examples {disagreements.order}'
    return _details(title, f'<ol class="examples">{cards}</ol>')


def _details(title: str, content: str) -> str:
    return f'<details><summary>{html.escape(title)}</summary>{content}</details>'


def _part(part: Part) -> str:
    plots = f'<div class="plots">{part.plots}</div>' if part.plots else ''
    if plots and part.collapsed:
        plots = _details(part.collapsed, plots)
    examples = _examples(part.disagreements) if part.disagreements else ''
    title = html.escape(part.table.title)
    return f'<h2>{title}</h2>{_list(part.findings)}{_table(part.table)}{plots}{examples}'


def render(
    title: str,
    findings: Sequence[str],
    parts: Sequence[Part],
    shared_plots: str,
    tables: Sequence[Table],
) -> str:
    """Returns the page. Plots are inserted as HTML; all other text is escaped.

    Args:
      title: title of the page.
      findings: sentences at the top of the page.
      parts: parts of the page, in order.
      shared_plots: plots of the runs that several tasks share, or ''.
      tables: tables after the parts.
    """
    body = [_part(part) for part in parts]
    if shared_plots:
        body.append(f'<h2>Shared by all tasks</h2><div class="plots">{shared_plots}</div>')
    body += [_part(Part((), table)) for table in tables]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{CSS}</style></head><body>'
        f'<h1>{html.escape(title)}</h1>{_list(findings)}{"".join(body)}</body></html>\n'
    )
