"""The command line: `--config=FILE[:PRESET] --config.KEY=VALUE ...` to a configuration, and exit codes."""

import ast
import contextlib
import functools
import importlib.util
import logging
import numbers
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from ml_collections import ConfigDict

from lightpaff_jax.config import NUMBERS, RATES, default, flatten
from lightpaff_jax.config.validate import validate
from lightpaff_jax.errors import MissingPaths, UserError, nearest
from lightpaff_jax.runtime import distributed, interrupts, storage


def main(run: Callable[[ConfigDict], None], usage: str, argv: Sequence[str] | None = None) -> int:
    """Parses the command line and calls `run(config)`; the exit code of a command.

    Where the environment names several processes, they are joined before and left after.

    Args:
      run: what the command does; may raise UserError.
      usage: what --help prints.
      argv: arguments without the program's name; None takes sys.argv.

    Returns:
      0, or 2 after one line on stderr that names the mistake.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or '-h' in argv or '--help' in argv:
        print(usage.strip())
        return 0 if argv else 2
    try:
        distributed.initialize()
        with notes(), interrupts.deliver_sigint_during_gc():
            c = parse(argv)
            validate(c)
            storage.check_reachable(c.workdir)
            values = {f'config.{key}': value for key, value in flatten(c).items()}
            distributed.assert_equal(values, 'all processes must be started by the same command')
            distributed.sync_devices()
            run(c)
            distributed.shutdown()
    except MissingPaths as error:
        return distributed.exit_with_error(f'{error}{_offline(_split(argv)[0])}', 2)
    except UserError as error:
        return distributed.exit_with_error(str(error), 2)
    except OSError as error:  # no permission, a file where a folder should be, a full disk
        return distributed.exit_with_error(
            f'{error.filename or "file system"}: {error.strerror or error}', 2
        )
    except BaseException as error:
        if distributed.process_count() == 1:
            raise
        return _ended(error)
    return 0


def _ended(error: BaseException) -> int:
    """Ends one of several processes that did not expect this."""
    if isinstance(error, KeyboardInterrupt):
        return distributed.exit_with_error('interrupted', 130)
    if distributed.is_peer_failure(error):
        text = f'lost another process, which has ended ({_one_line(error)})'
        return distributed.exit_with_error(text, 1, lost=True)
    traceback.print_exc()
    return distributed.exit_with_error(_one_line(error), 1)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """What the package logs goes to stderr, as plain lines; once, not from each process."""
    log, handler = logging.getLogger('lightpaff_jax'), logging.StreamHandler()
    handler.setLevel(logging.INFO if distributed.is_primary() else logging.ERROR)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # a library's handler of the root would say it again
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def _offline(spec: str) -> str:
    """What to run instead where files are missing: the recipe file's `tiny` preset."""
    name, _, preset = spec.partition(':')
    if preset or 'tiny' not in getattr(_module(name), 'PRESETS', ()):
        return ''
    return f'; to try it without them: --config={name}:tiny'


def parse(argv: Sequence[str], base: ConfigDict | None = None) -> ConfigDict:
    """`--config=FILE[:PRESET] --config.KEY=VALUE ...` -> a configuration.

    Args:
      argv: arguments without the program's name.
      base: what is changed where no FILE is given; None: one must be.

    Raises:
      UserError: an unknown file, preset, key or flag, or a value of the wrong type.
    """
    spec, changes = _split(argv, optional=base is not None)
    c = load(spec) if spec or base is None else base
    for key, text in changes:
        override(c, key, text)
    c.workdir = os.path.expanduser(c.workdir or f'runs/{config_name(spec)}')
    return c


