"""Starts commands as processes, and compares the files that two runs of one configuration left."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from helpers import commands
from helpers.processes import ROOT, environment

from lightpaff_jax import checkpoint, workdir
from lightpaff_jax.runtime import fingerprint

FAMILIES = ('gpt2', 'bert', 'mass')
UPDATES = 200  # of the presets tiny and tiny_teacher
TIMES = ('seconds', 'tokens_per_second', 'git_commit')  # keys of result.json that may differ
_locks: dict[str, threading.Lock] = {}
LIMIT = 900  # seconds of a process on a busy machine
_PROGRESS = re.compile(r'update \d+/\d+|(train|validation|test): ')
# XLA complains about slow compilation on a busy machine.
_NOISE = re.compile(
    r'Traceback|panicked|core dumped|Fatal Python error|^[WEF]\d{4} (?!.*slow_operation_alarm)'
)


def config_of(kind: str) -> str:
    """Returns the recipe file and preset of a family's tiny run, or of a small recipe."""
    preset = 'quickstart.py:ci' if kind == 'recipe' else f'{kind}_stage1.py:tiny'
    return str(ROOT / 'configs' / preset)


def workdirs(kind: str) -> tuple[str, ...]:
    """Returns the workdirs of a family's tiny run in order, below its working folder."""
    name = f'runs/{kind}_stage1_tiny'
    return (f'{name}_teacher', name)


def command(kind: str, caches: pathlib.Path, *changes: str) -> list[str]:
    """Returns the command of a run, with caches below a folder."""
    module = 'recipe' if kind == 'recipe' else 'main'
    settings = [f'--config.data.cache={caches}/cache']
    settings += [f'--config.train.compilation_cache={caches}/xla']
    line = [sys.executable, '-m', f'lightpaff_jax.{module}', f'--config={config_of(kind)}']
    return [*line, *settings, *changes]


def write_small(folder: pathlib.Path) -> None:
    """Writes text and a recipe file of very small networks to folder/small."""
    small = folder / 'small'
    if not (small / 'small.py').exists():
        shutil.rmtree(small, ignore_errors=True)
        commands.write_text(small / 'text', 0)
        (small / 'small.py').write_text(commands.SMALL)


def small_command(folder: pathlib.Path, *changes: str) -> list[str]:
    """Returns the command of a very small run in runs/small_teacher."""
    config = f'--config={folder}/small/small.py:teacher'
    return [sys.executable, '-m', 'lightpaff_jax.main', config, *changes]


class Process:
    """A command in its own working folder, whose stdout and stderr are kept in files there."""

    def __init__(self, line: Sequence[str], cwd: pathlib.Path, errors: str = 'stderr'):
        cwd.mkdir(parents=True, exist_ok=True)
        self.cwd, self.began = cwd, time.time()
        self._err = cwd / errors
        with (cwd / 'stdout').open('wb') as out, self._err.open('wb') as err:
            self.popen = subprocess.Popen(
                line, cwd=cwd, env=_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def wait(self, seconds: float = LIMIT) -> int:
        """Returns the exit code; kills the process after the limit, -9."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def signal_when(self, number: int, ready: Callable[[], bool], delay: float) -> bool:
        """Sends a signal some seconds after `ready`; returns whether the process still ran."""
        deadline = time.monotonic() + LIMIT
        while not ready() and self.popen.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        if self.popen.poll() is not None:
            return False
        self.popen.send_signal(number)
        return True

    @property
    def lines(self) -> list[str]:
        """The lines of stderr without those of progress."""
        text = self._err.read_text(errors='replace')
        return [x for x in text.splitlines() if not _PROGRESS.match(x.removeprefix('[1] '))]

    def problems(self, code: int, *expected: int) -> list[str]:
        """Returns the faults of exit code and stderr."""
        lines, tail = self.lines, ' | '.join(self.lines[-3:])[-500:]
        problems = [f'exit code {code}, not {expected}: {tail}'] if code not in expected else []
        noise = next((line for line in lines if _NOISE.search(line)), None)
        return problems + ([f'stderr has {noise!r}: {tail}'] if noise else [])


def _environment() -> dict[str, str]:
    """Returns the environment of a user, without the settings that make tests fast."""
    values = environment(PYTHONPATH=str(ROOT), PYTHON=sys.executable)  # PYTHON: of launch/local.sh
    for name in ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'JAX_COMPILATION_CACHE_DIR'):
        values.pop(name, None)
    values.pop('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', None)
    return values


def undisturbed(
    folder: pathlib.Path, name: str, line: Sequence[str], *copies: pathlib.Path
) -> None:
    """Runs a command to its end in folder/undisturbed/NAME, unless it has run on this commit.

    Args:
      folder: of the campaign.
      name: of the run.
      line: the command.
      *copies: finished workdirs that the run needs, copied to runs/.
    """
    cwd = folder / 'undisturbed' / name
    mark, commit = cwd / 'commit', workdir.git_commit() or 'none'
    with _locks.setdefault(name, threading.Lock()):  # cases of one kind may start together
        if mark.is_file() and mark.read_text() == commit:
            return
        shutil.rmtree(cwd, ignore_errors=True)
        for copy in copies:
            shutil.copytree(copy, cwd / 'runs' / copy.name)
        print(f'undisturbed: {name}', flush=True)
        process = Process(line, cwd)
        problems = process.problems(process.wait(), 0)
        if problems:
            raise RuntimeError(f'the undisturbed run {name} failed: {problems[0]}')
        mark.write_text(commit)


def link_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder whose files are never changed in place, as hard links."""
    if source.exists():
        shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)


