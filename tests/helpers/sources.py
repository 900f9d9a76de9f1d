"""Helpers for the tests of sources: small configurations, files, and error messages."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError

OBJECTIVES = {'documents': 'clm', 'classes': 'classify', 'targets': 'seq2seq'}


def make_config(
    source: str, path: str | pathlib.Path = '', example_type: str | None = None, **keys: Any
) -> ConfigDict:
    """Returns a configuration of a source, with an objective for its example type or for `example_type`."""
    c = config.default()
    c.data.source, c.data.path = source, str(path)
    for key, value in keys.items():
        c.data[key] = value
    c.objective = OBJECTIVES[example_type or config.example_type(c)]
    return c


def read_texts(c: ConfigDict, split: str = 'train') -> list[str]:
    """Returns the first texts of a split."""
    return [example.first for example in sources.examples(c, split)]


def write_files(folder: pathlib.Path, **contents: str | bytes) -> pathlib.Path:
    """Writes files of text or bytes, whose names have `_` for their last dot; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(folder / '.'.join(name.rsplit('_', 1)), content)
    return folder


def write_file(file: pathlib.Path, content: str | bytes) -> None:
    """Writes text or bytes, and creates the folder if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def read_error(c: ConfigDict, split: str = 'train') -> str:
    """Returns the message, of one line, of the error that reading a split raises."""
    with pytest.raises(UserError) as caught:
        list(sources.examples(c, split))
    line = str(caught.value)
    assert '\n' not in line
    return line


def check_error(c: ConfigDict) -> str:
    """Returns the message, of one line, of the error that `sources.check` raises."""
    with pytest.raises(UserError) as caught:
        sources.check(c)
    line = str(caught.value)
    assert '\n' not in line
    return line
