"""Preparing a text file: this package against `datasets`, end to end, in one run.

    ./launch/benchmark_prepare.sh --text=FILE --tokenizer=PATH [--workers=K] [--pairs=N] [--out=FILE]

It needs `pip install datasets` in the environment, which the package itself does not.

Both begin with a text file, a document a line, and end with ids on the disk in a fresh folder, with
K processes that are started for it. Ours is all of `prepare`: it hashes the file, tokenizes, cuts
the stream of documents into blocks, and writes and verifies shards; validation and test are a line
each. Theirs is `load_dataset('text')` and `map(batched=True)`, with the same vocabulary as a
`tokenizers.Tokenizer` and its `encode_batch_fast`; it packs nothing. Blank lines are left out
before. Speed is measured in pairs (A B B A A B ...), each figure a median over pairs; the ids of
the last pair are compared.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

import numpy as np
import tokenizers as reference
from arguments import file_to_read, file_to_write, whole

from lightpaff_jax import config
from lightpaff_jax.data import prepare, records, sources, tokenizers
from lightpaff_jax.data.prepared import packing
from lightpaff_jax.errors import UserError

os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # of both; processes are what is compared

try:
    import datasets
except ImportError as error:
    raise SystemExit(
        'error: this benchmark needs the package `datasets`: pip install datasets'
    ) from error


def ours(
    tokenizer: tokenizers.Tokenizer, folder: str, workers: int, length: int, cache: str
) -> records.Dataset:
    """The set of a folder of text."""
    c = config.default()
    c.data.source, c.data.path, c.data.documents = 'text', folder, 'line'
    c.data.workers, c.data.length, c.data.cache = workers, length, cache
    prepared = prepare.prepare(c, tokenizer)
    assert isinstance(prepared, records.Dataset), 'it is no mixture'
    return prepared


def theirs(
    fast: reference.Tokenizer, folder: str, workers: int, batch: int, cache: str
) -> datasets.Dataset:
    """A data set with the ids of each document."""

    def encode(rows):
        found = fast.encode_batch_fast(rows['text'], add_special_tokens=False)
        return {'ids': [one.ids for one in found]}

    read = datasets.load_dataset(
        'text', data_files=f'{folder}/train.txt', split='train', cache_dir=cache
    )
    return read.map(
        encode, batched=True, batch_size=batch, num_proc=workers, remove_columns=['text']
    )


def stream(prepared: records.Dataset) -> np.ndarray:
    """All ids of train but the first, which stands before the first document."""
    found = prepared.records('train')
    return np.concatenate([record.first[1:] for record in found.read(range(len(found)))])


def wanted(made: datasets.Dataset, separator: int) -> np.ndarray:
    """The ids of `datasets` as one stream."""
    column = made.with_format('arrow')[:]['ids'].combine_chunks()
    lengths = column.value_lengths().to_numpy()
    return packing.join(column.flatten().to_numpy(), lengths, separator)


def run(a: argparse.Namespace) -> dict:
    """Runs the pairs and prints; returns what `--out` writes."""
    datasets.disable_progress_bars()
    tokenizer = tokenizers.read(str(a.tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        characters = _write(a.text, pathlib.Path(folder))
        tokenizer.save(f'{folder}/tokenizer')
        fast = reference.Tokenizer.from_file(f'{folder}/tokenizer/tokenizer.json')
        print(
            f'{characters:,} characters, {a.workers} processes, {os.cpu_count()} cores, '
            f'Python {platform.python_version()}, datasets {datasets.__version__}',
            flush=True,
        )
        pairs, tokens = _measured(a, folder, tokenizer, fast)
    rates = {name: statistics.median(tokens / p[name] for p in pairs) for name in pairs[0]}
    ratio = statistics.median(p['datasets'] / p['ours'] for p in pairs)
    print(
        f'median of {a.pairs} pairs: ours {rates["ours"]:,.0f} tokens/s, datasets '
        f'{rates["datasets"]:,.0f} tokens/s, ratio {ratio:.2f}; {tokens:,} ids, all equal'
    )
    return {
        'tokens': tokens, 'workers': a.workers, 'pairs': pairs, 'tokens_per_second': rates,
        'ratio': ratio, 'datasets': datasets.__version__, 'hardware': f'{os.cpu_count()} cores',
    }  # fmt: skip


def _write(text: pathlib.Path, folder: pathlib.Path) -> int:
    """A folder of text without blank lines; the characters of train."""
    lines = [line for line in text.read_text(encoding='utf-8').split('\n') if line.strip()]
    for split in sources.SPLITS:
        kept = lines if split == 'train' else lines[:1]
        (folder / f'{split}.txt').write_text('\n'.join(kept) + '\n', encoding='utf-8')
    return sum(map(len, lines))


def _measured(
    a: argparse.Namespace, folder: str, tokenizer: tokenizers.Tokenizer, fast: reference.Tokenizer
) -> tuple[list[dict[str, float]], int]:
    """Seconds of both in each pair, and the ids of one."""
    pairs: list[dict[str, float]] = []
    tokens = 0
    for number in range(a.pairs):
        pair: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as cache:
            for name in ('ours', 'datasets') if number % 2 == 0 else ('datasets', 'ours'):
                began = time.perf_counter()
                if name == 'ours':
                    prepared = ours(tokenizer, folder, a.workers, a.length, f'{cache}/ours')
                else:
                    made = theirs(fast, folder, a.workers, a.batch, f'{cache}/theirs')
                pair[name] = time.perf_counter() - began
            tokens = prepared.split('train')['tokens']
            if number == a.pairs - 1 and not np.array_equal(
                stream(prepared), wanted(made, tokenizer.eos_id)
            ):
                raise SystemExit('error: the ids differ')
        pairs.append(pair)
        print(
            f'ours {tokens / pair["ours"]:,.0f} tokens/s, datasets '
            f'{tokens / pair["datasets"]:,.0f} tokens/s, ratio {pair["datasets"] / pair["ours"]:.2f}',
            flush=True,
        )
    return pairs, tokens


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(
        '--text', type=file_to_read, required=True, help='a file, a document a line'
    )
    parser.add_argument('--tokenizer', type=file_to_read, required=True, help='file or folder')
    parser.add_argument('--workers', type=whole(2), default=2, help='processes of each')
    parser.add_argument('--length', type=whole(1), default=1024, help='tokens a block of ours')
    parser.add_argument('--batch', type=whole(1), default=1000, help='documents a call of datasets')
    parser.add_argument('--pairs', type=whole(1), default=5)
    parser.add_argument('--out', type=file_to_write, help='JSON file for the figures')
    a = parser.parse_args()
    try:
        result = run(a)
    except UserError as error:  # of the tokenizer's files
        parser.error(str(error))
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
