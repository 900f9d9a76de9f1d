"""Augmented rows: rates, whole words, lengths, pairs, and what is refused."""

import collections
import itertools
import types

import jax
import numpy as np
import pytest
from helpers import corpus
from helpers.objectives import ordinary, record, share_is

from lightpaff_jax import check, config
from lightpaff_jax.config import validate
from lightpaff_jax.data import batches, prepare
from lightpaff_jax.data.objectives import augmentation
from lightpaff_jax.data.prepared import compatibility, shards
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.errors import UserError

ROWS, WORDS, WORD = 600, 12, 3  # rows of 12 words of 3 ids


def configured(**data):
    c = config.default()
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': 2})
    c.objective, c.data.view = 'classify', 'pairs'
    c.data.update({'augment': 1.0, **data})
    return c


def write(folder, rows):
    writer = shards.Writer(folder, 'train', 'examples', np.dtype('<u2'), np.dtype('<u2'), {})
    writer.write(rows)
    writer.end_shard()
    stats = {'records': len(rows), **writer.state()}
    return Dataset(str(folder), {'splits': {'train': stats}, 'kind': 'examples', 'dtype': '<u2'})


def word(vocabulary, n):
    """Returns a word of a letter and two further letters, the n-th of 26**2."""
    letter, rest = divmod(n % 26**2, 26)
    first, more = vocabulary.encode(['ab'])[0]
    return [first + letter, more - 1 + rest, more - 1 + (rest + 1) % 26]


def split(ids):
    """Splits a text whose words have the same length, up to the masks in it."""
    return [ids[i : i + WORD] for i in range(0, len(ids), WORD)]


@pytest.fixture(scope='module')
def texts(tmp_path_factory, vocabulary):
    """Returns rows of WORDS words, each row with words of its own as far as possible."""
    rows = []
    for i in range(ROWS):
        words = [word(vocabulary, i * WORDS + k) for k in range(WORDS)]
        rows.append(record(*itertools.chain(*words), label=i % 2))
    return write(tmp_path_factory.mktemp('texts'), rows)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory, vocabulary):
    """Returns pairs of random texts of 1 to 20 words, some with a special id in them."""
    rng, rows = np.random.default_rng(0), []
    for i in range(ROWS):
        first, second = (
            [x for _ in range(rng.integers(1, 21)) for x in word(vocabulary, rng.integers(676))]
            for _ in range(2)
        )
        if i % 3 == 0:
            first.insert(int(rng.integers(len(first) + 1)), vocabulary.sep_id)
        rows.append(record(*first, second=second, label=i % 2))
    return write(tmp_path_factory.mktemp('pairs'), rows)


def augment(c, vocabulary, dataset, limits=(512,), seed=0):
    records = dataset.records('train')
    rows = records.read(list(range(len(records))))
    keys = [(seed, 0, i) for i in range(len(rows))]
    return rows, augmentation.augment(c, vocabulary, rows, keys, limits, records)


def test_rates_of_rows_and_words_are_those_configured(vocabulary, texts):
    c = configured(augment=0.5, augment_mask=0.1, augment_replace=0.2)
    counts = collections.Counter()
    for before, after in zip(*augment(c, vocabulary, texts), strict=True):
        if after.label >= 0:
            assert np.array_equal(after.first, before.first)
            continue
        counts['rows'] += 1
        ids = after.first.tolist()
        masks = ids.count(vocabulary.mask_id)
        assert len(ids) == WORD * (WORDS - masks) + masks  # whole words
        old, position = split(before.first.tolist()), 0
        for k in range(WORDS):
            counts['words'] += 1
            if ids[position] == vocabulary.mask_id:
                counts['masked'] += 1
                position += 1
                continue
            counts['replaced'] += ids[position : position + WORD] != old[k]
            position += WORD
    assert share_is(counts['rows'] / ROWS, 0.5, ROWS)
    assert share_is(counts['masked'] / counts['words'], 0.1, counts['words'])
    assert share_is(counts['replaced'] / counts['words'], 0.2, counts['words'])


def test_replaced_words_are_words_of_train(vocabulary, texts):
    c = configured(augment_replace=1.0)
    rows, augmented = augment(c, vocabulary, texts)
    words = {tuple(word) for row in rows for word in split(row.first.tolist())}
    new = [tuple(word) for row in augmented for word in split(row.first.tolist())]
    assert {*new} <= words
    assert len({*new}) > 0.9 * len(words)


