"""From a command to its first update, in seconds: with an empty cache of compiled programs, and with a full one.

    ./launch/benchmark_startup.sh [--config=FILE[:PRESET]] [--pairs=K] [--out=FILE]

Everything that the first update waits for counts: the interpreter, imports, the tokenizer, data, the
teacher's weights, the devices, compiling. Data and teacher are made before, by a run of their own.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
from arguments import file_to_write, whole

ROOT = pathlib.Path(__file__).parents[1]


def command(config: str, place: pathlib.Path, workdir: str) -> list[str]:
    """A run of `config` with caches and runs below `place`."""
    return [
        sys.executable, '-m', 'lightpaff_jax.main', f'--config={config}',
        f'--config.data.cache={place}/data', f'--config.train.compilation_cache={place}/xla',
        f'--config.workdir={place}/{workdir}',
    ]  # fmt: skip


def seconds(words: list[str], cwd: pathlib.Path) -> float:
    """Until a command says that its first update is done; it is stopped then."""
    began = time.perf_counter()
    with subprocess.Popen(
        words, cwd=cwd, env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if line.startswith('update 1/'):
                took = time.perf_counter() - began
                running.kill()
                return took
    sys.exit(f'error: {" ".join(words)} ended before its first update:\n{"".join(said)}')


def measure(config: str, pairs: int) -> dict:
    """Runs and prints; returns what `--out` writes."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        before = subprocess.run(
            [*command(config, place, 'whole'), '--config.train.updates=2'],
            cwd=place, env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if before.returncode:
            print(before.stderr.strip().splitlines()[-1], file=sys.stderr)
            sys.exit(before.returncode)
        found: dict[str, list[float]] = {'cold': [], 'warm': []}
        for number in range(pairs):
            shutil.rmtree(place / 'xla', ignore_errors=True)
            for name, times in found.items():
                times.append(seconds(command(config, place, f'{name}{number}'), place))
                print(f'{name}: {times[-1]:.1f} s', flush=True)
    medians = {name: statistics.median(times) for name, times in found.items()}
    print(', '.join(f'{name} {took:.1f} s' for name, took in medians.items()), f'of {pairs} each')
    return {
        'config': pathlib.Path(config).name, 'seconds': found, 'median': medians,
        'hardware': f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores',
        'jax': jax.__version__,
    }  # fmt: skip


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--config', default=f'{ROOT}/configs/gpt2_stage1.py:tiny')
    parser.add_argument('--pairs', type=whole(1), default=3)
    parser.add_argument('--out', type=file_to_write, help='JSON file for the figures')
    a = parser.parse_args()
    result = measure(str(pathlib.Path(a.config).absolute()), a.pairs)
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
