"""Reduced vocabularies: their pieces, their ids, texts without new unknown words, and refusals."""

import json

import numpy as np
import pytest
from helpers import reductions
from hypothesis import given, settings, strategies as st

from lightpaff_jax.config import validate
from lightpaff_jax.data import sources, tokenizers
from lightpaff_jax.data.tokenizers import reduction, selection
from lightpaff_jax.errors import UserError

WORD = st.text([*reductions.LETTERS, 'É', 'Z', '-', 'ß', '中'], max_size=9)
TEXT = st.lists(WORD | st.sampled_from(reductions.WORDS), max_size=8).map(' '.join)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('reduction')
    reductions.write_vocabulary(folder / 'teacher' / 'vocabulary')
    return folder


@pytest.fixture(scope='module')
def both(folder):
    """Returns the whole tokenizer and the reduced one."""
    c = reductions.make_config(folder)
    return tokenizers.read(c.tokenizer.path), selection.load(c)


def pieces(tokenizer):
    return sorted(tokenizer.model.pieces, key=tokenizer.model.pieces.__getitem__)


def error(c):
    """Returns the message, of one line, of the error that loading the tokenizer raises."""
    with pytest.raises(UserError) as caught:
        selection.load(c)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_reduction_keeps_characters_and_frequent_pieces(both):
    whole, reduced = both
    required = {*reductions.SPECIAL, *reductions.CHARACTERS} - {'[unused0]'}
    frequent = {
        'the',
        'dog',
        'sun',
        '##ny',
        'run',
        '##ning',
    }  # its id is lower than that of 'quick'
    assert {*pieces(reduced)} == required | frequent
    assert pieces(reduced) == [piece for piece in pieces(whole) if piece in reduced.model.pieces]
    assert reduced.vocab_size == reductions.SIZE


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_reduced_text_has_no_new_unknown_word(both, text):
    whole, reduced = both
    (ids,), (reduced_ids,) = whole.encode([text]), reduced.encode([text])
    assert reduced_ids.count(reduced.model.ids['unk']) == ids.count(whole.model.ids['unk'])
    assert whole.decode(reduction.whole_ids(whole, reduced)[reduced_ids]) == reduced.decode(
        reduced_ids
    )
    assert reduced.decode(reduced_ids) == whole.decode(ids)


def test_whole_ids_name_the_same_pieces(both):
    whole, reduced = both
    ids = reduction.whole_ids(whole, reduced)
    assert [pieces(whole)[i] for i in ids] == pieces(reduced)
    np.testing.assert_array_equal(reduction.whole_ids(whole, whole), np.arange(whole.vocab_size))
    names = ('eos_id', 'pad_id', 'cls_id', 'sep_id', 'mask_id')
    assert [ids[getattr(reduced, name)] for name in names] == [
        getattr(whole, name) for name in names
    ]
    np.testing.assert_array_equal(whole.word_starts[ids], reduced.word_starts)


def test_reduction_is_deterministic_and_cached(folder, both, monkeypatch, tmp_path):
    c = reductions.make_config(folder)
    monkeypatch.setattr(reduction, 'reduce', None)  # the cache has it
    assert selection.load(c).fingerprint == both[1].fingerprint
    monkeypatch.undo()
    # The data of the run does not matter.
    c.data.update({'cache': str(tmp_path / 'cache'), 'held_out': 0.1, 'documents': 'line'})
    again = selection.load(c)
    files = [
        (next((place / 'tokenizers').iterdir()) / 'tokenizer.json').read_bytes()
        for place in (folder / 'cache', tmp_path / 'cache')
    ]
    assert files[0] == files[1]
    assert again.fingerprint == both[1].fingerprint


def test_datasets_count_equally(folder):
    c = reductions.make_config(folder)
    (folder / 'text' / 'short.txt').write_text('The fox, the fox, the cat.')
    c.tokenizer.reduce = (*c.tokenizer.reduce, f'text:{folder / "text"}?files=train=short.txt')
    chosen = selection.load(c).model.pieces
    # They are the two least frequent ones of both datasets together.
    assert {'fox', 'cat'} <= chosen.keys()
    assert not {'##ning', 'quick'} & chosen.keys()


