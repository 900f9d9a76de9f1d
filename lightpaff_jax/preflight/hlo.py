"""Reads the text of a compiled program: collectives, cycles, and how often each operation runs."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
_BYTES = {'pred': 1, 'bf16': 2} | {f'{kind}{8 * n}': n for n in (1, 2, 4, 8) for kind in 'suf'}
_OPENED = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r'condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_BODY = re.compile(r'body=%?([\w.\-]+)')
_BOUND = re.compile(r' = [su]32\[\]\S* constant\((\d+)\)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r'replica_groups=(?:\[(\d+),(\d+)\]|\{\{([\d,]*)\})')
_AXES = re.compile(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """A collective operation of a program."""

    kind: str
    """One of KINDS."""
    bytes: int
    """Size of its result on one device."""
    group: int
    """Number of devices that take part; 0: all."""
    loops: int
    """Number of loops around it."""
    times: int
    """Executions per call of the program; a loop of unknown length counts once."""
    name: str
    """Its origin in the traced function."""


def collectives(text: str) -> list[Collective]:
    """Returns the collectives that one call of a program runs.

    Args:
      text: result of `jax.stages.Compiled.as_text()`.
    """
    by_channel: dict[str, Collective] = {}
    for computation, line, loops, times in _lines(text, _OPERATION):
        # An asynchronous collective appears at several places, perhaps inside a loop. They share
        # one channel; it starts at the place with the fewest loops.
        channel = _CHANNEL.search(line)
        key = channel[0] if channel else f'{len(by_channel)}'
        if key not in by_channel or by_channel[key].loops > loops:
            collective = _parse(line, loops, times)
            if computation.startswith('all-reduce-scatter'):  # TPUs fuse it with a slice
                size = collective.bytes // (collective.group or 1)
                collective = collective._replace(kind='reduce-scatter', bytes=size)
            by_channel[key] = collective
    return list(by_channel.values())


def summary(collectives: Sequence[Collective]) -> list[str]:
    """Formats the collectives of a step as lines of text, grouped by kind, devices and loops."""
    rows: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for collective in collectives:
        row = rows[collective.kind, collective.group, collective.loops]
        row[0] += collective.times
        row[1] += collective.times * collective.bytes
    lines = ['collectives of a step, per chip:' + ('' if rows else ' none')]
    for (kind, group, loops), (times, size) in sorted(rows.items()):
        place = f'inside {loops} loops' if loops else 'outside of loops'
        megabytes = f'{size / 1e6:.1f} MB'
        lines.append(f'  {kind} over {group or "all"} chips, {place}: {times} times, {megabytes}')
    return lines


def cycles(text: str, scopes: Sequence[str]) -> dict[str, int]:
    """Sums the cycles that the TPU compiler estimates for one call, without Pallas kernels.

    Args:
      text: as for `collectives`.
      scopes: names of `jax.named_scope`; of nested scopes the outermost comes first.

    Returns:
      The cycles of each scope and of 'other'; empty if the compiler gives no estimate.
    """
    total: dict[str, int] = defaultdict(int)
    for _, line, _, times in _lines(text, _CYCLES):
        name, count = _NAME.search(line), _CYCLES.search(line)
        words = set(re.split(r'[^\w.\-]+', name[1])) if name else set()
        scope = next((scope for scope in scopes if scope in words), 'other')
        total[scope] += times * int(count[1]) if count else 0
    return dict(total)


def _lines(text: str, pattern: re.Pattern) -> Iterator[tuple[str, str, int, int]]:
    """Yields (computation, line, loops around it, executions) of each line that matches."""
    matches: dict[str, list[str]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    bounds: dict[str, list[int]] = defaultdict(list)
    bodies: dict[str, str] = {}
    entry = name = ''
    for line in text.splitlines():
        opened = _OPENED.match(line)
        if opened:
            name = opened[2]
            entry = name if opened[1] else entry
            continue
        if pattern.search(line):
            matches[name].append(line)
        bounds[name] += [int(bound) for bound in _BOUND.findall(line)]
        trips = _TRIPS.search(line)
        for condition, body in _WHILE.findall(line):
            bodies[body] = condition
            calls[name].append((body, int(trips[1]) if trips else 0))
        branches = re.findall(r'[\w.\-]+', ' '.join(_BRANCHES.findall(line)))
        for called in (*_CALLED.findall(line), *branches):
            calls[name].append((called, None))

    def walk(computation: str, loops: int, times: int) -> Iterator[tuple[str, str, int, int]]:
        for line in matches[computation]:
            yield computation, line, loops, times
        for called, trips in calls[computation]:
            if trips is None:
                yield from walk(called, loops, times)
            else:  # a scan counts up to the only constant of its condition
                bound = bounds[bodies[called]]
                count = trips or (bound[0] if len(bound) == 1 else 1)
                yield from walk(called, loops + 1, times * count)

    return walk(entry, 0, 1)


def loops(text: str) -> int:
    """Returns the number of while loops of a program."""
    return len(set(_BODY.findall(text)))


def _parse(line: str, loops: int, times: int) -> Collective:
    operation = _OPERATION.search(line)
    assert operation is not None
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(',') if n)
        for kind, shape in _SHAPE.findall(operation[1])
    ]
    size = sum(sizes)
    if '-start(' in line:  # except for all-reduce, its shape lists operands before results
        size = {'all-reduce': size, 'all-gather': sum(sizes[len(sizes) // 2 :])}.get(
            operation[2], max(sizes, default=0)
        )
    name = _NAME.search(line)
    return Collective(operation[2], size, _group(line), loops, times, name[1] if name else '')


def _group(line: str) -> int:
    groups, axes = _GROUPS.search(line), _AXES.search(line)
    if axes:
        sizes = dict(part.split('=') for part in axes[1].split(','))
        return math.prod(int(sizes[name.strip()]) for name in axes[2].split(','))
    if groups:
        return int(groups[2]) if groups[2] else len(groups[3].split(',')) if groups[3] else 0
    return 0
