"""Prepared datasets: found in the cache, opened from a folder, or built, also by a command."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags, memory, validate
from lightpaff_jax.data import records, sources, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.prepared import build, compatibility, shards
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer, selection
from lightpaff_jax.errors import Unfinished, UserError, nearest, one_line
from lightpaff_jax.runtime import lock, storage

_LOG = logging.getLogger('lightpaff_jax')


def prepare(c: ConfigDict, tokenizer: Tokenizer) -> Dataset | Mixture:
    """Returns the dataset of `config.data`; it is built at the first call and then kept in the cache.

    For clm, mlm and mass, the documents of a split are one stream that is cut into blocks, or rows
    of whole documents (`config.data.packing`). For classify and seq2seq, each example is a record;
    every call logs the number of truncated examples.

    If several processes of one machine need a dataset, one builds it and the others wait. If it is
    killed, the next process resumes after the finished shards.

    Raises:
      UserError: a split has no example; the tokenizer lacks a special id that the objective needs;
        a label is not a class; pairs for a network of one token type; a text is too long and
        `config.data.long_text` is 'error'; for the source 'prepared', the folder is missing or was
        prepared with other settings.
      Unfinished: the dataset cannot be written.
    """
    if not config.SOURCES[c.data.source].has_parts:
        return _prepare_dataset(c, tokenizer)
    parts, weights = zip(*sources.parts(c), strict=True)
    return Mixture(tuple(_prepare_dataset(part, tokenizer) for part in parts), weights)


def _prepare_dataset(c: ConfigDict, tokenizer: Tokenizer) -> Dataset:
    compatibility.check_tokenizer(c, tokenizer)
    has_text = config.SOURCES[c.data.source].has_text
    prepared = _open_or_build(c, tokenizer) if has_text else _open_prepared(c, tokenizer)
    compatibility.check_examples(c, prepared)
    return prepared


def _open_prepared(c: ConfigDict, tokenizer: Tokenizer) -> Dataset:
    folder = storage.local_folder('config.data.path = ', c.data.path)
    if not c.data.path or not folder.is_dir():
        raise UserError(
            f'config.data.path = {c.data.path!r}: must be a folder for source {c.data.source!r}'
        )
    prepared = Dataset.open(folder)
    compatibility.check_settings(c, tokenizer, prepared)
    return prepared


def _open_or_build(c: ConfigDict, tokenizer: Tokenizer) -> Dataset:
    cache = storage.local_folder('config.data.cache = ', c.data.cache)
    identity = build.identity(c, tokenizer)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / 'prepared' / f'{c.data.source}-{digest}'
    if folder.exists():
        return Dataset.open(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.exclusive_lock(folder.with_name(f'{folder.name}.lock')))
        except OSError as error:
            raise UserError(
                f'config.data.cache: cannot write to {folder.parent}: {one_line(error)}'
            ) from error
        if not folder.exists():
            partial = folder.with_name(f'{folder.name}.partial')
            build.build(partial, c, tokenizer, identity)
            storage.commit(partial, folder)
    return Dataset.open(folder)


USAGE = """
python -m lightpaff_jax.data.prepare --source=NAME[:PATH] --tokenizer=PATH --out=DIR [OPTION ...]

Tokenizes the text of a source once, for any number of runs with
--config.data.source=prepared --config.data.path=DIR. If it is stopped, the same command resumes and
writes the same files. DIR then holds:
  manifest.json        origin of the ids, counts, hashes        tokenizer/   its tokenizer
  train-00000.array_record ..., validation-..., test-...        the ids

  --train-tokenizer=SIZE  instead of --tokenizer: trains a SentencePiece vocabulary on train first
  --workers=K             processes that tokenize; default: the number of cores
  --on-error=skip         skips malformed rows and counts them; default: stops at the first
  --shard-tokens=N        approximate number of ids per file; default: 16777216
  --config=FILE[:PRESET]  a recipe file to take all other keys from; default: config.default()
  --config.KEY=VALUE      any key: objective, data.length, data.packing, data.held_out, ...

