"""READERS: what reads the examples of each source, from the embedded text and from files."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data.sources import files, splits, tabular, text_files, tfds
from lightpaff_jax.data.sources import pydocs as pydocs_lib
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.errors import UserError, nearest

SPLITS = splits.SPLITS
Example = splits.Example
Skipped = Callable[[str], None]


class Source(NamedTuple):
    """What every source can do."""

    examples: Callable[[ConfigDict, str, Skipped], Iterator[Example]]
    """Of a split, in an order that is the same everywhere. `skipped` is called with a line for each
    row that is left out, where `config.data.on_error` is 'skip'."""
    identity: Callable[[ConfigDict, Sequence[str]], dict]
    """All that the examples of some splits depend on, as JSON values: equal ones, equal examples."""
    check: Callable[[ConfigDict], None]
    """Raises UserError for what can be known without reading whole files."""
    kind: Callable[[ConfigDict], str]
    """'documents', 'classes' or 'targets'."""
    classes: Callable[[ConfigDict], int]
    """How many classes; 0 where there are none."""


class _Layout(NamedTuple):
    """A source of files."""

    find: Callable[[ConfigDict], SplitFiles]
    read: Callable[[ConfigDict, list[Path], splits.OnError], Iterator[Example]]
    sought: str
    """What are the files of a split that has the names {names}, for messages."""
    check: Callable[[ConfigDict, Path, splits.OnError | None], None] | None = None
    """Of the first rows of a file; None says nothing of malformed ones."""
    finish: Callable[[ConfigDict, Example], Example] | None = None
    """Is done to an example after it found its split."""
    classes: Callable[[ConfigDict], int] | None = None


# pydocs


def _pydocs(c: ConfigDict, split: str, skipped: Skipped) -> Iterator[Example]:
    """Examples of `config.data.packages` (all if empty), in the order of package and path."""
    del skipped  # no row is malformed
    packages = _packages(c)
    empty = True
    for row in pydocs_lib.load(c.data.cache, c.data.view).as_data_source(split):
        if not packages or row['package'].decode() in packages:
            empty = False
            if c.data.view == 'text':
                yield Example(row['text'].decode())
            else:
                yield Example(row['first'].decode(), row['second'].decode(), int(row['label']))
    if empty:
        raise UserError(
            f'config.data.packages = {tuple(c.data.packages)}: empty corpus, '
            f'no {c.data.view!r} of pydocs in split {split!r}'
        )


def _pydocs_identity(c: ConfigDict, wanted: Sequence[str]) -> dict:
    del wanted  # one digest for all splits
    metadata = pydocs_lib.load(c.data.cache, c.data.view).info.metadata
    return {
        'packages': _packages(c),
        'digest': metadata['digest'],
        'versions': dict(metadata['versions']),
    }


def _packages(c: ConfigDict) -> list[str]:
    for name in c.data.packages:
        if name not in pydocs_lib.PACKAGES:
            raise UserError(
                f'config.data.packages = {tuple(c.data.packages)}: {name!r} must be one of '
                f'{", ".join(pydocs_lib.PACKAGES)}{nearest(name, list(pydocs_lib.PACKAGES))}'
            )
    return sorted(set(c.data.packages))


def _check_pydocs(c: ConfigDict) -> None:
    _packages(c)


_PYDOCS_CLASSES = {'text': 0, 'topic': len(pydocs_lib.PACKAGES), 'pairs': 2, 'summary': 0}


# Files


def _of_files(layout: _Layout) -> Source:
    return Source(
        functools.partial(_file_examples, layout),
        functools.partial(_file_identity, layout),
        functools.partial(_check_files, layout),
        config.kind,
        layout.classes or (lambda c: 0),
    )


def _part(layout: _Layout, c: ConfigDict, found: SplitFiles, split: str) -> splits.Part:
    sought = layout.sought.format(names=' or '.join(files.ALIASES[split]))
    return splits.part(c, found, split, 'config.data.files has none' if c.data.files else sought)


def _stop(line: str) -> None:
    raise UserError(f"{line} (config.data.on_error = 'skip' leaves such rows out)")


def _file_examples(
    layout: _Layout, c: ConfigDict, split: str, skipped: Skipped
) -> Iterator[Example]:
    found = layout.find(c)
    part = _part(layout, c, found, split)
    made = layout.read(c, found[part.of], skipped if c.data.on_error == 'skip' else _stop)
    for example in splits.select(made, part, c.data.held_out):
        yield layout.finish(c, example) if layout.finish else example


def _file_identity(layout: _Layout, c: ConfigDict, wanted: Sequence[str]) -> dict:
    found = layout.find(c)
    parts = {split: _part(layout, c, found, split) for split in wanted}
    read = dict.fromkeys(part.of for part in parts.values())
    keys = [key for key in config.READS[c.data.source] if key not in ('path', 'files')]
    return {
        'keys': {key: list(v) if isinstance(v := c.data[key], tuple) else v for key in keys},
        'parts': {split: [part.of, list(part.kept)] for split, part in parts.items()},
        'files': {
            split: [
                [files.extension(path.name), digest]
                for path, digest in zip(
                    found[split], files.digests(c.data.cache, found[split]), strict=True
                )
            ]
            for split in read
        },
    }


def _check_files(layout: _Layout, c: ConfigDict) -> None:
    found = layout.find(c)
    for split in SPLITS:
        _part(layout, c, found, split)
    if layout.check:
        for path in itertools.chain(*found.values()):
            layout.check(c, path, None if c.data.on_error == 'skip' else _stop)


def _read_table(c: ConfigDict, paths: list[Path], fault: splits.OnError) -> Iterator[Example]:
    for path in paths:
        yield from tabular.read(_form(c), path, fault)


def _check_table(c: ConfigDict, path: Path, fault: splits.OnError | None) -> None:
    tabular.check(_form(c), path, fault)


def _form(c: ConfigDict) -> tabular.Schema:
    return tabular.schema(c) if c.data.source == 'table' else tabular.GLUE[c.data.source]


def _two(c: ConfigDict) -> int:
    del c
    return 2


def _table_classes(c: ConfigDict) -> int:
    return len(_form(c).labels) if config.kind(c) == 'classes' else 0


_ENDS = 'looked for files that have {names} in their names and end in %s, or .gz of these'
_TSV = 'looked for a .tsv file named {names} that has labels'
READERS = {
    'pydocs': Source(
        _pydocs, _pydocs_identity, _check_pydocs, config.kind,
        lambda c: _PYDOCS_CLASSES[c.data.view],
    ),
    'text': _of_files(_Layout(
        text_files.find, text_files.read, _ENDS % ', '.join(text_files.EXTENSIONS), text_files.check, text_files.finish,
    )),
    'sst2': _of_files(_Layout(tabular.find_glue, _read_table, _TSV, _check_table, classes=_two)),
    'qqp': _of_files(_Layout(tabular.find_glue, _read_table, _TSV, _check_table, classes=_two)),
    'mrpc': _of_files(_Layout(
        tabular.find_glue, _read_table, f'{_TSV}, and for msr_paraphrase_train.txt and _test.txt',
        _check_table, classes=_two,
    )),
    'mr': _of_files(_Layout(
        text_files.find_polarity, text_files.read_polarity,
        'rt-polarity.neg and rt-polarity.pos are all train', classes=_two,
    )),
    'table': _of_files(_Layout(
        tabular.find, _read_table, _ENDS % ', '.join(tabular.EXTENSIONS), _check_table,
        classes=_table_classes,
    )),
    'parallel': _of_files(_Layout(
        text_files.find_parallel, text_files.read_parallel,
        'looked for files that have {names} and one of config.data.suffixes in their names',
    )),
    'tfds': Source(
        lambda c, split, skipped: tfds.examples(c, split), tfds.identity,
        tfds.check, tfds.example_type, tfds.classes,
    ),
}  # fmt: skip
