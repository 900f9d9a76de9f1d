"""Chooses the runs of a recipe that read a cache of their teacher's features."""

import collections
import json
import logging
import pathlib
import shutil
from collections.abc import Iterable

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import validate
from lightpaff_jax.errors import UserError

MAX_BYTES = 10**10  # largest default cache
_log = logging.getLogger('lightpaff_jax')
# Keys of config.data on which no cache depends.
_OTHER_KEYS = ('batch_size', 'cache', 'prefetch', 'workers', 'tfds_dir')


class Sharing:
    """Knows which runs of a recipe share a teacher and data, and how many rows they read."""

    def __init__(self, c: ConfigDict, runs: Iterable[ConfigDict]):
        """Counts the rows of all runs of the recipe `c`."""
        self._c = c
        self._rows: dict[str, list[int]] = collections.defaultdict(list)
        for run in runs:
            self._rows[_key(run)].append(run.train.updates * run.data.batch_size)

    def with_cache(self, run: ConfigDict) -> ConfigDict:
        """Adds a cache in the recipe's workdir to a run, if that saves forward passes of the teacher.

        It does if several runs share the cache and together read more rows than it has. A cache that
        exceeds MAX_BYTES or the free disk, or whose masks would repeat, requires
        `config.teacher.cache`.
        """
        c, rows = self._c, self._rows[_key(run)]
        is_wanted = c.recipe.cache_teacher and not c.teacher.cache
        is_masked = 'teacher.cache_epochs' in config.OBJECTIVES[run.objective].keys
        if not is_wanted or is_masked or not run.teacher.path or len(rows) == 1:
            return run
        cached = config.copy(run)
        cached.teacher.cache = f'{c.workdir}/teacher_cache'
        try:
            validate.check_teacher_cache(cached)
        except UserError as error:
            _log.info('%s: %s; the live teacher is used', run.workdir, error)
            return run
        records = _records(run)
        if sum(rows) <= records:
            return run
        size, free = records * _row_bytes(run), _free_bytes(c.workdir)
        if size > min(MAX_BYTES, free):
            _log.info(
                '%s: a cache of the teacher would take %.3g GB, %.3g GB are free; the live teacher is '
                'used, config.teacher.cache = FOLDER makes a cache',
                *(run.workdir, size / 1e9, free / 1e9),
            )
            return run
        return cached


def _free_bytes(workdir: str) -> int:
    """Returns the free space of the disk that will hold a local folder."""
    folder = pathlib.Path(workdir).expanduser().absolute()
    return shutil.disk_usage(next(x for x in (folder, *folder.parents) if x.exists())).free


def _key(run: ConfigDict) -> str:
    """Returns what runs that share a cache have in common."""
    data = {key: value for key, value in run.data.items() if key not in _OTHER_KEYS}
    dtypes = run.teacher.dtype, run.train.compute_dtype
    return json.dumps([run.teacher.path, run.objective, dtypes, data])


def _records(run: ConfigDict) -> int:
    """Returns the number of train records of a run, whose data is prepared if it is not yet."""
    from lightpaff_jax.data import prepare
    from lightpaff_jax.data.tokenizers import selection

    return prepare.prepare(run, selection.load(run)).split('train')['records']


def _row_bytes(run: ConfigDict) -> int:
    """Returns the bytes that the longest record of a run takes in a cache."""
    from lightpaff_jax import teacher
    from lightpaff_jax.teacher import cache

    return cache.row_bytes(cache.bucket_shapes(run, teacher.open(run).network)[-1])
