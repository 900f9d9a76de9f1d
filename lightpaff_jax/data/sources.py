"""SOURCES: where the documents come from. `config.data.source` names one.

The source `prepared` is not in the table: its folder is read by prepare.py, no document is.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import pydocs as pydocs_lib

SPLITS = pydocs_lib.SPLITS


def pydocs(c: ConfigDict, split: str) -> Iterator[str]:
    """Documents of `config.data.packages` (all if empty), in the order of package and path.

    Raises:
      UserError: a package that is not in the corpus, or no document in this split.
    """
    packages = _packages(c)
    builder = pydocs_lib.opened(c.data.cache)
    empty = True
    for example in builder.as_data_source(split):
        if not packages or example['package'].decode() in packages:
            empty = False
            yield example['text'].decode()
    if empty:
        raise config.UserError(
            f'config.data.packages = {tuple(c.data.packages)}: empty corpus, '
            f'no document of pydocs in split {split!r}'
        )


def pydocs_identity(c: ConfigDict) -> dict:
    """All that the documents of `pydocs` depend on, as JSON values."""
    metadata = pydocs_lib.opened(c.data.cache).info.metadata
    return {
        'packages': _packages(c),
        'digest': metadata['digest'],
        'versions': dict(metadata['versions']),
    }


def _packages(c: ConfigDict) -> list[str]:
    for name in c.data.packages:
        if name not in pydocs_lib.PACKAGES:
            raise config.UserError(
                f'config.data.packages = {tuple(c.data.packages)}: {name!r} must be one of '
                f'{", ".join(pydocs_lib.PACKAGES)}{config.nearest(name, list(pydocs_lib.PACKAGES))}'
            )
    return sorted(set(c.data.packages))


# Name -> documents of one split, as (c, split) -> iterator of texts.
SOURCES = {'pydocs': pydocs}
# Name -> what those depend on; two configurations with equal ones have equal documents.
IDENTITIES = {'pydocs': pydocs_identity}
