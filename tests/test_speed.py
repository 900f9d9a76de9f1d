"""Pairs of measurements alternate, and show which call is slower."""

import itertools
import time

from lightpaff_jax import speed


def test_time_pairs_alternates_and_ranks_calls(monkeypatch):
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
