"""Checks that a run, its tokenizer and its prepared dataset fit together."""

import logging

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import objectives, sources
from lightpaff_jax.data.prepared import build
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError

_LOG = logging.getLogger('lightpaff_jax')


def check_tokenizer(c: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises UserError if the tokenizer lacks a special id that the objective needs."""
    for name in objectives.OBJECTIVES[c.objective].required_ids:
        if getattr(tokenizer, name) is None:
            token = {'mask_id': '[MASK]', 'cls_id': '[CLS]', 'sep_id': '[SEP]'}.get(name, name)
            raise UserError(
                f'config.objective = {c.objective!r}: needs a tokenizer with a {token} token, '
                f'{tokenizer.path} has none'
            )
    if c.data.augment_mask and tokenizer.mask_id is None:
        raise UserError(
            f'config.data.augment_mask = {c.data.augment_mask}: needs a tokenizer with a [MASK] '
            f'token, {tokenizer.path} has none'
        )


def check_settings(c: ConfigDict, tokenizer: Tokenizer, prepared: Dataset) -> None:
    """Raises UserError if the dataset was prepared for another tokenizer, objective or length."""
    manifest = prepared.manifest
    if manifest['vocabulary'] != build.settings(c, tokenizer)['vocabulary']:
        raise UserError(
            f'config.data.path = {c.data.path}: was prepared with tokenizer '
            f'{manifest["vocabulary"]["hash"]}, this run has tokenizer {tokenizer.fingerprint} '
            f'({tokenizer.path})'
        )
    length, target_length = manifest['lengths']
    for key, prepared_value in {
        'data.length': length,
        'data.target_length': target_length,
        'objective': manifest['objective'],
        'data.packing': manifest['packing'],
    }.items():
        value = config.flatten(c)[key]
        if value != prepared_value:
            raise UserError(
                f'config.{key} = {value!r}: must equal the {prepared_value!r} that {c.data.path} '
                'was prepared with'
            )


def check_examples(c: ConfigDict, prepared: Dataset) -> None:
    """Checks the examples of all splits, and logs the number of truncated ones.

    Raises:
      UserError: the network cannot read an example, or `config.data.long_text` forbids its length.
    """
    if prepared.record_type == 'examples':
        _check_pairs(c, prepared)
        for split in sources.SPLITS:
            if config.OBJECTIVES[c.objective].example_type == 'classes':
                _check_classes(c, prepared, split)
            _check_lengths(c, prepared, split)


def _check_classes(c: ConfigDict, prepared: Dataset, split: str) -> None:
    stats = prepared.split(split)
    if stats['pairs'] and c.student.type_vocab_size < 2:
        raise UserError(
            f'config.student.type_vocab_size = {c.student.type_vocab_size}: must be at least 2, '
            f'{stats["pairs"]} examples of split {split!r} have two texts'
        )
    allowed = range(-1 if c.data.unlabelled and split == 'train' else 0, c.student.classes)
    if all(label in allowed for label in stats['labels']):
        return
    records = prepared.records(split)
    labels = ((i, record.label) for i in range(len(records)) for record in records.read([i]))
    example, label = next(((i, x) for i, x in labels if x not in allowed), (None, None))
    if example is None:
        raise UserError(f'{prepared.path}: no example of {split!r} has the labels of the manifest')
    raise UserError(
        f'config.student.classes = {c.student.classes}: example {example} of split {split!r} has '
        f'label {label}, must be at least 0 and below {c.student.classes}'
    )


def _check_pairs(c: ConfigDict, prepared: Dataset) -> None:
    if c.data.augment_pairs and not prepared.split('train')['pairs']:
        raise UserError(
            f'config.data.augment_pairs = {c.data.augment_pairs}: requires pairs, the examples of '
            f'{c.data.path} have one text'
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
        f'{prepared.manifest["source"]} {split}: {stats["truncated"]} of {stats["examples"]} '
        f'examples cut to {c.data.length} tokens{target}'
    )
