"""Builds a tokenizer from the files of a folder, by the rules of transformers' tokenizer classes.

AutoTokenizer of transformers 5 does not read a tokenizer.json as it is, unless the class of the
tokenizer is PreTrainedTokenizerFast (TokenizersBackend). The other classes keep only its vocabulary,
its added tokens and perhaps its post-processor, and take the rest from tokenizer_config.json.
"""

import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.runtime import json_file

BYTE_LEVEL = (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'))
_BERT, _GPT2, _ROBERTA, _SAVED = 'BertTokenizer', 'GPT2Tokenizer', 'RobertaTokenizer', 'as saved'
# Name of a class without the ending Fast, or type of a model -> the class that transformers uses.
_CLASSES = {
    'BertTokenizer': _BERT,
    'DistilBertTokenizer': _BERT,
    'GPT2Tokenizer': _GPT2,
    'RobertaTokenizer': _ROBERTA,
    'BartTokenizer': _ROBERTA,
    'PreTrainedTokenizer': _SAVED,
    'TokenizersBackend': _SAVED,
}
_MODEL_TYPES = {
    'bert': _BERT,
    'distilbert': _BERT,
    'gpt2': _GPT2,
    'bart': _ROBERTA,
    'roberta': _ROBERTA,
}
_MODELS = {_BERT: 'WordPiece', _GPT2: 'BPE', _ROBERTA: 'BPE'}
_ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')  # in the order of transformers
# Class -> role -> default.
_DEFAULTS: dict[str, dict[str, str]] = {
    _BERT: {'unk': '[UNK]', 'sep': '[SEP]', 'pad': '[PAD]', 'cls': '[CLS]', 'mask': '[MASK]'},
    _GPT2: dict.fromkeys(('bos', 'eos', 'unk'), '<|endoftext|>'),
    _ROBERTA: dict(
        zip(_ROLES, ['<s>', '</s>', '<unk>', '</s>', '<pad>', '<s>', '<mask>'], strict=True)
    ),
    _SAVED: {},
}
# Key of tokenizer_config.json -> the values that change no result; any other is refused.
_REFUSED: dict[str, tuple] = {
    'auto_map': (None,),
    'fast_tokenizer_files': (None,),
    'init_inputs': (None, []),
    'truncation_side': (None, 'right'),
}
_EXTRA, _ADDITIONAL = 'extra_special_tokens', 'additional_special_tokens'
_TYPES = 'token_type_ids'
_TOKEN_OPTIONS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_MAX_IDS = 10_000_000  # arrays have an element for each id


class Source(NamedTuple):
    """The tokenizer of a folder."""

    fast: tokenizers.Tokenizer
    declared: dict[str, str]
    """Role -> spelling of the special tokens."""
    settings: dict[str, Any]
    """tokenizer_config.json."""
    has_types: bool
    """Whether transformers passes the type of each text to the network."""


class _Settings(NamedTuple):
    """The settings of a tokenizer."""

    values: dict[str, Any]  # tokenizer_config.json
    named: dict[str, Any]  # role, or another name -> special token
    extra: list[Any]  # special tokens without a name
    added: dict[int, AddedToken]  # id -> token


class _Files(NamedTuple):
    """The files of a tokenizer; error messages begin with `where`."""

    where: str
    file: pathlib.Path
    pair: tuple[pathlib.Path, ...]  # both files of a byte-level BPE
    saved: dict[str, Any] | None  # tokenizer.json
    settings: _Settings
    vocabulary: dict[str, int]


def read(file: pathlib.Path, lowercase: bool, where: str) -> Source:
    """Builds the tokenizer of a file and its companions in the same folder.

    Args:
      file: a vocab.txt, either file of a byte-level BPE, or a tokenizer.json.
      lowercase: `do_lower_case` of a BertTokenizer, unless tokenizer_config.json has it.
      where: the start of messages.

    Raises:
      UserError: a file is malformed, or has a class or a setting that is not supported.
    """
    names = next((names for names in BYTE_LEVEL if file.name in names), ())
    saved = _read_json(file, where) if file.suffix == '.json' and not names else None
    what = 'tokenizer.json' if saved is not None else 'byte-level BPE' if names else 'vocab.txt'
    pair = tuple(file.parent / name for name in names)
    settings = _read_settings(file.parent, saved, where)
    try:
        vocabulary = _vocabulary(file, pair, saved, where)
        files = _Files(where, file, pair, saved, settings, vocabulary)
        kind, is_declared = _class(files, _read_json(file.parent / 'config.json', where))
        return _build(files, kind, is_declared, lowercase)
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises no narrower class
        raise UserError(f'{where}: {file.name}: must be a {what}: {one_line(error)}') from error


def _read_settings(folder: pathlib.Path, saved: Mapping[str, Any] | None, where: str) -> _Settings:
    """Reads the settings and the added tokens, in transformers' order of precedence.

    special_tokens_map.json, added_tokens.json and the added tokens of tokenizer.json count only if
    tokenizer_config.json has no added_tokens_decoder.
    """
    file = folder / 'tokenizer_config.json'
    values = _read_json(file, where)
    for key, allowed in _REFUSED.items():
        if values.get(key) not in allowed:
            rule = f'must be {" or ".join(map(repr, allowed))}'
            raise UserError(f'{where}: {file}: {key} = {values[key]!r:.80}: {rule}')
    try:
        extra, named = values.pop(_EXTRA, None), {}
        if not extra and _ADDITIONAL in values:
            extra = values.pop(_ADDITIONAL)
        for key in [key for key in values if _is_named(key) and isinstance(values[key], str)]:
            named[key] = values.pop(key)
        if isinstance(extra, dict):
            named, extra = named | extra, None
        if (decoder := values.get('added_tokens_decoder')) is not None:
            added = {int(i): _added_token(entry) for i, entry in decoder.items()}
        else:
            file = folder / 'special_tokens_map.json'
            tokens = _read_json(file, where)
            more = tokens.pop(_EXTRA, None)
            values |= {k: v | {'special': True} if _is_token(v) else v for k, v in tokens.items()}
            if isinstance(more, dict):
                named, extra = named | more, None
            elif more is not None:
                extra = [*(extra or []), *(token for token in more if token not in (extra or []))]
            names = [values.get(f'{role}_token') for role in _ROLES]
            special = {_spelling(token) for token in (*names, *(extra or [])) if token}
            file, added = folder / 'added_tokens.json', {}
            for content, i in _read_json(file, where).items():
                options = {'special': content in special, 'normalized': content not in special}
                added[int(i)] = _added_token({'content': content, **options})
            file = folder / 'tokenizer.json'
            for entry in (saved or {}).get('added_tokens', []):
                added[int(entry['id'])] = _added_token(entry)
        roles = {role: values[f'{role}_token'] for role in _ROLES if f'{role}_token' in values}
        for key, value in values.items():
            if _is_named(key) and (isinstance(value, str) or _is_token(value)):
                roles[key] = value
        extra = values.pop(_ADDITIONAL, None) if extra is None else extra
        for token in (*roles.values(), *named.values(), *(extra or [])):
            if token is not None:
                _added_token(token)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise UserError(f'{where}: {file}: must name added tokens: {one_line(error)}') from error
    return _Settings(values, roles | named, [*(extra or [])], added)


def _read_json(file: pathlib.Path, where: str) -> dict[str, Any]:
    return json_file.read(file, dict, f'{where}: {file}') if file.is_file() else {}


def _is_named(key: str) -> bool:
    return key.endswith('_token') and key.removesuffix('_token') not in _ROLES


def _added_token(entry: Mapping[str, Any] | str) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    options = {key: entry[key] for key in _TOKEN_OPTIONS if key in entry}
    return AddedToken(entry['content'], **options)


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('content'), str)


