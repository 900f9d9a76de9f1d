"""A SentencePiece model as a tokenizer of the `tokenizers` library that gives equal ids.

SentencePiece writes a space as U+2581, so a real U+2581 looks like one. Here a space is a space:
what is not to be told apart by the model is mapped before it, what is (a vocabulary of ours) stays
apart.

Why the merges of a BPE model can be listed. SentencePiece merges any two neighbours that make a
piece, best score first, then leftmost; `tokenizers` merges the pairs of a list, first pair first,
then leftmost. No merge that makes a piece crosses its borders, so inside them all goes as it does
for the piece alone, and its last merge is always of the same two parts. One pair a piece, in the
order of the scores, is therefore the same algorithm.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lightpaff_jax.errors import UserError

SPACE = '\u2581'
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # types of a piece
SPECIAL = (_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED)
_UNIGRAM, _BPE = 1, 2  # types of a model
_NONE = 'which no tokenizer.json can do'
Encode = Callable[[Sequence[str]], list[list[int]]]


def convert(proto, encode: Encode, keeps_mark: bool, where: str) -> tokenizers.Tokenizer:
    """A SentencePiece model -> a tokenizer without added tokens or post-processor.

    Its ids are equal for every text, but for two things that are inside of `tokenizers`. A given
    normalisation (`precompiled_charsmap`) is looked up by characters with their marks there, which
    differs for some decomposed ones: Hangul in jamo, half-width kana with a voicing mark, letters
    whose case is folded too. And scores of a unigram model are added in float64, which may decide
    a tie otherwise. A vocabulary of ours has neither.

    Args:
      proto: the ModelProto.
      encode: texts to ids, as the model does.
      keeps_mark: whether a U+2581 in a text becomes its own bytes; else it is a space.
      where: the model's name in messages.

    Raises:
      UserError: the model has a part that `tokenizers` lacks.
    """
    kind, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    for name, found in {
        f'model type {kind}': kind not in (_BPE, _UNIGRAM),
        'unused pieces': any(piece.type == _UNUSED for piece in proto.pieces),
        'treat_whitespace_as_suffix': proto.trainer_spec.treat_whitespace_as_suffix,
        'spaces that are not escaped': not rules.escape_whitespaces,
        'a space in a symbol': any(SPACE in symbol for symbol in _texts(proto, _USER_DEFINED)),
        'a control piece of one character': any(
            len(text) == 1 for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE)
        ),
    }.items():
        if found:
            raise UserError(f'{where}: has {name}, {_NONE}')
    model = _bpe(proto, where) if kind == _BPE else _unigram(proto)
    fast = tokenizers.Tokenizer(model)
    steps = _normalizers(rules, keeps_mark)
    if steps:
        fast.normalizer = normalizers.Sequence(steps)
    splits = _bpe_splits(proto, encode, where) if kind == _BPE else _unigram_splits(proto, where)
    if splits:
        fast.pre_tokenizer = pre_tokenizers.Sequence(splits)
    fast.decoder = _decoder(rules)
    for symbol in _texts(proto, _USER_DEFINED):
        # SentencePiece normalises around a symbol, never inside of one.
        plain = fast.normalizer.normalize_str(symbol) if steps else symbol
        if plain.removeprefix(' ' if rules.add_dummy_prefix else '') != symbol:
            raise UserError(f'{where}: its normalisation changes its symbol {symbol!r}, {_NONE}')
    return fast


def _texts(proto, *types: int) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type in types]


def _spaced(piece: str) -> str:
    return piece.replace(SPACE, ' ')


def _normalizers(rules, keeps_mark: bool) -> list:
    """What happens to a text, in SentencePiece's order."""
    steps: list = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r'\A +'), ''))
        steps.append(normalizers.Replace(tokenizers.Regex(' {2,}'), ' '))
    if not keeps_mark:
        steps.append(normalizers.Replace(SPACE, ' '))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r' +\z'), ''))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(' '))
    return steps


def _decoder(rules):
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        steps.append(decoders.Strip(' ', 1, 0))
    return decoders.Sequence(steps)


