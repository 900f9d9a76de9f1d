"""Saves and restores checkpoints: atomic, asynchronous, and verified by a digest of every array.

A step is the folder `<directory>/<step>` with these Orbax checkpointables:

    params       the parameters; separate, so that they are read without the optimizer
    projections  parameters of matching losses, if there are any: they belong to no network
    training     the rest of the state: step and optimizer
    meta         JSON of the caller: data position, configuration, fingerprints
    digests      step; shape, type and digest of each array; sha256 of meta; sha256 of all of these

Orbax does not verify the data it reads, so reading compares the digests. A folder that was renamed
to another step, or mixed from two steps, is damaged too. `Checkpoints.restore` renames a damaged
step to `<step>.corrupt` and uses the step before it. Only this module imports Orbax, because the
names of its v1 API still change.

The directory may be in a bucket. There a rename is not atomic, so a step is complete once its last
file exists.
"""

import collections
import json
import logging
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath

from lightpaff_jax.errors import NotSaved, UserError
from lightpaff_jax.matching import PROJECTIONS
from lightpaff_jax.runtime import distributed, fingerprint, lease, orbax_errors, storage
from lightpaff_jax.runtime.fingerprint import Arrays, PyTree

_log = logging.getLogger(__name__)
_PATTERN = '*?[]\\'
_LAST_FILE = 'commit_success.txt'  # Orbax writes it last, and only in a bucket
_PROJECTIONS = f'params/{PROJECTIONS}/'
_STEP = re.compile('0|[1-9][0-9]*')


class _DamagedStep(Exception):
    """A step cannot be read, or differs from what was saved."""


class NoStep(UserError):
    """A folder does not have the wanted step, or only a damaged one."""


class Checkpoints:
    """The steps of one run. All processes make every call; process 0 renames and deletes.

    Args:
      directory: folder of the steps; the first save creates it.
      keep: number of newest steps to keep, at least 1; each save deletes older ones.

    Attributes:
      best: the step that is never deleted, whatever its age; None if no step is the best.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        if keep < 1:
            raise ValueError(f'keep = {keep}: must be at least 1')
        self.directory = _absolute(directory)
        self._keep = keep
        self.best: int | None = None
        self._pending: tuple[int, Any] | None = None

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and distributed.is_peer_failure(error):
            return  # the pending save would wait minutes for the process that has ended
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            _log.error('%s', failure)  # the first error is the one to raise

    def save(self, step: int, state: PyTree, meta: dict, is_best: bool = False) -> None:
        """Starts to save a step; returns when the arrays may be changed or donated.

        Waits for the previous save, copies the arrays to the host, and writes them in a thread.
        The step gets its name only when it is complete. An existing step is not overwritten. With
        `is_best` this step becomes `best`; the previous best is deleted only when it is complete.

        Raises:
          NotSaved: the previous save failed.
          TypeError: meta is not JSON, or an array has a type without a digest.
        """
        self.close()
        lease.check(self.directory)
        self.best = step if is_best else self.best
        if distributed.broadcast_from_primary(lambda: step in self.steps()):
            return
        arrays = {name: jnp.asarray(value) for name, value in fingerprint.flatten(state).items()}
        parts = {name: fingerprint.unflatten(part) for name, part in _split(arrays).items()}
        parts['meta'] = json.loads(json.dumps(meta))
        parts['digests'] = fingerprint.record(step, arrays, meta)
        orbax_errors.filter_unraisable()  # the save may fail before `close` waits for it
        with _context():
            # Without is_prioritized_key_fn and a byte limit, this call returns after Orbax has copied
            # every array to the host. On a CPU the copy is a view, which is safe: XLA does not donate
            # a buffer that has a view.
            response = ocp.save_checkpointables_async(self.directory / str(step), parts)
        self._pending = step, response

    def restore(self, abstract: PyTree) -> tuple[int, PyTree, dict] | None:
        """Returns the newest intact step as (step, state, meta), or None without any checkpoint.

        Args:
          abstract: the state with a jax.ShapeDtypeStruct for each array. Its shardings may differ
            from those at the save. An array without a sharding goes to the first device, or to
            every device if there are several processes.

        Raises:
          UserError: no existing step is intact; or the checkpoint lacks an array of `abstract`, or
            has it with another shape or type.
        """
        self.close()
        steps = distributed.broadcast_from_primary(self._delete_incomplete)
        for step in reversed(steps):
            folder = self.directory / str(step)
            try:
                entries, meta = _read_record(folder)
                state = _read_arrays(folder, entries, abstract)
            except _DamagedStep as problem:
                self._set_aside(step, problem)
                continue
            if step != steps[-1]:
                _log.warning('%s: step %d is used instead', self.directory, step)
            return step, state, meta
        if distributed.broadcast_from_primary(lambda: bool(self._list(r'\d+\.corrupt.*'))):
            raise UserError(
                f'{self.directory}: no intact checkpoint, only damaged steps (*.corrupt); remove '
                'the folder to start again'
            )
        return None

    def steps(self) -> list[int]:
        """Returns the complete steps on disk in ascending order."""
        return _steps(self.directory)

    def close(self) -> None:
        """Waits for the pending save, then deletes all but the newest `keep` steps and `best`.

        Raises:
          NotSaved: the save failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with orbax_errors.suppress_orbax_noise() as failures:
            try:
                response.result()
            except Exception as error:
                failures.append(orbax_errors.root_cause(error))
        if failures:
            raise NotSaved(f'{self.directory}: step {step} was not saved: {failures[0]}')
        if distributed.is_primary():
            self._prune()

    def _list(self, pattern: str) -> list[epath.Path]:
        if not self.directory.exists():
            return []
        return [path for path in self.directory.iterdir() if re.fullmatch(pattern, path.name)]

    def _prune(self) -> None:
        """Deletes old steps, and what a killed save or a killed deletion left."""
        for step in self.steps()[: -self._keep]:
            if step == self.best:
                continue
            # Invalidate it first: a killed deletion must not leave half a step that looks whole.
            folder = self.directory / str(step)
            if storage.is_remote(folder):
                (folder / _LAST_FILE).unlink()
            else:
                folder.rename(self.directory / f'{step}.deleted')
        for path in self._list(r'\d+(\.deleted|\.orbax-checkpoint-tmp.*)'):
            path.rmtree()
        self._delete_incomplete()

    def _delete_incomplete(self) -> list[int]:
        """Returns the steps; deletes incomplete ones in a bucket, where Orbax cannot replace them."""
        steps = self.steps()
        if storage.is_remote(self.directory):
            for path in self._list(r'\d+'):
                if int(path.name) not in steps:
                    path.rmtree()
        return steps

    def _set_aside(self, step: int, problem: _DamagedStep) -> None:
        def rename() -> str:
            count = len(self._list(rf'{step}\.corrupt.*'))
            name = f'{step}.corrupt' + (f'.{count}' if count else '')
            (self.directory / str(step)).rename(self.directory / name)
            return name

        name = distributed.broadcast_from_primary(rename)
        _log.warning('%s: step %d is renamed to %s: %s', self.directory, step, name, problem)


