"""The workdir of a run: its configuration, its result, and how its scores were measured.

The workdir may be in a bucket. Only process 0 reads and writes it and sends the others the answer,
so that no process sees a file that another one is about to write. All processes make every call.
"""

import contextlib
import functools
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError
from lightpaff_jax.models import decoding
from lightpaff_jax.runtime import distributed, json_file, lock, storage
from lightpaff_jax.version import __version__

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_RESULT = {
    'metric': str,
    'updates': int,
    'validations_since_best?': int,
    'scores': {str: {str: float | str | None}},
}


def folder(c: ConfigDict) -> Any:
    """Returns the path of `config.workdir`; raises UserError if its bucket does not answer."""
    storage.check_reachable(c.workdir)
    return storage.to_path(c.workdir)


@contextlib.contextmanager
def held(folder: Any, at_once: bool = True) -> Iterator[Callable[[], None]]:
    """Holds a folder, which only one run may write, until the end of this context.

    Args:
      folder: the workdir; created if it does not exist.
      at_once: False holds it when the yielded function is called.

    Raises:
      UserError: another run holds it, or it cannot be locked.
    """
    with contextlib.ExitStack() as stack:

        @functools.cache
        def hold() -> None:
            distributed.broadcast_from_primary(lambda: stack.enter_context(lock.hold(folder)))

        if at_once:
            hold()
        yield hold


def has_result(folder: pathlib.Path) -> bool:
    """Returns whether a run has ended in the folder."""
    return distributed.broadcast_from_primary((folder / 'result.json').exists)


def check_unchanged(c: ConfigDict, folder: pathlib.Path) -> None:
    """Raises UserError with the keys that differ if the folder holds another run."""

    def compare() -> list[str]:
        with storage.translate_errors(folder):
            if not (folder / 'checkpoints').is_dir() and not (folder / 'result.json').is_file():
                return []  # a run that ended before its first checkpoint
            return config.differences(config.read(folder), c)

    differences = distributed.broadcast_from_primary(compare)
    if differences:
        raise UserError(
            f'config.workdir = {c.workdir}: holds a run with another configuration '
            f'({"; ".join(differences)}); choose another workdir or remove it'
        )


def check_saved_config(c: ConfigDict, meta: dict, directory: pathlib.Path) -> None:
    """Raises UserError with the keys that differ if a checkpoint has another configuration."""
    saved = config.from_dict(meta['config'], str(directory))
    if differences := config.differences(saved, c):
        raise UserError(
            f'{directory}: has another configuration than the config.json next to it '
            f'({"; ".join(differences)}); restore the file or remove the folder'
        )


def write_config(c: ConfigDict, folder: pathlib.Path) -> None:
    """Writes config.json, which makes the folder this run's workdir."""
    write_text(folder / 'config.json', config.to_json(c) + '\n')


def completed_result(c: ConfigDict, folder: pathlib.Path, fingerprints: dict) -> dict | None:
    """Returns result.json if it is the result of this configuration and these inputs, else None.

    It may lack splits that `c.eval` asks for, see `missing_splits`.

    Args:
      c: the run's configuration.
      folder: its workdir.
      fingerprints: of tokenizer, data, teacher and start, by their keys in result.json.

    Raises:
      UserError: the file is not a JSON object, or the processes have different fingerprints.
    """
    wanted = {**task_keys(c), **fingerprints}
    distributed.assert_equal(wanted, 'all processes must read the same')
    result = distributed.broadcast_from_primary(lambda: _read_result(folder / 'result.json'))
    if result is None:
        return None
    if 'class_names' not in result:  # of an earlier version
        wanted.pop('class_names', None)
    wanted['protocol'] = protocol(c)
    if any(result.get(key, '') != value for key, value in wanted.items()):
        return None
    stale = result.get('validations_since_best', 0)
    return result if has_ended(c, result['updates'], stale) else None


def has_ended(c: ConfigDict, updates: int, validations_since_best: int) -> bool:
    """Returns whether the last update has run, by `train.updates` or by `train.patience`."""
    is_early = 0 < c.train.patience <= validations_since_best
    return updates == c.train.updates or (is_early and updates < c.train.updates)