def _bpe(proto, where: str) -> models.BPE:
    return models.BPE(
        {_spaced(piece.piece): i for i, piece in enumerate(proto.pieces)},
        _merges(proto, where),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=bool(_texts(proto, _USER_DEFINED)),
    )


def _merges(proto, where: str) -> list[tuple[str, str]]:
    """For each piece that can be made, best score first, the two that make it."""
    normal = {_spaced(piece.piece): piece.score for piece in proto.pieces if piece.type == _NORMAL}
    scores = {piece: score for piece, score in normal.items() if len(piece) > 1}
    if len({*scores.values()}) != len(scores):
        raise UserError(f'{where}: has pieces of equal score, {_NONE}')
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pair = _last_merge(piece, scores)
        unknown = [part for part in pair or () if part not in normal]
        if unknown:
            raise UserError(f'{where}: has {piece!r} but no piece {unknown[0]!r}, {_NONE}')
        if pair:
            merges.append(pair)
        elif _texts(proto, _USER_DEFINED):  # a segment that spells it would be looked up whole
            raise UserError(f'{where}: has symbols, and {piece!r} that no merge makes, {_NONE}')
    return merges


def _last_merge(piece: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """The two parts that make `piece` in the end; None if they never meet."""
    parts = list(piece)
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        best = max(pairs, key=lambda pair: scores.get(pair, -math.inf))  # the leftmost of equals
        if best not in scores:
            return None
        i = pairs.index(best)
        parts[i : i + 2] = [best]
    return parts[0], parts[1]


def _bpe_splits(proto, encode: Encode, where: str) -> list:
    """Symbols become segments of their own, which the model looks up whole.

    So would a segment be that spells a control piece or a byte piece. It is cut after its first
    piece, which changes nothing else: BPE merges on either side of the border of two pieces as if
    the other was not there.
    """
    symbols = sorted(_texts(proto, _USER_DEFINED), key=len, reverse=True)
    if not symbols:
        return []
    cuts = []
    for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE):
        found = [proto.pieces[i] for i in encode([symbols[0] + text])[0]]
        after = found[1 + [piece.piece for piece in found].index(symbols[0])]
        if after.type == _UNKNOWN:
            raise UserError(f'{where}: has no piece for {text[0]!r}, {_NONE}')
        cuts.append((text, len(after.piece) if after.type == _NORMAL else 1))
    whole = [f'{re.escape(text[:cut])}(?={re.escape(text[cut:])}\\z)' for text, cut in cuts]
    return [_split('|'.join(map(re.escape, symbols)), 'isolated'),
            _split(rf'\A(?:{"|".join(whole)})', 'merged_with_previous')]  # fmt: skip


def _unigram(proto) -> models.Unigram:
    highest = max((piece.score for piece in proto.pieces if piece.type == _NORMAL), default=0.0)

    def score(piece) -> float:
        if piece.type == _USER_DEFINED:  # as SentencePiece's unigram_model.cc has it
            return len(piece.piece.encode()) * highest - 0.1
        return piece.score

    vocabulary = [(_spaced(piece.piece), score(piece)) for piece in proto.pieces]
    spec = proto.trainer_spec
    return models.Unigram(vocabulary, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)


def _unigram_splits(proto, where: str) -> list:
    """Cuts a text that spells a control piece or a byte piece, which the model would take for one.

    The cut is between two characters that are neighbours in no piece, so it was there anyway.
    """
    pieces = [_spaced(piece) for piece in _texts(proto, _NORMAL, _USER_DEFINED)]
    joined = {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}
    known = {piece for piece in pieces if len(piece) == 1}

    def free(text: str, i: int) -> bool:
        fused = not known & {*text[i - 1 : i + 1]} and not proto.trainer_spec.byte_fallback
        return text[i - 1 : i + 1] not in joined and not fused

    patterns = []
    for text in _texts(proto, _CONTROL, _UNKNOWN, _BYTE):
        cut = next((i for i in range(1, len(text)) if free(text, i)), 0)
        if not cut:
            raise UserError(f'{where}: has pieces that spell {text!r} in a text, {_NONE}')
        patterns.append(f'{re.escape(text[:cut])}(?={re.escape(text[cut:])})')
    return [_split('|'.join(patterns), 'merged_with_previous')]


def _split(pattern: str, behavior: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior)
