"""A run's folder: whose it is, whether its run is finished, and what result.json says."""

import json
import os
import pathlib
import platform
import subprocess
from importlib.metadata import version

import jax
from ml_collections import ConfigDict

import lightpaff_jax
from lightpaff_jax import config
from lightpaff_jax.config import UserError

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def check(c: ConfigDict, folder: pathlib.Path) -> None:
    """Raises UserError if the folder holds a run with another configuration; names the keys."""
    if not (folder / 'checkpoints').is_dir() and not (folder / 'result.json').is_file():
        return  # an attempt that came to nothing
    changed = config.differences(config.read(folder), c)
    if changed:
        raise UserError(
            f'config.workdir = {c.workdir}: holds a run with another configuration '
            f'({"; ".join(changed)}); choose another workdir or remove it'
        )


def claim(c: ConfigDict, folder: pathlib.Path) -> None:
    """Makes the folder this run's: writes config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / 'config.json', config.to_json(c) + '\n')


def finished(c: ConfigDict, folder: pathlib.Path, identities: dict) -> dict | None:
    """result.json of a run that did `c.train.updates` and read, and was scored on, the same."""
    path = folder / 'result.json'
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f'{path}: must be JSON: {error}; remove it to score the run again'
        ) from error
    wanted = {'updates': c.train.updates, 'protocol': protocol(c), **identities}
    same = all(result.get(name, '') == value for name, value in wanted.items())
    return result if same else None


def protocol(c: ConfigDict) -> str:
    """How the scores were measured."""
    part = f', at most {c.eval.batches} batches of {c.eval.batch_size}' if c.eval.batches else ''
    length = c.data.length
    how = {
        'clm': f'disjoint blocks of {length} tokens',
        'mlm': f'{c.data.masked:.3g} of the tokens of disjoint blocks of {length}',
        'mass': f'a fragment of {c.data.fragment:.3g} of disjoint blocks of {length} tokens',
        'classify': f'every example once, at most {length} tokens of it',
        'seq2seq': f'the right target before each token, at most {c.data.target_length} tokens',
    }
    return how[c.objective] + part


def provenance() -> dict:
    """What ran where: hardware, versions, commit."""
    device = jax.devices()[0]
    cores = f'{os.cpu_count()} cores, {platform.machine()}'
    return {
        'hardware': f'{jax.device_count()} x {device.device_kind}, {cores}',
        'versions': {
            'lightpaff_jax': lightpaff_jax.__version__,
            'python': platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        'git_commit': git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, with -dirty where files differ; None outside a checkout."""
    root = pathlib.Path(lightpaff_jax.__file__).parents[1]

    def git(*words: str) -> str:
        command = ['git', '-C', str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != root.resolve():
            return None  # installed inside of somebody's checkout
        dirty = '-dirty' if git('status', '--porcelain', '--untracked-files=no') else ''
        return git('rev-parse', '--short=12', 'HEAD') + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file that is whole whenever it is there: beside its place, then renamed."""
    if jax.process_index() == 0:
        part = path.with_name(path.name + '.part')
        part.write_text(text)
        part.replace(path)
