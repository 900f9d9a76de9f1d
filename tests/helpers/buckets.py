"""A bucket in memory."""

import contextlib
import threading

from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import register_implementation


class Bucket(MemoryFileSystem):
    """Objects in memory under gs://. Like a bucket it has no empty folders."""

    protocol = ('gs', 'gcs')
    store: dict = {}  # noqa: RUF012 (not shared with MemoryFileSystem)
    pseudo_dirs: list = ['']  # noqa: RUF012
    creation = threading.Lock()  # atomic, as in a bucket

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix('gs://'))

    def mkdir(self, path, create_parents=True, **options):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def pipe_file(self, path, value, mode='overwrite', **options):
        with self.creation:
            super().pipe_file(path, value, mode, **options)


@contextlib.contextmanager
def served():
    """Serves gs:// from memory, without the extra gs and without a network."""
    register_implementation('gcs', Bucket, clobber=True)
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield
    finally:
        register_implementation('gcs', 'gcsfs.GCSFileSystem', clobber=True)
        backend.fsspec_backend._get_filesystem.cache_clear()
