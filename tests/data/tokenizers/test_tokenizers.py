"""Tests of choosing the tokenizer of a run, and of training vocabularies."""

import concurrent.futures
import io
import itertools
import random
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers as library
from helpers import corpus
from helpers.tokenizers import encode_pair

from lightpaff_jax import config
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError

TEXTS = ['The quick brown fox\njumps over the lazy dog.', '    indented = [1, 2, 3]\n'] * 3
FAMILIES = tuple(tokenizers.SYMBOLS)
BERT = ('[CLS]', '[SEP]', '[MASK]')


def family_config(cache, family='gpt2'):
    c = corpus.tiny_config(cache)
    c.student.family = family
    return c


@pytest.fixture(scope='module')
def families(data_cache):
    return {family: selection.load(family_config(data_cache, family)) for family in FAMILIES}


@pytest.fixture(scope='module', params=FAMILIES)
def tokenizer(families, request):
    return families[request.param]


@pytest.fixture
def small(tmp_path):
    """Trains a vocabulary of 320 pieces with BERT's symbols."""
    tokenizers.train(TEXTS, 320, tmp_path / 'small.model', BERT)
    return tokenizers.read(str(tmp_path / 'small.model'))


@pytest.mark.parametrize(
    'text',
    [
        '',
        ' ',
        '  leading',
        'trailing  ',
        'a  b',
        '\n',
        '\n\n\n',
        'a\n\n    b\n',
        '\t\ttabs\t',
        '\r\n',
        'caf\u00e9 cafe\u0301 \ufb01',
        '\U0001f600 \U0001f1e9\U0001f1ea',
        '\u4f60\u597d',
        '\u2581',
        'a\u2581 \u2581b',
        '\u2585 \u2047',
        '\u00a0\u3000',
        '\x00\x7f',
        '<unk> </s> <pad>',
        '<0x0A>',
        '\ufffd\ufeff',
        '[MASK]',
        ' [CLS]a[SEP] b [MASK][MASK]',
        '[MASK',
        '[MASK]]\u2581[MASK]',
    ],
)
def test_decode_inverts_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_decode_inverts_encode_of_random_text(tokenizer):
    rng = random.Random(0)
    characters = [
        *map(chr, range(256)),
        '\u2581',
        '\u2585',
        '\ue000',
        '\uffff',
        '\U0010ffff',
        *BERT,
    ]
    texts = [''.join(rng.choices(characters, k=rng.randrange(20))) for _ in range(2000)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts


def test_text_is_never_encoded_to_padding_or_eos(tokenizer, data_cache):
    texts = [e['text'].decode() for e in pydocs.load(data_cache).as_data_source('test')]
    ids = {i for encoded in tokenizer.encode([*texts, '</s><pad>']) for i in encoded}
    assert not ids & {tokenizer.pad_id, tokenizer.eos_id}
    assert max(ids) < tokenizer.vocab_size


def test_encoding_does_not_depend_on_the_batch(tokenizer):
    assert [tokenizer.encode([text])[0] for text in TEXTS] == tokenizer.encode(TEXTS)


@pytest.mark.parametrize('family', FAMILIES)
def test_tokenizer_is_trained_once(families, family, data_cache, monkeypatch):
    monkeypatch.setattr(tokenizers, 'train', None)
    assert selection.load(family_config(data_cache, family)) == families[family]


@pytest.mark.parametrize('view', config.VIEWS)
def test_packages_and_view_do_not_change_the_vocabulary(families, data_cache, view):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ('numpy',)
    c.data.view = view
    assert selection.load(c).fingerprint == families['gpt2'].fingerprint


def test_each_family_has_its_special_ids(families):
    ids = {
        family: (
            tokenizer.pad_id,
            tokenizer.eos_id,
            tokenizer.model.ids.get('unk'),
            tokenizer.cls_id,
            tokenizer.sep_id,
            tokenizer.mask_id,
        )
        for family, tokenizer in families.items()
    }
    assert ids == {
        'gpt2': (0, 1, 2, None, None, None),
        'bert': (0, 1, 2, 3, 4, 5),
        'mass': (0, 1, 2, None, None, 3),
    }
    assert {family: len(tokenizer.special_ids) for family, tokenizer in families.items()} == {
        'gpt2': 3,
        'bert': 6,
        'mass': 4,
    }
    assert all(
        tokenizer.special_ids == frozenset(range(len(tokenizer.special_ids)))
        for tokenizer in families.values()
    )


def test_families_have_different_vocabularies(families):
    assert len({tokenizer.fingerprint for tokenizer in families.values()}) == len(FAMILIES)
    assert {tokenizer.vocab_size for tokenizer in families.values()} == {corpus.VOCAB_SIZE}


def test_symbols_in_a_text_have_their_ids(families):
    assert families['bert'].encode([''.join(BERT)]) == [[3, 4, 5]]
    assert families['mass'].encode(['[MASK]']) == [[3]]


def test_pieces_after_a_space_or_line_end_start_words(small):
    ids = small.encode(['the lazy\nfox[MASK]'])[0]
    starts = small.word_starts
    assert starts.shape == (320,)
    first = next(i for i in ids if small.decode([i]).startswith(' '))
    newline = small.encode(['\n'])[0]
    assert starts[[first, *newline, small.mask_id]].all()
    assert not starts[small.encode(['e'])[0]].any()


@pytest.mark.parametrize('symbols', [(), BERT])
def test_equal_texts_give_an_equal_model_file(tmp_path, capfd, symbols):
    for name in ('a', 'b'):
        tokenizers.train(iter(TEXTS), 310, tmp_path / name, symbols)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    assert tokenizers.read(str(tmp_path / 'a')).vocab_size == 310
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('char', ['a', 'é', '猫', '😀'])
@pytest.mark.parametrize('words', [False, True])
def test_training_text_is_cut_into_lines_that_sentencepiece_reads(char, words):
    draw = random.Random(0)
    for size in (0, 1, 4191, 4192, 4193, 9000):
        text = ''.join(' ' if words and draw.random() < 0.2 else char for _ in range(size))
        lines = list(tokenizers._training_lines(f'{text}\n\n{text}\u2585x'))
        assert all(0 < len(line.encode()) <= 4192 for line in lines)
        assert ''.join(lines) == f'{text}{text}x'
        starts = [line[0] for line in tokenizers._training_lines(text)][1:]
        assert not words or starts == [' '] * len(starts)


def test_words_of_long_lines_are_learnt(tmp_path):
    words = [''.join(random.Random(n).choices('qrstuvwxyz', k=5)) for n in range(9)]
    text = ' '.join(random.Random(1).choices(words, k=2000))
    tokenizers.train([text], 310, tmp_path / 'model')
    tokenizer = tokenizers.read(str(tmp_path / 'model'))
    assert all(len(tokenizer.encode([f' {word}'])[0]) <= 2 for word in words)


def test_training_without_symbols_equals_sentencepiece(tmp_path):
    tokenizers.train(TEXTS, 310, tmp_path / 'trained')
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS for line in text.split('\n') if line),
        model_writer=model,
        model_type='bpe',
        vocab_size=310,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        character_coverage=0.9995,
        minloglevel=2,
        num_threads=1,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        max_sentence_length=4192,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
    )
    assert (tmp_path / 'trained').read_bytes() == model.getvalue()


