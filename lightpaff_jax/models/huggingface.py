"""Our parameters in Hugging Face's names, read from one table in both directions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lightpaff_jax.config import UserError
from lightpaff_jax.digests import named, nested


class Row(NamedTuple):
    """One tensor of a checkpoint and its place in our tree."""

    name: str
    """Hugging Face's name; {layer} stands for the layer's index."""
    path: str
    """Our path; layers are stacked on its leading axis where the name has {layer}."""
    transpose: bool = False
    """Whether Hugging Face stores the matrix the other way round."""
    vocab_axis: int | None = None
    """The axis that we pad to a multiple of 128."""


def from_huggingface(tensors: Mapping[str, np.ndarray], table: Sequence[Row], like) -> dict:
    """Hugging Face's tensors -> our nested dict of float32 arrays, on the host.

    Args:
      tensors: by Hugging Face's names, without a prefix.
      table: the family's rows.
      like: our tree of ShapeDtypeStructs; its shapes decide layers and vocabulary padding.

    Raises:
      UserError: names every missing (-), unexpected (+) and misshapen tensor.
    """
    wanted = named(like)
    faults: list[str] = []
    used, flat = set(), {}
    for row in table:
        shape = wanted[row.path].shape
        layered = '{layer}' in row.name
        names = [row.name.format(layer=i) for i in range(shape[0])] if layered else [row.name]
        used |= set(names)
        goal = shape[1:] if layered else shape
        parts = [_fitted(row, name, tensors, goal, faults) for name in names]
        flat[row.path] = np.stack(parts) if layered else parts[0]
    faults += [f'+ {name}' for name in tensors if name not in used]
    if faults:
        raise UserError('tensors do not fit the model: ' + ', '.join(faults))
    return nested(flat)


def _fitted(row: Row, name: str, tensors: Mapping, goal: tuple[int, ...], faults: list[str]):
    """One tensor in our shape `goal`, vocabulary padded with zeros; notes a fault otherwise."""
    empty = np.zeros(goal, np.float32)
    if name not in tensors:
        faults.append(f'- {name}')
        return empty
    part = np.asarray(tensors[name], np.float32)
    part = part.T if row.transpose else part
    flat_shape = _flatten(row, empty).shape
    if row.vocab_axis is not None and part.ndim == len(flat_shape):
        spare = flat_shape[row.vocab_axis] - part.shape[row.vocab_axis]
        padding = [(0, 0)] * part.ndim
        padding[row.vocab_axis] = (0, max(0, spare))
        part = np.pad(part, padding)
    if part.shape != flat_shape:
        faults.append(f'{name}: {tuple(tensors[name].shape)} does not fit {flat_shape}')
        return empty
    return part.reshape(goal)


def to_huggingface(params, table: Sequence[Row], vocab_size: int) -> dict[str, np.ndarray]:
    """Our tree -> Hugging Face's tensors, vocabulary padding cut off.

    Matrices of several output or input axes (heads x head width) are flattened to two.
    """
    flat, tensors = named(params), {}
    for row in table:
        whole = np.asarray(jax.device_get(flat[row.path]), np.float32)
        layered = '{layer}' in row.name
        for index, part in enumerate(whole if layered else [whole]):
            part = _flatten(row, part)
            if row.vocab_axis is not None:
                part = np.take(part, range(vocab_size), axis=row.vocab_axis)
            part = part.T if row.transpose else part
            tensors[row.name.format(layer=index)] = np.ascontiguousarray(part)
    return tensors


def _flatten(row: Row, part: np.ndarray) -> np.ndarray:
    if row.path.endswith('bias') or row.path.endswith('scale'):
        return part.reshape(-1)
    if '/out/' in row.path:
        return part.reshape(-1, part.shape[-1])
    return part.reshape(part.shape[0], -1)
