"""OBJECTIVES: records -> what is predicted from what. `config.objective` names one.

What is masked is drawn from (seed, epoch, record) alone, so neither the batch, nor the process,
nor the order of reading changes it. BERT: Devlin et al., arXiv 1810.04805, section 3.1; MASS: Song
et al., arXiv 1905.02450, section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.batch import Shape
from lightpaff_jax.data.objectives import collate as rows_lib
from lightpaff_jax.data.objectives import masking
from lightpaff_jax.data.objectives.collate import Arrays, Key
from lightpaff_jax.data.records import Record, is_padding
from lightpaff_jax.data.tokenizers import Tokenizer, truncated_lengths


class Pieces(NamedTuple):
    """How one stream of documents, each with a `separator` behind it, is cut into blocks."""

    size: int
    """Ids a block."""
    stride: int
    """Ids from the beginning of one block to that of the next."""
    separator: int | None
    leads: bool
    """Whether the stream begins with a separator too."""


class Packed(NamedTuple):
    """How many whole documents fit into one row."""

    size: int
    """Ids a row."""
    each: int
    """Ids that a document needs beside its own."""
    separator: int | None = None
    """Stands before and behind each document, on disk too; of a document that is cut, the last id of
    a piece begins the next. None: nothing is added, and pieces have nothing in common."""


class Fitted(NamedTuple):
    """The texts of one example, cut to what there is room for."""

    first: list[int]
    second: list[int]
    length: int
    """Ids there would be with the special ones, were nothing cut."""
    limit: int
    """How many there may be."""


class Objective(NamedTuple):
    """What a task predicts from what.

    Records are made of documents, by `pieces` or `packed`, or of examples, by `fit`.
    """

    needs: tuple[str, ...]
    """Special ids that the tokenizer must have."""
    shape: Callable[[ConfigDict], Shape]
    arrays: Callable[[ConfigDict, Tokenizer, Sequence[Record], Sequence[Key]], Arrays]
    pieces: Callable[[ConfigDict, Tokenizer], Pieces] | None = None
    packed: Callable[[ConfigDict, Tokenizer], Packed] | None = None
    fit: Callable[[ConfigDict, list[int], list[int]], Fitted] | None = None
    room: Callable[[np.ndarray], np.ndarray] | None = None
    """Of records of [n, 2] ids in each text: tokens [n, 2] they need of `length` and `target_length`."""


def clm(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
        keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Causal language modelling: every id of a block of T+1 from those before it.

    Of whole documents each has eos before it as input and behind it as label, and sees itself alone;
    a piece of one that was cut begins with the last id of the piece before.

    Returns:
      tokens [B, T] = ids 0 ... T-1, padded; labels [B, T] = ids 1 ... T, 0 behind the end;
      weights [B, T] = 1 where the label is real, else 0. Causal and padded on the right: no mask.
      Of whole documents also segments, position_ids [B, T].
    """
    del keys
    length = c.data.length
    if c.data.packing == 'best_fit':
        return _clm_of_documents(length, tokenizer, records)
    ids_BT1, real_BT1 = rows_lib.padded([r.first for r in records], length + 1, tokenizer.pad_id)
    real_BT = real_BT1[:, 1:]
    return {
        'tokens': ids_BT1[:, :-1],
        'labels': np.where(real_BT, ids_BT1[:, 1:], 0),
        'weights': real_BT.astype(np.float32),
    }


def _clm_of_documents(length: int, tokenizer: Tokenizer, records: Sequence[Record]) -> Arrays:
    rows = [rows_lib.documents(r) for r in records]
    inputs = [rows_lib.joined([[d[:-1]] for d in row]) for row in rows]
    labels = [rows_lib.joined([[d[1:]] for d in row]) for row in rows]
    ids_BT, real_BT = rows_lib.padded(inputs, length, tokenizer.pad_id)
    sizes = [[len(d) - 1 for d in row] for row in rows]
    return {
        'tokens': ids_BT,
        'labels': rows_lib.padded(labels, length, 0)[0],
        'weights': real_BT.astype(np.float32),
        **rows_lib.places('segments', 'position_ids', sizes, length),
    }


