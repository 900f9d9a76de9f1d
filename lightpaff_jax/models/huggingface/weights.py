"""Our parameters in Hugging Face's names, read from one table in both directions."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime.fingerprint import flatten, unflatten

_log = logging.getLogger('lightpaff_jax')
_DTYPES = ('float32', 'float16', 'bfloat16')
_LEGACY = {'.LayerNorm.gamma': '.LayerNorm.weight', '.LayerNorm.beta': '.LayerNorm.bias'}


class Row(NamedTuple):
    """One tensor of a checkpoint and its place in our tree."""

    name: str
    """Hugging Face's name, with the trunk's prefix; {layer} stands for the layer's index."""
    path: str
    """Our path; layers are stacked on its leading axis where the name has {layer}."""
    transpose: bool = False
    """Whether Hugging Face stores the matrix the other way round, as [out, in]."""
    vocab: bool = False
    """Whether its first axis is the vocabulary, which we pad to a multiple of 128."""
    part: int | None = None
    """Which of the fused matrices of our tensor it is: 0 query, 1 key, 2 value."""
    offset: int = 0
    """Rows before our first: dropped when read, zeros when written."""
    lead: bool = False
    """Whether Hugging Face has a leading axis of 1."""
    head: bool = False
    """Whether it is of a head, which may begin fresh."""
    optional: bool = False
    """Whether a file may lack it, and zeros are meant."""
    same: tuple[str, ...] = ()
    """Names of tensors that are this one again; where they are there, they must be equal."""
    copies: tuple[str, ...] = ()
    """Names that it is written under as well."""


class Names(NamedTuple):
    """What a family's checkpoints hold beside the rows."""

    prefix: str
    """Of the trunk's names; an architecture without a head leaves it out."""
    buffers: str = ''
    """Regular expression of tensors that are computed, not learned; names without the prefix."""
    heads: str = ''
    """Regular expression of the parameters of all heads; names without the prefix."""

    def plain(self, name: str) -> str:
        """Without prefix, and in today's spelling."""
        for old, new in _LEGACY.items():
            name = name.replace(old, new)
        return name.removeprefix(self.prefix)


def linear(name: str, path: str, transpose: bool = True, **more) -> tuple[Row, Row]:
    """Rows of a matrix and its bias."""
    return (
        Row(f'{name}.weight', f'{path}/kernel', transpose=transpose, **more),
        Row(f'{name}.bias', f'{path}/bias', **more),
    )


def norm(name: str, path: str, **more) -> tuple[Row, Row]:
    """Rows of a LayerNorm."""
    return (
        Row(f'{name}.weight', f'{path}/scale', **more),
        Row(f'{name}.bias', f'{path}/bias', **more),
    )


def from_huggingface(where: str, tensors: Mapping[str, np.ndarray], table: Sequence[Row],
                     names: Names, like, vocab_size: int, fresh=None) -> dict:  # fmt: skip
    """Hugging Face's tensors -> our nested dict of float32 arrays, on the host.

    Parameters of heads that the table does not have are left out, with a line in the log.

    Args:
      where: begins the messages.
      tensors: by Hugging Face's names; each is asked for once, or twice if it is tied.
      table: rows of the network.
      names: of its family.
      like: our tree of ShapeDtypeStructs; its shapes decide layers and vocabulary padding.
      vocab_size: ids in use, which are the rows of Hugging Face's tables.
      fresh: initial parameters, of which the rows of a head that is missing or has other classes
        are taken, with a line in the log; None: they are errors, as those of the trunk always are.

    Raises:
      UserError: names every missing (-), unexpected (+) and misfit tensor.
    """
    flat = {path: np.zeros(x.shape, np.float32) for path, x in flatten(like).items()}
    initial = {} if fresh is None else flatten(fresh)
    found: dict[str, str] = {}
    faults, begun, known = [], [], set()
    for name in tensors:
        if found.setdefault(names.plain(name), name) != name:
            faults.append(f'+ {name}')
    lost = {
        _part_of(row)
        for row in table
        if row.head and initial and not _fits(row, flat[row.path].shape, found, names, tensors)
    }
    for row in table:
        for layer, name in _names(row, flat[row.path]):
            slot = _slot(flat[row.path], row, layer, vocab_size)
            here = [names.plain(one) for one in (name, *row.same)]
            known |= {*here, *map(names.plain, row.copies)}
            sources = [found[one] for one in here if one in found]
            if sources and _part_of(row) not in lost:
                faults += _fill(slot, row, sources, tensors)
            elif _part_of(row) in lost:
                slot[...] = _slot(np.asarray(initial[row.path]), row, layer, vocab_size)
                begun.append(name)
            elif not row.optional:
                faults.append(f'- {name}')
    others = [name for plain, name in found.items() if plain not in known]
    others = [name for name in others if not re.fullmatch(names.buffers, names.plain(name))]
    left = [name for name in others if re.fullmatch(names.heads, names.plain(name))]
    faults += [f'+ {name}' for name in others if name not in left]
    if faults:
        raise UserError(f'{where}: tensors do not fit the model: {", ".join(faults)}')
    if left:
        _log.info('%s: left out, of other heads: %s', where, ', '.join(left))
    if begun:
        _log.info('%s: begins fresh: %s', where, ', '.join(begun))
    return unflatten(flat)


