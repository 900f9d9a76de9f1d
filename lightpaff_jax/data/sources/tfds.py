"""The source `tfds`: datasets that TFDS has prepared as ArrayRecord.

They are read without TensorFlow and without the network.
"""

import contextlib
import functools
import importlib
import importlib.resources
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from lightpaff_jax.data import records
from lightpaff_jax.data.sources import files, holdout, splits
from lightpaff_jax.data.sources.splits import SPLITS, Example, OnError
from lightpaff_jax.errors import Unreadable, UserError, nearest, one_line
from lightpaff_jax.runtime import storage

_DEFAULT_FOLDER = '~/tensorflow_datasets'
# Modules of TFDS that define builders outside of its package `datasets`. Those listed here have
# text, and importing them does not import TensorFlow.
_BUILDER_MODULES = ('text', 'summarization', 'translate', 'question_answering')
_BATCH_SIZE = 256  # records read in one call

# Dataset -> the columns of its first text, its second text ('' if none) and its class.
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
}
_WMT = re.compile(r'wmt\d\d_translate/([a-z]+)-([a-z]+)')  # the two languages are its columns


class _Dataset(NamedTuple):
    """A prepared dataset."""

    builder: tfds.core.DatasetBuilder
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    """The names of the classes, in the order of the run."""

    @property
    def splits(self) -> list[str]:
        """The splits that can be used: if examples have classes, those with labels."""
        names = [split for split in SPLITS if split in self.builder.info.splits]
        if len(self.columns) < 3:
            return names
        # Test splits without labels have the label -1, as in GLUE.
        label = self.columns[2]
        return [name for name in names if _read_records(self, name, [0])[0][label] >= 0]


def examples(c: ConfigDict, split: str, on_error: OnError) -> Iterator[Example]:
    """Reads the examples of a split, in the order of its records.

    Args:
      c: the configuration.
      split: one of SPLITS.
      on_error: unused: a malformed record is an error and never skipped.

    Raises:
      UserError: the dataset is not prepared, or lacks a column or the split; or a record is
        malformed.
      Unreadable: a file of the dataset is damaged.
    """
    dataset = _open(c)
    source = _require(c, dataset, split)
    read = functools.partial(_read_split, dataset, source.split)
    yield from holdout.select(c, source, lambda on_error: read(), on_error)


def identity(c: ConfigDict, wanted: Sequence[str]) -> dict:
    """Returns the values on which the examples of some splits depend, as JSON values."""
    dataset = _open(c)
    info = dataset.builder.info
    sources = {split: _require(c, dataset, split) for split in wanted}
    paths = {
        source.split: [storage.to_path(path) for path in info.splits[source.split].filepaths]
        for source in sources.values()
    }
    return {
        'set': info.full_name,
        'columns': list(dataset.columns),
        'keys': {'labels': list(dataset.labels)},
        'held_out': c.data.held_out,
        'parts': {split: [source.split, list(source.shares)] for split, source in sources.items()},
        'files': {split: files.digests(c.data.cache, paths[split]) for split in paths},
        **holdout.identity(c),
    }


def check(c: ConfigDict, wanted: Sequence[str]) -> None:
    """Raises UserError if the dataset or a split is missing; reads one record of each split."""
    dataset = _open(c)
    for split in wanted:
        _require(c, dataset, split)


def example_type(c: ConfigDict) -> str:
    """Returns 'documents', 'targets' or 'classes', by the number of columns."""
    return ('documents', 'targets', 'classes')[len(_open(c).columns) - 1]


