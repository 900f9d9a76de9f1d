"""Text files: documents, parallel lines, and the lines of a class."""

import contextlib
from collections.abc import Generator, Iterable, Iterator

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, tabular
from lightpaff_jax.data.sources.detokenize import DETOKENIZERS
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError

EXTENSIONS = ('.txt', '.tokens', '.raw', '.text', '.jsonl', '.parquet')
_ROWS = ('.jsonl', '.parquet')
_POLARITIES = ('neg', 'pos')  # the classes 0 and 1
_COLUMN = 'text'  # of a .jsonl or .parquet, where none is said


def find(c: ConfigDict) -> SplitFiles:
    """The files of the source 'text'."""

    def kind(name: str) -> str | None:
        found = files.extension(name)
        return found if found in EXTENSIONS else None

    return files.find(c, kind)


def read(c: ConfigDict, paths: list[Path], fault: OnError) -> Iterator[Example]:
    """The documents of some files, as `config.data.documents` parts them, in their original form.

    Of .jsonl and .parquet each row is a document.

    Raises:
      UserError: a file that cannot be read or has no document; what `fault` raises.
    """
    for path in paths:
        empty = True
        for document in _of_file(c, path, fault):
            empty = False
            yield document
        if empty:
            raise UserError(f'{path}: empty corpus, must hold a document')


def _of_file(c: ConfigDict, path: Path, fault: OnError) -> Iterator[Example]:
    if files.extension(path.name) in _ROWS:
        for row in tabular.read(_row_form(c), path, fault):
            yield row._replace(words=_words(row.first.split('\n')))
    else:
        lines = (line for _, line in files.read_lines(path, fault))
        yield from documents(lines, c.data.documents)


def _row_form(c: ConfigDict) -> tabular.Schema:
    return tabular.Schema((c.data.columns or (_COLUMN,))[:1])


def check(c: ConfigDict, path: Path, fault: OnError | None) -> None:
    """As `tables.check`, of a file of rows."""
    if files.extension(path.name) in _ROWS:
        tabular.check(_row_form(c), path, fault)


def finish(c: ConfigDict, document: Example) -> Example:
    """The document without the spaces that `config.data.detokenize` undoes."""
    return document._replace(first=DETOKENIZERS[c.data.detokenize](document.first))


def documents(lines: Iterable[str], parted: str) -> Iterator[Example]:
    """Documents of lines that have their ends, parted by one of config.DOCUMENTS.

    The text of a document is its lines without the last line's end; blank lines that part
    documents are in no text. The words of all documents are those of all lines: a blank line
    counts for the document before it, of the first ones for the document after.
    """
    kept: list[str] = []
    words, blank = 0, True
    for line in lines:
        begins = bool(line.strip())
        if begins and kept and (parted == 'line' or (parted == 'blank' and blank)):
            yield Example(_text(kept), words=words)
            kept, words = [], 0
        blank = not begins
        words += _words((line,))
        if begins or parted == 'file':
            kept.append(line)
    if kept and any(line.strip() for line in kept):
        yield Example(_text(kept), words=words)


def _words(lines: Iterable[str]) -> int:
    return sum(len(line.split()) + 1 for line in lines)


def _text(lines: list[str]) -> str:
    return ''.join(lines).removesuffix('\n').removesuffix('\r')


def find_parallel(c: ConfigDict) -> SplitFiles:
    """The files of the source 'parallel': those of both sides, as many of each."""
    found = files.find(c, lambda name: '' if side(c, name) else None)
    for split, paths in found.items():
        for mark in c.data.suffixes:
            if mark not in [side(c, path.name) for path in paths]:
                names = ', '.join(path.name for path in paths)
                raise UserError(
                    f'config.data.suffixes = {",".join(c.data.suffixes)}: no file of split {split!r} has '
                    f'{mark!r} in its name, there are {names}'
                )
        pairs(c, paths)
    return found


def side(c: ConfigDict, name: str) -> str | None:
    """The mark of `config.data.suffixes` that is last in the name of a file; None: there is none."""
    marks = [mark.lower() for mark in c.data.suffixes]
    found = [part for part in files.name_parts(name) if part in marks]
    return c.data.suffixes[marks.index(found[-1])] if found else None