def flags(
    argv: Sequence[str], values: Sequence[str], switches: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The flags that a command has beside those of a configuration, and the arguments of this one.

    Args:
      argv: arguments without the program's name.
      values: names of flags with a value, --NAME=VALUE or --NAME VALUE.
      switches: names of flags without one; those that are given have ''.

    Raises:
      UserError: an unknown flag; one given twice, without its value or with one it does not have.
    """
    found: dict[str, str] = {}
    rest, words = [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition('=')
        name = flag.removeprefix('--')
        ours = name != flag and name in (*values, *switches)
        if not ours and flag != '--config' and not flag.startswith('--config.'):
            known = [f'--{one}' for one in (*values, *switches, 'config')]
            raise UserError(
                f'argument {word!r}: must be one of {", ".join(known)}{nearest(flag, known)}'
            )
        if ours and name in switches:
            if equals:
                raise UserError(f'{flag}: has no value')
        elif not equals:
            if not words or words[0].startswith('--'):
                raise UserError(f'argument {word!r}: must be followed by a value')
            value = words.pop(0)
        if not ours:
            rest.append(f'{flag}={value}')
        elif name in found:
            raise UserError(f'{flag}: must be given once')
        elif not value and name in values:
            raise UserError(f'{flag}=: must have a value')
        else:
            found[name] = value
    return found, rest


def _split(argv: Sequence[str], optional: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """FILE[:PRESET], '' if there is none, and (KEY, VALUE) of the other arguments in their order."""
    files: list[str] = []
    changes: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition('=')
        if flag != '--config' and not flag.startswith('--config.'):
            raise UserError(
                f'argument {word!r}: must be --config=FILE[:PRESET] or --config.KEY=VALUE'
            )
        if not equals:
            if not rest or rest[0].startswith('--'):
                raise UserError(f'argument {word!r}: must be followed by a value')
            value = rest.pop(0)
        if flag == '--config':
            files.append(value)
        else:
            changes.append((flag.removeprefix('--config.'), value))
    if optional and not files:
        return '', changes
    if len(files) != 1:
        raise UserError(f'--config=FILE: must be given once, was given {len(files)} times')
    return files[0], changes


def config_name(spec: str) -> str:
    """configs/gpt2_stage1.py:tiny -> gpt2_stage1_tiny."""
    path, _, preset = spec.partition(':')
    return '_'.join(filter(None, (pathlib.Path(path).stem, preset)))


def load(spec: str) -> ConfigDict:
    """Runs `get_config(preset)` of a recipe file given as FILE[:PRESET].

    A recipe file names its presets in a tuple `PRESETS`; the plain file is ''.
    """
    name, _, preset = spec.partition(':')
    path = pathlib.Path(name)
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        raise UserError(f'--config={name}: no such file{nearest(name, there)}')
    module = _module(name)
    if not hasattr(module, 'get_config'):
        raise UserError(f'--config={name}: must define get_config(preset)')
    presets = getattr(module, 'PRESETS', ())
    if preset and preset not in presets:
        known = ', '.join(presets) or 'none'
        raise UserError(
            f'--config={spec}: unknown preset {preset!r}, known: {known}{nearest(preset, presets)}'
        )
    try:
        c = module.get_config(preset)
    except Exception as error:
        raise UserError(f'--config={spec}: {_one_line(error)}') from error
    if not isinstance(c, ConfigDict) or flatten(c).keys() != flatten(default()).keys():
        raise UserError(
            f'--config={name}: get_config must return the ConfigDict of config.default()'
        )
    plain = flatten(default())
    for key, value in flatten(c).items():
        if value is None:
            raise UserError(f'config.{key} = None: must have a value')
        if isinstance(value, tuple):
            *sections, leaf = key.split('.')
            section = functools.reduce(lambda node, name: node[name], sections, c)
            section[leaf] = _items(f'config.{key}', str(value), value, plain[key])
    return c


def _module(name: str) -> ModuleType:
    path = pathlib.Path(name)
    spec = importlib.util.spec_from_file_location(f'lightpaff_config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={name}: must be a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f'--config={name}: {_one_line(error)}') from error
    return module


def override(c: ConfigDict, key: str, text: str) -> None:
    """Sets one dotted key from the command line's text, by the type of its default."""
    *sections, leaf = key.split('.')
    node, seen = c, 'config'
    for name in (*sections, leaf):
        if not isinstance(node, ConfigDict) or name not in node:
            names = list(node.keys()) if isinstance(node, ConfigDict) else []
            raise UserError(f'{seen}.{name}: no such key{_nearest_key(c, key, name, names)}')
        node, seen = node[name], f'{seen}.{name}'
    if isinstance(node, ConfigDict):
        raise UserError(f'{seen}: is a section, set one of {", ".join(node.keys())}')
    parent = c
    for name in sections:
        parent = parent[name]
    parent[leaf] = _typed(seen, text, node)


def _nearest_key(c: ConfigDict, key: str, name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return near or nearest(key, list(flatten(c)))


def _typed(key: str, text: str, default):
    kind = type(default)
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = tuple(text.split(',') if text else ()) if kind is tuple else text
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and type(value) is list:
        value = tuple(value)
    elif kind is tuple and type(value) is not tuple:
        value = (value,)
    if type(value) is not kind:
        raise UserError(f'{key} = {text}: must be {_KIND_NAMES[kind]}')
    if kind is tuple:
        if _of_items(key, default) is str:
            literals = all(item is None or type(item) in (bool, int, float) for item in value)
            if value and literals:  # as they are written: names like None, 007 or 1e3
                value = tuple(_bare(text).split(','))
            value = tuple(item.strip() if type(item) is str else item for item in value)
        value = _items(key, text, value, default)
    return value


def _bare(text: str) -> str:
    """Without the brackets of a list, and the comma that its last item may have."""
    text = text.strip()
    return text[1:-1].rstrip().removesuffix(',') if text[:1] in ('(', '[') else text


def _of_items(key: str, default: tuple) -> type:
    """What the items of a list are."""
    name = key.removeprefix('config.')
    empty = int if name in NUMBERS else float if name in RATES else str
    return type(default[0]) if default else empty


def _items(key: str, text: str, value: tuple, default: tuple) -> tuple:
    """Of the one type that a list has; whole numbers may stand for names and for numbers."""
    kind = _of_items(key, default)
    given = numbers.Real if kind is float else numbers.Integral
    value = tuple(
        item if isinstance(item, bool) or not isinstance(item, given) else kind(item)
        for item in value
    )
    if any(type(item) is not kind for item in value):
        raise UserError(f'{key} = {text}: must hold {_KIND_NAMES[kind]} or several')
    return value


_KIND_NAMES = {
    bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a name', tuple: 'a list like a,b',
}  # fmt: skip


def _one_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    if isinstance(error, AttributeError | KeyError):  # ml_collections lists every key there is
        near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
        if near:
            return f'no such key {near[2]}; did you mean {near[1]}?'
        unknown = re.search(r'Key "(\w+)" does not exist', text)
        if unknown:
            return f'no such key {unknown[1]}'
    return f'{type(error).__name__}: {text}'
