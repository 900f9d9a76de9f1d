"""Tests of tokenizers in the formats of Hugging Face."""

import json

import pytest
import tokenizers as library
from helpers import corpus
from helpers.tokenizers import encode_pair

from lightpaff_jax.data import tokenizers
from lightpaff_jax.errors import UserError

TEXTS = [
    'The quick brown fox jumps over the lazy dog.',
    'Caf\u00e9, caf\u00e9: 12 words!\n  Indented.',
] * 5
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[unused0]']


def write_wordpiece(folder, extra=()):
    """Writes a vocab.txt of lower-case words."""
    fast = library.Tokenizer(library.models.WordPiece(unk_token='[UNK]'))
    fast.normalizer = library.normalizers.BertNormalizer()
    fast.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=[*SPECIAL, *extra], show_progress=False
    )
    fast.train_from_iterator(TEXTS, trainer)
    folder.mkdir(exist_ok=True)
    words = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    (folder / 'vocab.txt').write_text(''.join(f'{word}\n' for word, _ in words))
    return folder


def write_byte_bpe(folder, names=('vocab.json', 'merges.txt'), special=('<|endoftext|>',)):
    """Writes a byte-level BPE in two files."""
    fast = library.Tokenizer(library.models.BPE())
    fast.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    fast.train_from_iterator(TEXTS, trainer)
    folder.mkdir(exist_ok=True)
    fast.model.save(str(folder))
    for source, name in zip(('vocab.json', 'merges.txt'), names, strict=True):
        (folder / source).rename(folder / name)
    return folder


def read(path, **options):
    return tokenizers.read(str(path), **options)


def ids(tokenizer):
    return (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.cls_id,
        tokenizer.sep_id,
        tokenizer.mask_id,
        tokenizer.model.ids.get('unk'),
    )


@pytest.fixture
def wordpiece(tmp_path):
    return write_wordpiece(tmp_path / 'wordpiece')


@pytest.fixture
def bpe(tmp_path):
    return write_byte_bpe(tmp_path / 'bpe')


def test_wordpiece_ids_equal_handwritten_ones(tmp_path):
    words = [*SPECIAL, 'the', 'fox', '##es', '.', 'caf', '##e']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    tokenizer = read(tmp_path)
    assert tokenizer.encode(['The foxes.', 'caf\u00e9 dog', '']) == [[6, 7, 8, 9], [10, 11, 1], []]
    assert tokenizer.vocab_size == 12
    assert ids(tokenizer) == (3, 0, 2, 3, 4, 1)
    assert tokenizer.special_ids == frozenset(range(6))
    assert tokenizer.word_starts.tolist() == [True] * 8 + [False, True, True, False]
    assert tokenizer.decode([2, 6, 7, 8, 3]) == 'the foxes'
    assert encode_pair(tokenizer, 'the fox', 'foxes.', 7) == (
        [2, 6, 7, 3, 7, 8, 3],
        [0] * 4 + [1] * 3,
    )


def test_byte_bpe_decodes_texts_and_marks_word_starts(bpe):
    tokenizer = read(bpe)
    assert [tokenizer.decode(i) for i in tokenizer.encode(TEXTS)] == TEXTS
    end = tokenizer.encode(['<|endoftext|>'])[0]
    assert [tokenizer.eos_id] == end
    assert ids(tokenizer) == (*end, *end, None, None, None, *end)
    assert tokenizer.special_ids == frozenset(end)
    space, letter, newline = (tokenizer.encode([text])[0][0] for text in (' ', 'x', '\n'))
    assert tokenizer.word_starts[[space, letter, newline, *end]].tolist() == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize('text', ['FOX', 'Lazy', 'fox'])
