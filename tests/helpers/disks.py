"""A full disk, without the right to mount one."""

import contextlib
import resource


@contextlib.contextmanager
def small_files(size):
    """Lets no file grow above `size` bytes; writing then fails with an error of the system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
