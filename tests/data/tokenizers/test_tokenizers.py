"""Claims about the tokenizer of a run, and about the vocabularies trained here."""

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

from lightpaff_jax import config
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError

TEXTS = ['The quick brown fox\njumps over the lazy dog.', '    indented = [1, 2, 3]\n'] * 3
FAMILIES = tuple(tokenizers.SYMBOLS)
BERT = ('[CLS]', '[SEP]', '[MASK]')


def configuration(cache, family='gpt2'):
    c = corpus.tiny_config(cache)
    c.student.family = family
    return c


@pytest.fixture(scope='module')
def families(data_cache):
    return {family: selection.load(configuration(data_cache, family)) for family in FAMILIES}


@pytest.fixture(scope='module', params=FAMILIES)
def tokenizer(families, request):
    return families[request.param]


@pytest.fixture
def small(tmp_path):
    """A vocabulary of 320 pieces with BERT's symbols, made anew."""
    tokenizers.train(TEXTS, 320, tmp_path / 'small.model', BERT)
    return tokenizers.read(str(tmp_path / 'small.model'))


@pytest.mark.parametrize(
    'text',
    [
        '', ' ', '  leading', 'trailing  ', 'a  b', '\n', '\n\n\n', 'a\n\n    b\n', '\t\ttabs\t',
        '\r\n', 'caf\u00e9 cafe\u0301 \ufb01', '\U0001f600 \U0001f1e9\U0001f1ea', '\u4f60\u597d', '\u2581', 'a\u2581 \u2581b',
        '\u2585 \u2047', '\u00a0\u3000', '\x00\x7f', '<unk> </s> <pad>', '<0x0A>', '\ufffd\ufeff',
        '[MASK]', ' [CLS]a[SEP] b [MASK][MASK]', '[MASK', '[MASK]]\u2581[MASK]',
    ],
)  # fmt: skip
def test_decode_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_decode_gives_back_random_text(tokenizer):
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


def test_no_text_is_encoded_to_padding_or_eos(tokenizer, data_cache):
    texts = [e['text'].decode() for e in pydocs.load(data_cache).as_data_source('test')]
    ids = {i for encoded in tokenizer.encode([*texts, '</s><pad>']) for i in encoded}
    assert not ids & {tokenizer.pad_id, tokenizer.eos_id}
    assert max(ids) < tokenizer.vocab_size


def test_encoding_is_the_same_one_by_one(tokenizer):
    assert [tokenizer.encode([text])[0] for text in TEXTS] == tokenizer.encode(TEXTS)


@pytest.mark.parametrize('family', FAMILIES)
def test_loaded_twice_is_trained_once(families, family, data_cache, monkeypatch):
    monkeypatch.setattr(tokenizers, 'train', None)
    assert selection.load(configuration(data_cache, family)) == families[family]


@pytest.mark.parametrize('form', config.VIEWS)
def test_neither_packages_nor_form_change_the_vocabulary(families, data_cache, form):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ('numpy',)
    c.data.view = form
    assert selection.load(c).fingerprint == families['gpt2'].fingerprint


def test_each_family_has_its_special_ids(families):
    found = {
        family: (one.pad_id, one.eos_id, one.unk_id, one.cls_id, one.sep_id, one.mask_id)
        for family, one in families.items()
    }
    assert found == {
        'gpt2': (0, 1, 2, None, None, None),
        'bert': (0, 1, 2, 3, 4, 5),
        'mass': (0, 1, 2, None, None, 3),
    }
    assert {family: len(one.special_ids) for family, one in families.items()} == {
        'gpt2': 3, 'bert': 6, 'mass': 4,
    }  # fmt: skip
    assert all(
        one.special_ids == frozenset(range(len(one.special_ids))) for one in families.values()
    )


def test_families_have_vocabularies_of_their_own(families):
    assert len({one.fingerprint for one in families.values()}) == len(FAMILIES)
    assert {one.vocab_size for one in families.values()} == {corpus.VOCAB_SIZE}


def test_symbols_of_a_text_have_their_ids(families):
    assert families['bert'].encode([''.join(BERT)]) == [[3, 4, 5]]
    assert families['mass'].encode(['[MASK]']) == [[3]]