def pairs(c: ConfigDict, paths: list[Path]) -> list[tuple[Path, Path]]:
    """The file of the source and of the target, of each shard.

    Raises:
      UserError: the files are no pairs.
    """
    first, second = ([p for p in paths if side(c, p.name) == mark] for mark in c.data.suffixes)
    shards = [[_without_side(c, p) for p in one] for one in (first, second)]
    if len(first) != len(second) or (len(first) > 1 and shards[0] != shards[1]):
        raise UserError(
            f'config.data.suffixes = {",".join(c.data.suffixes)}: must have a file of one side for each '
            f'of the other, there are {", ".join(p.name for p in (*first, *second))}'
        )
    return list(zip(first, second, strict=True))


def _without_side(c: ConfigDict, path: Path) -> list[str]:
    found, mark = files.name_parts(path.name), side(c, path.name)
    assert mark is not None, 'files without one were left out'
    del found[len(found) - 1 - found[::-1].index(mark.lower())]
    return [str(path.parent), *found]


def read_parallel(c: ConfigDict, paths: list[Path], fault: OnError) -> Iterator[Example]:
    """A source and its target: a line of one file and the same line of the other.

    Raises:
      UserError: a file that cannot be read, or the two have not the same number of lines; what
        `fault` raises.
    """
    for first, second in pairs(c, paths):
        with contextlib.closing(_texts(first)) as one, contextlib.closing(_texts(second)) as other:
            yield from _zipped(first, second, one, other, fault)


def _texts(file: Path) -> Generator[str]:
    for _, line in files.read_lines(file, None):
        yield line.removesuffix('\n').removesuffix('\r')


def _zipped(
    first: Path, second: Path, sources: Iterator[str], targets: Iterator[str], fault: OnError
) -> Iterator[Example]:
    form = tabular.Schema((first.name, second.name))
    number = 0
    while True:
        texts = [next(sources, None), next(targets, None)]
        if None in texts:
            break
        number += 1
        made = tabular.example(form, texts)
        if isinstance(made, str):
            fault(f'{first}:{number}: {made}')
        else:
            yield made
    if texts != [None, None]:
        counts = [number + (text is not None) for text in texts]
        counts = [
            n + sum(1 for _ in rest) for n, rest in zip(counts, (sources, targets), strict=True)
        ]
        raise UserError(
            f'{first}: has {counts[0]} lines, {second} has {counts[1]}, must be as many'
        )


def find_polarity(c: ConfigDict) -> SplitFiles:
    """The files of the source 'mr': rt-polarity.neg and rt-polarity.pos, which are all of train."""
    if c.data.files:
        found = files.find(c, lambda name: '')
    else:
        root = files.folder(c)
        names = [f'rt-polarity.{mark}{end}' for mark in _POLARITIES for end in ('', '.gz')]
        there = [root / name for name in names if (root / name).exists()]
        found = {'train': there} if there else {}
    for split, paths in found.items():
        marks = [_polarity(path) for path in paths]
        if sorted(marks) != [0, 1]:
            raise UserError(
                f'config.data.path = {c.data.path}: split {split!r} must have one file .neg and '
                f'one .pos, has {", ".join(path.name for path in paths)}'
            )
    return found


def _polarity(path: Path) -> int:
    marks = [part for part in files.name_parts(path.name) if part in _POLARITIES]
    return _POLARITIES.index(marks[-1]) if marks else -1


def read_polarity(c: ConfigDict, paths: list[Path], fault: OnError) -> Iterator[Example]:
    """A sentence a line, of class 0 in .neg and 1 in .pos, the first ones first.

    Raises:
      UserError: a file that cannot be read; what `fault` raises.
    """
    del c
    for path in sorted(paths, key=_polarity):
        for number, line in files.read_lines(path, fault):
            if line.strip():
                yield Example(line.removesuffix('\n').removesuffix('\r'), label=_polarity(path))
            else:
                fault(f'{path}:{number}: is empty')
