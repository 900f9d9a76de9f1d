"""Claims about vocabularies in Hugging Face's formats."""

import json

import pytest
import tokenizers as library
from helpers import corpus

from lightpaff_jax.data import tokenizers
from lightpaff_jax.errors import UserError

TEXTS = [
    'The quick brown fox jumps over the lazy dog.',
    'Caf\u00e9, caf\u00e9: 12 words!\n  Indented.',
] * 5
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[unused0]']


def write_wordpiece(folder, extra=()):
    """A vocab.txt of lower-case words."""
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


def write_bytes_bpe(folder, names=('vocab.json', 'merges.txt'), special=('<|endoftext|>',)):
    """A byte-level BPE in two files."""
    fast = library.Tokenizer(library.models.BPE())
    fast.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    fast.train_from_iterator(TEXTS, trainer)
    folder.mkdir(exist_ok=True)
    fast.model.save(str(folder))
    for made, name in zip(('vocab.json', 'merges.txt'), names, strict=True):
        (folder / made).rename(folder / name)
    return folder


def read(path, **options):
    return tokenizers.read(str(path), **options)


def ids(one):
    return (one.eos_id, one.pad_id, one.cls_id, one.sep_id, one.mask_id, one.unk_id)


@pytest.fixture
def wordpiece(tmp_path):
    return write_wordpiece(tmp_path / 'wordpiece')


@pytest.fixture
def bpe(tmp_path):
    return write_bytes_bpe(tmp_path / 'bpe')


def test_words_of_a_vocab_file_by_hand(tmp_path):
    words = [*SPECIAL, 'the', 'fox', '##es', '.', 'caf', '##e']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    one = read(tmp_path)
    assert one.encode(['The foxes.', 'caf\u00e9 dog', '']) == [[6, 7, 8, 9], [10, 11, 1], []]
    assert one.vocab_size == 12
    assert ids(one) == (3, 0, 2, 3, 4, 1)
    assert one.special_ids == frozenset(range(6))
    assert one.word_starts.tolist() == [True] * 8 + [False, True, True, False]
    assert one.decode([2, 6, 7, 8, 3]) == 'the foxes'
    assert one.encode_pair('the fox', 'foxes.', 7) == ([2, 6, 7, 3, 7, 8, 3], [0] * 4 + [1] * 3)


def test_bytes_by_hand(bpe):
    one = read(bpe)
    assert [one.decode(i) for i in one.encode(TEXTS)] == TEXTS
    end = one.encode(['<|endoftext|>'])[0]
    assert [one.eos_id] == end
    assert ids(one) == (*end, *end, None, None, None, None)
    assert one.special_ids == frozenset(end)
    space, letter, newline = (one.encode([text])[0][0] for text in (' ', 'x', '\n'))
    assert one.word_starts[[space, letter, newline, *end]].tolist() == [True, False, True, True]


