"""Two processes of one run (launch/local.sh 2): one is killed, or both are stopped by a signal."""

import os
import pathlib
import shutil
import signal
import sys
import time

from helpers.processes import ROOT

from chaos import runs
from chaos.campaign import Context, Outcome

EVENTS = 5  # kills of a case, or
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)  # signals of every third case
PROMPT = 30.0  # seconds in which the other process must end
_WORKDIR = 'runs/pair'


def _line(folder: pathlib.Path) -> list[str]:
    config = f'--config={ROOT}/configs/gpt2_stage1.py:tiny_teacher'
    settings = [f'--config.data.cache={folder}/cache', f'--config.workdir={_WORKDIR}']
    settings += [f'--config.train.compilation_cache={folder}/xla', '--config.train.log_every=1']
    run = [sys.executable, '-m', 'lightpaff_jax.main', config, *settings]
    return [str(ROOT / 'launch/local.sh'), '2', *run]


def prepare(folder: pathlib.Path) -> None:
    """Runs two processes to their end."""
    runs.undisturbed(folder, 'pair', _line(folder))


def run(context: Context) -> Outcome:
    """Kills one of two processes several times, or stops both; restarts them and compares the end."""
    cwd = context.case_folder
    shutil.rmtree(cwd, ignore_errors=True)
    stops = context.case % 3 == 2
    failures: list[str] = []
    kills = signals = 0
    for number in range(len(STOPS) if stops else min(EVENTS, context.remaining)):
        arrived, problems = _disturb(context, number, STOPS[number] if stops else signal.SIGKILL)
        kills, signals = kills + (arrived and not stops), signals + (arrived and stops)
        failures += problems
        if failures or not arrived:
            break
    process = runs.Process(_line(context.folder), cwd)
    failures += process.problems(process.wait(), 0)
    failures += runs.differences(cwd, context.folder / 'undisturbed' / 'pair')
    if not failures:
        shutil.rmtree(cwd)
    return Outcome(kills + signals, failures, {'kills': kills, 'signals': signals})


def _disturb(context: Context, number: int, name: signal.Signals) -> tuple[bool, list[str]]:
    """Starts two processes and disturbs them at a random update."""
    draw, run = context.draw, context.case_folder / _WORKDIR
    process = runs.Process(_line(context.folder), context.case_folder)
    first = runs.newest_checkpoint(run)
    update = draw.randint(first + 1, max(first + 1, runs.UPDATES * (number + 1) // 6))
    deadline = time.monotonic() + runs.LIMIT
    while runs.last_step(run) < update and process.popen.poll() is None:
        time.sleep(0.005)
        if time.monotonic() > deadline:
            break
    if process.popen.poll() is not None:
        return False, process.problems(process.wait(), 0)
    launcher = process.popen.pid
    members = pathlib.Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
    began = time.monotonic()
    if name == signal.SIGKILL:
        os.kill(int(draw.choice(members)), name)
    else:
        process.popen.send_signal(name)
    code, seconds = process.wait(), time.monotonic() - began
    problems = [f'process {m} still runs' for m in members if pathlib.Path('/proc', m).exists()]
    if name == signal.SIGKILL:
        problems += process.problems(code, *{1, 2, 128 + signal.SIGKILL})
        if seconds > PROMPT:
            problems.append(f'the other process ended only after {seconds:.0f} s')
    else:
        problems += process.problems(code, 128 + name)
        last, saved = runs.last_step(run), runs.newest_checkpoint(run)
        if saved < last:
            problems.append(f'update {last} was logged and {saved} saved')
    if len(process.lines) != 1:
        problems.append(f'must print one line: {process.lines}')
    return True, [f'{name.name} at update {update}: {problem}' for problem in problems]
