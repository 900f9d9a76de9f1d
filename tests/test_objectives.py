"""Claims about what is predicted from what.

Tolerances of rates: a share p of n independent draws has standard deviation sqrt(p (1 - p) / n);
four of them are exceeded once in 16,000 times. The draws are fixed, so a test that passes stays so.
"""

import data_fixtures
import numpy as np
import pytest

from lightpaff_jax import config
from lightpaff_jax.data import objectives
from lightpaff_jax.data import rows as rows_lib
from lightpaff_jax.data.records import PADDING, Record

PRETRAINING = pytest.mark.parametrize('name', ['mlm', 'mass'])
ALL = pytest.mark.parametrize('name', list(objectives.OBJECTIVES))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return data_fixtures.wordpiece(tmp_path_factory.mktemp('wordpiece'))


@pytest.fixture
def c():
    c = config.default()
    c.data.length = 32
    return c


def configured(name, length=32):
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
    """n full blocks of ids that may be masked, with a separator here and there."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(ordinary(tokenizer), (n, length)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.05] = tokenizer.sep_id
    return [Record(row) for row in ids]


def ordinary(tokenizer):
    return np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))


def share_is(share, p, n):
    return abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5


def rows_for(name, tokenizer):
    """Two full records and one that is short."""
    if name in ('classify', 'seq2seq'):
        return [
            record(*[7] * 12, second=[8] * 7, label=1),
            record(*[9] * 29, label=0),
            record(7, second=[8], label=3),
        ]
    size = {'clm': 33, 'mlm': 30, 'mass': 31}[name]
    return [*blocks(tokenizer, 2, size), record(10, 11)]


@ALL
def test_arrays_have_the_shape_that_is_announced(name, tokenizer):
    c = configured(name)
    shape = objectives.OBJECTIVES[name].shape(c)
    made = arrays(c, tokenizer, rows_for(name, tokenizer))
    widths = {
        'tokens': shape.tokens, 'segments': shape.tokens, 'type_ids': shape.tokens,
        'position_ids': shape.tokens, 'labels': shape.predicted, 'weights': shape.predicted,
        'positions': shape.predicted, 'source': shape.source, 'source_segments': shape.source,
    }  # fmt: skip
    assert {k: v.shape for k, v in made.items()} == {k: (3, widths[k]) for k in made}
    assert all(v.dtype == (np.float32 if k == 'weights' else np.int32) for k, v in made.items())
    assert ('source' in made) == bool(shape.source)
    assert ('positions' in made) == (name in ('mlm', 'classify'))


@ALL
def test_a_padding_row_weighs_nothing_and_changes_no_other(name, tokenizer):
    c = configured(name)
    rows = rows_for(name, tokenizer)
    alone, filled = arrays(c, tokenizer, rows), arrays(c, tokenizer, [*rows, PADDING])
    for key, value in filled.items():
        assert np.array_equal(value[:3], alone[key])
    assert filled['weights'][:3].any(axis=1).all()
    assert not filled['weights'][3].any()
    assert not filled['labels'][3].any()
    for key in ('segments', 'source_segments'):  # so that there is something to attend to
        if key in filled:
            assert filled[key][3].any()


@ALL
def test_labels_without_weight_are_0(name, tokenizer):
    made = arrays(configured(name), tokenizer, [*rows_for(name, tokenizer), PADDING])
    assert not made['labels'][made['weights'] == 0].any()


@PRETRAINING
def test_a_row_depends_on_its_own_key_alone(name, tokenizer):
    c = configured(name)
    rows, keys = blocks(tokenizer, 6, 30), [(5, 2, i) for i in range(6)]
    together = arrays(c, tokenizer, rows, keys)
    for i in reversed(range(6)):
        alone = arrays(c, tokenizer, rows[i : i + 1], keys[i : i + 1])
        assert all(np.array_equal(alone[key][0], together[key][i]) for key in alone)


@PRETRAINING
def test_another_seed_epoch_or_record_is_another_mask(name, tokenizer):
    c = configured(name)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (-1, 0, 0), (2**40, 0, 0)]
    made = arrays(c, tokenizer, blocks(tokenizer, 1, 30) * len(keys), keys)
    read = made['tokens' if name == 'mlm' else 'source']
    assert len({row.tobytes() for row in read}) == len(keys)


@PRETRAINING
def test_arrays_do_not_share_memory_with_the_records(name, tokenizer):
    rows = blocks(tokenizer, 3, 30)
    before = [row.first.copy() for row in rows]
    arrays(configured(name), tokenizer, rows)
    assert all(np.array_equal(x, row.first) for x, row in zip(before, rows, strict=True))


def test_padding_of_clm_has_weight_0_and_every_real_label_weight_1(tokenizer):
    rows = [record(5, 6, 7, 8), record(5, 6), record(5), record(9, 9, 9, 9)]
    made = arrays(configured('clm', 3), tokenizer, rows)
    pad = tokenizer.pad_id
    assert made['tokens'].tolist() == [[5, 6, 7], [5, 6, pad], [5, pad, pad], [9, 9, 9]]
    assert made['labels'].tolist() == [[6, 7, 8], [6, 0, 0], [0, 0, 0], [9, 9, 9]]
    assert made['weights'].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_draws_of_different_keys_have_nothing_in_common():
    keys = [(seed, epoch, i) for seed in (0, 1) for epoch in range(4) for i in range(4)]
    draws = rows_lib.uniform(keys, 100)
    assert len(set(draws.ravel().tolist())) == draws.size


def given(monkeypatch, *rows):
    monkeypatch.setattr(rows_lib, 'uniform', lambda keys, n: np.array(rows, np.float64))


# Masked language modelling.


def test_mlm_by_hand(tokenizer, monkeypatch):
    """The draws are one for each of 14 positions, 2 for what is done, 2 for another id."""
    c = configured('mlm', 14)
    cls, sep, mask, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id
    free, last = [0.9] * 14, int(ordinary(tokenizer)[-1])
    low = [0.0 if i in (0, 3, 7, 13) else 0.9 for i in range(14)]  # two of them special
    given(
        monkeypatch,
        [*low, *(0.79, 0.89), *(0.5, 0.999)],  # mask, another id
        [*free[:2], 0.1, *free[3:], *(0.95, 0.0), *(0.5, 0.5)],  # itself
    )
    made = arrays(c, tokenizer, [record(*range(10, 22)), record(30, 31)])
    assert {k: v.tolist() for k, v in made.items()} == {
        'tokens': [
            [cls, 10, 11, mask, 13, 14, 15, last, 17, 18, 19, 20, 21, sep],
            [cls, 30, 31, sep, *[pad] * 10],
        ],
        'segments': [[1] * 14, [1] * 4 + [0] * 10],
        'positions': [[3, 7], [2, 0]],
        'labels': [[12, 16], [31, 0]],
        'weights': [[1, 1], [1, 0]],
    }


@pytest.fixture(scope='module')
def many(tokenizer):
    """(original ids [B, T], arrays) of 1,400 rows of 512 tokens: over 10^5 predicted."""
    rows = blocks(tokenizer, 1400, 510)
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    ids = np.stack([np.concatenate([cls, r.first, sep]) for r in rows])
    made = arrays(configured('mlm', 512), tokenizer, rows, [(3, 1, i) for i in range(1400)])
    assert made['weights'].sum() > 1e5
    return ids, made


def test_masked_share_is_the_one_asked_for(many, tokenizer):
    ids, made = many
    content = ~np.isin(ids, list(tokenizer.special_ids))
    want = np.rint(0.15 * content.sum(1))
    assert made['weights'].sum(1).tolist() == want.tolist()
    assert abs(made['weights'].sum() / content.sum() - 0.15) < 0.5 / content.sum(1).min()


def test_no_special_token_is_chosen_and_none_is_read_instead(many, tokenizer):
    _, made = many
    row, slot = np.nonzero(made['weights'])
    at = made['positions'][row, slot]
    special = list(tokenizer.special_ids)
    assert not np.isin(made['labels'][row, slot], special).any()
    read = made['tokens'][row, at]
    assert not np.isin(read[read != tokenizer.mask_id], special).any()


def test_only_chosen_positions_change_and_labels_are_what_stood_there(many):
    ids, made = many
    row, slot = np.nonzero(made['weights'])
    at = made['positions'][row, slot]
    chosen = np.zeros(ids.shape, bool)
    chosen[row, at] = True
    assert chosen.sum() == made['weights'].sum()  # no position twice
    assert np.array_equal(made['tokens'][~chosen], ids[~chosen])
    assert np.array_equal(made['labels'][row, slot], ids[row, at])
    assert all((np.diff(made['positions'][i, slot[row == i]]) > 0).all() for i in range(50))


def test_replacements_are_8_to_1_to_1(many, tokenizer):
    _, made = many
    row, slot = np.nonzero(made['weights'])
    read, label = made['tokens'][row, made['positions'][row, slot]], made['labels'][row, slot]
    n, other = len(read), 0.1 / len(ordinary(tokenizer))  # a random id may be the one that was
    assert share_is((read == tokenizer.mask_id).mean(), 0.8, n)
    assert share_is((read == label).mean(), 0.1 + other, n)
    changed = (read != tokenizer.mask_id) & (read != label)
    assert share_is(changed.mean(), 0.1 - other, n)


def test_random_ids_are_uniform(many, tokenizer):
    _, made = many
    row, slot = np.nonzero(made['weights'])
    read, label = made['tokens'][row, made['positions'][row, slot]], made['labels'][row, slot]
    random = read[(read != tokenizer.mask_id) & (read != label)]
    ids = ordinary(tokenizer)
    counts = np.array([(random == i).sum() for i in ids])
    assert counts.sum() == len(random)
    assert all(share_is(n / len(random), 1 / len(ids), len(random)) for n in counts)


def test_every_position_is_as_likely_and_no_more_likely_masked(many, tokenizer):
    """In 8 parts of the sequence, and in the slots of the arrays."""
    ids, made = many
    content = ~np.isin(ids, list(tokenizer.special_ids))
    row, slot = np.nonzero(made['weights'])
    at = made['positions'][row, slot]
    masked = made['tokens'][row, at] == tokenizer.mask_id
    for part in range(8):
        inside = at // 64 == part
        n = content[:, part * 64 : part * 64 + 64].sum()
        assert share_is(inside.sum() / n, 0.15, n)
        assert share_is(masked[inside].mean(), 0.8, inside.sum())
        few = slot % 8 == part
        assert share_is(masked[few].mean(), 0.8, few.sum())


@pytest.mark.parametrize(('content', 'count'), [(0, 0), (1, 1), (2, 1), (9, 1), (10, 2), (30, 4)])
def test_a_short_row_predicts_at_least_one_of_what_it_has(c, tokenizer, content, count):
    """0.15 of 10 is 1.5, rounded to the even 2."""
    c.objective = 'mlm'
    made = arrays(c, tokenizer, [record(*range(10, 10 + content))])
    assert made['weights'].sum() == count
    assert made['segments'].sum() == content + 2
    assert made['tokens'][0, content + 2 :].tolist() == [tokenizer.pad_id] * (30 - content)


def test_a_block_of_separators_alone_predicts_nothing(c, tokenizer):
    c.objective = 'mlm'
    made = arrays(c, tokenizer, [record(tokenizer.sep_id)])
    assert made['tokens'][0, :3].tolist() == [tokenizer.cls_id, *[tokenizer.sep_id] * 2]
    assert not made['weights'].any()


def words_of(ids, tokenizer):
    """Lists of positions, one a word, by the definition."""
    found, before = [], True
    for i, one in enumerate(ids.tolist()):
        special = one in tokenizer.special_ids
        if not special and (before or tokenizer.word_starts[one]):
            found.append([i])
        elif not special:
            found[-1].append(i)
        before = special
    return found


def test_whole_words_are_chosen_or_left(tokenizer):
    c = configured('mlm', 512)
    c.data.whole_words = True
    rows = blocks(tokenizer, 200, 510)
    made = arrays(c, tokenizer, rows)
    partly, short = 0, 0
    for i, row in enumerate(rows):
        ids = np.concatenate([[tokenizer.cls_id], row.first, [tokenizer.sep_id]])
        n = int(made['weights'][i].sum())
        chosen = set(made['positions'][i, :n].tolist())
        words = words_of(ids, tokenizer)
        assert chosen == {at for word in words if chosen & set(word) for at in word}
        assert made['labels'][i, :n].tolist() == ids[sorted(chosen)].tolist()
        want = int(np.rint(0.15 * sum(map(len, words))))
        assert n <= want
        short += want - n
        partly += any(len(word) > 1 for word in words if chosen & set(word))
    assert partly == 200  # so that words of several pieces are in the test
    assert short / made['weights'].sum() < 0.01  # rare: a word of one piece fills the last place


def test_a_word_longer_than_the_count_is_passed_over(c, tokenizer):
    """Of 12 ids 2 may be predicted; the word of 10 pieces never is, the other two always."""
    c.objective, c.data.whole_words = 'mlm', True
    starts = np.flatnonzero(tokenizer.word_starts & ~np.isin(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids)))  # fmt: skip
    inside = np.setdiff1d(ordinary(tokenizer), starts)
    row = record(starts[0], starts[1], starts[2], *inside[:9])
    for seed in range(20):
        made = arrays(c, tokenizer, [row], [(seed, 0, 0)])
        assert made['positions'][0, :2].tolist() == [1, 2]
        assert made['weights'].sum() == 2


# Masked sequence to sequence.


def test_mass_by_hand(tokenizer, monkeypatch):
    """Blocks of 6 ids, of which 3 are predicted: one begins at 2, one at 0, one is short."""
    c = configured('mass', 7)
    mask, eos, pad = tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id
    last = int(ordinary(tokenizer)[-1])
    given(
        monkeypatch,
        [0.5, *(0.1, 0.85, 0.95), *(0.9, 0.999, 0.9)],  # mask, another id, itself
        [0.0, *(0.9, 0.79, 0.0), *(0.5, 0.5, 0.5)],  # itself, mask, mask
        [0.9, *(0.5, 0.5, 0.5), *(0.5, 0.5, 0.5)],
    )
    rows = [record(10, 11, 12, 13, 14, 15), record(20, 21, 22, 23, 24, 25), record(30, eos, 32)]
    made = arrays(c, tokenizer, rows)
    assert {k: v.tolist() for k, v in made.items()} == {
        'source': [
            [10, 11, mask, last, 14, 15, eos],
            [20, mask, mask, 23, 24, 25, eos],
            [30, mask, mask, eos, pad, pad, pad],  # round(1.5) = 2 of 3, a separator among them
        ],
        'source_segments': [[1] * 7, [1] * 7, [1, 1, 1, 1, 0, 0, 0]],
        'tokens': [[11, 12, 13], [eos, 20, 21], [30, eos, pad]],
        'position_ids': [[2, 3, 4], [0, 1, 2], [1, 2, 0]],
        'labels': [[12, 13, 14], [20, 21, 22], [eos, 32, 0]],
        'weights': [[1, 1, 1], [1, 1, 1], [1, 1, 0]],
    }


@pytest.fixture(scope='module')
def fragments(tokenizer):
    """(blocks [B, S-1], arrays) of 3,000 rows of 128 tokens: over 10^5 predicted."""
    rows = blocks(tokenizer, 3000, 127)
    made = arrays(configured('mass', 128), tokenizer, rows, [(4, 1, i) for i in range(3000)])
    assert made['weights'].sum() > 1e5
    return np.stack([r.first for r in rows]), made


def test_the_fragment_is_the_share_asked_for_in_one_piece(fragments):
    ids, made = fragments
    assert made['weights'].all()
    assert made['labels'].shape[1] == np.rint(0.5 * 127) == 64
    assert (np.diff(made['position_ids']) == 1).all()
    assert np.array_equal(np.take_along_axis(ids, made['position_ids'], 1), made['labels'])


def test_only_the_fragment_changes(fragments, tokenizer):
    ids, made = fragments
    inside = np.zeros(ids.shape, bool)
    np.put_along_axis(inside, made['position_ids'], True, axis=1)
    assert np.array_equal(made['source'][:, :-1][~inside], ids[~inside])
    assert (made['source'][:, -1] == tokenizer.eos_id).all()
    assert made['source_segments'].all()


def test_replacements_of_a_fragment_are_8_to_1_to_1(fragments, tokenizer):
    _, made = fragments
    read = np.take_along_axis(made['source'], made['position_ids'], 1)
    ordinary_label = ~np.isin(made['labels'], list(tokenizer.special_ids))
    n, other = ordinary_label.sum(), 0.1 / len(ordinary(tokenizer))
    assert share_is((read == tokenizer.mask_id).mean(), 0.8, read.size)
    assert share_is((read == made['labels'])[ordinary_label].mean(), 0.1 + other, n)
    changed = (read != tokenizer.mask_id) & (read != made['labels'])
    assert share_is(changed[ordinary_label].mean(), 0.1 - other, n)
    assert not np.isin(read[changed], list(tokenizer.special_ids)).any()


def test_every_beginning_of_a_fragment_is_as_likely(fragments):
    _, made = fragments
    starts = made['position_ids'][:, 0]
    assert set(starts.tolist()) == set(range(127 - 64 + 1))
    assert all(share_is((starts // 8 == part).mean(), 1 / 8, 3000) for part in range(8))


# Fine-tuning.


def test_a_pair_by_hand(tokenizer):
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    rows = [record(10, 11, second=[12], label=1), record(13, label=0), PADDING]
    made = arrays(configured('classify', 8), tokenizer, rows)
    assert {k: v.tolist() for k, v in made.items()} == {
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
def test_a_pair_is_cut_and_laid_out_as_the_tokenizer_does(tokenizer, length):
    c = configured('classify', length)
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (' '.join(rng.choice(list('abcxyz'), rng.integers(1, 15))) for _ in range(2))
        for second in (b, ''):
            first_ids, second_ids = tokenizer.encode([a, second])
            fitted = objectives.fit_pair(c, first_ids, second_ids)
            made = arrays(c, tokenizer, [record(*fitted.first, second=fitted.second, label=0)])
            ids, types = tokenizer.encode_pair(a, second, length)
            assert made['tokens'][0].tolist() == ids + [tokenizer.pad_id] * (length - len(ids))
            assert made['type_ids'][0].tolist() == types + [0] * (length - len(ids))
            assert (fitted.length > fitted.limit) == (len(ids) < fitted.length)


def test_a_target_by_hand(tokenizer):
    c = configured('seq2seq', 5)
    c.data.target_length = 4
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    rows = [record(10, 11, 12, 13, second=[20, 21, 22]), record(14, second=[23]), PADDING]
    made = arrays(c, tokenizer, rows)
    assert {k: v.tolist() for k, v in made.items()} == {
        'source': [[10, 11, 12, 13, eos], [14, eos, pad, pad, pad], [eos, pad, pad, pad, pad]],
        'source_segments': [[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
        'tokens': [[eos, 20, 21, 22], [eos, 23, pad, pad], [pad] * 4],
        'labels': [[20, 21, 22, eos], [23, eos, 0, 0], [0] * 4],
        'weights': [[1] * 4, [1, 1, 0, 0], [0] * 4],
    }


def test_a_target_is_cut_so_that_its_end_fits():
    c = configured('seq2seq', 5)
    c.data.target_length = 4
    assert objectives.fit_target(c, [1] * 4, [2] * 3) == ([1] * 4, [2] * 3, 5, 5)
    assert objectives.fit_target(c, [1] * 9, [2] * 4) == ([1] * 4, [2] * 3, 10, 5)
    assert objectives.fit_target(c, [1] * 2, [2] * 4) == ([1] * 2, [2] * 3, 5, 4)