def test_pieces_after_a_space_or_line_end_begin_words(small):
    ids = small.encode(['the lazy\nfox[MASK]'])[0]
    starts = small.word_starts
    assert starts.shape == (320,)
    first = next(i for i in ids if small.decode([i]).startswith(' '))
    newline = small.encode(['\n'])[0]
    assert starts[[first, *newline, small.mask_id]].all()
    assert not starts[small.encode(['e'])[0]].any()


@pytest.mark.parametrize('symbols', [(), BERT])
def test_equal_texts_give_an_equal_file(tmp_path, capfd, symbols):
    for name in ('a', 'b'):
        tokenizers.train(iter(TEXTS), 310, tmp_path / name, symbols)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    assert tokenizers.read(str(tmp_path / 'a')).vocab_size == 310
    assert capfd.readouterr() == ('', '')


def test_a_vocabulary_without_symbols_is_what_sentencepiece_trains_without_them(tmp_path):
    tokenizers.train(TEXTS, 310, tmp_path / 'ours')
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS for line in text.split('\n') if line),
        model_writer=model, model_type='bpe', vocab_size=310, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, byte_fallback=True, character_coverage=0.9995, minloglevel=2, num_threads=1,
        normalization_rule_name='identity', remove_extra_whitespaces=False, max_sentence_length=4192,
        add_dummy_prefix=False, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    assert (tmp_path / 'ours').read_bytes() == model.getvalue()


def test_threads_may_share_a_tokenizer(tokenizer):
    texts = [f'{text} {i}' for i in range(50) for text in TEXTS]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: tokenizer.encode([text])[0], texts))
    assert found == tokenizer.encode(texts)


@pytest.mark.e2e
def test_a_forked_process_encodes_and_says_nothing(small, tmp_path):
    """The `tokenizers` library warns, and may hang, where its threads ran before a fork."""
    small.save(tmp_path / 'saved')
    code = (
        'import os, sys\n'
        'from lightpaff_jax.data import tokenizers\n'
        'one = tokenizers.read(sys.argv[1])\n'
        "texts = ['some text'] * 1000\n"
        'before = one.encode(texts)\n'
        'child = os.fork()\n'
        'if not child: os._exit(0 if one.encode(texts) == before else 3)\n'
        'sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'saved/tokenizer.json')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')


def test_pairs_by_hand(small):
    a, b = small.encode(['the fox', 'dog'])
    assert small.encode_pair('the fox', 'dog', 100) == (
        [3, *a, 4, *b, 4],
        [0] * (len(a) + 2) + [1] * (len(b) + 1),
    )
    assert small.encode_pair('the fox', '', 100) == ([3, *a, 4], [0] * (len(a) + 2))
    assert small.encode_pair('the fox', '', 4) == ([3, *a[:2], 4], [0] * 4)
    assert small.encode_pair('the fox', 'dog', 6) == ([3, *a[:2], 4, *b[:1], 4], [0] * 4 + [1] * 2)


def test_the_longer_text_is_cut_as_the_library_does():
    model = library.models.WordLevel({'a': 0, 'b': 1}, unk_token='a')
    reference = library.Tokenizer(model)
    reference.pre_tokenizer = library.pre_tokenizers.Whitespace()
    for first, second, room in itertools.product(range(9), range(9), range(1, 18)):
        reference.enable_truncation(room, strategy='longest_first')
        ids = reference.encode('a ' * first, 'b ' * second).ids
        found = tokenizers.truncated_lengths(first, second, room)
        assert found == (ids.count(0), ids.count(1)), (first, second, room)