def _part_of(row: Row) -> str:
    """The module of ours that a row is in: a head begins fresh as a whole."""
    return row.path.partition('/')[0]


def _fits(row: Row, shape: tuple[int, ...], found: Mapping, names: Names, tensors) -> bool:
    """Whether a file has the row of a head, of as many classes."""
    here = [found[names.plain(one)] for one in (row.name, *row.same) if names.plain(one) in found]
    return bool(here) and (row.vocab or tensors[here[0]].shape == _shape(row, shape))


def _fill(slot: np.ndarray, row: Row, sources: list[str], tensors: Mapping) -> list[str]:
    """Puts the first of `sources` into our array; returns the faults of any."""
    tensor = tensors[sources[0]]
    goal = _shape(row, slot.shape)
    if str(tensor.dtype) not in _DTYPES:
        return [f'{sources[0]}: {tensor.dtype} must be one of {", ".join(_DTYPES)}']
    if tensor.shape != goal:
        return [f'{sources[0]}: {tensor.shape} does not fit {goal}']
    ours = tensor[0] if row.lead else tensor[row.offset :]
    ours = ours.T if row.transpose else ours
    slot[...] = ours.reshape(slot.shape)
    again = {name: tensors[name] for name in sources[1:]}
    return [
        f'{name}: must equal {sources[0]}, which it repeats'
        for name, other in again.items()
        if other.shape != goal or not np.array_equal(other, tensor)
    ]


def to_huggingface(params, table: Sequence[Row], vocab_size: int) -> dict[str, np.ndarray]:
    """Our tree -> Hugging Face's tensors, vocabulary padding cut off.

    Matrices of several output or input axes (heads x head width) are flattened to two.
    """
    flat = {path: np.asarray(x, np.float32) for path, x in flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    for row in table:
        for layer, name in _names(row, flat[row.path]):
            slot = _slot(flat[row.path], row, layer, vocab_size)
            part = slot.reshape(_flat(row, slot.shape))
            part = part.T if row.transpose else part
            if row.offset:
                part = np.pad(part, [(row.offset, 0)] + [(0, 0)] * (part.ndim - 1))
            part = np.ascontiguousarray(part[None] if row.lead else part)
            tensors |= dict.fromkeys((name, *row.copies), part)
    return tensors


def _names(row: Row, whole: np.ndarray) -> Iterator[tuple[int | None, str]]:
    """Layer (None: no layers) and name of each tensor of a row."""
    if '{layer}' not in row.name:
        return iter([(None, row.name)])
    return ((layer, row.name.format(layer=layer)) for layer in range(whole.shape[0]))


def _slot(whole: np.ndarray, row: Row, layer: int | None, vocab_size: int) -> np.ndarray:
    """View of the one tensor of a row in our array, without padding of the vocabulary."""
    part = whole if layer is None else whole[layer]
    if row.part is not None:
        part = part[row.part] if row.path.endswith('/bias') else part[:, row.part]
    return part[:vocab_size] if row.vocab else part


def _flat(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape with heads and head width as one axis."""
    if row.path.endswith(('/bias', '/scale')):
        return (math.prod(shape),)
    if row.path.endswith('/out/kernel'):
        return (math.prod(shape[:-1]), shape[-1])
    return (shape[0], math.prod(shape[1:]))


def _shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Hugging Face's shape of a row that has `shape` in our tree."""
    flat = _flat(row, shape)
    flat = flat[::-1] if row.transpose else flat
    flat = (flat[0] + row.offset, *flat[1:])
    return (1, *flat) if row.lead else flat