def test_spans_have_one_to_five_consecutive_words(vocabulary, texts):
    c = configured(augment_span=0.25)
    sizes = collections.Counter()
    for before, after in zip(*augment(c, vocabulary, texts), strict=True):
        old, new = split(before.first.tolist()), split(after.first.tolist())
        assert any(old[i : i + len(new)] == new for i in range(WORDS))
        sizes[len(new)] += 1
    assert set(sizes) == {1, 2, 3, 4, 5, WORDS}
    assert share_is(sizes[WORDS] / ROWS, 0.75, ROWS)
    assert all(share_is(sizes[n] / ROWS, 0.05, ROWS) for n in range(1, 6))


def test_rows_stay_in_their_bucket_and_are_never_empty(vocabulary, pairs):
    limits = (16, 32, 64, 128)
    changes = dict.fromkeys(('augment_mask', 'augment_replace', 'augment_span'), 0.4)
    c = configured(augment_pairs=0.5, **changes)
    for before, after in zip(*augment(c, vocabulary, pairs, limits), strict=True):
        limit = min(n for n in limits if n >= len(before.first) + len(before.second) + 3)
        assert len(after.first) + len(after.second) + 3 <= limit
        assert len(after.first) > 0
        assert len(after.second) > 0


def test_special_ids_of_a_text_stay(vocabulary, pairs):
    c = configured(augment_mask=0.5, augment_replace=0.5)
    for before, after in zip(*augment(c, vocabulary, pairs, (128,)), strict=True):
        specials = [row.first.tolist().count(vocabulary.sep_id) for row in (before, after)]
        assert specials[0] == specials[1]
        assert {*after.first.tolist()} <= {
            *ordinary(vocabulary).tolist(),
            vocabulary.sep_id,
            vocabulary.mask_id,
        }


def test_first_second_or_both_texts_of_a_pair_change(vocabulary, pairs):
    c, counts = configured(augment_mask=1.0), collections.Counter()
    for _, after in zip(*augment(c, vocabulary, pairs), strict=True):
        masked = [{*ids.tolist()} <= {vocabulary.mask_id, vocabulary.sep_id} for ids in after[:2]]
        counts[tuple(masked)] += 1
    assert set(counts) == {(True, False), (False, True), (True, True)}
    assert all(share_is(count / ROWS, 1 / 3, ROWS) for count in counts.values())


def test_recombined_pair_has_the_second_text_of_another_row(vocabulary, pairs):
    c = configured(augment_pairs=0.5)
    rows, augmented = augment(c, vocabulary, pairs)
    seconds, changed = {row.second.tobytes() for row in rows}, 0
    for before, after in zip(rows, augmented, strict=True):
        assert np.array_equal(before.first, after.first)
        assert after.second.tobytes() in seconds
        assert after.label == -1
        changed += not np.array_equal(before.second, after.second)
    assert share_is(changed / ROWS, 0.5, ROWS)
    # In a short bucket the texts are cut, at words.
    short = augment(c, vocabulary, pairs, (16, 32, 64, 128))[1]
    prefixes = {row.second[:n].tobytes() for row in rows for n in range(0, 61, WORD)}
    assert all(row.second.tobytes() in prefixes for row in short)


def test_kept_labels_are_those_of_the_source_rows(vocabulary, texts):
    c = configured(augment_mask=0.3, augment_keep_labels=True)
    rows, augmented = augment(c, vocabulary, texts)
    assert [row.label for row in augmented] == [row.label for row in rows]
    assert any(len(a.first) < len(b.first) for a, b in zip(augmented, rows, strict=True))


def test_augmented_rows_differ_between_seeds_and_epochs(vocabulary, texts):
    c, records = configured(augment_mask=0.3), texts.records('train')
    rows = records.read([0, 1, 2, 3])

    def texts_of(seed, epoch, order=(0, 1, 2, 3)):
        keys = [(seed, epoch, i) for i in order]
        part = [rows[i] for i in order]
        augmented = augmentation.augment(c, vocabulary, part, keys, (64,), records)
        return {i: row.first.tobytes() for i, row in zip(order, augmented, strict=True)}

    first = texts_of(0, 0)
    assert texts_of(0, 0, (2, 0)).items() <= first.items()
    assert texts_of(0, 1) != first != texts_of(1, 0)


