"""A long run in one process: its memory does not grow."""

import pathlib
import re
import shutil
import time

from chaos import runs
from chaos.campaign import Context, Outcome

UPDATES, FIRST = 20_000, 1_000
GROWTH = 0.05
_MEBIBYTE = 1 << 20


def run(context: Context) -> Outcome:
    """Runs UPDATES updates, or as many as the piece lacks, and measures the resident memory."""
    updates, cwd = max(2 * FIRST, min(UPDATES, context.remaining)), context.case_folder
    shutil.rmtree(cwd, ignore_errors=True)
    runs.write_small(context.folder)
    settings = {
        'updates': updates,
        'log_every': 10,
        'save_every': 500,
        'eval_every': 1000,
        'keep': 2,
    }
    changes = [f'--config.train.{key}={value}' for key, value in settings.items()]
    process = runs.Process(runs.small_command(context.folder, *changes), cwd)
    memory: dict[int, int] = {}
    while process.popen.poll() is None:
        step, size = runs.last_step(cwd / 'runs/small_teacher'), _resident(process.popen.pid)
        if size and step:
            memory[step] = size
        time.sleep(0.05)
    failures = process.problems(process.wait(), 0)
    after = [step for step in memory if step >= FIRST]
    if len(after) < 2:
        return Outcome(0, [*failures, 'memory was not measured'])
    first, last = memory[after[0]], memory[after[-1]]
    figures = {
        f'MiB at update {after[0]}': round(first / _MEBIBYTE, 1),
        f'MiB at update {after[-1]}': round(last / _MEBIBYTE, 1),
        'greatest MiB': round(max(memory[step] for step in after) / _MEBIBYTE, 1),
    }
    print(f'memory: {figures}', flush=True)
    if last > first * (1 + GROWTH):
        failures.append(f'memory grew by {last / first - 1:.1%}: {figures}')
    if not failures:
        shutil.rmtree(cwd)
    return Outcome(updates, failures, figures)


def _resident(pid: int) -> int:
    """Returns the resident memory of a process in bytes, or 0."""
    try:
        status = pathlib.Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0
    match = re.search(r'^VmRSS:\s+(\d+) kB', status, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0
