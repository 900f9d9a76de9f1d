"""Prepared datasets: records and counts of examples, checks, packing."""

import itertools
import logging

import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import config
from lightpaff_jax.data import objectives, prepare, sources
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.prepared import tokenize_worker
from lightpaff_jax.data.sources import Example, pydocs
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError


@pytest.fixture(scope='module')
def c(data_cache):
    return corpus.tiny_config(data_cache)


@pytest.fixture(scope='module')
def tokenizer(c):
    return selection.load(c)


@pytest.fixture(scope='module')
def prepared(c, tokenizer):
    return prepare.prepare(c, tokenizer)


@pytest.fixture
def classify(tmp_path):
    """Returns a configuration of short pairs, whose examples `give` decides."""
    c = corpus.examples_config(str(tmp_path), 'pairs')
    c.data.length = 8
    return c


def give(monkeypatch, examples, identity=None):
    """Makes `examples` every split of pydocs."""
    source = sources.SOURCES['pydocs']._replace(
        examples=lambda c, split, skipped: iter(examples),
        identity=lambda c, splits: {'n': len(examples), 'as': identity},
    )
    monkeypatch.setitem(sources.SOURCES, 'pydocs', source)


def read(prepared, split='train'):
    records = prepared.records(split)
    return records.read(range(len(records)))


def stream(c, tokenizer, split):
    ids = [tokenizer.eos_id]
    for example in sources.examples(c, split):
        ids += [*tokenizer.encode([example.first])[0], tokenizer.eos_id]
    return ids


@pytest.mark.parametrize('split', pydocs.SPLITS)
def test_every_id_after_the_first_is_predicted_once(c, tokenizer, prepared, split):
    predicted = [i for block in read(prepared, split) for i in block.first[1:].tolist()]
    assert predicted == stream(c, tokenizer, split)[1:]
    assert prepared.split(split)['tokens'] == len(predicted)


def test_block_starts_with_the_last_id_of_the_previous_one(prepared):
    blocks = [block.first for block in read(prepared)]
    assert all(len(block) == 33 for block in blocks[:-1])
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(blocks))


@pytest.mark.parametrize(('name', 'size'), [('mlm', 30), ('mass', 31)])
def test_blocks_hold_every_id_of_the_documents_once(c, vocabulary, name, size):
    """A separator follows each document; a block is shorter by its special tokens."""
    other = config.copy(c)
    other.objective = name
    prepared = prepare.prepare(other, vocabulary)
    blocks = [record.first for record in read(prepared)]
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= size
    ids = [i for block in blocks for i in block.tolist()]
    assert ids == stream(c, vocabulary, 'train')[1:]  # [SEP] is its end too
    assert prepared.split('train')['tokens'] == len(ids)


@pytest.mark.parametrize('view', ['topic', 'pairs', 'summary'])
def test_every_example_is_a_record_of_its_ids(data_cache, vocabulary, view):
    c = corpus.examples_config(data_cache, view)
    prepared = prepare.prepare(c, vocabulary)
    for split in pydocs.SPLITS:
        examples = list(sources.examples(c, split))
        records, stats = read(prepared, split), prepared.split(split)
        assert len(records) == len(examples) == stats['examples']
        ids = [vocabulary.encode([e[side] for e in examples[::7]]) for side in (0, 1)]
        for record, example, *texts in zip(records[::7], examples[::7], *ids, strict=True):
            expected = objectives.OBJECTIVES[c.objective].truncate(c, *texts)
            assert record.first.tolist() == expected.first
            assert record.second.tolist() == expected.second
            assert record.label == example.label


def test_counts_of_examples_equal_handwritten_ones(classify, vocabulary, monkeypatch):
    give(monkeypatch, [Example('a b c', 'd', 1), Example('a', '', 0), Example('a b\nc', 'a b', 1)])
    stats = prepare.prepare(classify, vocabulary).split('test')
    stats = {key: value for key, value in stats.items() if key not in ('hash', 'shards')}
    assert stats == {
        'examples': 3,
        'records': 3,
        'words': 4 + 2 + 2 + 5 + 3,
        'tokens': 4 + 1 + 5,
        'truncated': 0,
        'too_long': None,
        'labels': [0, 1],
        'pairs': 2,
        'skipped': 0,
    }


def test_counts_of_targets_equal_handwritten_ones(tmp_path, vocabulary, monkeypatch):
    c = corpus.examples_config(str(tmp_path), 'summary')
    c.data.length, c.data.target_length = 8, 3
    give(monkeypatch, [Example('a b c', 'd e'), Example('a b c', 'd e g h')])
    prepared = prepare.prepare(c, vocabulary)
    stats = prepared.split('train')
    assert (stats['words'], stats['tokens'], stats['examples']) == (3 + 3, 3 + 3, 2)
    assert (stats['truncated'], stats['too_long']) == (1, [1, 5, 3])
    assert [len(record.second) for record in read(prepared)] == [2, 2]


