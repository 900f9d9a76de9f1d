"""Reads JSON files and checks the form of their values.

Every mistake in a file raises a UserError of one line, which names file, place and rule.
"""

import json
import math
import re
from collections.abc import Iterator
from types import NoneType
from typing import Any

from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.runtime import storage

Schema = Any
"""The form of a value:

    int, float, str, bool, A | B   this type; a float may be a whole number
    range(A, B)                    a whole number from A to B - 1
    (A, B, ...)                    one of these values
    [SCHEMA]                       a list of such values
    [SCHEMA, SCHEMA, ...]          a list of this length
    {KEY: SCHEMA, ...}             an object with these keys and maybe others; 'KEY?' may be missing
    {str: SCHEMA}                  an object with any keys
"""
MAX_DEPTH = 100  # nested lists and objects: functions that walk through deeper ones would fail
_RULES = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    dict: 'an object',
    list: 'a list',
    NoneType: 'null',
}
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')


def read(path: Any, schema: Schema = dict, where: str = '') -> Any:
    """Returns the value of a file.

    Args:
      path: the file, on a disk or in a bucket.
      schema: the form that the value must have.
      where: start of the messages; '' is the path.

    Raises:
      UserError: the file cannot be read, is no JSON in UTF-8, or has another form.
    """
    where = where or str(path)
    return parse(read_bytes(path, where), schema, where)


def read_lines(path: Any, schema: Schema = dict) -> list[Any]:
    """Returns the value of each line of a file; raises UserError as `read` does."""
    lines = read_bytes(path).splitlines()
    return [parse(line, schema, f'{path}: line {n}') for n, line in enumerate(lines, 1)]


def read_bytes(path: Any, where: str = '') -> bytes:
    """Returns the content of a file; raises UserError as `read` does."""
    where = where or str(path)
    try:
        with storage.translate_errors(path):
            if path.exists() and not path.is_file():  # a pipe would never end
                raise UserError(f'{where}: must be a file')
            return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise UserError(f'{where}: cannot be read: {one_line(error)}') from error


def parse(data: bytes, schema: Schema, where: str) -> Any:
    """Returns the value of JSON text.

    Args:
      data: the text in UTF-8.
      schema: the form that the value must have.
      where: start of the messages.

    Raises:
      UserError: the text is no JSON, has a number or a character that cannot be written again, is
        nested too deep, or has another form.
    """
    try:
        value = json.loads(
            data.decode(),
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_parse_float,
        )
        if data.count(b'[') + data.count(b'{') > MAX_DEPTH:  # fewer cannot be too deep
            _check_depth(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: must be JSON: {one_line(error)}') from error
    check(value, schema, where)
    return value


def _parse_int(text: str) -> int:
    if math.isinf(float(text)):
        raise ValueError(f'a number of {len(text)} digits is too large')
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'{text} is not a finite number')
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in _items(node)]
        if not level:
            return
    raise ValueError(f'is nested deeper than {MAX_DEPTH} levels')


def _items(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def check(value: Any, schema: Schema, where: str) -> None:
    """Raises UserError unless a JSON value has a form; `where` begins the message."""
    _check(value, schema, where, '')


def _check(value: Any, schema: Schema, where: str, place: str) -> None:
    label = f'{where}: {place}' if place else where
    if isinstance(schema, dict):
        _check(value, dict, where, place)
        dot = f'{place}.' if place else ''
        for key, part in schema.items():
            if key is str:
                for name, item in value.items():
                    _check(item, part, where, f'{dot}{name}')
            elif (name := key.removesuffix('?')) in value:
                _check(value[name], part, where, f'{dot}{name}')
            elif name == key:
                raise UserError(f'{label}: must have the key {key!r}')
    elif isinstance(schema, list):
        _check(value, list, where, place)
        if len(schema) > 1 and len(value) != len(schema):
            raise UserError(f'{label}: must have {len(schema)} items, has {len(value)}')
        for i, item in enumerate(value):
            _check(item, schema[i] if len(schema) > 1 else schema[0], where, f'{place}[{i}]')
    elif not _fits(value, schema):
        shown = f' = {json.dumps(value):.40}' if place else ''
        raise UserError(f'{label}{shown}: must be {_rule(schema)}')


def _fits(value: Any, schema: Schema) -> bool:
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if isinstance(schema, tuple):
        return any(type(value) is type(choice) and value == choice for choice in schema)
    types = getattr(schema, '__args__', (schema,))
    return type(value) in types or (type(value) is int and float in types)


def _rule(schema: Schema) -> str:
    if isinstance(schema, range):
        return f'a whole number from {schema.start} to {schema.stop - 1}'
    if isinstance(schema, tuple):
        return f'one of {", ".join(map(json.dumps, schema))}'
    return ' or '.join(_RULES[kind] for kind in getattr(schema, '__args__', (schema,)))
