"""The pieces of wrong input: many in one process, and some through whole commands."""

import atexit
import functools
import json
import pathlib
import queue
import resource
import shutil
import subprocess
import sys
import threading
from typing import Any

from helpers.sources import OBJECTIVES
from hypothesis import strategies as st

from chaos import fuzz, runs, targets
from chaos.campaign import Context, Outcome
from lightpaff_jax import config

TOTAL = 100_000
_REPLY = 1800  # seconds of a case on a busy machine
_PAIR = 120  # seconds of a command on a busy machine
_HANG = 30  # seconds of processor time of a command


def schedule() -> list[str]:
    """Returns the target of each case: all of them in turn, by their shares of TOTAL."""
    whole = sum(target.share for target in targets.TARGETS.values())
    cases = []
    for name, target in targets.TARGETS.items():
        count = -(-TOTAL * target.share // (whole * target.examples))
        cases += [((k + 0.5) / count, name) for k in range(count)]
    return [name for _, name in sorted(cases)]


class _Worker:
    """A process that tries inputs; a crash of native code ends it and not the campaign."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: subprocess.Popen | None = None
        atexit.register(self.stop)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request; returns the reply, or the failure that ended the process."""
        if self._process is None:
            with (self._folder / 'stderr').open('wb') as err:
                self._process = subprocess.Popen(
                    [sys.executable, '-m', 'chaos.inputs', str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                )
        process = self._process
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + '\n')
        process.stdin.flush()
        replies: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: replies.put(process.stdout.readline()), daemon=True).start()
        try:
            line = replies.get(timeout=_REPLY)
        except queue.Empty:
            line = ''
        if line:
            return json.loads(line)
        self.stop()
        code, self._process = process.wait(), None
        tail = (self._folder / 'stderr').read_text(errors='replace')[-400:]
        last = (self._folder / 'last input').read_text()[:800]
        failure = f'the process ended with {code}: {" ".join(tail.split())}; input: {last}'
        return {'count': 0, 'refused': 0, 'failures': [failure], 'memory': 0}

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


_workers: dict[pathlib.Path, _Worker] = {}


def run_fuzz(context: Context) -> Outcome:
    """Tries some inputs of one target."""
    names = schedule()
    name = names[context.case % len(names)]
    folder = context.folder / 'fuzz'
    worker = _workers.setdefault(folder, _Worker(folder))
    examples = min(targets.TARGETS[name].examples, context.remaining)
    seed = context.draw.randrange(2**32)
    reply = worker.ask({'target': name, 'seed': seed, 'examples': examples})
    failures = [f'{name}, seed {seed}: {failure}' for failure in reply['failures']]
    if reply['memory'] > fuzz.MEMORY:
        failures.append(f'{name}: the process took {reply["memory"] >> 20} MiB')
    figures = {name: reply['count'], 'refused': reply['refused'], 'MiB': reply['memory'] >> 20}
    return Outcome(reply['count'], failures, figures)


def _work(folder: pathlib.Path) -> None:
    """Answers each request, a line on stdin, by a line on stdout."""
    readers: dict[str, Any] = {}
    last = folder / 'last input'
    answers, sys.stdout = sys.stdout, sys.stderr  # commands print
    for line in sys.stdin:
        request = json.loads(line)
        name = request['target']
        last.write_text(f'none yet, {name}')
        if name not in readers:
            readers[name] = targets.inputs(folder / name.replace(' ', '_'), name)
        strategy, call = readers[name]
        count, refused, failures = fuzz.hunt(
            strategy,
            call,
            request['seed'],
            request['examples'],
            lambda value: last.write_text(repr(value)),
        )
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = {'count': count, 'refused': refused, 'failures': failures, 'memory': memory}
        print(json.dumps(reply), file=answers, flush=True)


# Whole commands.


@functools.cache
def _command_strategies(folder: pathlib.Path) -> st.SearchStrategy[tuple[str, Any]]:
    """Draws (the name of a target, an input of it)."""
    strategies = {name: targets.inputs(folder / name.replace(' ', '_'), name)[0] for name in _LINES}
    return st.sampled_from(sorted(strategies)).flatmap(
        lambda name: st.tuples(st.just(name), strategies[name])
    )