def _class(files: _Files, network: Mapping[str, Any]) -> tuple[str, bool]:
    """Returns the class of a tokenizer, and whether a file names it.

    Without a name the files decide: transformers needs a name, this package does not.
    """
    for name, values in (
        ('tokenizer_config.json', files.settings.values),
        ('config.json', network),
    ):
        if (declared := values.get('tokenizer_class')) is not None:
            kind = _CLASSES.get(str(declared).removesuffix('Fast'))
            _check_choice(files, name, 'tokenizer_class', declared, kind, _CLASSES)
            return str(kind), True
    if (model_type := network.get('model_type')) is not None:
        kind = _MODEL_TYPES.get(str(model_type))
        _check_choice(files, 'config.json', 'model_type', model_type, kind, _MODEL_TYPES)
        return str(kind), True
    if files.saved is not None:
        return _SAVED, False
    if not files.pair:
        return _BERT, False
    return (_GPT2 if '<|endoftext|>' in files.vocabulary else _ROBERTA), False


def _check_choice(
    files: _Files, name: str, key: str, value: Any, kind: str | None, names: Collection[str]
) -> None:
    if kind is None:
        raise UserError(
            f'{files.where}: {name} has {key} = {value!r:.80}: must be one of {", ".join(names)}'
        )
    model_type = ((files.saved or {}).get('model') or {}).get('type')
    if files.saved is None:
        model_type = 'BPE' if files.pair else 'WordPiece'
    if model_type != _MODELS.get(kind, model_type):
        raise UserError(
            f'{files.where}: {name} has {key} = {value!r:.80}, whose model is a {_MODELS[kind]}: '
            f'{files.file.name} has a {model_type!r:.80}'
        )


