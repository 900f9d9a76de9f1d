"""SOURCES: where examples come from. `config.data.source` names a source.

`lightpaff_jax.config.sources` holds the plain data of each source. The source `prepared` has token
ids instead of text, so it has no functions here; see `lightpaff_jax.data.records`.
"""

import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import validate
from lightpaff_jax.data import records
from lightpaff_jax.data.sources import decontaminate, registry, specs, splits
from lightpaff_jax.data.sources.decontaminate import MIN_SENTENCE_WORDS, OverlapIndex
from lightpaff_jax.data.sources.registry import Source
from lightpaff_jax.data.sources.splits import OnError
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

SPLITS = splits.SPLITS
Example = splits.Example
Repair = Callable[[Example], Example]
_TEXT_SOURCES = tuple(registry.READERS)  # may be listed in keys other than `mixture`


def _ignore(message: str) -> None:
    """Ignores a skipped row."""


def examples(c: ConfigDict, split: str, on_skip: OnError = _ignore) -> Iterator[Example]:
    """Yields the examples of a split, of the type that the objective needs.

    If the objective learns from documents, each text of a source of another type is a document; two
    texts that are classified together are one document.

    Args:
      c: the configuration.
      split: one of SPLITS.
      on_skip: called with a message for each malformed row that is skipped.

    Raises:
      UserError: there is no example, or the source raises an error.
    """
    message = f'config.data.path = {c.data.path}: empty corpus, no example of split {split!r}'
    return splits.require_any(_decontaminated_examples(c, split, on_skip), message)


def _decontaminated_examples(c: ConfigDict, split: str, on_skip: OnError) -> Iterator[Example]:
    """Yields the repaired examples; training examples are decontaminated.

    The other splits stay complete, because they may be the texts to remove from training.
    """
    if config.SOURCES[c.data.source].has_parts:  # `examples` has decontaminated the parts
        yield from _read(c, split, on_skip)
        return
    repair = _repair(c)
    has_documents = config.OBJECTIVES[c.objective].example_type == 'documents'
    # A part of a classified text is another example, a part of a document is not.
    index = OverlapIndex(match_parts=has_documents)
    min_words = decontaminate.MIN_TEXT_WORDS if has_documents else MIN_SENTENCE_WORDS
    if split == 'train':
        _index_parts(c, index, repair)
    yield from _drop_overlaps(_read(c, split, on_skip), index, min_words, repair)
    if split == 'train' and c.data.unlabelled:
        yield from _unlabelled_examples(c, repair, on_skip)


def _unlabelled_examples(c: ConfigDict, repair: Repair, on_skip: OnError) -> Iterator[Example]:
    """Yields texts without a class, except those that overlap with an evaluation text."""
    index = OverlapIndex(match_parts=True)
    _index_parts(c, index, repair)
    for split in ('validation', 'test'):
        _add_texts(index, _read(c, split, _ignore), False, repair)
    for part, entry in zip(_parts(c, 'data.unlabelled'), c.data.unlabelled, strict=True):
        source = _source(part.c)
        has_pairs = source.example_type(part.c) == 'classes'
        streams = (source.examples(part.c, split, on_skip) for split in part.splits)
        remaining = _drop_overlaps(
            itertools.chain.from_iterable(streams), index, MIN_SENTENCE_WORDS, repair
        )
        message = (
            f'config.data.unlabelled = {entry!r}: no text remains, all overlap with evaluation texts '
            'or config.data.decontaminate'
        )
        for example in splits.require_any(remaining, message):
            yield Example(example.first, example.second if has_pairs else '')


def _spellings(example: Example, repaired: Example) -> tuple[str, ...]:
    """Returns the texts before and after repair: another dataset may have either."""
    return tuple(dict.fromkeys((*example[:2], *repaired[:2])))


def _drop_overlaps(
    stream: Iterable[Example], index: OverlapIndex, min_words: int, repair: Repair
) -> Iterator[Example]:
    """Yields the repaired examples that do not overlap with an indexed text."""
    for example in stream:
        repaired = repair(example)
        if not any(index.overlaps(text, min_words) for text in _spellings(example, repaired)):
            yield repaired


def _add_texts(
    index: OverlapIndex, stream: Iterable[Example], is_document: bool, repair: Repair
) -> None:
    for example in stream:
        for text in _spellings(example, repair(example)):
            index.add(text, is_document)


def _index_parts(c: ConfigDict, index: OverlapIndex, repair: Repair) -> None:
    """Adds the texts of `config.data.decontaminate` to an index."""
    for part in _parts(c, 'data.decontaminate'):
        source = _source(part.c)
        is_document = source.example_type(part.c) == 'documents'
        for split in part.splits:
            _add_texts(index, source.examples(part.c, split, _ignore), is_document, repair)


