"""The tokenizer of a run: the one that its configuration names, or one trained on its text."""

import hashlib
import json
import pathlib

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import records, sources, tokenizers
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage


def load(c: ConfigDict) -> Tokenizer:
    """The tokenizer of a run.

    It is that of `config.tokenizer.path`, or else of the teacher's folder, or else of the folder
    that the student starts from, or else that of a prepared set (of a mixture the first part that
    is one), or else one trained on the train split of the text. The latter
    has `config.student.vocab_size` pieces, SYMBOLS of the student's family among them, and is kept
    in `config.data.cache`. Of pydocs it sees every package and no other form than `text`, so that
    pre-training and all fine-tuning share it.

    Raises:
      UserError: the file is missing or malformed, or has more ids than
        `config.student.vocab_size` (a network may have more rows than its tokenizer has ids), or no
        such vocabulary can be trained.
    """
    tokenizer = _given(c) or _trained(c)
    if tokenizer.vocab_size > c.student.vocab_size:
        raise UserError(
            f'config.student.vocab_size = {c.student.vocab_size}: must be at least the '
            f'{tokenizer.vocab_size} ids of the tokenizer {tokenizer.path}'
        )
    return tokenizer


def _given(c: ConfigDict) -> Tokenizer | None:
    if c.tokenizer.path:
        return tokenizers.read(c.tokenizer.path, c.tokenizer.lowercase)
    init = '' if c.student.init in config.STARTS else c.student.init
    places = [('teacher.path', c.teacher.path), ('student.init', init)]
    prepared = _prepared(c)
    if prepared:
        places.append(
            (prepared[0], str(storage.local_folder(f'config.{prepared[0]} = ', prepared[1])))
        )
    for key, path in places:
        found = tokenizers.find(path) if path else None
        if found:
            return tokenizers.read(found, c.tokenizer.lowercase, key)
    if prepared:
        records.read_manifest(pathlib.Path(prepared[1]).expanduser())  # else it is no such folder
        raise UserError(
            f"config.tokenizer.path = '': must be the tokenizer that {prepared[1]} was prepared "
            'with'
        )
    return None


def _prepared(c: ConfigDict) -> tuple[str, str] | None:
    """Key and folder of the prepared set, the first one of a mixture; None: all has text."""
    if c.data.source == 'mixture':
        key, parts = 'data.mixture', [part for part, _ in sources.parts(c)]
    else:
        key, parts = 'data.path', [c]
    found = (part.data.path for part in parts if part.data.source == 'prepared')
    return next(((key, path) for path in found), None)


def _trained(c: ConfigDict) -> Tokenizer:
    whole = config.copy(c)
    whole.data.packages = ()
    whole.data.view = 'text'
    whole.objective = 'clm'  # of every kind of example the texts
    if c.tokenizer.text:
        whole.data.path, whole.data.files = c.tokenizer.text, ()
    size, source, symbols = (
        c.student.vocab_size,
        c.data.source,
        tokenizers.SYMBOLS[c.student.family],
    )
    identity = json.dumps(sources.identity(whole, ('train',)), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    kind = f'bpe-{c.student.family}' if symbols else 'bpe'
    folder = storage.local_folder('config.data.cache = ', c.data.cache) / 'tokenizers'
    path = folder / f'{source}-{kind}-{size}-{digest}.model'
    if not path.is_file():
        texts = (example.first for example in sources.examples(whole, 'train'))
        storage.publish(path, lambda temporary: tokenizers.train(texts, size, temporary, symbols))
    return tokenizers.read(str(path))