def test_caller_decides_lower_case_unless_a_file_does(wordpiece, text):
    lower, cased = read(wordpiece), read(wordpiece, lowercase=False)
    assert lower.encode([text]) == lower.encode([text.lower()])
    assert (cased.encode([text]) == cased.encode([text.lower()])) == (text == text.lower())
    assert lower.fingerprint != cased.fingerprint
    (wordpiece / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert read(wordpiece).fingerprint == cased.fingerprint
    assert read(wordpiece / 'vocab.txt').fingerprint == cased.fingerprint


@pytest.mark.parametrize('extra', [(), ('<s>',)])
def test_saved_wordpiece_is_the_same_tokenizer(tmp_path, extra):
    tokenizer = read(write_wordpiece(tmp_path / 'a', extra))
    tokenizer.save(tmp_path / 'b')
    again = read(tmp_path / 'b')
    assert {file.name for file in (tmp_path / 'b').iterdir()} == {
        'tokenizer.json',
        'tokenizer_config.json',
    }
    assert again.fingerprint == tokenizer.fingerprint
    assert ids(again) == ids(tokenizer)
    assert again.special_ids == tokenizer.special_ids
    assert (again.word_starts == tokenizer.word_starts).all()
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_saved_wordpiece_adds_the_special_tokens_of_bert(wordpiece, tmp_path):
    tokenizer = read(wordpiece)
    tokenizer.save(tmp_path / 'saved')
    fast = library.Tokenizer.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
    for second in ('lazy dog', ''):
        encoding = fast.encode('The fox', *([second] if second else []))
        assert (encoding.ids, encoding.type_ids) == encode_pair(tokenizer, 'The fox', second, 100)


def test_all_files_of_a_byte_bpe_have_one_fingerprint(bpe, tmp_path):
    other = write_byte_bpe(tmp_path / 'other', ('encoder.json', 'vocab.bpe'))
    for name, old in (('encoder.json', 'vocab.json'), ('vocab.bpe', 'merges.txt')):
        (other / name).write_bytes((bpe / old).read_bytes())
    read(bpe).save(tmp_path / 'saved')
    files = [bpe, bpe / 'vocab.json', bpe / 'merges.txt', other, other / 'encoder.json']
    files += [other / 'vocab.bpe', tmp_path / 'saved', tmp_path / 'saved' / 'tokenizer.json']
    assert len({read(file).fingerprint for file in files}) == 1


def test_bart_vocabulary_has_its_special_tokens(tmp_path):
    special = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
    tokenizer = read(write_byte_bpe(tmp_path / 'bart', special=special))
    assert ids(tokenizer) == (2, 1, 0, 2, 4, 3)
    assert tokenizer.encode(['a <mask>']) == [[*tokenizer.encode(['a'])[0], 4]]
    tokenizer.save(tmp_path / 'saved')
    assert ids(read(tmp_path / 'saved')) == ids(tokenizer)
    assert read(tmp_path / 'saved').fingerprint == tokenizer.fingerprint
    fast = library.Tokenizer.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
    assert fast.encode('a').ids == [0, *tokenizer.encode(['a'])[0], 2]
    described = json.loads((tmp_path / 'saved' / 'tokenizer_config.json').read_text())
    assert described['model_input_names'] == ['input_ids', 'attention_mask']


def test_fingerprint_ignores_settings_without_effect_on_ids(wordpiece, tmp_path):
    tokenizer = read(wordpiece)
    tokenizer.save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    fast = library.Tokenizer.from_file(str(file))
    fast.enable_truncation(4)
    fast.enable_padding(length=50)
    fast.decoder = library.decoders.Fuse()
    fast.post_processor = library.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    fast.save(str(file))
    assert read(file).fingerprint == tokenizer.fingerprint
    assert read(file).encode(TEXTS) == tokenizer.encode(TEXTS)


def test_dropout_of_a_tokenizer_json_is_off(bpe, tmp_path):
    read(bpe).save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    whole = json.loads(file.read_text())
    whole['model']['dropout'] = 0.5
    file.write_text(json.dumps(whole))
    assert read(file).fingerprint == read(bpe).fingerprint
    assert read(file).encode(TEXTS * 10) == read(bpe).encode(TEXTS * 10)


@pytest.mark.parametrize('change', ['normalizer', 'model', 'added'])
def test_fingerprint_depends_on_all_that_decides_ids(wordpiece, tmp_path, change):
    tokenizer = read(wordpiece)
    tokenizer.save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    whole = json.loads(file.read_text())
    if change == 'normalizer':
        whole['normalizer']['handle_chinese_chars'] = False
    if change == 'model':
        whole['model']['vocab']['the'], whole['model']['vocab']['.'] = (
            whole['model']['vocab']['.'],
            whole['model']['vocab']['the'],
        )
    if change == 'added':
        whole['added_tokens'][4]['rstrip'] = True
    file.write_text(json.dumps(whole))
    assert read(file).fingerprint != tokenizer.fingerprint


def test_declared_special_tokens_precede_usual_spellings(wordpiece):
    usual = read(wordpiece)
    words = (wordpiece / 'vocab.txt').read_text().split('\n')
    maps = {'pad_token': {'content': '[unused0]'}, 'mask_token': 'the'}  # precede the settings
    (wordpiece / 'special_tokens_map.json').write_text(json.dumps(maps))
    (wordpiece / 'tokenizer_config.json').write_text(
        '{"mask_token": "[UNK]", "sep_token": null, "cls_token": "absent", "add_bos_token": true}'
    )
    tokenizer = read(wordpiece)
    assert ids(tokenizer) == (
        usual.sep_id,
        words.index('[unused0]'),
        usual.cls_id,
        usual.sep_id,
        words.index('the'),
        words.index('[UNK]'),
    )


def test_files_of_a_folder_have_a_fixed_precedence(tmp_path):
    folder = tmp_path / 'all'
    write_wordpiece(folder)
    vocab = read(folder).fingerprint
    write_byte_bpe(folder, ('encoder.json', 'vocab.bpe'))
    byte_pairs = read(folder).fingerprint
    assert byte_pairs != vocab
    (folder / 'vocab.json').write_text('not read without its merges')
    assert read(folder).fingerprint == byte_pairs
    (folder / 'vocab.json').unlink()
    read(folder / 'vocab.txt').save(folder)
    assert read(folder).fingerprint == vocab
    tokenizers.train(TEXTS, 310, folder / 'tokenizer.model')
    with pytest.raises(UserError, match=r'tokenizer\.json: has 90 tokens, not the 310 pieces of'):
        read(folder)
    (folder / 'tokenizer.json').unlink()
    assert read(folder).fingerprint == read(folder / 'tokenizer.model').fingerprint != vocab


def test_only_a_single_model_of_another_name_is_read(tmp_path):
    tokenizers.train(TEXTS, 310, tmp_path / 'spiece.model')
    assert read(tmp_path).vocab_size == 310
    tokenizers.train(TEXTS, 310, tmp_path / 'second.model')
    with pytest.raises(UserError, match=f'config.tokenizer.path = {tmp_path}: must hold '):
        read(tmp_path)


@pytest.mark.parametrize(
    ('files', 'name', 'message'),
    [
        ({}, '', r'must hold tokenizer\.model, tokenizer\.json'),
        ({'tokenizer.json': 'no json'}, '', r'tokenizer\.json: must be JSON: '),
        ({'tokenizer.json': '{}'}, 'tokenizer.json', r'must be a tokenizer\.json: '),
        ({'vocab.txt': ''}, '', r'vocab\.txt: must be a vocab\.txt: no line is \[UNK\]'),
        ({'vocab.txt': b'\xff[UNK]'}, 'vocab.txt', r'must be a vocab\.txt: '),
        (
            {'vocab.txt': '[UNK]\nword\n'},
            '',
            r'must have a token that ends a text: one of \[SEP\]',
        ),
        ({'vocab.json': '{}'}, 'vocab.json', r'must have merges\.txt next to vocab\.json'),
        ({'vocab.bpe': ''}, 'vocab.bpe', r'must have encoder\.json next to vocab\.bpe'),
        ({'vocab.json': '[', 'merges.txt': ''}, '', 'vocab.json: must be JSON: '),
        ({'vocab.json': '{"a": 0}', 'merges.txt': 'b c\n'}, '', 'must be a byte-level BPE: '),
        ({'vocab.json': '{"a": 0}', 'merges.txt': ''}, '', 'must have a token that ends a text'),
        ({'vocab.txt': '[UNK]', 'tokenizer_config.json': '{'}, '', 'config.json: must be '),
        ({'vocab.txt': '[UNK]', 'tokenizer_config.json': '3'}, '', 'config.json: must be '),
        ({'tokenizer.model': 'text'}, '', 'must be a SentencePiece model'),
    ],
)
def test_missing_or_malformed_file_is_one_line(tmp_path, capfd, files, name, message):
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = tmp_path / name if name else tmp_path
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    text = str(raised.value)
    assert text.startswith(f'config.tokenizer.path = {path}: ')
    assert '\n' not in text
    assert capfd.readouterr() == ('', '')


def test_fingerprint_depends_on_strip_accents(tmp_path):
    """If `strip_accents` of a WordPiece is null, `lowercase` decides; if it is false, it does not."""
    fingerprints, ids = set(), set()
    for strip in (None, False):
        folder = tmp_path / str(strip)
        folder.mkdir()
        tokenizer = corpus.wordpiece_tokenizer(folder)
        tokenizer.save(folder)
        whole = json.loads((folder / 'tokenizer.json').read_text())
        whole['normalizer']['strip_accents'] = strip
        (folder / 'tokenizer.json').write_text(json.dumps(whole))
        changed = read(folder / 'tokenizer.json')
        fingerprints.add(changed.fingerprint)
        ids.add(tuple(changed.encode(['caf\u00e9'])[0]))
    assert len(fingerprints) == len(ids) == 2


@pytest.mark.parametrize('file_name', ['added_tokens.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('kind', ['words', 'bytes'])
def test_added_tokens_extend_the_vocabulary(tmp_path, file_name, kind):
    folder = (write_wordpiece if kind == 'words' else write_byte_bpe)(tmp_path / 'a')
    size = read(folder).vocab_size
    added = {'[NEW1]': size, '[NEW2]': size + 1}
    text = json.dumps(added)
    if file_name == 'tokenizer_config.json':
        decoder = {str(i): {'content': name, 'special': True} for name, i in added.items()}
        text = json.dumps({'added_tokens_decoder': decoder})
    (folder / file_name).write_text(text)
    tokenizer = read(folder)
    assert tokenizer.vocab_size == size + 2
    assert [i for i in tokenizer.encode(['a [NEW2] b'])[0] if i >= size] == [size + 1]
    (folder / file_name).write_text(text.replace(str(size + 1), str(size + 7)))
    with pytest.raises(UserError, match=rf'has id {size + 7}, must have {size + 1}, the next'):
        read(folder)


@pytest.mark.parametrize(
    ('text', 'rule'),
    [
        ('["x"]', 'must be an object'),
        ('{', 'must be JSON: '),
        ('{"x": "y"}', 'must name added tokens: '),
    ],
)
def test_malformed_added_tokens_are_an_error(bpe, text, rule):
    (bpe / 'added_tokens.json').write_text(text)
    with pytest.raises(UserError, match=rf'added_tokens\.json: {rule}'):
        read(bpe)


def test_vocabulary_without_cls_is_not_saved_for_bert(bpe, tmp_path):
    with pytest.raises(UserError, match=r'a BERT needs a tokenizer with \[CLS\]'):
        tokenizers.read(str(bpe)).save(tmp_path / 'saved', 'bert')
