"""Reads tokenizers in the formats of Hugging Face: vocab.txt, byte-level BPE, tokenizer.json."""

import functools
import itertools
import json
import operator
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from lightpaff_jax.data.tokenizers import transformers_classes
from lightpaff_jax.errors import UserError

# The library's threads do not survive a fork, and `encode` is called from several threads anyway.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

# Role of a special token -> its usual spellings, the first of which that exists is used.
_SPELLINGS = {
    'eos': ('[SEP]', '</s>', '<|endoftext|>'),
    'bos': ('<s>', '<|endoftext|>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
    'unk': ('[UNK]', '<unk>'),
}
_CLS_SEP = (('[CLS]', '[SEP]'), ('<s>', '</s>'))  # these two only count together
_MAX_CACHE = 1 << 20  # characters of words whose ids are cached; about 40 MB
_WORD_BREAK = re.compile(r'(?<=\S)(?= \S)')  # before a single space
# Strings that transformers replaces in decoded text, in its order.
_CLEAN_UP = (' .', ' ?', ' !', ' ,', " ' ", " n't", " 'm", " 's", " 've", " 're")
_SAMPLES = ('a', 'the', '1', '.', 'A', '\u7684')  # texts, one of which has a token
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

    def __init__(
        self,
        fast: tokenizers.Tokenizer,
        declared: Mapping[str, str],
        where: str,
        *,
        clean_up: bool = False,
        has_types: bool = False,
        split_special: bool = False,
    ):
        """Wraps a tokenizer and finds its special tokens.

        Args:
          fast: the tokenizer; its truncation, padding and dropout are switched off.
          declared: role -> spelling of the special tokens that a settings file declares; they take
            precedence over the usual spellings.
          where: the tokenizer's name in messages.
          clean_up: whether to remove spaces before punctuation in decoded text, as for WordPiece.
          has_types: whether transformers passes the type of each text to the network.
          split_special: whether the spelling of a special token in a text is ordinary text.

        Raises:
          UserError: no token ends a text.
        """
        fast.no_truncation()
        fast.no_padding()
        if isinstance(fast.model, models.BPE):
            fast.model.dropout = None
        self._fast, self._has_types, self._split_special = fast, has_types, split_special
        fast.encode_special_tokens = split_special
        self._clean_up = clean_up and not isinstance(fast.model, models.BPE)
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

    def __setstate__(self, state: dict) -> None:
        """Restores the setting that pickles of `tokenizers` lack."""
        self.__dict__ |= state
        self._fast.encode_special_tokens = self._split_special

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

    @property
    def pieces(self) -> Mapping[str, int]:
        """The id of each piece, special tokens included."""
        return self._vocabulary

    @property
    def prefix(self) -> str | None:
        """The prefix of a WordPiece that continues a word, such as ##; None for other models."""
        model = self._fast.model
        return model.continuing_subword_prefix if isinstance(model, models.WordPiece) else None

    @property
    def required_ids(self) -> frozenset[int]:
        """The ids that `select` needs: added tokens, special tokens that are no [unused0] and so on."""
        unknown = self._vocabulary[self._fast.model.unk_token]
        around = itertools.chain(*self.around)
        added = self._fast.get_added_tokens_decoder()
        return frozenset({unknown, *around, *added, *self.ids.values()})

    def select(self, ids: Sequence[int]) -> 'HuggingFace':
        """Returns a WordPiece tokenizer of some pieces, the `required_ids` among them.

        The piece of `ids[i]` has the id i there.
        """
        spellings = {i: piece for piece, i in self._vocabulary.items()}
        new_ids = {spellings[i]: new for new, i in enumerate(ids)}
        content = json.loads(self._fast.to_str())
        vocabulary = content['model']['vocab']
        content['model']['vocab'] = {
            piece: i for piece, i in new_ids.items() if piece in vocabulary
        }
        for token in content['added_tokens']:
            token['id'] = new_ids[token['content']]
        content['added_tokens'].sort(key=operator.itemgetter('id'))
        processor = json.dumps(content['post_processor'])
        renumber = functools.partial(_renumber, new_ids)
        content['post_processor'] = json.loads(processor, object_hook=renumber)
        return HuggingFace(
            tokenizers.Tokenizer.from_str(json.dumps(content)),
            {role: spellings[i] for role, i in self.ids.items()},
            '',
            clean_up=self._clean_up,
            has_types=self._has_types,
            split_special=self._split_special,
        )

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Tokens without a continuation prefix or, if the model has none, those with a word mark."""
        prefix = getattr(self._fast.model, 'continuing_subword_prefix', None)
        starts = np.zeros(self.vocab_size, bool)
        for token, i in self._vocabulary.items():
            starts[i] = not token.startswith(prefix) if prefix else token.startswith(_WORD_MARKS)
        starts[list(self.special_ids)] = True
        return starts

    def layout(self, pair: bool = False) -> list[tuple[int | str, int]]:
        """Lists the items that transformers reads for a text A, or texts A and B, with their types.

        An integer is the id of a special token; 'A' and 'B' are the texts.
        """
        samples = (text for text in _SAMPLES if self._encode([text])[0])
        sample = next(samples, None)
        if sample is None:
            return [('A', 0)]
        encoding = self._fast.encode(sample, sample if pair else None)
        items: list[tuple[int | str, int]] = []
        triples = zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True)
        for i, text, kind in triples:
            name: int | str = i if text is None else 'AB'[text]
            item = (name, kind if self._has_types else 0)
            if isinstance(name, int) or item not in items:
                items.append(item)
        return items

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that transformers reads before and after a text."""
        items = [item for item, _ in self.layout()]
        start = items.index('A')
        return tuple(map(int, items[:start])), tuple(map(int, items[start + 1 :]))

    def check_layout(self, label: str, family: str) -> None:
        """Raises UserError if transformers and this package read one or two texts differently."""
        cls, sep, eos = (self.ids.get(role) for role in ('cls', 'sep', 'eos'))
        if family == 'bert':
            single = [(cls, 0), ('A', 0), (sep, 0)]
            self._check_layout(label, single, self.layout())
            self._check_layout(label, [*single, ('B', 1), (sep, 1)], self.layout(pair=True))
        elif family == 'mass':
            before = [(i, 0) for i in self.around[0]]
            self._check_layout(label, [*before, ('A', 0), (eos, 0)], self.layout())

    def _check_layout(self, label: str, ours: list, theirs: list) -> None:
        if ours != theirs:
            names = [
                ' '.join(
                    i if isinstance(i, str) else str(self._fast.id_to_token(i)) for i, _ in layout
                )
                for layout in (ours, theirs)
            ]
            types = [[kind for _, kind in layout] for layout in (ours, theirs)]
            raise UserError(
                f'{label}: its tokenizer reads {names[1]!r} with types {types[1]}, must read '
                f'{names[0]!r} with types {types[0]}'
            )

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
        encodings = self._fast.encode_batch_fast([*texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without special tokens."""
        text = self._fast.decode([int(i) for i in ids], skip_special_tokens=True)
        for spaced in _CLEAN_UP if self._clean_up else ():
            text = text.replace(spaced, spaced.strip())
        return text

    def save(self, folder: pathlib.Path, family: str, max_length: int | None) -> None:
        """Writes tokenizer.json and tokenizer_config.json; see `Tokenizer.save`."""
        fast = tokenizers.Tokenizer.from_str(self._fast.to_str())
        tokens = {role: str(fast.id_to_token(i)) for role, i in self.ids.items()}
        family = family or ('bert' if tokens.get('cls') == '[CLS]' else '')
        if family == 'mass' and self.around[1] == (self.ids['eos'],):
            family = ''  # an encoder-decoder reads texts as the tokenizer writes them
        settings = {'split_special_tokens': True} if self._split_special else {}
        save(folder, fast, tokens, family, max_length, clean_up=self._clean_up, **settings)


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


def _renumber(ids: Mapping[str, int], entry: dict[str, Any]) -> dict[str, Any]:
    """Changes the ids in an object of a post-processor: a token of a template, or two pairs."""
    if entry.keys() >= {'ids', 'tokens'}:
        entry['ids'] = [ids[token] for token in entry['tokens']]
    if entry.get('type') in ('BertProcessing', 'RobertaProcessing'):
        entry |= {role: (entry[role][0], ids[entry[role][0]]) for role in ('cls', 'sep')}
    return entry


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
    max_length: int | None,
    *,
    clean_up: bool = False,
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
      max_length: number of ids that the network reads; None if unknown.
      clean_up: whether to remove spaces before punctuation in decoded text.
      settings: further keys of tokenizer_config.json.

    Raises:
      UserError: the family is bert and there is no [CLS], or a special token is not allowed.
    """
    tokens, ids = dict(tokens), fast.get_vocab(with_added_tokens=True)
    inputs = ['input_ids', 'attention_mask']
    if family == 'mass':
        fast.post_processor = transformers_classes.template(
            folder.name, {'eos': tokens['eos']}, ids, '$A {eos}', '$A {eos} $B {eos}'
        )
    if family == 'bert':
        if 'cls' not in tokens:
            raise UserError(f'{folder.name}: a BERT needs a tokenizer with [CLS] and [SEP]')
        around = {role: tokens[role] for role in ('cls', 'sep')}
        fast.post_processor = transformers_classes.bert_template(folder.name, around, ids)
        inputs.insert(1, 'token_type_ids')
        if tokens['eos'] == tokens['sep']:
            del tokens['eos']
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / 'tokenizer.json'))
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': clean_up,
        'model_input_names': inputs,
        **{f'{role}_token': token for role, token in sorted(tokens.items())},
        **({} if max_length is None else {'model_max_length': max_length}),
        **settings,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')


def find_file(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the tokenizer file of a folder; None if it holds no tokenizer, or several *.model."""
    pairs = [
        names
        for names in transformers_classes.BYTE_LEVEL
        if all((folder / name).is_file() for name in names)
    ]
    names = ['tokenizer.model', 'tokenizer.json', *(first for first, _ in pairs), 'vocab.txt']
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        files = sorted(folder.glob('*.model'))
        if len(files) != 1:
            return None
    return files[0]


def read(file: pathlib.Path, lowercase: bool, where: str) -> HuggingFace:
    """Opens a vocab.txt, either file of a byte-level BPE, or a tokenizer.json.

    The settings and special tokens are those of the files in the same folder, as AutoTokenizer of
    transformers reads them; undeclared special tokens are those with the usual spellings.

    Args:
      file: the file.
      lowercase: whether a vocab.txt is lower case, unless a tokenizer_config.json decides it.
      where: the file's name in messages.

    Raises:
      UserError: the file or one of its companions is malformed or missing, or no token ends a text.
    """
    for name in next(
        (names for names in transformers_classes.BYTE_LEVEL if file.name in names), ()
    ):
        if not (file.parent / name).is_file():
            raise UserError(f'{where}: must have {name} next to {file.name}')
    source = transformers_classes.read(file, lowercase, where)
    return HuggingFace(
        source.fast,
        source.declared,
        where,
        clean_up=bool(source.settings.get('clean_up_tokenization_spaces')),
        has_types=source.has_types,
        split_special=bool(source.settings.get('split_special_tokens')),
    )