def _read_result(path: pathlib.Path) -> dict | None:
    with storage.translate_errors(path):
        if not path.exists():
            return None
    try:
        return json_file.read(path, _RESULT)
    except UserError as error:
        raise UserError(f'{error}; remove it to score the run again') from error


def missing_splits(c: ConfigDict, scores: dict) -> list[str]:
    """Returns the splits to score that have no score of the run's metric in `scores`."""
    return [name for name in splits(c) if metric(c) not in scores.get(name, ())]


def splits(c: ConfigDict) -> tuple[str, ...]:
    """Returns the splits that are scored at the end of a run."""
    return ('validation', 'test') if c.eval.test else ('validation',)


def task_keys(c: ConfigDict) -> dict[str, Any]:
    """Returns task, objective, metric and a classifier's class names, as in result.json.

    The trained network needs the names when its data is gone; they are [] if classes have none.
    """
    keys = {'task': c.task, 'objective': c.objective, 'metric': metric(c)}
    has_classes = c.student.head == 'classify'
    return keys | ({'class_names': list(sources.class_names(c))} if has_classes else {})


def metric(c: ConfigDict) -> str:
    """Returns the metric of a run: `config.eval.metric`, or the first one of its objective."""
    return c.eval.metric or config.OBJECTIVES[c.objective].metrics[0]


def protocol(c: ConfigDict, network_settings: Mapping[str, Any] | None = None) -> str:
    """Describes how the scores of a run are measured. Only equal protocols are compared.

    Args:
      c: the configuration of the run, or of its evaluation.
      network_settings: settings of generation that a Hugging Face folder brings; those that
        `config.generate` has too do not count. None for a network trained here.
    """
    length = c.data.length
    blocks = f'disjoint blocks of {length} tokens'
    if c.data.packing == 'best_fit':
        blocks = f'whole documents, cut at {length} tokens'
    if 0 < c.eval.stride < length:
        blocks = f'windows of {length} tokens, one every {c.eval.stride}, each token scored once'
    text = config.OBJECTIVES[c.objective].protocol.format(blocks=blocks, **c.data)
    if c.data.detokenize != 'none':
        text += f', text as before the word tokenization of {c.data.detokenize}'
    if metric(c) == 'f1' and c.data.labels:
        text += f', F1 of class {c.data.labels[1]}'
    if c.eval.batches:
        text += f', at most {c.eval.batches} batches of {c.eval.batch_size}'
    return text + _generation_protocol(c, network_settings or {})


def _generation_protocol(c: ConfigDict, network_settings: Mapping[str, Any]) -> str:
    name, g = metric(c), c.generate
    if name not in config.GENERATION_METRICS:
        return ''
    search = 'the most probable token each'
    if g.beams > 1:
        ends = 'ending early' if g.early_stop else 'ending late'
        search = f'beam search of {g.beams}, length penalty {g.length_penalty:g}, {ends}'
    longest = g.max_length or c.data.target_length
    defaults = decoding.Settings._field_defaults
    brought = ''.join(
        f', {name} {value}'
        for name, value in sorted(network_settings.items())
        if name not in (*g, *decoding.SAMPLING) and value != defaults[name]
    )
    is_default = c.eval.tokenize == config.TOKENIZE[0]
    words = '' if is_default else f', words by {c.eval.tokenize} of sacrebleu'
    stemmed = ', words stemmed' if is_default else ''
    scorer = 'BLEU of sacrebleu' if name == 'bleu' else f'ROUGE F of rouge-score{stemmed}'
    ids = '' if config.SOURCES[c.data.source].has_text else ' that is decoded ids'
    return (
        f'; texts written: {search}, {g.min_length} to {longest} tokens{brought}; {scorer}{words} '
        f'against the whole target{ids}'
    )


def provenance(devices: int) -> dict:
    """Returns hardware, with the number of devices that were used, versions and commit."""
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
    """Returns the commit of this code, with -dirty if files differ; None outside a checkout."""
    root = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != root.resolve():
            return None  # installed inside another checkout
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


def remove_scores(folder: pathlib.Path, name: str) -> None:
    """Removes the file of scores on process 0, then the predictions that it was computed from."""
    if distributed.is_primary():
        with storage.translate_errors(folder):
            for file in (name, 'predictions/validation.jsonl', 'predictions/test.jsonl'):
                (folder / file).unlink(missing_ok=True)