def run_commands(context: Context) -> Outcome:
    """Tries inputs by whole commands, two at a time."""
    folder, pristine = context.case_folder, context.folder / 'commands_input'
    shutil.rmtree(folder, ignore_errors=True)
    failures: list[str] = []
    count, slowest = 0, 0.0

    def call(pair: tuple[tuple[str, Any], ...]) -> None:
        nonlocal count, slowest
        processes = []
        for number, (name, value) in enumerate(pair):
            cwd = folder / f'process{number}'
            shutil.rmtree(cwd, ignore_errors=True)
            cwd.mkdir(parents=True)
            line = _LINES[name](pristine / name.replace(' ', '_'), cwd, value)
            processes.append((name, value, runs.Process([sys.executable, '-m', *line], cwd)))
        for name, value, process in processes:
            count += 1
            problems, seconds = _problems(process)
            slowest = max(slowest, seconds)
            failures.extend(f'{name}: {problem}; input: {value!r:.800}' for problem in problems)

    strategy = _command_strategies(pristine)
    seed, pairs = context.draw.randrange(2**32), max(1, min(20, context.remaining) // 2)
    fuzz.draw(st.tuples(strategy, strategy), call, seed, pairs)
    if not failures:
        shutil.rmtree(folder)
    return Outcome(count, failures, {'slowest, s of processor time': round(slowest, 1)})


def _problems(process: runs.Process) -> tuple[list[str], float]:
    """Returns the faults of a finished command, and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = process.wait(_PAIR)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    problems = process.problems(code, 0, 2, 3)
    errors = [line for line in process.lines if line.startswith('error: ')]
    if code in (2, 3) and (len(errors) != 1 or process.lines[-1] != errors[0]):
        problems.append(f'must end with the only line of an error: {process.lines[-3:]}')
    if code == 0 and errors:
        problems.append(f'exit code 0 and an error: {errors}')
    if seconds > _HANG:
        problems.append(f'took {seconds:.0f} s of processor time')
    return problems, seconds


def _copy(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> pathlib.Path:
    """Copies the pristine input of a target with the drawn file; returns the copy."""
    shutil.copytree(folder / 'pristine', cwd / 'input')
    targets.put(cwd / 'input', value)
    return cwd / 'input'


def _command_line(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> list[str]:
    del folder, cwd
    name, argv = value
    module = {'prepare': 'data.prepare'}.get(name, name)
    words = [word.replace('\0', '').encode(errors='replace').decode() for word in argv]
    return [f'lightpaff_jax.{module}', *words, '--config.train.updates=1']


def _rows(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> list[str]:
    del folder
    name, data, on_error = value
    source, file, _, keys = targets.ROWS[name]
    (cwd / 'rows').mkdir()
    (cwd / 'rows' / file).write_bytes(data)
    changes = [
        f'--config.data.{key}={",".join(x) if isinstance(x, tuple) else x}'
        for key, x in keys.items()
    ]
    example_type = config.SOURCES[source].example_type or 'classes'
    objective = OBJECTIVES[example_type]
    family = {'clm': 'gpt2', 'classify': 'bert', 'seq2seq': 'mass'}[objective]
    return [
        'lightpaff_jax.data.prepare',
        f'--source={source}:{cwd}/rows',
        '--train-tokenizer=270',
        f'--out={cwd}/out',
        '--workers=1',
        f'--on-error={on_error}',
        '--config.data.held_out=0.4',
        f'--config.objective={objective}',
        f'--config.student.family={family}',
        *changes,
    ]


def _tokenizer(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> list[str]:
    copy = _copy(folder, cwd, value)
    (cwd / 'text').mkdir()
    for split in ('train', 'validation', 'test'):
        (cwd / 'text' / f'{split}.txt').write_text('the dog a, b\n\nab a [SEP]\n')
    source = [f'--source=text:{cwd}/text', f'--tokenizer={copy / value[0]}', f'--out={cwd}/out']
    return ['lightpaff_jax.data.prepare', *source, '--workers=1', '--config.data.length=8']


def _weights(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> list[str]:
    copy = _copy(folder, cwd, value)
    return ['lightpaff_jax.generate', f'--model={copy / value[0]}', '--prompt=a', '--max-length=2']


def _report(folder: pathlib.Path, cwd: pathlib.Path, value: tuple) -> list[str]:
    copy = _copy(folder, cwd, value)
    return ['lightpaff_jax.report', str(copy / pathlib.PurePath(value[0]).parts[0])]


_LINES = {
    'command line': _command_line,
    'rows': _rows,
    'tokenizer files': _tokenizer,
    'Hugging Face folder': _weights,
    'report input': _report,
}

if __name__ == '__main__':
    _work(pathlib.Path(sys.argv[1]))
