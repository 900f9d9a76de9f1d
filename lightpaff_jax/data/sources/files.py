"""Finds the files of a dataset by their names and reads them, locally or from a bucket."""

import codecs
import contextlib
import glob as glob_lib
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, cast

from ml_collections import ConfigDict

from lightpaff_jax.data.sources.splits import SPLITS, OnError
from lightpaff_jax.errors import Unreadable, UserError, nearest, one_line
from lightpaff_jax.runtime import json_file, storage

Path = pathlib.Path  # or an etils.epath of a bucket, which has the same methods
SplitFiles = dict[str, list[Path]]

VERSION = 2  # of the readers; prepared datasets of another version are built again
# Split -> the names for it. A file belongs to a split if its name or its folder contains one.
ALIASES = {
    'train': ('train',),
    'validation': ('validation', 'valid', 'val', 'dev'),
    'test': ('test',),
}
SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
DIGESTS_FILE = 'digests.json'  # path -> [size, modification time in ns, digest]
_CLOCK_STEP = 2  # seconds; no common file system stores coarser modification times
_READ_SIZE = 1 << 20  # bytes read from a bucket in one request
_MAGIC = {  # first bytes -> the format of a file that is not text in UTF-8
    b'\x1f\x8b': 'a .gz file',
    b'\x28\xb5\x2f\xfd': 'a .zst file',
    b'\xfd7zXZ': 'an .xz file',
    b'BZh91AY&': 'a .bz2 file',
    b'PK\x03\x04': 'a .zip or .xlsx file',
    b'PAR1': 'a .parquet file',
    codecs.BOM_UTF16_LE: 'text in UTF-16',
    codecs.BOM_UTF16_BE: 'text in UTF-16',
}


def name_parts(name: str) -> list[str]:
    """Splits a file name: Wiki.train.tokens.gz -> ['wiki', 'train', 'tokens']."""
    return re.split('[._-]', strip_gz(name).lower())


def strip_gz(name: str) -> str:
    """Removes the suffix .gz of a file name, if any."""
    return name.removesuffix('.gz')


def extension(name: str) -> str:
    """Returns the extension of a file name: Wiki.train.tokens.gz -> .tokens; '' by default."""
    dot = strip_gz(name).rfind('.')
    return strip_gz(name)[dot:].lower() if dot > 0 else ''


def by_extension(extensions: Sequence[str]) -> Callable[[str], str | None]:
    """Returns the function `group_of` of `find` for a source that reads some extensions."""
    return lambda name: extension(name) if extension(name) in extensions else None


def expected(split: str, extensions: Sequence[str]) -> str:
    """Describes the files that `find` looks for, for messages."""
    return (
        f'looked for files that have {" or ".join(ALIASES[split])} in their names and end in '
        f'{", ".join(extensions)}, or .gz of these'
    )


def find(c: ConfigDict, group_of: Callable[[str], str | None]) -> SplitFiles:
    """Finds the files of each split.

    They are the files that `config.data.files` names. If it is empty, a file belongs to the split
    whose alias (see ALIASES) is a part of the file's name or is the name of its folder.

    Args:
      c: the configuration.
      group_of: maps a file name to a group, such as its extension, or to None if the source does
        not read the file. The files of a split must be in one group.

    Returns:
      Split -> its files, sorted by name. A split without files is absent.

    Raises:
      UserError: the folder does not exist, a pattern is malformed or matches nothing, or a split
        has files of several groups or aliases.
    """
    if c.data.files:
        return _match_patterns(c)
    # Split -> (alias or folder, group) -> files.
    groups: dict[str, dict[tuple[str, str | None], list[Path]]] = {}
    for alias, file in _aliased_files(folder(c), group_of):
        split_groups = groups.setdefault(SPLIT_OF[alias.rstrip('/')], {})
        split_groups.setdefault((alias, group_of(file.name)), []).append(file)
    files = {}
    for split in filter(groups.get, SPLITS):
        group, *others = groups[split].values()
        if others:
            raise UserError(
                f'config.data.path = {c.data.path}: split {split!r} has {group[0].name} and '
                f'{others[0][0].name}, config.data.files must name the files to read'
            )
        files[split] = group
    return _check_duplicates(files)


