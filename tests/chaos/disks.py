"""Full disks: one line that names the file; with space again, the restart ends with equal bits."""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

from chaos import runs
from chaos.campaign import Context, Outcome

_ROOM = '400m'
# The folder on the small disk, case by case.
PLACES = ('workdir', 'cache', 'workdir', 'cache', 'workdir')


def prepare(folder: pathlib.Path) -> None:
    """Runs a family's teacher and student to their end."""
    runs.undisturbed(folder, 'gpt2', runs.command('gpt2', folder))


def run(context: Context) -> Outcome:
    """Fills a disk of random size by a run, makes space, and restarts the run."""
    place = PLACES[context.case % len(PLACES)]
    cwd, expected = context.case_folder, context.folder / 'undisturbed' / 'gpt2'
    shutil.rmtree(cwd, ignore_errors=True)
    (cwd / 'disk').mkdir(parents=True)
    runs.link_tree(context.folder / 'xla', cwd / 'xla')
    if place == 'workdir':
        runs.link_tree(context.folder / 'cache', cwd / 'cache')
        (cwd / 'runs').symlink_to('disk')
        whole = _size(expected / 'runs')
    else:
        (cwd / 'cache').symlink_to('disk')
        whole = _size(context.folder / 'cache')
    kilobytes = max(64, int(whole * context.draw.uniform(0.05, 0.9)) >> 10)
    line = runs.command('gpt2', cwd)
    with _disk(cwd / 'disk', kilobytes) as make_space:
        process = runs.Process(line, cwd)
        failures = process.problems(process.wait(), 2)
        errors = [line for line in process.lines if line.startswith('error: ')]
        if len(errors) != 1 or not any(name in errors[0] for name in ('runs/', 'cache', '/disk')):
            failures.append(f'must be one line that names the file: {process.lines[-3:]}')
        make_space()
        process = runs.Process(line, cwd)
        failures += process.problems(process.wait(), 0)
        failures += runs.differences(cwd, expected)
    if not failures:
        shutil.rmtree(cwd)
    where = f'{place} on {kilobytes} KiB'
    return Outcome(1, [f'{where}: {failure}' for failure in failures], {where: 1})


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


@contextlib.contextmanager
def _disk(folder: pathlib.Path, kilobytes: int) -> Iterator:
    """Mounts a disk of some size; yields a function that makes space. Needs the right to mount."""

    def mount(*options: str) -> None:
        subprocess.run(['mount', '-t', 'tmpfs', *options, str(folder)], check=True)

    mount('-o', f'size={kilobytes}k', 'tmpfs')
    try:
        yield lambda: mount('-o', f'remount,size={_ROOM}', 'tmpfs')
    finally:
        subprocess.run(['umount', str(folder)], check=True)
