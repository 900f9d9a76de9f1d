"""Converts parameters to and from Hugging Face's tensors by one table of names per family."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors

from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.runtime.fingerprint import flatten, unflatten

_log = logging.getLogger('lightpaff_jax')
_MAX_ERRORS = 50  # in one message
_DTYPES = ('float32', 'float16', 'bfloat16')
_OLD_SUFFIXES = {'.LayerNorm.gamma': '.LayerNorm.weight', '.LayerNorm.beta': '.LayerNorm.bias'}


class Row(NamedTuple):
    """One tensor of a checkpoint and its place in our parameters."""

    name: str  # Hugging Face's name with the trunk's prefix; {layer} stands for the layer's index
    path: str  # our path; layers are stacked on the leading axis if the name has {layer}
    transpose: bool = False  # whether Hugging Face stores the matrix as [out, in]
    vocab: bool = False  # whether the first axis is the vocabulary, which we pad
    part: int | None = None  # index in the fused matrix: 0 query, 1 key, 2 value
    offset: int = 0  # rows before our first row: the reader drops them, the writer adds zeros
    lead: bool = False  # whether Hugging Face has a leading axis of 1
    head: bool = False  # whether it belongs to a head, which may be newly initialised
    optional: bool = False  # whether an absent tensor means zeros
    same: tuple[str, ...] = ()  # names of tensors that repeat this one; if present they are equal
    copies: tuple[str, ...] = ()  # names under which the writer repeats it


class Names(NamedTuple):
    """Names of a family's checkpoints that its table does not have; regular expressions."""

    prefix: str  # of the trunk's names (a plain string), which some architectures omit
    buffers: str = ''  # tensors that are not parameters, without prefix
    heads: str = ''  # parameters of all heads, without prefix

    def plain(self, name: str) -> str:
        """Returns the name without prefix, with the current suffix."""
        for old, new in _OLD_SUFFIXES.items():
            name = name.replace(old, new)
        return name.removeprefix(self.prefix)


def linear(name: str, path: str, transpose: bool = True, **options: Any) -> tuple[Row, Row]:
    """Lists the rows of a matrix and its bias."""
    return (
        Row(f'{name}.weight', f'{path}/kernel', transpose=transpose, **options),
        Row(f'{name}.bias', f'{path}/bias', **options),
    )


def norm(name: str, path: str, head: bool = False) -> tuple[Row, Row]:
    """Lists the rows of a LayerNorm."""
    return (
        Row(f'{name}.weight', f'{path}/scale', head=head),
        Row(f'{name}.bias', f'{path}/bias', head=head),
    )


def output(name: str, path: str) -> tuple[Row, Row]:
    """Lists the rows of a head's matrix, which both sides store as [out, in], and its bias."""
    return (
        Row(f'{name}.weight', f'{path}/table', head=True),
        Row(f'{name}.bias', f'{path}/bias', head=True),
    )


