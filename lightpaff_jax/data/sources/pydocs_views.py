"""VIEWS: what one example of `pydocs` is. Documents of each split -> rows of each split.

A form makes the examples of a file from that file's docstrings alone, or from others of its split,
so no example is in another split than its file. What a split repeats of itself or of one before it
is left out.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_LONGEST_TOPIC = 60  # words of a docstring that are kept to tell its package by
_LARGEST_TOPIC = 0.3  # no package is a greater share of a split, where there are enough packages
_FEWEST_WORDS = {'summary': 4, 'body': 8}  # shorter ones are left out


@dataclasses.dataclass(frozen=True)
class Document:
    """The docstrings of one file, or one topic of the language reference."""

    package: str
    path: str  # below the folder that holds the package: numpy/linalg/_linalg.py
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        return '\n\n'.join(self.texts)


class Docstring(NamedTuple):
    """One with a first line of its own and more below."""

    package: str
    path: str
    summary: str
    body: str


Parts = dict[str, list[Document]]  # split -> its documents
Rows = dict[str, list[dict[str, Any]]]  # split -> its examples, with equal keys


def text(parts: Parts, packages: Sequence[str]) -> Rows:
    """One row for each document: `package`, `path`, `text`."""
    del packages
    return {
        name: [{'package': d.package, 'path': d.path, 'text': d.text} for d in documents]
        for name, documents in parts.items()
    }


def topic(parts: Parts, packages: Sequence[str]) -> Rows:
    """Which package is a docstring from? `first` has its first words, `label` is the package.

    The label is an index of `packages`. Large packages are thinned out, by a hash of the text, so
    that none is more than 30 % of a split (or its fair share, of three packages and fewer).
    """
    seen: set[str] = set()
    rows = {}
    for name, documents in parts.items():
        found = []
        for d in documents:
            for words in (text.split() for text in d.texts):
                first = ' '.join(words[:_LONGEST_TOPIC])
                if first not in seen:
                    seen.add(first)
                    found.append(_row(d, first, '', packages.index(d.package)))
        rows[name] = _thinned(found)
    return rows


def pairs(parts: Parts, packages: Sequence[str]) -> Rows:
    """Does this body belong to this summary? `label` 1 if so, else 0.

    Every docstring makes two rows, its summary with its own body and with that of another
    docstring of the same package and split. So each summary and each body occurs once with
    either label, and neither alone says anything.
    """
    del packages
    rows: Rows = {}
    for name, docstrings in _summarised(parts).items():
        other: dict[Docstring, Docstring] = {}
        for package in dict.fromkeys(d.package for d in docstrings):
            own = sorted((d for d in docstrings if d.package == package), key=_drawn)
            if len(own) > 1:
                other |= dict(zip(own, own[1:] + own[:1], strict=True))
        rows[name] = [
            _row(d, d.summary, body, label)
            for d in docstrings
            if d in other
            for body, label in ((d.body, 1), (other[d].body, 0))
        ]
    return rows


def summary(parts: Parts, packages: Sequence[str]) -> Rows:
    """`first` is the body of a docstring, `second` its first line; `label` is -1."""
    del packages
    return {
        name: [_row(d, d.body, d.summary, -1) for d in docstrings]
        for name, docstrings in _summarised(parts).items()
    }


def _summarised(parts: Parts) -> dict[str, list[Docstring]]:
    """Docstrings with a first line, an empty one, and a body; of equal summaries or bodies one."""
    summaries: set[str] = set()
    bodies: set[str] = set()
    found: dict[str, list[Docstring]] = {}
    for name, documents in parts.items():
        found[name] = []
        for d in (d for document in documents for d in _halves(document)):
            if d.summary not in summaries and d.body not in bodies:
                summaries.add(d.summary)
                bodies.add(d.body)
                found[name].append(d)
    return found


def _halves(document: Document) -> Iterator[Docstring]:
    for text in document.texts:
        first, _, rest = text.partition('\n')
        between, _, body = rest.partition('\n')
        halves = {'summary': first.strip(), 'body': body.strip()}
        enough = all(len(halves[k].split()) >= n for k, n in _FEWEST_WORDS.items())
        if enough and not between.strip():
            yield Docstring(document.package, document.path, **halves)


def _thinned(rows: list[dict]) -> list[dict]:
    """Rows in their order, of which no label has more than a share of _LARGEST_TOPIC."""
    counts = Counter(row['label'] for row in rows)
    share = max(_LARGEST_TOPIC, 1 / max(1, len(counts)))
    most = max(counts.values(), default=0)
    while most > 1 and most > share * sum(min(n, most) for n in counts.values()):
        most -= 1
    kept: Counter[int] = Counter()
    chosen = set()
    for i in sorted(range(len(rows)), key=lambda i: _hash(rows[i]['first'])):
        if kept[rows[i]['label']] < most:
            kept[rows[i]['label']] += 1
            chosen.add(i)
    return [row for i, row in enumerate(rows) if i in chosen]


def _row(d: Document | Docstring, first: str, second: str, label: int) -> dict[str, Any]:
    return {
        'package': d.package, 'path': d.path, 'first': first, 'second': second, 'label': label,
    }  # fmt: skip


def _drawn(d: Docstring) -> str:
    return _hash(d.summary)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


VIEWS: dict[str, Callable[[Parts, Sequence[str]], Rows]] = {
    'text': text,
    'topic': topic,
    'pairs': pairs,
    'summary': summary,
}


def is_unicode(text: str) -> bool:
    """False where a byte was no UTF-8, or one half of a pair of surrogates stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
