"""VIEWS: turns the documents of the built-in corpus into the examples of each view.

A view makes the examples of a file from docstrings of the same split only, so no example is in
another split than its file. Texts that the same or an earlier split has already are dropped.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_MAX_TOPIC_WORDS = 60  # words of a docstring that are kept to classify its package by
_MAX_TOPIC_SHARE = 0.3  # largest share of a package in a split, if there are enough packages
_MIN_WORDS = {'summary': 4, 'body': 8}  # shorter texts are dropped


@dataclasses.dataclass(frozen=True)
class Document:
    """The docstrings of one file, or one topic of the language reference."""

    package: str
    path: str
    """Relative to the folder that holds the package: numpy/linalg/_linalg.py."""
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The docstrings as one text."""
        return '\n\n'.join(self.texts)


class Docstring(NamedTuple):
    """A docstring of a summary line and a body."""

    package: str
    path: str
    summary: str
    body: str


SplitDocuments = dict[str, list[Document]]
SplitRows = dict[str, list[dict[str, Any]]]  # rows of one view have the same keys


def text(documents: SplitDocuments, packages: Sequence[str]) -> SplitRows:
    """Makes one row of each document: `package`, `path`, `text`."""
    del packages
    return {
        split: [{'package': d.package, 'path': d.path, 'text': d.text} for d in split_documents]
        for split, split_documents in documents.items()
    }


def topic(documents: SplitDocuments, packages: Sequence[str]) -> SplitRows:
    """Makes rows that ask for the package of a docstring.

    `first` has the first words of the docstring, `label` is the index of the package in `packages`.
    Large packages are subsampled, by a hash of the text, so that none is more than 30 % of a split
    (or its fair share, if there are three packages or fewer).
    """
    seen: set[str] = set()
    rows = {}
    for split, split_documents in documents.items():
        split_rows = []
        for d in split_documents:
            for words in (docstring.split() for docstring in d.texts):
                first = ' '.join(words[:_MAX_TOPIC_WORDS])
                if first not in seen:
                    seen.add(first)
                    split_rows.append(_row(d, first, '', packages.index(d.package)))
        rows[split] = _balance(split_rows)
    return rows


def pairs(documents: SplitDocuments, packages: Sequence[str]) -> SplitRows:
    """Makes rows that ask whether a body belongs to a summary: `label` is 1 if so, else 0.

    Each docstring makes two rows: its summary with its own body, and with the body of another
    docstring of the same package and split. Each summary and each body thus occurs once with either
    label, so neither of them predicts the label without the other.
    """
    del packages
    rows: SplitRows = {}
    for split, docstrings in _summarized(documents).items():
        other: dict[Docstring, Docstring] = {}
        for package in dict.fromkeys(d.package for d in docstrings):
            members = [d for d in docstrings if d.package == package]
            shuffled = sorted(members, key=lambda d: _hash(d.summary))
            if len(shuffled) > 1:
                other |= dict(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True))
        rows[split] = [
            _row(d, d.summary, body, label)
            for d in docstrings
            if d in other
            for body, label in ((d.body, 1), (other[d].body, 0))
        ]
    return rows


def summary(documents: SplitDocuments, packages: Sequence[str]) -> SplitRows:
    """Makes rows whose `first` is the body of a docstring and `second` its summary line."""
    del packages
    return {
        split: [_row(d, d.body, d.summary, -1) for d in docstrings]
        for split, docstrings in _summarized(documents).items()
    }


def _summarized(documents: SplitDocuments) -> dict[str, list[Docstring]]:
    """Returns the docstrings of a summary and a body, each of which is kept once."""
    summaries: set[str] = set()
    bodies: set[str] = set()
    docstrings: dict[str, list[Docstring]] = {}
    for split, split_documents in documents.items():
        docstrings[split] = []
        for d in (d for document in split_documents for d in _split_docstrings(document)):
            if d.summary not in summaries and d.body not in bodies:
                summaries.add(d.summary)
                bodies.add(d.body)
                docstrings[split].append(d)
    return docstrings


def _split_docstrings(document: Document) -> Iterator[Docstring]:
    """Yields the docstrings that have a first line, an empty line and a body of enough words."""
    for docstring in document.texts:
        first, _, rest = docstring.partition('\n')
        second, _, body = rest.partition('\n')
        fields = {'summary': first.strip(), 'body': body.strip()}
        long_enough = all(len(fields[k].split()) >= n for k, n in _MIN_WORDS.items())
        if long_enough and not second.strip():
            yield Docstring(document.package, document.path, **fields)


def _balance(rows: list[dict]) -> list[dict]:
    """Subsamples rows so that no label exceeds a share of _MAX_TOPIC_SHARE; keeps their order."""
    counts = Counter(row['label'] for row in rows)
    share = max(_MAX_TOPIC_SHARE, 1 / max(1, len(counts)))
    limit = max(counts.values(), default=0)
    # A lower limit also lowers the total, so the largest limit that fits is searched for.
    while limit > 1 and limit > share * sum(min(n, limit) for n in counts.values()):
        limit -= 1
    used: Counter[int] = Counter()
    chosen = set()
    for i in sorted(range(len(rows)), key=lambda i: _hash(rows[i]['first'])):
        if used[rows[i]['label']] < limit:
            used[rows[i]['label']] += 1
            chosen.add(i)
    return [row for i, row in enumerate(rows) if i in chosen]


def _row(d: Document | Docstring, first: str, second: str, label: int) -> dict[str, Any]:
    row = {'package': d.package, 'path': d.path}
    return {**row, 'first': first, 'second': second, 'label': label}


def _hash(text: str) -> str:
    """Returns a hash to sort by: an order that looks random and is the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()


VIEWS: dict[str, Callable[[SplitDocuments, Sequence[str]], SplitRows]] = {
    'text': text,
    'topic': topic,
    'pairs': pairs,
    'summary': summary,
}
