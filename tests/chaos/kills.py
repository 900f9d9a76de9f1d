"""SIGKILLs at random moments of a run, which is restarted until its end."""

import pathlib
import shutil
import signal
from collections.abc import Callable

from chaos import runs
from chaos.campaign import Context, Outcome

KINDS = ('gpt2', 'bert', 'mass', 'recipe')
KILLS = 10  # of a case
# Moment -> longest delay until the kill, seconds.
MOMENTS = {
    'start': 6.0,
    'preparation': 5.0,
    'compilation': 3.0,
    'training': 4.0,
    'saving': 0.05,
    'evaluation': 1.0,
    'finishing': 0.5,
}


def run(context: Context) -> Outcome:
    """Kills one run several times, in each of its moments, and compares its end."""
    kind, cwd, draw = KINDS[context.case % len(KINDS)], context.case_folder, context.draw
    runs.undisturbed(context.folder, kind, runs.command(kind, context.folder))
    shutil.rmtree(cwd, ignore_errors=True)
    cold = draw.random() < 0.5
    if not cold:  # begins with the built corpus and compiled programs
        for name in ('cache/tfds', 'xla'):
            runs.link_tree(context.folder / name, cwd / name)
    line, kills = runs.command(kind, cwd), 0
    failures: list[str] = []
    for moment, run_index in _plan(context, kind):
        process = runs.Process(line, cwd)
        ready = _ready(kind, moment, run_index, process)
        delay = draw.uniform(2, 25) if kind == 'recipe' else draw.uniform(0, MOMENTS[moment])
        killed = process.signal_when(signal.SIGKILL, ready, delay)
        code = process.wait()
        kills += killed
        failures += process.problems(code, -signal.SIGKILL if killed else 0)
        if not killed or failures:
            break
    process = runs.Process(line, cwd)
    failures += process.problems(process.wait(), 0)
    failures += runs.differences(cwd, context.folder / 'undisturbed' / kind)
    failures += [f'left in the cache: {path}' for path in (cwd / 'cache').rglob('.*.*')]
    if not failures:
        shutil.rmtree(cwd)
    return Outcome(kills, [f'{kind}: {failure}' for failure in failures])


def _plan(context: Context, kind: str) -> list[tuple[str, int]]:
    """Draws moments, each with the number of its run, in the order in which they are reached."""
    draw, count = context.draw, min(KILLS, context.remaining)
    if kind == 'recipe':
        return [('start', 0)] * count
    names = [*MOMENTS]
    moments = draw.sample(names, len(names)) + draw.choices(names, k=max(0, count - len(names)))
    plan = [(m, 0 if m == 'preparation' else draw.randrange(2)) for m in moments[:count]]
    return sorted(plan, key=lambda pair: (pair[1], names.index(pair[0])))


def _ready(kind: str, moment: str, index: int, process: runs.Process) -> Callable[[], bool]:
    """Returns a function that tells whether a process has reached a moment."""
    cwd = process.cwd
    if kind == 'recipe' or (moment == 'start' and index == 0):
        return lambda: True
    run, teacher = (cwd / name for name in reversed(runs.workdirs(kind)))
    run = teacher if index == 0 else run
    first_step = runs.last_step(run)

    def begun() -> bool:
        file = run / 'config.json'
        return file.exists() and file.stat().st_mtime >= process.began

    return {
        'start': lambda: (teacher / 'result.json').exists(),
        'preparation': lambda: any((cwd / 'cache').glob('*/.*')) or _partial(cwd),
        'compilation': begun,
        'training': lambda: begun() and runs.last_step(run) != first_step,
        'saving': lambda: any(run.glob('checkpoints/*orbax-checkpoint-tmp*')),
        'evaluation': lambda: runs.last_step(run) == runs.UPDATES,
        'finishing': lambda: runs.newest_checkpoint(run) == runs.UPDATES,
    }[moment]


def _partial(cwd: pathlib.Path) -> bool:
    return any((cwd / 'cache').glob('prepared/*.partial'))
