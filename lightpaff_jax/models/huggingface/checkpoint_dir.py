"""Reads and writes Hugging Face folders: config.json and safetensors."""

import contextlib
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.models import MODELS, Model, Params
from lightpaff_jax.models.huggingface import config_json, generation_config, weights
from lightpaff_jax.models.huggingface.generation_config import Generation
from lightpaff_jax.runtime import json_file, storage

_CONFIG = 'config.json'
_GENERATION = 'generation_config.json'
_ADAPTER = 'adapter_config.json'
_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_REPLACED = (_CONFIG, _GENERATION, _INDEX, _SINGLE)
_SHARD = re.compile(r'model-\d{5}-of-\d{5}\.safetensors')
_OTHER_FORMATS = ('.bin', '.pt', '.pth', '.ckpt', '.h5', '.msgpack')


def read_network(label: str, path: str | pathlib.Path) -> ConfigDict:
    """Reads the network of a folder, with the keys of `config.network()`.

    Args:
      label: setting that names the folder, the start of all messages.
      path: the folder.

    Raises:
      UserError: config.json is missing, or has an architecture or a setting that our networks do
        not have.
    """
    folder = pathlib.Path(path).expanduser()
    if (folder / _ADAPTER).exists():
        raise UserError(
            f'{label}: has {_ADAPTER}: merge the adapter into the network first, for example by '
            'merge_and_unload() of the package peft'
        )

    def tensor_names() -> list[str]:
        with contextlib.ExitStack() as stack:
            return [*_open_tensors(label, folder, stack)]

    return config_json.read(label, read_config(label, folder), tensor_names)


def read_config(label: str, path: str | pathlib.Path) -> dict[str, Any]:
    """Reads config.json."""
    return _read_json(label, pathlib.Path(path).expanduser() / _CONFIG)


def read_class_names(label: str, path: str | pathlib.Path) -> tuple[str, ...]:
    """Returns the names of a classifier's classes; see `config_json.read_class_names`."""
    return config_json.read_class_names(label, read_config(label, path))


def read_token_id(label: str, path: str | pathlib.Path, network: ConfigDict, key: str) -> Any:
    """Returns the id of a special token in config.json; None if it is null."""
    return (config_json.TOKEN_DEFAULTS[network.family] | read_config(label, path))[key]


def read_generation(label: str, path: str | pathlib.Path, network: ConfigDict) -> Generation:
    """Reads the settings of generation, as transformers does.

    Transformers reads generation_config.json, or else the same keys of config.json.

    Raises:
      UserError: a setting that `decoding.Settings` does not have.
    """
    folder = pathlib.Path(path).expanduser()
    values = read_config(label, folder)
    name = _GENERATION if (folder / _GENERATION).exists() else _CONFIG
    if name == _GENERATION:
        values = _read_json(label, folder / _GENERATION)
    else:
        values = config_json.TOKEN_DEFAULTS[network.family] | values
    return generation_config.read(f'{label}: {name}', values, network)


def read_params(
    label: str, path: str | pathlib.Path, model: Model, initial: Params | None = None
) -> Params:
    """Reads the parameters of `model` in float32 on the host, from a folder's safetensors.

    Args:
      label: setting that names the folder, the start of all messages.
      path: the folder; its tensors may be float32, float16 or bfloat16.
      model: built from the folder's network, perhaps with another head.
      initial: initial parameters, used for a head that the folder does not have.

    Raises:
      UserError: the folder has no safetensors, a damaged one, or tensors that do not fit.
    """
    folder = pathlib.Path(path).expanduser()
    names = MODELS[model.network.family][0].NAMES
    with contextlib.ExitStack() as stack:
        tensors = weights.FileTensors(label, _open_tensors(label, folder, stack))
        return weights.from_huggingface(
            label,
            tensors,
            model.table,
            names,
            model.abstract_params,
            model.network.vocab_size,
            initial,
        )


