"""Checks the configuration of a run once, in one order, before any device work."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import memory, validate
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import distributed, storage

if TYPE_CHECKING:
    import jax


def check(
    c: ConfigDict,
    *,
    runs: bool = True,
    files: bool = True,
    devices: 'Sequence[jax.Device] | None' = None,
) -> None:
    """Checks settings, paths, data, devices and the attention kernel, in this order.

    jax is imported after settings and paths, so that their mistakes are reported at once.

    Args:
      c: the configuration of one run.
      runs: whether the runs that it starts from must exist.
      files: whether to check paths and data.
      devices: the devices of the mesh; None takes all devices of this run, and an empty list skips
        the rules about devices.

    Raises:
      UserError: names the first mistake.
    """
    validate.validate(c)
    memory.check_host(c, distributed.process_count())
    if files:
        storage.check_reachable(c.workdir)
        if c.teacher.layers and not c.teacher.path:
            raise UserError(
                "config.teacher.path = '': must be the workdir of a run if config.teacher.layers is "
                'set; `python -m lightpaff_jax.recipe` trains a teacher of that shape'
            )
        validate.check_paths(c, runs)
        _check_data(c)
    distributed.sync_devices()
    import jax

    from lightpaff_jax import networks

    if devices is None:
        devices = jax.devices()
        memory.check_devices(c, device_memory())
    if devices:
        processes = len({device.process_index for device in devices})
        validate.check_devices(c, len(devices), processes)
        networks.kernel(c, 'student', c.student, devices[0].platform, c.student.dropout)


def device_memory() -> int:
    """Returns the bytes of memory of all devices of this run."""
    import jax

    if jax.default_backend() == 'cpu':
        return jax.process_count() * memory.host_memory()
    stats = jax.local_devices()[0].memory_stats() or {}
    return jax.device_count() * stats.get('bytes_limit', 2**62)


def _check_data(c: ConfigDict) -> None:
    from lightpaff_jax.data import sources
    from lightpaff_jax.data.tokenizers import selection

    sources.check(c)
    selection.check(c)
    if c.data.unlabelled and not c.teacher.path:
        raise UserError(
            f'config.data.unlabelled = {",".join(c.data.unlabelled)}: requires a teacher, whose '
            'predictions are its only targets'
        )
    if c.data.augment and not (c.data.augment_keep_labels or c.teacher.path):
        raise UserError(
            f'config.data.augment = {c.data.augment}: requires a teacher, which labels the changed '
            'rows, or config.data.augment_keep_labels'
        )
    has_classes = config.OBJECTIVES[c.objective].example_type == 'classes'
    classes = sources.classes(c) if has_classes else c.student.classes
    if classes != c.student.classes:
        raise UserError(
            f'config.student.classes = {c.student.classes}: must be {classes}, the number of classes '
            f'of source {c.data.source!r}'
        )
