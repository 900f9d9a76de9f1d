"""Loads and saves trained networks: workdirs of finished runs and Hugging Face folders."""

import abc
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import checkpoint, config, models, sharding, workdir
from lightpaff_jax.config import memory
from lightpaff_jax.data import sources, tokenizers
from lightpaff_jax.data.tokenizers import reduction
from lightpaff_jax.errors import UserError, one_line, setting
from lightpaff_jax.models.huggingface import checkpoint_dir
from lightpaff_jax.models.huggingface.generation_config import Generation
from lightpaff_jax.runtime import distributed, fingerprint, json_file, storage

_CLASSIFIER = 'classifier'  # the head of a classifier in our parameters
_log = logging.getLogger('lightpaff_jax')


@dataclasses.dataclass(frozen=True)
class Pretrained(abc.ABC):
    """A trained network in a workdir or a Hugging Face folder; `open` returns it."""

    label: str
    """The setting that names the path, with its value; it begins every message."""
    path: str
    network: ConfigDict
    """The shape of the network: the keys of `config.network()`."""
    class_names: tuple[str, ...] = ()
    """Names of a classifier's classes, in the order of its ids; () by default."""

    def generation(self, tokenizer: tokenizers.Tokenizer) -> Generation:
        """Returns the settings of generation; a network trained here has only its end token.

        Raises:
          UserError: the folder configures what `generate` does not support.
        """
        return Generation(self.label, (tokenizer.eos_id,), {}, {}, {})

    def tokenizer(self, lowercase: bool = True) -> tokenizers.Tokenizer:
        """Reads the tokenizer of the network; `lowercase` is as in `tokenizers.read`.

        Raises:
          UserError: the folder has no tokenizer, or a malformed one.
        """
        path = tokenizers.find(self.path)
        if path is None:
            raise UserError(
                f'{self.label}: must hold the tokenizer of the network (tokenizer.json, '
                'vocab.txt, or vocab.json and merges.txt)'
            )
        return tokenizers.read(path, lowercase, self.label)

    @abc.abstractmethod
    def tokenizer_fingerprint(self, lowercase: bool) -> str:
        """Returns the fingerprint of the tokenizer that the network was trained with."""

    def check_tokenizer(self, tokenizer: tokenizers.Tokenizer, lowercase: bool) -> None:
        """Raises UserError unless the network was trained with the tokenizer of the data."""
        trained_with = self.tokenizer_fingerprint(lowercase)
        if trained_with != tokenizer.fingerprint:
            raise UserError(
                f'{self.label}: its tokenizer has hash {trained_with}, the data here '
                f'{tokenizer.fingerprint} ({tokenizer.path})'
            )
        self._check_start(tokenizer, tokenizer.around[0], lowercase)

    def _check_start(
        self, tokenizer: tokenizers.Tokenizer, start: tuple[int, ...], lowercase: bool
    ) -> None:
        """Checks that texts of an encoder-decoder begin with the ids that it was trained with."""
        own = self.tokenizer(lowercase).around[0] if self.network.family == 'mass' else start
        if own != start:
            raise UserError(
                f'{self.label}: its texts begin with the ids {[*own]}, those of the tokenizer '
                f'{tokenizer.path} with {[*start]}'
            )

    def whole_ids(
        self, tokenizer: tokenizers.Tokenizer, lowercase: bool
    ) -> Int[np.ndarray, ' V'] | None:
        """Returns the network's id of each id of a reduced tokenizer; None if it is not reduced.

        Raises:
          UserError: the network was trained neither with this tokenizer nor with one that it is a
            reduction of.
        """
        trained_with = self.tokenizer_fingerprint(lowercase)
        whole = None
        if trained_with != tokenizer.fingerprint and tokenizers.find(self.path):
            whole = self.tokenizer(lowercase)
        if whole is None or whole.fingerprint != trained_with:
            self.check_tokenizer(tokenizer, lowercase)
            return None
        try:
            ids_V = reduction.whole_ids(whole, tokenizer)
        except UserError as error:
            raise UserError(
                f'{self.label}: its tokenizer has hash {trained_with}, the data here '
                f'{tokenizer.fingerprint} ({tokenizer.path}), which is no reduction of it: {error}'
            ) from error
        start = tuple(int(ids_V[i]) for i in tokenizer.around[0])
        self._check_start(tokenizer, start, lowercase)
        return ids_V

    def read_params(
        self,
        model: models.Model,
        mesh: Mesh,
        head_seed: int | None = None,
        class_names: Sequence[str] = (),
    ) -> models.Params:
        """Reads float32 parameters onto the mesh, sharded by the rules of `sharding`.

        A classifier's outputs are put in the order of `class_names`, if the network has names too.

        Args:
          model: a model built from `network`, perhaps with another head.
          mesh: the devices that hold the parameters.
          head_seed: the seed of a new head, which replaces a missing one, or one of other classes.
            By default these are errors.
          class_names: names of the classes of the data; () if unnamed.

        Raises:
          UserError: parameters are missing, or have another shape, or classes have other names.
        """
        initial = None if head_seed is None else model.init(jax.random.key(head_seed))
        params = self._read_params(model, mesh, initial)
        if model.network.head == self.network.head == 'classify' and class_names:
            params |= self._order_classes(params, initial, class_names)
        shardings = sharding.param_shardings(mesh, model.abstract_params)
        return jax.tree.map(jax.device_put, params, shardings)

    def _order_classes(
        self, params: models.Params, initial: models.Params | None, class_names: Sequence[str]
    ) -> models.Params:
        """Returns the head with the classes in the order of `class_names`."""
        own_names = [name.casefold() for name in self.class_names]
        data_names = [name.casefold() for name in class_names]
        if not own_names or own_names == data_names:
            return {}
        is_permutation = sorted(own_names) == sorted(data_names)
        if is_permutation and len({*own_names}) == len(own_names):
            order = np.array([own_names.index(name) for name in data_names])
            return {_CLASSIFIER: {name: x[order] for name, x in params[_CLASSIFIER].items()}}
        if initial is None:
            raise UserError(
                f'{self.label}: has the classes {", ".join(self.class_names)}, the data '
                f'{", ".join(class_names)}: must be the same names'
            )
        _log.info('%s: its classes have other names, initialized: %s', self.label, _CLASSIFIER)
        return {_CLASSIFIER: initial[_CLASSIFIER]}

    @abc.abstractmethod
    def _read_params(
        self, model: models.Model, mesh: Mesh, initial: models.Params | None
    ) -> models.Params:
        """Reads parameters onto the host or the mesh; `initial` has those of a new head."""

    def load(self) -> tuple[models.Model, models.Params]:
        """Returns the model, which computes in float32, and its parameters on the first device."""
        mesh = sharding.make_mesh(config.default(), jax.devices()[:1])
        with jax.set_mesh(mesh):
            model = models.build(self.network)
            if self.class_names:
                model = dataclasses.replace(model, class_names=self.class_names)
            return model, self.read_params(model, mesh)


