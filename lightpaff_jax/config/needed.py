"""The paths that a run needs: what must be there."""

import pathlib

from ml_collections import ConfigDict

from lightpaff_jax.config import SOURCES, STARTS
from lightpaff_jax.errors import MissingPaths, UserError


def check_folder(c: ConfigDict) -> None:
    """Raises MissingPaths, which says what must be there, if `config.data.path` is nowhere."""
    layout, path = SOURCES[c.data.source].layout, c.data.path
    if layout and '://' not in path and not pathlib.Path(path).expanduser().exists():
        raise MissingPaths(f'{path}: no such path, put {layout} there')


def check_paths(c: ConfigDict, runs: bool = True) -> None:
    """Raises MissingPaths that names every path a run needs and does not find.

    Args:
      c: the run's configuration.
      runs: whether the runs that it starts from must be there already.
    """
    source = SOURCES[c.data.source]
    if not c.data.path and 'path' in source.keys:
        raise UserError(
            f"config.data.path = '': must be {source.path} for source {c.data.source!r}"
        )
    run_of = 'the workdir of a finished run, or a folder with config.json and model.safetensors'
    paths = [
        ('teacher.path', c.teacher.path, run_of),
        ('student.init', '' if c.student.init in STARTS else c.student.init, run_of),
        ('data.path', c.data.path, source.layout),
        ('tokenizer.path', c.tokenizer.path, 'a tokenizer'),
        ('tokenizer.text', c.tokenizer.text, 'a folder with train.txt, validation.txt and test.txt'),
    ]  # fmt: skip
    missing = [
        f'config.{key} = {path}: no such path, put {what} there'
        for key, path, what in paths
        if path
        and what
        and (runs or what != run_of)
        and '://' not in path
        and not pathlib.Path(path).expanduser().exists()
    ]
    if missing:
        raise MissingPaths('; '.join(missing))
