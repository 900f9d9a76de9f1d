"""SOURCES: where the examples come from. `config.data.source` names one.

The source `prepared` is not in the table: its folder is read by records.py, no example is.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import needed
from lightpaff_jax.data import records
from lightpaff_jax.data.sources import decontaminate, registry, specs, splits
from lightpaff_jax.data.sources.registry import Skipped, Source
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

SPLITS = splits.SPLITS
Example = splits.Example


def examples(c: ConfigDict, split: str, skipped: Skipped | None = None) -> Iterator[Example]:
    """The examples of a split, as the objective needs them.

    For an objective that learns from documents every text of another source is one.

    Args:
      c: the configuration.
      split: one of SPLITS.
      skipped: see Source.examples; None says nothing.

    Raises:
      UserError: there are none, or what the source raises.
    """
    empty = True
    for example in _chosen(c, split, skipped or (lambda line: None)):
        empty = False
        yield example
    if empty:
        raise UserError(
            f'config.data.path = {c.data.path}: empty corpus, no example of split {split!r}'
        )


def _chosen(c: ConfigDict, split: str, skipped: Skipped) -> Iterator[Example]:
    """The examples of `config.data`, repaired; of train, without those that are excluded.

    The other splits stay whole: what is excluded may be these very texts.
    """
    if config.SOURCES[c.data.source].has_parts:  # its parts see to it
        yield from _read(c, split, skipped)
        return
    documents = config.OBJECTIVES[c.objective].example_type == 'documents'
    least = decontaminate.MIN_TEXT_WORDS if documents else decontaminate.MIN_SENTENCE_WORDS
    repair = _repair(c)
    left_out = decontaminate.OverlapIndex(
        match_parts=documents
    )  # of labelled texts a part is another example
    if split == 'train':
        _exclude(c, left_out, repair)
    for example in _read(c, split, skipped):
        repaired = repair(example)
        if not any(left_out.overlaps(text, least) for text in _forms(example, repaired)):
            yield repaired
    if split == 'train' and c.data.unlabelled:
        yield from _unlabelled(c, repair, skipped)


Repair = Callable[[Example], Example]


def _unlabelled(c: ConfigDict, repair: Repair, skipped: Skipped) -> Iterator[Example]:
    """Texts without a class, but those that are evaluated on or excluded."""
    left_out = decontaminate.OverlapIndex(match_parts=True)
    _exclude(c, left_out, repair)
    for split in ('validation', 'test'):
        for example in _read(c, split, lambda line: None):
            _add(left_out, example, False, repair)
    for part, entry in zip(_parts(c, 'unlabelled'), c.data.unlabelled, strict=True):
        source, empty = _source(part.c), True
        pairs = source.example_type(part.c) == 'classes'
        for name in part.splits:
            for example in source.examples(part.c, name, skipped):
                repaired = repair(example)
                texts = _forms(example, repaired)
                if not any(
                    left_out.overlaps(text, decontaminate.MIN_SENTENCE_WORDS) for text in texts
                ):
                    empty = False
                    yield Example(repaired.first, repaired.second if pairs else '')
        if empty:
            raise UserError(
                f'config.data.unlabelled = {entry!r}: nothing is left of it, all of its texts are '
                'evaluated on or excluded'
            )


def _add(
    texts: decontaminate.OverlapIndex, example: Example, document: bool, repair: Repair
) -> None:
    for text in _forms(example, repair(example)):
        texts.add(text, document)


def _forms(example: Example, repaired: Example) -> tuple[str, ...]:
    """Its texts as they are and repaired: two sets may write one text in either way."""
    return tuple(dict.fromkeys((*example[:2], *repaired[:2])))


def _read(c: ConfigDict, split: str, skipped: Skipped) -> Iterator[Example]:
    source = _source(c)
    wanted, example_type = _example_types(c, source)
    for example in source.examples(c, split, skipped):
        if example_type == 'documents' or wanted != 'documents':
            yield example
            continue
        texts = [text for text in example[:2] if text.strip()]
        if example_type == 'classes':  # what is classified together is one document
            texts = ['\n'.join(texts)] if texts else []
        yield from map(Example, texts)


def _repair(c: ConfigDict) -> Repair:
    """Writes the words of `config.data.replace` as what they stand for."""
    pairs = dict(_pair(entry) for entry in c.data.replace)
    if not pairs:
        return lambda example: example
    words = re.compile(rf'(?<!\S)(?:{"|".join(map(re.escape, pairs))})(?!\S)')

    def repair(example: Example) -> Example:
        first, second = (words.sub(lambda found: pairs[found[0]], text) for text in example[:2])
        return example._replace(first=first, second=second)

    return repair


def _pair(entry: str) -> tuple[str, str]:
    old, _, new = entry.partition('=')
    if not old or not new or any(c.isspace() for c in entry):
        rule = 'must be OLD=NEW, two words without white space'
        raise UserError(f'config.data.replace = {entry!r}: {rule}')
    return old, new


def _exclude(c: ConfigDict, texts: decontaminate.OverlapIndex, repair: Repair) -> None:
    for part in _parts(c, 'decontaminate'):
        source = _source(part.c)
        document = source.example_type(part.c) == 'documents'
        for split in part.splits:
            for example in source.examples(part.c, split, lambda line: None):
                _add(texts, example, document, repair)


_NAMED = tuple(registry.READERS)


def _parts(c: ConfigDict, key: str) -> list[specs.Part]:
    """The sets of `config.data.decontaminate` or `.unlabelled`."""
    return [specs.part(c, key, entry, _NAMED) for entry in c.data[key]]


def identity(c: ConfigDict, wanted: Sequence[str] = SPLITS) -> dict:
    """All that the examples of some splits depend on, as JSON values.

    Two configurations of one source and one kind of objective have equal examples if these are equal.
    """
    source = _source(c)
    found = source.identity(c, wanted)
    learns_from = config.OBJECTIVES[c.objective].example_type
    if learns_from == 'documents' and source.example_type(c) == 'classes':
        found['pairs'] = 'joined'
    if c.data.replace:
        found['replace'] = list(c.data.replace)
    for key in ('decontaminate', 'unlabelled'):
        others = [(part, _source(part.c)) for part in _parts(c, key)]
        if others and 'train' in wanted:
            found['overlap'] = decontaminate.VERSION
            found[key] = [
                [part.c.data.source, list(part.splits), source.identity(part.c, part.splits)]
                for part, source in others
            ]
    return found


def check(c: ConfigDict) -> None:
    """Raises UserError for a package, a file, a set or a column that is not there."""
    if config.SOURCES[c.data.source].has_text:
        source = _source(c)
        source.check(c)
        _example_types(c, source)
    _repair(c)
    for key in ('decontaminate', 'unlabelled'):
        for part, entry in zip(_parts(c, key), c.data[key], strict=True):
            try:
                needed.check_folder(part.c)
                _source(part.c).check(part.c)
            except UserError as error:
                raise type(error)(f'config.data.{key} = {entry!r}: {error}') from error


def classes(c: ConfigDict) -> int:
    """How many classes the examples of `config.data` have; 0 where they have none.

    Raises:
      UserError: for the source 'prepared', a folder that is no prepared set.
    """
    if not config.SOURCES[c.data.source].has_text:
        folder = storage.local_folder('config.data.path = ', c.data.path)
        return records.read_manifest(folder)['classes']
    return _source(c).classes(c)


def _source(c: ConfigDict) -> Source:
    if not config.SOURCES[c.data.source].has_text:
        raise UserError(
            f'config.data.path = {c.data.path}: source {c.data.source!r} has ids and no text, '
            'config.tokenizer.path must name its tokenizer'
        )
    return SOURCES[c.data.source]


def _example_types(c: ConfigDict, source: Source) -> tuple[str, str]:
    """Returns the example types of the objective and of the source; raises UserError if the objective cannot use them."""
    wanted, example_type = config.OBJECTIVES[c.objective].example_type, source.example_type(c)
    if wanted not in (example_type, 'documents'):
        raise UserError(
            f'config.data.source = {c.data.source!r}: {c.data.path} has {example_type}, which '
            f'objective {c.objective!r} does not learn from'
        )
    return wanted, example_type


# Mixtures


def parts(c: ConfigDict) -> list[tuple[ConfigDict, float]]:
    """The configuration and the weight of each part of the source 'mixture'.

    Raises:
      UserError: a part that is no SOURCE:PATH=WEIGHT.
    """
    named = [name for name, source in config.SOURCES.items() if not source.has_parts]
    found = [specs.weighted(c, 'mixture', entry, named) for entry in c.data.mixture]
    for part, entry in zip(found, c.data.mixture, strict=True):
        if part.splits != SPLITS:
            raise UserError(f'config.data.mixture = {entry!r}: must not choose splits')
        # What is left out of all of them, and mended in all of them.
        part.c.data.replace = c.data.replace
        part.c.data.decontaminate = tuple(
            specs.moved(c, 'decontaminate', one, _NAMED, part.c) for one in c.data.decontaminate
        )
    return [(part.c, part.weight) for part in found]


def _mixed(c: ConfigDict, split: str, skipped: Skipped) -> Iterator[Example]:
    for part, _ in parts(c):
        yield from examples(part, split, skipped)


def _mixture_identity(c: ConfigDict, wanted: Sequence[str]) -> dict:
    return {'parts': [[part.data.source, identity(part, wanted)] for part, _ in parts(c)]}


def _check_mixture(c: ConfigDict) -> None:
    for (part, _), entry in zip(parts(c), c.data.mixture, strict=True):
        try:
            needed.check_folder(part)
            check(part)
        except UserError as error:
            raise type(error)(f'config.data.mixture = {entry!r}: {error}') from error


SOURCES = {
    **registry.READERS,
    'mixture': Source(_mixed, _mixture_identity, _check_mixture, config.example_type, lambda c: 0),
}