@pytest.mark.parametrize('text', ['FOX', 'Lazy', 'fox'])
def test_lower_case_is_what_the_caller_says_where_no_file_does(wordpiece, text):
    lower, cased = read(wordpiece), read(wordpiece, lowercase=False)
    assert lower.encode([text]) == lower.encode([text.lower()])
    assert (cased.encode([text]) == cased.encode([text.lower()])) == (text == text.lower())
    assert lower.fingerprint != cased.fingerprint
    (wordpiece / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert read(wordpiece).fingerprint == cased.fingerprint
    assert read(wordpiece / 'vocab.txt').fingerprint == cased.fingerprint


@pytest.mark.parametrize('extra', [(), ('<s>',)])
def test_a_saved_wordpiece_is_the_same_tokenizer(tmp_path, extra):
    one = read(write_wordpiece(tmp_path / 'a', extra))
    one.save(tmp_path / 'b')
    again = read(tmp_path / 'b')
    assert {file.name for file in (tmp_path / 'b').iterdir()} == {
        'tokenizer.json', 'tokenizer_config.json',
    }  # fmt: skip
    assert again.fingerprint == one.fingerprint
    assert ids(again) == ids(one)
    assert again.special_ids == one.special_ids
    assert (again.word_starts == one.word_starts).all()
    assert again.encode(TEXTS) == one.encode(TEXTS)


def test_a_saved_wordpiece_adds_what_a_pair_of_bert_has(wordpiece, tmp_path):
    one = read(wordpiece)
    one.save(tmp_path / 'saved')
    fast = library.Tokenizer.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
    for second in ('lazy dog', ''):
        found = fast.encode('The fox', *([second] if second else []))
        assert (found.ids, found.type_ids) == one.encode_pair('The fox', second, 100)


def test_both_namings_of_byte_bpe_and_its_tokenizer_json_are_the_same(bpe, tmp_path):
    other = write_bytes_bpe(tmp_path / 'other', ('encoder.json', 'vocab.bpe'))
    for name, old in (('encoder.json', 'vocab.json'), ('vocab.bpe', 'merges.txt')):
        (other / name).write_bytes((bpe / old).read_bytes())
    read(bpe).save(tmp_path / 'saved')
    files = [bpe, bpe / 'vocab.json', bpe / 'merges.txt', other, other / 'encoder.json']
    files += [other / 'vocab.bpe', tmp_path / 'saved', tmp_path / 'saved' / 'tokenizer.json']
    assert len({read(file).fingerprint for file in files}) == 1


def test_a_vocabulary_of_bart_has_its_special_tokens(tmp_path):
    special = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
    one = read(write_bytes_bpe(tmp_path / 'bart', special=special))
    assert ids(one) == (2, 1, 0, 2, 4, 3)
    assert one.encode(['a <mask>']) == [[*one.encode(['a'])[0], 4]]
    one.save(tmp_path / 'saved')
    assert ids(read(tmp_path / 'saved')) == ids(one)
    assert read(tmp_path / 'saved').fingerprint == one.fingerprint
    fast = library.Tokenizer.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
    assert fast.encode('a').ids == [0, *one.encode(['a'])[0], 2]
    described = json.loads((tmp_path / 'saved' / 'tokenizer_config.json').read_text())
    assert described['model_input_names'] == ['input_ids', 'attention_mask']


def test_what_a_tokenizer_json_adds_cuts_and_pads_changes_neither_ids_nor_hash(wordpiece, tmp_path):
    one = read(wordpiece)
    one.save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    fast = library.Tokenizer.from_file(str(file))
    fast.enable_truncation(4)
    fast.enable_padding(length=50)
    fast.decoder = library.decoders.Fuse()
    fast.post_processor = library.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    fast.save(str(file))
    assert read(file).fingerprint == one.fingerprint
    assert read(file).encode(TEXTS) == one.encode(TEXTS)


def test_dropout_of_a_tokenizer_json_is_off(bpe, tmp_path):
    read(bpe).save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    whole = json.loads(file.read_text())
    whole['model']['dropout'] = 0.5
    file.write_text(json.dumps(whole))
    assert read(file).fingerprint == read(bpe).fingerprint
    assert read(file).encode(TEXTS * 10) == read(bpe).encode(TEXTS * 10)


@pytest.mark.parametrize('change', ['normalizer', 'model', 'added'])
def test_what_changes_ids_changes_the_hash(wordpiece, tmp_path, change):
    one = read(wordpiece)
    one.save(tmp_path / 'saved')
    file = tmp_path / 'saved' / 'tokenizer.json'
    whole = json.loads(file.read_text())
    if change == 'normalizer':
        whole['normalizer']['handle_chinese_chars'] = False
    if change == 'model':
        whole['model']['vocab']['the'], whole['model']['vocab']['.'] = (
            whole['model']['vocab']['.'], whole['model']['vocab']['the'],
        )  # fmt: skip
    if change == 'added':
        whole['added_tokens'] = [token for token in whole['added_tokens'] if token['id'] != 4]
    file.write_text(json.dumps(whole))
    assert read(file).fingerprint != one.fingerprint


def test_declared_special_tokens_go_before_usual_names(wordpiece):
    usual = read(wordpiece)
    words = (wordpiece / 'vocab.txt').read_text().split('\n')
    maps = {'pad_token': {'content': '[unused0]'}, 'mask_token': 'the'}
    (wordpiece / 'special_tokens_map.json').write_text(json.dumps(maps))
    (wordpiece / 'tokenizer_config.json').write_text(
        '{"mask_token": "[UNK]", "sep_token": null, "cls_token": "absent", "add_bos_token": true}'
    )
    one = read(wordpiece)
    assert ids(one) == (usual.sep_id, words.index('[unused0]'), usual.cls_id, usual.sep_id,
                        words.index('[UNK]'), words.index('[UNK]'))  # fmt: skip


def test_a_folder_is_read_in_a_fixed_order(tmp_path):
    folder = tmp_path / 'all'
    write_wordpiece(folder)
    vocab = read(folder).fingerprint
    write_bytes_bpe(folder, ('encoder.json', 'vocab.bpe'))
    byte_pairs = read(folder).fingerprint
    assert byte_pairs != vocab
    (folder / 'vocab.json').write_text('not read without its merges')
    assert read(folder).fingerprint == byte_pairs
    (folder / 'vocab.json').unlink()
    read(folder / 'vocab.txt').save(folder)
    assert read(folder).fingerprint == vocab
    tokenizers.train(TEXTS, 310, folder / 'tokenizer.model')
    assert read(folder).fingerprint == read(folder / 'tokenizer.model').fingerprint != vocab


def test_one_model_of_another_name_is_found_and_two_are_not(tmp_path):
    tokenizers.train(TEXTS, 310, tmp_path / 'spiece.model')
    assert read(tmp_path).vocab_size == 310
    tokenizers.train(TEXTS, 310, tmp_path / 'second.model')
    with pytest.raises(UserError, match=f'config.tokenizer.path = {tmp_path}: must hold '):
        read(tmp_path)


@pytest.mark.parametrize(
    ('files', 'name', 'message'),
    [
        ({}, '', r'must hold tokenizer\.model, tokenizer\.json'),
        ({'tokenizer.json': 'no json'}, '', r'tokenizer\.json: must be a tokenizer\.json: '),
        ({'tokenizer.json': '{}'}, 'tokenizer.json', r'must be a tokenizer\.json: '),
        ({'vocab.txt': ''}, '', r'vocab\.txt: must be a vocab\.txt: no line is \[UNK\]'),
        ({'vocab.txt': b'\xff[UNK]'}, 'vocab.txt', r'must be a vocab\.txt: '),
        ({'vocab.txt': '[UNK]\nword\n'}, '', r'must have a token that ends a text: one of \[SEP\]'),
        ({'vocab.json': '{}'}, 'vocab.json', r'must have merges\.txt next to vocab\.json'),
        ({'vocab.bpe': ''}, 'vocab.bpe', r'must have encoder\.json next to vocab\.bpe'),
        ({'vocab.json': '[', 'merges.txt': ''}, '', 'must be a byte-level BPE: '),
        ({'vocab.json': '{"a": 0}', 'merges.txt': 'b c\n'}, '', 'must be a byte-level BPE: '),
        ({'vocab.json': '{"a": 0}', 'merges.txt': ''}, '', 'must have a token that ends a text'),
        ({'vocab.txt': '[UNK]', 'tokenizer_config.json': '{'}, '', 'config.json: must be a JSON'),
        ({'vocab.txt': '[UNK]', 'tokenizer_config.json': '3'}, '', 'config.json: must be a JSON'),
        ({'tokenizer.model': 'text'}, '', 'must be a SentencePiece model'),
    ],
)  # fmt: skip
def test_what_is_missing_or_malformed_is_one_line_that_names_it(
    tmp_path, capfd, files, name, message
):
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = tmp_path / name if name else tmp_path
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    text = str(raised.value)
    assert text.startswith(f'config.tokenizer.path = {path}: ')
    assert '\n' not in text
    assert capfd.readouterr() == ('', '')


def test_accents_that_are_stripped_or_kept_make_another_identity(tmp_path):
    """Of a WordPiece, `strip_accents` null follows `lowercase`, and false does not."""
    hashes, ids = set(), set()
    for strip in (None, False):
        folder = tmp_path / str(strip)
        folder.mkdir()
        one = corpus.wordpiece_tokenizer(folder)
        one.save(folder)
        whole = json.loads((folder / 'tokenizer.json').read_text())
        whole['normalizer']['strip_accents'] = strip
        (folder / 'tokenizer.json').write_text(json.dumps(whole))
        found = read(folder / 'tokenizer.json')
        hashes.add(found.fingerprint)
        ids.add(tuple(found.encode(['caf\u00e9'])[0]))
    assert len(hashes) == len(ids) == 2


@pytest.mark.parametrize('where', ['added_tokens.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('kind', ['words', 'bytes'])
def test_tokens_added_behind_the_vocabulary_are_read(tmp_path, where, kind):
    folder = (write_wordpiece if kind == 'words' else write_bytes_bpe)(tmp_path / 'a')
    size = read(folder).vocab_size
    added = {'[NEW1]': size, '[NEW2]': size + 1}
    text = json.dumps(added)
    if where == 'tokenizer_config.json':
        decoder = {str(i): {'content': name, 'special': True} for name, i in added.items()}
        text = json.dumps({'added_tokens_decoder': decoder})
    (folder / where).write_text(text)
    one = read(folder)
    assert one.vocab_size == size + 2
    assert [i for i in one.encode(['a [NEW2] b'])[0] if i >= size] == [size + 1]
    (folder / where).write_text(text.replace(str(size + 1), str(size + 7)))
    with pytest.raises(UserError, match=rf'has id {size + 7}, must have {size + 1}, the next'):
        read(folder)


@pytest.mark.parametrize(
    ('text', 'rule'),
    [
        ('["x"]', 'must be a JSON object, is '),
        ('{', 'must be a JSON object: '),
        ('{"x": "y"}', 'must name added tokens: '),
    ],
)
def test_malformed_added_tokens_are_named(bpe, text, rule):
    (bpe / 'added_tokens.json').write_text(text)
    with pytest.raises(UserError, match=rf'added_tokens\.json: {rule}'):
        read(bpe)


def test_a_vocabulary_without_the_tokens_of_a_pair_is_not_saved_for_a_bert(bpe, tmp_path):
    with pytest.raises(UserError, match=r'a BERT needs a tokenizer with \[CLS\]'):
        tokenizers.read(str(bpe)).save(tmp_path / 'saved', 'bert')
