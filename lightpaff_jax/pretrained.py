"""Networks that are there already: in the workdir of a run, or in a Hugging Face folder."""

import logging
import pathlib
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import checkpoint, config, models, sharding
from lightpaff_jax.data import tokenizers
from lightpaff_jax.errors import UserError
from lightpaff_jax.models.huggingface import checkpoint_dir
from lightpaff_jax.runtime import fingerprint, storage

_log = logging.getLogger('lightpaff_jax')


def load(path: str) -> tuple[models.Model, models.Params]:
    """A trained network, ready to compute in float32.

        model, params = lightpaff_jax.load('runs/gpt2_stage2')
        logits = model.logits(params, Batch(ids, ids, jnp.ones(ids.shape)))

    Args:
      path: the workdir of a finished run, or a folder with config.json and model.safetensors of
        a BERT, GPT-2 or BART (MASS) in Hugging Face's format.

    Returns:
      the model's pure functions, and its parameters on the first device.

    Raises:
      UserError: it is neither, or cannot be read whole.
    """
    c = config.default()
    mesh = sharding.make_mesh(c, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = models.build(read_network('path', path))
        return model, read_params('path', path, model, mesh)


def save(path: str, model: models.Model, params: models.Params,
         tokenizer: tokenizers.Tokenizer) -> None:  # fmt: skip
    """Writes a folder that transformers, and `load`, read: config.json, model.safetensors,
    tokenizer.json.

    Args:
      path: the folder; what it holds under these names is replaced.
      model: of `load`, or of `models.build`.
      params: its parameters.
      tokenizer: whose ids it reads, for instance `tokenizers.read('runs/gpt2_stage2/tokenizer')`.

    Raises:
      UserError: the tokenizer has more ids than the model, or no exact tokenizer.json; the path is
        in a bucket.
    """
    if storage.is_remote(path):
        raise UserError(f'{path}: must be a local folder')
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f'{path}: the tokenizer has {tokenizer.vocab_size} ids, must have at most the '
            f"model's {model.vocab_size}"
        )
    folder = pathlib.Path(path).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}.') as temporary:
        part = pathlib.Path(temporary) / folder.name
        tokenizer.save(part, model.network.family)  # may be refused: the folder is not touched yet
        folder.mkdir(exist_ok=True)
        # Without config.json the folder is refused until all of it is new.
        for name in ('config.json', *tokenizers.FILES):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(part.iterdir()):
            storage.commit(file, folder / file.name)
    ids = special_ids(model.network.family, tokenizer)
    checkpoint_dir.write(folder, model, jax.device_get(params), ids=ids)


