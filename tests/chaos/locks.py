"""Two runs in one workdir at once: one is refused, the other is not disturbed."""

import pathlib
import shutil
import time

from chaos import runs
from chaos.campaign import Context, Outcome


def _line(folder: pathlib.Path) -> list[str]:
    return runs.small_command(folder, '--config.train.updates=400', '--config.train.save_every=20')


def prepare(folder: pathlib.Path) -> None:
    """Completes one run, to compare with."""
    runs.write_small(folder)
    runs.undisturbed(folder, 'locked', _line(folder))


def run(context: Context) -> Outcome:
    """Starts two runs, one a random time after the other."""
    cwd = context.case_folder
    shutil.rmtree(cwd, ignore_errors=True)
    delay = context.draw.choice((0.0, context.draw.uniform(0, 2), context.draw.uniform(2, 10)))
    first = runs.Process(_line(context.folder), cwd)
    time.sleep(delay)
    second = runs.Process(_line(context.folder), cwd, errors='stderr of the second')
    processes = (first, second)
    codes = [process.wait() for process in processes]
    failures = []
    for process, code in zip(processes, codes, strict=True):
        failures += process.problems(code, 0, 2)
        if code == 2 and sum(line.startswith('error: ') for line in process.lines) != 1:
            failures.append(f'must print one line: {process.lines}')
    # The second may begin after the first has ended; then it prints the scores.
    if codes == [2, 2]:
        failures.append('both were refused')
    failures += runs.differences(cwd, context.folder / 'undisturbed' / 'locked')
    if not failures:
        shutil.rmtree(cwd)
    refused = {'refused': int(2 in codes)}
    return Outcome(1, [f'{delay:.2f} s apart: {failure}' for failure in failures], refused)
