"""SentencePiece models behind the interface of tokenizers.py."""

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


class SentencePiece:
    """A model. With one of `tokenizers.train`, decode(encode([x])[0]) == x for all x."""

    def __init__(self, data: bytes, where: str):
        """Opens a model.

        Args:
          data: the content of its file.
          where: its name in messages.

        Raises:
          UserError: this is no model, or one without an end-of-sentence id.
        """
        self._where = where
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise UserError(f'{where}: must be a SentencePiece model') from error
        if self._processor.eos_id() < 0:
            raise UserError(f'{where}: must have an end-of-sentence id')
        self.identity = data
        self._proto = messages.ModelProto.FromString(data)  # type: ignore[attr-defined]
        self._pieces = [piece.piece for piece in self._proto.pieces]
        self.vocab_size = len(self._pieces)
        types = convert_sentencepiece.SPECIAL
        special = {i for i, piece in enumerate(self._proto.pieces) if piece.type in types}
        self.ids = self._named({self._pieces[i]: i for i in special})
        self.special_ids = frozenset(special)

    def __reduce__(self):
        """A pickle holds the file's content."""
        return SentencePiece, (self.identity, self._where)

    def _named(self, special: dict[str, int]) -> dict[str, int]:
        """Name -> id: as the model says, or else by what the piece is called."""
        own = {
            name: getattr(self._processor, f'{name}_id')() for name in ('eos', 'pad', 'bos', 'unk')
        }
        found = huggingface.standard_ids(special)
        return {name: i for name, i in (found | own).items() if i >= 0}

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Pieces that begin with a space, tabs and line ends, special tokens."""
        starts = np.array(
            [piece.startswith((SPACE, *huggingface.LINE_BYTES)) for piece in self._pieces]
        )
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._space_ids:
            return self._processor.encode(list(texts))
        parts = [text.split(SPACE) for text in texts]
        encoded = iter(self._processor.encode(list(itertools.chain.from_iterable(parts))))
        return [self._joined([next(encoded) for _ in part]) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: pathlib.Path, family: str) -> None:
        """Writes tokenizer.model, tokenizer.json and tokenizer_config.json.

        Raises:
          UserError: no tokenizer.json can give the same ids.
        """
        fast = convert_sentencepiece.convert(
            self._proto, self.encode, bool(self._space_ids), self._where
        )
        tokens = {name: self._pieces[i] for name, i in self.ids.items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'tokenizer.model').write_bytes(self.identity)
        # Text that spells a control piece is text to SentencePiece.
        family = family or ('bert' if 'cls' in tokens else 'mass')
        huggingface.save(folder, fast, tokens, family, split_special_tokens=True)

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        """The bytes of SPACE as pieces, for a model that then keeps a text as it is; else none."""
        rules = self._proto.normalizer_spec
        if rules.add_dummy_prefix or rules.remove_extra_whitespaces:
            return []
        ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
        return ids if all(self._processor.is_byte(i) for i in ids) else []

    def _joined(self, parts: list[list[int]]) -> list[int]:
        first, *rest = parts
        return first + [i for part in rest for i in (*self._space_ids, *part)]