def last_step(run: pathlib.Path) -> int:
    """Returns the step of the last whole line of metrics.jsonl, or 0."""
    try:
        with (run / 'metrics.jsonl').open('rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            steps = re.findall(rb'"step": (\d+), .*\n', file.read())
    except FileNotFoundError:
        return 0
    return int(steps[-1]) if steps else 0


def newest_checkpoint(run: pathlib.Path) -> int:
    """Returns the newest complete step of a run, or 0."""
    names = [path.name for path in (run / 'checkpoints').glob('*')]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def end_state(run: pathlib.Path) -> dict[str, Any]:
    """Returns digests of everything that equal runs share: parameters, metrics, result, predictions."""
    params = checkpoint.Reader(run / 'checkpoints').read_params()
    result = json.loads((run / 'result.json').read_text())
    files = [run / 'metrics.jsonl', *sorted((run / 'predictions').glob('*'))]
    state = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
    state |= {f'result.{key}': value for key, value in result.items() if key not in TIMES}
    return state | {
        'parameters': fingerprint.fingerprint(params),
        'newest checkpoint': newest_checkpoint(run),
    }


def differences(cwd: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """Compares all runs below two working folders; returns a line for each difference."""
    names = {
        str(path.parent.relative_to(root))
        for root in (cwd, expected)
        for path in root.glob('runs/**/result.json')
    }
    lines = [] if names else [f'{expected} has no run']
    for name in sorted(names):
        try:
            states = [end_state(root / name) for root in (cwd, expected)]
        except Exception as error:
            lines.append(f'{name}: {type(error).__name__}: {error}')
            continue
        keys = states[0].keys() | states[1].keys()
        changed = sorted(key for key in keys if states[0].get(key) != states[1].get(key))
        lines += (
            [f'{name}: {", ".join(changed)} differ from the undisturbed run'] if changed else []
        )
    return lines + _recipe_differences(cwd, expected)


def _recipe_differences(cwd: pathlib.Path, expected: pathlib.Path) -> list[str]:
    lines = []
    for file in expected.glob('runs/*/recipe.json'):
        other = cwd / file.relative_to(expected)
        records = [json.loads(path.read_text()) if path.is_file() else {} for path in (other, file)]
        for record in records:
            record.pop('command', None)
        if records[0] != records[1]:
            lines.append(f'{other}: differs from the undisturbed recipe')
        lines += [f'{other.parent} has no report.html'] * (
            not (other.parent / 'report.html').is_file()
        )
    return lines