Keys, defaults and units: lightpaff_jax/config/__init__.py
"""
_FLAGS = dict.fromkeys(('source', 'tokenizer', 'out', 'on-error'), '') | {
    'train-tokenizer': int,
    'workers': int,
    'shard-tokens': build.SHARD_TOKENS,
}
# Files that can exist before STATE does.
_FIRST_FILES = ('tokenizer', '.tokenizer', '.lock', records.STATE + storage.PART)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.execute(_run, USAGE, argv)


def _run(argv: Sequence[str]) -> None:
    words = flags.arguments(argv, _FLAGS)
    options = words.options
    for name in ('source', 'out'):
        if not options[name]:
            raise UserError(f'--{name}: must be given')
    if bool(options['tokenizer']) == (options['train_tokenizer'] is not None):
        raise UserError('one of --tokenizer=PATH and --train-tokenizer=SIZE must be given')
    for name in ('train_tokenizer', 'workers', 'shard_tokens'):
        if options[name] is not None and options[name] < 1:
            flag = name.replace('_', '-')
            raise UserError(f'--{flag}={options[name]}: must be a whole number above 0')
    out = storage.local_folder('--out=', options['out'])
    c, tokenizer = _configure(words)
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with lock.exclusive_lock(out / '.lock'):
        tokenizer = tokenizer or _train_tokenizer(c)
        compatibility.check_tokenizer(c, tokenizer)
        identity = build.identity(c, tokenizer)
        is_complete = _is_complete(out, identity | {'shard_tokens': options['shard_tokens']})
        _save_tokenizer(tokenizer, out, c.student.family)
        if not is_complete:
            build.build(out, c, tokenizer, identity, options['shard_tokens'])
    _print_summary(Dataset.open(out))


def _configure(words: flags.Arguments) -> tuple[ConfigDict, Tokenizer | None]:
    """Returns the configuration, checked, and the tokenizer of --tokenizer."""
    options, has_recipe = words.options, bool(words.spec)
    source, _, path = options['source'].partition(':')
    if source not in config.SOURCES:
        raise UserError(
            f'--source={options["source"]}: must be NAME:PATH with a NAME of '
            f'{", ".join(config.SOURCES)}{nearest(source, list(config.SOURCES))}'
        )
    c = flags.configuration(words, config.default())
    if any(key == 'tokenizer.reduce' for key, _ in words.changes):
        rule = 'is not read here; --tokenizer must be the reduced tokenizer, such as that of a run'
        raise UserError(f'config.tokenizer.reduce = {",".join(c.tokenizer.reduce)}: {rule}')
    c.data.source, c.data.path = source, path
    _check_tokenizer_path(c, options, has_recipe)
    is_set = any(key == 'data.workers' for key, _ in words.changes)
    default = c.data.workers == config.default().data.workers and not is_set
    c.data.workers = options['workers'] or (_cores() if default else c.data.workers)
    c.data.on_error = options['on_error'] or c.data.on_error
    c.tokenizer.path, c.tokenizer.reduce = options['tokenizer'], ()
    record = config.SOURCES[source]
    if record.has_parts or not record.has_text:
        rule = "must have text; of a mixture, prepare each part and mix 'prepared:DIR=WEIGHT'"
        raise UserError(f'--source={source}: {rule}')
    tokenizer = None
    if c.tokenizer.path:
        tokenizer = tokenizers.read(c.tokenizer.path, c.tokenizer.lowercase)
    if not has_recipe:
        c.student.vocab_size = tokenizer.vocab_size if tokenizer else c.student.vocab_size
        _fit_network(c)
    if tokenizer is None:
        c.student.vocab_size = options['train_tokenizer']
    validate.validate(c)
    memory.check_host(c)
    validate.check_paths(c, runs=False)
    sources.check(c)
    return c, tokenizer


def _check_tokenizer_path(c: ConfigDict, options: Mapping[str, Any], has_recipe: bool) -> None:
    """Raises UserError if a key names another tokenizer than the flags: it would be ignored.

    With --tokenizer, the tokenizer of a recipe file is only the default of its runs, and it is not
    reduced.
    """
    path, flag = c.tokenizer.path, 'tokenizer' if options['tokenizer'] else 'train-tokenizer'
    if path and path != options['tokenizer'] and not (has_recipe and options['tokenizer']):
        raise UserError(
            f'--{flag}={options[flag.replace("-", "_")]}: config.tokenizer.path = {path} names '
            'another tokenizer, must be one of both'
        )


def _fit_network(c: ConfigDict) -> None:
    """Changes the default network to one that can read the dataset, so that `c` is valid."""
    if c.objective not in config.OBJECTIVES:
        return  # validation reports it
    objective = config.OBJECTIVES[c.objective]
    c.student.family = objective.families[0]
    c.student.positions = max(c.student.positions, c.data.length, c.data.target_length)
    c.student.decoder_layers = c.student.layers if c.student.family == 'mass' else 0
    c.student.head = objective.head
    if objective.example_type == 'classes':
        sources.check(c)
        c.student.classes = sources.classes(c)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _train_tokenizer(c: ConfigDict) -> Tokenizer:
    c = config.copy(c)
    c.teacher.path, c.student.init = '', config.STARTS[0]
    return selection.load(c)


def _check_folder(out: pathlib.Path) -> None:
    """Raises UserError if the path is not a folder, or has other files than a dataset."""
    if out.exists() and not out.is_dir():
        raise UserError(f'--out={out}: must be a folder')
    if (out / records.STATE).exists() or (out / records.MANIFEST).exists():
        return
    others = sorted(path.name for path in out.glob('*') if path.name not in _FIRST_FILES)
    if others:
        raise UserError(
            f'--out={out}: must be empty or hold a dataset of this command, has {others[0]}'
        )


def _is_complete(out: pathlib.Path, identity: dict[str, Any]) -> bool:
    """Returns whether the folder holds the complete dataset.

    Raises:
      UserError: it holds another dataset, or one whose files are damaged.
    """
    if not (out / records.MANIFEST).is_file():
        return False
    prepared = Dataset.open(out)
    changes = shards.differences(
        {key: prepared.manifest.get(key) for key in identity}, json.loads(json.dumps(identity))
    )
    if changes:
        raise UserError(
            f'--out={out}: holds another dataset ({changes}): remove it, or choose another folder'
        )
    for split in prepared.manifest['splits']:
        split_records = prepared.records(split)
        if prepared.record_type == 'examples':
            split_records.lengths()
    (out / records.STATE).unlink(missing_ok=True)  # left if killed after writing the manifest
    print(f'{out}: is prepared already')
    return True


def _save_tokenizer(tokenizer: Tokenizer, out: pathlib.Path, family: str) -> None:
    """Saves the tokenizer next to the ids, so that a run needs only this folder."""
    folder, part = out / 'tokenizer', out / '.tokenizer'
    if folder.exists():
        fingerprint = tokenizers.read(str(folder)).fingerprint
        if fingerprint != tokenizer.fingerprint:
            raise UserError(
                f'{folder}: is tokenizer {fingerprint}, not {tokenizer.fingerprint}: remove {out}, '
                'or choose another folder'
            )
        return
    shutil.rmtree(part, ignore_errors=True)
    try:
        tokenizer.save(part, family)
    except UserError as error:
        _LOG.info(f'{folder}: no copy of the tokenizer is kept: {error}')
        return
    except Exception as error:  # `tokenizers` raises no narrower class if the disk is full
        raise Unfinished(
            f'{folder}: cannot be written: {one_line(error)}; the same command resumes'
        ) from error
    storage.commit(part, folder)


def _print_summary(prepared: Dataset) -> None:
    unit = 'examples' if prepared.record_type == 'examples' else 'documents'
    for split in sources.SPLITS:
        stats = prepared.split(split)
        counts = [f'{stats[name]:,} {name}' for name in (unit, 'words', 'tokens', 'records')]
        line = f'{split}: {", ".join(counts)}, {len(stats["shards"])} shards'
        if prepared.record_type == 'packed':
            line += f', rows {stats["fill"]:.1%} full'
        if stats['skipped']:
            line += f', {stats["skipped"]:,} malformed rows skipped'
        print(line)
    print(f'{prepared.path}: hash {prepared.hash}')


if __name__ == '__main__':
    sys.exit(main())
