"""Turns text into ids and back: SentencePiece models and the formats of Hugging Face.

This package stays light to import, because each tokenizing process unpickles a tokenizer. The
module `selection`, which also trains tokenizers, is therefore not imported here.
"""

import dataclasses
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece as _trainer
from jaxtyping import Bool

from lightpaff_jax.data.tokenizers import huggingface, sentencepiece, transformers_classes
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import json_file, storage

# Family -> special tokens of a vocabulary that is trained for it; their ids start at 3.
SYMBOLS = {
    'gpt2': (),
    'bert': ('[CLS]', '[SEP]', '[MASK]'),
    'mass': ('[MASK]',),
}
FILES = (
    'tokenizer.model',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.txt',
    *(name for pair in transformers_classes.BYTE_LEVEL for name in pair),
)
"""The files of a tokenizer in a folder."""
_MAX_LINE = 4192  # bytes; SentencePiece drops longer lines from training,
_RESERVED = '\u2585'  # and lines with this character


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; threads may share it."""

    path: str
    """The file or folder that `read` opened."""
    fingerprint: str
    """First 16 hex digits of the SHA-256 of a SentencePiece file, or of all settings that decide ids."""
    model: sentencepiece.SentencePiece | huggingface.HuggingFace = dataclasses.field(
        compare=False, repr=False
    )

    @property
    def vocab_size(self) -> int:
        """The largest id plus 1."""
        return self.model.vocab_size

    @property
    def eos_id(self) -> int:
        """The id before the first document, between documents and after the last."""
        return self.model.ids['eos']

    @property
    def bos_id(self) -> int:
        """The id of the beginning of a text; default: that of its end."""
        return self.model.ids.get('bos', self.eos_id)

    @property
    def pad_id(self) -> int:
        """The id that fills short sequences, where weights are 0; default: that of the end."""
        return self.model.ids.get('pad', self.eos_id)

    @property
    def cls_id(self) -> int | None:
        """The id before a text or a pair of texts."""
        return self.model.ids.get('cls')

    @property
    def sep_id(self) -> int | None:
        """The id after each text of a pair."""
        return self.model.ids.get('sep')

    @property
    def mask_id(self) -> int | None:
        """The id that replaces a masked token."""
        return self.model.ids.get('mask')

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that are not text: masking neither hides them nor inserts them."""
        return self.model.special_ids

    @property
    def word_starts(self) -> Bool[np.ndarray, ' V']:
        """Whether an id starts a word; true for special tokens, tabs and line ends too."""
        return self.model.word_starts

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that `generate` and encoder-decoders read before and after a text."""
        return self.model.around

    def check_layout(self, label: str, family: str) -> None:
        """Checks that networks of a family read texts here as in transformers.

        Raises:
          UserError: transformers puts other special tokens around a text; the message begins with
            `label`.
        """
        if isinstance(self.model, huggingface.HuggingFace):
            self.model.check_layout(label, family)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens around it.

        A special token that is spelled in a text gets its id, but control pieces (</s>, <pad>) of a
        SentencePiece model are ordinary text.
        """
        return self.model.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text without control pieces (SentencePiece) or special tokens (others)."""
        return self.model.decode(ids)

    def decode_valid(self, ids: np.ndarray) -> str:
        """Decodes only the ids of the vocabulary: a network may have more, and padding is -1."""
        return self.decode(ids[(ids >= 0) & (ids < self.vocab_size)].tolist())

    def save(
        self, folder: str | pathlib.Path, family: str = '', max_length: int | None = None
    ) -> None:
        """Writes a folder that `read` and transformers open as the same tokenizer.

        It holds tokenizer.json, tokenizer_config.json and, for SentencePiece, tokenizer.model.

        Args:
          folder: the folder; created if it is missing.
          family: the family of the network, which decides the special tokens that transformers adds
            around a text. The default '' decides by the special tokens of the vocabulary.
          max_length: number of ids that the network reads, to which transformers truncates.

        Raises:
          UserError: a tokenizer.json cannot express this SentencePiece model.
        """
        self.model.save(pathlib.Path(folder), family, max_length)


def truncated_lengths(first: int, second: int, capacity: int) -> tuple[int, int]:
    """Returns the lengths of two texts after the longer one is cut until both fit in `capacity` ids.

    If the capacity is odd, the longer text (the second, if equally long) keeps one id more. This is
    the rule of the `tokenizers` library.
    """
    if first + second <= capacity:
        return first, second
    less = min(first, second, capacity // 2)
    return (capacity - less, less) if first > second else (less, capacity - less)


def find(path: str) -> str | None:
    """Finds the tokenizer of a workdir (in its folder `tokenizer`) or of a Hugging Face folder.

    Args:
      path: the folder. If it is in a bucket, the folder `tokenizer` in it is downloaded.

    Returns:
      A local path for `read`, or None if the folder has no tokenizer.
    """
    if storage.is_remote(path):
        folders = [storage.download_folder(f'{path}/tokenizer')]
    else:
        workdir = pathlib.Path(path).expanduser()
        folders = [workdir / 'tokenizer', workdir]
    return next((str(folder) for folder in folders if huggingface.find_file(folder)), None)


def read(path: str, lowercase: bool = True, label: str = '') -> Tokenizer:
    """Opens a tokenizer.

    Args:
      path: a SentencePiece model, a tokenizer.json, a vocab.txt (WordPiece), a vocab.json or
        encoder.json (byte-level BPE, next to merges.txt or vocab.bpe), or a folder. In a folder the
        first of these is read: tokenizer.model, tokenizer.json, vocab.json with merges.txt,
        encoder.json with vocab.bpe, vocab.txt, the only *.model.
      lowercase: whether a vocab.txt is lower case, unless a tokenizer_config.json decides it.
      label: the start of every message, which names the setting of the path; the default is
        `config.tokenizer.path = PATH`.

    Raises:
      UserError: the path does not exist, is malformed, or has no token that ends a text; or a
        tokenizer.json has other pieces than the tokenizer.model of its folder.
    """
    where, place = label or f'config.tokenizer.path = {path}', pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f'{where}: no such file')
    file = huggingface.find_file(place) if place.is_dir() else place
    if file is None:
        raise UserError(
            f'{where}: must hold tokenizer.model, tokenizer.json, vocab.json and merges.txt, '
            'encoder.json and vocab.bpe, vocab.txt, or one *.model'
        )
    model: sentencepiece.SentencePiece | huggingface.HuggingFace
    if file.suffix in ('.json', '.txt', '.bpe'):
        model = huggingface.read(file, lowercase, where)
    else:
        model = sentencepiece.SentencePiece(json_file.read_bytes(file, where), where)
        if place.is_dir():
            model.check_folder(place)
    return Tokenizer(str(place), hashlib.sha256(model.identity).hexdigest()[:16], model)


def train(
    texts: Iterable[str], vocab_size: int, path: str | pathlib.Path, symbols: Sequence[str] = ()
) -> None:
    """Trains a SentencePiece BPE model of exactly `vocab_size` pieces.

    The model takes text as it is: no normalization, spaces kept, bytes for unknown characters and
    line ends. Ids: padding 0, end 1, unknown 2, then `symbols`. Equal texts give an equal file.

    Args:
      texts: the training texts.
      vocab_size: the number of pieces.
      path: the file to write.
      symbols: special tokens.

    Raises:
      UserError: the texts are too small for the vocabulary, or have too many characters for it.
    """
    lines = (line for text in texts for line in _training_lines(text))
    model = io.BytesIO()
    try:
        _trainer.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type='bpe',
            vocab_size=vocab_size,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=list(symbols),
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name='identity',
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_MAX_LINE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition(']')[2].strip() or str(error)
        raise UserError(
            f'config.student.vocab_size = {vocab_size}: such a vocabulary cannot be trained: {reason}'
        ) from error
    pathlib.Path(path).write_bytes(model.getvalue())


def _training_lines(text: str) -> Iterator[str]:
    """Divides a text into lines that SentencePiece does not drop; cuts a long line at a space."""
    for line in re.split(f'[\n{_RESERVED}]', text):
        data, start = line.encode(), 0
        while len(data) - start > _MAX_LINE:
            end = data.rfind(b' ', start + 1, start + _MAX_LINE + 1)  # begins the next word
            if end < 0:
                end = start + _MAX_LINE
                while data[end] & 0xC0 == 0x80:  # inside a character
                    end -= 1
            yield data[start:end].decode()
            start = end
        if data[start:]:
            yield data[start:].decode()
