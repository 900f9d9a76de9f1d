"""What a compiled program says of itself: its collectives, and how often each runs."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip
_OPENED = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_BODY = re.compile(r'body=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r'replica_groups=(?:\[(\d+),(\d+)\]|\{\{([\d,]*)\})')


class Collective(NamedTuple):
    """One operation of a program."""

    kind: str
    """One of KINDS."""
    bytes: int
    """Of its result on one device."""
    group: int
    """Devices that take part together; 0: all."""
    loops: int
    """Loops that it is in."""
    times: int
    """How often it runs in one call; a loop whose length is not known counts once."""
    name: str
    """Where it comes from in the traced function."""


def collectives(text: str) -> list[Collective]:
    """Those that one call of a program runs.

    Args:
      text: of `jax.stages.Compiled.as_text()`.
    """
    own: dict[str, list[str]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    entry = name = ''
    for line in text.splitlines():
        opened = _OPENED.match(line)
        if opened:
            name = opened[2]
            entry = name if opened[1] else entry
            continue
        if _OPERATION.search(line):
            own[name].append(line)
        trips = _TRIPS.search(line)
        for body in _BODY.findall(line):
            calls[name].append((body, int(trips[1]) if trips else 1))
        branches = re.findall(r'[\w.\-]+', ' '.join(_BRANCHES.findall(line)))
        for called in (*_CALLED.findall(line), *branches):
            calls[name].append((called, None))

    found: list[Collective] = []

    def walk(computation: str, loops: int, times: int) -> None:
        found.extend(_read(line, loops, times) for line in own[computation])
        for called, trips in calls[computation]:
            if trips is None:
                walk(called, loops, times)
            else:
                walk(called, loops + 1, times * trips)

    walk(entry, 0, 1)
    return found


def loops(text: str) -> int:
    """While loops of a program."""
    return len(set(_BODY.findall(text)))


def _read(line: str, inside: int, times: int) -> Collective:
    operation = _OPERATION.search(line)
    assert operation is not None
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(',') if n)
        for kind, shape in _SHAPE.findall(operation[1])
    ]
    # An operation that has begun has its operand beside its result.
    size = max(sizes, default=0) if '-start(' in line else sum(sizes)
    groups = _GROUPS.search(line)
    group = 0
    if groups:
        group = int(groups[2]) if groups[2] else len(groups[3].split(',')) if groups[3] else 0
    named = re.search(r'op_name="([^"]*)"', line)
    return Collective(operation[2], size, group, inside, times, named[1] if named else '')
