"""Writes the measured results into docs/reliability.md; every number comes from the state file."""

import pathlib
from typing import Any

from helpers.processes import ROOT

from chaos import campaign
from chaos.pieces import PIECES
from lightpaff_jax.errors import UserError

PAGE = ROOT / 'docs' / 'reliability.md'
START, END = '<!-- results of launch/chaos.sh -->\n', '<!-- end of the results -->\n'
HEADER = ('piece', 'tried', 'failures', 'claim', 'seed', 'minutes', 'commit', 'machine')


def write(folder: pathlib.Path, seed: int, page: pathlib.Path = PAGE) -> None:
    """Replaces the results in a page by those of a campaign, and prints them.

    Raises:
      UserError: the campaign has no case, or the page has no place for them.
    """
    cases = campaign.State(folder).cases(seed=seed)
    if not cases:
        raise UserError(f'{folder}: has no case of seed {seed}')
    text = page.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f'{page}: must have the lines {START.strip()} and {END.strip()}')
    table = markdown(cases)
    page.write_text(f'{before}{START}\n{table}\n{END}{after}')
    print(table)


def markdown(cases: list[dict[str, Any]]) -> str:
    """Returns a row for each piece, of the commit of its last case, and its other measurements."""
    rows, notes = [], []
    for name, piece in PIECES.items():
        own = [case for case in cases if case['piece'] == name]
        own = [case for case in own if case['commit'] == own[-1]['commit']]
        if not own:
            continue
        count = sum(case['count'] for case in own)
        failures = sum(len(case['failures']) for case in own)
        minutes = sum(case['seconds'] for case in own) / 60 / piece.jobs
        last = own[-1]
        rows.append(
            (
                f'`{name}`',
                f'{count:,} {piece.unit}',
                f'{failures}',
                piece.claim,
                f'{last["seed"]}',
                f'{minutes:.0f}',
                last['commit'] or '-',
                last['machine'],
            )
        )
        figures = _figures(own)
        if figures:
            notes.append(f'- `{name}`: {figures}.')
    lines = [HEADER, ('---',) * len(HEADER), *rows]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return '\n'.join([table, '', *notes, ''])


def _figures(cases: list[dict[str, Any]]) -> str:
    """Adds up the figures of all cases; memory has their maximum."""
    totals: dict[str, float] = {}
    for case in cases:
        for key, value in case['figures'].items():
            greatest = 'MiB' in key or key.startswith('slowest')
            totals[key] = max(totals.get(key, 0), value) if greatest else totals.get(key, 0) + value
    return ', '.join(f'{key} {value:,}' for key, value in totals.items())