def _read(c: ConfigDict, split: str, on_skip: OnError) -> Iterator[Example]:
    source = _source(c)
    wanted, example_type = _example_types(c, source)
    for example in source.examples(c, split, on_skip):
        if example_type == 'documents' or wanted != 'documents':
            yield example
            continue
        texts = [text for text in example[:2] if text.strip()]
        if example_type == 'classes' and texts:
            texts = ['\n'.join(texts)]
        yield from map(Example, texts)


def _repair(c: ConfigDict) -> Repair:
    """Returns a function that replaces words in both texts as `config.data.replace` lists them."""
    words = {}
    for entry in c.data.replace:
        old, _, words[old] = entry.partition('=')
        if not old or not words[old] or any(c.isspace() for c in entry):
            rule = 'must be OLD=NEW, two words without white space'
            raise UserError(f'config.data.replace = {entry!r}: {rule}')
    if not words:
        return lambda example: example
    pattern = re.compile(rf'(?<!\S)(?:{"|".join(map(re.escape, words))})(?!\S)')

    def repair(example: Example) -> Example:
        first, second = (pattern.sub(lambda word: words[word[0]], t) for t in example[:2])
        return example._replace(first=first, second=second)

    return repair


def _parts(c: ConfigDict, key: str) -> list[specs.Part]:
    """Returns the datasets that a dotted key of the configuration lists."""
    return [specs.part(c, key, entry, _TEXT_SOURCES) for entry in c[key]]


def _vocabulary_parts(c: ConfigDict) -> list[specs.Part]:
    """Returns the datasets of `config.tokenizer.reduce`, which inherit no setting of `config.data`.

    The runs of a recipe read other data, and must choose the same vocabulary.
    """
    base = config.default()
    base.tokenizer.reduce = c.tokenizer.reduce
    base.data.update({key: c.data[key] for key in ('cache', 'tfds_dir')})
    parts = []
    for part, entry in zip(_parts(base, 'tokenizer.reduce'), c.tokenizer.reduce, strict=True):
        if '#' in entry and part.splits != ('train',):
            raise UserError(
                f'config.tokenizer.reduce = {entry}: must name the split train only: the vocabulary '
                'is not chosen from evaluated text'
            )
        parts.append(part._replace(splits=('train',)))
    return parts


def vocabulary_texts(c: ConfigDict) -> Iterator[Iterator[str]]:
    """Yields the texts of each dataset of `config.tokenizer.reduce`, which choose the vocabulary.

    Raises:
      UserError: a dataset has no text, or its source raises an error.
    """
    for part, entry in zip(_vocabulary_parts(c), c.tokenizer.reduce, strict=True):
        message = f'config.tokenizer.reduce = {entry!r}: must have texts'
        yield splits.require_any(_texts(part), message)


def _texts(part: specs.Part) -> Iterator[str]:
    source = _source(part.c)
    for split in part.splits:
        for example in source.examples(part.c, split, _ignore):
            yield from filter(None, example[:2])


def vocabulary_identity(c: ConfigDict) -> list[Any]:
    """Returns the values on which `vocabulary_texts` depends, as JSON values."""
    return _identities(_vocabulary_parts(c))


def identity(c: ConfigDict, wanted: Sequence[str] = SPLITS) -> dict[str, Any]:
    """Returns the values on which the examples of some splits depend, as JSON values.

    If they are equal for two configurations with one source and objectives of one example type,
    these have equal examples.
    """
    source = _source(c)
    values = source.identity(c, wanted)
    has_documents = config.OBJECTIVES[c.objective].example_type == 'documents'
    if has_documents and source.example_type(c) == 'classes':
        values['pairs'] = 'joined'
    if c.data.replace:
        values['replace'] = list(c.data.replace)
    for key in ('decontaminate', 'unlabelled'):
        if c.data[key] and 'train' in wanted:
            values['overlap'] = decontaminate.VERSION
            values[key] = _identities(_parts(c, f'data.{key}'))
    return values


def _identities(listed: Sequence[specs.Part]) -> list[Any]:
    return [
        [part.data.source, list(names), _source(part).identity(part, names)]
        for part, names, _ in listed
    ]


