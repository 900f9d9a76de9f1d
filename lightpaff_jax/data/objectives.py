"""OBJECTIVES: records -> what is predicted from what. `config.objective` names one.

What is masked is drawn from (seed, epoch, record) alone, so neither the batch, nor the process,
nor the order of reading changes it. BERT: Devlin et al., arXiv 1810.04805, section 3.1; MASS: Song
et al., arXiv 1905.02450, section 3.2.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32
from ml_collections import ConfigDict

from lightpaff_jax.batch import Shape
from lightpaff_jax.data.records import Record, is_padding
from lightpaff_jax.data.tokenizers import Tokenizer, longest_first

Arrays = dict[str, Any]  # fields of a Batch, NumPy arrays [B, ...]
Key = tuple[int, int, int]  # seed, epoch, record

_MASKED, _RANDOM = 0.8, 0.1  # of the chosen ids; the rest stay as they are


class Pieces(NamedTuple):
    """How one stream of documents, each with a `separator` behind it, is cut into blocks."""

    size: int
    """Ids a block."""
    stride: int
    """Ids from the beginning of one block to that of the next."""
    separator: int | None
    leads: bool
    """Whether the stream begins with a separator too."""


class Fitted(NamedTuple):
    """The texts of one example, cut to what there is room for."""

    first: list[int]
    second: list[int]
    length: int
    """Ids there would be with the special ones, were nothing cut."""
    limit: int
    """How many there may be."""


class Objective(NamedTuple):
    """One of `pieces` and `fit` says how records are made; `arrays` makes a batch of them."""

    needs: tuple[str, ...]
    """Special ids that the tokenizer must have."""
    shape: Callable[[ConfigDict], Shape]
    arrays: Callable[[ConfigDict, Tokenizer, Sequence[Record], Sequence[Key]], Arrays]
    pieces: Callable[[ConfigDict, Tokenizer], Pieces] | None = None
    fit: Callable[[ConfigDict, list[int], list[int]], Fitted] | None = None

    @property
    def kind(self) -> str:
        """What its records are: 'blocks' of a stream, or 'examples'."""
        return 'blocks' if self.pieces else 'examples'


def clm(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
        keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Causal language modelling: every id of a block of T+1 from those before it.

    Returns:
      tokens [B, T] = ids 0 ... T-1, padded; labels [B, T] = ids 1 ... T, 0 behind the end;
      weights [B, T] = 1 where the label is real, else 0. Causal and padded on the right: no mask.
    """
    del keys
    length = c.data.length
    ids_BT1, real_BT1 = _padded([r.first for r in records], length + 1, tokenizer.pad_id)
    real_BT = real_BT1[:, 1:]
    return {
        'tokens': ids_BT1[:, :-1],
        'labels': np.where(real_BT, ids_BT1[:, 1:], 0),
        'weights': real_BT.astype(np.float32),
    }


