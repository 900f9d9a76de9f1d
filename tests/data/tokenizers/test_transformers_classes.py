"""Folders with odd settings: ids, special tokens and decoded texts equal those of AutoTokenizer."""

import json
import pathlib
import sys

import pytest
import tokenizers as library

from lightpaff_jax import config
from lightpaff_jax.data import objectives, prepare, tokenizers
from lightpaff_jax.errors import UserError

WORDS = ['a', 'cat', 'Cat', 'café', 'cafe', 'the', 'The', 'mat', '!', '.', 'now', '今', '日']
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
BERT_VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS, *LETTERS[1:]]
BERT_VOCABULARY += [f'##{letter}' for letter in LETTERS]
SPECIAL = {'gpt2': ['<|endoftext|>'], 'bart': ['<s>', '<pad>', '</s>', '<unk>', '<mask>']}
TEXTS = [
    'The Caf\u00e9 cat, now!',
    '\u4eca\u65e5 the mat .',
    'a  <user> cat [NEW]cat',
    'x <mask> y [MASK] z',
    ' <s> the </s>',
]
LSTRIP = {'__type': 'AddedToken', 'content': '<user>', 'lstrip': True, 'normalized': False}
ADDED = {'content': '[NEW]', 'lstrip': True, 'rstrip': True, 'normalized': False, 'special': False}
Folder = dict[str, dict]


def size(family: str) -> int:
    return len(BERT_VOCABULARY) if family == 'bert' else 300


def write(folder: pathlib.Path, family: str, files: Folder, separator: str = '\n') -> None:
    """Writes a vocabulary, config.json and the given JSON files; 'tokenizer' changes tokenizer.json."""
    folder.mkdir()
    if family == 'bert':
        lines = [f'{word}{separator}' for word in BERT_VOCABULARY]
        (folder / 'vocab.txt').write_bytes(''.join(lines).encode())
    else:
        bpe = library.ByteLevelBPETokenizer()
        texts, special = [' '.join(WORDS)] * 9, SPECIAL[family]
        bpe.train_from_iterator(
            texts, size(family), min_frequency=1, special_tokens=special, show_progress=False
        )
        bpe.save_model(str(folder))
        missing = size(family) - bpe.get_vocab_size()
        vocabulary = json.loads((folder / 'vocab.json').read_text())
        vocabulary |= {f'<extra{i}>': len(vocabulary) + i for i in range(missing)}
        (folder / 'vocab.json').write_text(json.dumps(vocabulary))
    (folder / 'config.json').write_text(json.dumps({'model_type': family}))
    for name, values in files.items():
        (folder / f'{name}.json').write_text(json.dumps(values))


def fast(family: str, **settings) -> Folder:
    """Returns a tokenizer.json that differs from what the class of the family makes."""
    if family == 'bert':
        vocabulary = {word: i for i, word in enumerate(BERT_VOCABULARY)}
        model = library.models.WordPiece(vocabulary, unk_token='[UNK]')
        made = library.Tokenizer(model)
        made.normalizer = library.normalizers.BertNormalizer(lowercase=False)
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    else:
        vocabulary = {token: i for i, token in enumerate(SPECIAL[family])}
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        vocabulary |= {token: i for i, token in enumerate(alphabet, len(vocabulary))}
        made = library.Tokenizer(library.models.BPE(vocabulary, []))
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = library.decoders.ByteLevel()
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.add_tokens([library.AddedToken('[NEW]', rstrip=True), '<user>'])
    return {'tokenizer': json.loads(made.to_str()), 'tokenizer_config': settings}