def _open_tensors(label: str, folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Opens the file of each tensor, from the single file or the shards of the index."""

    def open_file(name: str) -> Any:
        try:
            return stack.enter_context(safetensors.safe_open(folder / name, 'np'))
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f'{label}: {name} is not valid: {one_line(error)}') from error

    if (folder / _SINGLE).exists():
        file = open_file(_SINGLE)
        return dict.fromkeys(file.keys(), file)
    if not (folder / _INDEX).exists():
        raise UserError(f'{label}: {_missing_weights(folder)}')
    shards = _read_json(label, folder / _INDEX, {'weight_map': {str: str}})['weight_map']
    files: dict[str, Any] = {}
    for name in sorted({*shards.values()}):
        if pathlib.PurePath(name).name != name or not (folder / name).exists():
            raise UserError(f'{label}: {name} of {_INDEX} does not exist')
        file = open_file(name)
        indexed = {tensor for tensor, shard in shards.items() if shard == name}
        differences = [f'- {tensor}' for tensor in sorted(indexed - {*file.keys()})]
        differences += [f'+ {tensor}' for tensor in sorted({*file.keys()} - indexed)]
        if differences:
            raise UserError(f'{label}: {name} does not fit {_INDEX}: {", ".join(differences)}')
        files |= dict.fromkeys(indexed, file)
    return files


def _missing_weights(folder: pathlib.Path) -> str:
    others = [file.name for file in sorted(folder.glob('*')) if file.suffix in _OTHER_FORMATS]
    if not others:
        return f'has neither {_SINGLE} nor {_INDEX}'
    return (
        f'has {", ".join(others)} but no {_SINGLE}: pickles and other formats are not read; on a '
        'machine where you trust the file, load it in transformers and write it again by '
        'save_pretrained(folder, safe_serialization=True)'
    )


def _read_json(label: str, file: pathlib.Path, schema: json_file.Schema = dict) -> dict[str, Any]:
    return json_file.read(file, schema, f'{label}: {file.name}')


def write(
    path: str | pathlib.Path,
    model: Model,
    params: Params,
    shard_bytes: int = 5 * 10**9,
    ids: Mapping[str, int] | None = None,
    labels: Sequence[str] = (),
    others: Mapping[str, pathlib.Path | None] = MappingProxyType({}),
) -> None:
    """Writes config.json and model.safetensors, or shards of it with their index.

    Replaces files of these names and keeps others, all at the end: a full disk changes nothing. The
    old config.json is removed first and the new one is moved last: an interrupted folder has none,
    and readers refuse it.

    Args:
      path: the folder, created if missing.
      model: the network.
      params: its parameters.
      shard_bytes: maximum size of a file of weights, unless one tensor is larger.
      ids: ids of special tokens by transformers' keys ('pad_token_id', 'eos_token_id', ...).
      labels: names of the classes of a classifier.
      others: other files to replace, by name: the new file, which is moved from its folder on the
        same disk, or None.

    Raises:
      OSError: no space or no permission.
    """
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.to_huggingface(params, model.table, model.network.vocab_size)
    if model.network.head == 'none':
        names = MODELS[model.network.family][0].NAMES
        tensors = {names.plain(name): tensor for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing.') as temporary:
        part = pathlib.Path(temporary)
        _write_tensors(part, tensors, shard_bytes)
        files = [*sorted(part.iterdir()), part / _CONFIG]
        _write_json(part / _CONFIG, config_json.write(model.network, ids or {}, labels))
        files = [*filter(None, others.values()), *files]
        for file in files:  # a full disk is found before an old file is removed
            storage.sync(file)
        shards = [file for file in folder.glob('model-*') if _SHARD.fullmatch(file.name)]
        for old in (*(folder / name for name in (*_REPLACED, *others)), *shards):
            old.unlink(missing_ok=True)
        for file in files:
            storage.commit(file, folder / file.name)


def _write_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        size = sum(x.nbytes for x in shards[-1].values())
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        save_file(tensors, folder / _SINGLE, {'format': 'pt'})
        return
    shard_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        save_file(shard, folder / name, {'format': 'pt'})
        shard_of |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / _INDEX, {'metadata': {'total_size': total}, 'weight_map': shard_of})


def _write_json(file: pathlib.Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
