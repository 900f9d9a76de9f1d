"""PIECES: the parts of the campaign."""

from chaos import damage, disks, inputs, kills, locks, pairs, signals, soak
from chaos.campaign import Piece

PIECES = {
    'kills': Piece(
        kills.run,
        'SIGKILLs',
        100,
        28,
        'a killed run that is started again ends with the same bits',
        jobs=2,
    ),
    'signals': Piece(
        signals.run,
        'SIGTERMs and SIGINTs',
        39,
        12,
        'the run saves and ends with 143 or 130; its restart repeats no update',
    ),
    'pairs': Piece(
        pairs.run,
        'kills and stops of two processes',
        13,
        10,
        'the other process ends within 30 s, and the restart ends with the same bits',
        prepare=pairs.prepare,
    ),
    'damage': Piece(
        damage.run,
        'damaged checkpoints',
        100,
        1,
        'a damaged checkpoint is never loaded silently',
        prepare=damage.prepare,
    ),
    'disks': Piece(
        disks.run,
        'full disks',
        5,
        8,
        'one line names the file; with space again the run ends with the same bits',
        prepare=disks.prepare,
    ),
    'locks': Piece(
        locks.run,
        'pairs of runs in one workdir',
        6,
        2,
        'one is refused in one line, the other ends with the same bits',
        prepare=locks.prepare,
    ),
    'fuzz': Piece(
        inputs.run_fuzz,
        'inputs in one process',
        inputs.TOTAL,
        29,
        'each is accepted or refused in one line, within 30 s and 4 GiB',
    ),
    'commands': Piece(
        inputs.run_commands,
        'inputs of whole commands',
        500,
        19,
        'each ends with exit code 0, 2 or 3 and at most one line of an error',
    ),
    'soak': Piece(
        soak.run,
        'updates in one process',
        soak.UPDATES,
        1,
        'memory at the end is within 5 % of that at update 1,000',
    ),
}
