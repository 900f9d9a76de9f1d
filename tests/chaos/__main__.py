"""The command of the campaign; see USAGE."""

import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from chaos import campaign, table
from chaos.pieces import PIECES
from lightpaff_jax.config import flags
from lightpaff_jax.errors import Unfinished, UserError

_LINES = '\n'.join(
    f'  {name:9} {piece.minutes:3} min  {piece.target:,} {piece.unit}: {piece.claim}'
    for name, piece in PIECES.items()
)
USAGE = f"""
./launch/chaos.sh PIECE [--folder=DIR] [--seed=N] [--count=N] [--minutes=N]

Tries to break runs: kills, signals, damaged checkpoints, full disks, and wrong input of every kind.
A piece prints its count and its failures; the exit code is 1 if there is one. Each finished case is
appended to DIR/{campaign.STATE}, so the same command resumes an interrupted piece.

Pieces, with their duration on two cores:
{_LINES}
  all                 every piece
  table               writes the results into docs/reliability.md

  --folder=DIR    folder of the campaign; default: runs/chaos
  --seed=N        seed of all random choices; default: 0
  --count=N       number of events; default: that of the piece
  --minutes=N     starts no new case after this time; default: 28
"""
_FLAGS = {'folder': 'runs/chaos', 'seed': 0, 'count': int, 'minutes': 28.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.execute(_run, USAGE, argv)


def _run(argv: Sequence[str]) -> int:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a job in the background; the processes that it starts would ignore SIGINT too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    name, *rest = argv
    options = flags.arguments(rest, _FLAGS, config=False).options
    folder = pathlib.Path(options['folder']).expanduser().absolute()
    if name == 'table':
        table.write(folder, options['seed'])
        return 0
    if name not in (*PIECES, 'all'):
        raise UserError(f'{name}: must be one of {", ".join(PIECES)}, all, table')
    failed = unfinished = 0
    for key in PIECES if name == 'all' else [name]:
        piece, start = PIECES[key], time.monotonic()
        target = piece.target if options['count'] is None else options['count']
        count, failures = campaign.run(
            folder, key, piece, options['seed'], target, options['minutes']
        )
        seconds = time.monotonic() - start
        print(f'{key}: {count:,} {piece.unit}, {len(failures)} failures, {seconds:.0f} s')
        failed, unfinished = failed + len(failures), unfinished + (count < target)
    if failed:
        return 1
    if unfinished:
        raise Unfinished('not finished: the same command resumes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
