"""OBJECTIVES: the functions of each objective, which turn records into arrays of a batch.

`config.objective` names an objective; `lightpaff_jax.config.objectives` holds its plain data.

Random choices depend only on (seed, epoch, record), so they are the same in every batch, in every
process and in every order of reading. BERT: Devlin et al., arXiv 1810.04805, section 3.1; MASS: Song
et al., arXiv 1905.02450, section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.batch import Shape
from lightpaff_jax.data.objectives import augmentation, collate, masking
from lightpaff_jax.data.objectives.collate import Arrays, Key
from lightpaff_jax.data.records import Record, is_padding
from lightpaff_jax.data.tokenizers import Tokenizer, truncated_lengths
from lightpaff_jax.errors import UserError


class BlockLayout(NamedTuple):
    """How the stream of all documents, each followed by a separator, is cut into blocks."""

    size: int
    """Number of ids of a block."""
    stride: int
    """Number of ids from the start of a block to the start of the next."""
    separator: int | None
    leading_separator: bool
    """Whether the stream starts with a separator too."""


class Packing(NamedTuple):
    """How whole documents are packed into rows."""

    capacity: int
    """Number of ids of a row."""
    overhead: int
    """Number of ids that each document takes in addition to its own."""
    separator: int | None = None
    """Id before and after each document, which is stored on disk; None for no separator."""
    shared: int = 0
    """Number of ids that consecutive parts of a document have in common if it is cut."""


class Truncation(NamedTuple):
    """The texts of an example, truncated to the configured lengths."""

    first: list[int]
    second: list[int]
    length: int
    """Number of ids before truncation, with special ids."""
    limit: int
    """The largest number allowed."""


class Objective(NamedTuple):
    """The functions of an objective.

    Its records are made of documents, by `block_layout` or `packing`, or of examples, by `truncate`.
    """

    required_ids: tuple[str, ...]
    """Special ids that the tokenizer must have."""
    shape: Callable[[ConfigDict], Shape]
    arrays: Callable[[ConfigDict, Tokenizer, Sequence[Record], Sequence[Key]], Arrays]
    block_layout: Callable[[ConfigDict, Tokenizer], BlockLayout] | None = None
    packing: Callable[[ConfigDict, Tokenizer], Packing] | None = None
    truncate: Callable[[ConfigDict, list[int], list[int]], Truncation] | None = None
    row_lengths: Callable[[np.ndarray], np.ndarray] | None = None
    """Maps the numbers of ids of both texts [n, 2] to the `length` and `target_length` [n, 2] that
    a row needs for them."""
    augment: Callable[..., list[Record]] | None = None
    """Changes some rows of a training batch; see `augmentation.augment`."""


def clm(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Causal language modelling: predicts every id of a block of T+1 from the ids before it.

    In a row of whole documents, eos is the first input and the last label of each document, and a
    document attends only to itself. A part of a document that was cut starts with the last id of
    the part before.

    Returns:
      tokens [B, T]: ids 0 ... T-1, then padding.
      labels [B, T]: ids 1 ... T, then 0.
      weights [B, T]: 1 for a label, 0 after the last one.
      segments, position_ids [B, T]: only for rows of whole documents. Blocks need no mask, because
        attention is causal and padding is on the right.
    """
    del keys
    length = c.data.length
    if c.data.packing == 'best_fit':
        documents = _documents(c, records)
        # A document of n + 1 ids gives n inputs.
        segments = _segments(c, documents, -1, None)
        return _next_ids(documents, length, tokenizer.pad_id) | segments
    ids_BT1, real_BT1 = collate.pad([[r.first] for r in records], length + 1, tokenizer.pad_id)
    real_BT = real_BT1[:, 1:]
    return {
        'tokens': ids_BT1[:, :-1],
        'labels': np.where(real_BT, ids_BT1[:, 1:], 0),
        'weights': real_BT.astype(np.float32),
    }


def _next_ids(rows: Sequence[Sequence[np.ndarray]], length: int, pad_id: int) -> Arrays:
    """Predicts every id of a text, except the first, from the ids before it."""
    tokens_BT, real_BT = collate.pad([[ids[:-1] for ids in row] for row in rows], length, pad_id)
    labels_BT, _ = collate.pad([[ids[1:] for ids in row] for row in rows], length, 0)
    return {'tokens': tokens_BT, 'labels': labels_BT, 'weights': real_BT.astype(np.float32)}


def _documents(c: ConfigDict, records: Sequence[Record]) -> list[list[np.ndarray]]:
    """Returns the documents of each row; a block counts as one document."""
    if c.data.packing == 'best_fit':
        return [collate.split_documents(record) for record in records]
    return [[record.first] for record in records]


