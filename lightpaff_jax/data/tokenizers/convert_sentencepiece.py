"""Converts a SentencePiece model to a tokenizer of the `tokenizers` library with equal ids.

SentencePiece writes a space as U+2581, so a real U+2581 in a text looks like a space. The converted
tokenizer uses real spaces. If the model does not distinguish the two, U+2581 is mapped to a space
first; if it does (a vocabulary trained by this project), they stay distinct.

Why the merges of a BPE model can be listed: SentencePiece merges any two neighbours that form a
piece, best score first, then leftmost. `tokenizers` merges the pairs of a list, first pair first,
then leftmost. No merge that contributes to a piece crosses its borders, so inside of the piece
merges happen as they would for the piece without context, and its last merge always joins the same
two parts. A list of one pair for each piece, in the order of the scores, is therefore the same
algorithm.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lightpaff_jax.errors import UserError

SPACE = '\u2581'
# Types of a piece, as in sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
SPECIAL_TYPES = (_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED)
_UNIGRAM, _BPE = 1, 2  # types of a model, likewise
_RULE = 'which a tokenizer.json cannot express'
Encode = Callable[[Sequence[str]], list[list[int]]]


def convert(proto: Any, encode: Encode, keep_marks: bool, where: str) -> tokenizers.Tokenizer:
    """Converts a model to a tokenizer without added tokens and without a post-processor.

    The ids are equal for every text, with two exceptions inside of `tokenizers`, neither of which
    concerns a vocabulary trained by this project:

    - It looks up a model's normalization rules (`precompiled_charsmap`) by characters with their
      combining marks. The results differ for some decomposed characters: Hangul in jamo, half-width
      kana with a voicing mark, letters whose case is folded too.
    - It adds the scores of a unigram model in float64, which can decide a tie differently.

    Args:
      proto: the ModelProto.
      encode: maps texts to ids, as the model does.
      keep_marks: whether a U+2581 in a text becomes its own bytes; if not, it is a space.
      where: the model's name in messages.

    Raises:
      UserError: the model uses a feature that `tokenizers` lacks.
    """
    kind, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    for feature, is_used in {
        f'model type {kind}': kind not in (_BPE, _UNIGRAM),
        'unused pieces': any(piece.type == _UNUSED for piece in proto.pieces),
        'treat_whitespace_as_suffix': proto.trainer_spec.treat_whitespace_as_suffix,
        'spaces that are not escaped': not rules.escape_whitespaces,
        'a space in a symbol': any(SPACE in symbol for symbol in _texts(proto, _USER_DEFINED)),
        'a control piece of one character': any(
            len(text) == 1 for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE)
        ),
    }.items():
        if is_used:
            raise UserError(f'{where}: has {feature}, {_RULE}')
    model = _bpe(proto, where) if kind == _BPE else _unigram(proto)
    fast = tokenizers.Tokenizer(model)
    steps = _normalizers(rules, keep_marks)
    if steps:
        fast.normalizer = normalizers.Sequence(steps)
    splits = _bpe_splits(proto, encode, where) if kind == _BPE else _unigram_splits(proto, where)
    if splits:
        fast.pre_tokenizer = pre_tokenizers.Sequence(splits)
    fast.decoder = _decoder(rules)
    for symbol in _texts(proto, _USER_DEFINED):
        # SentencePiece normalizes the text around a symbol, never the symbol.
        plain = fast.normalizer.normalize_str(symbol) if steps else symbol
        if plain.removeprefix(' ' if rules.add_dummy_prefix else '') != symbol:
            raise UserError(f'{where}: its normalization changes its symbol {symbol!r}, {_RULE}')
    return fast


def _texts(proto: Any, *types: int) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type in types]


def _with_spaces(piece: str) -> str:
    return piece.replace(SPACE, ' ')


def _normalizers(rules: Any, keep_marks: bool) -> list:
    steps: list = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r'\A +'), ''))
        steps.append(normalizers.Replace(tokenizers.Regex(' {2,}'), ' '))
    if not keep_marks:
        steps.append(normalizers.Replace(SPACE, ' '))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r' +\z'), ''))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(' '))
    return steps


def _decoder(rules: Any) -> decoders.Sequence:
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        steps.append(decoders.Strip(' ', 1, 0))
    return decoders.Sequence(steps)


def _bpe(proto: Any, where: str) -> models.BPE:
    return models.BPE(
        {_with_spaces(piece.piece): i for i, piece in enumerate(proto.pieces)},
        _merges(proto, where),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=bool(_texts(proto, _USER_DEFINED)),
    )


def _merges(proto: Any, where: str) -> list[tuple[str, str]]:
    """Returns the last merge of each piece that merges can form, best score first."""
    normal = {
        _with_spaces(piece.piece): piece.score for piece in proto.pieces if piece.type == _NORMAL
    }
    scores = {piece: score for piece, score in normal.items() if len(piece) > 1}
    if len({*scores.values()}) != len(scores):
        raise UserError(f'{where}: has pieces of equal score, {_RULE}')
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pair = _last_merge(piece, scores)
        unknown = [part for part in pair or () if part not in normal]
        if unknown:
            raise UserError(f'{where}: has {piece!r} but no piece {unknown[0]!r}, {_RULE}')
        if pair:
            merges.append(pair)
        elif _texts(proto, _USER_DEFINED):  # ignore_merges would look up a segment that spells it
            raise UserError(f'{where}: has symbols, and {piece!r} that no merge forms, {_RULE}')
    return merges


def _last_merge(piece: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """Returns the two parts that the last merge of a piece joins; None if merges cannot form it."""
    parts = list(piece)
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        best = max(pairs, key=lambda pair: scores.get(pair, -math.inf))  # max returns the leftmost
        if best not in scores:
            return None
        i = pairs.index(best)
        parts[i : i + 2] = [best]
    return parts[0], parts[1]


def _bpe_splits(proto: Any, encode: Encode, where: str) -> list:
    """Splits off symbols as segments of their own, which the model looks up as a whole.

    The model would also look up a segment that spells a control piece or a byte piece. Such a
    segment is split after its first piece. This changes nothing else: BPE merges on either side of
    the border of two pieces as if the other side were not there.
    """
    symbols = sorted(_texts(proto, _USER_DEFINED), key=len, reverse=True)
    if not symbols:
        return []
    cuts = []
    for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE):
        pieces = [proto.pieces[i] for i in encode([symbols[0] + text])[0]]
        first = pieces[1 + [piece.piece for piece in pieces].index(symbols[0])]
        if first.type == _UNKNOWN:
            raise UserError(f'{where}: has no piece for {text[0]!r}, {_RULE}')
        cuts.append((text, len(first.piece) if first.type == _NORMAL else 1))
    whole = [f'{re.escape(text[:cut])}(?={re.escape(text[cut:])}\\z)' for text, cut in cuts]
    return [
        _split('|'.join(map(re.escape, symbols)), 'isolated'),
        _split(rf'\A(?:{"|".join(whole)})', 'merged_with_previous'),
    ]


def _unigram(proto: Any) -> models.Unigram:
    highest = max((piece.score for piece in proto.pieces if piece.type == _NORMAL), default=0.0)

    def score(piece: Any) -> float:
        if piece.type == _USER_DEFINED:  # as in SentencePiece's unigram_model.cc
            return len(piece.piece.encode()) * highest - 0.1
        return piece.score

    vocabulary = [(_with_spaces(piece.piece), score(piece)) for piece in proto.pieces]
    spec = proto.trainer_spec
    return models.Unigram(vocabulary, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)


def _unigram_splits(proto: Any, where: str) -> list:
    """Splits a text that spells a control piece or a byte piece, which the model would look up.

    The split is between two characters that are neighbours in no piece, so every segmentation has
    a border there anyway.
    """
    pieces = [_with_spaces(piece) for piece in _texts(proto, _NORMAL, _USER_DEFINED)]
    joined = {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}
    characters = {piece for piece in pieces if len(piece) == 1}

    def can_split(text: str, i: int) -> bool:
        neighbours = text[i - 1 : i + 1]
        # Neighbours that are both unknown are fused to one unknown token.
        fused = characters.isdisjoint(neighbours) and not proto.trainer_spec.byte_fallback
        return neighbours not in joined and not fused

    patterns = []
    for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE):
        cut = next((i for i in range(1, len(text)) if can_split(text, i)), 0)
        if not cut:
            raise UserError(f'{where}: has pieces that spell {text!r} in a text, {_RULE}')
        patterns.append(f'{re.escape(text[:cut])}(?={re.escape(text[cut:])})')
    return [_split('|'.join(patterns), 'merged_with_previous')]


def _split(pattern: str, behavior: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior)
