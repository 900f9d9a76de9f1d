"""A cache on disk of what a frozen teacher computes for the train records; runs share it.

    FOLDER/<objective>-<digest of the key>/
      cache.json           the key, and the run that began to build the cache
      0-32-00001.rows      masking 0, records of the bucket of length 32, the second 2,048 of them

A row has the arrays of a record, one after the other, and a digest. The digest depends on the key,
the masking and the record too, so a row of another cache or another record is noticed. All rows of a
bucket have the same size. A record is stored in the shape of its smallest bucket, without padding
to a longer one.

A file is complete when it exists: it is written to a temporary file, which is then renamed. Files
that do not exist are built, with the same bytes whenever a process is killed.
"""

import contextlib
import hashlib
import json
import logging
import math
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import config, distill_step, models, networks, sharding
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.data import batches, objectives
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import Unfinished, UserError, one_line
from lightpaff_jax.matching import Matching, Tap
from lightpaff_jax.runtime import distributed, json_file, lock, storage
from lightpaff_jax.runtime.progress import Progress
from lightpaff_jax.teacher import Teacher

FORMAT = 1  # version of the rows, and of the seed of the masks
FILE = 'cache.json'
SHARD_RECORDS = 2048  # records of a file, which a killed process loses at most
_DIGEST_BYTES = 8
_DTYPE = np.dtype(jnp.bfloat16)
# Keys of config.data on which the inputs of a record depend.
_INPUT_KEYS = ('length', 'target_length', 'buckets', 'packing', 'mask_rate', 'whole_words')
_log = logging.getLogger('lightpaff_jax')

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]  # name of an array -> its shape for one record