class FileTensors(Mapping):
    """Tensors by name, each read from its open file on access."""

    def __init__(self, label: str, files: dict[str, Any]):
        self.label, self.files = label, files

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            tensor = self.files[name].get_tensor(name)
        except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
            raise UserError(f'{self.label}: {name} cannot be read: {one_line(error)}') from error
        if not np.isfinite(tensor).all():
            raise UserError(f'{self.label}: {name} must hold finite numbers only')
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def from_huggingface(
    where: str,
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Row],
    names: Names,
    abstract_params: dict[str, Any],
    vocab_size: int,
    initial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Converts tensors to our parameters, float32 arrays on the host.

    Parameters of heads that the table does not have are ignored and logged.

    Args:
      where: start of the messages.
      tensors: tensors by Hugging Face's names; each is read once, or twice if it is tied.
      table: rows of the network.
      names: other names of its family.
      abstract_params: ShapeDtypeStructs of our parameters.
      vocab_size: ids in use, the rows of Hugging Face's embeddings.
      initial: initial parameters; a head that is missing or has other classes takes its own from
        them, which is logged. None makes such a head an error.

    Raises:
      UserError: lists each missing (-), unexpected (+) and inconsistent tensor.
    """
    params = {path: np.zeros(x.shape, np.float32) for path, x in flatten(abstract_params).items()}
    initial = {} if initial is None else flatten(initial)
    errors, initialised, expected = [], [], set()
    stored: dict[str, str] = {}  # plain name -> name of the tensor
    for name in tensors:
        if stored.setdefault(names.plain(name), name) != name:
            errors.append(f'+ {name}')

    def sources(name: str, row: Row) -> list[str]:
        plain_names = map(names.plain, (name, *row.same))
        return [stored[plain] for plain in plain_names if plain in stored]

    def fits(row: Row) -> bool:
        stored_names, shape = sources(row.name, row), _tensor_shape(row, params[row.path].shape)
        return bool(stored_names) and (row.vocab or tensors[stored_names[0]].shape == shape)

    # A head is newly initialised as a whole.
    new_heads = {_module(row) for row in table if row.head and initial and not fits(row)}
    for row in table:
        for layer, name in _layer_names(row, params[row.path]):
            view = _view(params[row.path], row, layer, vocab_size)
            expected |= {*map(names.plain, (name, *row.same, *row.copies))}
            if _module(row) in new_heads:
                view[...] = _view(np.asarray(initial[row.path]), row, layer, vocab_size)
                initialised.append(name)
            elif stored_names := sources(name, row):
                errors += _fill(view, row, stored_names, tensors)
            elif not row.optional:
                errors.append(f'- {name}')
    others = [
        name
        for plain, name in stored.items()
        if plain not in expected and not re.fullmatch(names.buffers, plain)
    ]
    ignored = [name for name in others if re.fullmatch(names.heads, names.plain(name))]
    errors += [f'+ {name}' for name in others if name not in ignored]
    if errors:
        more = f', and {len(errors) - _MAX_ERRORS} more' if len(errors) > _MAX_ERRORS else ''
        shown = ', '.join(errors[:_MAX_ERRORS])
        raise UserError(f'{where}: tensors do not fit the model: {shown}{more}')
    if ignored:
        _log.info('%s: ignored, of other heads: %s', where, ', '.join(ignored))
    if initialised:
        _log.info('%s: newly initialised: %s', where, ', '.join(initialised))
    return unflatten(params)


def _module(row: Row) -> str:
    return row.path.partition('/')[0]


def _fill(view: np.ndarray, row: Row, names: list[str], tensors: Mapping) -> list[str]:
    name, *repeats = names
    tensor, shape = tensors[name], _tensor_shape(row, view.shape)
    if str(tensor.dtype) not in _DTYPES:
        return [f'{name}: {tensor.dtype} must be one of {", ".join(_DTYPES)}']
    if tensor.shape != shape:
        return [f'{name}: {tensor.shape} does not fit {shape}']
    matrix = tensor[0] if row.lead else tensor[row.offset :]
    view[...] = (matrix.T if row.transpose else matrix).reshape(view.shape)
    return [
        f'{repeat}: must equal {name}, which it repeats'
        for repeat in repeats
        if not np.array_equal(tensors[repeat], tensor)
    ]


def to_huggingface(
    params: dict[str, Any], table: Sequence[Row], vocab_size: int
) -> dict[str, np.ndarray]:
    """Converts our parameters to tensors, without padding of the vocabulary.

    Matrices with several output or input axes (heads x head width) get two axes.
    """
    flat = {path: np.asarray(x, np.float32) for path, x in flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    for row in table:
        for layer, name in _layer_names(row, flat[row.path]):
            view = _view(flat[row.path], row, layer, vocab_size)
            tensor = view.reshape(_matrix_shape(row, view.shape))
            tensor = tensor.T if row.transpose else tensor
            if row.offset:
                tensor = np.pad(tensor, [(row.offset, 0)] + [(0, 0)] * (tensor.ndim - 1))
            tensor = np.ascontiguousarray(tensor[None] if row.lead else tensor)
            tensors |= dict.fromkeys((name, *row.copies), tensor)
    return tensors


def _layer_names(row: Row, array: np.ndarray) -> Iterator[tuple[int | None, str]]:
    """Yields layer (None without layers) and name of each tensor of a row."""
    if '{layer}' not in row.name:
        yield None, row.name
    else:
        for layer in range(array.shape[0]):
            yield layer, row.name.format(layer=layer)


def _view(array: np.ndarray, row: Row, layer: int | None, vocab_size: int) -> np.ndarray:
    """Returns the view of one tensor in our array, without padding of the vocabulary."""
    view = array if layer is None else array[layer]
    if row.part is not None:
        view = view[row.part] if row.path.endswith('/bias') else view[:, row.part]
    return view[:vocab_size] if row.vocab else view


def _matrix_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Computes our shape with heads and head width as one axis."""
    if row.path.endswith(('/bias', '/scale')):
        return (math.prod(shape),)
    if row.path.endswith('/out/kernel'):
        return (math.prod(shape[:-1]), shape[-1])
    return (shape[0], math.prod(shape[1:]))


def _tensor_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Computes Hugging Face's shape of a row that has `shape` in our parameters."""
    first, *rest = _matrix_shape(row, shape)[:: -1 if row.transpose else 1]
    return (1,) * row.lead + (first + row.offset, *rest)