def _vocabulary(
    file: pathlib.Path, pair: Sequence[pathlib.Path], saved: Mapping[str, Any] | None, where: str
) -> dict[str, int]:
    """Returns the ids of the tokens; checks them before `tokenizers` allocates memory for them."""
    ids = {str: range(_MAX_IDS)}
    if pair:
        vocabulary = json_file.read(pair[0], ids, f'{where}: {pair[0].name}')
    elif saved is None:
        vocabulary = models.WordPiece.read_file(str(file))
    else:
        vocabulary = saved['model']['vocab']
        if isinstance(vocabulary, list):  # a unigram model
            vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        json_file.check(vocabulary, ids, f'{where}: {file.name}: model.vocab')
    if len({*vocabulary.values()}) < len(vocabulary):
        raise ValueError('two tokens have one id')
    return vocabulary


def _build(files: _Files, kind: str, is_declared: bool, lowercase: bool) -> Source:
    named: dict[str, Any] = dict.fromkeys(_ROLES) | _DEFAULTS[kind]
    if kind == _SAVED and (padding := (files.saved or {}).get('padding')):
        named['pad'] = padding['pad_token']
    if is_declared:
        named |= files.settings.named
    else:  # without settings, only special tokens of the vocabulary count
        contents = files.vocabulary.keys() | {x.content for x in files.settings.added.values()}
        tokens = [*named.items(), *files.settings.named.items()]
        named = {role: token for role, token in tokens if _spelling(token) in contents}
    declared = {role: _spelling(token) for role, token in named.items() if token is not None}
    for role in ('unk', 'sep', 'cls') if kind in (_BERT, _ROBERTA) and is_declared else ():
        if role not in declared:
            raise UserError(f'{files.where}: {role}_token = null: a {kind} must have one')
    if kind == _BERT:
        fast = _word_piece(files, declared, {'do_lower_case': lowercase} | files.settings.values)
    elif kind == _SAVED:
        fast = tokenizers.Tokenizer.from_file(str(files.file))
    else:
        fast = _byte_level(files)
    if not is_declared and '<mask>' in declared.values():  # as in older versions of transformers
        named = named | {'mask': {'content': '<mask>', 'lstrip': True, 'special': True}}
    _add_tokens(files, fast, named)
    _set_post_processor(files, fast, kind, declared, is_declared)
    _check_unknown(files, fast)
    inputs = files.settings.values.get('model_input_names', [_TYPES] if kind == _BERT else [])
    return Source(fast, declared, files.settings.values, _TYPES in inputs)


def _spelling(token: Any) -> str:
    return token['content'] if _is_token(token) else str(token)


