"""Vocabularies in Hugging Face's formats: vocab.txt, byte-level BPE, tokenizer.json."""

import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lightpaff_jax.errors import UserError

# Its threads do not survive a fork; `encode` is called from several of ours.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

BYTE_LEVEL = (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'))
_NAMES = {
    'eos': ('[SEP]', '</s>', '<|endoftext|>'),
    'bos': ('<s>', '<|endoftext|>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
    'unk': ('[UNK]', '<unk>'),
}  # what a special token is for -> how it is spelled where nothing says so
_PAIRS = (('[CLS]', '[SEP]'), ('<s>', '</s>'))  # cls and sep
_TOKEN = ('content', 'single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_KNOWN = 1 << 20  # characters of words whose ids are kept; about 40 MB
_APART = re.compile(r'(?<=\S)(?= \S)')  # before a single space
_UNUSED = re.compile(r'\[unused\d+\]')
LINE_BYTES = ('<0x09>', '<0x0A>', '<0x0D>')  # tabs and line ends, where bytes are pieces
_WORD_MARKS = (' ', '\u2581', '\u0120', '\u010a', '\u0109', '\u010d', *LINE_BYTES)
# A space as it is, SentencePiece's, byte BPE's; then byte BPE's line ends and tabs.


def standard_ids(tokens: Mapping[str, int]) -> dict[str, int]:
    """What special tokens are for -> their ids, by how they are spelled."""
    found = {
        name: next(tokens[token] for token in spellings if token in tokens)
        for name, spellings in _NAMES.items()
        if not tokens.keys().isdisjoint(spellings)
    }
    for cls, sep in _PAIRS[::-1]:
        if cls in tokens and sep in tokens:
            found |= {'cls': tokens[cls], 'sep': tokens[sep]}
    return found


class HuggingFace:
    """A tokenizer of the `tokenizers` library, behind the interface of tokenizers.py."""

    def __init__(self, fast: tokenizers.Tokenizer, declared: Mapping[str, str], where: str):
        """Finds the special tokens.

        Args:
          fast: the tokenizer; its truncation, padding and dropout are switched off.
          declared: what special tokens are for -> their spelling, where a file says so.
          where: its name in messages.

        Raises:
          UserError: no token ends a text.
        """
        fast.no_truncation()
        fast.no_padding()
        if isinstance(fast.model, models.BPE):
            fast.model.dropout = None
        self._fast = fast
        self._apart = _words_are_apart(fast)
        self._known: dict[str, list[int]] = {}
        self._size = 0  # characters in `_known`
        self._vocabulary = fast.get_vocab(with_added_tokens=True)
        added = {token.content: i for i, token in fast.get_added_tokens_decoder().items()}
        known = {name: token for name, token in declared.items() if token in self._vocabulary}
        self.ids = standard_ids(added or self._vocabulary)
        self.ids |= {name: self._vocabulary[token] for name, token in known.items()}
        if 'eos' not in self.ids and 'sep' in self.ids:
            self.ids['eos'] = self.ids['sep']
        if 'eos' not in self.ids:
            raise UserError(
                f'{where}: must have a token that ends a text: one of {", ".join(_NAMES["eos"])}, '
                'or the eos_token of a tokenizer_config.json'
            )
        self.vocab_size = 1 + max(self._vocabulary.values())
        special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
        unused = {i for token, i in self._vocabulary.items() if _UNUSED.fullmatch(token)}
        self.special_ids = frozenset(special | unused | {*self.ids.values()})

    def __getstate__(self) -> dict:
        """Without the words it knows."""
        return self.__dict__ | {'_known': {}, '_size': 0}

    @functools.cached_property
    def identity(self) -> bytes:
        """All that ids depend on, written the same whatever files it came from."""
        whole = json.loads(self._fast.to_str())
        parts = {name: _plain(whole[name]) for name in ('normalizer', 'pre_tokenizer', 'model')}
        kept = ('id', 'content', 'single_word', 'lstrip', 'rstrip')
        added = [_plain({name: token[name] for name in kept}) for token in whole['added_tokens']]
        return json.dumps({**parts, 'added_tokens': added}, sort_keys=True).encode()

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Tokens without the mark of a continuation, or with that of a space or line end."""
        prefix = getattr(self._fast.model, 'continuing_subword_prefix', None)
        starts = np.zeros(self.vocab_size, bool)
        for token, i in self._vocabulary.items():
            starts[i] = not token.startswith(prefix) if prefix else token.startswith(_WORD_MARKS)
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; of words that are apart each is encoded once, some 3 times as fast."""
        if not self._apart:
            return self._encode(texts)
        parts = [_APART.split(text) for text in texts]
        if self._size > _KNOWN:
            self._known, self._size = {}, 0
        known = self._known  # another thread may begin a new one
        new = [*{*itertools.chain.from_iterable(parts)}.difference(known)]
        self._size += sum(map(len, new))
        known.update(zip(new, self._encode(new), strict=True))
        return [[*itertools.chain.from_iterable(map(known.__getitem__, words))] for words in parts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: pathlib.Path, family: str) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        fast = tokenizers.Tokenizer.from_str(self._fast.to_str())
        tokens = {name: str(fast.id_to_token(i)) for name, i in self.ids.items()}
        save(folder, fast, tokens, family or ('bert' if tokens.get('cls') == '[CLS]' else ''))


def _words_are_apart(fast: tokenizers.Tokenizer) -> bool:
    """Whether a single space before a word begins a new token, whatever is around it.

    True of GPT-2's pattern, in which a space is nowhere but at the beginning of a token, and of
    BERT's rules, which part words at spaces. An added token may hold a space or take those behind.
    """
    cut, plain = fast.pre_tokenizer, fast.normalizer is None
    if isinstance(cut, pre_tokenizers.ByteLevel):
        apart = plain and cut.use_regex and not cut.add_prefix_space
    else:
        folded = plain or isinstance(fast.normalizer, normalizers.BertNormalizer)
        apart = folded and isinstance(cut, pre_tokenizers.BertPreTokenizer)
    added = fast.get_added_tokens_decoder().values()
    return apart and not any(' ' in token.content or token.rstrip for token in added)


def _plain(part):
    """JSON without what is empty or null, and without offsets: the same as leaving it out."""
    if isinstance(part, list):
        return [_plain(one) for one in part]
    if isinstance(part, dict):
        return {
            name: _plain(value)
            for name, value in part.items()
            if value is not None and value != '' and name != 'trim_offsets'
        }
    return part


def save(
    folder: pathlib.Path, fast: tokenizers.Tokenizer, tokens: Mapping[str, str], family: str,
    **settings,
) -> None:  # fmt: skip
    """Writes tokenizer.json and tokenizer_config.json as PreTrainedTokenizerFast reads them.

    Special tokens are added as the family reads them: bert [CLS] a [SEP] b [SEP], types 0 and 1;
    mass an end behind each text; others as the tokenizer has it.

    Args:
      folder: where to.
      fast: the tokenizer; its post-processor may be replaced.
      tokens: what special tokens are for -> their spelling.
      family: of the network that reads the ids, or ''.
      settings: more of tokenizer_config.json.
    """
    tokens = dict(tokens)
    inputs = ['input_ids', 'attention_mask']
    if family == 'mass':
        eos = tokens['eos']
        fast.post_processor = processors.TemplateProcessing(
            single=f'$A {eos}', pair=f'$A {eos} $B {eos}',
            special_tokens=[(eos, fast.token_to_id(eos))],
        )  # fmt: skip
    if family == 'bert':
        if 'cls' not in tokens:
            raise UserError(f'{folder.name}: a BERT needs a tokenizer with [CLS] and [SEP]')
        cls, sep = tokens['cls'], tokens['sep']
        fast.post_processor = processors.TemplateProcessing(
            single=f'{cls}:0 $A:0 {sep}:0',
            pair=f'{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1',
            special_tokens=[(token, fast.token_to_id(token)) for token in (cls, sep)],
        )
        inputs.insert(1, 'token_type_ids')
        if tokens['eos'] == sep:
            del tokens['eos']
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / 'tokenizer.json'))
    described = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        'model_input_names': inputs,
        **{f'{name}_token': token for name, token in sorted(tokens.items())},
        **settings,
    }
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')


