"""The report of a recipe or of a single run: report.md and report.html, from the files of its runs.

    python -m lightpaff_jax.report WORKDIR

Every number comes from recipe.json, from speed.json, or from result.json, metrics.jsonl and the
predictions of a run. The paper's figures are in paper_table.
"""

import dataclasses
import html
import pathlib
from collections.abc import Sequence

from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError
from lightpaff_jax.report import (
    bootstrap,
    disagreements,
    paper_table,
    run_page,
    sweeps,
    terminal,
)
from lightpaff_jax.report.findings import (
    bootstrap_note,
    family_headlines,
    headline,
    headlines,
    pooled_leads,
    speed_sentence,
)
from lightpaff_jax.report.html_page import Part, render
from lightpaff_jax.report.plots import learning_curves, overview, sweep_curves, task_plots
from lightpaff_jax.report.results import Row, read, read_speed, unstable_timings
from lightpaff_jax.report.tables import (
    Table,
    main_table,
    provenance,
    short_table,
    speed_table,
)
from lightpaff_jax.runtime import storage


def markdown(table: Table) -> str:
    """Returns a table in Markdown with aligned columns, which a terminal shows well too."""
    lines = [[_escape(cell) for cell in line] for line in (table.header, *table.lines)]
    for number, column in table.best:
        lines[1 + number][column] = f'**{lines[1 + number][column]}**'
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    right = [column > 0 and any(table.header) for column in range(len(widths))]
    rule = ['-' * (w - r) + ':' * r for w, r in zip(widths, right, strict=True)]
    rows = []
    for line in (lines[0], rule, *lines[1:]):
        cells = zip(line, widths, right, strict=True)
        rows.append(' | '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells))
    return '\n'.join(f'| {row} |' for row in rows)


def _escape(text: str) -> str:
    return html.escape(text, quote=False).replace('|', '\\|')


def _bullets(findings: Sequence[str]) -> str:
    return '\n'.join(f'- {_escape(sentence)}' for sentence in findings)


def write(workdir: pathlib.Path) -> str:
    """Writes report.md and report.html into the workdir of a recipe, or of a single run.

    Returns:
      The headline and the table of results, for a terminal.

    Raises:
      UserError: the folder does not exist, no run is finished, or a file is invalid.
    """
    if (workdir / 'result.json').exists() and not (workdir / 'recipe.json').exists():
        return _write_run(workdir)
    recipe, tasks, missing = read(workdir)
    paper_table.check(f'{workdir}/recipe.json', recipe)
    sweeps.check(f'{workdir}/recipe.json', recipe)
    speed = read_speed(workdir)
    several = len(recipe['tasks']) > 1 or bool(recipe.get('scale'))
    leads = {task: bootstrap.leads(workdir, rows) for task, rows in tasks.items()}
    parts = [
        _task_part(workdir, rows, task if several else '', leads[task])
        for task, rows in tasks.items()
    ]
    findings = [first] if (first := headline(tasks, speed)) else []
    shared_plots = ''
    if several:
        findings += family_headlines(recipe, tasks, leads)
        printed = paper_table.table(recipe, tasks, bootstrap_note(pooled_leads(leads, tasks)))
        parts.insert(0, Part((), printed, overview(tasks)))
        all_rows = [row for rows in tasks.values() for row in rows.values()]
        shared_plots = learning_curves(workdir, all_rows, 0)
    else:  # the findings of the only task are those of the page
        findings += parts[0].findings
        printed = short_table(next(iter(tasks.values())))
        parts = [dataclasses.replace(parts[0], findings=())]
    if name := recipe.get('title'):
        table = dataclasses.replace(parts[0].table, title=name)
        parts[0] = dataclasses.replace(parts[0], table=table)
        printed = dataclasses.replace(printed, title=name)
    if recipe.get('sweeps'):
        parts.append(_sweep_part(workdir, recipe))
    if speed:
        findings.append(speed_sentence(speed))
    facts, warnings = provenance(workdir, recipe, tasks)
    findings += [*recipe.get('notes', ()), *warnings, *_warnings(missing, speed)]
    speed_task = next(iter(recipe['tasks'])) if len(recipe['tasks']) > 1 else ''
    tables = [*([speed_table(speed, speed_task)] if speed else []), facts]
    title = f'Distillation report: {recipe["name"]}'
    _write_pages(workdir, title, findings, parts, shared_plots, tables)
    blocks = [terminal.wrap(first), *([printed.title] if several or name else [])]
    return '\n\n'.join(filter(None, (*blocks, terminal.format_table(printed))))


