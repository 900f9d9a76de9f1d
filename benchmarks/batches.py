"""How fast batches come to the host, how long a step waits for them, and what memory they take.

    ./launch/benchmark_batches.sh [--pairs=N] [--epochs=N] [--out=FILE]

The set is made of random ids, 100 MB of them, as `lightpaff_jax.data.prepare` writes one. Rates of
causal batches [32, 1024] and masked ones [32, 512] are taken in turn; the loop that stands for
training sleeps 50 ms a step.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from arguments import file_to_write, whole

from lightpaff_jax import config
from lightpaff_jax.data import batches, records, tokenizers
from lightpaff_jax.data.prepared import build, shards
from lightpaff_jax.data.records import Dataset, Record

VOCABULARY = 30_522
SIZE = 100_000_000  # bytes of ids
SECONDS = 2.0  # of one measurement
STEP = 0.05  # seconds that a step takes in the loop
STEPS = 200


def main() -> None:
    """Measures, prints, and writes what `--out` names."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument('--pairs', type=whole(1), default=5)
    parser.add_argument('--epochs', type=whole(1), default=10)
    parser.add_argument('--out', type=file_to_write)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer = _vocabulary(folder)
        sides = {
            n: _side(folder, n, length, tokenizer) for n, length in (('clm', 1024), ('mlm', 512))
        }
        found = {
            'cores': os.cpu_count(),
            'tokens_per_second': _rates(sides, tokenizer, options.pairs),
            'waited': {name: _waited(*side, tokenizer) for name, side in sides.items()},
            'memory_mb': _memory(*sides['clm'], tokenizer, options.epochs),
        }
    for name, rates in found['tokens_per_second'].items():
        print(f'{name}: {statistics.median(rates) / 1e6:.1f} M tokens/s, median of '
              f'{", ".join(f"{rate / 1e6:.1f}" for rate in rates)}')  # fmt: skip
    for name, share in found['waited'].items():
        print(f'{name}: a step of {1e3 * STEP:.0f} ms waits {100 * share:.2f} % of the time')
    memory = found['memory_mb']
    growth = max(memory[1:]) / memory[0] - 1 if memory[1:] else 0.0
    print(f'memory after each epoch: {", ".join(f"{m:.0f}" for m in memory)} MB; at most '
          f'{100 * growth:+.1f} % of that after the first')  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + '\n')


def _vocabulary(folder: pathlib.Path) -> tokenizers.Tokenizer:
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    words = [f'w{i}' for i in range(VOCABULARY - len(special))]
    (folder / 'vocab.txt').write_text('\n'.join([*special, *words]) + '\n')
    return tokenizers.read(str(folder))


def _side(folder: pathlib.Path, name: str, length: int, tokenizer: tokenizers.Tokenizer):
    """(configuration, prepared set) of an objective."""
    c = config.default()
    c.objective, c.data.length, c.data.batch_size = name, length, 32
    c.student.family = {'clm': 'gpt2', 'mlm': 'bert'}[name]
    made = folder / name
    made.mkdir()
    size = {'clm': length + 1, 'mlm': length - 2}[name]
    generator, dtype = np.random.default_rng(0), records.id_type(tokenizer.vocab_size)
    writer = shards.Writer(made, 'train', 'blocks', dtype, dtype, {})
    count = SIZE // dtype.itemsize // size
    for start in range(0, count, 1000):
        ids = generator.integers(5, VOCABULARY, (min(1000, count - start), size), np.int32)
        writer.write([Record(row) for row in ids])
        if writer.ids > build.SHARD_TOKENS:
            writer.end_shard()
    writer.end_shard()
    stats = {'records': count, **writer.state()}
    return c, Dataset(str(made), {'splits': {'train': stats}, 'kind': 'blocks', 'dtype': dtype.str})


def _rates(sides: dict, tokenizer, pairs: int) -> dict[str, list[float]]:
    """Tokens a second of each side, measured in turn."""
    streams = {
        name: batches.training(c, prepared, tokenizer) for name, (c, prepared) in sides.items()
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs):
        for name, stream in streams.items():
            stream.close()
            stream = streams[name] = batches.training(*sides[name], tokenizer)
            next(stream)
            tokens, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < SECONDS:
                tokens += next(stream).tokens.size
            found[name].append(tokens / spent)
    for stream in streams.values():
        stream.close()
    return found


def _waited(c, prepared, tokenizer) -> float:
    """Share of the time that a loop of steps waits for its batches."""
    stream = batches.training(c, prepared, tokenizer)
    next(stream)
    waiting, began = 0.0, time.perf_counter()
    for _ in range(STEPS):
        time.sleep(STEP)
        before = time.perf_counter()
        next(stream)
        waiting += time.perf_counter() - before
    share = waiting / (time.perf_counter() - began)
    stream.close()
    return share


def _memory(c, prepared, tokenizer, epochs: int) -> list[float]:
    """MB that the process has after each epoch."""
    stream = batches.training(c, prepared, tokenizer)
    each = prepared.split('train')['records'] // c.data.batch_size
    found = []
    for _ in range(epochs):
        for _ in itertools.islice(stream, each):
            pass
        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
        found.append(pages * os.sysconf('SC_PAGE_SIZE') / 1e6)
    stream.close()
    return found


if __name__ == '__main__':
    main()
