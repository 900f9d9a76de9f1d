"""The sources `sst2`, `qqp` and `mrpc`: tasks of GLUE in the .tsv files of its release."""

from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, rows
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError

_LABELS = ('0', '1')


class _Task(NamedTuple):
    """The layout of a task."""

    schema: rows.Schema
    original: tuple[str, ...] = ()
    """Files of the dataset's own release, which stand in for missing files of GLUE."""


TASKS = {
    'sst2': _Task(rows.Schema(('sentence', '', 'label'), _LABELS, "source 'sst2'")),
    'qqp': _Task(rows.Schema(('question1', 'question2', 'is_duplicate'), _LABELS, "source 'qqp'")),
    'mrpc': _Task(
        rows.Schema(('#1 String', '#2 String', 'Quality'), _LABELS, "source 'mrpc'"),
        ('msr_paraphrase_train.txt', 'msr_paraphrase_test.txt'),
    ),
}


def find(c: ConfigDict) -> SplitFiles:
    """Finds train.tsv, dev.tsv and, if it has labels, test.tsv, or the files of the own release."""
    split_files = files.find(c, _glue_group)
    if c.data.files:
        return split_files
    schema, original = TASKS[c.data.source]
    # GLUE publishes most test files without labels.
    if 'test' in split_files and schema.columns[2] not in rows.tsv_header(split_files['test'][0]):
        del split_files['test']
    if not original:
        return split_files
    own = files.find(c, lambda name: '.txt' if files.strip_gz(name) in original else None)
    if 'train' in split_files or 'validation' in split_files:
        own.pop('train', None)  # GLUE's dev.tsv is a part of it
    return own | split_files


def _glue_group(name: str) -> str | None:
    stem, _, extension = files.strip_gz(name).lower().rpartition('.')
    return '.tsv' if extension == 'tsv' and stem in files.SPLIT_OF else None


def expected(c: ConfigDict, split: str) -> str:
    """Describes the files of a split, for messages."""
    names = ' or '.join(files.ALIASES[split])
    original = ' and '.join(TASKS[c.data.source].original)
    return f'looked for a .tsv file named {names} that has labels' + (
        f', and for {original}' if original else ''
    )


def read(c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
    """Reads the examples of some files; see `rows.read`."""
    for path in paths:
        yield from rows.read(TASKS[c.data.source].schema, path, on_error)


def check(c: ConfigDict, path: Path, on_error: OnError | None) -> None:
    """Checks the columns and the first row of a file; see `rows.check`."""
    rows.check(TASKS[c.data.source].schema, path, on_error)
