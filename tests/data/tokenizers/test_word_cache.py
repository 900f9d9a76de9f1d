"""Tests of the word cache: encoding each word once does not change ids."""

import itertools
import os
import pathlib
import pickle
import random

import pytest
import tokenizers as reference
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lightpaff_jax.data.tokenizers import huggingface

DATA = os.environ.get('LIGHTPAFF_DATA')
PIECES = [
    ' ',
    ' ',
    ' ',
    ' ',
    '  ',
    '\t',
    '\n',
    '\r\n',
    '\u00a0',
    '\u2028',
    '\u3000',
    '\u1680',
    '\x1c',
    '\x1f',
    '\x85',
    '\u200b',
    '\u180e',
    '\ufeff',
    '\x00',
    '\x07',
    '\ufffd',
    'a',
    'ab',
    'The',
    'dog',
    "'s",
    "'ll",
    "don't",
    '1',
    '42',
    '\u00bd',
    '.',
    '...',
    ',',
    '(',
    '\u2014',
    '\u00e9',
    'e\u0301',
    '\u0301',
    'İ',
    'Σ',
    'ς',
    'ß',
    '中文',
    '語',
    '\u0627',
    'ש',
    'क्ष',
    '\U0001f600',
    '\U0001f468\u200d\U0001f469',
    '<s>',
    '</s>',
    '<mask>',
    '[MASK]',
    '[CLS]',
    '<|endoftext|>',
    'ing',
    '##ing',
    '▁',
    'Ġ',
]


def random_texts(n, longest=24, seed=0):
    draw = random.Random(seed)
    return [''.join(draw.choices(PIECES, k=draw.randint(0, longest))) for _ in range(n)]


def byte_level(normalizer=None, prefix=False, added=()):
    fast = reference.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator(random_texts(2000, seed=1), trainer)
    fast.normalizer = normalizer
    fast.add_special_tokens(['<|endoftext|>', *added])
    return fast


def word_piece(lowercase):
    letters = sorted({c for piece in PIECES for c in piece if not c.isspace()} | {'i', 'o', 's'})
    vocabulary = [
        '[UNK]',
        '[SEP]',
        '[CLS]',
        '[MASK]',
        *letters,
        *(f'##{c}' for c in letters),
        'dog',
        'the',
    ]
    fast = reference.Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(vocabulary))}, unk_token='[UNK]')
    )
    fast.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.add_special_tokens(['[UNK]', '[SEP]', '[CLS]', '[MASK]'])
    return fast


def wrap(fast):
    return huggingface.HuggingFace(fast, {}, 'a tokenizer')


def library_ids(fast, texts):
    return [encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)]


CASES = {
    'GPT-2': (lambda: byte_level(), True),
    'RoBERTa': (lambda: byte_level(added=[reference.AddedToken('<mask>', lstrip=True)]), True),
    'BERT': (lambda: word_piece(True), True),
    'cased BERT': (lambda: word_piece(False), True),
    'space before all': (lambda: byte_level(prefix=True), False),
    'normalized': (lambda: byte_level(normalizers.NFKC()), False),
    'token with a space': (lambda: byte_level(added=['the dog']), False),
    'token that takes spaces': (
        lambda: byte_level(added=[reference.AddedToken('<mask>', rstrip=True)]),
        False,
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_cached_words_give_the_ids_of_the_library(name):
    make, splits_words = CASES[name]
    fast = make()
    tokenizer = wrap(fast)
    assert tokenizer._splits_words == splits_words
    texts = random_texts(4000)
    expected = library_ids(fast, texts)
    for first in range(0, len(texts), 400):  # the cache grows
        assert tokenizer.encode(texts[first : first + 400]) == expected[first : first + 400]
    assert tokenizer.encode(texts) == expected
    assert (len(tokenizer._cache) > 1000) == splits_words


def test_ids_around_a_space_equal_the_library():
    fast = byte_level()
    texts = [''.join(parts) for parts in itertools.product(PIECES, [' ', '  '], PIECES, ['', ' a'])]
    assert wrap(fast).encode(texts) == library_ids(fast, texts)


def test_word_cache_is_bounded_and_not_pickled(monkeypatch):
    monkeypatch.setattr(huggingface, '_MAX_CACHE', 2000)
    fast = byte_level()
    tokenizer = wrap(fast)
    texts = random_texts(3000)
    expected = library_ids(fast, texts)
    for first in range(0, len(texts), 10):
        assert tokenizer.encode(texts[first : first + 10]) == expected[first : first + 10]
        assert sum(map(len, tokenizer._cache)) <= 2000 + sum(map(len, texts[first : first + 10]))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again._cache == {}
    assert again.encode(texts) == expected


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names no folder')
@pytest.mark.parametrize('name', ['gpt2', 'bert-base-uncased'])
def test_ids_of_real_text_equal_the_library(name):
    folder = pathlib.Path(DATA) / 'tokenizers' / name
    file = huggingface.find_file(folder)
    tokenizer = huggingface.read(file, True, 'a tokenizer')
    fast = reference.Tokenizer.from_str(tokenizer._fast.to_str())
    assert tokenizer._splits_words
    for path in (
        'wikitext-2/wiki.valid.tokens',
        'multi30k/val.fr',
        'QQP/dev.tsv',
        'cornell/pairs.train.tsv',
    ):
        texts = (pathlib.Path(DATA) / path).read_text(encoding='utf-8').split('\n')
        assert tokenizer.encode(texts) == library_ids(fast, texts)
