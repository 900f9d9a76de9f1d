"""Sets that a configuration names beside its own: SOURCE:PATH[?KEY=VALUE&...][#SPLIT,SPLIT].

KEY is a leaf of `config.data`: `parallel:data/multi30k?suffixes=en,de`; %26 and %23 in VALUE are
& and #. What it does not say is as in the configuration that names it.
"""

import math
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data.sources import splits
from lightpaff_jax.errors import UserError, nearest

_OWN = ('mixture', 'files', 'replace', 'decontaminate', 'unlabelled')  # of one set alone


class Part(NamedTuple):
    """A set of several."""

    c: ConfigDict
    """A configuration that reads it."""
    splits: tuple[str, ...] = splits.SPLITS
    weight: float = 1.0


def part(
    c: ConfigDict, key: str, entry: str, sources: Sequence[str], said: str = ''
) -> Part:  # fmt: skip
    """The set that an entry of `config.data.<key>` names.

    Args:
      c: the configuration that names it.
      key: of its section `data`.
      entry: what it says there.
      sources: that may be named.
      said: the whole entry, for messages, where `entry` is not.

    Raises:
      UserError: another source, key, value or split.
    """
    where = f'config.data.{key} = {(said or entry)!r}'
    body, _, chosen = entry.partition('#')
    names, _, query = body.partition('?')
    source, _, path = names.partition(':')
    if source not in sources:
        near = nearest(source, sources) if source else ''
        raise UserError(f'{where}: must begin with one of {", ".join(sources)}{near}')
    if bool(path) != ('path' in config.SOURCES[source].keys):
        must = 'must not' if path else 'must'
        raise UserError(f'{where}: source {source!r} {must} have a path')
    wanted = tuple(chosen.split(',')) if chosen else splits.SPLITS
    for name in wanted:
        if name not in splits.SPLITS:
            raise UserError(
                f'{where}: {name!r} must be one of {", ".join(splits.SPLITS)}'
                f'{nearest(name, splits.SPLITS)}'
            )
    found = config.copy(c)
    found.data.source, found.data.path = source, path
    for own in _OWN:
        found.data[own] = ()
    for setting in filter(None, query.split('&')):
        leaf, _, value = setting.partition('=')
        if leaf not in config.SOURCES[source].keys:
            near = nearest(leaf, config.SOURCES[source].keys)
            raise UserError(f'{where}: source {source!r} does not read {leaf!r}{near}')
        try:
            flags.override(found, f'data.{leaf}', urllib.parse.unquote(value))
            validate.check_set(found, (leaf,))
        except UserError as error:
            raise UserError(f'{where}: {error}') from error
    return Part(found, wanted)


def moved(c: ConfigDict, key: str, entry: str, sources: Sequence[str], to: ConfigDict) -> str:
    """What names in the configuration `to` the set that `entry` names in `c`."""
    here, there = (part(one, key, entry, sources).c for one in (c, to))
    body, mark, chosen = entry.partition('#')
    for leaf in config.SOURCES[here.data.source].keys:
        value = here.data[leaf]
        if value != there.data[leaf] and _is_read(here, leaf):
            text = urllib.parse.quote(str(value), safe=" ()',/:=*?[]")
            body += f'{"&" if "?" in body else "?"}{leaf}={text}'
    return f'{body}{mark}{chosen}'


def _is_read(c: ConfigDict, leaf: str) -> bool:
    """Whether a value that is not the set's own could be: the columns of a table are not a text's."""
    try:
        validate.check_set(c, (leaf,))
    except UserError:
        return False
    return True


def weighted(c: ConfigDict, key: str, entry: str, sources: Sequence[str]) -> Part:
    """As `part`, of an entry that ends in =WEIGHT; raises UserError where it does not."""
    names, equals, number = entry.rpartition('=')
    try:
        weight = float(number) if equals else math.nan
    except ValueError:
        weight = math.nan
    if not equals or not 0 < weight < math.inf:
        raise UserError(
            f'config.data.{key} = {entry!r}: must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'
        )
    return part(c, key, names, sources, entry)._replace(weight=weight)
