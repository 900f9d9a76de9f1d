"""The source `text`: documents in text files, or in the rows of .jsonl and .parquet files."""

from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from lightpaff_jax.data.sources import files, rows, splits
from lightpaff_jax.data.sources.detokenize import DETOKENIZERS
from lightpaff_jax.data.sources.files import Path, SplitFiles
from lightpaff_jax.data.sources.splits import Example, OnError

EXTENSIONS = ('.txt', '.tokens', '.raw', '.text', '.jsonl', '.parquet')
_ROW_EXTENSIONS = ('.jsonl', '.parquet')
_DEFAULT_COLUMN = 'text'


def find(c: ConfigDict) -> SplitFiles:
    """Finds the files of each split."""
    return files.find(c, files.by_extension(EXTENSIONS))


def expected(c: ConfigDict, split: str) -> str:
    """Describes the files of a split, for messages."""
    del c
    return files.expected(split, EXTENSIONS)


def read(c: ConfigDict, paths: list[Path], on_error: OnError) -> Iterator[Example]:
    """Reads the documents of some files, in their original form.

    Text files are divided by `config.data.documents`. Each row of .jsonl and .parquet files is one
    document.

    Args:
      c: the configuration.
      paths: the files.
      on_error: called with a message for each malformed row or line, which is skipped.

    Raises:
      UserError: a file cannot be read or has no document.
    """
    for path in paths:
        message = f'{path}: empty corpus, must hold a document'
        yield from splits.require_any(_read_file(c, path, on_error), message)


def _read_file(c: ConfigDict, path: Path, on_error: OnError) -> Iterator[Example]:
    if files.extension(path.name) in _ROW_EXTENSIONS:
        for row in rows.read(_schema(c), path, on_error):
            yield row._replace(words=_count_words(row.first.split('\n')))
    else:
        lines = (line for _, line in files.read_lines(path, on_error))
        yield from split_documents(lines, c.data.documents)


def _schema(c: ConfigDict) -> rows.Schema:
    return rows.Schema((c.data.columns or (_DEFAULT_COLUMN,))[:1])


def check(c: ConfigDict, path: Path, on_error: OnError | None) -> None:
    """Checks the first row of a .jsonl or .parquet file; see `rows.check`."""
    if files.extension(path.name) in _ROW_EXTENSIONS:
        rows.check(_schema(c), path, on_error)


def detokenize(c: ConfigDict, document: Example) -> Example:
    """Undoes the tokenization that `config.data.detokenize` names.

    The word count stays that of the original text, as published perplexities use it.
    """
    return document._replace(first=DETOKENIZERS[c.data.detokenize](document.first))


def split_documents(lines: Iterable[str], boundary: str) -> Iterator[Example]:
    """Splits lines into documents.

    The text of a document is its lines without the last line end. Blank lines between documents are
    in no text. Each counts as a word of the document before it, or of the first document, so that
    the counts add up to that of the file.

    Args:
      lines: lines with their ends.
      boundary: one of config.DOCUMENTS: 'blank' splits at blank lines, 'line' at each line, 'file'
        nowhere.
    """
    document: list[str] = []
    words, after_blank = 0, True
    for line in lines:
        has_text = bool(line.strip())
        starts = boundary == 'line' or (boundary == 'blank' and after_blank)
        if has_text and document and starts:
            yield Example(_join(document), words=words)
            document, words = [], 0
        after_blank = not has_text
        words += _count_words((line,))
        if has_text or boundary == 'file':
            document.append(line)
    if any(line.strip() for line in document):
        yield Example(_join(document), words=words)


def _count_words(lines: Iterable[str]) -> int:
    """Counts the words of white-space tokenization, and each line end as one, as papers do."""
    return sum(len(line.split()) + 1 for line in lines)


def _join(lines: list[str]) -> str:
    return ''.join(lines).removesuffix('\n')
