"""Chooses the tokenizer of a run, or trains one on the run's text."""

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
    """Opens the tokenizer of a run, and trains it if the run names none.

    The first of these is used:

    1. `config.tokenizer.path`;
    2. the tokenizer of the teacher's folder;
    3. the tokenizer of the folder from which the student starts;
    4. the tokenizer of the prepared dataset, in a mixture that of its first prepared part;
    5. a SentencePiece model trained on the train split of the text, with
       `config.student.vocab_size` pieces that include the SYMBOLS of the student's family. It is
       kept in `config.data.cache`. For pydocs it is trained on the view `text` of all packages, so
       that pre-training and all fine-tuning runs share it.

    Raises:
      UserError: the file is missing or malformed, it has more ids than `config.student.vocab_size`
        (fewer are allowed), or such a vocabulary cannot be trained.
    """
    tokenizer = _configured(c) or _train(c)
    if tokenizer.vocab_size > c.student.vocab_size:
        raise UserError(
            f'config.student.vocab_size = {c.student.vocab_size}: must be at least the '
            f'{tokenizer.vocab_size} ids of the tokenizer {tokenizer.path}'
        )
    return tokenizer


def _configured(c: ConfigDict) -> Tokenizer | None:
    """Opens the tokenizer that the configuration implies; None if it must be trained."""
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
        tokenizer_path = tokenizers.find(path) if path else None
        if tokenizer_path:
            return tokenizers.read(tokenizer_path, c.tokenizer.lowercase, f'config.{key} = {path}')
    if prepared:
        # Raises an error of its own if the folder is not a prepared dataset.
        records.read_manifest(pathlib.Path(prepared[1]).expanduser())
        raise UserError(
            f"config.tokenizer.path = '': must be the tokenizer that {prepared[1]} was prepared "
            'with'
        )
    return None


def _prepared(c: ConfigDict) -> tuple[str, str] | None:
    """Returns the key and the folder of the first prepared dataset; None if all data is text."""
    if config.SOURCES[c.data.source].has_parts:
        key, parts = 'data.mixture', [part for part, _ in sources.parts(c)]
    else:
        key, parts = 'data.path', [c]
    folders = (part.data.path for part in parts if not config.SOURCES[part.data.source].has_text)
    return next(((key, path) for path in folders), None)


def _train(c: ConfigDict) -> Tokenizer:
    """Opens the tokenizer of the text, and trains it if the cache does not have it."""
    whole = config.copy(c)
    whole.data.packages = ()
    whole.data.view = 'text'
    whole.objective = 'clm'  # reads the texts of every example type
    if c.tokenizer.text:
        whole.data.path, whole.data.files = c.tokenizer.text, ()
    size, symbols = c.student.vocab_size, tokenizers.SYMBOLS[c.student.family]
    identity = json.dumps(sources.identity(whole, ('train',)), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    kind = f'bpe-{c.student.family}' if symbols else 'bpe'
    folder = storage.local_folder('config.data.cache = ', c.data.cache) / 'tokenizers'
    path = folder / f'{c.data.source}-{kind}-{size}-{digest}.model'
    if not path.is_file():
        texts = (example.first for example in sources.examples(whole, 'train'))
        storage.publish(path, lambda temporary: tokenizers.train(texts, size, temporary, symbols))
    return tokenizers.read(str(path))
