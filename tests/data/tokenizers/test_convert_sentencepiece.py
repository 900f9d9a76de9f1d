"""Tests of converting SentencePiece models to tokenizer.json: equal ids, or an error."""

import io
import itertools
import random

import pytest
import sentencepiece
import tokenizers as library
from helpers import corpus
from helpers.tokenizers import encode_pair
from sentencepiece import sentencepiece_model_pb2 as messages

from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.tokenizers import convert_sentencepiece, selection
from lightpaff_jax.errors import UserError

TEXTS = [
    'The quick brown fox jumps over the lazy dog; it was, as they say, no great matter.',
    'Caf\u00e9 \ufb01nd \u2460 and \u4f60\u597d: <b>tags</b> [x] == [y] -------- ........ aaaaaaaa',
    'def train(self, text):    # spaces     and more',
] * 20
SYMBOLS = ['[MASK]', '[CLS]']
MODELS = list(
    itertools.product(('bpe', 'unigram'), ('nmt_nfkc', 'identity'), (True, False), ([], SYMBOLS))
)


def hard_texts():
    """Returns texts of special tokens, repetitions, outer spaces and arbitrary characters."""
    rng = random.Random(0)
    characters = [
        *map(chr, range(256)),
        '\u2581',
        '\u2585',
        '\ue000',
        '\U0010ffff',
        *'   aabb<<>>/[]',
    ]
    parts = [
        *SYMBOLS,
        '</s>',
        '<pad>',
        '<unk>',
        '<s>',
        '<0x41>',
        '<0x0A>',
        ' ',
        '  ',
        'a',
        'the',
        ' the',
        '<',
        '>',
        's',
        '[',
        '\u2581',
        '\n',
        '-',
        '----',
        '.',
        '=',
    ]
    texts = [''.join(rng.choices(characters, k=rng.randrange(30))) for _ in range(2000)]
    texts += [''.join(rng.choices(parts, k=rng.randrange(8))) for _ in range(2000)]
    texts += [part * n for part in parts for n in range(20)]
    return texts + TEXTS[:3] + ['', *parts]


def differing_texts(tokenizer, folder):
    """Returns the texts that the saved tokenizer.json encodes differently.

    For a unigram model, texts with the same ids in another order do not count: SentencePiece adds
    scores in float32, `tokenizers` in float64, and rounding decides between `---- -` and `- ----`.
    """
    tokenizer.save(folder)
    fast = library.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    proto = messages.ModelProto.FromString((folder / 'tokenizer.model').read_bytes())
    bpe = proto.trainer_spec.model_type == 2
    texts = hard_texts()
    encodings = fast.encode_batch(texts, add_special_tokens=False)
    expected = [encoding.ids for encoding in encodings]
    pairs = list(zip(texts, tokenizer.encode(texts), expected, strict=True))
    assert sum(ids != reference_ids for _, ids, reference_ids in pairs) < len(texts) / 100
    return [
        text
        for text, ids, reference_ids in pairs
        if (ids != reference_ids if bpe else sorted(ids) != sorted(reference_ids))
    ]


def train_other(path, kind='bpe', rule='identity', fallback=False, symbols=(), **options):
    """Trains a model with usual options: words begin with a space, </s> has id 2."""
    model = io.BytesIO()
    options = {'vocab_size': 400 if fallback else 130, 'hard_vocab_limit': False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type=kind,
        minloglevel=2,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        user_defined_symbols=list(symbols),
        remove_extra_whitespaces=rule != 'identity',
        num_threads=1,
        **options,
    )
    path.write_bytes(model.getvalue())
    return tokenizers.read(str(path))


@pytest.mark.parametrize('family', tokenizers.SYMBOLS)
def test_trained_vocabulary_is_exported_exactly(data_cache, tmp_path, family):
    c = corpus.tiny_config(data_cache)
    c.student.family = family
    assert differing_texts(selection.load(c), tmp_path) == []


@pytest.mark.parametrize(('kind', 'rule', 'fallback', 'symbols'), MODELS)
def test_other_model_is_exported_exactly(tmp_path, kind, rule, fallback, symbols):
    tokenizer = train_other(tmp_path / 'other.model', kind, rule, fallback, symbols)
    assert differing_texts(tokenizer, tmp_path / 'saved') == []


