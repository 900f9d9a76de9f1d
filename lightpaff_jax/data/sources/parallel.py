"""The source `parallel`: lines of one file and the same lines of another, such as translations."""

import contextlib
from collections.abc import Generator, Iterator

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, rows
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError
from lightpaff_jax.errors import UserError


def find(c: ConfigDict) -> SplitFiles:
    """Finds the files of each split; raises UserError unless they form pairs."""
    split_files = files.find(c, lambda name: '' if _suffix(c, name) else None)
    for split, paths in split_files.items():
        for suffix in c.data.suffixes:
            if suffix not in [_suffix(c, path.name) for path in paths]:
                names = ', '.join(path.name for path in paths)
                raise UserError(
                    f'config.data.suffixes = {",".join(c.data.suffixes)}: no file of split '
                    f'{split!r} has {suffix!r} in its name, its files are {names}'
                )
        _pair_files(c, paths)
    return split_files


def expected(c: ConfigDict, split: str) -> str:
    """Describes the files of a split, for messages."""
    del c
    names = ' or '.join(files.ALIASES[split])
    return f'looked for files that have {names} and one of config.data.suffixes in their names'


def read(c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
    """Reads pairs of a source text and its target text.

    Args:
      c: the configuration.
      paths: the files of both sides.
      on_error: called with a message for each malformed pair, which is skipped.

    Raises:
      UserError: a file cannot be read, or the files of a pair differ in their number of lines.
    """
    for first, second in _pair_files(c, paths):
        with (
            contextlib.closing(_read_texts(first)) as sources,
            contextlib.closing(_read_texts(second)) as targets,
        ):
            yield from _zip_texts(first, second, sources, targets, on_error)


def _suffix(c: ConfigDict, name: str) -> str | None:
    """Returns the one of `config.data.suffixes` that is last in a file name, or None."""
    suffixes = [suffix.lower() for suffix in c.data.suffixes]
    matches = [part for part in files.name_parts(name) if part in suffixes]
    return c.data.suffixes[suffixes.index(matches[-1])] if matches else None


def _pair_files(c: ConfigDict, paths: list[Path]) -> list[tuple[Path, Path]]:
    """Returns the source file and the target file of each shard.

    Raises:
      UserError: the files do not form pairs.
    """
    first, second = ([p for p in paths if _suffix(c, p.name) == s] for s in c.data.suffixes)
    shards = [[_shard(c, path) for path in side] for side in (first, second)]
    if len(first) != len(second) or (len(first) > 1 and shards[0] != shards[1]):
        raise UserError(
            f'config.data.suffixes = {",".join(c.data.suffixes)}: must have one file of each side '
            f'for every shard, the files are {", ".join(p.name for p in (*first, *second))}'
        )
    return list(zip(first, second, strict=True))


def _shard(c: ConfigDict, path: Path) -> list[str]:
    """Returns the folder and the parts of a file name without its suffix of the side."""
    parts, suffix = files.name_parts(path.name), _suffix(c, path.name)
    assert suffix is not None, '`find` ignores files without one'
    del parts[len(parts) - 1 - parts[::-1].index(suffix.lower())]
    return [str(path.parent), *parts]


def _read_texts(file: Path) -> Generator[str]:
    ends = set()
    for number, line in files.read_lines(file, None, newline=''):
        text = line.rstrip('\r\n')
        ends.add(line.removeprefix(text))
        if '\r' in ends and not ends.isdisjoint(('\n', '\r\n')):
            raise UserError(
                f'{file}:{number}: lines must all end alike, some end in a carriage return only, '
                'which would shift the pairs'
            )
        yield text


def _zip_texts(
    first: Path, second: Path, sources: Iterator[str], targets: Iterator[str], on_error: OnError
) -> Iterator[Example]:
    schema = rows.Schema((first.name, second.name))
    number = 0
    while True:
        texts = [next(sources, None), next(targets, None)]
        if None in texts:
            break
        number += 1
        sides = zip((first, second), texts, strict=True)
        faults = [(file, fault) for file, text in sides if (fault := files.text_fault(text or ''))]
        example = rows.to_example(schema, texts)
        if faults:
            on_error(f'{faults[0][0]}:{number}: {faults[0][1]}')
        elif isinstance(example, str):
            on_error(f'{first}:{number}: {example}')
        else:
            yield example
    if texts != [None, None]:
        counts = [
            number + (text is not None) + sum(1 for _ in rest)
            for text, rest in zip(texts, (sources, targets), strict=True)
        ]
        raise UserError(
            f'{first}: has {counts[0]} lines, {second} has {counts[1]}, must be as many'
        )
