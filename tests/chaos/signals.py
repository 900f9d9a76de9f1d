"""SIGTERM and SIGINT: the run saves at the next update, and its restart repeats none."""

import pathlib
import shutil
import signal
import time

from chaos import runs
from chaos.campaign import Context, Outcome

EVERY = '--config.train.log_every=1'  # so that metrics.jsonl shows each update
PROMPT = 20.0  # seconds in which a signal ends a process that does not save, on a busy machine
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Case -> the kind of run, and the moments of its signals; further cases begin again.
CASES = (
    ('gpt2', ('SIGTERM at an update',) * 5),
    ('bert', ('an update',) * 4 + ('two signals',)),
    ('gpt2', ('SIGTERM at an update',) * 5),
    ('mass', ('start', 'an update', 'an update', 'two signals', 'evaluation')),
    ('recipe', ('any time',) * 4),
)


def _undisturbed(folder: pathlib.Path, kind: str) -> str:
    """Runs a kind to its end, a family's student with a line for each update; returns its name."""
    runs.undisturbed(folder, kind, runs.command(kind, folder))
    if kind == 'recipe':
        return kind
    name, teacher = f'{kind}, each update', folder / 'undisturbed' / kind / runs.workdirs(kind)[0]
    runs.undisturbed(folder, name, runs.command(kind, folder, EVERY), teacher)
    return name


def run(context: Context) -> Outcome:
    """Sends several signals to a run, restarts it after each, and compares its end."""
    kind, moments = CASES[context.case % len(CASES)]
    cwd, name = context.case_folder, _undisturbed(context.folder, kind)
    shutil.rmtree(cwd, ignore_errors=True)
    if kind != 'recipe':
        teacher = runs.workdirs(kind)[0]
        shutil.copytree(context.folder / 'undisturbed' / kind / teacher, cwd / teacher)
    line = runs.command(kind, context.folder, *(() if kind == 'recipe' else (EVERY,)))
    failures: list[str] = []
    figures: dict[str, int] = {}
    sent = 0
    for number, moment in enumerate(moments):
        arrived, faults = _interrupt(context, kind, moment, runs.Process(line, cwd), number)
        sent += arrived
        figures[moment] = figures.get(moment, 0) + arrived
        failures += [f'{kind}, {moment}: {problem}' for problem in faults]
        if not arrived or failures:
            break
    process = runs.Process(line, cwd)
    problems = process.problems(process.wait(), 0)
    problems += runs.differences(cwd, context.folder / 'undisturbed' / name)
    failures += [f'{kind}: {problem}' for problem in problems]
    if not failures:
        shutil.rmtree(cwd)
    return Outcome(sent, failures, figures)


def _interrupt(
    context: Context, kind: str, moment: str, process: runs.Process, number: int
) -> tuple[bool, list[str]]:
    """Sends a signal at a moment; returns whether the process still ran, and its faults."""
    draw, run = context.draw, process.cwd / runs.workdirs(kind)[1]
    name = signal.SIGTERM if 'SIGTERM' in moment else draw.choice(_SIGNALS)
    first = runs.newest_checkpoint(run)
    # Each signal hits a later part of the run.
    update = draw.randint(first + 1, max(first + 1, runs.UPDATES * (number + 1) // 6))
    ready, delay = (lambda: runs.last_step(run) >= update), draw.uniform(0, 0.05)
    if moment == 'start':
        ready, delay = (lambda: True), draw.uniform(0, 8)
    elif moment == 'evaluation':
        ready = lambda: runs.last_step(run) == runs.UPDATES  # noqa: E731
    elif moment == 'any time':
        ready, delay = (lambda: True), draw.uniform(2, 25)
    arrived, began = process.signal_when(name, ready, delay), time.monotonic()
    if moment == 'two signals' and arrived:
        time.sleep(draw.uniform(0, 0.3))
        process.popen.send_signal(draw.choice(_SIGNALS))
    code, seconds = process.wait(), time.monotonic() - began
    if not arrived:
        return False, process.problems(code, 0)
    codes = [128 + name]
    if moment == 'two signals':
        codes = [code for x in _SIGNALS for code in (128 + x, -x)]  # the second ends it at once
    if moment in ('start', 'any time'):  # before Python runs, the system ends the process
        codes.append(-name)
    problems = process.problems(code, *codes)
    if code > 0 and len(process.lines) != 1:
        problems.append(f'must print one line: {process.lines}')
    if 'update' in moment:
        last, saved = runs.last_step(run), runs.newest_checkpoint(run)
        if saved < last:
            problems.append(
                f'update {last} was logged and {saved} saved: {last - saved} are repeated'
            )
    elif seconds > PROMPT:
        problems.append(f'ended only after {seconds:.0f} s')
    return True, problems