def give_long_and_short(monkeypatch):
    """Gives three examples; two are too long for 8 tokens: 3 + 5 + 4 and 2 + 7."""
    give(
        monkeypatch,
        [Example('a', 'b', 0), Example('a b c d e', 'a b c d', 1), Example('a b c d e g h', '', 1)],
    )


def test_every_call_logs_the_number_of_truncated_texts(classify, vocabulary, monkeypatch, caplog):
    give_long_and_short(monkeypatch)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, 'lightpaff_jax'):
            prepared = prepare.prepare(classify, vocabulary)
        assert caplog.messages == [
            f'pydocs {split}: 2 of 3 examples cut to 8 tokens' for split in pydocs.SPLITS
        ]
    assert [(len(r.first), len(r.second)) for r in read(prepared)] == [(1, 1), (3, 2), (6, 0)]


def test_nothing_is_logged_if_no_text_is_truncated(classify, vocabulary, monkeypatch, caplog):
    give(monkeypatch, [Example('a b', 'c d e', 1)])
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        prepare.prepare(classify, vocabulary)
    assert caplog.messages == []


@pytest.mark.parametrize('cached', [False, True])
def test_long_text_is_an_error_if_configured(classify, vocabulary, monkeypatch, cached):
    give_long_and_short(monkeypatch)
    if cached:
        prepare.prepare(classify, vocabulary)
    classify.data.long_text = 'error'
    with pytest.raises(UserError) as raised:
        prepare.prepare(classify, vocabulary)
    assert str(raised.value) == (
        "config.data.long_text = 'error': example 1 of split 'train' has 12 tokens, "
        'must have at most 8'
    )


@pytest.mark.parametrize('label', [-1, 2, 7])
@pytest.mark.parametrize('cached', [False, True])
def test_error_names_the_example_of_an_invalid_label(
    classify, vocabulary, monkeypatch, label, cached
):
    give(monkeypatch, [Example('a', 'b', 1), Example('a', 'c', 0), Example('b', 'c', label)])
    if cached and label > 0:
        classify.student.classes = 8
        prepare.prepare(classify, vocabulary)
        classify.student.classes = 2
    with pytest.raises(UserError) as raised:
        prepare.prepare(classify, vocabulary)
    assert str(raised.value) == (
        f"config.student.classes = 2: example 2 of split 'train' has label {label}, "
        'must be at least 0 and below 2'
    )


@pytest.mark.parametrize(
    ('name', 'token'), [('mlm', r'\[MASK\]'), ('mass', r'\[MASK\]'), ('classify', r'\[CLS\]')]
)
def test_tokenizer_without_required_tokens_is_an_error(c, tokenizer, name, token):
    other = config.copy(c)
    other.objective = name
    with pytest.raises(UserError, match=f"objective = '{name}': .* {token} token, .*none"):
        prepare.prepare(other, tokenizer)


def test_line_ends_count_as_words(c, prepared):
    texts = [example.first for example in sources.examples(c, 'test')]
    assert tokenize_worker.count_words('one two\n\n three') == 3 + 3
    assert prepared.split('test')['words'] == sum(map(tokenize_worker.count_words, texts))
    assert prepared.split('test')['documents'] == len(texts)


def test_unknown_split_is_an_error_with_a_suggestion(prepared):
    with pytest.raises(UserError, match='did you mean validation'):
        prepared.split('valid')


def test_source_without_documents_is_an_empty_corpus(c, tokenizer, monkeypatch, tmp_path):
    c = config.copy(c)
    c.data.cache = str(tmp_path)
    give(monkeypatch, [])
    with pytest.raises(UserError, match='empty corpus'):
        prepare.prepare(c, tokenizer)
    assert list((tmp_path / 'prepared').iterdir()) == []


# Packing


def test_counts_of_packed_documents_equal_handwritten_ones(tmp_path, vocabulary, monkeypatch):
    c = corpus.tiny_config(str(tmp_path))
    c.objective, c.data.length, c.data.packing = 'mlm', 8, 'best_fit'
    # 3, 2, 8 and 1 ids; 6 fit in a row with [CLS] and [SEP]
    give(monkeypatch, [Example(text) for text in ('a b c', 'a\nb', 'a b c d e g h i', 'dog', '')])
    prepared = prepare.prepare(c, vocabulary)
    assert prepared.record_type == 'packed'
    assert [r.second.tolist() for r in read(prepared)] == [[3, 1], [2, 2], [6]]
    stats = {k: v for k, v in prepared.split('train').items() if k not in ('hash', 'shards')}
    assert stats == {
        'documents': 5,
        'pieces': 5,
        'records': 3,
        'words': 4 + 4 + 9 + 2 + 1,
        'tokens': 14,
        'fill': round((14 + 2 * 5) / (3 * 8), 4),
        'skipped': 0,
    }


