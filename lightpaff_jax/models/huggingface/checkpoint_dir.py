"""Networks as Hugging Face folders: config.json and model.safetensors, read and written."""

import contextlib
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lightpaff_jax.errors import UserError
from lightpaff_jax.models import MODELS, Model, Params
from lightpaff_jax.models.huggingface import config_json, weights
from lightpaff_jax.runtime import storage

_CONFIG = 'config.json'
_WHOLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_SHARD = re.compile(r'model-\d{5}-of-\d{5}\.safetensors')
_UNREAD = ('.bin', '.pt', '.pth', '.ckpt', '.h5', '.msgpack')


def read_network(label: str, path: str | pathlib.Path) -> ConfigDict:
    """Shape of the network in a folder, with the keys of `config.network()`.

    Args:
      label: the setting that names the folder, which begins every message.
      path: the folder.

    Raises:
      UserError: no config.json, or an architecture or a setting that our networks do not have.
    """
    return config_json.read(label, _json(label, pathlib.Path(path).expanduser() / _CONFIG))


def read_params(
    label: str, path: str | pathlib.Path, model: Model, fresh: Params | None = None
) -> dict[str, Any]:
    """float32 parameters of `model` on the host, from a folder's safetensors.

    Args:
      label: the setting that names the folder, which begins every message.
      path: the folder; its numbers may be float32, float16 or bfloat16.
      model: built from the network of the folder, perhaps with another head.
      fresh: initial parameters, of which those of a head that the folder lacks are taken.

    Raises:
      UserError: no safetensors, one that is not whole, or tensors that do not fit.
    """
    folder = pathlib.Path(path).expanduser()
    names = MODELS[model.network.family][0].NAMES
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(label, _places(label, folder, stack))
        return weights.from_huggingface(
            label, tensors, model.table, names, model.abstract_params, model.vocab_size, fresh
        )


class _Tensors(Mapping):
    """The tensors of open files, each read when it is asked for."""

    def __init__(self, where: str, places: dict[str, Any]):
        self.where, self.places = where, places

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.places[name].get_tensor(name)
        except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
            raise UserError(f'{self.where}: {name} cannot be read: {_line(error)}') from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _places(where: str, folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Name of each tensor -> its open file, whether one holds all or an index tells."""
    if (folder / _WHOLE).exists():
        file = _open(where, folder / _WHOLE, stack)
        return dict.fromkeys(file.keys(), file)
    if not (folder / _INDEX).exists():
        raise UserError(f'{where}: {_lacking(folder)}')
    index = _json(where, folder / _INDEX)
    shards = ({'weight_map': None} | index)['weight_map']
    if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
        raise UserError(f'{where}: {_INDEX} must have a weight_map from tensors to files')
    places: dict[str, Any] = {}
    for name in sorted({*shards.values()}):
        if pathlib.PurePath(name).name != name or not (folder / name).exists():
            raise UserError(f'{where}: has no {name}, which {_INDEX} names')
        file = _open(where, folder / name, stack)
        wanted = {tensor for tensor, shard in shards.items() if shard == name}
        wrong = [f'- {tensor}' for tensor in sorted(wanted - {*file.keys()})]
        wrong += [f'+ {tensor}' for tensor in sorted({*file.keys()} - wanted)]
        if wrong:
            raise UserError(f'{where}: {name} does not fit {_INDEX}: {", ".join(wrong)}')
        places |= dict.fromkeys(wanted, file)
    return places


def _open(where: str, file: pathlib.Path, stack: contextlib.ExitStack):
    try:
        return stack.enter_context(safetensors.safe_open(file, 'np'))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f'{where}: {file.name} is no whole safetensors: {_line(error)}') from error


def _lacking(folder: pathlib.Path) -> str:
    found = [file.name for file in sorted(folder.glob('*')) if file.suffix in _UNREAD]
    if not found:
        return f'has neither {_WHOLE} nor {_INDEX}'
    return (
        f'has {", ".join(found)} but no {_WHOLE}: pickles and other formats are not read; on a '
        'machine where you trust the file, load it in transformers and write it again by '
        'save_pretrained(folder, safe_serialization=True)'
    )


def _json(where: str, file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{where}: {file.name} cannot be read: {_line(error)}') from error
    if not isinstance(found, dict):
        raise UserError(f'{where}: {file.name} must hold an object')
    return found


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())


def write(
    path: str | pathlib.Path,
    model: Model,
    params: Params,
    shard_bytes: int = 5 * 10**9,
    ids: Mapping[str, int] | None = None,
) -> None:
    """Writes config.json and model.safetensors, or shards of it with their index.

    Files of these names are replaced, others stay. config.json goes first and comes last: a
    folder that was interrupted has none, and is refused.

    Args:
      path: the folder; made if it is not there.
      model: the network.
      params: its parameters.
      shard_bytes: largest file of weights, unless one tensor is larger.
      ids: of special tokens, by transformers' keys ('pad_token_id', 'eos_token_id', ...).

    Raises:
      OSError: no space, no permission.
    """
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.to_huggingface(params, model.table, model.vocab_size)
    if model.network.head == 'none':
        names = MODELS[model.network.family][0].NAMES
        tensors = {names.plain(name): tensor for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing.') as temporary:
        part = pathlib.Path(temporary)
        _write_tensors(part, tensors, shard_bytes)
        new = sorted(part.iterdir())
        values = config_json.write(model.network, {} if ids is None else ids)
        (part / _CONFIG).write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
        shards = [file for file in folder.glob('model-*') if _SHARD.fullmatch(file.name)]
        for old in (folder / _CONFIG, folder / _INDEX, folder / _WHOLE, *shards):
            old.unlink(missing_ok=True)
        for file in (*new, part / _CONFIG):
            storage.commit(file, folder / file.name)


def _write_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(tensors, folder / _WHOLE, {'format': 'pt'})
        return
    index: dict[str, Any] = {
        'metadata': {'total_size': sum(x.nbytes for x in tensors.values())},
        'weight_map': {},
    }
    for number, shard in enumerate(shards, 1):
        name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        save_file(shard, folder / name, {'format': 'pt'})
        index['weight_map'] |= dict.fromkeys(shard, name)
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
