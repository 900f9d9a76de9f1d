"""Equality of ids with transformers.

Real text is read from the folder that the environment variable LIGHTPAFF_DATA names, laid out as
<set>/<file> (see FILES), with published vocabularies in tokenizers/; tests that need it are
skipped without it. Our own vocabularies are compared on the embedded corpus too.
"""

import json
import os
import pathlib
import random

import pytest
import sentencepiece
from helpers import corpus

from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection

pytestmark = pytest.mark.compare

DATA = os.environ.get('LIGHTPAFF_DATA')
FILES = (
    'wikitext-2/wiki.valid.tokens', 'SST-2/dev.tsv', 'multi30k/val.de', 'multi30k/val.fr',
    'cornell/pairs.train.tsv', 'ptb/ptb.valid.txt', 'gigaword/valid.article.filter.txt',
    'MRPC/msr_paraphrase_test.txt', 'QQP/dev.tsv', 'MR/rt-polarity.pos',
)  # fmt: skip
PUBLISHED = {'bert-base-uncased': 'BertTokenizer', 'gpt2': 'GPT2Tokenizer'}
MODEL_TYPES = ('', 'bert', 'gpt2', 'bart')  # of the config.json beside it; '' is none
needs_data = pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')


@pytest.fixture(scope='module')
def transformers():
    return pytest.importorskip('transformers')


def real_lines(count):
    """`count` lines, as many of each file, drawn with a fixed seed."""
    lines = []
    for file in FILES:
        found = (pathlib.Path(DATA) / file).read_text(encoding='utf-8').split('\n')
        lines += random.Random(0).sample([line for line in found if line], count // len(FILES))
    return lines


def documents(cache, count):
    """The first `count` documents of the embedded test split."""
    source = pydocs.load(cache).as_data_source('test')
    return [source[i]['text'].decode() for i in range(count)]


def loaded(transformers, folder, model_type):
    if model_type:
        (folder / 'config.json').write_text(json.dumps({'model_type': model_type}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def theirs(reference, texts):
    return reference(texts, add_special_tokens=False)['input_ids']


def published(name, transformers, folder):
    """A published vocabulary as we read it, and as transformers' own class does."""
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
def test_ids_of_2000_lines_equal(transformers, tmp_path, name):
    ours, reference = published(name, transformers, tmp_path)
    lines = real_lines(2000)
    assert len(lines) == 2000
    assert ours.encode(lines) == theirs(reference, lines)


@needs_data
@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('name', PUBLISHED)
def test_ids_of_a_saved_published_vocabulary_equal(transformers, tmp_path, name, model_type):
    ours, _ = published(name, transformers, tmp_path)
    ours.save(tmp_path / 'saved')
    lines = real_lines(2000)
    reference = loaded(transformers, tmp_path / 'saved', model_type)
    assert theirs(reference, lines) == ours.encode(lines)


@needs_data
@pytest.mark.parametrize('length', [5, 8, 9, 41, 512])
def test_pairs_equal_those_of_bert_cut_longest_first(transformers, tmp_path, length):
    ours, reference = published('bert-base-uncased', transformers, tmp_path)
    ours.save(tmp_path / 'saved')
    lines = real_lines(400)
    cut = {'truncation': 'longest_first', 'max_length': length}
    first, second = lines[:-1], lines[1:]
    expected = [ours.encode_pair(*pair, length) for pair in zip(first, second, strict=True)]
    alone = [ours.encode_pair(line, '', length) for line in lines]
    for one in (reference, loaded(transformers, tmp_path / 'saved', 'bert')):
        for found, wanted in ((one(first, second, **cut), expected), (one(lines, **cut), alone)):
            assert list(zip(found['input_ids'], found['token_type_ids'], strict=True)) == wanted


@needs_data
@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_ids_of_a_vocabulary_trained_on_real_text_equal(transformers, tmp_path, family, model_type):
    tokenizers.train(real_lines(4000), 3000, tmp_path / 'model', tokenizers.SYMBOLS[family])
    ours = tokenizers.read(str(tmp_path / 'model'))
    ours.save(tmp_path / 'saved')
    lines = real_lines(1000)
    reference = loaded(transformers, tmp_path / 'saved', model_type)
    assert theirs(reference, lines) == ours.encode(lines)


def given(kind, rule, folder):
    """A SentencePiece model as others train them, on real lines."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_lines(4000)), model_prefix=str(folder / 'given'),
        model_type=kind, vocab_size=2000, normalization_rule_name=rule, minloglevel=2,
        byte_fallback=rule == 'identity', num_threads=1,
    )  # fmt: skip
    return tokenizers.read(str(folder / 'given.model'))


@needs_data
@pytest.mark.parametrize('rule', ['nmt_nfkc', 'nmt_nfkc_cf', 'identity'])
def test_ids_of_a_given_bpe_model_equal(transformers, tmp_path, rule):
    ours, lines = given('bpe', rule, tmp_path), real_lines(1000)
    ours.save(tmp_path / 'saved')
    assert theirs(loaded(transformers, tmp_path / 'saved', 'bart'), lines) == ours.encode(lines)


@needs_data
@pytest.mark.parametrize('rule', ['nmt_nfkc', 'nmt_nfkc_cf', 'identity'])
def test_ids_of_a_given_unigram_model_equal_but_for_ties(transformers, tmp_path, rule):
    """A tie: the same ids in another order, in fewer than 5 of 1,000 lines. See spm_json.convert."""
    ours, lines = given('unigram', rule, tmp_path), real_lines(1000)
    ours.save(tmp_path / 'saved')
    found = theirs(loaded(transformers, tmp_path / 'saved', 'bart'), lines)
    pairs = list(zip(found, ours.encode(lines), strict=True))
    assert all(sorted(a) == sorted(b) for a, b in pairs)
    assert sum(a != b for a, b in pairs) < 5


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_ids_of_our_vocabulary_equal(transformers, data_cache, tmp_path, family, model_type):
    c = corpus.tiny_config(data_cache)
    c.student.family = family
    ours = selection.load(c)
    ours.save(tmp_path)
    texts = documents(data_cache, 100)
    texts += [line for text in texts for line in text.split('\n')][:2000]
    texts += ['</s><pad> <unk>[MASK]', '\u2581 a\u2581', '[CLS] a [SEP]', '', '  ', '\n<0x0A>']
    reference = loaded(transformers, tmp_path, model_type)
    assert theirs(reference, texts) == ours.encode(texts)
    assert [reference.decode(ids) for ids in ours.encode(texts)] == texts


@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_transformers_has_our_special_ids_and_adds_them(transformers, data_cache, tmp_path, family):
    c = corpus.tiny_config(data_cache)
    c.student.family = family
    ours = selection.load(c)
    ours.save(tmp_path)
    reference = loaded(transformers, tmp_path, family.replace('mass', 'bart'))
    for name in ('eos', 'pad', 'cls', 'sep', 'mask', 'unk'):
        assert getattr(reference, f'{name}_token_id') == getattr(ours, f'{name}_id'), name
    (a, b), pair = ours.encode(['one text', 'another']), reference('one text', 'another')
    if family == 'bert':
        assert (pair['input_ids'], pair['token_type_ids']) == ours.encode_pair(
            'one text', 'another', 99
        )
    else:
        assert pair['input_ids'] == [*a, 1, *b, 1]
        assert 'token_type_ids' not in pair
