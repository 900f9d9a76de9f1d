"""A run's folder: whose it is, whether its run is finished, and what result.json says.

It may be in a bucket. Process 0 alone reads and writes here, what it finds all are told: so no
process can see a file that another one is about to write. All processes make every call.
"""

import json
import os
import pathlib
import platform
import subprocess
from importlib.metadata import version
from typing import Any

import jax
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import distributed, storage
from lightpaff_jax.version import __version__

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def folder(c: ConfigDict) -> Any:
    """The folder of `config.workdir`.

    Raises:
      UserError: its bucket cannot be reached.
    """
    storage.check_reachable(c.workdir)
    return storage.to_path(c.workdir)


def check_unchanged(c: ConfigDict, folder: pathlib.Path) -> None:
    """Raises UserError if the folder holds a run with another configuration; names the keys."""

    def changed() -> list[str]:
        with storage.translate_errors(folder):
            if not (folder / 'checkpoints').is_dir() and not (folder / 'result.json').is_file():
                return []  # an attempt that came to nothing
            return config.differences(config.read(folder), c)

    found = distributed.broadcast_from_primary(changed)
    if found:
        raise UserError(
            f'config.workdir = {c.workdir}: holds a run with another configuration '
            f'({"; ".join(found)}); choose another workdir or remove it'
        )


def write_config(c: ConfigDict, folder: pathlib.Path) -> None:
    """Makes the folder this run's: writes config.json."""
    write_text(folder / 'config.json', config.to_json(c) + '\n')


def completed_result(c: ConfigDict, folder: pathlib.Path, identities: dict) -> dict | None:
    """result.json of a run that did `c.train.updates` and read, and was scored on, the same.

    Splits that are asked for now may be missing in it, see `unscored`.

    Raises:
      UserError: the file is no JSON; or a process has other identities than process 0.
    """
    distributed.assert_equal(identities, 'all processes must read the same')
    return distributed.broadcast_from_primary(
        lambda: _finished(c, folder / 'result.json', identities)
    )


def _finished(c: ConfigDict, path: pathlib.Path, identities: dict) -> dict | None:
    with storage.translate_errors(path):
        if not path.is_file():
            return None
        text = path.read_bytes()
    try:
        result = json.loads(text)
        if not isinstance(result, dict):
            raise ValueError('it is no object')
    except ValueError as error:
        raise UserError(
            f'{path}: must be JSON: {error}; remove it to score the run again'
        ) from error
    wanted = {'updates': c.train.updates, 'protocol': protocol(c), **task_keys(c), **identities}
    return result if all(result.get(name, '') == value for name, value in wanted.items()) else None


def missing_splits(c: ConfigDict, scores: dict) -> list[str]:
    """Splits that are to be scored and have no score of the metric in `scores`."""
    return [name for name in splits(c) if task_keys(c)['metric'] not in scores.get(name, ())]


def splits(c: ConfigDict) -> tuple[str, ...]:
    """The splits that the end of a run scores."""
    return ('validation', 'test') if c.eval.test else ('validation',)


def task_keys(c: ConfigDict) -> dict[str, str]:
    """What was learnt and what runs of it are compared by, as result.json says it."""
    metric = c.eval.metric or config.OBJECTIVES[c.objective].metrics[0]
    return {'task': c.task, 'objective': c.objective, 'metric': metric}


def protocol(c: ConfigDict) -> str:
    """How the scores were measured."""
    part = f', at most {c.eval.batches} batches of {c.eval.batch_size}' if c.eval.batches else ''
    length = c.data.length
    blocks = f'disjoint blocks of {length} tokens'
    if c.data.packing == 'best_fit':
        blocks = f'whole documents, cut at {length} tokens'
    if 0 < c.eval.stride < length:
        blocks = f'windows of {length} tokens, one every {c.eval.stride}, each token scored once'
    if c.data.detokenize != 'none':
        part = f', text as before the word tokenization of {c.data.detokenize}{part}'
    how = config.OBJECTIVES[c.objective].protocol.format(blocks=blocks, **c.data)
    return how + part + _writing(c)


def _writing(c: ConfigDict) -> str:
    """How texts were written and compared, where the metric is one of these."""
    metric, g = task_keys(c)['metric'], c.generate
    if metric not in config.GENERATION_METRICS:
        return ''
    how = 'the most probable token each'
    if g.beams > 1:
        ends = 'ending early' if g.early_stop else 'ending late'
        how = f'beam search of {g.beams}, length penalty {g.length_penalty:g}, {ends}'
    longest = g.max_length or c.data.target_length
    scored = 'BLEU of sacrebleu'
    if metric != 'bleu':
        scored = 'ROUGE F of rouge-score, words stemmed'
    ids = '' if config.SOURCES[c.data.source].has_text else ' that is decoded ids'
    return (
        f'; texts written: {how}, {g.min_length} to {longest} tokens; {scored} against the whole '
        f'target{ids}'
    )


def provenance(devices: int) -> dict:
    """What ran where: hardware, with as many devices as were used, versions, commit."""
    device = jax.devices()[0]
    cores = f'{os.cpu_count()} cores, {platform.machine()}'
    return {
        'hardware': f'{devices} x {device.device_kind}, {cores}',
        'processes': distributed.process_count(),
        'versions': {
            'lightpaff_jax': __version__,
            'python': platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        'git_commit': git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, with -dirty where files differ; None outside a checkout."""
    root = pathlib.Path(__file__).parents[1]

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


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file on process 0; returns on every process when the file is complete."""
    distributed.broadcast_from_primary(lambda: storage.write_text(path, text))


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON file on process 0; returns on every process when the file is complete."""
    distributed.broadcast_from_primary(lambda: storage.write_json(path, value))


def remove(path: pathlib.Path) -> None:
    """Process 0 removes a file that may be there."""
    if distributed.is_primary():
        with storage.translate_errors(path):
            path.unlink(missing_ok=True)
