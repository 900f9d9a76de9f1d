"""Arrays of each objective: shapes, padding, keys, handwritten cases.

Tolerances of rates: a share p of n independent draws has standard deviation sqrt(p (1 - p) / n);
four of them are exceeded once in 16,000 times. The draws are fixed, so a test that passes stays so.
"""

import numpy as np
import pytest
from helpers.objectives import arrays, blocks, make_config, record
from helpers.tokenizers import encode_pair

from lightpaff_jax import config
from lightpaff_jax.data import objectives
from lightpaff_jax.data.objectives import collate
from lightpaff_jax.data.records import PADDING

PRETRAINING = pytest.mark.parametrize('name', ['mlm', 'mass'])
ALL = pytest.mark.parametrize('name', list(objectives.OBJECTIVES))


@pytest.fixture(scope='module')
def tokenizer(vocabulary):
    return vocabulary


@pytest.fixture
def c():
    c = config.default()
    c.data.length = 32
    return c


def rows_for(name, tokenizer):
    """Returns two full records and a short one."""
    if name in ('classify', 'seq2seq'):
        return [
            record(*[7] * 12, second=[8] * 7, label=1),
            record(*[9] * 29, label=0),
            record(7, second=[8], label=3),
        ]
    size = {'clm': 33, 'mlm': 30, 'match': 30, 'mass': 31}[name]
    return [*blocks(tokenizer, 2, size), record(10, 11)]


@ALL
def test_arrays_have_the_shape_of_the_objective(name, tokenizer):
    c = make_config(name)
    shape = objectives.OBJECTIVES[name].shape(c)
    fields = arrays(c, tokenizer, rows_for(name, tokenizer))
    widths = {
        'tokens': shape.tokens,
        'segments': shape.tokens,
        'type_ids': shape.tokens,
        'position_ids': shape.tokens,
        'labels': shape.predicted,
        'weights': shape.predicted,
        'positions': shape.predicted,
        'source': shape.source,
        'source_segments': shape.source,
    }
    assert {k: v.shape for k, v in fields.items()} == {k: (3, widths[k]) for k in fields}
    assert all(v.dtype == (np.float32 if k == 'weights' else np.int32) for k, v in fields.items())
    assert ('source' in fields) == bool(shape.source)
    assert ('positions' in fields) == (name in ('mlm', 'match', 'classify'))


@ALL
def test_padding_row_has_weight_0_and_changes_no_other(name, tokenizer):
    c = make_config(name)
    rows = rows_for(name, tokenizer)
    alone, filled = arrays(c, tokenizer, rows), arrays(c, tokenizer, [*rows, PADDING])
    for key, value in filled.items():
        assert np.array_equal(value[:3], alone[key])
    assert filled['weights'][:3].any(axis=1).all()
    assert not filled['weights'][3].any()
    assert not filled['labels'][3].any()
    for key in (
        'segments',
        'source_segments',
    ):  # the matching losses compare every position of a text
        if key in filled:
            assert filled[key][3].any() == (name != 'match')


@ALL
def test_labels_without_weight_are_0(name, tokenizer):
    fields = arrays(make_config(name), tokenizer, [*rows_for(name, tokenizer), PADDING])
    assert not fields['labels'][fields['weights'] == 0].any()


@PRETRAINING
def test_row_depends_only_on_its_key(name, tokenizer):
    c = make_config(name)
    rows, keys = blocks(tokenizer, 6, 30), [(5, 2, i) for i in range(6)]
    together = arrays(c, tokenizer, rows, keys)
    for i in reversed(range(6)):
        alone = arrays(c, tokenizer, rows[i : i + 1], keys[i : i + 1])
        assert all(np.array_equal(alone[key][0], together[key][i]) for key in alone)


@PRETRAINING
def test_masks_differ_between_seeds_epochs_and_records(name, tokenizer):
    c = make_config(name)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (-1, 0, 0), (2**40, 0, 0)]
    fields = arrays(c, tokenizer, blocks(tokenizer, 1, 30) * len(keys), keys)
    read = fields['tokens' if name == 'mlm' else 'source']
    assert len({row.tobytes() for row in read}) == len(keys)