def test_a_saved_tokenizer_is_read_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'saved')
    names = {'tokenizer.model', 'tokenizer.json', 'tokenizer_config.json'}
    assert {file.name for file in (tmp_path / 'saved').iterdir()} == names
    again = tokenizers.read(str(tmp_path / 'saved'))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_a_tokenizer_comes_from_path_then_teacher_then_start_then_text(tmp_path, data_cache):
    c = corpus.tiny_config(data_cache)
    made = {}
    for name, size in (('given', 310), ('teacher', 311), ('start', 312)):
        tokenizers.train(TEXTS, size, tmp_path / 'model')
        tokenizers.read(str(tmp_path / 'model')).save(tmp_path / name / 'tokenizer')
        made[name] = str(tmp_path / name)
    trained = selection.load(c)
    assert data_cache in trained.path
    c.student.init, c.student.vocab_size = made['start'], 312
    assert selection.load(c).path == f'{made["start"]}/tokenizer'
    c.teacher.path, c.student.vocab_size = made['teacher'], 311
    assert selection.load(c).path == f'{made["teacher"]}/tokenizer'
    c.tokenizer.path, c.student.vocab_size = f'{made["given"]}/tokenizer', 310
    assert selection.load(c).path == c.tokenizer.path
    c.tokenizer.path = c.teacher.path = ''
    c.student.init, c.student.vocab_size = 'teacher_layers', corpus.VOCAB_SIZE
    assert selection.load(c) == trained


def test_a_mixture_has_the_tokenizer_of_its_first_prepared_part(tmp_path, small):
    small.save(tmp_path / 'one' / 'tokenizer')
    (tmp_path / 'none').mkdir()
    c = config.default()
    c.data.source, c.student.vocab_size = 'mixture', small.vocab_size
    c.data.mixture = (f'text:{tmp_path}=1', f'prepared:{tmp_path}/one=2', 'prepared:/other=1')
    found = selection.load(c)
    assert (found.path, found.fingerprint) == (f'{tmp_path}/one/tokenizer', small.fingerprint)
    c.data.mixture = (f'prepared:{tmp_path}/none=2', f'prepared:{tmp_path}/one=2')
    with pytest.raises(UserError, match=f'^{tmp_path}/none: has no manifest.json'):
        selection.load(c)
    c.data.mixture = ('prepared:gs://bucket/x=2',)
    with pytest.raises(UserError, match=r'data\.mixture = gs://bucket/x: .* gcsfuse'):
        selection.load(c)


def test_a_folder_without_a_tokenizer_has_none_to_find(tmp_path, small):
    assert tokenizers.find(str(tmp_path / 'absent')) is None
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    assert tokenizers.find(str(tmp_path / 'run')) is None
    small.save(tmp_path / 'run')
    assert tokenizers.find(str(tmp_path / 'run')) == str(tmp_path / 'run')
    small.save(tmp_path / 'run' / 'tokenizer')
    assert tokenizers.find(str(tmp_path / 'run')) == str(tmp_path / 'run' / 'tokenizer')


def test_a_malformed_tokenizer_of_the_teacher_names_the_teacher(tmp_path, data_cache):
    c = corpus.tiny_config(data_cache)
    (tmp_path / 'tokenizer.json').write_text('{}')
    c.teacher.path = str(tmp_path)
    with pytest.raises(UserError, match=r'config\.teacher\.path = .*: must be a'):
        selection.load(c)


@pytest.mark.parametrize('size', [10, 100_000])
def test_a_size_that_does_not_fit_the_texts_is_a_user_error(tmp_path, size):
    with pytest.raises(UserError, match=f'vocab_size = {size}: '):
        tokenizers.train(TEXTS, size, tmp_path / 'model')
    assert not (tmp_path / 'model').exists()


def test_tokenizer_with_more_ids_than_the_network_is_an_error_that_names_both(tmp_path, data_cache):
    tokenizers.train(TEXTS, 310, tmp_path / 'model')
    c = corpus.tiny_config(data_cache)
    c.tokenizer.path = str(tmp_path / 'model')
    c.student.vocab_size = 309
    with pytest.raises(UserError, match=r'vocab_size = 309: must be at least the 310 ids'):
        selection.load(c)
    for size in (310, 320):
        c.student.vocab_size = size
        assert selection.load(c).path == c.tokenizer.path


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        tokenizers.read(str(tmp_path / 'absent.model'))


@pytest.mark.parametrize('content', [b'', b'no model', bytes(range(256))])
def test_file_of_another_kind_is_a_user_error(tmp_path, content, capfd):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(UserError, match='must be a SentencePiece model'):
        tokenizers.read(str(tmp_path / 'file'))
    assert capfd.readouterr().err == ''
