"""Masked language modelling and masked spans: chosen ids, replacements, their rates.

Tolerances of rates: a share p of n independent draws has standard deviation sqrt(p (1 - p) / n);
four of them are exceeded once in 16,000 times. The draws are fixed, so a test that passes stays so.
"""

import numpy as np
import pytest
from helpers.objectives import arrays, blocks, make_config, ordinary, record, set_draws, share_is


@pytest.fixture(scope='module')
def tokenizer(vocabulary):
    return vocabulary


# Masked language modelling.


def test_mlm_arrays_equal_handwritten_ones(tokenizer, monkeypatch):
    """A row has 14 draws for its positions, 2 for the actions, 2 for random ids."""
    c = make_config('mlm', 14)
    cls, sep, mask, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id
    free, last = [0.9] * 14, int(ordinary(tokenizer)[-1])
    low = [0.0 if i in (0, 3, 7, 13) else 0.9 for i in range(14)]  # two of them special
    set_draws(
        monkeypatch,
        [*low, *(0.79, 0.89), *(0.5, 0.999)],  # mask, another id
        [*free[:2], 0.1, *free[3:], *(0.95, 0.0), *(0.5, 0.5)],  # itself
    )
    fields = arrays(c, tokenizer, [record(*range(10, 22)), record(30, 31)])
    assert {k: v.tolist() for k, v in fields.items()} == {
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
    """Returns the ids [B, T] and the arrays of 1,400 rows of 512; over 10^5 ids are predicted."""
    rows = blocks(tokenizer, 1400, 510)
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    ids = np.stack([np.concatenate([cls, r.first, sep]) for r in rows])
    fields = arrays(make_config('mlm', 512), tokenizer, rows, [(3, 1, i) for i in range(1400)])
    assert fields['weights'].sum() > 1e5
    return ids, fields


def test_masked_share_is_the_mask_rate(many, tokenizer):
    ids, fields = many
    content = ~np.isin(ids, list(tokenizer.special_ids))
    want = np.rint(0.15 * content.sum(1))
    assert fields['weights'].sum(1).tolist() == want.tolist()
    assert abs(fields['weights'].sum() / content.sum() - 0.15) < 0.5 / content.sum(1).min()


def test_special_tokens_are_neither_chosen_nor_inserted(many, tokenizer):
    _, fields = many
    row, slot = np.nonzero(fields['weights'])
    at = fields['positions'][row, slot]
    special = list(tokenizer.special_ids)
    assert not np.isin(fields['labels'][row, slot], special).any()
    read = fields['tokens'][row, at]
    assert not np.isin(read[read != tokenizer.mask_id], special).any()


def test_only_chosen_ids_change_and_are_the_labels(many):
    ids, fields = many
    row, slot = np.nonzero(fields['weights'])
    at = fields['positions'][row, slot]
    chosen = np.zeros(ids.shape, bool)
    chosen[row, at] = True
    assert chosen.sum() == fields['weights'].sum()  # no position twice
    assert np.array_equal(fields['tokens'][~chosen], ids[~chosen])
    assert np.array_equal(fields['labels'][row, slot], ids[row, at])
    assert all((np.diff(fields['positions'][i, slot[row == i]]) > 0).all() for i in range(50))


def test_mlm_replacements_are_8_to_1_to_1(many, tokenizer):
    _, fields = many
    row, slot = np.nonzero(fields['weights'])
    read, label = fields['tokens'][row, fields['positions'][row, slot]], fields['labels'][row, slot]
    n, other = len(read), 0.1 / len(ordinary(tokenizer))  # a random id may be the one that was
    assert share_is((read == tokenizer.mask_id).mean(), 0.8, n)
    assert share_is((read == label).mean(), 0.1 + other, n)
    changed = (read != tokenizer.mask_id) & (read != label)
    assert share_is(changed.mean(), 0.1 - other, n)


def test_random_ids_are_uniform(many, tokenizer):
    _, fields = many
    row, slot = np.nonzero(fields['weights'])
    read, label = fields['tokens'][row, fields['positions'][row, slot]], fields['labels'][row, slot]
    random = read[(read != tokenizer.mask_id) & (read != label)]
    ids = ordinary(tokenizer)
    counts = np.array([(random == i).sum() for i in ids])
    assert counts.sum() == len(random)
    assert all(share_is(n / len(random), 1 / len(ids), len(random)) for n in counts)


def test_every_position_is_masked_equally_often(many, tokenizer):
    """Holds for 8 parts of the sequence and for the slots of the arrays."""
    ids, fields = many
    content = ~np.isin(ids, list(tokenizer.special_ids))
    row, slot = np.nonzero(fields['weights'])
    at = fields['positions'][row, slot]
    masked = fields['tokens'][row, at] == tokenizer.mask_id
    for part in range(8):
        inside = at // 64 == part
        n = content[:, part * 64 : part * 64 + 64].sum()
        assert share_is(inside.sum() / n, 0.15, n)
        assert share_is(masked[inside].mean(), 0.8, inside.sum())
        few = slot % 8 == part
        assert share_is(masked[few].mean(), 0.8, few.sum())


@pytest.mark.parametrize(('content', 'count'), [(0, 0), (1, 1), (2, 1), (9, 1), (10, 2), (30, 4)])
def test_short_row_predicts_at_least_one_id(tokenizer, content, count):
    """0.15 * 10 is 1.5, which rounds to the even 2."""
    c = make_config('mlm')
    fields = arrays(c, tokenizer, [record(*range(10, 10 + content))])
    assert fields['weights'].sum() == count
    assert fields['segments'].sum() == content + 2
    assert fields['tokens'][0, content + 2 :].tolist() == [tokenizer.pad_id] * (30 - content)


def test_block_of_separators_predicts_nothing(tokenizer):
    c = make_config('mlm')
    fields = arrays(c, tokenizer, [record(tokenizer.sep_id)])
    assert fields['tokens'][0, :3].tolist() == [tokenizer.cls_id, *[tokenizer.sep_id] * 2]
    assert not fields['weights'].any()


def words_of(ids, tokenizer):
    """Returns the positions of each word, by its definition."""
    words, before = [], True
    for i, token in enumerate(ids.tolist()):
        special = token in tokenizer.special_ids
        if not special and (before or tokenizer.word_starts[token]):
            words.append([i])
        elif not special:
            words[-1].append(i)
        before = special
    return words


def test_words_are_chosen_as_a_whole(tokenizer):
    c = make_config('mlm', 512)
    c.data.whole_words = True
    rows = blocks(tokenizer, 200, 510)
    fields = arrays(c, tokenizer, rows)
    partly, short = 0, 0
    for i, row in enumerate(rows):
        ids = np.concatenate([[tokenizer.cls_id], row.first, [tokenizer.sep_id]])
        n = int(fields['weights'][i].sum())
        chosen = set(fields['positions'][i, :n].tolist())
        words = words_of(ids, tokenizer)
        assert chosen == {at for word in words if chosen & set(word) for at in word}
        assert fields['labels'][i, :n].tolist() == ids[sorted(chosen)].tolist()
        want = int(np.rint(0.15 * sum(map(len, words))))
        assert n <= want
        short += want - n
        partly += any(len(word) > 1 for word in words if chosen & set(word))
    assert partly == 200  # every row has a word of several pieces
    assert short / fields['weights'].sum() < 0.01  # rare: a word of one piece usually fits


def test_word_longer_than_the_count_is_skipped(tokenizer):
    """2 of 12 ids are predicted: always the two short words, never the word of 10 pieces."""
    c = make_config('mlm')
    c.data.whole_words = True
    starts = [i for i in ordinary(tokenizer) if tokenizer.word_starts[i]]
    inside = np.setdiff1d(ordinary(tokenizer), starts)
    row = record(starts[0], starts[1], starts[2], *inside[:9])
    for seed in range(20):
        fields = arrays(c, tokenizer, [row], [(seed, 0, 0)])
        assert fields['positions'][0, :2].tolist() == [1, 2]
        assert fields['weights'].sum() == 2


# Masked sequence to sequence.


def test_mass_arrays_equal_handwritten_ones(tokenizer, monkeypatch):
    """Spans have 3 of 6 ids and start at 2 and at 0; the last block is short."""
    c = make_config('mass', 7)
    mask, eos, pad = tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id
    last = int(ordinary(tokenizer)[-1])
    set_draws(
        monkeypatch,
        [0.5, *(0.1, 0.85, 0.95), *(0.9, 0.999, 0.9)],  # mask, another id, itself
        [0.0, *(0.9, 0.79, 0.0), *(0.5, 0.5, 0.5)],  # itself, mask, mask
        [0.9, *(0.5, 0.5, 0.5), *(0.5, 0.5, 0.5)],
    )
    rows = [record(10, 11, 12, 13, 14, 15), record(20, 21, 22, 23, 24, 25), record(30, eos, 32)]
    fields = arrays(c, tokenizer, rows)
    assert {k: v.tolist() for k, v in fields.items()} == {
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
def spans(tokenizer):
    """Returns the blocks [B, S-1] and the arrays of 3,000 rows of 128; over 10^5 ids are predicted."""
    rows = blocks(tokenizer, 3000, 127)
    fields = arrays(make_config('mass', 128), tokenizer, rows, [(4, 1, i) for i in range(3000)])
    assert fields['weights'].sum() > 1e5
    return np.stack([r.first for r in rows]), fields


def test_span_has_span_rate_and_is_contiguous(spans):
    ids, fields = spans
    assert fields['weights'].all()
    assert fields['labels'].shape[1] == np.rint(0.5 * 127) == 64
    assert (np.diff(fields['position_ids']) == 1).all()
    assert np.array_equal(np.take_along_axis(ids, fields['position_ids'], 1), fields['labels'])


def test_only_the_span_changes(spans, tokenizer):
    ids, fields = spans
    inside = np.zeros(ids.shape, bool)
    np.put_along_axis(inside, fields['position_ids'], True, axis=1)
    assert np.array_equal(fields['source'][:, :-1][~inside], ids[~inside])
    assert (fields['source'][:, -1] == tokenizer.eos_id).all()
    assert fields['source_segments'].all()


def test_span_replacements_are_8_to_1_to_1(spans, tokenizer):
    _, fields = spans
    read = np.take_along_axis(fields['source'], fields['position_ids'], 1)
    ordinary_label = ~np.isin(fields['labels'], list(tokenizer.special_ids))
    n, other = ordinary_label.sum(), 0.1 / len(ordinary(tokenizer))
    assert share_is((read == tokenizer.mask_id).mean(), 0.8, read.size)
    assert share_is((read == fields['labels'])[ordinary_label].mean(), 0.1 + other, n)
    changed = (read != tokenizer.mask_id) & (read != fields['labels'])
    assert share_is(changed[ordinary_label].mean(), 0.1 - other, n)
    assert not np.isin(read[changed], list(tokenizer.special_ids)).any()


def test_every_start_of_a_span_is_equally_likely(spans):
    _, fields = spans
    starts = fields['position_ids'][:, 0]
    assert set(starts.tolist()) == set(range(127 - 64 + 1))
    assert all(share_is((starts // 8 == part).mean(), 1 / 8, 3000) for part in range(8))
