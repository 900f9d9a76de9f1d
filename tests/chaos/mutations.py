"""Hypothesis strategies that damage valid input: JSON documents, bytes, and words."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 3, 0.5, -0.0, 2**31, 2**63, -(2**63), 10**30, 1e308, 1e39, 10**400)
NUMBERS += (float('inf'), float('-inf'), float('nan'))
TEXTS = (
    '',
    ' ',
    '0',
    'x',
    'None',
    'null',
    'true',
    '../x',
    '/',
    '/dev/null',
    'a\nb',
    '\0',
    '\ud800',
)
TEXTS += ('é', '\U0001f600', '\u2028', '%s', '{}', '{x}', '[bold]', '~', '*', 'a' * 300, '9' * 5000)
TOKENS = (b'\0', b'\xff', b'\xef\xbb\xbf', b'\r', b'\n', b'\r\n', b'\t', b'"', b'{', b'[' * 2000)
TOKENS += (b'}', b',', b'null', b'NaN', b'-1', b'1e999', b'\\u0000', b'\\ud800', b'9' * 400)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)
values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda items: st.one_of(
            st.lists(items, max_size=3), st.dictionaries(st.text(max_size=5), items, max_size=3)
        ),
        max_leaves=5,
    ),
)
"""JSON values that a careless reader trips over."""


def _places(node: Any, path: tuple = ()) -> list[tuple]:
    """Returns the path of every value below a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    places = []
    for key, value in items:
        places.append((*path, key))
        if isinstance(value, dict | list):
            places += _places(value, (*path, key))
    return places


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three values replaced, removed, added or swapped."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document) if isinstance(document, dict | list) else []
        if not places or draw(st.integers(0, 30)) == 0:
            return draw(values)
        *parents, last = draw(st.sampled_from(places))
        node = document
        for key in parents:
            node = node[key]
        action = draw(st.sampled_from(('replace', 'replace', 'remove', 'add', 'swap')))
        if action == 'remove':
            del node[last]
        elif action == 'add' and isinstance(node, dict):
            node[draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=6)))] = draw(values)
        elif action == 'swap':
            *parents, other = draw(st.sampled_from(places))
            source = document
            for key in parents:
                source = source[key] if _has(source, key) else {}
            if _has(source, other):
                node[last] = copy.deepcopy(source[other])
        else:
            node[last] = draw(values)
    return document


def _has(node: Any, key: Any) -> bool:
    if isinstance(node, dict):
        return key in node
    return isinstance(node, list) and isinstance(key, int) and key < len(node)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that are cut, flipped, overwritten, repeated or mixed with unexpected ones."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(result)))
        end = min(len(result), start + draw(st.sampled_from((1, 1, 4, 16, 512))))
        action = draw(st.sampled_from(('flip', 'cut', 'remove', 'zero', 'insert', 'repeat')))
        if action == 'flip' and start < len(result):
            result[start] ^= 1 << draw(st.integers(0, 7))
        elif action == 'cut':
            del result[start:]
        elif action == 'remove':
            del result[start:end]
        elif action == 'zero':
            result[start:end] = bytes(end - start)
        elif action == 'insert':
            token = st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6))
            result[start:start] = draw(token)
        elif action == 'repeat':
            result[start:start] = result[start:end] * draw(st.integers(1, 3))
    return bytes(result)


def json_bytes(document: Any) -> st.SearchStrategy[bytes]:
    """A file of JSON: a changed document, or damaged bytes of the document."""
    text = st.one_of(changed(document), changed(document)).map(lambda x: json.dumps(x).encode())
    return st.one_of(text, text, damaged(json.dumps(document).encode()))


def json_lines(documents: list[Any]) -> st.SearchStrategy[bytes]:
    """A file of JSON lines, some of them changed, or its damaged bytes."""
    whole = b''.join(json.dumps(line).encode() + b'\n' for line in documents)
    lines = changed(documents).map(
        lambda x: b''.join(
            json.dumps(y).encode() + b'\n' for y in (x if isinstance(x, list) else [x])
        )
    )
    return st.one_of(lines, lines, damaged(whole))
