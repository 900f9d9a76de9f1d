"""Compares the preparation of a text file with the package `datasets`, end to end, in one run.

    ./launch/benchmark_prepare.sh --text=FILE --tokenizer=PATH [--workers=K] [--pairs=N] [--out=FILE]

It needs `pip install datasets` in the environment, which the package itself does not.

Both read a text file with a document per line and write ids to an empty folder on disk, with K
processes that they start. This package runs all of `prepare`: it hashes the file, tokenizes, cuts
the stream of documents into blocks, and writes and verifies shards; validation and test have one
line each. `datasets` runs `load_dataset('text')` and `map(batched=True)` with `encode_batch_fast`
of a `tokenizers.Tokenizer` that has the same vocabulary; it packs nothing. Blank lines are removed
first. Speed is measured in pairs (A B B A A B ...); figures are medians over pairs. The ids of the
last pair are compared.
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
import tokenizers as huggingface_tokenizers
from arguments import existing_path, integer, make_parser, output_file

from lightpaff_jax import config
from lightpaff_jax.data import prepare, records, sources, tokenizers
from lightpaff_jax.data.prepared import packing
from lightpaff_jax.errors import UserError

# Both tokenize with threads too unless this is off; the benchmark compares processes.
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

try:
    import datasets
except ImportError as error:
    raise SystemExit(
        'error: this benchmark needs the package `datasets`: pip install datasets'
    ) from error


def prepare_dataset(
    tokenizer: tokenizers.Tokenizer, folder: str, workers: int, length: int, cache: str
) -> records.Dataset:
    """Prepares a folder of text files with this package."""
    c = config.default()
    c.data.source, c.data.path, c.data.documents = 'text', folder, 'line'
    c.data.workers, c.data.length, c.data.cache = workers, length, cache
    dataset = prepare.prepare(c, tokenizer)
    assert isinstance(dataset, records.Dataset), 'a single source gives no mixture'
    return dataset


def map_dataset(
    tokenizer: huggingface_tokenizers.Tokenizer, folder: str, workers: int, batch: int, cache: str
) -> datasets.Dataset:
    """Tokenizes the train file of a folder with `datasets`; returns the ids of each document."""

    def encode(rows):
        encodings = tokenizer.encode_batch_fast(rows['text'], add_special_tokens=False)
        return {'ids': [encoding.ids for encoding in encodings]}

    texts = datasets.load_dataset(
        'text', data_files=f'{folder}/train.txt', split='train', cache_dir=cache
    )
    return texts.map(
        encode, batched=True, batch_size=batch, num_proc=workers, remove_columns=['text']
    )


def prepared_ids(dataset: records.Dataset) -> np.ndarray:
    """Returns the ids of all train blocks as one stream.

    A block begins with the last id of the block before it, and the first block with a separator.
    """
    blocks = dataset.records('train')
    return np.concatenate([block.first[1:] for block in blocks.read(range(len(blocks)))])


def mapped_ids(dataset: datasets.Dataset, separator: int) -> np.ndarray:
    """Returns the ids of `datasets` as one stream, with a separator after each document."""
    column = dataset.with_format('arrow')[:]['ids'].combine_chunks()
    lengths = column.value_lengths().to_numpy()
    return packing.join(column.flatten().to_numpy(), lengths, separator)


def measure(options: argparse.Namespace) -> dict:
    """Runs the pairs and prints; returns the content of the file of `--out`."""
    datasets.disable_progress_bars()
    tokenizer = tokenizers.read(str(options.tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        characters = _write_splits(options.text, pathlib.Path(folder))
        tokenizer.save(f'{folder}/tokenizer')
        print(
            f'{characters:,} characters, {options.workers} processes, {os.cpu_count()} cores, '
            f'Python {platform.python_version()}, datasets {datasets.__version__}',
            flush=True,
        )
        pairs, tokens = _measure_pairs(options, folder, tokenizer)
    rates = {name: statistics.median(tokens / pair[name] for pair in pairs) for name in pairs[0]}
    ratio = statistics.median(pair['datasets'] / pair['ours'] for pair in pairs)
    print(
        f'median of {options.pairs} pairs: ours {rates["ours"]:,.0f} tokens/s, datasets '
        f'{rates["datasets"]:,.0f} tokens/s, ratio {ratio:.2f}; {tokens:,} ids, all equal'
    )
    return {
        'tokens': tokens,
        'workers': options.workers,
        'pairs': pairs,
        'tokens_per_second': rates,
        'ratio': ratio,
        'datasets': datasets.__version__,
        'hardware': f'{os.cpu_count()} cores',
    }


def _write_splits(text: pathlib.Path, folder: pathlib.Path) -> int:
    """Writes a text file without its blank lines as splits; returns the characters of train."""
    lines = [line for line in text.read_text(encoding='utf-8').split('\n') if line.strip()]
    for split in sources.SPLITS:
        split_lines = lines if split == 'train' else lines[:1]
        (folder / f'{split}.txt').write_text('\n'.join(split_lines) + '\n', encoding='utf-8')
    return sum(map(len, lines))


def _measure_pairs(
    options: argparse.Namespace, folder: str, tokenizer: tokenizers.Tokenizer
) -> tuple[list[dict[str, float]], int]:
    """Returns the seconds of both packages in each pair, and the number of ids."""
    fast_tokenizer = huggingface_tokenizers.Tokenizer.from_file(
        f'{folder}/tokenizer/tokenizer.json'
    )
    pairs: list[dict[str, float]] = []
    tokens = 0
    for number in range(options.pairs):
        pair: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as cache:
            for name in ('ours', 'datasets') if number % 2 == 0 else ('datasets', 'ours'):
                start = time.perf_counter()
                if name == 'ours':
                    prepared = prepare_dataset(
                        tokenizer, folder, options.workers, options.length, f'{cache}/ours'
                    )
                else:
                    mapped = map_dataset(
                        fast_tokenizer, folder, options.workers, options.batch, f'{cache}/datasets'
                    )
                pair[name] = time.perf_counter() - start
            tokens = prepared.split('train')['tokens']
            if number == options.pairs - 1 and not np.array_equal(
                prepared_ids(prepared), mapped_ids(mapped, tokenizer.eos_id)
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
    """Runs the comparison and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--text', type=existing_path, required=True, help='text file, a document per line'
    )
    parser.add_argument(
        '--tokenizer', type=existing_path, required=True, help='tokenizer file or folder'
    )
    parser.add_argument('--workers', type=integer(2), default=2, help='processes of each package')
    parser.add_argument(
        '--length', type=integer(1), default=1024, help='tokens per block of this package'
    )
    parser.add_argument(
        '--batch', type=integer(1), default=1000, help='documents per batch of `datasets`'
    )
    parser.add_argument('--pairs', type=integer(1), default=5, help='timed pairs')
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    try:
        result = measure(options)
    except UserError as error:  # from the tokenizer's files
        parser.error(str(error))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
