"""Reads every set of a folder through its source and compares the counts with the known ones.

    ./launch/count_data.sh DATA

DATA holds the folders of SETS, those there are, laid out as docs/reproduce.md says. Prints a row a
split; exits 1 after naming the rows that differ. `words` are white-space words, of documents with
one for each line's end, as published. `sha256` are 16 hex digits of each file.
"""

import argparse
import collections
import pathlib
import sys
from collections.abc import Iterable
from typing import NamedTuple

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError


class Split(NamedTuple):
    """What is in a split."""

    examples: int
    words: int
    labels: tuple[int, ...]
    """How many there are of each class."""
    sha256: tuple[str, ...]


class Set(NamedTuple):
    """A folder, how it is read, and what is known of it."""

    folder: str
    source: str
    keys: dict
    splits: dict[str, Split]


# MRPC, PTB, SST-2 and WikiText-2: as published. MR, QQP, Cornell and Gigaword: parts of what was
# published, so their files are told by the digest alone.
SETS = [
    Set('MR', 'mr', {}, {
        'train': Split(9662, 202_884, (4831, 4831), ('ee868e779e59728c', '2f74c45aa8d6b326')),
    }),
    Set('MRPC', 'mrpc', {}, {
        'train': Split(4076, 154_571, (1323, 2753), ('178c3d39a096a887',)),
        'test': Split(1725, 64_921, (578, 1147), ('0d1a876ed5b29dc9',)),
    }),
    Set('QQP', 'qqp', {}, {
        'train': Split(8549, 189_483, (5382, 3167), ('e59fe50156ad2bb6',)),
        'validation': Split(948, 20_762, (583, 365), ('302878e304f3428f',)),
    }),
    Set('SST-2', 'sst2', {}, {
        'train': Split(67_349, 633_724, (29_780, 37_569), ('c75796b01672b41c',)),
        'validation': Split(872, 17_046, (428, 444), ('f7271f7a919ea884',)),
    }),
    Set('cornell', 'table', {'columns': ('0', '1')}, {
        'train': Split(24_463, 511_230, (), ('d693c79eaeb1dc9a',)),
    }),
    Set('gigaword', 'parallel', {'suffixes': ('article', 'title')}, {
        'train': Split(10_000, 385_833, (), ('c91ae3c476c9811d', 'e1de76e4b8533caa')),
        'validation': Split(499, 19_466, (), ('09628d0627eecf50', '3bdf9d97e12696f2')),
        'test': Split(1951, 75_091, (), ('578b33eaffe7bf9c', '15561a71977ee7bd')),
    }),
    Set('multi30k', 'parallel', {'suffixes': ('en', 'de')}, {
        'train': Split(29_000, 667_403, (), ('2c2b73fd2b548fbc', '460a15fbd157e34a')),
        'validation': Split(1014, 23_735, (), ('660e09eb7e1da2f8', '1f2a23d992769b5b')),
        'test': Split(1000, 22_782, (), ('4be6b5b3236b79c2', '399a4382932c1aad')),
    }),
    Set('multi30k', 'parallel', {'suffixes': ('en', 'fr')}, {
        'train': Split(29_000, 707_041, (), ('460a15fbd157e34a', '5925a3c18f1587b6')),
        'validation': Split(1014, 24_865, (), ('1f2a23d992769b5b', '5304e444d842e962')),
        'test': Split(1000, 24_229, (), ('399a4382932c1aad', 'cb3160d69b002bb6')),
    }),
    Set('ptb', 'text', {'documents': 'line'}, {
        'train': Split(42_068, 929_589, (), ('fcea919f6cf83f35',)),
        'validation': Split(3370, 73_760, (), ('c9fe6985fe0d4ccb',)),
        'test': Split(3761, 82_430, (), ('dd65dff31e70846b',)),
    }),
    Set('wikitext-2', 'text', {'documents': 'blank'}, {
        'train': Split(11_669, 2_088_628, (), ('9e9fa1ad55b1c2c9',)),
        'validation': Split(1160, 217_646, (), ('f0737ed31fc13290',)),
    }),
]  # fmt: skip
OBJECTIVES = {'documents': 'clm', 'classes': 'classify', 'targets': 'seq2seq'}


def counted(one: Set, folder: pathlib.Path, split: str) -> Split:
    """What the source of a set reads of a split."""
    c = config.default()
    c.data.source, c.data.path = one.source, str(folder)
    c.data.update(one.keys)
    c.objective = OBJECTIVES[config.example_type(c)]
    examples, words, labels = 0, 0, collections.Counter[int]()
    for example in sources.examples(c, split):
        examples += 1
        texts = len(example.first.split()) + len(example.second.split())
        words += texts if example.words < 0 else example.words
        labels[example.label] += 1
    classes = tuple(labels[i] for i in range(sources.classes(c)))
    read = sources.identity(c, (split,))['files'][split]
    return Split(examples, words, classes, tuple(digest for _, digest in read))


def line(cells: Iterable) -> str:
    """A row of the table."""
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def main() -> int:
    """Counts and compares; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('data', type=pathlib.Path, help='the folder of the sets')
    data = parser.parse_args().data
    if not data.is_dir():
        parser.error(f'{data}: no such folder')
    print(line(['set', 'source', 'split', 'examples', 'words', 'of each class', 'sha256']))
    print(line(['---'] * 7))
    missing, different = [], []
    for one in SETS:
        folder = data / one.folder
        if not folder.is_dir():
            missing.append(one.folder)
            continue
        keys = ' '.join(
            f'{k}={",".join(v) if isinstance(v, tuple) else v}' for k, v in one.keys.items()
        )
        for split, known in one.splits.items():
            try:
                found = counted(one, folder, split)
            except UserError as error:
                different.append(str(error))
                continue
            classes, digests = '/'.join(map(str, found.labels)), ' '.join(found.sha256)
            cells = [one.folder, f'{one.source} {keys}'.strip(), split]
            print(line([*cells, f'{found.examples:,}', f'{found.words:,}', classes, digests]))
            for name, value in known._asdict().items():
                if getattr(found, name) != value:
                    where = f'{one.folder} {split}: {name}'
                    different.append(f'{where} = {getattr(found, name)}, known is {value}')
    if missing:
        print(f'missing: {", ".join(dict.fromkeys(missing))}')
    for said in different:
        print(f'error: {said}', file=sys.stderr)
    return 1 if different else 0


if __name__ == '__main__':
    sys.exit(main())
