"""Damaged checkpoints: never loaded silently."""

import logging
import pathlib
import random
import shutil

from helpers import checkpoints as cases

from chaos import runs
from chaos.campaign import Context, Outcome
from lightpaff_jax.checkpoint import Checkpoints, Reader
from lightpaff_jax.errors import UserError

STEPS = (1, 2, 3)
IN_PROCESS = (
    19  # damaged checkpoints of a case that are read in this process; one more by a command
)


def prepare(folder: pathlib.Path) -> None:
    """Saves steps, and trains a small run to its end."""
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
    save_steps(folder)
    runs.write_small(folder)
    runs.undisturbed(folder, 'small', runs.small_command(folder))


def save_steps(folder: pathlib.Path) -> None:
    """Saves the steps to damage."""
    cases.save_steps(folder / 'checkpoints', *STEPS)


def run(context: Context) -> Outcome:
    """Damages checkpoints one by one and reads them; the last one by the command that trains."""
    failures: list[str] = []
    found = {'detected': 0, 'harmless': 0}
    count = min(IN_PROCESS, context.remaining)
    log = logging.getLogger('lightpaff_jax')
    level = log.level
    log.setLevel(logging.ERROR)  # each damaged step is a warning
    try:
        for number in range(count):
            folder = context.case_folder / str(number)
            outcome, failure = _read_damaged(context, folder)
            failures += [failure] if failure else []
            if outcome:
                found[outcome] += 1
    finally:
        log.setLevel(level)
    if context.remaining > IN_PROCESS:
        failures += _command(context)
        count += 1
    if not failures:
        shutil.rmtree(context.case_folder)
    return Outcome(count, failures, found)


def _read_damaged(context: Context, folder: pathlib.Path) -> tuple[str, str]:
    """Reads a damaged checkpoint; returns the outcome, and the failure if it was loaded silently."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(context.folder / 'checkpoints', folder)
    what = _damage(folder, context.draw)
    try:
        params = Reader(folder).read_params()
    except UserError as error:
        params = None
        if '\n' in str(error):
            return '', f'{what}: {error!r} has several lines'
    except Exception as error:
        return '', f'{what}: Reader: {type(error).__name__}: {error}'
    if params is not None and not any(
        cases.same_bits(params, cases.make_state(step).params) for step in STEPS
    ):
        return '', f'{what}: Reader returned parameters that were never saved'
    try:
        with Checkpoints(folder, keep=9) as checkpoints:
            restored = checkpoints.restore(cases.abstract(cases.make_state(0)))
    except UserError as error:
        return ('detected', '') if '\n' not in str(error) else ('', f'{what}: {error!r}')
    except Exception as error:
        return '', f'{what}: restore: {type(error).__name__}: {error}'
    if restored is None:
        return ('detected', '') if not any(folder.glob('[0-9]*')) else ('', f'{what}: ignored')
    step, state, meta = restored
    same = cases.same_bits(state, cases.make_state(step)) if step in STEPS else False
    if not same or meta != cases.META | {'position': step}:
        return '', f'{what}: step {step} was loaded with other content than was saved'
    shutil.rmtree(folder)
    return ('harmless' if step == STEPS[-1] else 'detected'), ''


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages the newest step of a folder; returns a description."""
    steps = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    newest, older = steps[-1], draw.choice(steps[:-1])
    files = sorted(path for path in newest.rglob('*') if path.is_file())
    # Every kind of file has the same chance, however many files of a kind there are.
    kinds = sorted({(p.relative_to(newest).parts[0], p.suffix, p.parent.name) for p in files})
    kind = draw.choice(kinds)
    file = draw.choice(
        [p for p in files if (p.relative_to(newest).parts[0], p.suffix, p.parent.name) == kind]
    )
    name, size = str(file.relative_to(newest)), file.stat().st_size
    action = draw.choice([*_FILE_ACTIONS, *_FILE_ACTIONS, *_STEP_ACTIONS])
    if action == 'flip a bit' and size:
        cases.flip(file, bit := draw.randrange(8 * size))
        return f'{newest.name}/{name}: bit {bit} flipped'
    if action == 'truncate' and size:
        file.write_bytes(file.read_bytes()[: (cut := draw.randrange(size))])
        return f'{newest.name}/{name}: truncated to {cut} bytes'
    if action == 'zero a block' and size:
        data = bytearray(file.read_bytes())
        start = draw.randrange(size)
        end = min(size, start + draw.choice((1, 16, 512, 4096)))
        data[start:end] = bytes(end - start)
        file.write_bytes(data)
        return f'{newest.name}/{name}: bytes {start} to {end} zeroed'
    if action == 'append':
        file.write_bytes(file.read_bytes() + draw.randbytes(8))
        return f'{newest.name}/{name}: 8 bytes appended'
    if action == 'mix a file' and (older / name).is_file():
        shutil.copyfile(older / name, file)
        return f'{newest.name}/{name}: replaced by that of step {older.name}'
    if action == 'rename a file':
        file.rename(file.with_name(f'{file.name}.old'))
        return f'{newest.name}/{name}: renamed'
    if action == 'mix parts':
        part = draw.choice(sorted(path.name for path in newest.iterdir() if path.is_dir()))
        shutil.rmtree(newest / part)
        shutil.copytree(older / part, newest / part)
        return f'{newest.name}/{part}: replaced by that of step {older.name}'
    if action == 'rename a step':
        number = int(newest.name) + draw.randrange(1, 5)
        shutil.copytree(older, folder / str(number))
        return f'step {older.name} copied to {number}'
    if action == 'swap two steps':
        other = folder / 'other'
        newest.rename(other)
        older.rename(newest)
        other.rename(older)
        return f'steps {older.name} and {newest.name} swapped'
    if action == 'remove a part':
        part = draw.choice(sorted(path.name for path in newest.iterdir() if path.is_dir()))
        shutil.rmtree(newest / part)
        return f'{newest.name}/{part}: removed'
    file.unlink()
    return f'{newest.name}/{name}: removed'


_FILE_ACTIONS = ('flip a bit', 'truncate', 'zero a block', 'append', 'mix a file', 'rename a file')
_FILE_ACTIONS += ('flip a bit', 'remove a file')
_STEP_ACTIONS = ('mix parts', 'rename a step', 'swap two steps', 'remove a part')


def _command(context: Context) -> list[str]:
    """Resumes a run whose newest checkpoint is damaged; its end must be that of the run."""
    expected, cwd = context.folder / 'undisturbed/small', context.case_folder / 'command'
    shutil.rmtree(cwd, ignore_errors=True)
    shutil.copytree(expected, cwd)
    workdir = cwd / 'runs/small_teacher'
    (workdir / 'result.json').unlink()
    what = _damage(workdir / 'checkpoints', context.draw)
    process = runs.Process(runs.small_command(context.folder), cwd)
    code = process.wait()
    problems = process.problems(code, 0, 2)
    if code == 0:
        problems += runs.differences(cwd, expected)
    elif sum(line.startswith('error: ') for line in process.lines) != 1:
        problems.append(f'must have one line: {process.lines}')
    return [f'command, {what}: {problem}' for problem in problems]