def array_shapes(
    network: ConfigDict, shape: Shape, taps: Sequence[Tap] = ()
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of `Batch.teacher` for one record.

    Args:
      network: the shape of the teacher.
      shape: the lengths of the record's bucket.
      taps: activations for the matching losses.
    """
    shapes: dict[str, tuple[int, ...]] = {'features': (shape.predicted, network.width)}
    for tap in taps:
        length = shape.source if shape.source and tap.stack == 'encoder' else shape.tokens
        shapes[tap.name] = (length, network.width)
    return shapes


def abstract_arrays(
    network: ConfigDict, batch: Batch, losses: Matching | None = None
) -> dict[str, Any]:
    """Returns `Batch.teacher` of a batch as ShapeDtypeStructs."""
    rows = batch.labels.shape[:-1]
    shapes = array_shapes(network, batch.shape, _taps(losses))
    return {name: jax.ShapeDtypeStruct((*rows, *x), _DTYPE) for name, x in shapes.items()}


def _taps(losses: Matching | None) -> tuple[Tap, ...]:
    return () if losses is None else losses.teacher_taps


def bucket_shapes(c: ConfigDict, network: ConfigDict) -> list[Shapes]:
    """Returns the shapes of a record of each bucket of a run; `network` is that of the teacher."""
    taps = _taps(networks.matching_losses(c, network))
    return [array_shapes(network, shape, taps) for shape in networks.shapes(c)]


def row_bytes(shapes: Shapes) -> int:
    """Returns the bytes of a record on disk."""
    return _DIGEST_BYTES + _DTYPE.itemsize * sum(map(math.prod, shapes.values()))


class Shard(NamedTuple):
    """A file of the cache."""

    file: pathlib.Path
    masking: int
    bucket: int
    records: Int[np.ndarray, ' n']
    bytes: int


class Cache:
    """Reads the teacher's arrays by record. Threads may share an instance."""

    def __init__(
        self,
        folder: pathlib.Path,
        key: Any,
        lengths: Sequence[int],
        shapes: Sequence[Shapes],
        buckets: Int[np.ndarray, ' n'],
    ):
        """Describes a cache, which need not be complete.

        Args:
          folder: the folder of all caches.
          key: JSON values on which the bytes depend; has 'objective' and 'maskings'.
          lengths: the length of each bucket.
          shapes: the arrays of a record in the shape of each bucket.
          buckets: the index of the smallest bucket of each record.
        """
        self.key = json.loads(json.dumps(key))  # lists, as in the file
        self._digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
        self.folder = folder / f'{key["objective"]}-{self._digest.hex()[:16]}'
        self._lengths, self._shapes, self._buckets = lengths, shapes, buckets
        self._records = [np.flatnonzero(buckets == k) for k in range(len(shapes))]
        self._row_bytes = [row_bytes(x) for x in shapes]

    @property
    def size(self) -> int:
        """The size of all rows."""
        sizes = zip(self._records, self._row_bytes, strict=True)
        return self.key['maskings'] * sum(len(records) * size for records, size in sizes)

    def counts(self) -> list[int]:
        """Returns the number of rows of each bucket, over all maskings."""
        return [self.key['maskings'] * len(records) for records in self._records]

    def shards(self) -> Iterator[Shard]:
        """Yields all files."""
        for masking in range(self.key['maskings']):
            for bucket, records in enumerate(self._records):
                for number in range(-(-len(records) // SHARD_RECORDS)):
                    part = records[number * SHARD_RECORDS : (number + 1) * SHARD_RECORDS]
                    size = len(part) * self._row_bytes[bucket]
                    yield Shard(self._file(masking, bucket, number), masking, bucket, part, size)

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that do not exist.

        Raises:
          UserError: a file has another size.
        """
        numbers = []
        for number, shard in enumerate(self.shards()):
            if not shard.file.is_file():
                numbers.append(number)
            elif shard.file.stat().st_size != shard.bytes:
                raise _damage(shard.file, f'must have {shard.bytes} bytes')
        return numbers

    def write(self, shard: Shard, parts: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file; `parts` have the arrays [B, ...] of its records, in order, and padding.

        Raises:
          Unfinished: the file cannot be written.
        """
        part = shard.file.with_name(shard.file.name + storage.PART)
        try:
            with part.open('wb') as file:
                rows = _rows(parts, self._shapes[shard.bucket])
                for record, row in zip(shard.records.tolist(), rows, strict=False):
                    file.write(row + self._row_digest(shard.masking, record, row))
            storage.commit(part, shard.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()  # frees space, which other files may need
            raise Unfinished(
                f'{shard.file}: cannot be written: {one_line(error)}; the finished files are kept, '
                'the same command resumes there'
            ) from error

    def read(self, records: Sequence[int], maskings: Sequence[int], bucket: int) -> Arrays:
        """Returns the arrays [R, ...] of some records in the shape of a bucket.

        Raises:
          UserError: a file is damaged.
        """
        arrays = {
            name: np.zeros((len(records), *shape), _DTYPE)
            for name, shape in self._shapes[bucket].items()
        }
        own_buckets = self._buckets[np.asarray(records)].tolist()
        slots: dict[pathlib.Path, list[tuple[int, int]]] = {}
        for slot, (record, masking, own) in enumerate(
            zip(records, maskings, own_buckets, strict=True)
        ):
            number = int(np.searchsorted(self._records[own], record))
            shard, offset = divmod(number, SHARD_RECORDS)
            slots.setdefault(self._file(masking, own, shard), []).append((offset, slot))
        for file, rows in slots.items():
            own = own_buckets[rows[0][1]]
            size = self._row_bytes[own]
            for slot, row in _read_rows(file, rows, size):
                data, digest = row[:-_DIGEST_BYTES], row[-_DIGEST_BYTES:]
                if self._row_digest(maskings[slot], records[slot], data) != digest:
                    raise _damage(file, f'the row of record {records[slot]} is damaged')
                values = np.frombuffer(data, _DTYPE)
                for name, shape in self._shapes[own].items():
                    part, values = np.split(values, [math.prod(shape)])
                    arrays[name][slot, : shape[0]] = part.reshape(shape)
        return arrays

    def _file(self, masking: int, bucket: int, number: int) -> pathlib.Path:
        return self.folder / f'{masking}-{self._lengths[bucket]}-{number:05}.rows'

    def _row_digest(self, masking: int, record: int, row: bytes) -> bytes:
        person = masking.to_bytes(4) + record.to_bytes(8)
        hasher = hashlib.blake2b(row, digest_size=_DIGEST_BYTES, key=self._digest, person=person)
        return hasher.digest()


def _rows(parts: Iterable[Mapping[str, Any]], names: Iterable[str]) -> Iterator[bytes]:
    for part in parts:
        # jit returns the arrays sorted by name, the file has the order of `names`.
        for arrays in zip(*(part[name] for name in names), strict=True):
            yield b''.join(x.tobytes() for x in arrays)


def _read_rows(
    file: pathlib.Path, rows: Sequence[tuple[int, int]], size: int
) -> Iterator[tuple[int, bytes]]:
    """Yields the slot and the bytes of each of `rows`, which are pairs (offset, slot)."""
    try:
        with file.open('rb', buffering=0) as opened:
            for offset, slot in sorted(rows):
                opened.seek(offset * size)
                yield slot, opened.read(size) or b''
    except OSError as error:
        raise _damage(file, f'cannot be read: {one_line(error)}') from error


def _damage(file: pathlib.Path, problem: str) -> UserError:
    return UserError(f'{file}: {problem}; remove it, and the same command builds it again')


def describe(
    c: ConfigDict, teacher: Teacher, prepared: Dataset | Mixture, tokenizer: Tokenizer
) -> Cache:
    """Describes the cache of a run; its files need not exist."""
    network, shapes = teacher.model.network, bucket_shapes(c, teacher.model.network)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(teacher.params)}
    key = {
        'format': FORMAT,
        'teacher': teacher.hash,
        'network': {name: network[name] for name in config.network()},
        'dtypes': [*sorted(dtypes), c.train.compute_dtype],
        'data': prepared.hash,
        'tokenizer': tokenizer.fingerprint,
        'objective': c.objective,
        'inputs': {name: c.data[name] for name in (*_INPUT_KEYS, 'span_rate')},
        'maskings': c.teacher.cache_epochs,
        'arrays': [*shapes[0]],
    }
    lengths = [bucket.data.length for bucket in objectives.buckets(c)]
    folder = pathlib.Path(c.teacher.cache).expanduser()
    return Cache(folder, key, lengths, shapes, batches.record_buckets(c, prepared))


def open_or_build(
    c: ConfigDict, mesh: Mesh, teacher: Teacher, prepared: Dataset | Mixture, tokenizer: Tokenizer
) -> Cache:
    """Returns the complete cache of a run; builds what is missing.

    All processes compute; of those that share a disk, the first one writes. If several runs of one
    machine need a cache, one builds it and the others wait.

    Args:
      c: the configuration of the run, with `config.teacher.cache`.
      mesh: the devices of the run, also the mesh of the caller's context.
      teacher: the teacher.
      prepared: the dataset.
      tokenizer: the tokenizer of the dataset.

    Raises:
      UserError: the disk has too little space, or a file is damaged.
      Unfinished: a file cannot be written. The same call resumes the work.
    """
    cache = describe(c, teacher, prepared, tokenizer)
    if any(distributed.all_gather(bool(cache.missing()))):
        with contextlib.ExitStack() as stack:
            own = _begin(c, cache, stack)
            _build(c, mesh, cache, own, teacher, prepared, tokenizer)
    return cache


def _begin(c: ConfigDict, cache: Cache, stack: contextlib.ExitStack) -> list[int]:
    """Locks the folder, logs the size, and returns the numbers of the shards that this process writes."""
    folder = cache.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_first_of_disk(folder):
            return []
        stack.enter_context(lock.exclusive_lock(folder / lock.FILE))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f'config.teacher.cache = {c.teacher.cache}: cannot be written: {one_line(error)}'
        ) from error
    for part in folder.glob(f'*.rows{storage.PART}'):
        part.unlink()
    missing = cache.missing()  # the run that held the lock may have built it
    if missing:
        shards = [*cache.shards()]
        needed = sum(shards[number].bytes for number in missing)
        rows = sum(cache.counts())
        maskings = cache.key['maskings']
        size = (
            f'{rows // maskings:,} records x {maskings} maskings x {cache.size / rows:,.0f} bytes '
            f'= {_gigabytes(cache.size)}, {_gigabytes(free)} are free'
        )
        if needed > free:
            raise UserError(
                f'config.teacher.cache = {c.teacher.cache}: {_gigabytes(needed)} must fit: {size}'
            )
        finished = f', {_gigabytes(cache.size - needed)} are built' if needed < cache.size else ''
        _log.info('%s: %s%s', folder, size, finished)
        if not (folder / FILE).exists():
            storage.write_json(folder / FILE, {'builder': c.workdir, 'key': cache.key})
    return missing


def _is_first_of_disk(folder: pathlib.Path) -> bool:
    """Returns whether this process has the lowest number of those that see the same folder."""
    # A name that no killed run has left.
    name = distributed.broadcast_from_primary(lambda: secrets.token_hex(8))
    mark = folder / f'{name}-{distributed.process_index()}'
    mark.touch()
    distributed.all_gather(None)
    numbers = [int(path.name.rpartition('-')[2]) for path in folder.glob(f'{name}-*')]
    distributed.all_gather(None)
    mark.unlink()
    return min(numbers) == distributed.process_index()


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.3g} GB'


def _build(
    c: ConfigDict,
    mesh: Mesh,
    cache: Cache,
    own: Sequence[int],
    teacher: Teacher,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
) -> None:
    """Computes the shards that any process lacks; this one writes `own`."""
    missing = sorted({number for part in distributed.all_gather(own) for number in part})
    size = c.data.batch_size // c.train.grad_accum_steps
    rows, buckets = sharding.local_rows(mesh, size), objectives.buckets(c)
    taps = _taps(networks.matching_losses(c, teacher.model.network))
    compute = distill_step.make_teacher_arrays(c, mesh, teacher.model, taps)
    programs: dict[int, jax.stages.Compiled] = {}
    shards = [*cache.shards()]
    total, done = sum(len(shards[number].records) for number in missing), 0

    def outputs(shard: Shard) -> Iterator[Arrays]:
        indices = np.full(-(-len(shard.records) // size) * size, -1)
        indices[: len(shard.records)] = shard.records
        inputs = buckets[shard.bucket], prepared, tokenizer, indices.reshape(-1, size)
        for batch in batches.of_records(*inputs, shard.masking, rows):
            arguments = teacher.params, sharding.put_batch(mesh, batch, micro=False)
            if shard.bucket not in programs:
                programs[shard.bucket] = compute.lower(*arguments).compile()
                distributed.all_gather(None)  # CPU devices wait only 30 s for each other
            yield jax.device_get(programs[shard.bucket](*arguments))

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(total)) if distributed.is_primary() else None
        for number in missing:
            shard = shards[number]
            if number in own:
                cache.write(shard, outputs(shard))
            else:
                for _ in outputs(shard):
                    pass
            done += len(shard.records)
            if progress is not None:
                progress.show(done, f'cache of the teacher: {done:,} of {total:,} records')
        distributed.all_gather(None)  # the files of all processes are complete


def building_flops(c: ConfigDict, cache: Cache, model: models.Model) -> float:
    """Returns the FLOPs of building a cache if this run began to build it, else 0."""

    def builder() -> str:
        return json_file.read(cache.folder / FILE, {'builder': str})['builder']

    if distributed.broadcast_from_primary(builder) != c.workdir:
        return 0.0
    flops, taps = 0.0, _taps(networks.matching_losses(c, model.network))
    for bucket, count in zip(objectives.buckets(c), cache.counts(), strict=True):
        shape = objectives.OBJECTIVES[c.objective].shape(bucket)
        flops += count * (model.flops(shape, taps) - models.head_flops(model.network, shape))
    return flops