def find_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The file of a folder that is read first; None if it holds no tokenizer."""
    pairs = [names for names in BYTE_LEVEL if all((folder / name).is_file() for name in names)]
    names = ['tokenizer.model', 'tokenizer.json', *(first for first, _ in pairs), 'vocab.txt']
    found = [folder / name for name in names if (folder / name).is_file()]
    models_there = sorted(folder.glob('*.model'))
    if not found and len(models_there) == 1:
        found = models_there
    return found[0] if found else None


def read(file: pathlib.Path, lowercase: bool, where: str) -> HuggingFace:
    """Opens a vocab.txt, either file of a byte-level BPE, or a tokenizer.json.

    The special tokens are those of tokenizer_config.json and special_tokens_map.json beside it,
    or else those of the usual names.

    Args:
      file: the file.
      lowercase: whether a vocab.txt is lower case, where no tokenizer_config.json says so.
      where: its name in messages.

    Raises:
      UserError: the file, or one beside it, is malformed or missing, or no token ends a text.
    """
    settings = _settings(file.parent, where)
    spelled = {
        name.removesuffix('_token'): value['content']
        if isinstance(value, dict) and 'content' in value
        else value
        for name, value in settings.items()
        if name.endswith('_token')
    }
    declared = {name: token for name, token in spelled.items() if isinstance(token, str) and token}
    pair = next((names for names in BYTE_LEVEL if file.name in names), ())
    for name in pair:
        if not (file.parent / name).is_file():
            raise UserError(f'{where}: must have {name} beside {file.name}')
    try:
        if file.suffix == '.json' and not pair:
            fast = tokenizers.Tokenizer.from_file(str(file))
        else:
            if pair:
                fast = _byte_level([str(file.parent / name) for name in pair], settings, declared)
            else:
                fast = _word_piece(file, {'do_lower_case': lowercase} | settings, declared)
    except Exception as error:  # `tokenizers` raises no narrower one
        reason = ' '.join(str(error).split())
        kind = (
            'byte-level BPE'
            if pair
            else 'tokenizer.json'
            if file.suffix == '.json'
            else 'vocab.txt'
        )
        raise UserError(f'{where}: {file.name}: must be a {kind}: {reason}') from error
    if pair or file.suffix != '.json':
        _add_further(fast, file.parent, settings, declared, where)
    return HuggingFace(fast, declared, where)


def _settings(folder: pathlib.Path, where: str) -> dict:
    """tokenizer_config.json, and what special_tokens_map.json adds to it."""
    settings: dict = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        file = folder / name
        if file.is_file():
            try:
                settings |= json.loads(file.read_text(encoding='utf-8'))
            except (ValueError, TypeError) as error:
                raise UserError(f'{where}: {file}: must be a JSON object: {error}') from error
    return settings


def _word_piece(file: pathlib.Path, settings: dict, declared: Mapping[str, str]):
    with file.open(encoding='utf-8') as lines:
        vocabulary = {line.rstrip('\n'): i for i, line in enumerate(lines)}
    unknown = declared.get('unk', '[UNK]')
    if unknown not in vocabulary:
        raise ValueError(f'no line is {unknown}')
    fast = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    options = {'tokenize_chinese_chars': True, 'strip_accents': None} | settings
    fast.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=options['tokenize_chinese_chars'],
        strip_accents=options['strip_accents'],
        lowercase=options['do_lower_case'],
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    _add(fast, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *declared.values()])
    return fast


def _byte_level(files: Sequence[str], settings: dict, declared: Mapping[str, str]):
    fast = tokenizers.Tokenizer(models.BPE.from_file(*files))
    options = {'add_prefix_space': False} | settings
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options['add_prefix_space'])
    fast.decoder = decoders.ByteLevel()
    if fast.token_to_id('<|endoftext|>') is not None:  # GPT-2
        _add(fast, ['<|endoftext|>', *declared.values()])
        return fast
    _add(fast, ['<s>', '<pad>', '</s>', '<unk>', '<mask>', *declared.values()])  # RoBERTa, BART
    cls, sep = (fast.token_to_id(name) for name in ('<s>', '</s>'))
    if cls is not None and sep is not None:
        fast.post_processor = processors.RobertaProcessing(
            ('</s>', sep), ('<s>', cls), add_prefix_space=options['add_prefix_space']
        )
    return fast


def _add_further(
    fast: tokenizers.Tokenizer, folder: pathlib.Path, settings: dict,
    declared: Mapping[str, str], where: str,
) -> None:  # fmt: skip
    """Adds what added_tokens.json and tokenizer_config.json have beyond the vocabulary."""
    name, found = 'added_tokens.json', {}
    try:
        if (folder / name).is_file():
            for token, i in json.loads((folder / name).read_text(encoding='utf-8')).items():
                special = token in declared.values()
                found[int(i)] = tokenizers.AddedToken(
                    token, normalized=not special, special=special
                )
        name = 'tokenizer_config.json'
        for i, token in settings.get('added_tokens_decoder', {}).items():
            found[int(i)] = tokenizers.AddedToken(**{k: token[k] for k in _TOKEN if k in token})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{where}: {folder / name}: must name added tokens: {error}') from error
    there = {token.content for token in fast.get_added_tokens_decoder().values()}
    for i, token in sorted(found.items()):
        if token.content not in there:
            (fast.add_special_tokens if token.special else fast.add_tokens)([token])
        has = fast.token_to_id(token.content)
        if has != i:
            raise UserError(
                f'{where}: added token {token.content!r} of {folder} has id {i}, must have {has}, '
                'behind the vocabulary'
            )


def _add(fast: tokenizers.Tokenizer, names: Collection[str]) -> None:
    """Makes special tokens of those names that the vocabulary has."""
    fast.add_special_tokens(
        [
            tokenizers.AddedToken(name, normalized=False, lstrip=name == '<mask>')
            for name in dict.fromkeys(names)
            if fast.token_to_id(name) is not None
        ]
    )
