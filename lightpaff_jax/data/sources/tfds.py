"""Sets that TFDS prepared as ArrayRecord, read without TensorFlow and without the network."""

import contextlib
import importlib
import importlib.resources
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, splits
from lightpaff_jax.data.sources.splits import SPLITS, Example
from lightpaff_jax.errors import Unreadable, UserError, nearest
from lightpaff_jax.runtime import storage

_FOLDER = '~/tensorflow_datasets'
# Modules of TFDS with builders of text that are no folders of its `datasets`; they import no TensorFlow.
_MODULES = ('text', 'summarization', 'translate', 'question_answering')
_AT_ONCE = 256  # records read in one call

# Set -> the columns of its first text, its second ('' none) and its class.
_PAIR = ('sentence1', 'sentence2', 'label')
COLUMNS = {
    'ag_news_subset': ('description', '', 'label'),
    'cnn_dailymail': ('article', 'highlights'),
    'gigaword': ('document', 'summary'),
    'glue/cola': ('sentence', '', 'label'),
    'glue/mnli': ('premise', 'hypothesis', 'label'),
    'glue/mrpc': _PAIR,
    'glue/qnli': ('question', 'sentence', 'label'),
    'glue/qqp': ('question1', 'question2', 'label'),
    'glue/rte': _PAIR,
    'glue/sst2': ('sentence', '', 'label'),
    'glue/wnli': _PAIR,
    'imdb_reviews': ('text', '', 'label'),
    'lm1b': ('text',),
    'paws_wiki': _PAIR,
    'wiki40b': ('text',),
    'wikipedia': ('text',),
    'xsum': ('document', 'summary'),
    'yelp_polarity_reviews': ('text', '', 'label'),
}  # fmt: skip
_WMT = re.compile(r'wmt\d\d_translate/([a-z]+)-([a-z]+)')  # its columns are the two languages


class _Set(NamedTuple):
    """A prepared set."""

    builder: tfds.core.DatasetBuilder
    columns: tuple[str, ...]

    @property
    def given(self) -> list[str]:
        """Its splits; of classes those that have labels."""
        found = [split for split in SPLITS if split in self.builder.info.splits]
        if len(self.columns) < 3:
            return found
        return [s for s in found if _at(self.builder, s, [0])[0][self.columns[2]] >= 0]


def example_type(c: ConfigDict) -> str:
    """'documents', 'targets' or 'classes'."""
    return ('documents', 'targets', 'classes')[len(_load(c).columns) - 1]


def classes(c: ConfigDict) -> int:
    """How many classes it has; 0 where it has none."""
    found = _load(c)
    return (
        found.builder.info.features[found.columns[2]].num_classes if len(found.columns) > 2 else 0
    )


def check(c: ConfigDict) -> None:
    """Raises UserError for a set or a split that is not there; reads one example of a split."""
    given = _load(c).given
    for split in SPLITS:
        _part(c, given, split)


def identity(c: ConfigDict, wanted: Sequence[str]) -> dict:
    """All that the examples depend on, as JSON values."""
    found = _load(c)
    parts = {split: _part(c, found.given, split) for split in wanted}
    infos = {part.of: found.builder.info.splits[part.of] for part in parts.values()}
    return {
        'set': found.builder.info.full_name,
        'columns': list(found.columns),
        'held_out': c.data.held_out,
        'parts': {split: [part.of, list(part.kept)] for split, part in parts.items()},
        'files': {
            split: files.digests(c.data.cache, [storage.to_path(path) for path in info.filepaths])
            for split, info in infos.items()
        },
    }


def examples(c: ConfigDict, split: str) -> Iterator[Example]:
    """The examples of a split, in the order of its records.

    Raises:
      UserError: the set is not prepared, or lacks a column or the split; a record is damaged.
    """
    found = _load(c)
    part = _part(c, found.given, split)
    yield from splits.select(_records(found, part.of), part, c.data.held_out)


def _part(c: ConfigDict, given: list[str], split: str) -> splits.Part:
    return splits.part(c, given, split, f'the set has {", ".join(given) or "none"}')


def _records(found: _Set, split: str) -> Iterator[Example]:
    n = found.builder.info.splits[split].num_examples
    for start in range(0, n, _AT_ONCE):
        for row in _at(found.builder, split, range(start, min(n, start + _AT_ONCE))):
            values = [row[name] if name else b'' for name in found.columns]
            texts = [value.decode() for value in values[:2]]
            label = int(values[2]) if len(values) > 2 else -1
            yield Example(texts[0], texts[1] if len(texts) > 1 else '', label)


def _at(builder: tfds.core.DatasetBuilder, split: str, numbers: Sequence[int]) -> list[dict]:
    try:
        return builder.as_data_source(split).__getitems__(numbers)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise Unreadable(
            f'{builder.data_dir}: split {split!r} cannot be read: {files.one_line(error)}'
        ) from error


