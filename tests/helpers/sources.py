"""What tests of the sources share: small configurations, and what they read."""

import pytest

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError

OBJECTIVES = {'documents': 'clm', 'classes': 'classify', 'targets': 'seq2seq'}


def configured(source, path='', kind=None, **keys):
    """A configuration of a source whose objective learns from its kind, or from `kind`."""
    c = config.default()
    c.data.source, c.data.path = source, str(path)
    for key, value in keys.items():
        c.data[key] = value
    c.objective = OBJECTIVES[kind or config.kind(c)]
    return c


def texts(c, split='train'):
    """The first texts of a split."""
    return [example.first for example in sources.examples(c, split)]


def write(folder, **contents):
    """Files of a folder: name, with _ for its last dot, and text or bytes. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        put(folder / '.'.join(name.rsplit('_', 1)), content)
    return folder


def put(file, content):
    """Writes text or bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def mistake(c, split='train'):
    """The line of the error that reading a split gives."""
    with pytest.raises(UserError) as caught:
        list(sources.examples(c, split))
    line = str(caught.value)
    assert '\n' not in line
    return line


def mistake_of_check(c):
    """The line of the error that `check` gives."""
    with pytest.raises(UserError) as caught:
        sources.check(c)
    line = str(caught.value)
    assert '\n' not in line
    return line
