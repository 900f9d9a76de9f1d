"""Tests that ids equal those of transformers.

Real text is read from the folder that the environment variable LIGHTPAFF_DATA names, laid out as
<set>/<file> (see FILES), with published vocabularies in tokenizers/; tests that need it are
skipped without it. Vocabularies trained by this project are compared on the built-in corpus too.
"""

import json
import os
import pathlib
import random

import pytest
import sentencepiece
from helpers import corpus
from helpers.tokenizers import encode_pair

from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection

pytestmark = pytest.mark.compare

DATA = os.environ.get('LIGHTPAFF_DATA')
FILES = (
    'wikitext-2/wiki.valid.tokens',
    'SST-2/dev.tsv',
    'multi30k/val.de',
    'multi30k/val.fr',
    'cornell/pairs.train.tsv',
    'ptb/ptb.valid.txt',
    'gigaword/valid.article.filter.txt',
    'MRPC/msr_paraphrase_test.txt',
    'QQP/dev.tsv',
    'MR/rt-polarity.pos',
)
PUBLISHED = {'bert-base-uncased': 'BertTokenizer', 'gpt2': 'GPT2Tokenizer'}
MODEL_TYPES = ('', 'bert', 'gpt2', 'bart')  # of the config.json next to it; '' if absent
needs_data = pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')


@pytest.fixture(scope='module')
def transformers():
    return pytest.importorskip('transformers')