class _Workdir(Pretrained):
    """The network that a finished run trained."""

    @functools.cached_property
    def _checkpoint(self) -> checkpoint.Reader:
        folder = storage.to_path(self.path)
        result = json_file.read(folder / 'result.json', {'best_update?': int, 'keep_best?': str})
        best = result.get('best_update')
        reader = checkpoint.Reader(folder / 'checkpoints', best)
        if best is not None:
            _log.info('%s: update %d, the best by %s', self.label, best, result.get('keep_best'))
        workdir.check_saved_config(config.read(folder), reader.meta, folder / 'checkpoints')
        return reader

    def tokenizer_fingerprint(self, lowercase: bool) -> str:
        return self._checkpoint.meta['tokenizer_hash']

    def _read_params(self, model, mesh, initial):
        abstract = models.build(self.network).abstract_params
        abstract = sharding.abstract_arrays(abstract, sharding.param_shardings(mesh, abstract))
        params = fingerprint.flatten(self._checkpoint.read_params(abstract))
        if names := fingerprint.non_finite(params):
            raise UserError(f'{self.label}: {names[0]} must hold finite numbers only')
        shapes = {name: x.shape for name, x in fingerprint.flatten(model.abstract_params).items()}
        params = {name: x for name, x in params.items() if shapes.get(name) == x.shape}
        missing = [name for name in shapes if name not in params]
        if missing and initial is None:
            raise UserError(
                f'{self.label}: its head {self.network.head!r} lacks {", ".join(missing)}; '
                'config.student.init_new_head = True initializes a new head'
            )
        if missing:
            _log.info('%s: initialized: %s', self.label, ', '.join(missing))
            params = fingerprint.flatten(initial) | params
        return fingerprint.unflatten(params)


