"""READERS: what reads the examples of each source, from the embedded text and from files."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data.sources import (
    files,
    glue,
    movie_reviews,
    parallel,
    pydocs,
    splits,
    tabular,
    text_files,
    tfds,
)
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import OnError
from lightpaff_jax.errors import UserError

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
    example_type: Callable[[ConfigDict], str] = config.example_type
    """'documents', 'classes' or 'targets'."""
    classes: Callable[[ConfigDict], int] = lambda c: config.SOURCES[c.data.source].classes
    """How many classes; 0 where there are none."""


class FileFormat(Protocol):
    """A module that reads a source of files."""

    def find(self, c: ConfigDict) -> SplitFiles:
        """Finds the files of each split; raises UserError if they are ambiguous."""

    def expected(self, c: ConfigDict, split: str) -> str:
        """Describes the files of a split, for the message that there are none."""

    def read(self, c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
        """Reads the examples of some files; calls `on_error` for each malformed row."""

    def check(self, c: ConfigDict, path: Path, on_error: OnError | None) -> None:
        """Checks the first rows of a file; None ignores malformed ones."""

    def classes(self, c: ConfigDict) -> int:
        """Returns the number of classes; 0 if examples have none."""


Postprocess = Callable[[ConfigDict, Example], Example]


# Files


def _file_source(module: FileFormat, postprocess: Postprocess | None = None) -> Source:
    """Returns the source of a module; `postprocess` changes examples after the choice of split."""
    return Source(
        functools.partial(_file_examples, module, postprocess),
        functools.partial(_file_identity, module),
        functools.partial(_check_files, module),
        config.example_type,
        module.classes,
    )


def _part(module: FileFormat, c: ConfigDict, split_files: SplitFiles, split: str) -> splits.Part:
    sought = 'config.data.files has none' if c.data.files else module.expected(c, split)
    return splits.part(c, split_files, split, sought)


def _stop(line: str) -> None:
    raise UserError(f"{line} (config.data.on_error = 'skip' leaves such rows out)")


def _file_examples(
    module: FileFormat,
    postprocess: Postprocess | None,
    c: ConfigDict,
    split: str,
    skipped: Skipped,
) -> Iterator[Example]:
    split_files = module.find(c)
    part = _part(module, c, split_files, split)
    on_error = skipped if c.data.on_error == 'skip' else _stop
    rows = module.read(c, split_files[part.of], on_error)
    for example in splits.select(rows, part, c.data.held_out):
        yield postprocess(c, example) if postprocess else example


def _file_identity(module: FileFormat, c: ConfigDict, wanted: Sequence[str]) -> dict:
    split_files = module.find(c)
    parts = {split: _part(module, c, split_files, split) for split in wanted}
    read = dict.fromkeys(part.of for part in parts.values())
    keys = [key for key in config.SOURCES[c.data.source].keys if key not in ('path', 'files')]
    return {
        'keys': {key: list(v) if isinstance(v := c.data[key], tuple) else v for key in keys},
        'parts': {split: [part.of, list(part.kept)] for split, part in parts.items()},
        'files': {
            split: [
                [files.extension(path.name), digest]
                for path, digest in zip(
                    split_files[split],
                    files.digests(c.data.cache, split_files[split]),
                    strict=True,
                )
            ]
            for split in read
        },
    }


def _check_files(module: FileFormat, c: ConfigDict) -> None:
    split_files = module.find(c)
    for split in SPLITS:
        _part(module, c, split_files, split)
    for path in itertools.chain(*split_files.values()):
        module.check(c, path, None if c.data.on_error == 'skip' else _stop)


READERS = {
    'pydocs': Source(
        pydocs.examples, pydocs.identity, pydocs.check, config.example_type, pydocs.classes
    ),
    'text': _file_source(text_files, text_files.detokenize),
    'sst2': _file_source(glue),
    'qqp': _file_source(glue),
    'mrpc': _file_source(glue),
    'mr': _file_source(movie_reviews),
    'table': _file_source(tabular),
    'parallel': _file_source(parallel),
    'tfds': Source(tfds.examples, tfds.identity, tfds.check, tfds.example_type, tfds.classes),
}
