"""A word's ids are those it has in its text: encoding each word once changes none."""

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
    ' ', ' ', ' ', ' ', '  ', '\t', '\n', '\r\n', '\u00a0', '\u2028', '\u3000', '\u1680', '\x1c', '\x1f', '\x85',
    '\u200b', '\u180e', '\ufeff', '\x00', '\x07', '\ufffd', 'a', 'ab', 'The', 'dog', "'s", "'ll", "don't", '1', '42',
    '\u00bd', '.', '...', ',', '(', '\u2014', '\u00e9', 'e\u0301', '\u0301', 'İ', 'Σ', 'ς', 'ß', '中文', '語', '\u0627', 'ש', 'क्ष', '\U0001f600',
    '\U0001f468\u200d\U0001f469', '<s>', '</s>', '<mask>', '[MASK]', '[CLS]', '<|endoftext|>', 'ing', '##ing', '▁', 'Ġ',
]  # fmt: skip


def drawn(n, longest=24, seed=0):
    draw = random.Random(seed)
    return [''.join(draw.choices(PIECES, k=draw.randint(0, longest))) for _ in range(n)]


def byte_level(normalizer=None, prefix=False, added=()):
    fast = reference.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator(drawn(2000, seed=1), trainer)
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


def ours(fast):
    return huggingface.HuggingFace(fast, {}, 'a tokenizer')


def direct(fast, texts):
    return [one.ids for one in fast.encode_batch(texts, add_special_tokens=False)]


CASES = {
    'GPT-2': (lambda: byte_level(), True),
    'RoBERTa': (lambda: byte_level(added=[reference.AddedToken('<mask>', lstrip=True)]), True),
    'BERT': (lambda: word_piece(True), True),
    'cased BERT': (lambda: word_piece(False), True),
    'space before all': (lambda: byte_level(prefix=True), False),
    'normalized': (lambda: byte_level(normalizers.NFKC()), False),
    'token with a space': (lambda: byte_level(added=['the dog']), False),
    'token that takes spaces': (
        lambda: byte_level(added=[reference.AddedToken('<mask>', rstrip=True)]), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_ids_are_those_of_the_library(name):
    make, apart = CASES[name]
    fast = make()
    mine = ours(fast)
    assert mine._splits_words == apart
    texts = drawn(4000)
    wanted = direct(fast, texts)
    for first in range(0, len(texts), 400):  # what is known grows
        assert mine.encode(texts[first : first + 400]) == wanted[first : first + 400]
    assert mine.encode(texts) == wanted
    assert (len(mine._cache) > 1000) == apart


def test_all_short_texts_around_a_space():
    fast = byte_level()
    texts = [''.join(parts) for parts in itertools.product(PIECES, [' ', '  '], PIECES, ['', ' a'])]
    assert ours(fast).encode(texts) == direct(fast, texts)


def test_what_is_known_is_bounded_and_forgotten_in_a_pickle(monkeypatch):
    monkeypatch.setattr(huggingface, '_MAX_CACHE', 2000)
    fast = byte_level()
    mine = ours(fast)
    texts = drawn(3000)
    wanted = direct(fast, texts)
    for first in range(0, len(texts), 10):
        assert mine.encode(texts[first : first + 10]) == wanted[first : first + 10]
        assert sum(map(len, mine._cache)) <= 2000 + sum(map(len, texts[first : first + 10]))
    again = pickle.loads(pickle.dumps(mine))
    assert again._cache == {}
    assert again.encode(texts) == wanted


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names no folder')
@pytest.mark.parametrize('name', ['gpt2', 'bert-base-uncased'])
def test_real_text_has_the_ids_of_the_library(name):
    folder = pathlib.Path(DATA) / 'tokenizers' / name
    file = huggingface.find_file(folder)
    mine = huggingface.read(file, True, 'a tokenizer')
    fast = reference.Tokenizer.from_str(mine._fast.to_str())
    assert mine._splits_words
    for path in (
        'wikitext-2/wiki.valid.tokens',
        'multi30k/val.fr',
        'QQP/dev.tsv',
        'cornell/pairs.train.tsv',
    ):
        texts = (pathlib.Path(DATA) / path).read_text(encoding='utf-8').split('\n')
        assert mine.encode(texts) == direct(fast, texts)
