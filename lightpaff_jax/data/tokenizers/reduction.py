"""Reduces a WordPiece vocabulary to the pieces that a student needs.

A reduced tokenizer has some pieces of the whole one, and all its settings. Each of its ids stands for
an id of the whole tokenizer, so that a teacher of the whole vocabulary can read them.
"""

import itertools
import operator
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.data.tokenizers.huggingface import HuggingFace
from lightpaff_jax.errors import UserError

VERSION = 2  # of the choice of pieces; a new version makes cached vocabularies be chosen again
_TEXTS = 1000  # texts that are tokenized at once


def required_ids(whole: Tokenizer, label: str) -> frozenset[int]:
    """Returns the ids of every reduced vocabulary: special tokens and single characters.

    They ensure that a word is `[UNK]` only if it is `[UNK]` in the whole vocabulary.

    Args:
      whole: the tokenizer to reduce.
      label: the start of messages.

    Raises:
      UserError: the tokenizer is no WordPiece tokenizer, or a character of a piece is no piece.
    """
    model = _wordpiece(whole)
    if model is None:
        raise UserError(
            f'{label}: {whole.path} must be a WordPiece tokenizer, such as that of BERT'
        )
    characters: dict[str, str] = {}  # piece of one character -> the first piece that has it
    for piece, i in sorted(model.pieces.items(), key=operator.itemgetter(1)):
        if piece and i not in model.special_ids:
            for character in _characters(piece, str(model.prefix)):
                characters.setdefault(character, piece)
    for character, piece in characters.items():
        if character not in model.pieces:
            raise UserError(
                f'{label}: {whole.path} has the piece {piece!r} but not {character!r}: must have '
                'each character of its pieces, otherwise words are lost'
            )
    return model.required_ids | {model.pieces[character] for character in characters}


def _wordpiece(tokenizer: Tokenizer) -> HuggingFace | None:
    model = tokenizer.model
    return model if isinstance(model, HuggingFace) and model.prefix else None


def _characters(piece: str, prefix: str) -> list[str]:
    """Returns the pieces of one character into which a piece can be cut."""
    continues = piece.startswith(prefix) and piece != prefix
    letters = piece.removeprefix(prefix) if continues else piece
    pieces = [prefix + letter for letter in letters]
    return pieces if continues else [letters[0], *pieces[1:]]


def reduce(
    whole: Tokenizer, required: frozenset[int], texts: Iterable[Iterable[str]], size: int
) -> HuggingFace:
    """Chooses the pieces of a reduced tokenizer, which keep their order.

    They are the required ones, then the most frequent ones: those with the greatest shares of the
    tokens of each dataset, as the whole tokenizer cuts it, averaged over the datasets. Of equally
    frequent pieces, those with lower ids are chosen first.

    Args:
      whole: the tokenizer to reduce.
      required: its `required_ids`.
      texts: the texts of each dataset.
      size: number of pieces, at least that of the required ones.
    """
    model = _wordpiece(whole)
    assert model is not None, '`required_ids` checks it'
    shares = np.zeros(whole.vocab_size)
    for dataset in texts:
        stream, counts = iter(dataset), np.zeros(len(shares), int)
        while chunk := [*itertools.islice(stream, _TEXTS)]:
            ids = np.fromiter(itertools.chain.from_iterable(whole.encode(chunk)), int)
            counts += np.bincount(ids, minlength=len(counts))
        shares += counts / max(1, counts.sum())
    others = {*model.pieces.values()} - required
    # [unused0] and the like come last.
    order = sorted(others, key=lambda i: (i in whole.special_ids, -shares[i], i))
    return model.select(sorted([*required, *order[: size - len(required)]]))


def whole_ids(whole: Tokenizer, reduced: Tokenizer) -> Int[np.ndarray, ' V']:
    """Returns the id in the whole tokenizer of each id of a reduced one.

    Raises:
      UserError: the other tokenizer is not a reduction of the whole one; the message is the reason.
    """
    model, reduced_model = _wordpiece(whole), _wordpiece(reduced)
    if model is None or reduced_model is None:
        raise UserError('both must be WordPiece tokenizers')
    pieces = sorted(reduced_model.pieces, key=reduced_model.pieces.__getitem__)
    foreign = next((piece for piece in pieces if piece not in model.pieces), None)
    if foreign is not None:
        raise UserError(f'its piece {foreign!r} must be in the other')
    ids = [model.pieces[piece] for piece in pieces]
    missing = sorted(model.required_ids.difference(ids))
    if missing:
        spellings = {i: piece for piece, i in model.pieces.items()}
        raise UserError(f'must have the special token {spellings[missing[0]]!r} of the other')
    selection = model.select(ids)
    if (selection.identity, selection.ids) != (reduced_model.identity, reduced_model.ids):
        raise UserError('both must have the same settings and special tokens')
    return np.array(ids, np.int32)
