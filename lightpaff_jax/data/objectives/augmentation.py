"""Augments texts of classification when they are read; the teacher labels the changed rows.

Each epoch changes `config.data.augment` of the train rows, drawn anew. In a pair, the first text,
the second or both are changed, with equal probability. Words are masked or replaced and a text is
cut to a few words as by Tang et al., arXiv 1903.12136, section 3.2; a replaced word becomes a word of
another train row. A pair may also get the second text of another row.

A row never needs a longer bucket: a word that would exceed it is not replaced, and a text of another
row is cut at a word.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int32
from ml_collections import ConfigDict

from lightpaff_jax.data.objectives import collate
from lightpaff_jax.data.objectives.collate import Key
from lightpaff_jax.data.records import Record, Records
from lightpaff_jax.data.tokenizers import Tokenizer, truncated_lengths

_SPAN_WORDS = 5  # most words of a text that is cut to a span
# The uses of the draws of a row. Each text has three draws for its span, each word has two.
_AUGMENTED, _OTHER_ROW, _RECOMBINED, _TEXTS, _SPANS, _WORDS = 0, 1, 2, 3, 4, 10

Word = list[int]
Draws = Float64[np.ndarray, ' n']


def augment(
    c: ConfigDict,
    tokenizer: Tokenizer,
    rows: Sequence[Record],
    keys: Sequence[Key],
    limits: Sequence[int],
    records: Records,
) -> list[Record]:
    """Augments some rows of a batch.

    The result is a function of the keys. Changed rows have the label -1, unless
    `config.data.augment_keep_labels` is set. Special ids are never masked or
    replaced; a cut may drop them.

    Args:
      c: the configuration.
      tokenizer: the tokenizer.
      rows: the records of the rows.
      keys: seed, epoch and index of each record.
      limits: rising lengths of the buckets.
      records: the records of the train split.
    """
    draws_Bn = collate.uniform(keys, _WORDS + 2 * limits[-1])
    chosen = np.flatnonzero(draws_Bn[:, _AUGMENTED] < c.data.augment).tolist()
    others = records.read((draws_Bn[chosen, _OTHER_ROW] * len(records)).astype(int).tolist())
    augmented = [*rows]
    for row, other in zip(chosen, others, strict=True):
        augmented[row] = _augment_row(c, tokenizer, rows[row], other, limits, draws_Bn[row])
    return augmented


def _augment_row(
    c: ConfigDict,
    tokenizer: Tokenizer,
    row: Record,
    other: Record,
    limits: Sequence[int],
    draws_n: Draws,
) -> Record:
    has_pair = len(row.second) > 0
    special = 3 if has_pair else 2
    length = len(row.first) + len(row.second) + special
    limit = next(limit for limit in limits if limit >= length)
    first, second = (_split_words(tokenizer, ids) for ids in row[:2])
    if has_pair and len(other.second) and draws_n[_RECOMBINED] < c.data.augment_pairs:
        second = _split_words(tokenizer, other.second)
        sizes = truncated_lengths(_count_ids(first), _count_ids(second), limit - special)
        first, second = (
            _cut(text, size) for text, size in zip((first, second), sizes, strict=True)
        )
    candidates = _ordinary_words(tokenizer, other) if c.data.augment_replace else []
    texts = [first, second]
    choice, draws_W2 = int(3 * draws_n[_TEXTS]), draws_n[_WORDS:].reshape(-1, 2)
    for number, text in enumerate((first, second)):
        if not has_pair or choice in (number, 2):
            capacity = limit - special - sum(map(_count_ids, texts))
            words = _change_words(c, tokenizer, text, candidates, capacity, draws_W2)
            span_draws = draws_n[_SPANS + 3 * number : _SPANS + 3 * number + 3]
            texts[number] = _draw_span(c, words, span_draws)
        draws_W2 = draws_W2[len(text) :]
    first_N, second_M = (np.array([i for word in text for i in word], np.int32) for text in texts)
    return Record(first_N, second_M, row.label if c.data.augment_keep_labels else -1)


def _split_words(tokenizer: Tokenizer, ids: Int32[np.ndarray, ' N']) -> list[Word]:
    """Splits a text into words; a special id is a word of its own."""
    ordinary_V = collate.ordinary_ids(tokenizer.vocab_size, tokenizer.special_ids)
    special_N = ~ordinary_V[ids]
    starts_N = tokenizer.word_starts[ids] | special_N
    starts_N[1:] |= special_N[:-1]
    starts = [0, *(np.flatnonzero(starts_N[1:]) + 1).tolist(), len(ids)]
    text = ids.tolist()
    return [text[a:b] for a, b in itertools.pairwise(starts) if b > a]


def _ordinary_words(tokenizer: Tokenizer, record: Record) -> list[Word]:
    starts_V, special_ids = tokenizer.word_starts, tokenizer.special_ids
    words = [word for ids in record[:2] for word in _split_words(tokenizer, ids)]
    return [word for word in words if starts_V[word[0]] and word[0] not in special_ids]


def _count_ids(text: Sequence[Word]) -> int:
    return sum(map(len, text))


def _cut(text: list[Word], size: int) -> list[Word]:
    """Cuts a text to the words that fit in `size` ids; a first word that is longer is cut itself."""
    ends = np.cumsum([len(word) for word in text])
    whole = int(np.searchsorted(ends, size, side='right'))
    return text[:whole] or [word[:size] for word in text[:1]]


def _change_words(
    c: ConfigDict,
    tokenizer: Tokenizer,
    text: Sequence[Word],
    candidates: Sequence[Word],
    capacity: int,
    draws_W2: Float64[np.ndarray, 'W 2'],
) -> list[Word]:
    """Masks or replaces words; the text grows by at most `capacity` ids."""
    mask, replace, special_ids = c.data.augment_mask, c.data.augment_replace, tokenizer.special_ids
    mask_id = tokenizer.mask_id
    assert mask_id is not None or not mask, '`check_tokenizer` requires it'
    changed = []
    for word, (action, other) in zip(text, draws_W2[: len(text)].tolist(), strict=True):
        new = word
        if action < mask + replace and word[0] not in special_ids:
            if mask_id is not None and action < mask:
                new = [mask_id]
            elif candidates:
                new = candidates[int(other * len(candidates))]
            if len(new) - len(word) > capacity:
                new = word
            capacity -= len(new) - len(word)
        changed.append(new)
    return changed


def _draw_span(c: ConfigDict, text: list[Word], draws: Draws) -> list[Word]:
    """Cuts a text to a span of 1 to _SPAN_WORDS words with probability `augment_span`."""
    is_cut, size, start = draws.tolist()
    if is_cut >= c.data.augment_span or not text:
        return text
    words = 1 + int(size * min(len(text), _SPAN_WORDS))
    first = int(start * (len(text) - words + 1))
    return text[first : first + words]