class _HuggingFaceFolder(Pretrained):
    """A network in Hugging Face's format."""

    def tokenizer(self, lowercase: bool = True) -> tokenizers.Tokenizer:
        tokenizer = super().tokenizer(lowercase)
        tokenizer.check_layout(self.label, self.network.family)
        if self.network.family == 'mass':
            for key in ('decoder_start_token_id', 'eos_token_id'):
                token_id = checkpoint_dir.read_token_id(self.label, self.path, self.network, key)
                if token_id not in (None, tokenizer.eos_id):
                    raise UserError(
                        f'{self.label}: config.json has {key} = {token_id}: must be '
                        f"{tokenizer.eos_id}, the id of its tokenizer's eos_token"
                    )
        return tokenizer

    def tokenizer_fingerprint(self, lowercase: bool) -> str:
        return self.tokenizer(lowercase).fingerprint

    def generation(self, tokenizer: tokenizers.Tokenizer) -> Generation:
        generation = checkpoint_dir.read_generation(self.label, self.path, self.network)
        eos = tokenizer.eos_id
        ids = (*generation.eos_ids, generation.start_id)
        if self.network.family == 'mass' and ids != (eos, eos):
            raise UserError(
                f'{generation.where} has eos_token_id = {[*generation.eos_ids]} and '
                f'decoder_start_token_id = {generation.start_id}: both must be {eos}, the id of '
                "its tokenizer's eos_token, with which an encoder-decoder starts and ends a text"
            )
        return generation

    def _read_params(self, model, mesh, initial):
        return checkpoint_dir.read_params(self.label, self.path, model, initial)


def open(key: str, path: str) -> Pretrained:
    """Opens a trained network; reads its shape but no parameters.

    Args:
      key: the setting that names the path, for messages: 'config.teacher.path' or '--model'.
      path: the workdir of a finished run, perhaps in a bucket, or a local Hugging Face folder.

    Raises:
      UserError: the path is neither, or the network is not supported.
    """
    storage.check_reachable(path)
    folder, label = storage.to_path(path), setting(key, path)
    if (folder / 'checkpoints').exists():
        for name in ('config.json', 'result.json'):
            if not (folder / name).exists():
                raise UserError(f'{label}: must be the workdir of a finished run, has no {name}')
        c = config.read(folder)
        network = config.network(**{name: c.student[name] for name in config.network()})
        memory.check_network(label, network, distributed.process_count() * memory.host_memory())
        return _Workdir(label, path, network, _class_names(label, folder, c))
    if (folder / 'metrics.jsonl').exists() or not (folder / 'config.json').exists():
        raise UserError(
            f'{label}: must be the workdir of a finished run, or a folder with config.json and '
            'model.safetensors'
        )
    if storage.is_remote(path):
        raise UserError(
            f'{label}: a Hugging Face folder must be local; copy it, or mount the bucket with '
            'gcsfuse and name that path'
        )
    network = checkpoint_dir.read_network(label, path)
    memory.check_network(label, network, memory.host_memory())
    names = checkpoint_dir.read_class_names(label, path) if network.head == 'classify' else ()
    return _HuggingFaceFolder(label, path, network, names)