@pytest.mark.parametrize(
    'options',
    [
        {'add_dummy_prefix': False},
        {'control_symbols': ['<sep>', '<cls>']},
        {'split_by_whitespace': False},
        {'pad_id': 0, 'unk_id': 3, 'eos_id': 1, 'bos_id': -1},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_options_of_another_model_are_exported(tmp_path, kind, options):
    tokenizer = train_other(tmp_path / 'other.model', kind, 'nmt_nfkc', True, SYMBOLS, **options)
    assert differing_texts(tokenizer, tmp_path / 'saved') == []


def test_merges_of_other_parts_give_other_ids(data_cache, tmp_path, monkeypatch):
    """Shows that the tests above can detect a wrong list of merges."""
    tokenizer = selection.load(corpus.tiny_config(data_cache))

    def other_parts(piece, scores):
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        return min(ways, key=lambda way: sum(part not in scores and len(part) > 1 for part in way))

    monkeypatch.setattr(convert_sentencepiece, '_last_merge', other_parts)
    with pytest.raises((AssertionError, UserError)):
        assert differing_texts(tokenizer, tmp_path) == []


def test_exported_tokenizer_adds_special_tokens(tmp_path):
    for name, symbols in (('plain', ()), ('bert', ('[CLS]', '[SEP]', '[MASK]'))):
        tokenizers.train(TEXTS, 350, tmp_path / name, symbols)
        tokenizer = tokenizers.read(str(tmp_path / name))
        tokenizer.save(tmp_path / f'{name}.saved')
        fast = library.Tokenizer.from_file(str(tmp_path / f'{name}.saved' / 'tokenizer.json'))
        a, b = tokenizer.encode(['the fox', 'dog'])
        encoding = fast.encode('the fox', 'dog')
        if symbols:
            assert (encoding.ids, encoding.type_ids) == encode_pair(
                tokenizer, 'the fox', 'dog', 100
            )
        else:
            assert encoding.ids == [*a, 1, *b, 1]
        assert fast.decode(a) == 'the fox'


def test_exported_tokenizer_json_has_the_special_ids(tmp_path):
    tokenizers.train(TEXTS, 350, tmp_path / 'model', ('[CLS]', '[SEP]', '[MASK]'))
    tokenizer = tokenizers.read(str(tmp_path / 'model'))
    tokenizer.save(tmp_path / 'saved')
    other = tokenizers.read(str(tmp_path / 'saved' / 'tokenizer.json'))
    for name in ('vocab_size', 'eos_id', 'pad_id', 'cls_id', 'sep_id', 'mask_id', 'special_ids'):
        assert getattr(other, name) == getattr(tokenizer, name), name
    assert (other.word_starts == tokenizer.word_starts).all()


def unused(proto):
    proto.pieces[300].type = 5


def equal_scores(proto):
    for piece in proto.pieces:
        if len(piece.piece) > 1 and piece.type == 1:
            piece.score = -1.0


def missing_character(proto):
    single = next(p for p in proto.pieces if p.piece == 'e' and p.type == 1)
    single.piece = '\ue123'


def other_type(proto):
    proto.trainer_spec.model_type = 4


def suffix(proto):
    proto.trainer_spec.treat_whitespace_as_suffix = True


def unescaped(proto):
    proto.normalizer_spec.escape_whitespaces = False


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (unused, 'has unused pieces, which a tokenizer.json cannot express'),
        (equal_scores, 'has pieces of equal score'),
        (missing_character, "but no piece 'e'"),
        (other_type, 'has model type 4'),
        (suffix, 'has treat_whitespace_as_suffix'),
        (unescaped, 'has spaces that are not escaped'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_model_without_an_exact_export_writes_no_file(tmp_path, change, message):
    tokenizers.train(TEXTS, 350, tmp_path / 'model')
    proto = messages.ModelProto.FromString((tmp_path / 'model').read_bytes())
    change(proto)
    (tmp_path / 'changed').write_bytes(proto.SerializeToString())
    tokenizer = tokenizers.read(str(tmp_path / 'changed'))
    with pytest.raises(UserError, match=message) as raised:
        tokenizer.save(tmp_path / 'saved')
    assert str(raised.value).startswith(f'config.tokenizer.path = {tmp_path / "changed"}: ')
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'saved').exists()


def test_normalization_that_changes_a_symbol_is_an_error(tmp_path):
    tokenizer = train_other(tmp_path / 'other.model', 'bpe', 'nmt_nfkc_cf', True, SYMBOLS)
    with pytest.raises(UserError, match=r"changes its symbol '\[MASK\]'"):
        tokenizer.save(tmp_path / 'saved')


def test_control_piece_of_one_character_is_an_error(tmp_path):
    tokenizer = train_other(tmp_path / 'other.model', 'bpe', control_symbols=['\u00a7'])
    with pytest.raises(UserError, match='has a control piece of one character'):
        tokenizer.save(tmp_path / 'saved')


def test_pieces_that_spell_a_control_piece_are_an_error(tmp_path):
    tokenizer = train_other(tmp_path / 'other.model', 'unigram', control_symbols=['--'])
    with pytest.raises(UserError, match="has pieces that spell '--' in a text"):
        tokenizer.save(tmp_path / 'saved')