def test_threads_can_share_a_tokenizer(tokenizer):
    texts = [f'{text} {i}' for i in range(50) for text in TEXTS]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda text: tokenizer.encode([text])[0], texts))
    assert ids == tokenizer.encode(texts)


@pytest.mark.e2e
def test_forked_process_encodes_silently(small, tmp_path):
    """The `tokenizers` library warns, and can hang, if its threads ran before a fork."""
    small.save(tmp_path / 'saved')
    code = (
        'import os, sys\n'
        'from lightpaff_jax.data import tokenizers\n'
        'tokenizer = tokenizers.read(sys.argv[1])\n'
        "texts = ['some text'] * 1000\n"
        'before = tokenizer.encode(texts)\n'
        'child = os.fork()\n'
        'if not child: os._exit(0 if tokenizer.encode(texts) == before else 3)\n'
        'sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'saved/tokenizer.json')]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stderr) == (0, '')


def test_pairs_equal_handwritten_ones(small):
    a, b = small.encode(['the fox', 'dog'])
    assert encode_pair(small, 'the fox', 'dog', 100) == (
        [3, *a, 4, *b, 4],
        [0] * (len(a) + 2) + [1] * (len(b) + 1),
    )
    assert encode_pair(small, 'the fox', '', 100) == ([3, *a, 4], [0] * (len(a) + 2))
    assert encode_pair(small, 'the fox', '', 4) == ([3, *a[:2], 4], [0] * 4)
    assert encode_pair(small, 'the fox', 'dog', 6) == ([3, *a[:2], 4, *b[:1], 4], [0] * 4 + [1] * 2)


def test_truncated_lengths_equal_the_library():
    model = library.models.WordLevel({'a': 0, 'b': 1}, unk_token='a')
    reference = library.Tokenizer(model)
    reference.pre_tokenizer = library.pre_tokenizers.Whitespace()
    for first, second, capacity in itertools.product(range(9), range(9), range(1, 18)):
        reference.enable_truncation(capacity, strategy='longest_first')
        ids = reference.encode('a ' * first, 'b ' * second).ids
        lengths = tokenizers.truncated_lengths(first, second, capacity)
        assert lengths == (ids.count(0), ids.count(1)), (first, second, capacity)


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'saved')
    names = {'tokenizer.model', 'tokenizer.json', 'tokenizer_config.json'}
    assert {file.name for file in (tmp_path / 'saved').iterdir()} == names
    again = tokenizers.read(str(tmp_path / 'saved'))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_tokenizer_precedence_is_path_teacher_start_text(tmp_path, data_cache):
    c = corpus.tiny_config(data_cache)
    folders = {}
    for name, size in (('configured', 310), ('teacher', 311), ('start', 312)):
        tokenizers.train(TEXTS, size, tmp_path / 'model')
        tokenizers.read(str(tmp_path / 'model')).save(tmp_path / name / 'tokenizer')
        folders[name] = str(tmp_path / name)
    trained = selection.load(c)
    assert data_cache in trained.path
    c.student.init, c.student.vocab_size = folders['start'], 312
    assert selection.load(c).path == f'{folders["start"]}/tokenizer'
    c.teacher.path, c.student.vocab_size = folders['teacher'], 311
    assert selection.load(c).path == f'{folders["teacher"]}/tokenizer'
    c.tokenizer.path, c.student.vocab_size = f'{folders["configured"]}/tokenizer', 310
    assert selection.load(c).path == c.tokenizer.path
    c.tokenizer.path = c.teacher.path = ''
    c.student.init, c.student.vocab_size = 'teacher_layers', corpus.VOCAB_SIZE
    assert selection.load(c) == trained