def mlm(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
        keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Masked language modelling: some ids of [CLS] block [SEP] from all the others.

    Of a row's n ids that are not special max(1, round(masked n)) are predicted, drawn without
    replacement. Each of these is read as [MASK] with probability 0.8, as any id that is not
    special with 0.1, as itself with 0.1. With `config.data.whole_words` words are drawn, not ids,
    and one that would exceed the count is passed over: so there may be fewer.

    Returns:
      tokens, segments [B, T] (1, padding 0); positions [B, P] in rising order, labels (the ids
      that stood there), weights (1), all three 0 behind the last one.
    """
    length, predicted = mlm_shape(c)[:2]
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    rows = [np.concatenate([cls, r.first, sep]) for r in records]
    ids_BT, real_BT = _padded(rows, length, tokenizer.pad_id)
    ordinary_V = _ordinary(tokenizer.vocab_size, tokenizer.special_ids)
    free_BT = real_BT & ordinary_V[ids_BT]
    draws = _uniform(keys, length + 2 * predicted)
    count_B = _share(c.data.masked, free_BT.sum(1))
    choose = _whole_words if c.data.whole_words else _single
    positions_BP, chosen_BP = choose(
        ids_BT, free_BT, count_B, predicted, draws[:, :length], tokenizer
    )
    labels_BP = np.where(chosen_BP, np.take_along_axis(ids_BT, positions_BP, 1), 0)
    read_BP = _replaced(labels_BP, draws[:, length:], tokenizer.mask_id, ordinary_V)
    row, slot = np.nonzero(chosen_BP)
    tokens_BT = ids_BT.copy()
    tokens_BT[row, positions_BP[row, slot]] = read_BP[row, slot]
    return {
        'tokens': tokens_BT,
        'segments': real_BT.astype(np.int32),
        'positions': positions_BP.astype(np.int32),
        'labels': labels_BP,
        'weights': chosen_BP.astype(np.float32),
    }


def mlm_shape(c: ConfigDict) -> Shape:
    """P is what a row of T ids that are not special would have."""
    return Shape(c.data.length, int(_share(c.data.masked, c.data.length)))


def _single(ids_BT, free_BT, count_B, predicted: int, draws_BT, tokenizer):
    """(positions [B, P], which of them are real): the `count_B` free ones of the lowest draws."""
    del ids_BT, tokenizer
    length = free_BT.shape[1]
    order_BT = np.argsort(np.where(free_BT, draws_BT, 2.0), axis=1)[:, :predicted]
    chosen_BP = np.arange(order_BT.shape[1]) < count_B[:, None]
    return _sorted_positions(np.where(chosen_BP, order_BT, length), length)


def _whole_words(ids_BT, free_BT, count_B, predicted: int, draws_BT, tokenizer):
    """As `_single`, but all ids of a word or none."""
    length = free_BT.shape[1]
    # A special id ends a word too, and so does the beginning of a block.
    begins_BT = free_BT & (tokenizer.word_starts[ids_BT] | ~np.roll(free_BT, 1, axis=1))
    positions_BP = np.full((len(ids_BT), predicted), length)
    for row, left in enumerate(count_B.tolist()):
        starts = np.flatnonzero(begins_BT[row])
        order = np.argsort(draws_BT[row, : len(starts)]).tolist()
        # Ids up to the next word, without the special ones before it.
        sizes = np.add.reduceat(free_BT[row], starts, dtype=int).tolist() if order else []
        taken: list[int] = []
        for word in order:
            if sizes[word] <= left:
                left -= sizes[word]
                taken += range(starts[word], starts[word] + sizes[word])
                if not left:
                    break
        positions_BP[row, : len(taken)] = taken
    return _sorted_positions(positions_BP, length)


def _sorted_positions(
    positions_BP: Int[np.ndarray, 'B P'], none: int
) -> tuple[Int[np.ndarray, 'B P'], Bool[np.ndarray, 'B P']]:
    """Rising positions, `none` replaced by 0 and moved behind; which are real."""
    positions_BP = np.sort(positions_BP, axis=1)
    chosen_BP = positions_BP < none
    return np.where(chosen_BP, positions_BP, 0), chosen_BP


def mass(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
         keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """Masked sequence to sequence: one fragment of a block from what is around it.

    Of a block of n ids m = max(1, round(fragment n)) in a row are predicted; where they begin is
    uniform over 0 ... n - m. The encoder reads block and eos, where each id of the fragment is
    replaced as in `mlm`. The decoder reads, for each id of the fragment, the one that stands
    before it in the block (eos before the first), at the fragment's own positions. A separator
    of documents inside a fragment is masked and predicted like any other id of it; as a random
    replacement it is never drawn.

    Returns:
      source, source_segments [B, S]; tokens, labels, weights, position_ids [B, T], T = P, all but
      the tokens 0 behind the fragment.
    """
    predicted, _, length = mass_shape(c)
    ids_BS, real_BS = _padded([r.first for r in records], length - 1, tokenizer.pad_id)
    n_B = real_BS.sum(1)
    m_B = _share(c.data.fragment, n_B)
    draws = _uniform(keys, 1 + 2 * predicted)
    start_B = np.minimum((draws[:, 0] * (n_B - m_B + 1)).astype(int), n_B - m_B)
    slots = np.arange(predicted)
    real_BT = slots < m_B[:, None]
    at_BT = np.where(real_BT, start_B[:, None] + slots, 0)
    labels_BT = np.where(real_BT, np.take_along_axis(ids_BS, at_BT, 1), 0)
    before_BT = np.take_along_axis(ids_BS, np.maximum(at_BT - 1, 0), 1)
    before_BT = np.where(at_BT > 0, before_BT, tokenizer.eos_id)
    ordinary_V = _ordinary(tokenizer.vocab_size, tokenizer.special_ids)
    read_BT = _replaced(labels_BT, draws[:, 1:], tokenizer.mask_id, ordinary_V)
    row, slot = np.nonzero(real_BT)
    ids_BS[row, at_BT[row, slot]] = read_BT[row, slot]
    rows = [np.append(ids[:n], tokenizer.eos_id) for ids, n in zip(ids_BS, n_B, strict=True)]
    source_BS, source_real_BS = _padded(rows, length, tokenizer.pad_id)
    return {
        'source': source_BS,
        'source_segments': source_real_BS.astype(np.int32),
        'tokens': np.where(real_BT, before_BT, tokenizer.pad_id).astype(np.int32),
        'labels': labels_BT,
        'weights': real_BT.astype(np.float32),
        'position_ids': at_BT.astype(np.int32),
    }


def mass_shape(c: ConfigDict) -> Shape:
    """T = P is the fragment of a full block of S-1 ids."""
    predicted = int(_share(c.data.fragment, c.data.length - 1))
    return Shape(predicted, predicted, c.data.length)


def classify(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
             keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """The class of a text or of a pair of texts, from [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Returns:
      tokens, segments (1, padding 0), type_ids (1 in b and behind it) [B, T]; positions (0, that
      of [CLS]), labels, weights [B, 1].
    """
    del keys
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    firsts = [np.concatenate([cls, r.first, sep]) for r in records]
    seconds = [np.append(r.second, sep) if len(r.second) else r.second for r in records]
    rows = [np.concatenate(pair) for pair in zip(firsts, seconds, strict=True)]
    ids_BT, real_BT = _padded(rows, c.data.length, tokenizer.pad_id)
    second_BT = np.arange(c.data.length) >= np.array([len(first) for first in firsts])[:, None]
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


def fit_pair(c: ConfigDict, first: list[int], second: list[int]) -> Fitted:
    """Room for [CLS] and one [SEP] behind each text; the longer one is cut, then both alike."""
    special = 3 if second else 2
    limit, length = c.data.length, len(first) + len(second) + special
    a, b = longest_first(len(first), len(second), limit - special)
    return Fitted(first[:a], second[:b], length, limit)


def seq2seq(c: ConfigDict, tokenizer: Tokenizer, records: Sequence[Record],
            keys: Sequence[Key]) -> Arrays:  # fmt: skip
    """The second text, id by id, from the first and the ids before.

    Returns:
      source = a eos, source_segments [B, S]; tokens = eos b, labels = b eos, weights [B, T].
    """
    del keys
    eos, length, pad = [tokenizer.eos_id], c.data.target_length, tokenizer.pad_id
    source_BS, source_real_BS = _padded(
        [np.append(r.first, eos) for r in records], c.data.length, pad
    )
    targets = [np.concatenate([eos, r.second, eos]) for r in records]
    ids_BT1, real_BT1 = _padded(targets, length + 1, pad)
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


def _share(share: float, of: Any) -> Any:
    """max(1, round(share * of)), 0 of 0."""
    return np.minimum(np.maximum(1, np.rint(share * np.asarray(of)).astype(int)), of)


def _padded(
    rows: Sequence[np.ndarray], length: int, pad_id: int
) -> tuple[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
    """(ids, which are real)."""
    ids_BT = np.full((len(rows), length), pad_id, np.int32)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = ids
    return ids_BT, np.arange(length) < np.array([len(ids) for ids in rows])[:, None]


def _replaced(
    ids_BP: Int32[np.ndarray, 'B P'],
    draws_B2P: Float64[np.ndarray, 'B 2P'],
    mask_id: Any,
    ordinary_V: Bool[np.ndarray, ' V'],
) -> Int32[np.ndarray, 'B P']:
    """What is read for each chosen id: the mask, an ordinary one, or itself."""
    which_BP, other_BP = np.split(draws_B2P, 2, axis=1)
    ordinary = np.flatnonzero(ordinary_V)
    random_BP = ordinary[(other_BP * len(ordinary)).astype(int)]
    kept_BP = np.where(which_BP < _MASKED + _RANDOM, random_BP, ids_BP)
    return np.where(which_BP < _MASKED, mask_id, kept_BP).astype(np.int32)


def _uniform(keys: Sequence[Key], n: int) -> Float64[np.ndarray, 'B n']:
    """n draws from [0, 1) for each key: the key's own part of one Philox sequence."""
    draws_Bn = np.empty((len(keys), n), np.uint64)
    for row, (seed, epoch, record) in enumerate(keys):
        draws_Bn[row] = np.random.Philox(
            key=seed % 2**64, counter=np.array([0, 0, epoch, record], np.uint64)
        ).random_raw(n)
    return (draws_Bn >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=8)
def _ordinary(vocab_size: int, special_ids: frozenset[int]) -> Bool[np.ndarray, ' V']:
    """Which ids are not special."""
    ordinary_V = np.ones(vocab_size, bool)
    ordinary_V[list(special_ids)] = False
    return ordinary_V


OBJECTIVES = {
    'clm': Objective(
        needs=('eos_id',),
        shape=lambda c: Shape(c.data.length, c.data.length),
        arrays=clm,
        pieces=lambda c, t: Pieces(c.data.length + 1, c.data.length, t.eos_id, leads=True),
    ),
    'mlm': Objective(
        needs=('mask_id', 'cls_id', 'sep_id'),
        shape=mlm_shape,
        arrays=mlm,
        pieces=lambda c, t: Pieces(c.data.length - 2, c.data.length - 2, t.sep_id, leads=False),
    ),
    'mass': Objective(
        needs=('mask_id', 'eos_id'),
        shape=mass_shape,
        arrays=mass,
        pieces=lambda c, t: Pieces(c.data.length - 1, c.data.length - 1, t.eos_id, leads=False),
    ),
    'classify': Objective(
        needs=('cls_id', 'sep_id'),
        shape=lambda c: Shape(c.data.length, 1),
        arrays=classify,
        fit=fit_pair,
    ),
    'seq2seq': Objective(
        needs=('eos_id',),
        shape=lambda c: Shape(c.data.target_length, c.data.target_length, c.data.length),
        arrays=seq2seq,
        fit=fit_target,
    ),
}