def _write_run(workdir: pathlib.Path) -> str:
    title, findings, parts, tables = run_page.build(workdir)
    _write_pages(workdir, title, findings, parts, '', tables)
    return f'{terminal.wrap(findings[0])}\n\n{terminal.format_table(parts[0].table)}'


def _write_pages(
    workdir: pathlib.Path,
    title: str,
    findings: Sequence[str],
    parts: Sequence[Part],
    shared_plots: str,
    tables: Sequence[Table],
) -> None:
    text = _markdown_page(title, findings, parts, tables)
    storage.write_text(workdir / 'report.md', text)
    page = render(title, findings, parts, shared_plots, tables)
    storage.write_text(workdir / 'report.html', page)


def _task_part(
    workdir: pathlib.Path, rows: dict[str, Row], task: str, leads: bootstrap.Leads
) -> Part:
    """Returns the part of a task.

    Args:
      workdir: workdir of the recipe.
      rows: finished rows of the task.
      task: name of the task; '' if the recipe has one task, whose part includes pre-training.
      leads: leads of its two-stage student.
    """
    examples = disagreements.compare(workdir, rows)
    findings = headlines(rows, leads) + ([examples.summary] if examples else [])
    plots = task_plots(workdir, rows, (1,) if task else (0, 1), task)
    table = main_table(rows, task, bootstrap_note(leads))
    return Part(findings, table, plots, '', examples)


def _sweep_part(workdir: pathlib.Path, recipe: dict) -> Part:
    plots = ''
    for sweep in recipe['sweeps']:
        candidates = {
            candidate['run']: (sweeps.setting(candidate), candidate['run'] == sweep['chosen'])
            for candidate in sweep['candidates']
        }
        plots += sweep_curves(workdir, sweeps.title(sweep), candidates)
    return Part(sweeps.sentences(recipe), sweeps.table(recipe), plots, 'Curves')


def _warnings(missing: Sequence[str], speed: dict | None) -> list[str]:
    warnings = []
    if missing:
        warnings.append(f'Warning: omitted, since they have no result: {", ".join(missing)}.')
    if speed is None:
        warnings.append('Warning: speed was not measured: there is no speed.json.')
    elif names := unstable_timings(speed):
        warnings.append(
            f'Warning: the measured {" and ".join(names)} varied twofold, probably because another '
            'program ran. Delete speed.json and start the recipe again to repeat the measurement.'
        )
    return warnings


def _markdown_page(
    title: str, findings: Sequence[str], parts: Sequence[Part], tables: Sequence[Table]
) -> str:
    blocks = [f'# {_escape(title)}', _bullets(findings)]
    for part in [*parts, *(Part((), table) for table in tables)]:
        blocks += [f'## {_escape(part.table.title)}', _bullets(part.findings)]
        blocks += [markdown(part.table), _escape(part.table.note)]
    return '\n\n'.join(block for block in blocks if block) + '\n'


USAGE = """
python -m lightpaff_jax.report WORKDIR

Writes report.md and report.html into the workdir of a recipe or of a single run, and prints the
table of results.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.execute(_run, USAGE, argv)


def _run(argv: Sequence[str]) -> None:
    if len(argv) != 1 or argv[0].startswith('-'):
        raise UserError(f'{" ".join(argv)}: must be WORKDIR, the workdir of a recipe or a run')
    print(write(pathlib.Path(argv[0])))
    print(f'wrote {argv[0]}/report.md and report.html')