class Reader:
    """Reads a step of a run, by default the newest intact one; renames nothing, reads no optimizer.

    The record of the step is read and verified once, when the reader is made.

    Args:
      directory: folder of the steps.
      step: the step to read; None for the newest intact one.

    Attributes:
      meta: the JSON that the caller saved with the step.

    Raises:
      NoStep: the folder has no checkpoint, or no intact one.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        self._directory = _absolute(directory)
        self._steps = distributed.all_gather(_steps(self._directory))[0]  # those that process 0 has
        self._name = 'checkpoint' if step is None else f'step {step}'
        if step is not None:
            self._steps = [step] if step in self._steps else []
        if not self._steps:
            raise NoStep(f'{self._directory}: no {self._name} in this folder')
        self._open_newest()

    def read_params(self, abstract: PyTree | None = None) -> PyTree:
        """Reads the parameters. If an array is damaged, continues with the step before.

        Args:
          abstract: the parameters with a jax.ShapeDtypeStruct for each array, whose shardings are
            used. Without it, returns nested dicts on the first device, or on every device if there
            are several processes.

        Raises:
          NoStep: no step is intact.
          UserError: an array differs from `abstract` in name, shape or type.
        """
        while True:
            entries = {name: x for name, x in self._entries.items() if name.startswith('params/')}
            if abstract is not None and PROJECTIONS not in abstract:  # they belong to no network
                names = [name for name in entries if not name.startswith(_PROJECTIONS)]
                entries = {name: entries[name] for name in names}
            stored = {
                name: jax.ShapeDtypeStruct(x['shape'], jnp.dtype(x['dtype']))
                for name, x in entries.items()
            }
            state = fingerprint.unflatten(stored) if abstract is None else {'params': abstract}
            try:
                return _read_arrays(self._folder, entries, state)['params']
            except _DamagedStep as problem:
                self._skip(problem)
                self._open_newest()

    def _open_newest(self) -> None:
        """Opens the newest remaining step that has an intact record."""
        while self._steps:
            self._folder = self._directory / str(self._steps[-1])
            try:
                self._entries, self.meta = _read_record(self._folder)
                return
            except _DamagedStep as problem:
                self._skip(problem)
        raise NoStep(f'{self._directory}: no intact {self._name} in this folder')

    def _skip(self, problem: _DamagedStep) -> None:
        step = self._steps.pop()
        _log.warning('%s: step %d is not used: %s', self._directory, step, problem)


def _absolute(directory: pathlib.Path) -> epath.Path:
    remote = storage.is_remote(directory)
    path = epath.Path(directory if remote else pathlib.Path(directory).absolute())
    if not {*str(path)}.isdisjoint(_PATTERN):
        rule = f'must not contain any of {" ".join(_PATTERN)}, which Orbax reads as a pattern'
        raise UserError(f'{path}: {rule}')
    return path


def _steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    folders = [path for path in directory.iterdir() if _STEP.fullmatch(path.name)]
    return sorted(int(folder.name) for folder in folders if _complete(folder))


def _complete(folder: epath.Path) -> bool:
    return (folder / _LAST_FILE).exists() if storage.is_remote(folder) else folder.is_dir()


def _split(arrays: Arrays) -> dict[str, Arrays]:
    parts: dict[str, Arrays] = collections.defaultdict(dict)
    for name, value in arrays.items():
        part = 'params' if name.startswith('params/') else 'training'
        parts[PROJECTIONS if name.startswith(_PROJECTIONS) else part][name] = value
    return dict(parts)


def _read_record(folder: epath.Path) -> tuple[dict[str, dict], dict]:
    """Reads the entries of the arrays, and meta; raises _DamagedStep if the folder was changed."""
    record = _read_part(folder, 'digests')
    meta = _read_part(folder, 'meta')
    damage = None
    if not isinstance(record, dict) or record.pop('self', None) != fingerprint.sha256(record):
        damage = 'digests: not what was saved'
    elif record['meta'] != fingerprint.sha256(meta):
        damage = 'meta: not what was saved'
    elif 'step' not in record:
        _raise_on_all(None, f'{folder}: was saved by an earlier version, which can read it')
    elif str(record['step']) != folder.name:
        damage = f'saved as step {record["step"]}, not {folder.name}'
    _raise_on_all(damage)
    return record['arrays'], meta


def _read_arrays(folder: epath.Path, entries: dict[str, dict], abstract: PyTree) -> PyTree:
    """Reads and verifies arrays; raises UserError if `abstract` differs from the entries."""
    structs = {name: _with_sharding(x) for name, x in fingerprint.flatten(abstract).items()}
    _check_entries(folder, entries, structs)
    arrays: Arrays = {}
    for part, group in _split(structs).items():
        arrays |= fingerprint.flatten(_read_part(folder, part, fingerprint.unflatten(group)))
    arrays = {name: arrays[name] for name in structs}
    changed = [name for name, x in fingerprint.entries(arrays).items() if x != entries[name]]
    _raise_on_all(f'{changed[0]}: the bytes are not those that were saved' if changed else None)
    return jax.tree.unflatten(jax.tree.structure(abstract), [*arrays.values()])


def _check_entries(folder: epath.Path, entries: dict[str, dict], structs: Arrays) -> None:
    for name, x in structs.items():
        if name not in entries:
            rule = 'another version or another network saved it; remove the folder to start again'
            raise UserError(f'{folder}: has no array {name}: {rule}')
        stored = f'{entries[name]["dtype"]}{entries[name]["shape"]}'
        requested = f'{x.dtype}{[*x.shape]}'
        if stored != requested:
            raise UserError(f'{folder}: {name} is {stored} in the checkpoint and {requested} here')
        try:
            x.sharding.shard_shape(x.shape)
        except ValueError as error:
            cause = orbax_errors.root_cause(error)
            raise UserError(f'{folder}: {name} {requested}: {cause}') from error
    for name in sorted(entries.keys() - structs.keys()):
        raise UserError(f'{folder}: has the array {name}, which is not wanted here')


def _with_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if x.sharding is not None:
        return x
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), ('all',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _read_part(folder: epath.Path, part: str, abstract: PyTree | None = None) -> Any:
    """Reads one checkpointable; raises _DamagedStep on all processes if one cannot read it."""
    value, local_error = None, None
    with orbax_errors.suppress_orbax_noise() as failures:
        try:
            with _context(reading=True):
                value = ocp.load_checkpointables(folder, {part: abstract})[part]
        except Exception as error:  # damaged files raise many types, from many libraries
            local_error = error if _is_local(error) else None
            failures.append(f'{part}: cannot be read: {orbax_errors.root_cause(error)}')
    if local_error is not None and distributed.process_count() == 1:
        raise local_error
    damage = failures[0] if failures else None
    _raise_on_all(damage, f'{folder}: {damage}' if local_error is not None else None)
    return value


def _is_local(error: BaseException | None) -> bool:
    """Returns whether this machine (memory, permission), not the files, may be the cause."""
    local = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
    while error is not None:
        if isinstance(error, local):
            return True
        error = error.__cause__ or error.__context__
    return False


def _raise_on_all(damage: str | None, local_error: str | None = None) -> None:
    """Raises the first error of any process on every process, local errors before damage."""
    reports = distributed.all_gather([local_error, damage])
    for column, error_type in enumerate((UserError, _DamagedStep)):
        for number, report in enumerate(reports):
            if report[column] is not None:
                prefix = f'process {number}: ' if len(reports) > 1 else ''
                raise error_type(prefix + report[column])


def _context(reading: bool = False) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in ('meta', 'digests'):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    # A thread that failed to create the folder would keep the program from ending for minutes.
    context.asynchronous.create_directories_asynchronously = False
    if reading:
        # Each process reads by itself: Orbax would wait minutes for a process that failed.
        index = distributed.process_index()
        context.multiprocessing.primary_host = index
        context.multiprocessing.active_processes = {index}
    return context
