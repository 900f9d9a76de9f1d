"""The terms of `config.matching`, and the pairs of layers that they name."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.errors import UserError

POOLING = ('mean', 'first')  # vector of a text: the mean of its positions, or its first one
# Family -> the stacks whose activations can be matched; the first one is the default.
STACKS = {'bert': ('encoder',), 'gpt2': ('decoder',), 'mass': ('encoder', 'decoder')}
_PAIR = re.compile(r'(?:(encoder|decoder):)?([0-9]{1,4})=([0-9]{1,4})')


class Term(NamedTuple):
    """The settings of a term of the matching losses."""

    weight: float
    layers: tuple[str, ...]
    key: str
    """The key of the layers."""


def terms(c: ConfigDict) -> dict[str, Term]:
    """Returns the settings of every term; those of weight 0 are off."""
    matching = c.matching
    return {
        'relations': Term(matching.relations, matching.relation_layers, 'relation_layers'),
        'hidden': Term(matching.hidden, matching.hidden_layers, 'hidden_layers'),
        'pooled': Term(matching.pooled, matching.pooled_layers, 'pooled_layers'),
    }


def is_used(c: ConfigDict) -> bool:
    """Returns whether a run has matching losses."""
    return any(term.weight > 0 for term in terms(c).values())


def parse_pairs(key: str, values: Sequence[str], family: str) -> list[tuple[str, int, int]]:
    """Parses pairs [STACK:]STUDENT=TEACHER into (stack, layer of the student, of the teacher).

    Raises:
      UserError: a malformed pair, a stack that the family does not have, or a pair named twice.
    """
    label = f'config.matching.{key} = {",".join(values)}'
    pairs = []
    for value in values:
        match = _PAIR.fullmatch(value)
        if not match:
            raise UserError(f'{label}: must be pairs of layers STUDENT=TEACHER, such as 2=5')
        stack = match[1] or STACKS[family][0]
        if stack not in STACKS[family]:
            raise UserError(f'{label}: family {family!r} has no {stack}')
        pairs.append((stack, int(match[2]), int(match[3])))
    if len({*pairs}) < len(pairs):
        raise UserError(f'{label}: must name no pair twice')
    return pairs


def layers_of(network: ConfigDict, stack: str) -> int:
    """Returns the number of layers of a stack."""
    return (
        network.decoder_layers if (network.family, stack) == ('mass', 'decoder') else network.layers
    )
