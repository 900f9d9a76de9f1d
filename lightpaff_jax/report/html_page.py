"""The HTML page of a report: tables, plots and examples in one file without external references."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jinja2

from lightpaff_jax.report.examples import Examples
from lightpaff_jax.report.tables import Table

TEMPLATE = pathlib.Path(__file__).with_name('page.html')


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the report: its findings, a table, plots as HTML, and examples."""

    findings: Sequence[str]
    table: Table
    plots: str = ''
    collapsed: str = ''
    """Title of the collapsed section with the plots; '' shows them directly."""
    examples: Examples | None = None


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
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(TEMPLATE.read_text('utf-8')).render(
        title=title, findings=findings, parts=parts, shared_plots=shared_plots, tables=tables
    )
