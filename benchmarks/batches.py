"""Measures how fast batches reach the host, how long steps wait for them, and their memory.

    ./launch/benchmark_batches.sh [--pairs=N] [--epochs=N] [--out=FILE]

The dataset is 100 MB of random ids, in the format that `lightpaff_jax.data.prepare` writes. The
rates of causal batches [32, 1024] and masked batches [32, 512] are measured in turn. The training
loop is simulated: a step sleeps for 50 ms.
"""

import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from arguments import integer, make_parser, output_file
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import batches, records, tokenizers
from lightpaff_jax.data.prepared import build, shards
from lightpaff_jax.data.records import Dataset, Record

LENGTHS = {'clm': 1024, 'mlm': 512}
VOCAB_SIZE = 30_522
DATASET_BYTES = 100_000_000
SECONDS = 2.0  # duration of a measurement
STEP_SECONDS = 0.05
STEPS = 200


def main() -> None:
    """Runs the measurements, prints them and writes them to the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument('--pairs', type=integer(1), default=5, help='measurements of each rate')
    parser.add_argument('--epochs', type=integer(1), default=10, help='epochs of the memory test')
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        tokenizer = _make_tokenizer(folder)
        workloads = {
            objective: _make_workload(folder, objective, length, tokenizer)
            for objective, length in LENGTHS.items()
        }
        result = {
            'cores': os.cpu_count(),
            'tokens_per_second': _measure_rates(workloads, tokenizer, options.pairs),
            'waited': {
                objective: _measure_waiting(*workload, tokenizer)
                for objective, workload in workloads.items()
            },
            'memory_mb': _measure_memory(*workloads['clm'], tokenizer, options.epochs),
        }
    for objective, rates in result['tokens_per_second'].items():
        listing = ', '.join(f'{rate / 1e6:.1f}' for rate in rates)
        median = statistics.median(rates) / 1e6
        print(f'{objective}: {median:.1f} M tokens/s, median of {listing}')
    for objective, share in result['waited'].items():
        print(f'{objective}: a step of {1e3 * STEP_SECONDS:.0f} ms waits {share:.2%} of the time')
    memory = result['memory_mb']
    growth = max(memory[1:]) / memory[0] - 1 if memory[1:] else 0.0
    listing = ', '.join(f'{megabytes:.0f}' for megabytes in memory)
    print(f'memory after each epoch: {listing} MB; largest growth since the first {growth:+.1%}')
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n')


def _make_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Writes a WordPiece vocabulary of VOCAB_SIZE words and reads it."""
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    words = [f'w{i}' for i in range(VOCAB_SIZE - len(special))]
    (folder / 'vocab.txt').write_text('\n'.join([*special, *words]) + '\n')
    return tokenizers.read(str(folder))


def _make_workload(
    folder: pathlib.Path, objective: str, length: int, tokenizer: tokenizers.Tokenizer
) -> tuple[ConfigDict, Dataset]:
    """Writes the dataset of an objective; returns the configuration and the dataset."""
    c = config.default()
    c.objective, c.data.length, c.data.batch_size = objective, length, 32
    c.student.family = {'clm': 'gpt2', 'mlm': 'bert'}[objective]
    dataset_dir = folder / objective
    dataset_dir.mkdir()
    # A causal block has one more id, the last label. A masked row adds two special tokens.
    block_size = {'clm': length + 1, 'mlm': length - 2}[objective]
    generator, dtype = np.random.default_rng(0), records.id_type(tokenizer.vocab_size)
    writer = shards.Writer(dataset_dir, 'train', 'blocks', dtype, dtype, {})
    count = DATASET_BYTES // dtype.itemsize // block_size
    for start in range(0, count, 1000):
        shape = (min(1000, count - start), block_size)
        blocks = generator.integers(5, VOCAB_SIZE, shape, np.int32)
        writer.write([Record(block) for block in blocks])
        if writer.ids > build.SHARD_TOKENS:
            writer.end_shard()
    writer.end_shard()
    split = {'records': count, **writer.state()}
    manifest = {'splits': {'train': split}, 'kind': 'blocks', 'dtype': dtype.str}
    return c, Dataset(str(dataset_dir), manifest)


def _measure_rates(
    workloads: dict[str, tuple[ConfigDict, Dataset]],
    tokenizer: tokenizers.Tokenizer,
    repetitions: int,
) -> dict[str, list[float]]:
    """Returns tokens per second by objective; the objectives are measured in turn."""
    rates: dict[str, list[float]] = {objective: [] for objective in workloads}
    streams = {
        objective: batches.training(*workload, tokenizer)
        for objective, workload in workloads.items()
    }
    for _ in range(repetitions):
        for objective, stream in streams.items():
            stream.close()
            stream = streams[objective] = batches.training(*workloads[objective], tokenizer)
            next(stream)
            tokens, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < SECONDS:
                tokens += next(stream).tokens.size
            rates[objective].append(tokens / elapsed)
    for stream in streams.values():
        stream.close()
    return rates


def _measure_waiting(c: ConfigDict, dataset: Dataset, tokenizer: tokenizers.Tokenizer) -> float:
    """Returns the share of time that simulated steps wait for their batches."""
    stream = batches.training(c, dataset, tokenizer)
    next(stream)
    waiting, start = 0.0, time.perf_counter()
    for _ in range(STEPS):
        time.sleep(STEP_SECONDS)
        wait_start = time.perf_counter()
        next(stream)
        waiting += time.perf_counter() - wait_start
    share = waiting / (time.perf_counter() - start)
    stream.close()
    return share


def _measure_memory(
    c: ConfigDict, dataset: Dataset, tokenizer: tokenizers.Tokenizer, epochs: int
) -> list[float]:
    """Returns the resident memory of the process after each epoch, in MB."""
    stream = batches.training(c, dataset, tokenizer)
    batches_per_epoch = dataset.split('train')['records'] // c.data.batch_size
    memory = []
    for _ in range(epochs):
        for _ in itertools.islice(stream, batches_per_epoch):
            pass
        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
        memory.append(pages * os.sysconf('SC_PAGE_SIZE') / 1e6)
    stream.close()
    return memory


if __name__ == '__main__':
    main()