def _segments(
    c: ConfigDict, documents: list[list[np.ndarray]], special: int, real_BT: Any, prefix: str = ''
) -> Arrays:
    """Returns the segments of rows whose documents have `special` additional ids each."""
    if c.data.packing != 'best_fit':
        return {f'{prefix}segments': real_BT.astype(np.int32)}
    lengths = [[len(d) + special for d in row] for row in documents]
    return collate.segments(lengths, c.data.length, prefix)


def mlm(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Masked language modelling: predicts some ids of [CLS] block [SEP] from all others.

    In a row with n ids that are not special, max(1, round(mask_rate * n)) of them are predicted,
    drawn without replacement. The input has [MASK] in the place of a predicted id with probability
    0.8, any id that is not special with 0.1, and the id itself with 0.1. With
    `config.data.whole_words`, words are drawn instead of ids; a word that would exceed the number
    is skipped, so fewer ids may be predicted.

    In a row of whole documents each has its own [CLS] and [SEP] and attends only to itself.

    Returns:
      tokens [B, T].
      segments [B, T]: 1, or 1, 2, ... for whole documents; 0 on padding.
      position_ids [B, T]: only for whole documents.
      positions, labels, weights [B, P]: the predicted positions in rising order, their original ids
        and 1; all are 0 after the last one.
    """
    length, predicted, _ = mlm_shape(c)
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    documents = _documents(c, records)
    rows = [[part for d in row for part in (cls, d, sep)] for row in documents]
    ids_BT, real_BT = collate.pad(rows, length, tokenizer.pad_id)
    ordinary_V = collate.ordinary_ids(tokenizer.vocab_size, tokenizer.special_ids)
    free_BT = real_BT & ordinary_V[ids_BT]
    draws = collate.uniform(keys, length + 2 * predicted)
    choice = free_BT, masking.count(c.data.mask_rate, free_BT.sum(1)), predicted, draws[:, :length]
    if c.data.whole_words:
        positions_BP, chosen_BP = masking.choose_words(tokenizer.word_starts[ids_BT], *choice)
    else:
        positions_BP, chosen_BP = masking.choose_tokens(*choice)
    labels_BP = np.where(chosen_BP, np.take_along_axis(ids_BT, positions_BP, 1), 0)
    inputs_BP = masking.replace(labels_BP, draws[:, length:], tokenizer.mask_id, ordinary_V)
    row, slot = np.nonzero(chosen_BP)
    ids_BT[row, positions_BP[row, slot]] = inputs_BP[row, slot]
    return {
        'tokens': ids_BT,
        **_segments(c, documents, 2, real_BT),
        'positions': positions_BP.astype(np.int32),
        'labels': labels_BP,
        'weights': chosen_BP.astype(np.float32),
    }


def mlm_shape(c: ConfigDict) -> Shape:
    """Returns the shape of a batch; P is the number of predictions in a row of T ordinary ids."""
    return Shape(c.data.length, int(masking.count(c.data.mask_rate, c.data.length)))


def match(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Reads [CLS] block [SEP] and predicts nothing: only the matching losses have a gradient.

    Returns:
      tokens, segments [B, T], and position_ids for whole documents, as `mlm` without masks.
      positions, labels, weights [B, 1]: 0, 0 and 1, or 0 if a row has no text.
    """
    del keys
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    documents = _documents(c, records)
    rows = [[part for d in row for part in (cls, d, sep)] for row in documents]
    ids_BT, real_BT = collate.pad(rows, c.data.length, tokenizer.pad_id)
    zeros_B1 = np.zeros((len(records), 1), np.int32)
    weights_B1 = np.array([[not is_padding(r)] for r in records], np.float32)
    arrays = _segments(c, documents, 2, real_BT)
    # Every position with a segment is compared, so a row that only fills the batch has none.
    arrays['segments'] *= weights_B1.astype(np.int32)
    return {
        'tokens': ids_BT,
        **arrays,
        'positions': zeros_B1,
        'labels': zeros_B1,
        'weights': weights_B1,
    }


def mass(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Masked sequence to sequence: predicts a span of a block from the ids around it.

    The span of a block of n ids has m = max(1, round(span_rate * n)) ids and starts anywhere from 0
    to n - m with equal probability. The encoder reads the block and eos; each id of the span is
    replaced as in `mlm`. The decoder reads, for each id of the span, the id before it in the block
    (eos before the first one), at the position of the predicted id. A separator of documents inside
    the span is masked and predicted as any other id, but is never a random replacement.

    In a row of whole documents each has a span of its own, as long as P has capacity, and both
    stacks attend only to the same document.

    Returns:
      source, source_segments [B, S].
      tokens, labels, weights, position_ids [B, T]: T = P; all but the tokens are 0 after the span.
      segments [B, T], source_position_ids [B, S]: only for whole documents.
    """
    predicted, _, length = mass_shape(c)
    documents = _documents(c, records)
    # Each row has one draw for its first span, 2P to replace ids, and one for each further span.
    draws = collate.uniform(keys, 2 * predicted + max(1, *map(len, documents)))
    starts = np.delete(draws, range(1, 1 + 2 * predicted), axis=1).tolist()
    spans = [
        masking.draw_spans(c.data.span_rate, [len(d) for d in row], predicted, row_draws)
        for row, row_draws in zip(documents, starts, strict=True)
    ]
    eos = tokenizer.eos_id
    rows = [[part for d in row for part in (d, [eos])] for row in documents]
    source_BS, source_real_BS = collate.pad(rows, length, tokenizer.pad_id)
    indices_BT, real_BT = collate.pad([span.indices for span in spans], predicted, 0)
    position_ids_BT, _ = collate.pad([span.positions for span in spans], predicted, 0)
    labels_BT = np.where(real_BT, np.take_along_axis(source_BS, indices_BT, 1), 0)
    previous_BT = np.take_along_axis(source_BS, np.maximum(indices_BT - 1, 0), 1)
    tokens_BT = np.where(position_ids_BT > 0, previous_BT, eos)
    ordinary_V = collate.ordinary_ids(tokenizer.vocab_size, tokenizer.special_ids)
    inputs_BT = masking.replace(
        labels_BT, draws[:, 1 : 1 + 2 * predicted], tokenizer.mask_id, ordinary_V
    )
    row, slot = np.nonzero(real_BT)
    source_BS[row, indices_BT[row, slot]] = inputs_BT[row, slot]
    arrays = {
        'source': source_BS,
        **_segments(c, documents, 1, source_real_BS, 'source_'),
        'tokens': np.where(real_BT, tokens_BT, tokenizer.pad_id).astype(np.int32),
        'labels': labels_BT,
        'weights': real_BT.astype(np.float32),
        'position_ids': position_ids_BT,
    }
    if c.data.packing == 'best_fit':
        arrays['segments'], _ = collate.pad([span.segments for span in spans], predicted, 0)
    return arrays


def mass_shape(c: ConfigDict) -> Shape:
    """Returns the shape of a batch; T = P is the span of a full block of S-1 ids."""
    predicted = int(masking.count(c.data.span_rate, c.data.length - 1))
    return Shape(predicted, predicted, c.data.length)


def classify(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Predicts the class of one or two texts from [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Returns:
      tokens, segments, type_ids [B, T]: segments are 1, type_ids 1 in `b` and its [SEP]; both are 0
        on padding.
      positions, labels, weights [B, 1]: positions are 0, the position of [CLS]; labels are -1 for
        a text of `config.data.unlabelled` and for an augmented row.
    """
    del keys
    length, cls, sep = c.data.length, [tokenizer.cls_id], [tokenizer.sep_id]
    rows = [[cls, r.first, sep, *([r.second, sep] if len(r.second) else [])] for r in records]
    ids_BT, real_BT = collate.pad(rows, length, tokenizer.pad_id)
    second_BT = np.arange(length) >= np.array([len(r.first) + 2 for r in records])[:, None]
    padding_B1 = np.array([[is_padding(r)] for r in records])
    labels_B1 = np.array([[r.label] for r in records], np.int32)
    return {
        'tokens': ids_BT,
        'segments': real_BT.astype(np.int32),
        'type_ids': (real_BT & second_BT).astype(np.int32),
        'positions': np.zeros((len(records), 1), np.int32),
        'labels': np.where(padding_B1, 0, labels_B1),
        'weights': (~padding_B1).astype(np.float32),
    }


def truncate_pair(c: ConfigDict, first: list[int], second: list[int]) -> Truncation:
    """Truncates the longer text, then both, to `data.length` ids with [CLS] and each [SEP]."""
    special = 3 if second else 2
    limit, length = c.data.length, len(first) + len(second) + special
    a, b = truncated_lengths(len(first), len(second), limit - special)
    return Truncation(first[:a], second[:b], length, limit)


def _pair_row_lengths(lengths_n2: np.ndarray) -> np.ndarray:
    length_n = lengths_n2.sum(1) + 2 + (lengths_n2[:, 1] > 0)
    return np.stack([length_n, np.zeros_like(length_n)], axis=1)


def seq2seq(
    c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record], keys: Sequence[Key]
) -> Arrays:
    """Predicts every id of the second text from the first text and the ids before.

    Both texts begin with the special tokens that the tokenizer puts before a text, as BART's <s>.

    Returns:
      source, source_segments [B, S]: source = a eos.
      tokens, labels, weights [B, T]: tokens = eos b, labels = b eos.
    """
    del keys
    eos, pad_id = [tokenizer.eos_id], tokenizer.pad_id
    source_BS, real_BS = collate.pad([[r.first, eos] for r in records], c.data.length, pad_id)
    targets = [[] if is_padding(r) else [np.concatenate([eos, r.second, eos])] for r in records]
    return {
        'source': source_BS,
        'source_segments': real_BS.astype(np.int32),
        **_next_ids(targets, c.data.target_length, pad_id),
    }


def truncate_target(c: ConfigDict, first: list[int], second: list[int]) -> Truncation:
    """Truncates both texts so that an eos fits after each; reports the one with more excess."""
    limits = (c.data.length, c.data.target_length)
    lengths = (len(first) + 1, len(second) + 1)
    worse = int(lengths[1] - limits[1] > lengths[0] - limits[0])
    texts = first[: limits[0] - 1], second[: limits[1] - 1]
    return Truncation(*texts, lengths[worse], limits[worse])


OBJECTIVES = {
    'clm': Objective(
        required_ids=('eos_id',),
        shape=lambda c: Shape(c.data.length, c.data.length),
        arrays=clm,
        block_layout=lambda c, t: BlockLayout(c.data.length + 1, c.data.length, t.eos_id, True),
        # A document of n ids is stored as n + 2 ids, of which n + 1 are inputs.
        packing=lambda c, t: Packing(c.data.length, -1, t.eos_id, shared=1),
    ),
    'mlm': Objective(
        required_ids=('mask_id', 'cls_id', 'sep_id'),
        shape=mlm_shape,
        arrays=mlm,
        block_layout=lambda c, t: BlockLayout(
            c.data.length - 2, c.data.length - 2, t.sep_id, False
        ),
        packing=lambda c, t: Packing(c.data.length, 2),
    ),
    'match': Objective(
        required_ids=('cls_id', 'sep_id'),
        shape=lambda c: Shape(c.data.length, 1),
        arrays=match,
        block_layout=lambda c, t: BlockLayout(
            c.data.length - 2, c.data.length - 2, t.sep_id, False
        ),
        packing=lambda c, t: Packing(c.data.length, 2),
    ),
    'mass': Objective(
        required_ids=('mask_id', 'eos_id'),
        shape=mass_shape,
        arrays=mass,
        block_layout=lambda c, t: BlockLayout(
            c.data.length - 1, c.data.length - 1, t.eos_id, False
        ),
        packing=lambda c, t: Packing(c.data.length, 1),
    ),
    'classify': Objective(
        required_ids=('cls_id', 'sep_id'),
        shape=lambda c: Shape(c.data.length, 1),
        arrays=classify,
        truncate=truncate_pair,
        row_lengths=_pair_row_lengths,
        augment=augmentation.augment,
    ),
    'seq2seq': Objective(
        required_ids=('eos_id',),
        shape=lambda c: Shape(c.data.target_length, c.data.target_length, c.data.length),
        arrays=seq2seq,
        truncate=truncate_target,
        row_lengths=lambda lengths_n2: lengths_n2 + 1,
    ),
}


def buckets(c: ConfigDict) -> list[ConfigDict]:
    """Returns a copy of `c` for each length of `config.data.buckets`; only one by default.

    Target lengths are scaled in proportion and rounded up.
    """
    copies = []
    for length in c.data.buckets or (c.data.length,):
        copy = config.copy(c)
        copy.data.length = length
        copy.data.target_length = -(-c.data.target_length * length // c.data.length)
        copies.append(copy)
    return copies


def smallest_bucket(
    c: ConfigDict, buckets: Sequence[ConfigDict], lengths_n2: Int[np.ndarray, 'n 2']
) -> Int[np.ndarray, ' n']:
    """Returns the index of the first of rising `buckets` that fits the two texts of each record."""
    row_lengths = OBJECTIVES[c.objective].row_lengths
    assert row_lengths is not None, 'validation allows buckets only for examples'
    limits_k2 = np.array([[b.data.length, b.data.target_length] for b in buckets])
    fits_nk = np.all(row_lengths(lengths_n2)[:, None] <= limits_k2, axis=-1)
    if not np.all(fits_nk[:, -1]):  # `prepare` cuts examples to the longest bucket
        raise UserError(f'{c.data.path}: has examples longer than the longest bucket')
    return np.argmax(fits_nk, axis=1)
