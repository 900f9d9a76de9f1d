"""Files of a data set: found by name, opened here or in a bucket, read line by line."""

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
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, cast

from ml_collections import ConfigDict

from lightpaff_jax.data.sources.splits import SPLITS, OnError
from lightpaff_jax.errors import Unreadable, UserError, nearest
from lightpaff_jax.runtime import storage

Path = pathlib.Path  # or one of etils.epath in a bucket, which can do the same
SplitFiles = dict[str, list[Path]]

# Split -> the names for it, of which a file's name or a folder has one.
ALIASES = {
    'train': ('train',),
    'validation': ('validation', 'valid', 'val', 'dev'),
    'test': ('test',),
}
SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
DIGESTS_FILE = 'digests.json'  # path -> size, time of change in ns, digest
_RECENT = 2  # seconds; no file system has coarser times
_BLOCK = 1 << 20  # bytes read at once from a bucket


def name_parts(name: str) -> list[str]:
    """Wiki.train.tokens.gz -> wiki, train, tokens."""
    return re.split('[._-]', strip_gz(name).lower())


def strip_gz(name: str) -> str:
    """A file's name without .gz."""
    return name.removesuffix('.gz')


def extension(name: str) -> str:
    """Wiki.train.tokens.gz -> .tokens; '' where there is none."""
    dot = strip_gz(name).rfind('.')
    return strip_gz(name)[dot:].lower() if dot > 0 else ''


def find(c: ConfigDict, kind: Callable[[str], str | None]) -> SplitFiles:
    """Split -> its files in `config.data.path`, sorted; a split without files is missing.

    They are those that `config.data.files` says. Where it is () a file belongs to the split that
    its name, or the name of its folder below the path, has a part of (ALIASES).

    Args:
      c: the configuration.
      kind: name of a file -> what files of one split must have in common, as their extension; None
        leaves the file out.

    Raises:
      UserError: there is no such folder; a glob that is malformed or matches nothing; it is not
        clear which files are meant.
    """
    if c.data.files:
        return _chosen(c)
    # Split -> (alias or folder, kind) -> files.
    groups: dict[str, dict[tuple[str, str | None], list[Path]]] = {}
    for alias, file in _named(folder(c), kind):
        group = groups.setdefault(SPLIT_OF[alias.rstrip('/')], {})
        group.setdefault((alias, kind(file.name)), []).append(file)
    files = {}
    for split in filter(groups.get, SPLITS):
        one, *others = groups[split].values()
        if others:
            raise UserError(
                f'config.data.path = {c.data.path}: split {split!r} has {one[0].name} and '
                f'{others[0][0].name}, config.data.files must say which files are meant'
            )
        files[split] = one
    return _checked(files)


def _named(root: Path, kind: Callable[[str], str | None]) -> Iterator[tuple[str, Path]]:
    """(alias, file) of the files whose name has one, (alias/, file) of those in a folder of that name."""
    for path in _listed(root):
        name = path.name.lower()
        if kind(path.name) is not None:
            aliases = {SPLIT_OF[part]: part for part in name_parts(name) if part in SPLIT_OF}
            if len(aliases) > 1:
                raise UserError(
                    f'{path}: its name has {" and ".join(aliases.values())}, '
                    'config.data.files must say which files are meant'
                )
            yield from ((alias, path) for alias in aliases.values())
        elif name in SPLIT_OF and path.is_dir():
            yield from ((f'{name}/', file) for file in _listed(path) if kind(file.name) is not None)


def _listed(place: Path) -> list[Path]:
    with translate_errors(place):
        found = [path for path in place.iterdir() if not path.name.startswith('.')]
    return sorted(found, key=lambda path: path.name)


def _checked(files: SplitFiles) -> SplitFiles:
    for group in files.values():
        seen: dict[str, Path] = {}
        for path in group:
            twin = seen.setdefault(strip_gz(str(path)), path)
            if twin is not path:
                raise UserError(f'{path}: must not stand beside {twin.name}, its other form')
    return files


def _chosen(c: ConfigDict) -> SplitFiles:
    """The files of `config.data.files`."""
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
        matched = _matches(c, pattern, where)
        if not matched:
            raise UserError(f'{where}: matches no file in {c.data.path}')
        for path in matched:
            if owner.setdefault(str(path), split) != split:
                raise UserError(f'{where}: {path} is in split {owner[str(path)]!r} already')
            if path not in files.setdefault(split, []):
                files[split].append(path)
    return _checked(files)


