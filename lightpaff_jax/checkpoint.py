"""Checkpoints: state, meta and a digest of every array, together, atomic and verified.

A step is the folder `<directory>/<step>` with four Orbax checkpointables:

    params     the parameters, so that a teacher or a student's start is read alone
    training   the rest of the state: step and optimizer
    meta       what the caller wants back: data position, config, identities
    digests    shape, dtype and digest of every array, sha256 of meta and of this record

Orbax does not verify what it reads, so `restore` compares the digests. A step that cannot be
read or differs is renamed `<step>.corrupt`, and the one before it is used. Orbax is imported
nowhere else: the names of its v1 interface still move.

The folder may be in a bucket, which cannot rename: there a step is complete when its last file is.
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
from lightpaff_jax.runtime import distributed, fingerprint, orbax_errors, storage
from lightpaff_jax.runtime.fingerprint import Arrays, PyTree

_log = logging.getLogger(__name__)
_LAST_FILE = 'commit_success.txt'  # that Orbax writes of a step in a bucket


class _Corrupt(Exception):
    """A step cannot be read, or differs from what was saved."""


class Checkpoints:
    """The steps of one run. All processes make every call; process 0 renames and deletes.

    Args:
      directory: the folder of the steps; made at the first save.
      keep: newest steps that stay, at least 1; older ones are deleted after a save.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        if keep < 1:
            raise ValueError(f'keep = {keep}: must be at least 1')
        self.directory = _folder(directory)
        self._keep = keep
        self._pending: tuple[int, Any] | None = None

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and distributed.is_peer_failure(error):
            return  # the save in progress waits, for minutes, for the process that has ended
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            _log.error('%s', failure)  # the error on its way up matters more

    def save(self, step: int, state: PyTree, meta: dict) -> None:
        """Starts to save; returns when the arrays may be changed or donated.

        Waits for the save before it, copies the arrays to the host, and leaves the writing to
        a thread. The step appears under its name only when it is complete. A step that is
        there already is left as it is.

        Raises:
          NotSaved: the save before this one failed.
          TypeError: meta is not JSON, or an array has a type without a digest.
        """
        self.close()
        folder = self.directory / str(step)
        if distributed.broadcast_from_primary(lambda: step in self.steps()):
            return
        arrays = {name: jnp.asarray(value) for name, value in fingerprint.flatten(state).items()}
        parts = {name: fingerprint.unflatten(part) for name, part in _parts(arrays).items()}
        parts |= {'meta': json.loads(json.dumps(meta)), 'digests': fingerprint.record(arrays, meta)}
        with _context():
            # Orbax has every array on the host when this returns (no is_prioritized_key_fn, no
            # limit of bytes). On a CPU that is a view, and XLA donates no buffer with a view.
            self._pending = step, ocp.save_checkpointables_async(folder, parts)

    def restore(self, abstract: PyTree) -> tuple[int, PyTree, dict] | None:
        """Newest intact step as (step, state, meta); None where there is no checkpoint.

        Args:
          abstract: the state with a jax.ShapeDtypeStruct for each array; its shardings need not
            be those of the save. Without one an array is put on the first device (on every
            device where there are several processes).

        Raises:
          UserError: steps exist and none is intact; or an array of `abstract` is not in the
            checkpoint, or has another shape or type there.
        """
        self.close()
        steps = distributed.broadcast_from_primary(self._tidied)
        for step in reversed(steps):
            folder = self.directory / str(step)
            try:
                record, meta = _read_record(folder)
                state = _read_arrays(folder, record, abstract)
            except _Corrupt as problem:
                self._set_aside(step, problem)
                continue
            if step != steps[-1]:
                _log.warning('%s: step %d is used instead', self.directory, step)
            return step, state, meta
        if distributed.broadcast_from_primary(lambda: bool(self._list(r'\d+\.corrupt.*'))):
            raise UserError(
                f'{self.directory}: no intact checkpoint, only steps that were set aside '
                '(*.corrupt); remove the folder to start again'
            )
        return None

    def steps(self) -> list[int]:
        """Steps on disk, ascending. Half-written and set aside ones are not among them."""
        return _steps(self.directory)

    def close(self) -> None:
        """Waits for the save in progress, then deletes what `keep` leaves out.

        Raises:
          NotSaved: the save failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with orbax_errors.suppress_orbax_noise() as failed:
            try:
                response.result()
            except Exception as error:
                failed.append(orbax_errors.root_cause(error))
        if failed:
            raise NotSaved(f'{self.directory}: step {step} was not saved: {failed[0]}')
        self._prune()

    def _list(self, pattern: str) -> list[epath.Path]:
        if not self.directory.exists():
            return []
        return [path for path in self.directory.iterdir() if re.fullmatch(pattern, path.name)]

    def _prune(self) -> None:
        """Deletes old steps, and what a killed save or deletion left behind."""
        if not distributed.is_primary():
            return
        for step in self.steps()[: -self._keep]:
            # Not like a step before it is deleted: a deletion may be killed half-way.
            folder = self.directory / str(step)
            if storage.is_remote(folder):
                (folder / _LAST_FILE).unlink()
            else:
                folder.rename(self.directory / f'{step}.deleted')
        for path in self._list(r'\d+(\.deleted|\.orbax-checkpoint-tmp.*)'):
            path.rmtree()
        self._tidied()

    def _tidied(self) -> list[int]:
        """The steps; half-written ones are deleted from a bucket: Orbax writes none over them."""
        steps = self.steps()
        if storage.is_remote(self.directory):
            for path in self._list(r'\d+'):
                if int(path.name) not in steps:
                    path.rmtree()
        return steps

    def _set_aside(self, step: int, problem: _Corrupt) -> None:
        def rename() -> str:
            before = len(self._list(rf'{step}\.corrupt.*'))
            name = f'{step}.corrupt' + (f'.{before}' if before else '')
            (self.directory / str(step)).rename(self.directory / name)
            return name

        name = distributed.broadcast_from_primary(rename)
        _log.warning('%s: step %d is set aside as %s: %s', self.directory, step, name, problem)


def load_params(directory: pathlib.Path, abstract: PyTree | None = None) -> PyTree:
    """The parameters of the newest intact step; the optimizer is not read, nothing is renamed.

    Args:
      directory: the folder of the steps.
      abstract: parameters with a jax.ShapeDtypeStruct for each array, for the shardings.
        Without it: nested dicts, on the first device (on every device where there are several
        processes).

    Raises:
      UserError: no checkpoint, none intact, or an array differs from `abstract` in name, shape
        or type.
    """

    def read(folder: epath.Path) -> PyTree:
        record, _ = _read_record(folder)
        record = {name: a for name, a in record.items() if name.startswith('params/')}
        if abstract is not None:
            return _read_arrays(folder, record, {'params': abstract})['params']
        stored = {
            name: jax.ShapeDtypeStruct(a['shape'], jnp.dtype(a['dtype']))
            for name, a in record.items()
        }
        return _read_arrays(folder, record, fingerprint.unflatten(stored))['params']

    return _newest(directory, read)


def read_meta(directory: pathlib.Path) -> dict:
    """Meta of the newest step whose meta is intact; reads no array.

    Raises:
      UserError: no checkpoint, or none intact.
    """
    return _newest(directory, lambda folder: _read_record(folder)[1])


def _newest(directory: pathlib.Path, read) -> Any:
    """`read(folder of a step)` of the newest step for which it succeeds."""
    root = _folder(directory)
    steps = distributed.broadcast_from_primary(lambda: _steps(root))
    if not steps:
        raise UserError(f'{root}: no checkpoint in this folder')
    for step in reversed(steps):
        try:
            return read(root / str(step))
        except _Corrupt as problem:
            _log.warning('%s: step %d is not used: %s', root, step, problem)
    raise UserError(f'{root}: no intact checkpoint in this folder')


# Names and parts of a state.


def _folder(directory: pathlib.Path) -> epath.Path:
    path = epath.Path(directory)
    return path if storage.is_remote(path) else epath.Path(pathlib.Path(path).absolute())


def _steps(root: epath.Path) -> list[int]:
    if not root.exists():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdecimal() and _complete(p))


def _complete(folder: epath.Path) -> bool:
    return (folder / _LAST_FILE).exists() if storage.is_remote(folder) else folder.is_dir()


def _parts(arrays: Arrays) -> dict[str, Arrays]:
    """Arrays by checkpointable."""
    parts: dict[str, Arrays] = collections.defaultdict(dict)
    for name, value in arrays.items():
        parts['params' if name.startswith('params/') else 'training'][name] = value
    return dict(parts)


# Reading a step.


def _read_record(folder: epath.Path) -> tuple[dict[str, dict], dict]:
    """The record of the arrays, and meta; _Corrupt unless both are as they were saved."""
    record = _load(folder, 'digests')
    meta = _load(folder, 'meta')
    problem = None
    if not isinstance(record, dict) or record.pop('self', None) != fingerprint.sha256(record):
        problem = 'digests: not what was saved'
    elif record['meta'] != fingerprint.sha256(meta):
        problem = 'meta: not what was saved'
    _agree(problem)
    return record['arrays'], meta


def _read_arrays(folder: epath.Path, record: dict[str, dict], abstract: PyTree) -> PyTree:
    """The arrays, verified; UserError where `abstract` is not what the record lists."""
    wanted = {name: _placed(x) for name, x in fingerprint.flatten(abstract).items()}
    _check(folder, record, wanted)
    arrays: Arrays = {}
    for part, named in _parts(wanted).items():
        arrays |= fingerprint.flatten(_load(folder, part, fingerprint.unflatten(named)))
    arrays = {name: arrays[name] for name in wanted}
    changed = [name for name, entry in fingerprint.entries(arrays).items() if entry != record[name]]
    _agree(f'{changed[0]}: the bytes are not those that were saved' if changed else None)
    return jax.tree.unflatten(jax.tree.structure(abstract), [*arrays.values()])


def _check(folder: epath.Path, record: dict[str, dict], wanted: Arrays) -> None:
    for name, x in wanted.items():
        if name not in record:
            raise UserError(f'{folder}: has no array {name}')
        entry = record[name]
        there = f'{entry["dtype"]}{entry["shape"]}'
        here = f'{x.dtype}{[*x.shape]}'
        if there != here:
            raise UserError(f'{folder}: {name} is {there} in the checkpoint and {here} here')
        try:
            x.sharding.shard_shape(x.shape)
        except ValueError as error:
            raise UserError(f'{folder}: {name} {here}: {orbax_errors.root_cause(error)}') from error
    for name in record:
        if name not in wanted:
            raise UserError(f'{folder}: has the array {name}, which is not wanted here')


def _placed(x: Any) -> jax.ShapeDtypeStruct:
    if x.sharding is not None:
        return x
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), ('all',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _load(folder: epath.Path, part: str, abstract: PyTree | None = None) -> Any:
    """One checkpointable; _Corrupt, on all processes, when one of them cannot read it."""
    value, refused = None, None
    with orbax_errors.suppress_orbax_noise() as failed:
        try:
            with _context(reading=True):
                value = ocp.load_checkpointables(folder, {part: abstract})[part]
        except Exception as error:  # damaged files raise many types, of many libraries
            refused = error if _is_local(error) else None
            failed.append(f'{part}: cannot be read: {orbax_errors.root_cause(error)}')
    if refused is not None and distributed.process_count() == 1:
        raise refused
    problem = failed[0] if failed else None
    _agree(problem, f'{folder}: {problem}' if refused is not None else None)
    return value


def _is_local(error: BaseException | None) -> bool:
    """The machine refuses, the files may be good: no memory on host or device, no permission."""
    local = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
    while error is not None:
        if isinstance(error, local):
            return True
        error = error.__cause__ or error.__context__
    return False


# Processes, Orbax.


def _agree(problem: str | None, refused: str | None = None) -> None:
    """_Corrupt on every process when one has a problem, so that all fall back together.

    UserError on every process when the machine of one refuses.
    """
    found = distributed.all_gather([problem, refused])
    names = [f'process {number}: ' if len(found) > 1 else '' for number in range(len(found))]
    for name, (_, said) in zip(names, found, strict=True):
        if said is not None:
            raise UserError(name + said)
    for name, (said, _) in zip(names, found, strict=True):
        if said is not None:
            raise _Corrupt(name + said)


def _context(reading: bool = False) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in ('meta', 'digests'):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    # Made in a thread, a folder that cannot be made keeps the program from ending for minutes.
    context.asynchronous.create_directories_asynchronously = False
    if reading:  # alone: Orbax would wait minutes for a process that failed; we agree afterwards
        me = distributed.process_index()
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
    return context
