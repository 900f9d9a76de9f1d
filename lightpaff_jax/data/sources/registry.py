"""READERS: the functions of each source that reads text, from files or from the built-in corpus."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data.sources import (
    files,
    glue,
    holdout,
    movie_reviews,
    parallel,
    pydocs,
    splits,
    tabular,
    text_files,
    tfds,
)
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError


class Source(NamedTuple):
    """The functions of a source."""

    examples: Callable[[ConfigDict, str, OnError], Iterator[Example]]
    """Yields the examples of a split, in the same order on every machine. If `config.data.on_error`
    is 'skip', the last argument is called with a message for each skipped row."""
    identity: Callable[[ConfigDict, Sequence[str]], dict[str, Any]]
    """Returns the values on which the examples of some splits depend, as JSON values."""
    check: Callable[[ConfigDict, Sequence[str]], None]
    """Raises UserError for mistakes in some splits that can be found without reading whole files."""
    classes: Callable[[ConfigDict], int] = lambda c: config.SOURCES[c.data.source].classes
    """Returns the number of classes; 0 if examples have none."""
    class_names: Callable[[ConfigDict], tuple[str, ...]] = lambda c: (
        config.SOURCES[c.data.source].class_names
    )
    """Returns the names of the classes in the order of their labels, or ()."""
    example_type: Callable[[ConfigDict], str] = config.example_type
    """Returns 'documents', 'classes' or 'targets'."""


class FileFormat(Protocol):
    """A module that reads a source of files."""

    def find(self, c: ConfigDict) -> SplitFiles:
        """Finds the files of each split; raises UserError if they are ambiguous."""

    def expected(self, c: ConfigDict, split: str) -> str:
        """Describes the files of a split, for the message that there are none."""

    def read(self, c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
        """Reads the examples of some files; calls `on_error` for each malformed row."""


CheckFile = Callable[[ConfigDict, Path, OnError | None], None]
"""Checks the first rows of a file; calls the last argument for malformed rows, None ignores them."""
Postprocess = Callable[[ConfigDict, Example], Example]
"""Changes an example after the choice of its split."""


def _file_source(
    module: FileFormat,
    check: CheckFile = lambda c, path, on_error: None,
    postprocess: Postprocess = lambda c, example: example,
) -> Source:
    return Source(
        functools.partial(_read_files, module, postprocess),
        functools.partial(_file_identity, module),
        functools.partial(_check_files, module, check),
    )


def _require(
    module: FileFormat, c: ConfigDict, split_files: SplitFiles, split: str
) -> splits.SplitSource:
    expected = 'config.data.files has none' if c.data.files else module.expected(c, split)
    return splits.require(c, split_files, split, expected)


def _stop(message: str) -> None:
    raise UserError(f"{message} (config.data.on_error = 'skip' skips such rows)")


def _read_files(
    module: FileFormat, postprocess: Postprocess, c: ConfigDict, split: str, on_skip: OnError
) -> Iterator[Example]:
    split_files = module.find(c)
    source = _require(module, c, split_files, split)
    on_error = on_skip if c.data.on_error == 'skip' else _stop
    read = functools.partial(module.read, c, split_files[source.split])
    for example in holdout.select(c, source, read, on_error):
        yield postprocess(c, example)


def _file_identity(module: FileFormat, c: ConfigDict, wanted: Sequence[str]) -> dict[str, Any]:
    split_files = module.find(c)
    sources = {split: _require(module, c, split_files, split) for split in wanted}
    file_digests = {}
    for split in dict.fromkeys(source.split for source in sources.values()):
        extensions = [files.extension(path.name) for path in split_files[split]]
        digests = files.digests(c.data.cache, split_files[split])
        file_digests[split] = [list(pair) for pair in zip(extensions, digests, strict=True)]
    keys = [
        key
        for key in config.SOURCES[c.data.source].keys
        if key not in ('path', 'files', 'held_out_whole')
    ]
    return {
        'version': files.VERSION,
        'keys': {key: list(v) if isinstance(v := c.data[key], tuple) else v for key in keys},
        'parts': {split: [source.split, list(source.shares)] for split, source in sources.items()},
        'files': file_digests,
        **holdout.identity(c),
    }


def _check_files(
    module: FileFormat, check: CheckFile, c: ConfigDict, wanted: Sequence[str]
) -> None:
    split_files = module.find(c)
    used = [_require(module, c, split_files, split).split for split in wanted]
    for path in itertools.chain.from_iterable(split_files[split] for split in dict.fromkeys(used)):
        check(c, path, None if c.data.on_error == 'skip' else _stop)


READERS = {
    'pydocs': Source(pydocs.examples, pydocs.identity, pydocs.check, pydocs.classes),
    'text': _file_source(text_files, text_files.check, text_files.detokenize),
    'sst2': _file_source(glue, glue.check),
    'qqp': _file_source(glue, glue.check),
    'mrpc': _file_source(glue, glue.check),
    'mr': _file_source(movie_reviews),
    'table': _file_source(tabular, tabular.check)._replace(
        classes=tabular.classes, class_names=tabular.class_names
    ),
    'parallel': _file_source(parallel),
    'tfds': Source(
        *(tfds.examples, tfds.identity, tfds.check),
        *(tfds.classes, tfds.class_names, tfds.example_type),
    ),
}