def _matches(c: ConfigDict, pattern: str, where: str) -> list[Path]:
    pattern = os.path.expanduser(pattern)
    absolute = pattern.startswith('/') or storage.is_remote(pattern)
    root = storage.to_path('/') if absolute else folder(c)
    whole = storage.to_path(pattern) if absolute else root / pattern
    if not storage.is_remote(whole):
        names = glob_lib.glob(pattern, root_dir=root, recursive=True)
        return [root / name for name in sorted(names) if (root / name).is_file()]
    if '**' in pattern:
        raise UserError(f'{where}: ** is of local folders alone')
    storage.check_reachable(str(whole))
    with translate_errors(whole):
        return sorted(whole.parent.glob(whole.name), key=str)


def folder(c: ConfigDict) -> Path:
    """`config.data.path`.

    Raises:
      Unreadable: it is no folder, or its bucket cannot be reached.
    """
    storage.check_reachable(c.data.path)
    root = storage.to_path(c.data.path)
    with translate_errors(root):
        if not c.data.path or not root.is_dir():
            what = 'is a file' if c.data.path and root.exists() else 'no such folder'
            raise Unreadable(
                f'config.data.path = {c.data.path or repr("")}: {what}, must be a folder; '
                'config.data.files names files in it'
            )
    return root


@contextlib.contextmanager
def translate_errors(path: str | Path) -> Iterator[None]:
    """Makes one line of what reading a path raises.

    Raises:
      UserError: what is there is no whole .gz file, or no whole file of another format.
      Unreadable: it cannot be read now, whatever it holds.
    """
    try:
        with storage.translate_errors(path):
            try:
                yield
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                must = 'must be a whole .gz file'
                raise UserError(f'{path}: {must}: {one_line(error)}') from error
    except OSError as error:
        system = error.errno or storage.is_remote(
            path
        )  # else a library's word for a malformed file
        kind = Unreadable if system else UserError
        raise kind(f'{path}: {error.strerror or one_line(error)}') from error


def one_line(error: BaseException) -> str:
    """What an error says."""
    return ' '.join(str(error).split())


@contextlib.contextmanager
def open_binary(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, of a .gz what was packed; raises UserError where they cannot be read."""
    with translate_errors(file), _raw(file) as raw:
        if file.suffix == '.gz':
            with gzip.open(raw) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield raw


@contextlib.contextmanager
def _raw(file: Path) -> Iterator[IO[bytes]]:
    with file.open('rb') as raw:
        if storage.is_remote(file):  # reads lines one call a byte otherwise
            with io.BufferedReader(cast(io.RawIOBase, raw), _BLOCK) as buffered:
                yield buffered
        else:
            yield cast(IO[bytes], raw)


def read_lines(file: Path, fault: OnError | None) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, with its end; a byte order mark is dropped.

    Args:
      file: the file.
      fault: is told of a line that is no UTF-8, which is left out. None keeps it, its bytes that
        are no UTF-8 as surrogates.

    Raises:
      UserError: the file is empty or cannot be read.
    """
    number = 0
    with open_binary(file) as read:
        for number, line in enumerate(read, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode(errors='strict' if fault else 'surrogateescape')
            except UnicodeDecodeError as error:
                assert fault is not None, 'else nothing is wrong'
                byte = line[error.start]
                fault(f'{file}:{number}: must be UTF-8, has byte 0x{byte:02x}: {error.reason}')
                continue
            yield number, text
    if not number:
        raise UserError(f'{file}: empty corpus, must hold a line')


def digests(cache: str, found: Sequence[Path]) -> list[str]:
    """16 hex digits of the content of each file, as it is stored.

    A local file is read once: DIGESTS in the folder `cache` says what it had, for as long as its
    size and its time of change stay. A file that changed in the last _RECENT seconds is read again,
    since another change could leave the time as it is.

    Raises:
      UserError: a file cannot be read; the cache is in a bucket.
    """
    store = storage.local_folder('config.data.cache = ', cache) / DIGESTS_FILE
    known, new = _stored(store), {}
    digests = []
    for file in found:
        name, state = '', []
        if not storage.is_remote(file):
            with translate_errors(file):
                stat = os.stat(file)
            name, state = os.path.abspath(file), [stat.st_size, stat.st_mtime_ns]
            entry = known.get(name)
            if isinstance(entry, list) and entry[:-1] == state:
                digests.append(entry[-1])
                continue
        with translate_errors(file), _raw(file) as raw:
            digest = hashlib.file_digest(raw, 'sha256').hexdigest()[:16]  # type: ignore[arg-type]
        digests.append(digest)
        if name and time.time_ns() - state[1] > _RECENT * 10**9:
            new[name] = [*state, digest]
    if new:
        _store(store, known | new)
    return digests


def _stored(store: pathlib.Path) -> dict[str, list]:
    try:
        found = json.loads(store.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _store(store: pathlib.Path, content: dict[str, list]) -> None:
    part = store.with_name(f'{store.name}.{os.getpid()}.part')
    with contextlib.suppress(OSError):  # the files are read again then, and nothing is lost
        store.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1, sort_keys=True), encoding='utf-8')
        part.replace(store)