def _word_piece(
    files: _Files, declared: Mapping[str, str], settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    unknown = declared.get('unk', '[UNK]')
    if unknown not in files.vocabulary:
        raise ValueError(f'no line is {unknown}')
    fast = tokenizers.Tokenizer(models.WordPiece(files.vocabulary, unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
        strip_accents=settings.get('strip_accents'),
        lowercase=settings['do_lower_case'],
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast


def _byte_level(files: _Files) -> tokenizers.Tokenizer:
    if files.saved is None:
        model = models.BPE.from_file(*map(str, files.pair))
    else:
        merges = files.saved['model']['merges']
        pairs = [m.split(' ') if isinstance(m, str) else m for m in merges]
        model = models.BPE(files.vocabulary, [(left, right) for left, right in pairs])
    fast = tokenizers.Tokenizer(model)
    add_prefix_space = files.settings.values.get('add_prefix_space', False)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    fast.decoder = decoders.ByteLevel()
    return fast


def _add_tokens(files: _Files, fast: tokenizers.Tokenizer, named: Mapping[str, Any]) -> None:
    """Adds tokens in the order of transformers, which decides the ids of new tokens."""
    added = [token for _, token in sorted(files.settings.added.items())]
    present = {token.content for token in (*fast.get_added_tokens_decoder().values(), *added)}
    special = [token for token in named.values() if token is not None]
    for token in (*special, *files.settings.extra):
        if _spelling(token) not in present:
            added.append(_added_token(token))  # if it is there twice, the last one decides
    spellings = {_spelling(token) for token in special}
    for token in added:
        token.special = token.special or token.content in spellings
    fast.add_tokens(added)
    for i, token in sorted(files.settings.added.items()):
        new_id = fast.token_to_id(token.content)
        if new_id != i:
            raise UserError(
                f'{files.where}: added token {token.content!r:.80} of {files.file.parent} has id '
                f'{i}, must have {new_id}, the next id after the vocabulary'
            )


def _set_post_processor(
    files: _Files,
    fast: tokenizers.Tokenizer,
    kind: str,
    declared: Mapping[str, str],
    is_declared: bool,
) -> None:
    """Sets the special tokens around a text."""
    ids = fast.get_vocab(with_added_tokens=True)
    if kind == _BERT and is_declared:
        fast.post_processor = bert_template(
            files.where, {role: declared[role] for role in ('cls', 'sep')}, ids
        )
    elif kind == _ROBERTA and {'cls', 'sep'} <= declared.keys():
        cls, sep = declared['cls'], declared['sep']
        fast.post_processor = processors.RobertaProcessing((sep, ids[sep]), (cls, ids[cls]))
    elif kind == _GPT2 and files.saved is not None:
        fast.post_processor = tokenizers.Tokenizer.from_file(str(files.file)).post_processor
    elif kind == _GPT2:
        added = {
            role: declared[role]
            for role in ('bos', 'eos')
            if files.settings.values.get(f'add_{role}_token') and role in declared
        }
        pieces = ['{bos}'] * ('bos' in added) + ['$A'] + ['{eos}'] * ('eos' in added)
        if added:
            fast.post_processor = template(files.where, added, ids, ' '.join(pieces))


def bert_template(
    where: str, tokens: Mapping[str, str], ids: Mapping[str, int]
) -> processors.TemplateProcessing:
    """Returns the post-processor for [CLS] a [SEP] b [SEP] with types 0 and 1; see `template`."""
    pair = '{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1'
    return template(where, tokens, ids, '{cls}:0 $A:0 {sep}:0', pair)


def template(
    where: str,
    tokens: Mapping[str, str],
    ids: Mapping[str, int],
    single: str,
    pair: str | None = None,
) -> processors.TemplateProcessing:
    """Returns a post-processor that adds special tokens around a text.

    Args:
      where: start of a message.
      tokens: role -> spelling of the special tokens.
      ids: spelling -> id.
      single: the template of one text, with {role} for a special token.
      pair: that of two texts; None for the default.

    Raises:
      UserError: a template would read a token as several pieces; transformers has no such tokens.
    """
    for role, token in tokens.items():
        if not re.fullmatch(r'[^\s:$][^\s:]*', token):
            raise UserError(
                f'{where}: {role}_token = {token!r:.80}: must have no space and no colon, and not '
                'begin with $'
            )
    return processors.TemplateProcessing(
        single=single.format(**tokens),
        pair=None if pair is None else pair.format(**tokens),
        special_tokens=[(token, ids[token]) for token in tokens.values()],
    )


def _check_unknown(files: _Files, fast: tokenizers.Tokenizer) -> None:
    """Raises ValueError if the model lacks its token for unknown text, which encoding needs."""
    unknown = getattr(fast.model, 'unk_token', None)
    if unknown is not None and unknown not in files.vocabulary:
        raise ValueError(f'its vocabulary has no unk_token {unknown!r:.80}')
