"""A lease on a folder in a bucket: one process holds it for a limited time, and renews it.

A bucket has one atomic operation, the creation of an object that does not exist. So the leases of a
folder are the objects `.lock/1`, `.lock/2`, ... and the newest one counts. A process that finds it
released or expired creates the next one; of several processes one succeeds. The newest is never
removed, so a slow process cannot create it again.
"""

import contextlib
import json
import threading
import time
import uuid
from typing import Any, Self

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import json_file

RENEW, EXPIRE = 30.0, 120.0  # seconds
_held: list['Lease'] = []


def acquire(folder: str, holder: dict[str, Any]) -> 'Lease | dict[str, Any]':
    """Takes the lease of a folder, or returns the record of its holder.

    Args:
      folder: the folder.
      holder: describes this process.
    """
    import fsspec

    # Without a cache, as other machines change the listing.
    bucket = fsspec.filesystem('gcs', use_listings_cache=False)
    lease = Lease(bucket, folder, holder)
    while True:
        numbers = lease.numbers()
        newest = lease.read(max(numbers)) if numbers else {}
        if newest is None:
            continue  # replaced between the two calls
        if newest.get('expires', 0.0) > time.time():
            return newest
        if lease.create(max(numbers, default=0) + 1):
            return lease


def check(path: Any) -> None:
    """Raises UserError if this process has lost the lease of a folder that is or contains `path`."""
    for lease in _held:
        if f'{path}/'.startswith(f'{lease.folder}/'):
            lease.check()


class Lease:
    """A lease of this process; a context that renews it in a thread and releases it at its end."""

    def __init__(self, bucket: Any, folder: str, holder: dict[str, Any]):
        self.folder = folder
        self._bucket, self._record = bucket, {'id': uuid.uuid4().hex, **holder}
        self._number = 0
        self._expires = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def numbers(self) -> list[int]:
        """Returns the numbers of the folder's leases."""
        try:
            paths = self._bucket.ls(f'{self.folder}/.lock', detail=False)
        except FileNotFoundError:
            return []
        return [int(name) for path in paths if (name := path.rpartition('/')[2]).isdecimal()]

    def read(self, number: int) -> dict[str, Any] | None:
        """Returns a record, or None if it does not exist."""
        try:
            data = self._bucket.cat_file(self._path(number))
        except FileNotFoundError:
            return None
        return json_file.parse(data, {'id': str, 'expires': float}, self._path(number))

    def create(self, number: int) -> bool:
        """Returns whether this process has created the record and holds the lease."""
        with contextlib.suppress(FileExistsError):
            self._write(number, 'create', time.time() + EXPIRE)
        # A retried request fails on the object that its first try created, so compare the id. The
        # number is too old if a newer lease was created, and this number removed, since `numbers`.
        record, numbers = self.read(number), self.numbers()
        if record is None or record['id'] != self._record['id']:
            return False
        if max(numbers) > number:
            self._bucket.rm_file(self._path(number))
            return False
        self._number, self._expires = number, record['expires']
        for old in numbers:
            if old < number:
                with contextlib.suppress(FileNotFoundError):
                    self._bucket.rm_file(self._path(old))
        return True

    def check(self) -> None:
        """Raises UserError if the lease has expired, as another process may hold it now."""
        if time.time() >= self._expires:
            raise UserError(
                f'{self.folder}: its lease has expired, because the bucket did not answer for '
                f'{EXPIRE:.0f} s or another process took it; the same command resumes'
            )

    def __enter__(self) -> Self:
        _held.append(self)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()
        _held.remove(self)
        if time.time() < self._expires:
            self._expires = 0.0
            with contextlib.suppress(Exception):  # it expires by itself
                self._write(self._number, 'overwrite', 0.0)

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW) and time.time() < self._expires:
            with contextlib.suppress(Exception):  # tried again until it expires
                is_newest = max(self.numbers()) == self._number
                expires = time.time() + EXPIRE
                self._write(self._number, 'overwrite', expires)
                # If this process was paused, the lease may have expired before this write.
                in_time = is_newest and time.time() < self._expires
                self._expires = expires if in_time else 0.0

    def _write(self, number: int, mode: str, expires: float) -> None:
        text = json.dumps(self._record | {'expires': expires})
        self._bucket.pipe_file(self._path(number), text.encode(), mode=mode)

    def _path(self, number: int) -> str:
        return f'{self.folder}/.lock/{number}'