@pytest.mark.parametrize('buckets', [(), (64, 128)])
def test_augmented_batches_depend_only_on_their_index(data_cache, vocabulary, buckets):
    c = corpus.examples_config(data_cache, 'pairs')
    c.data.length, c.data.buckets = 128, buckets
    c.data.update({'augment': 0.5, 'augment_mask': 0.2, 'augment_span': 0.3, 'augment_pairs': 0.3})
    prepared = prepare.prepare(c, vocabulary)
    for index in (0, 7, 400):
        batch = corpus.batch_at(c, prepared, vocabulary, index)
        assert {*batch.labels.ravel().tolist()} > {-1}
        for processes in (2, 4):
            parts = [
                corpus.batch_at(c, prepared, vocabulary, index, p, processes)
                for p in range(processes)
            ]
            together = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
            leaves = zip(jax.tree.leaves(together), jax.tree.leaves(batch), strict=True)
            assert all(np.array_equal(a, b) for a, b in leaves)
    iterator = batches.training(c, prepared, vocabulary, start=400)
    assert np.array_equal(next(iterator).tokens, batch.tokens)
    iterator.close()


def test_evaluation_is_never_augmented(data_cache, vocabulary):
    c = corpus.examples_config(data_cache, 'pairs')
    prepared = prepare.prepare(c, vocabulary)
    plain = next(batches.evaluation(c, prepared, vocabulary, 'validation'))
    c.data.update({'augment': 1.0, 'augment_mask': 1.0})
    augmented = next(batches.evaluation(c, prepared, vocabulary, 'validation'))
    assert np.array_equal(plain.tokens, augmented.tokens)
    assert np.array_equal(plain.labels, augmented.labels)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ({'augment': 1.5}, 'augment = 1.5: must be in [0, 1]'),
        ({'augment_mask': -0.1}, 'augment_mask = -0.1: must be in [0, 1]'),
        ({}, 'augment = 1.0: requires one of data.augment_mask, '),
        ({'augment': 0.0, 'augment_span': 0.1}, 'augment_span = 0.1: is only read if data.augment'),
        (
            {'augment': 0.0, 'augment_keep_labels': True},
            'augment_keep_labels = True: is only read if data.augment > 0',
        ),
        (
            {'augment_mask': 0.6, 'augment_replace': 0.5},
            'augment_replace = 0.5: must be at most 1 together with data.augment_mask = 0.6',
        ),
        (
            {'augment_pairs': 0.5, 'augment_keep_labels': True},
            'augment_keep_labels = True: must be False if data.augment_pairs > 0',
        ),
    ],
)
def test_invalid_augmentation_is_refused(data, message):
    with pytest.raises(UserError) as error:
        validate.validate(configured(**data))
    assert str(error.value).startswith(f'config.data.{message}')


def test_augmentation_needs_a_teacher_or_labels(data_cache):
    c = corpus.examples_config(data_cache, 'pairs')
    c.data.update({'augment': 1.0, 'augment_mask': 0.1})
    with pytest.raises(UserError, match=r'data\.augment = 1\.0: requires a teacher, which labels'):
        check.check(c, devices=[])
    c.data.augment_keep_labels = True
    check.check(c, devices=[])


def test_augmentation_of_texts_without_pairs_or_masks_is_refused(vocabulary):
    c = configured(augment_pairs=0.5)
    stats = {'pairs': 0, 'labels': [0, 1], 'truncated': 0}
    dataset = Dataset('x', {'splits': {'train': stats}, 'kind': 'examples'})
    with pytest.raises(UserError, match=r'augment_pairs = 0\.5: requires pairs'):
        compatibility.check_examples(c, dataset)
    c = configured(augment_mask=0.5)
    tokenizer = types.SimpleNamespace(cls_id=1, sep_id=2, mask_id=None, path='a tokenizer')
    with pytest.raises(UserError, match=r'augment_mask = 0\.5: needs a tokenizer with a \[MASK\]'):
        compatibility.check_tokenizer(c, tokenizer)