def real_lines(count):
    """Returns `count` lines, equally many of each file, sampled with a fixed seed."""
    lines = []
    for file in FILES:
        content = (pathlib.Path(DATA) / file).read_text(encoding='utf-8').split('\n')
        lines += random.Random(0).sample([line for line in content if line], count // len(FILES))
    return lines


def documents(cache, count):
    """Returns the first `count` documents of the test split of the built-in corpus."""
    source = pydocs.load(cache).as_data_source('test')
    return [source[i]['text'].decode() for i in range(count)]


def load_reference(transformers, folder, model_type):
    if model_type:
        (folder / 'config.json').write_text(json.dumps({'model_type': model_type}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def reference_ids(reference, texts):
    return reference(texts, add_special_tokens=False)['input_ids']


def open_published(name, transformers, folder):
    """Opens a published vocabulary here and by the class of transformers."""
    source = pathlib.Path(DATA) / 'tokenizers' / name
    for old, new in (
        ('vocab.txt', 'vocab.txt'),
        ('encoder.json', 'vocab.json'),
        ('vocab.bpe', 'merges.txt'),
    ):
        if (source / old).is_file():
            (folder / new).write_bytes((source / old).read_bytes())
    reference = getattr(transformers, PUBLISHED[name]).from_pretrained(folder)
    return tokenizers.read(str(source)), reference


@needs_data
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_vocabulary_equals_transformers(transformers, tmp_path, name):
    tokenizer, reference = open_published(name, transformers, tmp_path)
    lines = real_lines(2000)
    assert len(lines) == 2000
    assert tokenizer.encode(lines) == reference_ids(reference, lines)


@needs_data
@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('name', PUBLISHED)
def test_saved_published_vocabulary_equals_transformers(transformers, tmp_path, name, model_type):
    tokenizer, _ = open_published(name, transformers, tmp_path)
    tokenizer.save(tmp_path / 'saved')
    lines = real_lines(2000)
    reference = load_reference(transformers, tmp_path / 'saved', model_type)
    assert reference_ids(reference, lines) == tokenizer.encode(lines)


@needs_data
@pytest.mark.parametrize('length', [5, 8, 9, 41, 512])
def test_truncated_pairs_equal_transformers(transformers, tmp_path, length):
    tokenizer, reference = open_published('bert-base-uncased', transformers, tmp_path)
    tokenizer.save(tmp_path / 'saved')
    lines = real_lines(400)
    cut = {'truncation': 'longest_first', 'max_length': length}
    first, second = lines[:-1], lines[1:]
    expected = [encode_pair(tokenizer, *pair, length) for pair in zip(first, second, strict=True)]
    singles = [encode_pair(tokenizer, line, '', length) for line in lines]
    for encode in (reference, load_reference(transformers, tmp_path / 'saved', 'bert')):
        for encoding, wanted in (
            (encode(first, second, **cut), expected),
            (encode(lines, **cut), singles),
        ):
            assert (
                list(zip(encoding['input_ids'], encoding['token_type_ids'], strict=True)) == wanted
            )


@needs_data
@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_vocabulary_of_real_text_equals_transformers(transformers, tmp_path, family, model_type):
    tokenizers.train(real_lines(4000), 3000, tmp_path / 'model', tokenizers.SYMBOLS[family])
    tokenizer = tokenizers.read(str(tmp_path / 'model'))
    tokenizer.save(tmp_path / 'saved')
    lines = real_lines(1000)
    reference = load_reference(transformers, tmp_path / 'saved', model_type)
    assert reference_ids(reference, lines) == tokenizer.encode(lines)


def train_other(kind, rule, folder):
    """Trains a SentencePiece model with usual options on real lines."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_lines(4000)),
        model_prefix=str(folder / 'other'),
        model_type=kind,
        vocab_size=2000,
        normalization_rule_name=rule,
        minloglevel=2,
        byte_fallback=rule == 'identity',
        num_threads=1,
    )
    return tokenizers.read(str(folder / 'other.model'))


@needs_data
@pytest.mark.parametrize('rule', ['nmt_nfkc', 'nmt_nfkc_cf', 'identity'])
def test_other_bpe_model_equals_transformers(transformers, tmp_path, rule):
    tokenizer, lines = train_other('bpe', rule, tmp_path), real_lines(1000)
    tokenizer.save(tmp_path / 'saved')
    assert reference_ids(
        load_reference(transformers, tmp_path / 'saved', 'bart'), lines
    ) == tokenizer.encode(lines)


@needs_data
@pytest.mark.parametrize('rule', ['nmt_nfkc', 'nmt_nfkc_cf', 'identity'])
def test_other_unigram_model_equals_transformers_up_to_ties(transformers, tmp_path, rule):
    """A tie gives the same ids in another order; see `convert_sentencepiece.convert`."""
    tokenizer, lines = train_other('unigram', rule, tmp_path), real_lines(1000)
    tokenizer.save(tmp_path / 'saved')
    expected = reference_ids(load_reference(transformers, tmp_path / 'saved', 'bart'), lines)
    pairs = list(zip(expected, tokenizer.encode(lines), strict=True))
    assert all(sorted(a) == sorted(b) for a, b in pairs)
    assert sum(a != b for a, b in pairs) < 5


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_trained_vocabulary_equals_transformers(
    transformers, data_cache, tmp_path, family, model_type
):
    c = corpus.tiny_config(data_cache)
    c.student.family = family
    tokenizer = selection.load(c)
    tokenizer.save(tmp_path)
    texts = documents(data_cache, 100)
    texts += [line for text in texts for line in text.split('\n')][:2000]
    texts += ['</s><pad> <unk>[MASK]', '\u2581 a\u2581', '[CLS] a [SEP]', '', '  ', '\n<0x0A>']
    reference = load_reference(transformers, tmp_path, model_type)
    assert reference_ids(reference, texts) == tokenizer.encode(texts)
    assert [reference.decode(ids) for ids in tokenizer.encode(texts)] == texts


@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_transformers_adds_the_same_special_tokens(transformers, data_cache, tmp_path, family):
    c = corpus.tiny_config(data_cache)
    c.student.family = family
    tokenizer = selection.load(c)
    tokenizer.save(tmp_path)
    reference = load_reference(transformers, tmp_path, family.replace('mass', 'bart'))
    for name in ('eos', 'pad', 'cls', 'sep', 'mask', 'unk'):
        assert getattr(reference, f'{name}_token_id') == tokenizer.model.ids.get(name), name
    (a, b), pair = tokenizer.encode(['one text', 'another']), reference('one text', 'another')
    if family == 'bert':
        assert (pair['input_ids'], pair['token_type_ids']) == encode_pair(
            tokenizer, 'one text', 'another', 99
        )
    else:
        assert pair['input_ids'] == [*a, 1, *b, 1]
        assert 'token_type_ids' not in pair
