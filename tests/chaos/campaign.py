"""A campaign: pieces of cases, whose outcomes are appended to a file so that a piece resumes."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import platform
import random
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightpaff_jax import workdir

STATE = 'state.jsonl'  # a line for each case


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of a case."""

    folder: pathlib.Path
    """Shared by all cases: undisturbed runs and caches."""
    case_folder: pathlib.Path
    """Its own folder; removed unless the case fails."""
    case: int
    draw: random.Random
    """Draws that depend only on seed, piece and case."""
    remaining: int
    """Events that the piece still lacks."""


class Outcome(NamedTuple):
    """The outcome of a case."""

    count: int
    """Events: kills, signals, damaged checkpoints, inputs."""
    failures: list[str]
    """A line for each failure."""
    figures: Mapping[str, Any] = types.MappingProxyType({})
    """Other measurements, for the table."""


class Piece(NamedTuple):
    """A part of the campaign."""

    run: Callable[[Context], Outcome]
    unit: str
    """Plural name of an event."""
    target: int
    """Events of the whole piece."""
    minutes: int
    """Measured duration on two cores."""
    claim: str
    """The claim that a piece without a failure supports; a sentence of the table."""
    jobs: int = 1
    """Cases at a time."""
    prepare: Callable[[pathlib.Path], None] = lambda folder: None
    """Creates the files that the cases share, in the campaign's folder."""


class State:
    """The outcomes of all cases, one JSON object a line; a line that a crash cut is ignored."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / STATE
        self._lock = threading.Lock()

    def cases(self, piece: str | None = None, **values: Any) -> list[dict[str, Any]]:
        """Returns the cases of a piece, or of all, that have these values."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        cases = []
        for line in lines:
            try:
                cases.append(json.loads(line))
            except ValueError:
                continue
        values |= {} if piece is None else {'piece': piece}
        return [c for c in cases if all(c[key] == value for key, value in values.items())]

    def append(self, case: dict[str, Any]) -> None:
        """Adds a case."""
        with self._lock, self._file.open('a') as file:
            file.write(json.dumps(case) + '\n')
            file.flush()
            os.fsync(file.fileno())


def machine() -> str:
    """Describes this machine."""
    return f'{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}'


def run(
    folder: pathlib.Path, name: str, piece: Piece, seed: int, target: int, minutes: float
) -> tuple[int, list[str]]:
    """Runs the cases of a piece that the state does not have; starts none after the time limit.

    Cases of another commit or seed do not count.

    Returns:
      The number of events and the failures of all its cases.
    """
    state, deadline = State(folder), time.monotonic() + 60 * minutes
    key = {'seed': seed, 'commit': workdir.git_commit() or ''}
    finished = {case['case']: case for case in state.cases(name, **key)}
    count = sum(case['count'] for case in finished.values())
    if count < target:
        piece.prepare(folder)

    def attempt(number: int, remaining: int) -> None:
        case_folder = folder / name / str(number)
        draw = random.Random(f'{seed}/{name}/{number}')
        start = time.monotonic()
        try:
            outcome = piece.run(Context(folder, case_folder, number, draw, remaining))
        except Exception as error:  # a fault of the campaign itself must not pass as a success
            traceback.print_exc()
            outcome = Outcome(0, [f'the case failed: {type(error).__name__}: {error}'])
        seconds = round(time.monotonic() - start, 1)
        case = {'piece': name, 'case': number, **key, 'count': outcome.count, 'seconds': seconds}
        case |= {
            'failures': outcome.failures,
            'figures': dict(outcome.figures),
            'machine': machine(),
        }
        state.append(case)
        finished[number] = case
        print(f'{name} {number}: {outcome.count} {piece.unit}, {seconds:.0f} s', flush=True)
        for failure in outcome.failures:
            print(f'  FAILURE: {failure}', flush=True)

    number, running = 0, set()
    with concurrent.futures.ThreadPoolExecutor(piece.jobs) as pool:
        while True:
            count = sum(case['count'] for case in finished.values())
            # A case without an event would be repeated for ever.
            idle = sum(not case['count'] for case in finished.values())
            more = count < target and time.monotonic() < deadline and idle < 5
            if more and len(running) < piece.jobs:
                while number in finished:
                    number += 1
                running.add(pool.submit(attempt, number, target - count))
                number += 1
            elif running:
                done, running = concurrent.futures.wait(running, return_when='FIRST_COMPLETED')
                for future in done:
                    future.result()
            else:
                break
    failures = [failure for case in finished.values() for failure in case['failures']]
    return count, failures