def _aliased_files(root: Path, group_of: Callable[[str], str | None]) -> Iterator[tuple[str, Path]]:
    """Yields (alias, file) for aliases in file names and (alias/, file) for folders of that name."""
    for path in _list_folder(root):
        name = path.name.lower()
        if group_of(path.name) is not None:
            aliases = {SPLIT_OF[part]: part for part in name_parts(name) if part in SPLIT_OF}
            if len(aliases) > 1:
                raise UserError(
                    f'{path}: its name has {" and ".join(aliases.values())}, '
                    'config.data.files must name the files to read'
                )
            yield from ((alias, path) for alias in aliases.values())
        elif name in SPLIT_OF and path.is_dir():
            members = (file for file in _list_folder(path) if group_of(file.name) is not None)
            yield from ((f'{name}/', file) for file in members)


def _list_folder(path: Path) -> list[Path]:
    with translate_errors(path):
        visible = [member for member in path.iterdir() if not member.name.startswith('.')]
    return sorted(visible, key=lambda member: member.name)


def _check_duplicates(files: SplitFiles) -> SplitFiles:
    """Raises UserError if a file is present both plain and compressed."""
    for paths in files.values():
        seen: dict[str, Path] = {}
        for path in paths:
            twin = seen.setdefault(strip_gz(str(path)), path)
            if twin is not path:
                raise UserError(f'{path}: must not exist next to {twin.name}, its other form')
    return files


def _match_patterns(c: ConfigDict) -> SplitFiles:
    """Returns the files of `config.data.files`, in the order of its patterns."""
    files: SplitFiles = {}
    owner: dict[str, str] = {}
    for entry in c.data.files:
        where = f'config.data.files = {entry!r}'
        split, equals, pattern = entry.partition('=')
        if not equals or not pattern or split not in SPLITS:
            near = nearest(split, SPLITS) if equals and split not in SPLITS else ''
            raise UserError(
                f'{where}: must be SPLIT=GLOB with a SPLIT of {", ".join(SPLITS)}{near}'
            )
        matches = _glob(c, pattern, where)
        if not matches:
            raise UserError(f'{where}: matches no file in {c.data.path}')
        for path in matches:
            if owner.setdefault(str(path), split) != split:
                raise UserError(f'{where}: {path} is in split {owner[str(path)]!r} already')
            if path not in files.setdefault(split, []):
                files[split].append(path)
    return _check_duplicates(files)


def _glob(c: ConfigDict, pattern: str, where: str) -> list[Path]:
    pattern = os.path.expanduser(pattern)
    absolute = pattern.startswith('/') or storage.is_remote(pattern)
    root = storage.to_path('/') if absolute else folder(c)
    whole = storage.to_path(pattern) if absolute else root / pattern
    if not storage.is_remote(whole):
        names = glob_lib.glob(pattern, root_dir=root, recursive=True)
        if (root / pattern).is_file():  # its name may have characters of a pattern
            names = [pattern]
        return [root / name for name in sorted(names) if (root / name).is_file()]
    if '**' in pattern:
        raise UserError(f'{where}: ** is only supported in local folders')
    storage.check_reachable(str(whole))
    with translate_errors(whole):
        return sorted(whole.parent.glob(whole.name), key=str)


def folder(c: ConfigDict) -> Path:
    """Returns the folder `config.data.path`.

    Raises:
      Unreadable: it is not a folder, or its bucket cannot be reached.
    """
    storage.check_reachable(c.data.path)
    root = storage.to_path(c.data.path)
    with translate_errors(root):
        if not c.data.path or not root.is_dir():
            problem = 'is a file' if c.data.path and root.exists() else 'no such folder'
            raise Unreadable(
                f'config.data.path = {c.data.path or repr("")}: {problem}, must be a folder; '
                'config.data.files names files in it'
            )
    return root


@contextlib.contextmanager
def translate_errors(path: str | Path) -> Iterator[None]:
    """Turns the errors of reading a path into errors of one line.

    Raises:
      UserError: the content is malformed, such as a truncated .gz file.
      Unreadable: the path cannot be read at the moment; its content may be intact.
    """
    try:
        with storage.translate_errors(path):
            try:
                yield
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                rule = 'must be a whole .gz file'
                raise UserError(f'{path}: {rule}: {one_line(error)}') from error
    except OSError as error:
        # Without an errno the error comes from a library, which reports a malformed file this way.
        kind = Unreadable if error.errno or storage.is_remote(path) else UserError
        raise kind(f'{path}: {one_line(error)}') from error


@contextlib.contextmanager
def open_binary(file: Path) -> Iterator[IO[bytes]]:
    """Opens a file and decompresses .gz; raises UserError if it cannot be read."""
    with translate_errors(file), _open_stored(file) as stored:
        if file.suffix == '.gz':
            with gzip.open(stored) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield stored


