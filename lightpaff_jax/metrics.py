"""Turns sums and counts into means, and writes them: JSON lines, TensorBoard, progress on stderr.

The workdir holds files of one JSON object a line; each line is flushed when it is written:

    metrics.jsonl   step, kind, means. It has no times, so equal runs write equal bytes
    timing.jsonl    step, seconds since this process began, tokens per second
    tensorboard/    the means as `<kind>/<name>`

For a workdir in a bucket, the files are written to a temporary folder and uploaded whole.
"""

import contextlib
import logging
import math
import operator
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import jax
import numpy as np

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import distributed, json_file, storage
from lightpaff_jax.runtime.progress import Progress

_log = logging.getLogger('lightpaff_jax')
_LINE = {'step': range(2**31), 'kind?': str}
_FLUSH_EVERY = 30.0  # seconds after which TensorBoard sees the last events

# Name of a mean -> (its sum, the count that divides the sum).
MEANS = {
    'loss': ('loss', 'count'),
    'ce': ('ce', 'labelled'),
    'accuracy': ('correct', 'labelled'),
    'kl': ('kl', 'count'),
    'teacher_ce': ('teacher_ce', 'labelled'),
    'agreement': ('agree', 'count'),
    'relations': ('relations', 'relations_count'),
    'hidden': ('hidden', 'hidden_count'),
    'pooled': ('pooled', 'pooled_count'),
}


