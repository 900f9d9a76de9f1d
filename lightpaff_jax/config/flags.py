"""The command line of all commands: flags, --help, the configuration, errors and exit codes."""

import ast
import contextlib
import importlib.util
import logging
import numbers
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.config import default, flatten, item_type, locate
from lightpaff_jax.errors import MissingPaths, UserError, nearest, one_line
from lightpaff_jax.runtime import distributed, interrupts

Flags = Mapping[str, Any]
"""Name of a command's own flag -> its default, whose type is the type of the value. False makes a
switch, which takes no value; '' refuses an empty value; `str` or `int` is None if absent."""

_NO_FLAGS: Flags = {}


class Arguments(NamedTuple):
    """A command line, split."""

    options: dict[str, Any]
    """Values of the command's own flags, defaults included; `_` replaces `-` in their names."""
    spec: str
    """FILE[:PRESET]; '' if absent."""
    changes: list[tuple[str, str]]
    """(KEY, VALUE) of each --config.KEY=VALUE, in order."""


def main(
    run: Callable[..., int | None],
    usage: str,
    argv: Sequence[str] | None = None,
    own: Flags = _NO_FLAGS,
) -> int:
    """Runs a command that reads a configuration, in one process or as one of several.

    Args:
      run: the command. It is called with the configuration and, by name, with the command's own
        flags. It may raise UserError and may return an exit code.
      usage: the text of --help.
      argv: arguments without the program's name; None reads sys.argv.
      own: the command's own flags.

    Returns:
      The exit code of `run`. After an error, printed as one line on stderr: 2 for a mistake in the
      input, 3 for a run that diverged.
    """

    def body(argv: Sequence[str]) -> int | None:
        distributed.initialize()
        words = arguments(argv, own)
        c = configuration(words)
        values = {f'config.{key}': value for key, value in flatten(c).items()}
        distributed.assert_equal(values, 'all processes must be started by the same command')
        try:
            code = run(c, **words.options)
        except MissingPaths as error:
            raise MissingPaths(f'{error}{_offline_hint(words.spec)}') from error
        except interrupts.Saved:
            distributed.shutdown()
            raise
        distributed.shutdown()
        return code

    return execute(body, usage, argv)


def execute(
    body: Callable[[Sequence[str]], int | None], usage: str, argv: Sequence[str] | None = None
) -> int:
    """Runs `body(argv)` or prints the usage; turns an error into one line and an exit code.

    Returns:
      The exit code of `body` (None is 0); that of a UserError; 2 without arguments and after an
      OSError; 130 after SIGINT and 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or '-h' in argv or '--help' in argv:
        print(usage.strip())
        return 0 if argv else 2
    try:
        with log_to_stderr(), interrupts.raise_on_signals():
            return body(argv) or 0
    except UserError as error:
        return distributed.exit_with_error(str(error), error.exit_code)
    except OSError as error:  # no permission, a file in place of a folder, a full disk
        reason = f'{error.filename or "file system"}: {one_line(error)}'
        return distributed.exit_with_error(reason, 2)
    except interrupts.Stopped as stop:
        return distributed.exit_stopped(stop)
    except BaseException as error:
        if distributed.process_count() == 1:
            raise
        if distributed.is_peer_failure(error):
            text = f'lost another process, which has ended ({_summary(error)})'
            return distributed.exit_with_error(text, 1, lost=True)
        traceback.print_exc()
        return distributed.exit_with_error(_summary(error), 1)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Prints the package's log as plain lines on stderr; other processes than 0 print errors only."""
    log, handler = logging.getLogger('lightpaff_jax'), logging.StreamHandler()
    handler.addFilter(lambda record: distributed.is_primary() or record.levelno >= logging.ERROR)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # a handler that a library adds to the root logger would print it again
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _offline_hint(spec: str) -> str:
    """Returns the advice to run the file's `tiny` preset, which needs no files, or ''."""
    name, _, preset = spec.partition(':')
    if preset or 'tiny' not in getattr(_module(name), 'PRESETS', ()):
        return ''
    return f'; to try it without them: --config={name}:tiny'