@PRETRAINING
def test_arrays_do_not_share_memory_with_records(name, tokenizer):
    rows = blocks(tokenizer, 3, 30)
    before = [row.first.copy() for row in rows]
    arrays(make_config(name), tokenizer, rows)
    assert all(np.array_equal(x, row.first) for x, row in zip(before, rows, strict=True))


def test_clm_weights_are_1_on_labels_and_0_on_padding(tokenizer):
    rows = [record(5, 6, 7, 8), record(5, 6), record(5), record(9, 9, 9, 9)]
    fields = arrays(make_config('clm', 3), tokenizer, rows)
    pad = tokenizer.pad_id
    assert fields['tokens'].tolist() == [[5, 6, 7], [5, 6, pad], [5, pad, pad], [9, 9, 9]]
    assert fields['labels'].tolist() == [[6, 7, 8], [6, 0, 0], [0, 0, 0], [9, 9, 9]]
    assert fields['weights'].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_draws_of_different_keys_are_distinct():
    keys = [(seed, epoch, i) for seed in (0, 1) for epoch in range(4) for i in range(4)]
    draws = collate.uniform(keys, 100)
    assert len(set(draws.ravel().tolist())) == draws.size


# Fine-tuning.


def test_classify_arrays_equal_handwritten_ones(tokenizer):
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    rows = [record(10, 11, second=[12], label=1), record(13, label=0), PADDING]
    fields = arrays(make_config('classify', 8), tokenizer, rows)
    assert {k: v.tolist() for k, v in fields.items()} == {
        'tokens': [
            [cls, 10, 11, sep, 12, sep, pad, pad],
            [cls, 13, sep, pad, pad, pad, pad, pad],
            [cls, sep, pad, pad, pad, pad, pad, pad],
        ],
        'segments': [[1] * 6 + [0] * 2, [1] * 3 + [0] * 5, [1] * 2 + [0] * 6],
        'type_ids': [[0, 0, 0, 0, 1, 1, 0, 0], [0] * 8, [0] * 8],
        'positions': [[0], [0], [0]],
        'labels': [[1], [0], [0]],
        'weights': [[1], [1], [0]],
    }


@pytest.mark.parametrize('length', [5, 6, 8, 9, 40])
def test_pair_equals_the_reference_of_bert_inputs(tokenizer, length):
    c = make_config('classify', length)
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (' '.join(rng.choice(list('abcxyz'), rng.integers(1, 15))) for _ in range(2))
        for second in (b, ''):
            first_ids, second_ids = tokenizer.encode([a, second])
            texts = objectives.truncate_pair(c, first_ids, second_ids)
            fields = arrays(c, tokenizer, [record(*texts.first, second=texts.second, label=0)])
            ids, types = encode_pair(tokenizer, a, second, length)
            assert fields['tokens'][0].tolist() == ids + [tokenizer.pad_id] * (length - len(ids))
            assert fields['type_ids'][0].tolist() == types + [0] * (length - len(ids))
            assert (texts.length > texts.limit) == (len(ids) < texts.length)


def test_seq2seq_arrays_equal_handwritten_ones(tokenizer):
    c = make_config('seq2seq', 5)
    c.data.target_length = 4
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    rows = [record(10, 11, 12, 13, second=[20, 21, 22]), record(14, second=[23]), PADDING]
    fields = arrays(c, tokenizer, rows)
    assert {k: v.tolist() for k, v in fields.items()} == {
        'source': [[10, 11, 12, 13, eos], [14, eos, pad, pad, pad], [eos, pad, pad, pad, pad]],
        'source_segments': [[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
        'tokens': [[eos, 20, 21, 22], [eos, 23, pad, pad], [pad] * 4],
        'labels': [[20, 21, 22, eos], [23, eos, 0, 0], [0] * 4],
        'weights': [[1] * 4, [1, 1, 0, 0], [0] * 4],
    }


def test_target_is_truncated_so_that_eos_fits():
    c = make_config('seq2seq', 5)
    c.data.target_length = 4
    assert objectives.truncate_target(c, [1] * 4, [2] * 3) == ([1] * 4, [2] * 3, 5, 5)
    assert objectives.truncate_target(c, [1] * 9, [2] * 4) == ([1] * 4, [2] * 3, 10, 5)
    assert objectives.truncate_target(c, [1] * 2, [2] * 4) == ([1] * 2, [2] * 3, 5, 4)
