"""Reads SentencePiece models."""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages

from lightpaff_jax.data.tokenizers import convert_sentencepiece, huggingface
from lightpaff_jax.data.tokenizers.convert_sentencepiece import SPACE
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import json_file


class SentencePiece:
    """A SentencePiece model as the model of a `Tokenizer`.

    For a model that `tokenizers.train` made, decode(encode([x])[0]) == x for all texts x.
    """

    def __init__(self, data: bytes, where: str):
        """Opens a model.

        Args:
          data: the content of its file.
          where: the model's name in messages.

        Raises:
          UserError: the content is not a model, or the model has no end-of-sentence id.
        """
        self._where = where
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
            self._proto = messages.ModelProto.FromString(data)  # type: ignore[attr-defined]
            # Protocol buffers return a piece that is not UTF-8 as bytes, or raise a ValueError.
            self._pieces = [piece.piece + '' for piece in self._proto.pieces]
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f'{where}: must be a SentencePiece model') from error
        if self._processor.eos_id() < 0:
            raise UserError(f'{where}: must have an end-of-sentence id')
        self.identity = data
        self.vocab_size = len(self._pieces)
        types = convert_sentencepiece.SPECIAL_TYPES
        special = {i for i, piece in enumerate(self._proto.pieces) if piece.type in types}
        # Roles that the model declares take precedence over the usual spellings; -1 is none.
        declared = {
            role: getattr(self._processor, f'{role}_id')() for role in ('eos', 'pad', 'bos', 'unk')
        }
        ids = huggingface.standard_ids({self._pieces[i]: i for i in special}) | declared
        self.ids = {role: i for role, i in ids.items() if i >= 0}
        self.special_ids = frozenset(special)

    def __reduce__(self):
        """Pickles only the content of the file: the processor cannot be pickled."""
        return SentencePiece, (self.identity, self._where)

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Pieces that begin with a space, tabs and line ends, special tokens."""
        starts = np.array(
            [piece.startswith((SPACE, *huggingface.LINE_BYTES)) for piece in self._pieces]
        )
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        if not self._space_ids:
            return self._processor.encode(list(texts))
        # SentencePiece would read U+2581 as a space, so it is written as its bytes.
        parts = [text.split(SPACE) for text in texts]
        encoded = iter(self._processor.encode(list(itertools.chain.from_iterable(parts))))
        return [self._join_parts([next(encoded) for _ in part]) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without control pieces."""
        return self._processor.decode([int(i) for i in ids])

    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Always empty: a SentencePiece model adds no special tokens around a text."""

    def save(self, folder: pathlib.Path, family: str, max_length: int | None) -> None:
        """Writes tokenizer.model, tokenizer.json and tokenizer_config.json; see `Tokenizer.save`.

        Raises:
          UserError: a tokenizer.json cannot give the same ids.
        """
        fast = convert_sentencepiece.convert(
            self._proto, self.encode, bool(self._space_ids), self._where
        )
        tokens = {role: self._pieces[i] for role, i in self.ids.items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'tokenizer.model').write_bytes(self.identity)
        family = family or ('bert' if 'cls' in tokens else 'mass')
        # A text that spells a control piece is ordinary text for SentencePiece.
        huggingface.save(folder, fast, tokens, family, max_length, split_special_tokens=True)

    def check_folder(self, folder: pathlib.Path) -> None:
        """Checks that transformers, which reads other files of the folder, gives the same ids.

        Raises:
          UserError: tokenizer_config.json has the class of another tokenizer, or tokenizer.json has
            other pieces.
        """
        fast, config = folder / 'tokenizer.json', folder / 'tokenizer_config.json'
        if config.is_file():
            name = json_file.read(config, dict, f'{self._where}: {config.name}').get(
                'tokenizer_class'
            )
            if name not in (None, 'PreTrainedTokenizerFast', 'TokenizersBackend'):
                raise UserError(
                    f'{self._where}: {config.name} has tokenizer_class = {name!r:.80}: must be '
                    'PreTrainedTokenizerFast, as the ids of a SentencePiece model are read unchanged'
                )
        if fast.is_file():
            where = f'{self._where}: {fast.name}'
            vocabulary = json_file.read(fast, {'model': {'vocab': dict | list}}, where)['model'][
                'vocab'
            ]
            if isinstance(vocabulary, list):
                vocabulary = {str(piece[0]): i for i, piece in enumerate(vocabulary) if piece}
            pieces = {piece.replace(SPACE, ' '): i for i, piece in enumerate(self._pieces)}
            if vocabulary != pieces:
                raise UserError(
                    f'{where}: has {len(vocabulary)} tokens, not the {len(pieces)} pieces of the '
                    'SentencePiece model next to it: remove one of them'
                )

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        """The byte pieces of SPACE, if the model otherwise keeps texts as they are; else empty."""
        rules = self._proto.normalizer_spec
        if rules.add_dummy_prefix or rules.remove_extra_whitespaces:
            return []
        ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
        return ids if all(self._processor.is_byte(i) for i in ids) else []

    def _join_parts(self, parts: list[list[int]]) -> list[int]:
        first, *rest = parts
        return first + [i for part in rest for i in (*self._space_ids, *part)]
