"""Tokenizing raw text: this package's processes against `datasets.map`, in one run.

    ./launch/benchmark_prepare.sh --text=FILE --tokenizer=PATH [--workers=K] [--pairs=N] [--out=FILE]

It needs `pip install datasets` in the environment, which the package itself does not.

Both read documents that are in memory already, one a line, with K processes that are started for
it, and end with all ids in the memory or page cache of this process; what is done with them then
(packing, shards) is left out. `datasets` has the same vocabulary as a `tokenizers.Tokenizer` and
calls its `encode_batch_fast`; its cache is a fresh folder each time. Speed is measured in pairs
(A B B A A B ...), each figure a median over pairs; the ids of the last pair are compared.
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

from lightpaff_jax.data import encoding, making, tokenizers
from lightpaff_jax.data.sources import Example

os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # of both; processes are what is compared

try:
    import datasets
except ImportError as error:
    raise SystemExit(
        'error: this benchmark needs the package `datasets`: pip install datasets'
    ) from error


def ours(tokenizer: tokenizers.Tokenizer, documents: list[str], workers: int) -> np.ndarray:
    """All ids, as prepare gets them."""
    examples = (Example(document) for document in documents)
    works = making.works(encoding.chunks(examples), 'blocks')
    with encoding.encoder(tokenizer, workers) as encode:
        return np.concatenate([encoded.ids for _, encoded in encode(works)])


def theirs(
    fast: reference.Tokenizer, documents: list[str], workers: int, batch: int, cache: str
) -> datasets.Dataset:
    """A data set with the ids of each document."""

    def encode(rows):
        found = fast.encode_batch_fast(rows['text'], add_special_tokens=False)
        return {'ids': [one.ids for one in found]}

    return datasets.Dataset.from_dict({'text': documents}).map(
        encode, batched=True, batch_size=batch, num_proc=workers, remove_columns=['text'],
        cache_file_name=f'{cache}/ids.arrow', new_fingerprint='ids',
    )  # fmt: skip


def run(a: argparse.Namespace) -> dict:
    """Runs the pairs and prints; returns what `--out` writes."""
    datasets.disable_progress_bars()
    lines = a.text.read_text(encoding='utf-8').splitlines(keepends=True)
    documents = [line for line in lines if line.strip()] * a.repeat
    tokenizer = tokenizers.read(str(a.tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        fast = reference.Tokenizer.from_file(f'{folder}/tokenizer.json')
    print(
        f'{len(documents):,} documents, {sum(map(len, documents)):,} characters, {a.workers} '
        f'processes, {os.cpu_count()} cores, Python {platform.python_version()}, '
        f'datasets {datasets.__version__}',
        flush=True,
    )
    pairs: list[dict[str, float]] = []
    tokens = 0
    for number in range(a.pairs):
        pair: dict[str, float] = {}
        for name in ('ours', 'datasets') if number % 2 == 0 else ('datasets', 'ours'):
            with tempfile.TemporaryDirectory() as cache:
                began = time.perf_counter()
                if name == 'ours':
                    ids = ours(tokenizer, documents, a.workers)
                else:
                    made = theirs(fast, documents, a.workers, a.batch, cache)
                pair[name] = time.perf_counter() - began
                if name == 'datasets' and number == a.pairs - 1:
                    column = made.with_format('arrow')[:]['ids'].combine_chunks()
                    wanted = column.flatten().to_numpy()
        tokens = len(ids)
        pairs.append(pair)
        print(
            f'ours {tokens / pair["ours"]:,.0f} tokens/s, datasets '
            f'{tokens / pair["datasets"]:,.0f} tokens/s, ratio {pair["datasets"] / pair["ours"]:.2f}',
            flush=True,
        )
    if not np.array_equal(ids, wanted):
        raise SystemExit('error: the ids differ')
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


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(
        '--text', type=pathlib.Path, required=True, help='a file, a document a line'
    )
    parser.add_argument('--tokenizer', type=pathlib.Path, required=True, help='file or folder')
    parser.add_argument('--workers', type=int, default=2, help='processes of each')
    parser.add_argument('--repeat', type=int, default=1, help='how often the text is taken')
    parser.add_argument('--batch', type=int, default=1000, help='documents a call of datasets')
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--out', type=pathlib.Path, help='JSON file for the figures')
    a = parser.parse_args()
    if a.workers < 2 or a.pairs < 1 or a.repeat < 1:
        parser.error('--workers must be at least 2, --pairs and --repeat at least 1')
    result = run(a)
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