def test_mixture_has_the_tokenizer_of_its_prepared_part(tmp_path, small):
    small.save(tmp_path / 'one' / 'tokenizer')
    (tmp_path / 'none').mkdir()
    c = config.default()
    c.data.source, c.student.vocab_size = 'mixture', small.vocab_size
    c.data.mixture = (f'text:{tmp_path}=1', f'prepared:{tmp_path}/one=2', 'prepared:/other=1')
    tokenizer = selection.load(c)
    assert (tokenizer.path, tokenizer.fingerprint) == (
        f'{tmp_path}/one/tokenizer',
        small.fingerprint,
    )
    c.data.mixture = (f'prepared:{tmp_path}/none=2', f'prepared:{tmp_path}/one=2')
    with pytest.raises(UserError, match=f'^{tmp_path}/none: has no manifest.json'):
        selection.load(c)
    c.data.mixture = ('prepared:gs://bucket/x=2',)
    with pytest.raises(UserError, match=r'data\.mixture = gs://bucket/x: .* gcsfuse'):
        selection.load(c)


def test_find_returns_the_tokenizer_of_a_folder_or_none(tmp_path, small):
    assert tokenizers.find(str(tmp_path / 'absent')) is None
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    assert tokenizers.find(str(tmp_path / 'run')) is None
    small.save(tmp_path / 'run')
    assert tokenizers.find(str(tmp_path / 'run')) == str(tmp_path / 'run')
    small.save(tmp_path / 'run' / 'tokenizer')
    assert tokenizers.find(str(tmp_path / 'run')) == str(tmp_path / 'run' / 'tokenizer')


def test_malformed_tokenizer_of_the_teacher_names_its_key(tmp_path, data_cache):
    c = corpus.tiny_config(data_cache)
    (tmp_path / 'tokenizer.json').write_text('{}')
    c.teacher.path = str(tmp_path)
    with pytest.raises(UserError, match=r'config\.teacher\.path = .*: must be a'):
        selection.load(c)


@pytest.mark.parametrize('size', [10, 100_000])
def test_vocabulary_size_that_does_not_fit_is_an_error(tmp_path, size):
    with pytest.raises(UserError, match=f'vocab_size = {size}: '):
        tokenizers.train(TEXTS, size, tmp_path / 'model')
    assert not (tmp_path / 'model').exists()


def test_tokenizer_larger_than_the_network_is_an_error(tmp_path, data_cache):
    tokenizers.train(TEXTS, 310, tmp_path / 'model')
    c = corpus.tiny_config(data_cache)
    c.tokenizer.path = str(tmp_path / 'model')
    c.student.vocab_size = 309
    with pytest.raises(UserError, match=r'vocab_size = 309: must be at least the 310 ids'):
        selection.load(c)
    for size in (310, 320):
        c.student.vocab_size = size
        assert selection.load(c).path == c.tokenizer.path


def test_missing_tokenizer_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        tokenizers.read(str(tmp_path / 'absent.model'))


def test_piece_that_is_not_utf8_is_a_user_error(tmp_path):
    tokenizers.train(['some words'] * 9, 270, tmp_path / 'a.model')
    data = (tmp_path / 'a.model').read_bytes()
    (tmp_path / 'a.model').write_bytes(data.replace(b'<unk>', b'<u\xff\xfe>', 1))
    with pytest.raises(UserError, match='must be a SentencePiece model'):
        tokenizers.read(str(tmp_path / 'a.model'))


@pytest.mark.parametrize('content', [b'', b'no model', bytes(range(256))])
def test_file_of_another_format_is_a_user_error(tmp_path, content, capfd):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(UserError, match='must be a SentencePiece model'):
        tokenizers.read(str(tmp_path / 'file'))
    assert capfd.readouterr().err == ''
