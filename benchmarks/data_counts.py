"""Reads the datasets in a folder through their sources and compares the counts with known ones.

    ./launch/count_data.sh DATA

DATA holds the folders of EXPECTED, or some of them, laid out as docs/reproduce.md describes. Prints
a row per split. If a row differs, prints the difference and exits with code 1.
"""

import collections
import pathlib
import sys
from collections.abc import Iterable

from arguments import make_parser

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.errors import UserError

COLUMNS = ('set', 'source', 'split', 'examples', 'words', 'of each class', 'sha256')

# One row per split, as the program prints it. `source` is a source and its configuration keys.
# `words` are separated by white space; documents have one more per end of line, as published.
# `sha256` holds the first 16 hex digits of each file's digest.
#
# MRPC, PTB, SST-2 and WikiText-2 are complete, with the published counts. MR, QQP, Cornell and
# Gigaword are parts of the published datasets, so only the digests identify their files.
EXPECTED = """
| MR | mr | train | 9,662 | 202,884 | 4831/4831 | ee868e779e59728c 2f74c45aa8d6b326 |
| MRPC | mrpc | train | 4,076 | 154,571 | 1323/2753 | 178c3d39a096a887 |
| MRPC | mrpc | test | 1,725 | 64,921 | 578/1147 | 0d1a876ed5b29dc9 |
| QQP | qqp | train | 8,549 | 189,483 | 5382/3167 | e59fe50156ad2bb6 |
| QQP | qqp | validation | 948 | 20,762 | 583/365 | 302878e304f3428f |
| SST-2 | sst2 | train | 67,349 | 633,724 | 29780/37569 | c75796b01672b41c |
| SST-2 | sst2 | validation | 872 | 17,046 | 428/444 | f7271f7a919ea884 |
| cornell | table columns=0,1 | train | 24,463 | 511,230 |  | d693c79eaeb1dc9a |
| gigaword | parallel suffixes=article,title | train | 10,000 | 385,833 |  | c91ae3c476c9811d e1de76e4b8533caa |
| gigaword | parallel suffixes=article,title | validation | 499 | 19,466 |  | 09628d0627eecf50 3bdf9d97e12696f2 |
| gigaword | parallel suffixes=article,title | test | 1,951 | 75,091 |  | 578b33eaffe7bf9c 15561a71977ee7bd |
| multi30k | parallel suffixes=en,de | train | 29,000 | 667,403 |  | 2c2b73fd2b548fbc 460a15fbd157e34a |
| multi30k | parallel suffixes=en,de | validation | 1,014 | 23,735 |  | 660e09eb7e1da2f8 1f2a23d992769b5b |
| multi30k | parallel suffixes=en,de | test | 1,000 | 22,782 |  | 4be6b5b3236b79c2 399a4382932c1aad |
| multi30k | parallel suffixes=en,fr | train | 29,000 | 707,041 |  | 460a15fbd157e34a 5925a3c18f1587b6 |
| multi30k | parallel suffixes=en,fr | validation | 1,014 | 24,865 |  | 1f2a23d992769b5b 5304e444d842e962 |
| multi30k | parallel suffixes=en,fr | test | 1,000 | 24,229 |  | 399a4382932c1aad cb3160d69b002bb6 |
| ptb | text documents=line | train | 42,068 | 929,589 |  | fcea919f6cf83f35 |
| ptb | text documents=line | validation | 3,370 | 73,760 |  | c9fe6985fe0d4ccb |
| ptb | text documents=line | test | 3,761 | 82,430 |  | dd65dff31e70846b |
| wikitext-2 | text documents=blank | train | 11,669 | 2,088,628 |  | 9e9fa1ad55b1c2c9 |
| wikitext-2 | text documents=blank | validation | 1,160 | 217,646 |  | f0737ed31fc13290 |
"""

OBJECTIVES = {'documents': 'clm', 'classes': 'classify', 'targets': 'seq2seq'}


def count(folder: pathlib.Path, source: str, split: str) -> list[str]:
    """Reads a split and returns the last four columns of its row.

    Args:
      folder: the folder of the dataset.
      source: a source and its configuration keys, `NAME [KEY=VALUE ...]`.
      split: the split to read.

    Raises:
      UserError: if a file is missing or malformed.
    """
    name, *settings = source.split()
    c = config.default()
    c.data.source, c.data.path = name, str(folder)
    for setting in settings:
        key, _, value = setting.partition('=')
        c.data[key] = tuple(value.split(',')) if ',' in value else value
    c.objective = OBJECTIVES[config.example_type(c)]
    examples, words, labels = 0, 0, collections.Counter[int]()
    for example in sources.examples(c, split):
        examples += 1
        # A document carries the number of words and line ends of its original text.
        text_words = len(example.first.split()) + len(example.second.split())
        words += text_words if example.words < 0 else example.words
        labels[example.label] += 1
    class_counts = '/'.join(str(labels[i]) for i in range(sources.classes(c)))
    files = sources.identity(c, (split,))['files'][split]
    return [f'{examples:,}', f'{words:,}', class_counts, ' '.join(digest for _, digest in files)]


def format_row(cells: Iterable[str]) -> str:
    """Returns a row of a Markdown table."""
    return '| ' + ' | '.join(cells) + ' |'


def main() -> int:
    """Prints the table and the differences; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument('data', type=pathlib.Path, help='folder of the datasets')
    data = parser.parse_args().data
    if not data.is_dir():
        parser.error(f'{data}: no such folder')
    print(format_row(COLUMNS))
    print(format_row(['---'] * len(COLUMNS)))
    missing, errors = [], []
    for row in EXPECTED.strip().splitlines():
        folder, source, split, *expected = (cell.strip() for cell in row[1:-1].split('|'))
        if not (data / folder).is_dir():
            missing.append(folder)
            continue
        try:
            counts = count(data / folder, source, split)
        except UserError as error:
            errors.append(str(error))
            continue
        print(format_row([folder, source, split, *counts]))
        for name, value, expected_value in zip(COLUMNS[3:], counts, expected, strict=True):
            if value != expected_value:
                errors.append(f'{folder} {split}: {name} = {value}: must be {expected_value}')
    if missing:
        print(f'missing: {", ".join(dict.fromkeys(missing))}')
    for error in errors:
        print(f'error: {error}', file=sys.stderr)
    return 1 if errors else 0


if __name__ == '__main__':
    sys.exit(main())