def class_names(c: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes in the order of the run, or ()."""
    return _open(c).labels


def classes(c: ConfigDict) -> int:
    """Returns the number of classes; 0 if examples have none."""
    return len(_open(c).labels)


def _require(c: ConfigDict, dataset: _Dataset, split: str) -> splits.SplitSource:
    names = dataset.splits
    return splits.require(c, names, split, f'the set has {", ".join(names) or "none"}')


def _read_split(dataset: _Dataset, split: str) -> Iterator[Example]:
    info = dataset.builder.info.splits[split]
    _check_counts(info)
    for start in range(0, info.num_examples, _BATCH_SIZE):
        indices = range(start, min(info.num_examples, start + _BATCH_SIZE))
        batch = _read_records(dataset, split, indices)
        for number, record in zip(indices, batch, strict=True):
            try:
                example = _to_example(dataset, record)
            except ValueError as error:
                where = f'{dataset.builder.data_dir}: record {number} of split {split!r}'
                raise UserError(f'{where}: {one_line(error)}') from error
            yield example


def _to_example(dataset: _Dataset, record: dict) -> Example:
    """Returns the example of a record; raises ValueError if it is not UTF-8 or has no class."""
    names = [*dataset.columns, ''][:2]
    first, second = (record[name].decode() if name else '' for name in names)
    if not dataset.labels:
        return Example(first, second)
    column = dataset.columns[2]
    classes = dataset.builder.info.features[column].names
    number = int(record[column])
    if not 0 <= number < len(classes):
        raise ValueError(f'{column!r} is {number}, must be at least 0 and below {len(classes)}')
    return Example(first, second, dataset.labels.index(classes[number]))


def _check_counts(info: tfds.core.SplitInfo) -> None:
    """Raises UserError if a file has another number of records than the metadata of its split."""
    for file, count in zip(info.filepaths, info.shard_lengths, strict=True):
        try:
            size = records.open_reader(file).num_records()
        except (OSError, RuntimeError, ValueError):
            continue  # reading it raises the error
        if size != count:
            raise UserError(f'{file}: has {size} records, dataset_info.json lists {count}')


def _read_records(dataset: _Dataset, split: str, indices: Sequence[int]) -> list[dict]:
    builder = dataset.builder
    try:
        batch = builder.as_data_source(split).__getitems__(indices)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise Unreadable(
            f'{builder.data_dir}: split {split!r} cannot be read: {one_line(error)}'
        ) from error
    for number, record in zip(indices, batch, strict=True):
        for column in filter(None, dataset.columns):
            if record[column] is None:
                where = f'{builder.data_dir}: record {number} of split {split!r}'
                raise UserError(f'{where}: has no {column!r}')
    return batch


def _open(c: ConfigDict) -> _Dataset:
    folder = _version_folder(c)
    try:
        builder = tfds.builder_from_directory(str(folder))
        formats = [form.value for form in builder.info.available_file_formats()]
    except Exception as error:  # TFDS reads its files with libraries that share no error class
        raise Unreadable(
            f'{folder}: must be a dataset that TFDS prepared: {one_line(error)}'
        ) from error
    if 'array_record' not in formats:
        raise UserError(
            f'{folder}: is prepared as {", ".join(formats)}, must be array_record; '
            f'{_build_command(c, " --overwrite")}'
        )
    columns = _columns(c, builder.info)
    return _Dataset(builder, columns, _labels(c, builder.info, columns))


def _columns(c: ConfigDict, info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    name = '/'.join(filter(None, (info.name, info.config_name)))
    wmt = _WMT.fullmatch(name)
    listed = wmt.groups() if wmt else COLUMNS.get(name) or COLUMNS.get(info.name)
    columns = tuple(c.data.columns) or listed
    features = info.features
    has = f'the set has {", ".join(sorted(features))}'
    if not columns or not columns[0]:
        raise UserError(
            f'config.data.columns = {tuple(c.data.columns)}: must name those of {name}: {has}'
        )
    for column in filter(None, columns):
        if column not in features:
            near = nearest(column, list(features))
            raise UserError(
                f'config.data.columns = {columns}: {name} has no {column!r}: {has}{near}'
            )
    for column in filter(None, columns[:2]):
        if not isinstance(features[column], tfds.features.Text):
            raise UserError(f'config.data.columns = {columns}: {column!r} must be text')
    if len(columns) > 2 and not isinstance(features[columns[2]], tfds.features.ClassLabel):
        raise UserError(f'config.data.columns = {columns}: {columns[2]!r} must be a class')
    return columns


def _labels(
    c: ConfigDict, info: tfds.core.DatasetInfo, columns: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the names of the classes: `config.data.labels`, or as the dataset orders them.

    Raises:
      UserError: the dataset has other names, or no classes.
    """
    labels = tuple(c.data.labels)
    names = tuple(info.features[columns[2]].names) if len(columns) > 2 else ()
    if labels and sorted(labels) != sorted(names):
        raise UserError(
            f'config.data.labels = {labels}: must be the classes of {info.full_name}, '
            f'{", ".join(names) or "which has no classes"}'
        )
    return labels or names


def _root(c: ConfigDict) -> pathlib.Path:
    return storage.local_folder('config.data.tfds_dir = ', c.data.tfds_dir or _DEFAULT_FOLDER)


def _version_folder(c: ConfigDict) -> pathlib.Path:
    """Returns the folder of NAME[/CONFIG][:VERSION]; the newest version by default."""
    names, _, version = c.data.path.partition(':')
    name, _, variant = names.partition('/')
    root = _root(c)
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
    datasets = {*_subfolders(root), *builder_names()}
    if name not in datasets:
        near = nearest(name, sorted(datasets))
        raise UserError(f'{where}: neither TFDS nor {root} has a set {name!r}{near}')
    variants = list(dict.fromkeys(_subfolders(root / name) + _builder_configs(name)))
    if variants and variant not in variants:
        near = nearest(variant, variants)
        some = ', '.join(variants[:8]) + (', ...' if len(variants) > 8 else '')
        raise UserError(f'{where}: must be {name}/CONFIG, with one of {some}{near}')
    raise UserError(f'{where}: is not prepared in {root}; {_build_command(c)}')


def _build_command(c: ConfigDict, flags: str = '') -> str:
    return (
        f'build it once, with the network and TensorFlow (./launch/environment.sh tf): tfds build '
        f'{c.data.path} --file_format=array_record --data_dir={_root(c)}{flags}'
    )


def _subfolders(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(n for n in names if not n.startswith('.') and n not in ('downloads', 'manual'))


def _versions(folder: pathlib.Path) -> list[str]:
    names = [name for name in _subfolders(folder) if re.fullmatch(r'\d+\.\d+\.\d+', name)]
    return sorted(names, key=lambda name: [int(part) for part in name.split('.')])


def builder_names() -> list[str]:
    """Returns the text datasets that TFDS can build; `tfds.list_builders` needs TensorFlow."""
    datasets = importlib.resources.files(f'{tfds.__name__}.datasets')
    return sorted({*_module_builders(), *(p.name for p in datasets.iterdir() if p.is_dir())})


def _module_builders() -> dict[str, type[tfds.core.DatasetBuilder]]:
    modules = [importlib.import_module(f'{tfds.__name__}.{name}') for name in _BUILDER_MODULES]
    members = [member for module in modules for member in vars(module).values()]
    # Some members stand in for builders of `datasets` and are no classes.
    classes = [member for member in members if issubclass(type(member), type)]
    return {b.name: b for b in classes if issubclass(b, tfds.core.DatasetBuilder)}


def _builder_configs(name: str) -> list[str]:
    """Returns the names of a builder's configs; none if it needs a package that is missing."""
    builders = _module_builders()
    if name not in builders:
        with contextlib.suppress(ImportError):
            module = f'{tfds.__name__}.datasets.{name}.{name}_dataset_builder'
            builders[name] = importlib.import_module(module).Builder
    return [config.name for config in builders[name].BUILDER_CONFIGS] if name in builders else []