def check(c: ConfigDict) -> None:
    """Raises UserError if a package, a file, a dataset or a column is missing."""
    if config.SOURCES[c.data.source].has_text:
        source = _source(c)
        source.check(c, SPLITS)
        if 'classes' in _example_types(c, source):
            source.class_names(c)
    _repair(c)
    for key in ('data.decontaminate', 'data.unlabelled'):
        _check_parts(c, key, _parts(c, key))
    _check_parts(c, 'tokenizer.reduce', _vocabulary_parts(c))


def _check_parts(c: ConfigDict, key: str, listed: Sequence[specs.Part]) -> None:
    for part, entry in zip(listed, c[key], strict=True):
        with specs.name_entry(key, entry):
            validate.check_data_path(part.c)
            _source(part.c).check(part.c, part.splits)


def classes(c: ConfigDict) -> int:
    """Returns the number of classes of the examples; 0 if they have none.

    Raises:
      UserError: the folder of the source 'prepared' is not a prepared dataset.
    """
    if not config.SOURCES[c.data.source].has_text:
        folder = storage.local_folder('config.data.path = ', c.data.path)
        return records.read_manifest(folder)['classes']
    return _source(c).classes(c)


def class_names(c: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes in the order of their labels, or ().

    Raises:
      UserError: files name different classes, or the folder of the source 'prepared' is not a
        prepared dataset.
    """
    if config.SOURCES[c.data.source].has_text:
        names = _source(c).class_names(c)
    else:
        names = _prepared_class_names(storage.local_folder('config.data.path = ', c.data.path))
    return () if names == tuple(map(str, range(len(names)))) else names


def _prepared_class_names(folder: pathlib.Path) -> tuple[str, ...]:
    manifest = records.read_manifest(folder)
    names = manifest.get('class_names')
    if names is None:  # prepared by an earlier version
        names = manifest.get('made_from', {}).get('keys', {}).get('labels', ())
        if not names and manifest['source'] in config.SOURCES:
            names = config.SOURCES[manifest['source']].class_names
    if names and len({*names}) != manifest['classes']:
        raise UserError(
            f'{folder / records.MANIFEST}: has the classes {", ".join(names)}: must be '
            f'{manifest["classes"]} different names'
        )
    return tuple(names)


def _source(c: ConfigDict) -> Source:
    if not config.SOURCES[c.data.source].has_text:
        raise UserError(
            f'config.data.path = {c.data.path}: source {c.data.source!r} has ids and no text, '
            'config.tokenizer.path must name its tokenizer'
        )
    return SOURCES[c.data.source]


def _example_types(c: ConfigDict, source: Source) -> tuple[str, str]:
    """Returns the example types of the objective and of the source.

    Raises:
      UserError: the objective cannot learn from examples of this type.
    """
    wanted, example_type = config.OBJECTIVES[c.objective].example_type, source.example_type(c)
    if wanted not in (example_type, 'documents'):
        raise UserError(
            f'config.data.source = {c.data.source!r}: {c.data.path} has {example_type}, which '
            f'objective {c.objective!r} does not learn from'
        )
    return wanted, example_type


def parts(c: ConfigDict) -> list[tuple[ConfigDict, float]]:
    """Returns the configuration and the weight of each part of the source 'mixture'.

    The settings of the mixture for repair and decontamination apply to every part.

    Raises:
      UserError: an entry of `config.data.mixture` is malformed.
    """
    names = [name for name, source in config.SOURCES.items() if not source.has_parts]
    pairs = []
    for entry in c.data.mixture:
        part, split_names, weight = specs.weighted_part(c, 'data.mixture', entry, names)
        if split_names != SPLITS:
            raise UserError(f'config.data.mixture = {entry!r}: must not choose splits')
        part.data.replace = c.data.replace
        part.data.decontaminate = tuple(
            specs.rebase(c, 'data.decontaminate', other, _TEXT_SOURCES, part)
            for other in c.data.decontaminate
        )
        pairs.append((part, weight))
    return pairs


def _mixture_examples(c: ConfigDict, split: str, on_skip: OnError) -> Iterator[Example]:
    for part, _ in parts(c):
        yield from examples(part, split, on_skip)


def _mixture_identity(c: ConfigDict, wanted: Sequence[str]) -> dict[str, Any]:
    return {'parts': [[part.data.source, identity(part, wanted)] for part, _ in parts(c)]}


def _check_mixture(c: ConfigDict, wanted: Sequence[str]) -> None:
    del wanted  # `check` needs all splits of the parts
    for (part, _), entry in zip(parts(c), c.data.mixture, strict=True):
        with specs.name_entry('data.mixture', entry):
            validate.check_data_path(part)
            check(part)


SOURCES = {
    **registry.READERS,
    'mixture': Source(_mixture_examples, _mixture_identity, _check_mixture),
}
