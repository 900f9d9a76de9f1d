"""Datasets that a configuration lists in addition to its own: SOURCE:PATH[?KEY=VALUE&...][#SPLIT,SPLIT].

KEY is a key of `config.data`, as in `parallel:data/multi30k?suffixes=en,de`. A VALUE has %26 for &
and %23 for #. Keys that are not given have the values of the configuration that lists the dataset.
"""

import contextlib
import math
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data.sources.splits import SPLITS
from lightpaff_jax.errors import UserError, nearest

# Keys that describe one dataset, so a listed dataset does not inherit them.
_NOT_INHERITED = ('mixture', 'files', 'replace', 'decontaminate', 'unlabelled')


class Part(NamedTuple):
    """A listed dataset."""

    c: ConfigDict
    """The configuration that reads it."""
    splits: tuple[str, ...] = SPLITS
    weight: float = 1.0
    """Its relative share of a mixture."""


@contextlib.contextmanager
def name_entry(key: str, entry: str) -> Iterator[None]:
    """Adds an entry of `config.<key>` to the message of each UserError."""
    try:
        yield
    except UserError as error:
        raise type(error)(f'config.{key} = {entry!r}: {error}') from error


def part(c: ConfigDict, key: str, entry: str, sources: Sequence[str]) -> Part:
    """Reads an entry of `config.<key>`, which may name one of `sources`.

    Raises:
      UserError: the source, a key, a value or a split is not allowed.
    """
    with name_entry(key, entry):
        return _parse(c, entry, sources)


def weighted_part(c: ConfigDict, key: str, entry: str, sources: Sequence[str]) -> Part:
    """Reads an entry that ends in =WEIGHT; see `part`."""
    with name_entry(key, entry):
        body, equals, number = entry.rpartition('=')
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not equals or not 0 < weight < math.inf:
            raise UserError('must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0')
        return _parse(c, body, sources)._replace(weight=weight)


def _parse(c: ConfigDict, entry: str, sources: Sequence[str]) -> Part:
    body, _, split_names = entry.partition('#')
    names, _, query = body.partition('?')
    source, _, path = names.partition(':')
    if source not in sources:
        near = nearest(source, sources) if source else ''
        raise UserError(f'must begin with one of {", ".join(sources)}{near}')
    keys = config.SOURCES[source].keys
    if bool(path) != ('path' in keys):
        must = 'must not' if path else 'must'
        raise UserError(f'source {source!r} {must} have a path')
    splits = tuple(split_names.split(',')) if split_names else SPLITS
    for name in splits:
        if name not in SPLITS:
            near = nearest(name, SPLITS)
            raise UserError(f'{name!r} must be one of {", ".join(SPLITS)}{near}')
    part_config = config.copy(c)
    part_config.data.update({'source': source, 'path': path, **dict.fromkeys(_NOT_INHERITED, ())})
    for setting in filter(None, query.split('&')):
        key, _, value = setting.partition('=')
        if key not in keys:
            raise UserError(f'source {source!r} does not read {key!r}{nearest(key, keys)}')
        flags.override(part_config, f'data.{key}', urllib.parse.unquote(value))
        validate.check_set(part_config, (key,))
    return Part(part_config, splits)


def rebase(c: ConfigDict, key: str, entry: str, sources: Sequence[str], new: ConfigDict) -> str:
    """Returns the entry that describes in the configuration `new` the dataset of `entry` in `c`."""
    old, rebased = (part(base, key, entry, sources).c for base in (c, new))
    body, mark, splits = entry.partition('#')
    for name in config.SOURCES[old.data.source].keys:
        value = old.data[name]
        if value != rebased.data[name] and _is_valid(old, name):
            text = urllib.parse.quote(str(value), safe=" ()',/:=*?[]")
            body += f'{"&" if "?" in body else "?"}{name}={text}'
    return f'{body}{mark}{splits}'


def _is_valid(c: ConfigDict, key: str) -> bool:
    """Returns whether the source can use an inherited value: a text has no columns of a table."""
    with contextlib.suppress(UserError):
        validate.check_set(c, (key,))
        return True
    return False