def special_ids(family: str, tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Special tokens as config.json names them."""
    ids = {'pad_token_id': tokenizer.pad_id}
    if family != 'bert':
        ids |= {'bos_token_id': tokenizer.eos_id, 'eos_token_id': tokenizer.eos_id}
    if family == 'mass':
        ids['decoder_start_token_id'] = tokenizer.eos_id
    return ids


def is_run(path: str) -> bool:
    """Whether a folder is a run's workdir, and no Hugging Face folder."""
    storage.check_reachable(path)
    return (storage.to_path(path) / 'checkpoints').exists()


def read_network(key: str, path: str) -> ConfigDict:
    """Shape of a trained network, with the keys of `config.network()`.

    Args:
      key: the configuration's key that names it, for messages.
      path: a workdir or a Hugging Face folder.

    Raises:
      UserError: it is neither the workdir of a finished run nor a folder with a network we have.
    """
    folder = storage.to_path(path)
    if not is_run(path):
        if (folder / 'metrics.jsonl').exists() or not (folder / 'config.json').exists():
            raise UserError(
                f'config.{key} = {path}: must be the workdir of a finished run, or a folder with '
                'config.json and model.safetensors'
            )
        return checkpoint_dir.read_network(key, path)
    for name in ('config.json', 'result.json'):
        if not (folder / name).exists():
            raise UserError(
                f'config.{key} = {path}: must be the workdir of a finished run, has no {name}'
            )
    theirs = config.read(folder).student
    return config.network(**{name: theirs[name] for name in config.network()})


def read_params(key: str, path: str, model: models.Model, mesh: Mesh,
                fresh: Callable[[], models.Params] | None = None) -> models.Params:  # fmt: skip
    """The parameters of `model`, float32, on the mesh by sharding's rules.

    Args:
      key: as in `read_network`.
      path: likewise.
      model: built from the network found there, perhaps with another head.
      mesh: devices to put them on.
      fresh: gives initial parameters, of which a head that is not there is taken; None: an error.

    Raises:
      UserError: parameters are missing, or have another shape.
    """
    places = sharding.param_shardings(mesh, model.abstract_params)
    if is_run(path):
        params = _read_run(key, path, model, mesh, fresh)
    else:
        params = checkpoint_dir.read_params(key, path, model, None if fresh is None else fresh())
    return jax.tree.map(jax.device_put, params, places)


def _read_run(key: str, path: str, model: models.Model, mesh: Mesh, fresh) -> models.Params:
    theirs = models.build(read_network(key, path))
    abstract = sharding.abstract_arrays(
        theirs.abstract_params, sharding.param_shardings(mesh, theirs.abstract_params)
    )
    saved = storage.to_path(path) / 'checkpoints'
    found = fingerprint.flatten(checkpoint.Reader(saved).read_params(abstract))
    wanted = fingerprint.flatten(model.abstract_params)
    lacking = [
        name for name, x in wanted.items() if name not in found or found[name].shape != x.shape
    ]
    if lacking and fresh is None:
        raise UserError(
            f'config.{key} = {path}: its head {theirs.network.head!r} lacks {", ".join(lacking)}; '
            'config.student.init_new_head = True begins a head fresh'
        )
    if lacking:
        _log.info('config.%s = %s: begins fresh: %s', key, path, ', '.join(lacking))
        initial = fingerprint.flatten(fresh())
        found |= {name: initial[name] for name in lacking}
    return fingerprint.unflatten({name: found[name] for name in wanted})


def check_tokenizer(key: str, path: str, tokenizer: tokenizers.Tokenizer, lowercase: bool) -> None:
    """Raises UserError unless the network at `path` was trained with this tokenizer.

    Args:
      key: as in `read_network`.
      path: likewise.
      tokenizer: of the run.
      lowercase: `config.tokenizer.lowercase`, for a folder's vocab.txt.
    """
    if is_run(path):
        found = checkpoint.Reader(storage.to_path(path) / 'checkpoints').meta
        theirs = found['tokenizer_hash']
    else:
        place = tokenizers.find(path)
        if place is None:
            raise UserError(
                f'config.{key} = {path}: must hold the tokenizer of the network (tokenizer.json, '
                'vocab.txt, or vocab.json and merges.txt)'
            )
        theirs = tokenizers.read(place, lowercase, key).fingerprint
    if theirs != tokenizer.fingerprint:
        raise UserError(
            f'config.{key} = {path}: its tokenizer has hash {theirs}, the data here '
            f'{tokenizer.fingerprint} ({tokenizer.path})'
        )


def of_layers(c: ConfigDict, teacher: models.Model, params: models.Params,
              student: models.Model) -> models.Params:  # fmt: skip
    """Parameters of a student that takes some of its teacher's layers and all the rest.

    `config.student.init_layers` and `init_decoder_layers` say which; () takes the lowest.

    Raises:
      UserError: a layer the teacher does not have, another number than the student's layers, or
        a shape that differs.
    """
    for key, value in student.network.items():
        free = key in ('layers', 'decoder_layers', 'dropout')
        if not free and teacher.network[key] != value:
            raise UserError(
                f"config.student.{key} = {value}: must equal the teacher's {teacher.network[key]} "
                "for student.init 'teacher_layers'"
            )
    s, t = c.student, teacher.network
    layers = _layers('init_layers', s.init_layers, s.layers, t.layers)
    of_decoder = _layers(
        'init_decoder_layers', s.init_decoder_layers, s.decoder_layers, t.decoder_layers
    )
    stacked = {row.path for row in student.table if '{layer}' in row.name}
    flat = {
        path: x[of_decoder if path.startswith('decoder/') else layers] if path in stacked else x
        for path, x in fingerprint.flatten(params).items()
    }
    return fingerprint.unflatten(flat)


def _layers(key: str, chosen: tuple[int, ...], wanted: int, there: int) -> np.ndarray:
    layers = chosen or tuple(range(wanted))
    text = ','.join(map(str, layers))
    if len(layers) != wanted:
        raise UserError(f'config.student.{key} = {text}: must name {wanted} layers')
    if any(not 0 <= layer < there for layer in layers):
        rule = f'must be layers of the teacher, 0 to {there - 1}'
        raise UserError(f'config.student.{key} = {text}: {rule}')
    return np.asarray(layers, int)
