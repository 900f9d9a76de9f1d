"""Text to ids and back: SentencePiece models, ours or given, and Hugging Face's formats."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece as _trainer
from jaxtyping import Bool

from lightpaff_jax.data.tokenizers import huggingface, sentencepiece
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

SYMBOLS = {
    'gpt2': (),
    'bert': ('[CLS]', '[SEP]', '[MASK]'),
    'mass': ('[MASK]',),
}  # family -> special tokens of a vocabulary trained for it, with ids from 3
FILES = (
    'tokenizer.model', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
    'added_tokens.json', 'vocab.txt', *(name for pair in huggingface.BYTE_LEVEL for name in pair),
)  # fmt: skip
"""Names that a tokenizer may have in a folder."""
_LONGEST_LINE = 4192  # bytes; SentencePiece drops longer ones from training


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary. Threads may share one."""

    path: str
    """The file or folder that `read` was given."""
    fingerprint: str
    """First 16 hex digits of a SHA-256: of a SentencePiece file, or of what the ids depend on."""
    model: sentencepiece.SentencePiece | huggingface.HuggingFace = dataclasses.field(
        compare=False, repr=False
    )

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.model.vocab_size

    @property
    def eos_id(self) -> int:
        """Stands before the first document, between two, and after the last."""
        return self.model.ids['eos']

    @property
    def pad_id(self) -> int:
        """Fills a short sequence, where weights are 0; eos where there is no padding."""
        return self.model.ids.get('pad', self.eos_id)

    @property
    def cls_id(self) -> int | None:
        """Stands before a sentence or a pair."""
        return self._id('cls')

    @property
    def sep_id(self) -> int | None:
        """Stands after each sentence of a pair."""
        return self._id('sep')

    @property
    def mask_id(self) -> int | None:
        """Stands where a token is hidden."""
        return self._id('mask')

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary cannot write."""
        return self._id('unk')

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: neither hidden by a mask nor put in place of a token."""
        return self.model.special_ids

    @property
    def word_starts(self) -> Bool[np.ndarray, ' V']:
        """Whether an id begins a word; special tokens, tabs and line ends do too."""
        return self.model.word_starts

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; none is added to them.

        A text that spells a special token has its id, unless it is a control piece (</s>, <pad>)
        of a SentencePiece model.
        """
        return self.model.encode(texts)

    def encode_pair(self, first: str, second: str, length: int) -> tuple[list[int], list[int]]:
        """Ids and token types of [CLS] first [SEP] second [SEP], or of [CLS] first [SEP].

        Args:
          first: a text.
          second: another, or '' for none.
          length: the most ids there may be; the longer text is cut first.
        """
        cls, sep = self.cls_id, self.sep_id
        assert cls is not None, 'prepare() refuses such a tokenizer'
        assert sep is not None, 'prepare() refuses such a tokenizer'
        if not second:
            ids = [cls, *self.encode([first])[0][: length - 2], sep]
            return ids, [0] * len(ids)
        a, b = self.encode([first, second])
        kept_a, kept_b = truncated_lengths(len(a), len(b), length - 3)
        ids = [cls, *a[:kept_a], sep, *b[:kept_b], sep]
        return ids, [0] * (kept_a + 2) + [1] * (kept_b + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; without control pieces of SentencePiece and special tokens of the others."""
        return self.model.decode(ids)

    def decode_valid(self, ids: np.ndarray) -> str:
        """Decodes the ids that the vocabulary has: a network may have more, and padding is -1."""
        return self.decode(ids[(ids >= 0) & (ids < self.vocab_size)].tolist())

    def save(self, folder: str | pathlib.Path, family: str = '') -> None:
        """Writes a folder that `read` and transformers read, to the same ids.

        It holds tokenizer.json and tokenizer_config.json, and tokenizer.model of SentencePiece.

        Args:
          folder: made where it is missing.
          family: of the network that reads the ids; decides the special tokens that transformers
            adds around a text. '' goes by those there are.

        Raises:
          UserError: no tokenizer.json can give the ids of this SentencePiece model.
        """
        self.model.save(pathlib.Path(folder), family)

    def _id(self, name: str) -> int | None:
        return self.model.ids.get(name)


def truncated_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many ids of two texts are kept so that both fit in `room`, the longer cut first.

    Of an odd room the longer one keeps more, of equal ones the second, as in `tokenizers`.
    """
    if first + second <= room:
        return first, second
    less = min(first, second, room // 2)
    return (room - less, less) if first > second else (less, room - less)


def find(path: str) -> str | None:
    """The tokenizer of a workdir (its folder `tokenizer`) or of a Hugging Face folder, if any."""
    folder = pathlib.Path(path).expanduser()
    places = (folder / 'tokenizer', folder)
    for place in (
        [storage.download_folder(f'{path}/tokenizer')] if storage.is_remote(path) else places
    ):
        if huggingface.find_file(place):
            return str(place)
    return None


def read(path: str, lowercase: bool = True, key: str = 'tokenizer.path') -> Tokenizer:
    """Opens a tokenizer.

    Args:
      path: a SentencePiece model, tokenizer.json, vocab.txt (WordPiece), vocab.json or
        encoder.json (byte-level BPE, with merges.txt or vocab.bpe beside it), or a folder with
        one: what comes first of tokenizer.model, tokenizer.json, vocab.json and merges.txt,
        encoder.json and vocab.bpe, vocab.txt, one other *.model.
      lowercase: whether a vocab.txt is lower case, where no tokenizer_config.json says so.
      key: the configuration's key that named it, for messages.

    Raises:
      UserError: there is none, or it is malformed, or has no token that ends a text.
    """
    where, place = f'config.{key} = {path}', pathlib.Path(path).expanduser()
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
        model = sentencepiece.SentencePiece(file.read_bytes(), where)
    return Tokenizer(str(place), hashlib.sha256(model.identity).hexdigest()[:16], model)


def train(
    texts: Iterable[str], vocab_size: int, path: str | pathlib.Path, symbols: Sequence[str] = ()
) -> None:
    """Writes a SentencePiece BPE model of exactly `vocab_size` pieces to `path`.

    Text is taken as it is: no normalisation, spaces kept, bytes for unknown characters
    and line ends. Ids: padding 0, end 1, unknown 2, then `symbols`. Equal texts give an equal file.

    Raises:
      UserError: the texts cannot fill, or their characters do not fit, the vocabulary.
    """
    lines = (line for text in texts for line in text.split('\n') if line)
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
            max_sentence_length=_LONGEST_LINE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition(']')[2].strip() or str(error)
        raise UserError(
            f'config.student.vocab_size = {vocab_size}: no such vocabulary can be trained: {reason}'
        ) from error
    pathlib.Path(path).write_bytes(model.getvalue())
