"""Sums and counts become means; means become lines, TensorBoard scalars and a progress bar.

Files in the workdir, one JSON object a line, each line flushed when it is written:

    metrics.jsonl   step, kind, means. No times: equal runs give equal files, bit for bit
    timing.jsonl    step, seconds since this process began, tokens a second
    tensorboard/    the means as `<kind>/<name>`

Of a workdir in a bucket they are written in a temporary folder, and sent there whole.
"""

import json
import math
import operator
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lightpaff_jax.runtime import distributed, storage

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal

# name of the mean: sum, what it is divided by
MEANS = {
    'loss': ('loss', 'count'),
    'ce': ('ce', 'labelled'),
    'accuracy': ('correct', 'labelled'),
    'kl': ('kl', 'count'),
    'teacher_ce': ('teacher_ce', 'labelled'),
    'agreement': ('agree', 'count'),
}


def add(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of two steps, key by key: {k: a[k] + b[k]}. On the device if they are there.

    Raises:
      ValueError: the keys differ.
    """
    return jax.tree.map(operator.add, dict(a), dict(b))


def means(sums: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Means of the sums that are there, as Python floats; one transfer from the device.

        loss = loss / count       ce = ce / labelled      teacher_ce = teacher_ce / labelled
        kl = kl / count           accuracy = correct / labelled
        agreement = agree / count perplexity = exp(ce), inf where a float has no room

    A denominator is at least 1: a batch of padding has mean 0.

    Args:
      sums: device scalars or numbers, over any number of steps and devices.
      others: values that are no sums (grad_norm, learning_rate); they keep their names.

    Raises:
      ValueError: a sum that has no mean here, or a name that would be given twice.
    """
    host, rest = jax.device_get((dict(sums), dict(others or {})))
    unknown = host.keys() - {name for pair in MEANS.values() for name in pair}
    if unknown:
        raise ValueError(f'sums without a mean: {", ".join(sorted(unknown))}')
    result = {
        name: float(host[total]) / max(float(host[count]), 1.0)
        for name, (total, count) in MEANS.items()
        if total in host
    }
    if 'ce' in result:
        result['perplexity'] = exp(result['ce'])
    twice = result.keys() & rest.keys()
    if twice:
        raise ValueError(f'means and other values have the same name: {", ".join(sorted(twice))}')
    return result | {name: float(value) for name, value in rest.items()}


def to_json(sums: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Sums as numbers that JSON keeps exactly."""
    return None if sums is None else {k: float(x) for k, x in jax.device_get(dict(sums)).items()}


def from_json(sums: Mapping[str, float] | None) -> dict[str, np.float32] | None:
    """What `to_json` wrote, as float32 again."""
    return None if sums is None else {name: np.float32(x) for name, x in sums.items()}


def exp(x: float) -> float:
    """e^x, inf where a float has no room."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class Writer:
    """Writes what a run measures. Process 0 writes; on the others every call does nothing.

    A line belongs to the checkpoint of its step: log what belongs to a step before the step is
    saved, and a run that was killed and resumed ends with the metrics.jsonl of one that was not.

    Args:
      workdir: of the run; made where it is missing.
      total_updates: of the whole run.
      resume_step: the step that was restored; lines after it, and half a line, are removed.
        0 is a run from its start: the files begin empty.
      tokens: that were read up to this step, over all devices and micro-batches.
    """

    def __init__(
        self, workdir: pathlib.Path, total_updates: int, resume_step: int, tokens: int = 0
    ):
        self._active = distributed.is_primary()
        if not self._active:
            return
        self._bucket = workdir if storage.is_remote(workdir) else None
        self._temporary = tempfile.TemporaryDirectory() if self._bucket else None
        self._folder = pathlib.Path(self._temporary.name if self._temporary else workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in ('metrics', 'timing'):
            path = self._folder / f'{name}.jsonl'
            if self._bucket and resume_step:
                storage.download(self._bucket / path.name, path)
            _truncate(path, resume_step)
            self._files[name] = path.open('a', encoding='utf-8')
        from tensorboardX import SummaryWriter  # with torch, where that is installed: 1.5 s

        self._tensorboard = SummaryWriter(
            str(self._folder / 'tensorboard'),
            purge_step=resume_step + 1 if resume_step else 0,
            filename_suffix=f'.{resume_step}',
        )
        self._clock = _Clock(resume_step, tokens)
        self._progress = _Line(total_updates) if not _console().is_terminal else _Bar(total_updates)
        self._loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.keep()
        self.close()

    def keep(self) -> None:
        """Sends to a bucket what is written, before the state it belongs to is saved there: so the
        lines of a checkpoint are never missing, whatever machine goes on from it.

        Raises:
          UserError: the bucket does not take it.
        """
        if self._active and self._bucket:
            self._tensorboard.flush()
            storage.upload(self._folder, self._bucket)

    def log(self, step: int, metrics: Mapping[str, float], kind: str = 'train') -> None:
        """One line, flushed; keys in the order step, kind, then by name. NaN and inf are
        written as Python's json does. A 'train' line has a line in timing.jsonl; the time
        before a line of another kind counts for no update. A line of the restored step that
        is there already is not written again.
        """
        if not self._active:
            return
        values = {name: float(metrics[name]) for name in sorted(metrics)}
        if kind == 'train':
            rate = self._clock.lap(step)
            seconds = round(self._clock.seconds(), 3)
            timing = {'step': step, 'seconds': seconds, 'tokens_per_second': rate}
            self._write('timing', timing)
            self.advance(step, loss=values.get('loss'))
        else:
            self._clock.pause(step)
        self._write('metrics', {'step': step, 'kind': kind, **values})
        for name, value in values.items():
            self._tensorboard.add_scalar(f'{kind}/{name}', value, step)

    def advance(
        self, step: int, tokens: int | None = None, loss: float | None = None, idle: float = 0.0
    ) -> None:
        """Moves the progress to `step`.

        Args:
          step: updates done.
          tokens: that were read in all; None: as many as before.
          loss: to show; None: the last one.
          idle: seconds since the step before that count for no update, as compiling.
        """
        if not self._active:
            return
        self._clock.start(step, tokens, idle)
        self._loss = self._loss if loss is None else loss
        self._progress.show(step, self._loss, self._clock.rate(step), self._clock.per_update(step))

    def rest(self, seconds: float) -> None:
        """Time that counts for no update, as that of saving."""
        if self._active:
            self._clock.rest(seconds)

    def close(self) -> None:
        """Ends the progress and closes the files; may be called twice."""
        if not self._active:
            return
        self._active = False
        self._progress.close()
        self._tensorboard.close()
        for file in self._files.values():
            file.close()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self, name: str, line: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(line) + '\n')
        self._files[name].flush()


def _truncate(path: pathlib.Path, resume_step: int) -> None:
    """Cuts a file of JSON lines before the first that is broken or later than the step."""
    if not path.exists():
        return
    end = 0
    if resume_step:
        for text in path.read_bytes().splitlines(keepends=True):
            line = _parse(text)
            if line is None or line['step'] > resume_step:
                break
            end += len(text)
    os.truncate(path, end)


def _parse(text: bytes) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    whole = text.endswith(b'\n') and isinstance(line, dict) and 'step' in line
    return line if whole else None


class _Clock:
    """Tokens a second over updates only: over no evaluation, compilation or saving."""

    def __init__(self, step: int, tokens: int):
        self._tokens = tokens
        self._begin = time.monotonic()
        self._started = False
        self._mark = step, tokens, self._begin
        self._rate: float | None = None
        self._each: float | None = None

    def start(self, step: int, tokens: int | None, idle: float) -> None:
        self._tokens = self._tokens if tokens is None else tokens
        self.rest(idle)
        if not self._started:
            self._started = True
            self.pause(step)

    def rest(self, seconds: float) -> None:
        self._mark = *self._mark[:2], self._mark[2] + seconds

    def pause(self, step: int) -> None:
        self._mark = step, self._tokens, time.monotonic()

    def lap(self, step: int) -> float | None:
        """Tokens a second since the last lap or pause; None before there was an update."""
        self._rate = self.rate(step)
        self.pause(step)
        return self._rate

    def rate(self, step: int) -> float | None:
        updates, tokens, seconds = self._since(step)
        if updates <= 0 or seconds <= 0:
            return self._rate
        return round(tokens / seconds, 1)

    def per_update(self, step: int) -> float | None:
        """Seconds an update."""
        updates, _, seconds = self._since(step)
        if updates > 0 and seconds > 0:
            self._each = seconds / updates
        return self._each

    def _since(self, step: int) -> tuple[int, int, float]:
        """Updates, tokens and seconds since the mark."""
        return step - self._mark[0], self._tokens - self._mark[1], time.monotonic() - self._mark[2]

    def seconds(self) -> float:
        return time.monotonic() - self._begin


# Progress.


def _console() -> Console:
    return Console(stderr=True)


def _words(loss: float | None, rate: float | None, left: float | None) -> str:
    words = []
    if loss is not None:
        words.append(f'loss {loss:.4f}')
    if rate is not None:
        words.append(f'{rate:,.0f} tokens/s')
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f'{hours}:{minutes:02}:{seconds:02} left')
    return '  '.join(words)


class _Bar:
    """A bar on a terminal."""

    def __init__(self, total: int):
        self._total = total
        self._bar = Progress(
            TextColumn('update {task.completed:.0f}/{task.total:.0f}'),
            BarColumn(),
            TextColumn('{task.fields[words]}'),
            console=_console(),
        )
        self._task = self._bar.add_task('', total=total, words='')
        self._bar.start()

    def show(self, step: int, loss: float | None, rate: float | None, each: float | None) -> None:
        left = None if each is None else each * (self._total - step)
        self._bar.update(self._task, completed=step, words=_words(loss, rate, left))

    def close(self) -> None:
        self._bar.stop()


class _Line:
    """Where there is no terminal (a log file of a pod): a plain line now and then."""

    def __init__(self, total: int):
        self._total = total
        self._last: tuple[int, float] = -1, -math.inf

    def show(self, step: int, loss: float | None, rate: float | None, each: float | None) -> None:
        now = time.monotonic()
        at, when = self._last
        if step == at or (now - when < LINE_EVERY and step < self._total):
            return
        self._last = step, now
        left = None if each is None else each * (self._total - step)
        words = f'update {step}/{self._total}  {_words(loss, rate, left)}'.rstrip()
        _console().print(words, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass
