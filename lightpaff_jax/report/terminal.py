"""Text for a terminal: tables and sentences of at most 100 columns."""

import textwrap
from collections.abc import Sequence

from lightpaff_jax.report.tables import Table

WIDTH = 100
_GAP = '  '


def wrap(sentence: str) -> str:
    """Breaks a sentence into lines."""
    return textwrap.fill(sentence, WIDTH)


def format_table(table: Table) -> str:
    """Returns a table with aligned columns; those that do not fit are a table below it.

    Titles of columns break at spaces. A star marks a cell that is bold on the page.
    """
    lines = [list(line) for line in table.lines]
    for number, column in table.best:
        lines[number][column] += '*'
    columns = [list(column) for column in zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    titles = [
        textwrap.wrap(title, max(width, *map(len, title.split())), break_long_words=False)
        if title
        else []
        for title, width in zip(table.header, widths, strict=True)
    ]
    widths = [max([width, *map(len, title)]) for title, width in zip(titles, widths, strict=True)]
    blocks, start = [], 1
    while start < len(columns):
        end, total = start, widths[0]
        while end < len(columns) and (end == start or total + len(_GAP) + widths[end] <= WIDTH):
            total += len(_GAP) + widths[end]
            end += 1
        shown = [0, *range(start, end)]
        blocks.append(_format_block([(columns[n], titles[n], widths[n]) for n in shown]))
        start = end
    return '\n\n'.join(blocks)


def _format_block(columns: Sequence[tuple[list[str], list[str], int]]) -> str:
    height = max(len(title) for _, title, _ in columns)
    filled = [
        ([''] * (height - len(title)) + title + ['-' * width] + cells, width)
        for cells, title, width in columns
    ]
    rows = zip(*(column for column, _ in filled), strict=True)
    widths = [width for _, width in filled]
    texts = [
        [
            cells[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
        ]
        for cells in rows
    ]
    return '\n'.join(_GAP.join(cells).rstrip() for cells in texts)
