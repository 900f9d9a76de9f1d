"""What a compiled program says of itself: its collectives, its cycles, and how often each part runs."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip
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
    found: dict[str, Collective] = {}
    for computation, line, inside, times in _lines(text, _OPERATION):
        # One that goes on beside other work, in a loop perhaps, is written at each place of it: it is
        # one channel, and begins outside.
        channel = _CHANNEL.search(line)
        key = channel[0] if channel else f'{len(found)}'
        if key not in found or found[key].loops > inside:
            one = _read(line, inside, times)
            if computation.startswith('all-reduce-scatter'):  # as TPUs write it: a part is kept
                one = one._replace(kind='reduce-scatter', bytes=one.bytes // (one.group or 1))
            found[key] = one
    return list(found.values())


def said(found: Sequence[Collective]) -> list[str]:
    """Collectives of a step as lines of text, those of a kind and a place together."""
    rows: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        row = rows[one.kind, one.group, one.loops]
        row[0] += one.times
        row[1] += one.times * one.bytes
    lines = ['collectives of a step, on a chip:' + ('' if rows else ' none')]
    for (kind, group, inside), (times, size) in sorted(rows.items()):
        where = f'inside {inside} loops' if inside else 'outside of loops'
        lines.append(
            f'  {kind} over {group or "all"} chips, {where}: {times} times, {size / 1e6:.1f} MB'
        )
    return lines


def cycles(text: str, scopes: Sequence[str]) -> dict[str, int]:
    """Cycles of one call by the estimate of the compiler for TPUs, which leaves Pallas kernels out.

    Args:
      text: as of `collectives`.
      scopes: names of `jax.named_scope`, outermost first where they are nested.

    Returns:
      of each scope, and of 'other'; empty where the compiler estimates nothing.
    """
    found: dict[str, int] = defaultdict(int)
    for _, line, _, times in _lines(text, _CYCLES):
        named, count = _NAME.search(line), _CYCLES.search(line)
        words = set(re.split(r'[^\w.\-]+', named[1])) if named else set()
        scope = next((scope for scope in scopes if scope in words), 'other')
        found[scope] += times * int(count[1]) if count else 0
    return dict(found)


def _lines(text: str, wanted: re.Pattern) -> Iterator[tuple[str, str, int, int]]:
    """Lines that match, as they run: their computation, the line, the loops around it, how often."""
    own: dict[str, list[str]] = defaultdict(list)
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
        if wanted.search(line):
            own[name].append(line)
        bounds[name] += [int(bound) for bound in _BOUND.findall(line)]
        trips = _TRIPS.search(line)
        for condition, body in _WHILE.findall(line):
            bodies[body] = condition
            calls[name].append((body, int(trips[1]) if trips else 0))
        branches = re.findall(r'[\w.\-]+', ' '.join(_BRANCHES.findall(line)))
        for called in (*_CALLED.findall(line), *branches):
            calls[name].append((called, None))

    def walk(computation: str, inside: int, times: int) -> Iterator[tuple[str, str, int, int]]:
        for line in own[computation]:
            yield computation, line, inside, times
        for called, trips in calls[computation]:
            if trips is None:
                yield from walk(called, inside, times)
            else:  # a scan counts up to the one constant of its condition
                bound = bounds[bodies[called]]
                known = trips or (bound[0] if len(bound) == 1 else 1)
                yield from walk(called, inside + 1, times * known)

    return walk(entry, 0, 1)


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
    size = sum(sizes)
    if '-start(' in line:  # but for all-reduce, what has begun has its operands before its results
        size = {'all-reduce': size, 'all-gather': sum(sizes[len(sizes) // 2 :])}.get(
            operation[2], max(sizes, default=0)
        )
    named = _NAME.search(line)
    return Collective(operation[2], size, _group(line), inside, times, named[1] if named else '')


def _group(line: str) -> int:
    groups, axes = _GROUPS.search(line), _AXES.search(line)
    if axes:
        sizes = dict(part.split('=') for part in axes[1].split(','))
        return math.prod(int(sizes[name.strip()]) for name in axes[2].split(','))
    if groups:
        return int(groups[2]) if groups[2] else len(groups[3].split(',')) if groups[3] else 0
    return 0