def mlm(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
        keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Masked language modelling: some ids of [CLS] block [SEP] from all the others.

    Of a row's n ids that are not special max(1, round(masked n)) are predicted, drawn without
    replacement. Each of these is read as [MASK] with probability 0.8, as any id that is not
    special with 0.1, as itself with 0.1. With `config.data.whole_words` words are drawn, not ids,
    and one that would exceed the count is passed over: so there may be fewer.

    Of whole documents each has its own [CLS] and [SEP] and sees itself alone.

    Returns:
      tokens, segments [B, T] (1, padding 0; of whole documents 1, 2, ... and position_ids); positions [B, P] in rising order, labels (the ids
      that stood there), weights (1), all three 0 behind the last one.
    """
    length, predicted = mlm_shape(c)[:2]
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    parts = [rows_lib.documents(r) if c.data.packing == 'best_fit' else [r.first] for r in records]
    rows = [rows_lib.joined([[cls, d, sep] for d in row]) for row in parts]
    ids_BT, real_BT = rows_lib.padded(rows, length, tokenizer.pad_id)
    places: Arrays = {'segments': real_BT.astype(np.int32)}
    if c.data.packing == 'best_fit':
        sizes = [[len(d) + 2 for d in row] for row in parts]
        places = rows_lib.places('segments', 'position_ids', sizes, length)
    ordinary_V = rows_lib.ordinary(tokenizer.vocab_size, tokenizer.special_ids)
    free_BT = real_BT & ordinary_V[ids_BT]
    draws = rows_lib.uniform(keys, length + 2 * predicted)
    count_B = masking.count(c.data.mask_rate, free_BT.sum(1))
    choose = masking.whole_words if c.data.whole_words else masking.single
    positions_BP, chosen_BP = choose(
        ids_BT, free_BT, count_B, predicted, draws[:, :length], tokenizer
    )
    labels_BP = np.where(chosen_BP, np.take_along_axis(ids_BT, positions_BP, 1), 0)
    read_BP = masking.replaced(labels_BP, draws[:, length:], tokenizer.mask_id, ordinary_V)
    row, slot = np.nonzero(chosen_BP)
    tokens_BT = ids_BT.copy()
    tokens_BT[row, positions_BP[row, slot]] = read_BP[row, slot]
    return {
        'tokens': tokens_BT,
        **places,
        'positions': positions_BP.astype(np.int32),
        'labels': labels_BP,
        'weights': chosen_BP.astype(np.float32),
    }


def mlm_shape(c: ConfigDict) -> Shape:
    """P is what a row of T ids that are not special would have."""
    return Shape(c.data.length, int(masking.count(c.data.mask_rate, c.data.length)))


def mass(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
         keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Masked sequence to sequence: one fragment of a block from what is around it.

    Of a block of n ids m = max(1, round(fragment n)) in a row are predicted; where they begin is
    uniform over 0 ... n - m. The encoder reads block and eos, where each id of the fragment is
    replaced as in `mlm`. The decoder reads, for each id of the fragment, the one that stands
    before it in the block (eos before the first), at the fragment's own positions. A separator
    of documents inside a fragment is masked and predicted like any other id of it; as a random
    replacement it is never drawn. Of whole documents each has a fragment of its own, as long as P
    has room, and each side sees its own document alone.

    Returns:
      source, source_segments [B, S]; tokens, labels, weights, position_ids [B, T], T = P, all but
      the tokens 0 behind the fragment. Of whole documents also segments [B, T] and
      source_position_ids [B, S].
    """
    predicted, _, length = mass_shape(c)
    whole = c.data.packing == 'best_fit'
    parts = [rows_lib.documents(r) if whole else [r.first] for r in records]
    most = max(1, *map(len, parts))
    draws = rows_lib.uniform(keys, 2 * predicted + most)
    starts = np.delete(draws, range(1, 1 + 2 * predicted), axis=1).tolist()
    fragments = [
        masking.fragments(c.data.span_rate, [len(d) for d in row], predicted, begin)
        for row, begin in zip(parts, starts, strict=True)
    ]
    eos, pad = [tokenizer.eos_id], tokenizer.pad_id
    sources = [rows_lib.joined([[d, eos] for d in row]) for row in parts]
    source_BS, source_real_BS = rows_lib.padded(sources, length, pad)
    at_BT, real_BT = rows_lib.padded([f.at for f in fragments], predicted, 0)
    local_BT = rows_lib.padded([f.position for f in fragments], predicted, 0)[0]
    labels_BT = np.where(real_BT, np.take_along_axis(source_BS, at_BT, 1), 0)
    before_BT = np.take_along_axis(source_BS, np.maximum(at_BT - 1, 0), 1)
    before_BT = np.where(local_BT > 0, before_BT, tokenizer.eos_id)
    ordinary_V = rows_lib.ordinary(tokenizer.vocab_size, tokenizer.special_ids)
    read_BT = masking.replaced(
        labels_BT, draws[:, 1 : 1 + 2 * predicted], tokenizer.mask_id, ordinary_V
    )
    row, slot = np.nonzero(real_BT)
    source_BS[row, at_BT[row, slot]] = read_BT[row, slot]
    places: Arrays = {'source_segments': source_real_BS.astype(np.int32)}
    if whole:
        sizes = [[len(d) + 1 for d in row] for row in parts]
        places = rows_lib.places('source_segments', 'source_position_ids', sizes, length)
        places['segments'] = rows_lib.padded([f.segment for f in fragments], predicted, 0)[0]
    return {
        'source': source_BS,
        **places,
        'tokens': np.where(real_BT, before_BT, pad).astype(np.int32),
        'labels': labels_BT,
        'weights': real_BT.astype(np.float32),
        'position_ids': local_BT,
    }


def mass_shape(c: ConfigDict) -> Shape:
    """T = P is the fragment of a full block of S-1 ids."""
    predicted = int(masking.count(c.data.span_rate, c.data.length - 1))
    return Shape(predicted, predicted, c.data.length)


def classify(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
             keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """The class of a text or of a pair of texts, from [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Returns:
      tokens, segments (1, padding 0), type_ids (1 in b and behind it) [B, T]; positions (0, that
      of [CLS]), labels, weights [B, 1]. With `config.data.unlabelled` also lambda_ [B]: 1 where
      there is no label, which is -1, so that the teacher alone is learnt from.
    """
    del keys
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    firsts = [np.concatenate([cls, r.first, sep]) for r in records]
    seconds = [np.append(r.second, sep) if len(r.second) else r.second for r in records]
    rows = [np.concatenate(pair) for pair in zip(firsts, seconds, strict=True)]
    ids_BT, real_BT = rows_lib.padded(rows, c.data.length, tokenizer.pad_id)
    second_BT = np.arange(c.data.length) >= np.array([len(first) for first in firsts])[:, None]
    padding_B1 = np.array([[is_padding(r)] for r in records])
    labels_B1 = np.array([[r.label] for r in records], np.int32)
    mixed = {}
    if c.data.unlabelled:
        mixed['lambda_'] = np.where(labels_B1[:, 0] < 0, 1.0, c.loss.lambda_).astype(np.float32)
    return {
        **mixed,
        'tokens': ids_BT,
        'segments': real_BT.astype(np.int32),
        'type_ids': (real_BT & second_BT).astype(np.int32),
        'positions': np.zeros((len(records), 1), np.int32),
        'labels': np.where(padding_B1, 0, labels_B1),
        'weights': (~padding_B1).astype(np.float32),
    }


def fit_pair(c: ConfigDict, first: list[int], second: list[int]) -> Fitted:
    """Room for [CLS] and one [SEP] behind each text; the longer one is cut, then both alike."""
    special = 3 if second else 2
    limit, length = c.data.length, len(first) + len(second) + special
    a, b = truncated_lengths(len(first), len(second), limit - special)
    return Fitted(first[:a], second[:b], length, limit)


def _room_of_pair(lengths_n2: np.ndarray) -> np.ndarray:
    needed = lengths_n2.sum(1) + 2 + (lengths_n2[:, 1] > 0)
    return np.stack([needed, np.zeros_like(needed)], axis=1)


def seq2seq(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
            keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """The second text, id by id, from the first and the ids before.

    Returns:
      source = a eos, source_segments [B, S]; tokens = eos b, labels = b eos, weights [B, T].
    """
    del keys
    eos, length, pad = [tokenizer.eos_id], c.data.target_length, tokenizer.pad_id
    source_BS, source_real_BS = rows_lib.padded(
        [np.append(r.first, eos) for r in records], c.data.length, pad
    )
    targets = [np.concatenate([eos, r.second, eos]) for r in records]
    ids_BT1, real_BT1 = rows_lib.padded(targets, length + 1, pad)
    padding_B1 = np.array([[is_padding(r)] for r in records])
    real_BT = real_BT1[:, 1:] & ~padding_B1
    return {
        'source': source_BS,
        'source_segments': source_real_BS.astype(np.int32),
        'tokens': np.where(real_BT, ids_BT1[:, :-1], pad),
        'labels': np.where(real_BT, ids_BT1[:, 1:], 0),
        'weights': real_BT.astype(np.float32),
    }


def fit_target(c: ConfigDict, first: list[int], second: list[int]) -> Fitted:
    """Room for an eos behind each text; the one that is further over its limit is named."""
    limits = (c.data.length, c.data.target_length)
    lengths = (len(first) + 1, len(second) + 1)
    worse = int(lengths[1] - limits[1] > lengths[0] - limits[0])
    return Fitted(first[: limits[0] - 1], second[: limits[1] - 1], lengths[worse], limits[worse])


OBJECTIVES = {
    'clm': Objective(
        needs=('eos_id',),
        shape=lambda c: Shape(c.data.length, c.data.length),
        arrays=clm,
        pieces=lambda c, t: Pieces(c.data.length + 1, c.data.length, t.eos_id, leads=True),
        packed=lambda c, t: Packed(c.data.length, -1, t.eos_id),
    ),
    'mlm': Objective(
        needs=('mask_id', 'cls_id', 'sep_id'),
        shape=mlm_shape,
        arrays=mlm,
        pieces=lambda c, t: Pieces(c.data.length - 2, c.data.length - 2, t.sep_id, leads=False),
        packed=lambda c, t: Packed(c.data.length, 2),
    ),
    'mass': Objective(
        needs=('mask_id', 'eos_id'),
        shape=mass_shape,
        arrays=mass,
        pieces=lambda c, t: Pieces(c.data.length - 1, c.data.length - 1, t.eos_id, leads=False),
        packed=lambda c, t: Packed(c.data.length, 1),
    ),
    'classify': Objective(
        needs=('cls_id', 'sep_id'),
        shape=lambda c: Shape(c.data.length, 1),
        arrays=classify,
        fit=fit_pair,
        room=_room_of_pair,
    ),
    'seq2seq': Objective(
        needs=('eos_id',),
        shape=lambda c: Shape(c.data.target_length, c.data.target_length, c.data.length),
        arrays=seq2seq,
        fit=fit_target,
        room=lambda lengths_n2: lengths_n2 + 1,
    ),
}


def buckets(c: ConfigDict) -> list[ConfigDict]:
    """`c` for each length of `config.data.buckets`, or alone; targets are shortened in proportion."""
    found = []
    for length in c.data.buckets or (c.data.length,):
        shorter = config.copy(c)
        shorter.data.length = length
        shorter.data.target_length = -(-c.data.target_length * length // c.data.length)
        found.append(shorter)
    return found


def smallest(c: ConfigDict, shapes: list[ConfigDict], lengths_n2: np.ndarray) -> np.ndarray:
    """[n]: the first of rising `shapes` that each record fits in."""
    room = OBJECTIVES[c.objective].room
    assert room is not None, 'validation allows buckets for examples alone'
    limits = np.array([[s.data.length, s.data.target_length] for s in shapes])
    fits_nk = np.all(room(lengths_n2)[:, None] <= limits, axis=-1)
    assert np.all(fits_nk[:, -1]), 'prepare cuts examples to the longest'
    return np.argmax(fits_nk, axis=1)