def test_other_texts_choose_another_vocabulary(folder, both):
    c = reductions.make_config(folder)
    c.tokenizer.reduce = (*c.tokenizer.reduce, f'{c.tokenizer.reduce[0]}#train')
    assert [part.splits for part in sources._vocabulary_parts(c)] == [('train',), ('train',)]
    (folder / 'text' / 'extra.txt').write_text('\n\n'.join(['The fox, the cat.'] * 999))
    c.tokenizer.reduce = (f'text:{folder / "text"}?files=train=extra.txt',)
    other = selection.load(c)
    assert {'fox', 'cat', 'the'} <= other.model.pieces.keys()
    assert other.fingerprint != both[1].fingerprint


def test_saved_reduction_is_read_as_the_same(both, tmp_path):
    both[1].save(tmp_path / 'saved', 'bert', 128)
    saved = tokenizers.read(str(tmp_path / 'saved'))
    assert saved.fingerprint == both[1].fingerprint
    assert saved.around == both[1].around == ((saved.cls_id,), (saved.sep_id,))


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        (9, f'must be at least {reductions.REQUIRED}, the special tokens and characters of the'),
        (999, 'and at most its 96 ids'),
    ],
)
def test_vocab_size_outside_the_tokenizer_is_an_error(folder, size, message):
    c = reductions.make_config(folder)
    c.student.vocab_size = size
    line = error(c)
    assert line.startswith(f'config.student.vocab_size = {size}: must be at least ')
    assert message in line


def test_reduction_of_another_model_is_an_error(folder, tmp_path):
    c = reductions.make_config(folder)
    tokenizers.train(['a b c d'] * 9, 267, tmp_path / 'bpe.model')
    c.tokenizer.path = str(tmp_path / 'bpe.model')
    assert 'bpe.model must be a WordPiece tokenizer' in error(c)


def test_vocabulary_without_a_character_is_an_error(folder, tmp_path):
    c = reductions.make_config(folder)
    text = (folder / 'teacher/vocabulary/vocab.txt').read_text(encoding='utf-8')
    (tmp_path / 'vocab.txt').write_text(text.replace('##o\n', ''), encoding='utf-8')
    c.tokenizer.path = str(tmp_path)
    assert "has the piece 'dog' but not '##o'" in error(c)


@pytest.mark.parametrize('split', ['test', 'validation', 'train,test'])
def test_vocabulary_is_not_chosen_from_evaluated_text(folder, split):
    c = reductions.make_config(folder)
    c.tokenizer.reduce = (f'{c.tokenizer.reduce[0]}#{split}',)
    assert 'must name the split train only' in error(c)


def test_unknown_part_or_missing_source_is_an_error(folder):
    c = reductions.make_config(folder)
    c.tokenizer.reduce = ('tekst:x',)
    with pytest.raises(
        UserError, match=r"config.tokenizer.reduce = 'tekst:x': must begin with one"
    ):
        sources.check(c)
    c.tokenizer.path = ''
    with pytest.raises(UserError, match=r'reduce = tekst:x: requires the tokenizer to reduce'):
        validate.check_paths(c)


@pytest.mark.parametrize('change', ['piece', 'lowercase', 'special'])
def test_tokenizer_with_other_rules_is_no_reduction(both, tmp_path, change):
    whole, reduced = both
    reduced.save(tmp_path / 'other')
    file = tmp_path / 'other' / 'tokenizer.json'
    content = json.loads(file.read_text())
    if change == 'piece':
        content['model']['vocab']['foreign'] = reduced.vocab_size
    elif change == 'lowercase':
        content['normalizer']['lowercase'] = False
    else:
        content['added_tokens'][-1]['lstrip'] = True
    file.write_text(json.dumps(content))
    message = {'piece': "its piece 'foreign'", 'lowercase': 'settings', 'special': 'settings'}
    with pytest.raises(UserError, match=message[change]):
        reduction.whole_ids(whole, tokenizers.read(str(tmp_path / 'other')))