def _class_names(label: str, folder: pathlib.Path, c: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained with."""
    if c.student.head != 'classify':
        return ()
    names = json_file.read(folder / 'result.json', {'class_names?': [str]}).get('class_names')
    if names is None:  # trained by an earlier version
        try:
            return sources.class_names(c)
        except UserError as error:
            raise UserError(
                f'{label}: its result.json has no class_names, and its data cannot be read ({error}): '
                'restore the data, or add the list class_names to result.json'
            ) from error
    if names and len({*names}) != c.student.classes:
        raise UserError(
            f'{label}: its result.json has class_names = {names}: must be {c.student.classes} '
            'different names'
        )
    return tuple(names)


def load(path: str) -> tuple[models.Model, models.Params]:
    """Loads a trained network, ready to compute in float32.

        model, params = lightpaff_jax.load('runs/gpt2_stage2')
        logits = model.logits(params, Batch(ids, ids, jnp.ones(ids.shape)))

    Args:
      path: the workdir of a finished run, or a folder with config.json and model.safetensors of
        a BERT, GPT-2 or BART (MASS) in Hugging Face's format.

    Returns:
      The model's pure functions, and its parameters on the first device.

    Raises:
      UserError: the path is neither, or its network cannot be read completely.
    """
    return open('path', path).load()


def save(
    path: str, model: models.Model, params: models.Params, tokenizer: tokenizers.Tokenizer
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json for transformers and `load`.

    Files of these names are replaced; others stay.

    Args:
      path: the local folder; created if it does not exist.
      model: a model from `load` or `models.build`.
      params: its parameters.
      tokenizer: its tokenizer, for example `tokenizers.read('runs/gpt2_stage2/tokenizer')`.

    Raises:
      UserError: the tokenizer has more ids than the model or cannot be written as an exact
        tokenizer.json; the path is in a bucket, or the folder holds something else, such as a run.
      NotSaved: the disk is full; the folder is as before.
    """
    folder = _target(str(path))
    if tokenizer.vocab_size > model.network.vocab_size:
        raise UserError(
            f'{path}: the tokenizer has {tokenizer.vocab_size} ids, must have at most the '
            f"model's {model.network.vocab_size}"
        )
    family, eos = model.network.family, tokenizer.eos_id
    special_ids = {'pad_token_id': tokenizer.pad_id}
    if family != 'bert':
        special_ids |= {'bos_token_id': tokenizer.bos_id, 'eos_token_id': eos}
    if family == 'mass':
        special_ids['decoder_start_token_id'] = eos
    with storage.translate_disk_errors(folder), storage.temporary_folder(folder) as temporary:
        tokenizer_dir = temporary / folder.name
        # Before any change of the folder, because it may raise.
        tokenizer.save(tokenizer_dir, family, model.network.positions)
        checkpoint_dir.write(
            folder,
            model,
            jax.device_get(params),
            ids=special_ids,
            labels=model.class_names,
            others=dict.fromkeys(tokenizers.FILES) | {x.name: x for x in tokenizer_dir.iterdir()},
        )


def _target(path: str) -> pathlib.Path:
    """Returns the absolute path of a folder to save in.

    Raises:
      UserError: it is in a bucket or no folder, or has the config.json of something else.
    """
    if storage.is_remote(path):
        raise UserError(f'{path}: must be a local folder')
    if not path or '\0' in path:
        raise UserError(f'path = {path!r}: must name a folder')
    try:
        folder = pathlib.Path(path).expanduser().resolve()  # `..` has the name of that folder
        folder.exists()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise UserError(f'{path}: {one_line(error)}') from error
    if not folder.name or (folder.exists() and not folder.is_dir()):
        raise UserError(f'{folder}: must be a folder, and not the root')
    file = folder / 'config.json'
    if file.exists() and not {'architectures', 'model_type'} & json_file.read(file).keys():
        raise UserError(
            f'{folder}: its config.json is not that of a network, choose another folder'
        )
    return folder


def select_layers(
    s: ConfigDict, teacher: models.Model, params: models.Params, student: models.Model
) -> models.Params:
    """Initializes a student with some layers of its teacher, and all other parameters of it.

    Args:
      s: the section `config.student`; its `init_layers` and `init_decoder_layers` choose the layers.
      teacher: the teacher's model.
      params: the teacher's parameters.
      student: the student's model.

    Raises:
      UserError: a layer does not exist, their number is not the student's, or the shapes differ.
    """
    t = teacher.network
    for key, value in student.network.items():
        may_differ = key in ('layers', 'decoder_layers', 'dropout')
        if not may_differ and t[key] != value:
            raise UserError(
                f"config.student.{key} = {value}: must equal the teacher's {t[key]} "
                "for student.init 'teacher_layers'"
            )
    layers = _layers('init_layers', s.init_layers or range(s.layers), s.layers, t.layers)
    chosen = s.init_decoder_layers or range(s.decoder_layers)
    decoder_layers = _layers('init_decoder_layers', chosen, s.decoder_layers, t.decoder_layers)
    arrays = fingerprint.flatten(params)
    for path in {row.path for row in student.table if '{layer}' in row.name}:
        arrays[path] = arrays[path][decoder_layers if path.startswith('decoder/') else layers]
    return fingerprint.unflatten(arrays)


def project_embeddings(
    teacher: models.Model, params: models.Params, student: models.Model
) -> models.Params:
    """Projects the teacher's embeddings to the width of a narrower student.

    The token embeddings become the first singular vectors of the teacher's, times their singular
    values: the matrix of this rank that is closest to the teacher's, in its own coordinates. All other
    tables of that width, such as positions, are projected to the same coordinates.

    Args:
      teacher: the teacher's model, with the ids of the student.
      params: the teacher's parameters.
      student: the student's model.

    Returns:
      the tables of embeddings only.

    Raises:
      UserError: the student is wider than its teacher, or has other tables.
    """
    s, t = student.network, teacher.network
    if s.width > t.width:
        raise UserError(
            f"config.student.width = {s.width}: must be at most the teacher's {t.width} for "
            "student.init 'teacher_embeddings'"
        )
    tokens = np.asarray(params['token_embedding']['table'], np.float64)
    # The right singular vectors are the eigenvectors of a small matrix, the largest last.
    _, vectors = np.linalg.eigh(tokens.T @ tokens)
    basis_DE = vectors[:, ::-1][:, : s.width]
    tables = {}
    for path, x in fingerprint.flatten(student.abstract_params).items():
        name = path.removesuffix('/table')
        if name in (path, _CLASSIFIER) or x.shape[-1] != s.width:
            continue
        if name not in params or len(params[name]['table']) < len(x):
            key = 'type_vocab_size' if name == 'type_embedding' else 'positions'
            raise UserError(
                f"config.student.{key} = {s[key]}: must be at most the teacher's {t[key]} for "
                "student.init 'teacher_embeddings'"
            )
        rows = np.asarray(params[name]['table'][: len(x)], np.float64)
        tables[name] = {'table': jnp.asarray(rows @ basis_DE, jnp.float32)}
    return tables


def select_ids(
    model: models.Model, params: models.Params, ids_V: Int[np.ndarray, ' V']
) -> models.Params:
    """Keeps the rows of some ids in every parameter with a row per id, for a network of V ids.

    Row i becomes the row of `ids_V[i]`. The network that has these parameters computes from id i what
    `model` computes from `ids_V[i]`; its logits are those of `ids_V`.
    """
    rows = models.pad_vocab(len(ids_V))
    arrays = fingerprint.flatten(params)
    for path in {row.path for row in model.table if row.vocab}:
        padding = [(0, rows - len(ids_V)), *[(0, 0)] * (arrays[path].ndim - 1)]
        arrays[path] = jnp.pad(arrays[path][ids_V], padding)
    return fingerprint.unflatten(arrays)


def _layers(key: str, layers: Sequence[int], count: int, teacher_count: int) -> np.ndarray:
    """Checks the teacher's layers that `config.student.<key>` chooses, by default the lowest."""
    label = f'config.student.{key} = {",".join(map(str, layers))}'
    if len(layers) != count:
        raise UserError(f'{label}: must name {count} layers')
    if any(not 0 <= layer < teacher_count for layer in layers):
        raise UserError(f'{label}: must be layers of the teacher, 0 to {teacher_count - 1}')
    return np.asarray(layers, int)
