"""Text to ids and back. SentencePiece models, ours or given."""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence

import sentencepiece
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import pydocs, sources

_SPACE = '\u2581'  # SentencePiece writes a space so, and would decode a real one to a space
_LONGEST_LINE = 4192  # bytes; SentencePiece drops longer ones from training


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model. With a model of `train`, decode(encode([x])[0]) == x for all x."""

    path: str
    hash: str  # first 16 hex digits of the SHA-256 of the file
    processor: sentencepiece.SentencePieceProcessor = dataclasses.field(compare=False, repr=False)

    @property
    def vocab_size(self) -> int:
        return self.processor.get_piece_size()

    @property
    def eos_id(self) -> int:
        """Stands before the first document, between two, and after the last."""
        return self.processor.eos_id()

    @property
    def pad_id(self) -> int:
        """Fills a short sequence, where weights are 0; eos in a model that has no padding."""
        pad = self.processor.pad_id()
        return pad if pad >= 0 else self.eos_id

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without eos."""
        if not self._space_ids:
            return self.processor.encode(list(texts))
        parts = [text.split(_SPACE) for text in texts]
        encoded = iter(self.processor.encode(list(itertools.chain.from_iterable(parts))))
        return [self._joined([next(encoded) for _ in part]) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode([int(i) for i in ids])

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        """The bytes of _SPACE as pieces; none in a model without byte fallback."""
        ids = [self.processor.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE.encode()]
        return ids if all(self.processor.is_byte(i) for i in ids) else []

    def _joined(self, parts: list[list[int]]) -> list[int]:
        first, *rest = parts
        return first + [i for part in rest for i in (*self._space_ids, *part)]


def load(c: ConfigDict) -> Tokenizer:
    """The tokenizer of `config.tokenizer.path`, or one trained on the train split of the text.

    The latter has `config.student.vocab_size` pieces and is kept in `config.data.cache`. Of
    pydocs it sees every package, whatever `config.data.packages` says, so that pre-training and
    fine-tuning share it.

    Raises:
      UserError: the file is missing or no SentencePiece model with an end-of-sentence id, or
        its size is not `config.student.vocab_size`, or no such vocabulary can be trained.
    """
    if c.tokenizer.path:
        tokenizer = read(c.tokenizer.path)
    else:
        whole = config.copy(c)
        whole.data.packages = ()
        whole.data.path = c.tokenizer.text or c.data.path
        size, source = c.student.vocab_size, c.data.source
        identity = json.dumps(sources.IDENTITIES[source](whole, ('train',)), sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        folder = pathlib.Path(c.data.cache).expanduser() / 'tokenizers'
        path = folder / f'{source}-bpe-{size}-{digest}.model'
        if not path.is_file():
            texts = sources.SOURCES[source](whole, 'train')
            pydocs.publish(path, lambda temporary: train(texts, size, temporary))
        tokenizer = read(str(path))
    if tokenizer.vocab_size != c.student.vocab_size:
        raise config.UserError(
            f'config.student.vocab_size = {c.student.vocab_size}: must equal the '
            f'{tokenizer.vocab_size} pieces of the tokenizer {tokenizer.path}'
        )
    return tokenizer


def read(path: str) -> Tokenizer:
    """Opens a SentencePiece model file.

    Raises:
      UserError: there is no such file, or it is no model, or has no end-of-sentence id.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise config.UserError(f'config.tokenizer.path = {path}: no such file')
    data = file.read_bytes()
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise config.UserError(
            f'config.tokenizer.path = {path}: must be a SentencePiece model'
        ) from error
    if processor.eos_id() < 0:
        raise config.UserError(f'config.tokenizer.path = {path}: must have an end-of-sentence id')
    return Tokenizer(str(file), hashlib.sha256(data).hexdigest()[:16], processor)


def train(texts: Iterable[str], vocab_size: int, path: str | pathlib.Path) -> None:
    """Writes a SentencePiece BPE model of exactly `vocab_size` pieces to `path`.

    Text is taken as it is: no normalisation, spaces kept, bytes for unknown characters
    and line ends. Equal texts give an equal file.

    Raises:
      UserError: the texts cannot fill, or their characters do not fit, the vocabulary.
    """
    lines = (line for text in texts for line in text.split('\n') if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type='bpe',
            vocab_size=vocab_size,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
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
        raise config.UserError(
            f'config.student.vocab_size = {vocab_size}: no such vocabulary can be trained: {reason}'
        ) from error
    pathlib.Path(path).write_bytes(model.getvalue())