CASES: dict[str, tuple[str, Folder]] = {
    'lower case by default': ('bert', {}),
    'cased': ('bert', {'tokenizer_config': {'do_lower_case': False}}),
    'accents kept': ('bert', {'tokenizer_config': {'strip_accents': False}}),
    'Chinese not split': ('bert', {'tokenizer_config': {'tokenize_chinese_chars': False}}),
    'tokenizer.json is rebuilt': ('bert', fast('bert', tokenizer_class='BertTokenizerFast')),
    'tokenizer.json is kept': (
        'bert',
        fast('bert', tokenizer_class='PreTrainedTokenizerFast', sep_token='[SEP]'),
    ),
    'added tokens, clean-up': (
        'bert',
        {
            'tokenizer_config': {
                'clean_up_tokenization_spaces': True,
                'added_tokens_decoder': {str(size('bert')): ADDED},
                'additional_special_tokens': ['<user>'],
            },
            'special_tokens_map': {'pad_token': 'cat'},
        },
    ),
    'special_tokens_map.json, added_tokens.json': (
        'bert',
        {
            'tokenizer_config': {'mask_token': '[UNK]', 'image_token': '<user>'},
            'special_tokens_map': {'mask_token': {'content': '[MASK]', 'lstrip': True}},
            'added_tokens': {'[NEW]': size('bert')},
        },
    ),
    'prefix space': ('gpt2', {'tokenizer_config': {'add_prefix_space': True}}),
    'start and end': ('gpt2', {'tokenizer_config': {'add_bos_token': True, 'add_eos_token': True}}),
    'GPT-2 is rebuilt': ('gpt2', fast('gpt2', add_bos_token=True)),
    'GPT-2 is kept': (
        'gpt2',
        fast('gpt2', tokenizer_class='TokenizersBackend', eos_token='<|endoftext|>'),
    ),
    'pad that strips': ('gpt2', {'tokenizer_config': {'pad_token': LSTRIP}}),
    'BART': ('bart', {'tokenizer_config': {'tokenizer_class': 'BartTokenizer'}}),
    'BART is rebuilt': ('bart', fast('bart', extra_special_tokens={'x_token': '[NEW]'})),
    'special tokens are text': ('bart', {'tokenizer_config': {'split_special_tokens': True}}),
}


@pytest.mark.compare
@pytest.mark.parametrize('case', CASES)
def test_odd_folder_equals_auto_tokenizer(case, tmp_path):
    transformers = pytest.importorskip('transformers')
    family, files = CASES[case]
    write(tmp_path / 'folder', family, files)
    expected = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'folder'))
    tokenizer = tokenizers.read(str(tmp_path / 'folder'))
    assert tokenizer.vocab_size == len(expected)
    before, after = tokenizer.around
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids == expected(text, add_special_tokens=False).input_ids, text
        whole = [*before, *ids, *after]
        assert whole == expected(text).input_ids
        assert tokenizer.decode(whole) == expected.decode(whole, skip_special_tokens=True)
    for role in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'):
        wanted = getattr(expected, f'{role}_token_id')
        assert wanted in (None, tokenizer.model.ids.get(role)), role
    # An export is the same tokenizer.
    tokenizer.save(tmp_path / 'saved')
    saved = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'saved'))
    assert [saved(text).input_ids for text in TEXTS] == [expected(text).input_ids for text in TEXTS]


@pytest.mark.compare
@pytest.mark.parametrize('separator', ['\r\n', ' \n'])
def test_vocabulary_lines_are_read_as_transformers_reads_them(separator, tmp_path):
    transformers = pytest.importorskip('transformers')
    write(tmp_path / 'folder', 'bert', {}, separator)
    expected = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'folder'))
    ids = tokenizers.read(str(tmp_path / 'folder')).encode(TEXTS)
    assert ids == expected(TEXTS, add_special_tokens=False).input_ids


@pytest.mark.compare
def test_examples_of_a_bart_tokenizer_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    write(tmp_path / 'folder', 'bart', {'tokenizer_config': {'tokenizer_class': 'BartTokenizer'}})
    rows = [('the cat', 'a mat'), ('The mat now . ' * 9, 'cat ' * 20)]
    for split in ('train', 'validation', 'test'):
        lines = ['a\tb', *(f'{split} {a}\t{b}' for a, b in rows)]
        (tmp_path / f'{split}.tsv').write_text('\n'.join(lines) + '\n')
    c = config.default()
    c.objective, c.student.family = 'seq2seq', 'mass'
    c.data.source, c.data.path, c.data.columns = 'table', str(tmp_path), ('a', 'b')
    c.data.length, c.data.target_length, c.data.cache = 14, 9, str(tmp_path / 'cache')
    tokenizer = tokenizers.read(str(tmp_path / 'folder'))
    prepared = prepare.prepare(c, tokenizer)
    records = prepared.records('test').read([0, 1])
    arrays = objectives.OBJECTIVES['seq2seq'].arrays(c, tokenizer, records, [(0, 0, 0)] * 2)
    encode = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'folder'))
    for i, (first, second) in enumerate(rows):
        source = encode(f'test {first}', truncation=True, max_length=14).input_ids
        target = encode(second, truncation=True, max_length=9).input_ids
        assert arrays['source'][i, : len(source)].tolist() == source
        assert arrays['labels'][i, : len(target)].tolist() == target
        # As shift_tokens_right of BART does, whose decoder starts with </s>.
        assert arrays['tokens'][i, : len(target)].tolist() == [2, *target[:-1]]
        assert arrays['weights'][i].sum() == len(target)


