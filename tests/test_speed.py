"""Pairs of measurements: in turn, and as a ratio the same for equal calls."""

import itertools
import time

from lightpaff_jax import speed


def test_calls_are_measured_in_turn_and_a_slower_one_is_slower(monkeypatch):
    monkeypatch.setattr(speed, '_SECONDS', 0.02)
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    pairs = speed._time_pairs(call('a', 0.006), call('b', 0.002))
    assert len(pairs) == speed._PAIRS
    changes = sum(x != y for x, y in itertools.pairwise(order))
    assert changes == 2 * (speed._PAIRS + 1) - 1
    assert all(a >= 0.006 and b >= 0.002 for a, b in pairs)
    assert sorted(a / b for a, b in pairs)[len(pairs) // 2] > 1.5
