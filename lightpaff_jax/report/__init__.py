"""The report of a recipe: what its runs wrote -> report.md, report.html.

    python -m lightpaff_jax.report WORKDIR

Every number comes from recipe.json, speed.json and the result.json, metrics.jsonl and predictions
of the runs; the paper's own figures from paper.py.
"""

import dataclasses
import html
import pathlib
import sys
from collections.abc import Sequence

from lightpaff_jax.errors import UserError
from lightpaff_jax.report import disagreements, paper_table, sweeps
from lightpaff_jax.report.findings import headlines, speed_sentence
from lightpaff_jax.report.html_page import Part, page
from lightpaff_jax.report.plots import curves, figures, overview, search_curves
from lightpaff_jax.report.results import Row, read, read_speed, unsteady
from lightpaff_jax.report.tables import Table, main_table, provenance, speed_table


def markdown(table: Table) -> str:
    """The table with aligned columns, for a file and for a terminal."""
    lines = [[_plain(cell) for cell in line] for line in (table.header, *table.lines)]
    for number, column in table.best:
        lines[1 + number][column] = f'**{lines[1 + number][column]}**'
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


def write(workdir: pathlib.Path) -> str:
    """Writes report.md and report.html into a recipe's workdir.

    Returns:
      The tables of results in markdown; each has a heading where there are several tasks.

    Raises:
      UserError: no such folder, no finished run, or a file that cannot be read; names it.
    """
    recipe, tasks, missing = read(workdir)
    paper_table.check(f'{workdir}/recipe.json', recipe)
    sweeps.check(f'{workdir}/recipe.json', recipe)
    speed = read_speed(workdir)
    several = _several(recipe)
    parts = [
        _part(workdir, recipe, task, rows, None if several else speed)
        for task, rows in tasks.items()
    ]
    said = paper_table.sentences(recipe, tasks) if several else [*parts[0].said]
    if several:
        parts.insert(0, Part((), paper_table.table(recipe, tasks), overview(tasks)))
    else:  # the page is of one task, its sentences stand at the top
        parts = [dataclasses.replace(parts[0], said=())]
    results = tuple(parts)
    if searched := sweeps.searches(recipe):
        drawn = ''.join(search_curves(workdir, sweeps.title(e), _lines(e)) for e in searched)
        parts.append(Part(sweeps.sentences(recipe), sweeps.table(recipe), drawn, 'Curves'))
    if several and speed:
        said.append(speed_sentence(speed))
    facts, warnings = provenance(workdir, recipe, tasks)
    said += [*recipe.get('notes', ()), *warnings]
    if missing:
        said.append(f'Warning: left out, as there is no result: {", ".join(missing)}.')
    if speed is None:
        said.append('Warning: there is no speed.json, so nothing about speed.')
    elif names := unsteady(speed):
        said.append(
            f'Warning: something else ran while speed was measured: {" and ".join(names)} differ '
            'twofold between pairs. Remove speed.json and start again to measure it again.'
        )
    measured = next(iter(recipe['tasks'])) if len(recipe['tasks']) > 1 else ''
    tables = [*([speed_table(speed, measured)] if speed else []), facts]
    title = f'Distillation report: {recipe["name"]}'
    text = _markdown_page(title, said, parts, tables)
    (workdir / 'report.md').write_text(text, 'utf-8')
    rows_of_all = [row for rows in tasks.values() for row in rows.values()]
    shared = curves(workdir, rows_of_all, 0) if several else ''
    (workdir / 'report.html').write_text(page(title, said, parts, shared, tables), 'utf-8')
    return '\n\n'.join(
        (f'## {_plain(p.table.title)}\n\n' if several else '') + markdown(p.table) for p in results
    )


def _part(workdir: pathlib.Path, recipe: dict, task: str, rows: dict[str, Row],
          speed: dict | None) -> Part:  # fmt: skip
    """What a task's numbers say, its table, plots and examples."""
    alone = not _several(recipe)
    name = '' if alone else task
    found = disagreements.find(workdir, rows)
    said = headlines(rows, speed) + ([found.said] if found else [])
    plots = figures(workdir, rows, (0, 1) if alone else (1,), name)
    return Part(said, main_table(rows, name), plots, '', found)


def _several(recipe: dict) -> bool:
    """Whether a recipe is of a family's tasks, of which each has a heading."""
    return len(recipe['tasks']) > 1 or bool(recipe.get('scale'))


def _lines(entry: dict) -> dict[str, tuple[str, bool]]:
    """Run of a search -> its name in a plot, and whether it was chosen."""
    return {c['run']: (sweeps.rate(c), c['run'] == entry['chosen']) for c in entry['candidates']}


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
    except OSError as error:
        print(f'error: {error.filename or argv[0]}: {error.strerror or error}', file=sys.stderr)
        return 2
    print(f'wrote {argv[0]}/report.md and report.html')
    return 0