def arguments(argv: Sequence[str], own: Flags = _NO_FLAGS, *, config: bool = True) -> Arguments:
    """Splits a command line of --NAME=VALUE or --NAME VALUE.

    Args:
      argv: arguments without the program's name.
      own: the command's own flags.
      config: whether the command reads a configuration.

    Raises:
      UserError: an unknown flag; a value that is missing, unexpected or of another type; one of the
        command's own flags or --config given twice.
    """
    values: dict[str, Any] = {}
    spec: list[str] = []
    changes: list[tuple[str, str]] = []
    flags = [f'--{name}' for name in own] + ['--config', '--config.KEY'] * config
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition('=')
        name = flag.removeprefix('--')
        key = config and (flag == '--config' or flag.startswith('--config.'))
        if not key and (name == flag or name not in own):
            names = ', '.join(flags)
            raise UserError(f'argument {word!r}: must be one of {names}{nearest(flag, flags)}')
        if not key and own[name] is False:
            if equals:
                raise UserError(f'{flag}: takes no value')
        elif not equals:
            if not rest or rest[0].startswith('--'):
                raise UserError(f'argument {word!r}: must be followed by a value')
            value = rest.pop(0)
        if key and flag != '--config':
            changes.append((flag.removeprefix('--config.'), value))
        elif name in values or (key and spec):
            raise UserError(f'{flag}: must be given once')
        elif key:
            spec.append(value)
        else:
            values[name] = _option(flag, value, own[name])
    defaults = {name: None if isinstance(value, type) else value for name, value in own.items()}
    options = {name.replace('-', '_'): value for name, value in (defaults | values).items()}
    return Arguments(options, ''.join(spec), changes)


def _option(flag: str, text: str, default: Any) -> Any:
    if default is False:
        return True
    if default == '' and not text:
        raise UserError(f'{flag}=: must have a value')
    kind = default if isinstance(default, type) else type(default)
    value = _typed(f'{flag}={text}', flag, text, kind())
    _check_printable(flag, value)
    return value


def parse(argv: Sequence[str]) -> ConfigDict:
    """Returns the configuration of `--config=FILE[:PRESET] --config.KEY=VALUE ...`."""
    return configuration(arguments(argv))


def configuration(words: Arguments, base: ConfigDict | None = None) -> ConfigDict:
    """Loads a recipe file and sets the keys that the command line changes.

    Args:
      words: the split command line.
      base: the configuration to change if no recipe file is given; None requires a file.

    Raises:
      UserError: an unknown file, preset or key, or a value of the wrong type.
    """
    if not words.spec and base is None:
        raise UserError('--config=FILE[:PRESET]: must be given')
    c = load(words.spec) if words.spec or base is None else base
    for key, text in words.changes:
        override(c, key, text)
    for key, value in flatten(c).items():
        for number in value if isinstance(value, tuple) else (value,):
            _check_printable(f'config.{key}', number)
    c.workdir = os.path.expanduser(c.workdir or f'runs/{config_name(words.spec)}')
    return c


def config_name(spec: str) -> str:
    """Returns the name of a preset: gpt2_stage1_tiny for configs/gpt2_stage1.py:tiny."""
    path, _, preset = spec.partition(':')
    return '_'.join(filter(None, (pathlib.Path(path).stem, preset)))


def load(spec: str) -> ConfigDict:
    """Returns `get_config(preset)` of a recipe file, given as FILE[:PRESET].

    A recipe file names its presets in the tuple `PRESETS`. Without PRESET it is called with ''.

    Raises:
      UserError: an unknown file or preset, or a recipe that is not a valid ConfigDict.
    """
    name, _, preset = spec.partition(':')
    path = pathlib.Path(name)
    if not path.is_file():
        files = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        raise UserError(f'--config={name}: no such file{nearest(name, files)}')
    module = _module(name)
    if not hasattr(module, 'get_config'):
        raise UserError(f'--config={name}: must define get_config(preset)')
    presets = getattr(module, 'PRESETS', ())
    if preset and preset not in presets:
        names = ', '.join(presets) or 'none'
        raise UserError(
            f'--config={spec}: unknown preset {preset!r}, known: {names}{nearest(preset, presets)}'
        )
    try:
        c = module.get_config(preset)
    except Exception as error:
        raise UserError(f'--config={spec}: {_summary(error)}') from error
    defaults = flatten(default())
    if not isinstance(c, ConfigDict) or flatten(c).keys() != defaults.keys():
        raise UserError(
            f'--config={name}: get_config must return the ConfigDict of config.default()'
        )
    for key, value in flatten(c).items():
        if value is None:
            raise UserError(f'config.{key} = None: must have a value')
        if isinstance(value, tuple):
            section, leaf = locate(c, key)
            section[leaf] = _items(f'config.{key}', str(value), value, defaults[key])
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
        raise UserError(f'--config={name}: {_summary(error)}') from error
    return module


