"""Reads tokenizers in the formats of Hugging Face: vocab.txt, byte-level BPE, tokenizer.json."""

import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lightpaff_jax.errors import UserError, one_line

# The library's threads do not survive a fork, and `encode` is called from several threads anyway.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

BYTE_LEVEL = (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'))
# Role of a special token -> its usual spellings, the first of which that exists is used.
_SPELLINGS = {
    'eos': ('[SEP]', '</s>', '<|endoftext|>'),
    'bos': ('<s>', '<|endoftext|>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
    'unk': ('[UNK]', '<unk>'),
}
_CLS_SEP = (('[CLS]', '[SEP]'), ('<s>', '</s>'))  # these two only count together
_ADDED_TOKEN_KEYS = ('content', 'single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_MAX_CACHE = 1 << 20  # characters of words whose ids are cached; about 40 MB
_WORD_BREAK = re.compile(r'(?<=\S)(?= \S)')  # before a single space
_UNUSED = re.compile(r'\[unused\d+\]')
LINE_BYTES = ('<0x09>', '<0x0A>', '<0x0D>')  # tabs and line ends, if bytes are pieces
# Starts of a word: a space as it is, in SentencePiece and in byte-level BPE, then the line ends and
# tabs of byte-level BPE.
_WORD_MARKS = (' ', '\u2581', '\u0120', '\u010a', '\u0109', '\u010d', *LINE_BYTES)


def standard_ids(tokens: Mapping[str, int]) -> dict[str, int]:
    """Returns role -> id of the special tokens that have one of the usual spellings."""
    ids = {
        role: next(tokens[token] for token in spellings if token in tokens)
        for role, spellings in _SPELLINGS.items()
        if not tokens.keys().isdisjoint(spellings)
    }
    for cls, sep in _CLS_SEP[::-1]:
        if cls in tokens and sep in tokens:
            ids |= {'cls': tokens[cls], 'sep': tokens[sep]}
    return ids


class HuggingFace:
    """A tokenizer of the `tokenizers` library as the model of a `Tokenizer`."""

    def __init__(self, fast: tokenizers.Tokenizer, declared: Mapping[str, str], where: str):
        """Wraps a tokenizer and finds its special tokens.

        Args:
          fast: the tokenizer; its truncation, padding and dropout are switched off.
          declared: role -> spelling of the special tokens that a settings file declares; they take
            precedence over the usual spellings.
          where: the tokenizer's name in messages.

        Raises:
          UserError: no token ends a text.
        """
        fast.no_truncation()
        fast.no_padding()
        if isinstance(fast.model, models.BPE):
            fast.model.dropout = None
        self._fast = fast
        self._splits_words = _encodes_words_independently(fast)
        self._cache: dict[str, list[int]] = {}
        self._cache_size = 0  # characters
        self._vocabulary = fast.get_vocab(with_added_tokens=True)
        added = {token.content: i for i, token in fast.get_added_tokens_decoder().items()}
        self.ids = standard_ids(added or self._vocabulary)
        self.ids |= {
            role: self._vocabulary[token]
            for role, token in declared.items()
            if token in self._vocabulary
        }
        if 'eos' not in self.ids and 'sep' in self.ids:
            self.ids['eos'] = self.ids['sep']
        if 'eos' not in self.ids:
            raise UserError(
                f'{where}: must have a token that ends a text: one of '
                f'{", ".join(_SPELLINGS["eos"])}, or the eos_token of a tokenizer_config.json'
            )
        self.vocab_size = 1 + max(self._vocabulary.values())
        special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
        unused = {i for token, i in self._vocabulary.items() if _UNUSED.fullmatch(token)}
        self.special_ids = frozenset(special | unused | {*self.ids.values()})

    def __getstate__(self) -> dict:
        """Drops the cache from pickles."""
        return self.__dict__ | {'_cache': {}, '_cache_size': 0}

    @functools.cached_property
    def identity(self) -> bytes:
        """All that decides ids, the same for all files that hold the same tokenizer."""
        content = json.loads(self._fast.to_str())
        parts = {
            name: _normalize(content[name]) for name in ('normalizer', 'pre_tokenizer', 'model')
        }
        keys = ('id', 'content', 'single_word', 'lstrip', 'rstrip')
        added = [_normalize({key: t[key] for key in keys}) for t in content['added_tokens']]
        return json.dumps({**parts, 'added_tokens': added}, sort_keys=True).encode()

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Tokens without a continuation prefix or, if the model has none, those with a word mark."""
        prefix = getattr(self._fast.model, 'continuing_subword_prefix', None)
        starts = np.zeros(self.vocab_size, bool)
        for token, i in self._vocabulary.items():
            starts[i] = not token.startswith(prefix) if prefix else token.startswith(_WORD_MARKS)
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text.

        If words can be encoded independently, each word is encoded once and cached, which is about
        3 times as fast.
        """
        if not self._splits_words:
            return self._encode(texts)
        texts_words = [_WORD_BREAK.split(text) for text in texts]
        if self._cache_size > _MAX_CACHE:
            self._cache, self._cache_size = {}, 0
        cache = self._cache  # a local name, as another thread may start a new cache
        new = [*{*itertools.chain.from_iterable(texts_words)}.difference(cache)]
        self._cache_size += sum(map(len, new))
        cache.update(zip(new, self._encode(new), strict=True))
        return [
            [*itertools.chain.from_iterable(map(cache.__getitem__, words))] for words in texts_words
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without special tokens."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: pathlib.Path, family: str) -> None:
        """Writes tokenizer.json and tokenizer_config.json; see `Tokenizer.save`."""
        fast = tokenizers.Tokenizer.from_str(self._fast.to_str())
        tokens = {role: str(fast.id_to_token(i)) for role, i in self.ids.items()}
        save(folder, fast, tokens, family or ('bert' if tokens.get('cls') == '[CLS]' else ''))


def _encodes_words_independently(fast: tokenizers.Tokenizer) -> bool:
    """Returns whether a single space before a word starts a new token in every context.

    True for GPT-2's pattern, in which a space occurs only at the start of a token, and for BERT's
    rules, which split at spaces. False if an added token holds a space or strips spaces after it.
    """
    pre_tokenizer, plain = fast.pre_tokenizer, fast.normalizer is None
    if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel):
        splits = plain and pre_tokenizer.use_regex and not pre_tokenizer.add_prefix_space
    else:
        local = plain or isinstance(fast.normalizer, normalizers.BertNormalizer)
        splits = local and isinstance(pre_tokenizer, pre_tokenizers.BertPreTokenizer)
    added = fast.get_added_tokens_decoder().values()
    return splits and not any(' ' in token.content or token.rstrip for token in added)


def _normalize(part: Any) -> Any:
    """Drops null, empty values and offsets from JSON, which mean the same as absent ones."""
    if isinstance(part, list):
        return [_normalize(item) for item in part]
    if isinstance(part, dict):
        return {
            name: _normalize(value)
            for name, value in part.items()
            if value is not None and value != '' and name != 'trim_offsets'
        }
    return part


def save(
    folder: pathlib.Path,
    fast: tokenizers.Tokenizer,
    tokens: Mapping[str, str],
    family: str,
    **settings,
) -> None:
    """Writes tokenizer.json and tokenizer_config.json for PreTrainedTokenizerFast.

    The family decides the special tokens around a text: for bert [CLS] a [SEP] b [SEP] with types 0
    and 1, for mass an end after each text, for others those of the tokenizer.

    Args:
      folder: the folder; created if it is missing.
      fast: the tokenizer; its post-processor may be replaced.
      tokens: role -> spelling of the special tokens.
      family: the family of the network that reads the ids, or ''.
      settings: further keys of tokenizer_config.json.

    Raises:
      UserError: the family is bert and there is no [CLS].
    """
    tokens = dict(tokens)
    inputs = ['input_ids', 'attention_mask']
    if family == 'mass':
        eos = tokens['eos']
        fast.post_processor = processors.TemplateProcessing(
            single=f'$A {eos}',
            pair=f'$A {eos} $B {eos}',
            special_tokens=[(eos, fast.token_to_id(eos))],
        )
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
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        'model_input_names': inputs,
        **{f'{role}_token': token for role, token in sorted(tokens.items())},
        **settings,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')


def find_file(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the tokenizer file of a folder; None if it holds no tokenizer, or several *.model."""
    pairs = [names for names in BYTE_LEVEL if all((folder / name).is_file() for name in names)]
    names = ['tokenizer.model', 'tokenizer.json', *(first for first, _ in pairs), 'vocab.txt']
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        files = sorted(folder.glob('*.model'))
        if len(files) != 1:
            return None
    return files[0]


def read(file: pathlib.Path, lowercase: bool, where: str) -> HuggingFace:
    """Opens a vocab.txt, either file of a byte-level BPE, or a tokenizer.json.

    The special tokens are those that tokenizer_config.json or special_tokens_map.json in the same
    folder declare, or else those with the usual spellings.

    Args:
      file: the file.
      lowercase: whether a vocab.txt is lower case, unless a tokenizer_config.json decides it.
      where: the file's name in messages.

    Raises:
      UserError: the file or one of its companions is malformed or missing, or no token ends a text.
    """
    folder = file.parent
    # tokenizer_config.json takes precedence, as in transformers.
    settings = _read_json(folder / 'special_tokens_map.json', where)
    settings |= _read_json(folder / 'tokenizer_config.json', where)
    declared = _declared_tokens(settings)
    pair = next((names for names in BYTE_LEVEL if file.name in names), ())
    for name in pair:
        if not (folder / name).is_file():
            raise UserError(f'{where}: must have {name} next to {file.name}')
    is_complete = file.suffix == '.json' and not pair
    kind = 'tokenizer.json' if is_complete else 'byte-level BPE' if pair else 'vocab.txt'
    try:
        if is_complete:
            fast = tokenizers.Tokenizer.from_file(str(file))
        elif pair:
            fast = _byte_level([str(folder / name) for name in pair], settings, declared)
        else:
            fast = _word_piece(file, {'do_lower_case': lowercase} | settings, declared)
    except Exception as error:  # `tokenizers` raises no narrower class
        raise UserError(f'{where}: {file.name}: must be a {kind}: {one_line(error)}') from error
    if not is_complete:
        _add_tokens(fast, folder, settings, declared, where)
    return HuggingFace(fast, declared, where)


def _read_json(file: pathlib.Path, where: str) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{where}: {file}: must be a JSON object: {error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{where}: {file}: must be a JSON object, is {content!r:.40}')
    return content


def _declared_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns role -> spelling of the special tokens that settings declare as NAME_token."""
    tokens = {}
    for key, value in settings.items():
        token = value.get('content') if isinstance(value, dict) else value
        if key.endswith('_token') and isinstance(token, str) and token:
            tokens[key.removesuffix('_token')] = token
    return tokens


def _word_piece(
    file: pathlib.Path, settings: Mapping[str, Any], declared: Mapping[str, str]
) -> tokenizers.Tokenizer:
    with file.open(encoding='utf-8') as lines:
        vocabulary = {line.rstrip('\n'): i for i, line in enumerate(lines)}
    unknown = declared.get('unk', '[UNK]')
    if unknown not in vocabulary:
        raise ValueError(f'no line is {unknown}')
    fast = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
        strip_accents=settings.get('strip_accents'),
        lowercase=settings['do_lower_case'],
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    _mark_special(fast, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *declared.values()])
    return fast


def _byte_level(
    files: Sequence[str], settings: Mapping[str, Any], declared: Mapping[str, str]
) -> tokenizers.Tokenizer:
    fast = tokenizers.Tokenizer(models.BPE.from_file(*files))
    add_prefix_space = settings.get('add_prefix_space', False)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    fast.decoder = decoders.ByteLevel()
    if fast.token_to_id('<|endoftext|>') is not None:  # GPT-2
        _mark_special(fast, ['<|endoftext|>', *declared.values()])
        return fast
    # RoBERTa and BART
    _mark_special(fast, ['<s>', '<pad>', '</s>', '<unk>', '<mask>', *declared.values()])
    cls, sep = (fast.token_to_id(name) for name in ('<s>', '</s>'))
    if cls is not None and sep is not None:
        fast.post_processor = processors.RobertaProcessing(
            ('</s>', sep), ('<s>', cls), add_prefix_space=add_prefix_space
        )
    return fast


def _add_tokens(
    fast: tokenizers.Tokenizer,
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    declared: Mapping[str, str],
    where: str,
) -> None:
    """Adds the tokens of added_tokens.json and tokenizer_config.json to the vocabulary."""
    tokens: dict[int, tokenizers.AddedToken] = {}
    file = folder / 'added_tokens.json'
    try:
        for content, i in _read_json(file, where).items():
            special = content in declared.values()
            tokens[int(i)] = tokenizers.AddedToken(content, normalized=not special, special=special)
        file = folder / 'tokenizer_config.json'
        for i, entry in settings.get('added_tokens_decoder', {}).items():
            options = {key: entry[key] for key in _ADDED_TOKEN_KEYS if key in entry}
            tokens[int(i)] = tokenizers.AddedToken(**options)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{where}: {file}: must name added tokens: {error}') from error
    present = {token.content for token in fast.get_added_tokens_decoder().values()}
    for i, token in sorted(tokens.items()):
        if token.content not in present:
            (fast.add_special_tokens if token.special else fast.add_tokens)([token])
        new_id = fast.token_to_id(token.content)
        if new_id != i:
            raise UserError(
                f'{where}: added token {token.content!r} of {folder} has id {i}, must have '
                f'{new_id}, the next id after the vocabulary'
            )


def _mark_special(fast: tokenizers.Tokenizer, names: Collection[str]) -> None:
    fast.add_special_tokens(
        [
            tokenizers.AddedToken(name, normalized=False, lstrip=name == '<mask>')
            for name in dict.fromkeys(names)
            if fast.token_to_id(name) is not None
        ]
    )