@contextlib.contextmanager
def _open_stored(file: Path) -> Iterator[IO[bytes]]:
    if not storage.is_remote(file):
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading it might never end
            raise UserError(f'{file}: must be a regular file')
    with file.open('rb') as raw:
        if storage.is_remote(file):  # without a buffer it reads lines byte by byte
            with io.BufferedReader(cast(io.RawIOBase, raw), _READ_SIZE) as buffered:
                yield buffered
        else:
            yield cast(IO[bytes], raw)


def read_lines(
    file: Path, on_error: OnError | None, newline: str | None = None
) -> Iterator[tuple[int, str]]:
    r"""Yields the number, from 1, and the text of each line, without a byte order mark.

    Lines end at \n, \r\n and \r, as in Python's text mode; no other character ends a line.

    Args:
      file: the file, local or in a bucket, compressed or not.
      on_error: called with a message for each line that is no text (see `text_fault`); the line is
        skipped. None keeps such lines, with surrogates for the bytes that are not UTF-8.
      newline: None replaces the end of each line by \n; '' keeps it.

    Raises:
      UserError: the file is empty, is of a binary format, or cannot be read.
    """
    number = 0
    with open_binary(file) as content:
        binary = cast(io.BufferedReader, content)
        text = io.TextIOWrapper(binary, 'utf-8-sig', 'surrogateescape', newline)
        for number, line in enumerate(text, 1):
            if number == 1:
                _check_is_text(file, line)
            fault = text_fault(line) if on_error else ''
            if on_error and fault:
                on_error(f'{file}:{number}: {fault}')
            else:
                yield number, line
    if not number:
        raise UserError(f'{file}: empty corpus, must hold a line')


def _check_is_text(file: Path, first_line: str) -> None:
    """Raises UserError if a file begins like a file of a binary format.

    Some of its lines may be text by chance, so they must not be skipped one by one.
    """
    start = first_line[:8].encode(errors='surrogateescape')
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise UserError(f'{file}: must be text in UTF-8, begins like {name}')


def text_fault(text: str) -> str:
    """Returns the rule that a text from `read_lines` breaks: UTF-8 without NUL; '' if none."""
    if '\0' in text:  # UTF-16, a binary file, or a hole that a crash left in a file
        return 'must be text, has a NUL byte'
    if text.isascii():
        return ''
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text.encode(errors='surrogateescape').decode()
        except UnicodeDecodeError as error:
            return f'must be UTF-8, has byte 0x{error.object[error.start]:02x}: {error.reason}'
    return ''


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written as UTF-8, that is, has no unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def digests(cache: str, paths: Sequence[Path]) -> list[str]:
    """Computes 16 hex digits of a SHA-256 over the stored bytes of each file.

    The digest of a local file is kept in DIGESTS_FILE and reused while the file's size and
    modification time stay the same. A file that changed within the last _CLOCK_STEP seconds is not
    kept: a second change could leave its modification time as it is.

    Args:
      cache: the folder of DIGESTS_FILE.
      paths: the files.

    Raises:
      UserError: a file cannot be read, or the cache is in a bucket.
    """
    store = storage.local_folder('config.data.cache = ', cache) / DIGESTS_FILE
    cached, new = _read_digests(store), {}
    result = []
    for path in paths:
        name, state = '', []
        if not storage.is_remote(path):
            with translate_errors(path):
                status = os.stat(path)
            name, state = os.path.abspath(path), [status.st_size, status.st_mtime_ns]
            if name in cached and cached[name][:-1] == state:
                result.append(cached[name][-1])
                continue
        with translate_errors(path), _open_stored(path) as stored:
            digest = hashlib.file_digest(stored, 'sha256').hexdigest()[:16]  # type: ignore[arg-type]
        result.append(digest)
        if name and time.time_ns() - state[1] > _CLOCK_STEP * 10**9:
            new[name] = [*state, digest]
    if new:
        text = json.dumps(cached | new, indent=1, sort_keys=True)
        # Without the store, files are only read again.
        with contextlib.suppress(OSError, UserError):
            storage.publish(store, lambda part: part.write_text(text, encoding='utf-8'))
    return result


def _read_digests(store: pathlib.Path) -> dict[str, list]:
    with contextlib.suppress(UserError):  # then the files are only read again
        return json_file.read(store, {str: [int, int, str]})
    return {}