def override(c: ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key from text of the command line, by the type of its default.

    Raises:
      UserError: an unknown key, a section, or a value of another type.
    """
    node, path = c, 'config'
    for name in key.split('.'):
        if not isinstance(node, ConfigDict) or name not in node:
            names = list(node.keys()) if isinstance(node, ConfigDict) else []
            # A key without its section is more likely than a misspelt section.
            same = [full for full in flatten(c) if full.split('.')[-1] == name]
            hint = nearest(key, same) or nearest(name, names) or nearest(key, list(flatten(c)))
            raise UserError(f'{path}.{name}: no such key{hint}')
        node, path = node[name], f'{path}.{name}'
    if isinstance(node, ConfigDict):
        raise UserError(f'{path}: is a section, set one of {", ".join(node.keys())}')
    section, leaf = locate(c, key)
    section[leaf] = _typed(f'{path} = {text}', path, text, node)


_TYPE_NAMES = {bool: 'True or False', int: 'a whole number', float: 'a number'}
_TYPE_NAMES |= {str: 'a name', tuple: 'a list like a,b'}


def _typed(label: str, key: str, text: str, default: Any) -> Any:
    """Converts text to the type of `default`; `label` names key and text in the message."""
    kind = type(default)
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = tuple(text.split(',') if text else ()) if kind is tuple else text
    if kind is float:
        value = _convert(value, float)
    if kind is tuple and type(value) is not tuple:
        value = tuple(value) if type(value) is list else (value,)
    if type(value) is not kind:
        raise UserError(f'{label}: must be {_TYPE_NAMES[kind]}')
    if kind is not tuple:
        return value
    if item_type(key.removeprefix('config.'), default) is str:
        literals = all(item is None or type(item) in (bool, int, float) for item in value)
        if value and literals:  # names such as None, 007 or 1e3 keep their spelling
            value = tuple(_strip_brackets(text).split(','))
        value = tuple(item.strip() if type(item) is str else item for item in value)
    return _items(key, text, value, default)


def _strip_brackets(text: str) -> str:
    """Removes the brackets of a list and the comma after its last item."""
    text = text.strip()
    return text[1:-1].rstrip().removesuffix(',') if text[:1] in ('(', '[') else text


def _items(key: str, text: str, value: tuple, default: tuple) -> tuple:
    """Converts the items of a list to its type; whole numbers may stand for names and floats."""
    kind = item_type(key.removeprefix('config.'), default)
    value = tuple(_convert(item, kind) for item in value)
    if any(type(item) is not kind for item in value):
        raise UserError(f'{key} = {text}: must hold {_TYPE_NAMES[kind]} or several')
    return value


def _check_printable(label: str, value: Any) -> None:
    """Refuses text that is not UTF-8, and whole numbers with too many digits to be printed."""
    if type(value) is int and abs(value) >= 2**63:
        raise UserError(f'{label}: must be below 2**63')
    if isinstance(value, str) and re.search('[\0\ud800-\udfff]', value):
        raise UserError(f'{label} = {value!r}: must be UTF-8, without NUL')


def _convert(value: Any, kind: type) -> Any:
    """Converts a whole number to a name or a float; returns others, and too large numbers, as they are."""
    convertible = numbers.Real if kind is float else numbers.Integral
    if isinstance(value, bool) or not isinstance(value, convertible):
        return value
    try:
        return kind(value)
    except (OverflowError, ValueError):
        return value


def _summary(error: BaseException) -> str:
    """Formats the error of a recipe file, or an unexpected one, as one line."""
    text = one_line(error)
    if isinstance(error, AttributeError | KeyError):  # ml_collections lists all of its keys
        near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
        if near:
            return f'no such key {near[2]}; did you mean {near[1]}?'
        unknown = re.search(r'Key "(\w+)" does not exist', text)
        if unknown:
            return f'no such key {unknown[1]}'
    return f'{type(error).__name__}: {text}'
