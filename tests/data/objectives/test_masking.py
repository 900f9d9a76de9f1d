"""What is hidden of a text, and what is read instead: masked words, masked fragments.

Tolerances of rates: a share p of n independent draws has standard deviation sqrt(p (1 - p) / n);
four of them are exceeded once in 16,000 times. The draws are fixed, so a test that passes stays so.
"""

import numpy as np
import pytest
from helpers import corpus
from helpers.objectives import arrays, blocks, configured, given, ordinary, record, share_is


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return corpus.wordpiece_tokenizer(tmp_path_factory.mktemp('wordpiece'))


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
def test_a_short_row_predicts_at_least_one_of_what_it_has(tokenizer, content, count):
    """0.15 of 10 is 1.5, rounded to the even 2."""
    c = configured('mlm')
    made = arrays(c, tokenizer, [record(*range(10, 10 + content))])
    assert made['weights'].sum() == count
    assert made['segments'].sum() == content + 2
    assert made['tokens'][0, content + 2 :].tolist() == [tokenizer.pad_id] * (30 - content)


def test_a_block_of_separators_alone_predicts_nothing(tokenizer):
    c = configured('mlm')
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


def test_a_word_longer_than_the_count_is_passed_over(tokenizer):
    """Of 12 ids 2 may be predicted; the word of 10 pieces never is, the other two always."""
    c = configured('mlm')
    c.data.whole_words = True
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
