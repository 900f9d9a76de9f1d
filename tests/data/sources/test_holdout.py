"""Splits cut from train as whole rows: none of the rows of train is a part of one."""

import logging
import random
import re

import pytest
from helpers.sources import make_config, read_texts, write_files

from lightpaff_jax.config import validate
from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import holdout, specs
from lightpaff_jax.errors import UserError

WORDS = ('The', 'film', 'is', 'a', 'slow,', 'warm', 'and', 'funny', 'tale', 'of', 'sisters.')


def phrases(count: int = 60, seed: int = 0) -> list[str]:
    """Returns sentences and phrases of them, in a random order, some of them twice."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        sentence = [rng.choice(WORDS) for _ in range(rng.randint(4, 14))]
        texts.append(' '.join(sentence))
        for _ in range(4):
            start = rng.randrange(len(sentence))
            texts.append(' '.join(sentence[start : rng.randint(start, len(sentence)) + 1]))
    rng.shuffle(texts)
    return texts


def table(folder, rows, **keys):
    lines = ['text\tother\tlabel', *('\t'.join((*row, '1')) for row in rows)]
    write_files(folder, train_tsv='\n'.join(lines))
    defaults = {'columns': ('text', 'other', 'label'), 'classes': 2, 'held_out': 0.2}
    return make_config('table', folder, 'classes', **(defaults | keys))


def words_of(text: str) -> str:
    return f' {" ".join(re.findall("[a-z]+", text.lower()))} '


def test_train_has_no_part_of_a_whole_held_out_row(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(holdout, '_CHUNK', 500)  # several indices
    texts = phrases()
    c = table(tmp_path, [(text, '') for text in texts], held_out_whole=True)
    caplog.set_level(logging.INFO)
    splits = {split: read_texts(c, split) for split in sources.SPLITS}
    by_hash = c.copy_and_resolve_references()
    by_hash.data.held_out_whole = False
    whole = [t for t in texts if not any(words_of(t) in words_of(u) != words_of(t) for u in texts)]
    for split in ('validation', 'test'):
        assert splits[split] == [text for text in read_texts(by_hash, split) if text in whole] != []
    held_out = splits['validation'] + splits['test']
    remaining = [t for t in texts if not any(words_of(t) in words_of(u) for u in held_out)]
    assert splits['train'] == remaining
    dropped = len(texts) - len(held_out) - len(remaining)
    assert 0 < dropped < len(texts) - len(held_out)
    message = f'{len(held_out)} whole rows of train held out, {dropped} other rows of train dropped'
    assert message in caplog.text


def test_held_out_pairs_are_not_in_train_in_any_order(tmp_path):
    rows = [(f'question {i}', f'answer {i}') for i in range(50)]
    rows += [(b, a.upper()) for a, b in rows]
    c = table(tmp_path, rows, held_out_whole=True)
    found = {
        split: [(example.first.lower(), example.second.lower()) for example in examples]
        for split in sources.SPLITS
        if (examples := list(sources.examples(c, split)))
    }
    held_out = {frozenset(pair) for split in ('validation', 'test') for pair in found[split]}
    assert held_out
    assert held_out.isdisjoint(map(frozenset, found['train']))
    # A pair with a part of a longer text in it is whole.
    assert {frozenset(pair) for pair in rows[:50]} == held_out | set(map(frozenset, found['train']))


def test_whole_rows_change_only_the_identity_that_asks_for_them(tmp_path):
    c = table(tmp_path, [(text, '') for text in phrases(20)])
    before = sources.identity(c)
    assert 'held_out_whole' not in str(before)
    c.data.held_out_whole = True
    assert sources.identity(c) != before


def test_listed_text_files_hold_out_all_rows_alike(tmp_path):
    lines = phrases(20)
    write_files(tmp_path / 'more', train_txt='\n'.join(lines))
    entry = f'text:{tmp_path}/more?documents=line#train'
    c = table(tmp_path / 'own', [('an unrelated row', '')] * 9, held_out_whole=True)
    part = specs.part(c, 'unlabelled', entry, ('text',)).c
    assert part.data.held_out_whole  # inherited, but no key of its source
    expected = read_texts(make_config('text', tmp_path / 'more', documents='line', held_out=0.2))
    part.objective = 'clm'
    assert read_texts(part) == expected
    assert 'held_out_whole' not in sources.identity(part)


def test_malformed_rows_are_counted_once(tmp_path):
    rows = [(text, '') for text in phrases(20)]
    c = table(tmp_path, rows, held_out_whole=True, on_error='skip')
    with (tmp_path / 'train.tsv').open('a') as file:
        file.write('\nonly one field')
    messages = []
    list(sources.examples(c, 'train', messages.append))
    assert len(messages) == 1


def test_whole_rows_without_a_share_are_refused(tmp_path):
    c = table(tmp_path, [('a text', '')], held_out=0.0, held_out_whole=True)
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': 2})
    with pytest.raises(UserError) as error:
        validate.validate(c)
    message = 'config.data.held_out_whole = True: is only read if config.data.held_out > 0'
    assert str(error.value) == message


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a b', True),
        ('b c', True),
        ('a b c', True),
        ('b', True),
        ('a', True),
        ('a c', False),
        ('a b c d', False),
        ('b ac', False),
        ('', False),
        ('long ' * 20 + 'end', True),
        ('long ' * 21 + 'end', False),
    ],
)
def test_part_of_a_text_ends_at_the_borders_of_words(text, expected):
    index = holdout.PartIndex(['a b c', 'ab ac', 'x y', 'long ' * 20 + 'end'])
    assert index.contains(text) == expected
    assert index.parts(['a b c', 'a b', 'x y', 'y']) == {'a b', 'y'}