@pytest.mark.parametrize('name', ['clm', 'mlm', 'mass'])
def test_packed_documents_hold_every_id_once(tmp_path, vocabulary, name):
    c = corpus.text_config(tmp_path / 'text')
    c.objective, c.data.packing = name, 'best_fit'
    prepared = prepare.prepare(c, vocabulary)
    for split in sources.SPLITS:
        records = read(prepared, split)
        size, each, separator, _ = objectives.OBJECTIVES[name].packing(c, vocabulary)
        assert all(len(r.first) + each * len(r.second) <= size for r in records)
        assert all(len(r.first) == r.second.sum() for r in records)
        texts = [vocabulary.encode([e.first])[0] for e in sources.examples(c, split)]
        ids = np.concatenate([r.first for r in records])
        predicted = len(ids)
        if name == 'clm':  # all but the first of a piece, and one end of each document
            pieces = [part for r in records for part in np.split(r.first, np.cumsum(r.second)[:-1])]
            ids = np.concatenate([part[1:] for part in pieces])
            predicted = len(ids)
            assert (ids == separator).sum() == sum(map(bool, texts))
            ids = ids[ids != separator]
        assert sorted(ids.tolist()) == sorted(i for text in texts for i in text)
        assert prepared.split(split)['tokens'] == predicted
        assert prepared.split(split)['fill'] > 0.9


def test_packing_is_part_of_the_identity(tmp_path, vocabulary):
    c = corpus.text_config(tmp_path / 'text')
    blocks = prepare.prepare(c, vocabulary)
    c.data.packing = 'best_fit'
    packed = prepare.prepare(c, vocabulary)
    assert blocks.path != packed.path
    assert blocks.hash != packed.hash


# Counts of the source


def test_words_of_the_source_take_precedence(tmp_path, vocabulary, monkeypatch):
    c = corpus.tiny_config(str(tmp_path))
    give(monkeypatch, [Example('a b', words=7), Example('a\nb'), Example('a', words=0)])
    assert prepare.prepare(c, vocabulary).split('train')['words'] == 7 + 4 + 0


def test_skipped_rows_are_counted_and_ten_are_logged(tmp_path, vocabulary, monkeypatch, caplog):
    c = corpus.text_config(tmp_path / 'text')

    def examples(c, split, on_skip):
        for row in range(14 if split == 'train' else 0):
            on_skip(f'row {row}')
        return iter([Example('a b c')])

    monkeypatch.setitem(
        sources.SOURCES, 'text', sources.SOURCES['text']._replace(examples=examples)
    )
    with caplog.at_level(logging.INFO, 'lightpaff_jax'):
        prepared = prepare.prepare(c, vocabulary)
    assert [prepared.split(split)['skipped'] for split in sources.SPLITS] == [14, 0, 0]
    named = [f'skipped: row {row}' for row in range(10)]
    assert caplog.messages == [*named, 'train: 14 malformed rows skipped']


def test_pairs_need_two_token_types(classify, vocabulary, monkeypatch):
    give(monkeypatch, [Example('a', '', 0), Example('b', 'c', 1)])
    classify.student.type_vocab_size = 1
    with pytest.raises(UserError, match=r'type_vocab_size = 1: must be at least 2, 1 examples of'):
        prepare.prepare(classify, vocabulary)
    give(monkeypatch, [Example('a', '', 0), Example('b', '', 1)], 'single')
    prepare.prepare(classify, vocabulary)


def test_mixture_has_the_datasets_of_its_parts(tmp_path, vocabulary):
    a, b = (corpus.text_config(tmp_path / name, seed=i) for i, name in enumerate('ab'))
    c = config.copy(a)
    second = prepare.prepare(b, vocabulary)
    c.data.source, c.data.path = 'mixture', ''
    c.data.mixture = (f'text:{a.data.path}=3', f'prepared:{second.path}=1')
    mixture = prepare.prepare(c, vocabulary)
    assert mixture == Mixture((prepare.prepare(a, vocabulary), second), (3.0, 1.0))
    c.data.length = 16
    with pytest.raises(UserError, match=r'data\.length = 16: must equal the 32'):
        prepare.prepare(c, vocabulary)
