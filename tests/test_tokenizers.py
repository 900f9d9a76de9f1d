"""Claims about the vocabularies."""

import random

import data_fixtures
import pytest

from lightpaff_jax import config
from lightpaff_jax.data import pydocs, tokenizers

TEXTS = ['The quick brown fox\njumps over the lazy dog.', '    indented = [1, 2, 3]\n'] * 3


@pytest.fixture(scope='module')
def tokenizer(data_cache):
    return tokenizers.load(data_fixtures.tiny(data_cache))


@pytest.mark.parametrize(
    'text',
    [
        '', ' ', '  leading', 'trailing  ', 'a  b', '\n', '\n\n\n', 'a\n\n    b\n', '\t\ttabs\t',
        '\r\n', 'caf\u00e9 cafe\u0301 \ufb01', '\U0001f600 \U0001f1e9\U0001f1ea', '\u4f60\u597d', '\u2581', 'a\u2581 \u2581b',
        '\u2585 \u2047', '\u00a0\u3000', '\x00\x7f', '<unk> </s> <pad>', '<0x0A>', '\ufffd\ufeff',
    ],
)  # fmt: skip
def test_decode_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_decode_gives_back_random_text(tokenizer):
    rng = random.Random(0)
    characters = [*map(chr, range(256)), '\u2581', '\u2585', '\ue000', '\uffff', '\U0010ffff']
    texts = [''.join(rng.choices(characters, k=rng.randrange(20))) for _ in range(2000)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts


def test_no_text_is_encoded_to_padding_or_eos(tokenizer, data_cache):
    texts = [e['text'].decode() for e in pydocs.opened(data_cache).as_data_source('test')]
    ids = {i for encoded in tokenizer.encode([*texts, '</s><pad>']) for i in encoded}
    assert not ids & {tokenizer.pad_id, tokenizer.eos_id}
    assert max(ids) < tokenizer.vocab_size


def test_encoding_is_the_same_one_by_one(tokenizer):
    assert [tokenizer.encode([text])[0] for text in TEXTS] == tokenizer.encode(TEXTS)


def test_loaded_twice_is_trained_once(tokenizer, data_cache, monkeypatch):
    monkeypatch.setattr(tokenizers, 'train', None)
    assert tokenizers.load(data_fixtures.tiny(data_cache)) == tokenizer


def test_package_filter_does_not_change_the_vocabulary(tokenizer, data_cache):
    c = data_fixtures.tiny(data_cache)
    c.data.packages = ('numpy',)
    assert tokenizers.load(c).hash == tokenizer.hash


def test_equal_texts_give_an_equal_file(tmp_path, capfd):
    for name in ('a', 'b'):
        tokenizers.train(iter(TEXTS), 310, tmp_path / name)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    assert tokenizers.read(str(tmp_path / 'a')).vocab_size == 310
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('size', [10, 100_000])
def test_a_size_that_does_not_fit_the_texts_is_a_user_error(tmp_path, size):
    with pytest.raises(config.UserError, match=f'vocab_size = {size}: '):
        tokenizers.train(TEXTS, size, tmp_path / 'model')
    assert not (tmp_path / 'model').exists()


def test_tokenizer_of_another_size_is_an_error_that_names_both(tmp_path, data_cache):
    tokenizers.train(TEXTS, 310, tmp_path / 'model')
    c = data_fixtures.tiny(data_cache)
    c.tokenizer.path = str(tmp_path / 'model')
    with pytest.raises(config.UserError, match=f'vocab_size = {data_fixtures.VOCAB_SIZE}.*310'):
        tokenizers.load(c)
    c.student.vocab_size = 310
    assert tokenizers.load(c).path == c.tokenizer.path


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(config.UserError, match='no such file'):
        tokenizers.read(str(tmp_path / 'absent.model'))


@pytest.mark.parametrize('content', [b'', b'no model', bytes(range(256))])
def test_file_of_another_kind_is_a_user_error(tmp_path, content, capfd):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(config.UserError, match='must be a SentencePiece model'):
        tokenizers.read(str(tmp_path / 'file'))
    assert capfd.readouterr().err == ''