@pytest.mark.parametrize(
    ('family', 'files', 'message'),
    [
        (
            'bert',
            {'tokenizer_config': {'tokenizer_class': 'XLNetTokenizer'}},
            "tokenizer_config.json has tokenizer_class = 'XLNetTokenizer': must be one of",
        ),
        (
            'gpt2',
            {'tokenizer_config': {'tokenizer_class': 'BertTokenizer'}},
            "whose model is a WordPiece: vocab.json has a 'BPE'",
        ),
        (
            'bert',
            {'config': {'model_type': 't5'}},
            "config.json has model_type = 't5': must be one of",
        ),
        (
            'bert',
            {'tokenizer_config': {'auto_map': {'AutoTokenizer': ['a.B', None]}}},
            'auto_map = ',
        ),
        (
            'bert',
            {'tokenizer_config': {'truncation_side': 'left'}},
            "truncation_side = 'left': must",
        ),
        (
            'bert',
            {'tokenizer_config': {'cls_token': None}},
            'cls_token = null: a BertTokenizer must',
        ),
        ('bert', {'tokenizer_config': {'cls_token': ' '}}, "cls_token = ' ': must have no space"),
        ('bert', {'tokenizer_config': {'sep_token': 'a:1'}}, "sep_token = 'a:1': must have no"),
        ('bert', {'tokenizer_config': {'cls_token': '$A'}}, "cls_token = '$A': must have no"),
        (
            'gpt2',
            {'tokenizer_config': {'bos_token': 'a b', 'add_bos_token': True}},
            "bos_token = 'a b': must have no space",
        ),
        ('bert', {'tokenizer_config': {'pad_token': 3}}, 'must name added tokens: '),
        ('bert', {'tokenizer_config': {'added_tokens_decoder': []}}, 'must name added tokens: '),
        (
            'bert',
            {'tokenizer_config': {'added_tokens_decoder': {'x': {}}}},
            'must name added tokens',
        ),
        (
            'bert',
            {'tokenizer_config': {'do_lower_case': 'yes'}},
            'vocab.txt: must be a vocab.txt: ',
        ),
        ('bert', {'added_tokens': {'<x>': -3}}, "added token '<x>' of "),
        ('bert', {'added_tokens': {'<x>': float('-inf')}}, 'must be JSON: '),
        ('gpt2', {'vocab': {'<|endoftext|>': 0, 'a': 4_000_000_000}}, 'a = 4000000000: must be a'),
        (
            'gpt2',
            {'vocab': {'<|endoftext|>': 0, 'a': True}},
            'vocab.json: a = true: must be a whole',
        ),
        ('gpt2', {'vocab': {'<|endoftext|>': 0, 'a': 0}}, 'two tokens have one id'),
        (
            'bert',
            {'tokenizer': {'model': {'vocab': {'a': 10**9}}}},
            'a = 1000000000: must be a whole',
        ),
        ('bert', {'tokenizer': {'model': []}}, 'must be a tokenizer.json: '),
    ],
)
def test_unreadable_setting_is_one_line(family, files, message, tmp_path):
    write(tmp_path / 'folder', family, files)
    with pytest.raises(UserError) as error:
        tokenizers.read(str(tmp_path / 'folder'))
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_special_token_with_a_space_is_not_saved_for_bert(tmp_path):
    files = fast(
        'bert', tokenizer_class='PreTrainedTokenizerFast', cls_token=' ', sep_token='[SEP]'
    )
    write(tmp_path / 'folder', 'bert', files)
    tokenizer = tokenizers.read(str(tmp_path / 'folder'))
    with pytest.raises(UserError, match="saved: cls_token = ' ': must have no space"):
        tokenizer.save(tmp_path / 'saved', 'bert')


def test_wordpiece_without_its_unknown_token_is_refused(tmp_path):
    write(tmp_path / 'folder', 'bert', fast('bert', tokenizer_class='PreTrainedTokenizerFast'))
    file = tmp_path / 'folder' / 'tokenizer.json'
    content = json.loads(file.read_text())
    content['model']['unk_token'] = '<nothing>'
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="its vocabulary has no unk_token '<nothing>'"):
        tokenizers.read(str(tmp_path / 'folder'))


def test_settings_nested_too_deep_are_one_line(tmp_path):
    write(tmp_path / 'folder', 'bert', {})
    depth = 10 * sys.getrecursionlimit()
    (tmp_path / 'folder' / 'tokenizer_config.json').write_text('[' * depth)
    with pytest.raises(UserError, match=r'tokenizer_config\.json: must be JSON: '):
        tokenizers.read(str(tmp_path / 'folder'))
