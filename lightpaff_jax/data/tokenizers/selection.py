"""Chooses the tokenizer of a run, reduces that of its teacher, or trains one on the run's text."""

import hashlib
import json
import pathlib

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import records, sources, tokenizers
from lightpaff_jax.data.tokenizers import Tokenizer, reduction
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage


def load(c: ConfigDict) -> Tokenizer:
    """Opens the tokenizer of a run, and trains it if the run names none.

    With `config.tokenizer.reduce`, it is the tokenizer of `config.tokenizer.path` or of the teacher,
    reduced to `config.student.vocab_size` pieces and kept in `config.data.cache`. Otherwise the
    first of these is used:

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
        (fewer are allowed), or such a vocabulary cannot be chosen or trained.
    """
    if c.tokenizer.reduce:
        return _reduce(c)
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


def check(c: ConfigDict) -> None:
    """Checks that the tokenizer that `config.tokenizer.reduce` reduces, if it exists already, can be.

    Raises:
      UserError: it is not a WordPiece tokenizer, or `config.student.vocab_size` does not fit it.
    """
    path = c.tokenizer.path or c.teacher.path
    if c.tokenizer.reduce and storage.to_path(path).exists():
        _check_whole(c, _whole(c))


def _whole(c: ConfigDict) -> Tokenizer:
    """Opens the tokenizer to reduce."""
    if c.tokenizer.path:
        return tokenizers.read(c.tokenizer.path, c.tokenizer.lowercase)
    label = f'config.teacher.path = {c.teacher.path}'
    path = tokenizers.find(c.teacher.path)
    if path is None:
        raise UserError(f'{label}: must hold the tokenizer that config.tokenizer.reduce reduces')
    return tokenizers.read(path, c.tokenizer.lowercase, label)


def _check_whole(c: ConfigDict, whole: Tokenizer) -> frozenset[int]:
    """Checks the tokenizer to reduce; returns the ids of all its reductions."""
    label, size = f'config.tokenizer.reduce = {",".join(c.tokenizer.reduce)}', c.student.vocab_size
    required = reduction.required_ids(whole, label)
    if not len(required) <= size <= whole.vocab_size:
        raise UserError(
            f'config.student.vocab_size = {size}: must be at least {len(required)}, the special '
            f'tokens and characters of the tokenizer {whole.path}, and at most its '
            f'{whole.vocab_size} ids'
        )
    return required


def _reduce(c: ConfigDict) -> Tokenizer:
    """Opens the reduced tokenizer, and chooses its pieces if the cache does not have it."""
    whole, size = _whole(c), c.student.vocab_size
    required = _check_whole(c, whole)
    identity = {
        'version': reduction.VERSION,
        'tokenizer': whole.fingerprint,
        'family': c.student.family,
        'texts': sources.vocabulary_identity(c),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = storage.local_folder('config.data.cache = ', c.data.cache) / 'tokenizers'
    path = folder / f'reduced-{size}-{digest}'

    def write(temporary: pathlib.Path) -> None:
        texts = sources.vocabulary_texts(c)
        reduction.reduce(whole, required, texts, size).save(temporary, c.student.family, None)

    if not path.is_dir():
        storage.publish(path, write)
    return tokenizers.read(str(path))


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
