"""Whether a run, its tokenizer and a prepared set fit together."""

import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import objectives, records, sources
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

_LOG = logging.getLogger('lightpaff_jax')


def cut(c: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How examples become records, as JSON values."""
    special = {
        name: getattr(tokenizer, name) for name in objectives.OBJECTIVES[c.objective].required_ids
    }
    return {
        'objective': c.objective,
        'packing': c.data.packing,
        'lengths': [c.data.length, c.data.target_length],
        'vocabulary': {'hash': tokenizer.fingerprint, 'size': tokenizer.vocab_size, **special},
    }


def given(c: ConfigDict, tokenizer: Tokenizer) -> Dataset:
    """The set of the source 'prepared'.

    Raises:
      UserError: there is none, or it is in a bucket, or was made for something else.
    """
    folder = storage.local_folder('config.data.path = ', c.data.path)
    if not c.data.path or not folder.is_dir():
        raise UserError(
            f'config.data.path = {c.data.path!r}: must be a folder for source {c.data.source!r}'
        )
    prepared, wanted = opened(folder), cut(c, tokenizer)
    made = prepared.manifest
    if made['vocabulary'] != wanted['vocabulary']:
        raise UserError(
            f'config.data.path = {c.data.path}: was prepared with tokenizer '
            f'{made["vocabulary"]["hash"]}, this run has tokenizer {tokenizer.fingerprint} '
            f'({tokenizer.path})'
        )
    was = dict(zip(('data.length', 'data.target_length'), made['lengths'], strict=True))
    was |= {'objective': made['objective'], 'data.packing': made['packing']}
    for key, value in was.items():
        own = config.flatten(c)[key]
        if own != value:
            raise UserError(
                f'config.{key} = {own!r}: must equal the {value!r} that {c.data.path} was '
                'prepared with'
            )
    return prepared


def opened(folder: pathlib.Path) -> Dataset:
    """The set in a folder; raises UserError where there is none that this version reads."""
    return Dataset(str(folder), records.read_manifest(folder))


def check_tokenizer(c: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises UserError for a tokenizer without a special id that the objective needs."""
    for name in objectives.OBJECTIVES[c.objective].required_ids:
        if getattr(tokenizer, name) is None:
            token = {'mask_id': '[MASK]', 'cls_id': '[CLS]', 'sep_id': '[SEP]'}.get(name, name)
            raise UserError(
                f'config.objective = {c.objective!r}: needs a tokenizer with a {token} token, '
                f'{tokenizer.path} has none'
            )


def check(c: ConfigDict, prepared: Dataset) -> None:
    """Raises UserError for examples that the network, or `config.data.long_text`, refuses.

    Says in the log how many were cut.
    """
    if prepared.record_type == 'examples':
        for split in sources.SPLITS:
            _check_pairs(c, prepared, split)
            _check_labels(c, prepared, split)
            _check_lengths(c, prepared, split)


def _check_pairs(c: ConfigDict, prepared: Dataset, split: str) -> None:
    pairs = prepared.split(split)['pairs']
    learns_classes = config.OBJECTIVES[c.objective].example_type == 'classes'
    if learns_classes and pairs and c.student.type_vocab_size < 2:
        raise UserError(
            f'config.student.type_vocab_size = {c.student.type_vocab_size}: must be at least 2, {pairs} examples of '
            f'split {split!r} have two texts'
        )


def _check_labels(c: ConfigDict, prepared: Dataset, split: str) -> None:
    """Raises UserError for a label that is no class; only classes have labels."""
    low, high = prepared.split(split)['labels']
    classes, least = c.student.classes, -1 if c.data.unlabelled and split == 'train' else 0
    learns_classes = config.OBJECTIVES[c.objective].example_type == 'classes'
    if not learns_classes or least <= low <= high < classes:
        return
    found = prepared.records(split)
    labels = ((i, found[i].label) for i in range(len(found)))
    example, label = next((i, label) for i, label in labels if not least <= label < classes)
    raise UserError(
        f'config.student.classes = {classes}: example {example} of split {split!r} has label '
        f'{label}, must be at least 0 and below {classes}'
    )


def _check_lengths(c: ConfigDict, prepared: Dataset, split: str) -> None:
    stats = prepared.split(split)
    if not stats['truncated']:
        return
    if c.data.long_text == 'error':
        example, length, limit = stats['too_long']
        raise UserError(
            f"config.data.long_text = 'error': example {example} of split {split!r} has {length} "
            f'tokens, must have at most {limit}'
        )
    target = f' and {c.data.target_length} of the target' if c.data.target_length else ''
    _LOG.info(
        '%s %s: %d of %d examples cut to %d tokens%s',
        prepared.manifest['source'], split, stats['truncated'], stats['examples'], c.data.length,
        target,
    )  # fmt: skip
