"""Writes, changes and reads folders in Hugging Face's format."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import networks as network_cases
from lightpaff_jax import models
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import checkpoint_dir

WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'


def write_folder(folder, case: str, **more):
    """Writes a model to a folder; returns the model and its parameters."""
    model, params = network_cases.model_and_params(case)
    checkpoint_dir.write(folder, model, params, **more)
    return model, params


def read(folder, model=None, fresh=None):
    """Reads the parameters of a folder, for its own model or another."""
    model = model or models.build(
        checkpoint_dir.read_network(f'config.teacher.path = {folder}', folder)
    )
    return checkpoint_dir.read_params(f'config.teacher.path = {folder}', folder, model, fresh)


def refusal(folder, model=None, fresh=None) -> str:
    """Returns the message of the error for a folder, without its start."""
    with pytest.raises(UserError) as error:
        read(folder, model, fresh)
    message = str(error.value)
    assert message.startswith(f'config.teacher.path = {folder}: ')
    assert '\n' not in message
    return message.removeprefix(f'config.teacher.path = {folder}: ')


def rewrite(folder, change) -> None:
    """Passes the tensors of a folder through `change`."""
    tensors = change(load_file(folder / WHOLE))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / WHOLE)


def reconfigure(folder, **values) -> None:
    """Changes keys of config.json."""
    old = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(old | values))