def _load(c: ConfigDict) -> _Set:
    place = _place(c)
    try:
        builder = tfds.builder_from_directory(str(place))
        formats = builder.info.available_file_formats()
    except Exception as error:  # of many kinds: TFDS reads its files with several libraries
        raise Unreadable(
            f'{place}: must be a set that TFDS prepared: {files.one_line(error)}'
        ) from error
    if 'array_record' not in {form.value for form in formats}:
        raise UserError(
            f'{place}: is prepared as {", ".join(form.value for form in formats)}, must be '
            f'array_record; {_how(c, " --overwrite")}'
        )
    return _Set(builder, _columns(c, builder.info))


def _columns(c: ConfigDict, info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    names = '/'.join(filter(None, (info.name, info.config_name)))
    wmt = _WMT.fullmatch(names)
    known = wmt.groups() if wmt else COLUMNS.get(names) or COLUMNS.get(info.name)
    columns = tuple(c.data.columns) or known
    features = info.features
    has = f'the set has {", ".join(sorted(features))}'
    if not columns or not columns[0]:
        raise UserError(
            f'config.data.columns = {tuple(c.data.columns)}: must name those of {names}: {has}'
        )
    for name in filter(None, columns):
        if name not in features:
            near = nearest(name, list(features))
            raise UserError(
                f'config.data.columns = {columns}: {names} has no {name!r}: {has}{near}'
            )
    for name in filter(None, columns[:2]):
        if not isinstance(features[name], tfds.features.Text):
            raise UserError(f'config.data.columns = {columns}: {name!r} must be text')
    if len(columns) > 2 and not isinstance(features[columns[2]], tfds.features.ClassLabel):
        raise UserError(f'config.data.columns = {columns}: {columns[2]!r} must be a class')
    return columns


def _named(c: ConfigDict) -> tuple[str, str, str]:
    """Name, config and version of NAME[/CONFIG][:VERSION]."""
    names, _, version = c.data.path.partition(':')
    name, _, variant = names.partition('/')
    return name, variant, version


def _root(c: ConfigDict) -> pathlib.Path:
    return storage.local_folder('config.data.tfds_dir = ', c.data.tfds_dir or _FOLDER)


def _place(c: ConfigDict) -> pathlib.Path:
    """The folder of the version that is meant, the newest where none is named."""
    (name, variant, version), root = _named(c), _root(c)
    where = f'config.data.path = {c.data.path}'
    folder = root / name / variant
    versions = _versions(folder) if name else []
    if versions and not version:
        return folder / versions[-1]
    if version in versions:
        return folder / version
    if versions:
        near = nearest(version, versions)
        raise UserError(f'{where}: {folder} has version {", ".join(versions)}{near}')
    here = _folders(root)
    if name not in {*here, *names()}:
        near = nearest(name, sorted({*here, *names()}))
        raise UserError(f'{where}: neither TFDS nor {root} has a set {name!r}{near}')
    variants = list(dict.fromkeys(_folders(root / name) + _variants(name)))
    if variants and variant not in variants:
        near = nearest(variant, variants)
        some = ', '.join(variants[:8]) + (', ...' if len(variants) > 8 else '')
        raise UserError(f'{where}: must be {name}/CONFIG, with one of {some}{near}')
    raise UserError(f'{where}: is not prepared in {root}; {_how(c)}')


def _how(c: ConfigDict, flags: str = '') -> str:
    return (
        f'build it once, with the network and TensorFlow (./launch/environment.sh tf): tfds build '
        f'{c.data.path} --file_format=array_record --data_dir={_root(c)}{flags}'
    )


def _folders(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))
    return sorted(p.name for p in found if p.name not in ('downloads', 'manual'))


def _versions(folder: pathlib.Path) -> list[str]:
    found = [name for name in _folders(folder) if re.fullmatch(r'\d+\.\d+\.\d+', name)]
    return sorted(found, key=lambda name: [int(part) for part in name.split('.')])


def names() -> list[str]:
    """Names of the sets of text that TFDS has a builder of; `tfds.list_builders` needs TensorFlow."""
    folder = importlib.resources.files(f'{tfds.__name__}.datasets')
    return sorted({*_builders(), *(one.name for one in folder.iterdir() if one.is_dir())})


def _builders() -> dict[str, type[tfds.core.DatasetBuilder]]:
    modules = [importlib.import_module(f'{tfds.__name__}.{name}') for name in _MODULES]
    base = tfds.core.DatasetBuilder
    found: list[Any] = [
        one
        for module in modules
        for one in vars(module).values()
        if issubclass(type(one), type) and issubclass(one, base)  # the others are of `datasets`
    ]
    return {one.name: one for one in found}


def _variants(name: str) -> list[str]:
    """Names of a builder's configs; none of one that needs a package which is not here."""
    found = _builders()
    if name not in found:
        with contextlib.suppress(ImportError):
            module = f'{tfds.__name__}.datasets.{name}.{name}_dataset_builder'
            found[name] = importlib.import_module(module).Builder
    return [one.name for one in found[name].BUILDER_CONFIGS] if name in found else []
