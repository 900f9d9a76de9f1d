"""Helpers for the tests of objectives: configurations, records, arrays, fixed draws."""

import numpy as np

from lightpaff_jax import config
from lightpaff_jax.data import objectives
from lightpaff_jax.data.objectives import collate
from lightpaff_jax.data.records import Record


def make_config(name, length=32):
    c = config.default()
    c.objective, c.data.length = name, length
    c.data.target_length = 8 if name == 'seq2seq' else 0
    return c


def arrays(c, tokenizer, records, keys=None):
    keys = keys or [(0, 0, i) for i in range(len(records))]
    return objectives.OBJECTIVES[c.objective].arrays(c, tokenizer, records, keys)


def record(*ids, second=(), label=-1):
    return Record(np.array(ids, np.int32), np.array(second, np.int32), label)


def blocks(tokenizer, n, length, seed=0):
    """Returns n full blocks of ordinary ids, with about 5 % separators."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(ordinary(tokenizer), (n, length)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.05] = tokenizer.sep_id
    return [Record(row) for row in ids]


def ordinary(tokenizer):
    return np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))


def share_is(share, p, n):
    return abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5


def set_draws(monkeypatch, *rows):
    monkeypatch.setattr(collate, 'uniform', lambda keys, n: np.array(rows, np.float64))