def add(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the sums of two steps key by key, on the device if they are there.

    Raises:
      ValueError: the keys differ.
    """
    return jax.tree.map(operator.add, dict(a), dict(b))


def means(sums: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Computes the MEANS of the given sums as Python floats, with one transfer from the device.

    Adds perplexity = exp(ce) if there is a ce. A denominator is at least 1, so a batch of padding
    has mean 0. Means over labels are NaN if no row has one. If updates were skipped, adds their
    number `skipped`; if all were, the means are NaN.

    Args:
      sums: device scalars or numbers, over any number of steps and devices.
      others: values that are not sums (grad_norm, learning_rate); their names are kept.

    Raises:
      ValueError: a sum has no mean in MEANS, or two values have the same name.
    """
    host, rest = jax.device_get((dict(sums), dict(others or {})))
    skipped = int(host.pop('skipped', 0))
    unknown = host.keys() - {name for pair in MEANS.values() for name in pair}
    if unknown:
        raise ValueError(f'sums without a mean: {", ".join(sorted(unknown))}')
    result = {
        name: float(host[total]) / max(float(host[count]), 1.0)
        for name, (total, count) in MEANS.items()
        if total in host
    }
    if host.get('count') and not host.get('labelled', 1):  # all rows are unlabelled
        result |= {name: math.nan for name in result if MEANS[name][1] == 'labelled'}
    if skipped:
        result = result if host['count'] else dict.fromkeys(result, math.nan)
        result['skipped'] = skipped
    if 'ce' in result:
        result['perplexity'] = exp(result['ce'])
    duplicates = result.keys() & rest.keys()
    if duplicates:
        names = ', '.join(sorted(duplicates))
        raise ValueError(f'means and other values have the same name: {names}')
    return result | {name: float(value) for name, value in rest.items()}


def to_json(sums: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Returns sums as numbers that JSON keeps exactly."""
    return None if sums is None else {k: float(x) for k, x in jax.device_get(dict(sums)).items()}


def from_json(sums: Mapping[str, float] | None) -> dict[str, np.float32] | None:
    """Returns the values of `to_json` as float32, with the same bits."""
    return None if sums is None else {name: np.float32(x) for name, x in sums.items()}


def exp(x: float) -> float:
    """Computes e^x, or inf if it exceeds the range of a float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class Writer:
    """Writes the metrics of a run on process 0; does nothing on other processes.

    Log the lines of a step before saving its checkpoint. Then a run that is killed and resumed
    ends with the same metrics.jsonl as one that was never interrupted.

    Args:
      workdir: folder of the run; created if it does not exist.
      total_updates: updates of the whole run.
      resume_step: the restored step; later lines and an incomplete last line are removed. If it is
        0, the files start empty.
      tokens: tokens read up to this step, over all devices and micro-batches.
      lines: the attribute `lines` at this step; {} accepts any number.

    Attributes:
      lines: the number of lines of each file, {} on other processes.

    Raises:
      UserError: a file has a damaged line before its end, lines out of order, or another number of
        lines up to the restored step.
      NotSaved: the disk is full. Every method raises it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        total_updates: int,
        resume_step: int,
        tokens: int = 0,
        lines: Mapping[str, int] = MappingProxyType({}),
    ):
        self._active = distributed.is_primary()
        self.lines: dict[str, int] = {}
        if not self._active:
            return
        self._bucket = workdir if storage.is_remote(workdir) else None
        self._temporary = tempfile.TemporaryDirectory() if self._bucket else None
        self._folder = pathlib.Path(self._temporary.name if self._temporary else workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = {name: self._folder / f'{name}.jsonl' for name in ('metrics', 'timing')}
        for name, path in paths.items():
            if self._bucket and resume_step:
                storage.download(self._bucket / path.name, path)
            self.lines[name] = _truncate(path, resume_step, lines.get(name))
        self._files = {name: path.open('ab', buffering=0) for name, path in paths.items()}
        self._tensorboard = _TensorBoard(self._folder / 'tensorboard', resume_step)
        self._began = time.monotonic()
        self._clock = _Clock(resume_step, tokens)
        self._total = total_updates
        self._progress = Progress(total_updates)
        self._loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.upload()
            self.close()
        else:
            with contextlib.suppress(UserError):  # the first error is the one to raise
                self.close()

    def upload(self) -> None:
        """Syncs all lines to the disk and, if the workdir is in a bucket, uploads the files.

        Call it before saving a checkpoint, so that any machine that resumes from the checkpoint has
        the lines up to its step, even after a crash.

        Raises:
          UserError: the bucket refuses them.
        """
        if not self._active:
            return
        self._tensorboard.flush()
        for file in self._files.values():
            with storage.translate_disk_errors(file.name):
                os.fsync(file.fileno())
        if self._bucket:
            storage.upload(self._folder, self._bucket)

    def log(self, step: int, metrics: Mapping[str, Any], kind: str = 'train') -> None:
        """Writes one line with the keys step, kind, then the metrics by name.

        NaN and inf are written as null. A 'train' line also writes a line of
        timing.jsonl. The time before a line of another kind is not counted for any update.
        """
        if not self._active:
            return
        values = {name: float(metrics[name]) for name in sorted(metrics)}
        if kind == 'train':
            self.advance(step, loss=values.get('loss'))
            seconds, rate = round(time.monotonic() - self._began, 3), self._clock.speed(step)[0]
            self._write('timing', {'step': step, 'seconds': seconds, 'tokens_per_second': rate})
        self._clock.pause(step)
        self._write('metrics', {'step': step, 'kind': kind, **values})
        finite = {f'{kind}/{name}': x for name, x in values.items() if math.isfinite(x)}
        self._tensorboard.write(finite, step)
        if 'skipped' in values:
            self._progress.print(f'update {step}: skipped, not finite: {values["skipped"]:.0f}')

    def advance(
        self, step: int, tokens: int | None = None, loss: float | None = None, idle: float = 0.0
    ) -> None:
        """Shows the progress up to `step`.

        Args:
          step: completed updates.
          tokens: tokens read in total; None keeps the last number.
          loss: loss to show; None keeps the last one.
          idle: seconds since the last step that are not counted for an update, as compilation.
        """
        if not self._active:
            return
        self._clock.advance(step, tokens, idle)
        self._loss = self._loss if loss is None else loss
        fields = [f'update {step}/{self._total}']
        if self._loss is not None:
            fields.append(f'loss {self._loss:.4f}')
        rate, seconds_per_update = self._clock.speed(step)
        if rate is not None and seconds_per_update is not None:
            minutes, seconds = divmod(round(seconds_per_update * (self._total - step)), 60)
            left = f'{minutes // 60}:{minutes % 60:02}:{seconds:02} left'
            fields += [f'{rate:,.0f} tokens/s', left]
        self._progress.show(step, '  '.join(fields))

    def exclude(self, seconds: float) -> None:
        """Does not count the last `seconds` for an update; for example, those of a save."""
        if self._active:
            self._clock.exclude(seconds)

    def close(self) -> None:
        """Ends the progress and closes the files; a second call does nothing."""
        if not self._active:
            return
        self._active = False
        self._progress.close()
        for file in self._files.values():
            file.close()
        if self._temporary:
            self._temporary.cleanup()
        self._tensorboard.close()

    def _write(self, name: str, line: dict[str, Any]) -> None:
        file, data = self._files[name], memoryview(f'{storage.format_json(line)}\n'.encode())
        end = file.tell()
        with storage.translate_disk_errors(file.name):
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise
        self.lines[name] += 1


class _TensorBoard:
    """Writes scalars as events of TensorBoard.

    The SummaryWriter of tensorboardX writes in a thread, which ends if the disk is full; training
    would then wait forever. So this class uses the RecordWriter below it.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        # Imported late: tensorboardX imports torch if it is installed, which takes seconds.
        from tensorboardX import RecordWriter, summary
        from tensorboardX.proto import event_pb2

        self._scalar, self._event = summary.scalar, event_pb2.Event
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{resume_step}'
        self._file = folder / name
        with storage.translate_disk_errors(self._file):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(self._file))
            self._add(0, file_version='brain.Event:2')
            # From this step on, TensorBoard hides the events of an earlier process.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(resume_step + 1 if resume_step else 0, session_log=start)
        self._flushed = time.monotonic()

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        with storage.translate_disk_errors(self._file):
            for name, value in scalars.items():
                self._add(step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self.flush()

    def _add(self, step: int, **content: Any) -> None:
        event = self._event(step=step, wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        self._flushed = time.monotonic()
        with storage.translate_disk_errors(self._file):
            self._writer.flush()

    def close(self) -> None:
        with storage.translate_disk_errors(self._file):
            self._writer.close()


def _truncate(path: pathlib.Path, resume_step: int, expected: int | None = None) -> int:
    """Cuts a JSON lines file before the first line that is later than the step.

    A last line without its newline, which a crash leaves, is cut too.

    Args:
      path: the file.
      resume_step: the step; 0 cuts all lines, also damaged ones.
      expected: the number of lines up to this step; None if it is not known.

    Returns:
      The number of lines that remain.

    Raises:
      UserError: another line is damaged, or is not later than the line before it, or the number of
        lines is not the expected one; nothing is cut.
    """
    if not path.exists():
        _warn_of_no_line(path, resume_step, expected)
        return 0
    end, count, last_step, kinds = 0, 0, 0, set[str]()
    lines = json_file.read_bytes(path).splitlines(keepends=True) if resume_step else []
    for number, line in enumerate(lines, 1):
        where = f'{path}: line {number}'
        if not line.endswith(b'\n'):
            _log.info('%s: is incomplete and removed', where)
            break
        try:
            entry = json_file.parse(line, _LINE, where)
        except UserError as error:
            raise UserError(f'{error}; repair or remove the line') from error
        step, kind = entry['step'], entry.get('kind', '')
        if step < last_step or (step == last_step and kind in kinds):
            raise UserError(f'{where}: repeats step {step}; remove the lines of another run')
        kinds = kinds | {kind} if step == last_step else {kind}
        last_step = step
        # A resumed run writes the validation of the step again if a signal has stopped it.
        if step < resume_step or (step == resume_step and count != expected):
            end, count = end + len(line), count + 1
    if not count:  # also after a crash of a run that went on without the file
        _warn_of_no_line(path, resume_step, expected)
    elif expected not in (None, count):
        raise UserError(
            f'{path}: line {count}: is the last one up to step {resume_step}, whose checkpoint was '
            f'saved after line {expected}; restore the file, or remove it to go on without its lines'
        )
    os.truncate(path, end)
    return count


def _warn_of_no_line(path: pathlib.Path, resume_step: int, expected: int | None) -> None:
    if expected:
        _log.warning('%s: has none of its lines up to step %d, they are lost', path, resume_step)


class _Clock:
    """Measures the speed of updates only, without evaluation, compilation and saving."""

    def __init__(self, step: int, tokens: int):
        self._tokens = tokens
        self._started = False
        self._mark = step, tokens, time.monotonic()
        self._speed: tuple[float | None, float | None] = None, None

    def advance(self, step: int, tokens: int | None, idle: float) -> None:
        self._tokens = self._tokens if tokens is None else tokens
        self.exclude(idle)
        if not self._started:  # the first update includes the compilation
            self._started = True
            self.pause(step)

    def exclude(self, seconds: float) -> None:
        step, tokens, start = self._mark
        self._mark = step, tokens, start + seconds

    def pause(self, step: int) -> None:
        """Begins to measure at this step."""
        self._mark = step, self._tokens, time.monotonic()

    def speed(self, step: int) -> tuple[float | None, float | None]:
        """Returns tokens per second and seconds per update; None before the second update."""
        first_step, first_tokens, start = self._mark
        updates, seconds = step - first_step, time.monotonic() - start
        if updates > 0 and seconds > 0:
            rate = round((self._tokens - first_tokens) / seconds, 1)
            self._speed = rate, seconds / updates
        return self._speed
