"""The source `mr`: sentences of movie reviews, in one file for each class (Pang and Lee, 2005)."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError

_CLASSES = ('neg', 'pos')  # class 0 and class 1


def find(c: ConfigDict) -> SplitFiles:
    """Finds rt-polarity.neg and rt-polarity.pos, the split train, or `config.data.files`.

    Raises:
      UserError: a split does not have one file of each class.
    """
    if c.data.files:
        split_files = files.find(c, lambda name: '')
    else:
        root = files.folder(c)
        names = [f'rt-polarity.{name}{end}' for name in _CLASSES for end in ('', '.gz')]
        paths = [root / name for name in names if (root / name).exists()]
        split_files = {'train': paths} if paths else {}
    for split, paths in split_files.items():
        if sorted(_label(path) for path in paths) != [0, 1]:
            raise UserError(
                f'config.data.path = {c.data.path}: split {split!r} must have one file .neg and '
                f'one .pos, has {", ".join(path.name for path in paths)}'
            )
    return split_files


def expected(c: ConfigDict, split: str) -> str:
    """Describes the files of a split, for messages."""
    del c, split
    return 'rt-polarity.neg and rt-polarity.pos are all train'


def read(c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
    """Reads one sentence for each line, class 0 first.

    Args:
      c: the configuration.
      paths: the file of each class.
      on_error: called with a message for each malformed or empty line, which is skipped.

    Raises:
      UserError: a file cannot be read.
    """
    del c
    for path in sorted(paths, key=_label):
        for number, line in files.read_lines(path, on_error):
            if line.strip():
                yield Example(line.removesuffix('\n'), label=_label(path))
            else:
                on_error(f'{path}:{number}: is empty')


def _label(path: Path) -> int:
    """Returns the class of the last class name in a file name, or -1."""
    names = [part for part in files.name_parts(path.name) if part in _CLASSES]
    return _CLASSES.index(names[-1]) if names else -1
