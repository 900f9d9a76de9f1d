"""Measures the seconds from a command to its first update.

    ./launch/benchmark_startup.sh [--config=FILE[:PRESET]] [--pairs=K] [--out=FILE]

A cold start has an empty cache of compiled programs, a warm start a filled one. The time includes
everything that precedes the first update: interpreter, imports, tokenizer, data, the teacher's
weights, devices and compilation. An earlier run, which is not timed, prepares the data and the
teacher.
"""

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
from arguments import integer, make_parser, output_file

ROOT = pathlib.Path(__file__).parents[1]


def train_command(config: str, folder: pathlib.Path, workdir: str) -> list[str]:
    """Returns the command of a run whose caches and workdir are in a folder."""
    return [
        sys.executable,
        '-m',
        'lightpaff_jax.main',
        f'--config={config}',
        f'--config.data.cache={folder}/data',
        f'--config.train.compilation_cache={folder}/xla',
        f'--config.workdir={folder}/{workdir}',
    ]


def seconds_to_first_update(command: list[str], cwd: pathlib.Path) -> float:
    """Returns the seconds until a command prints its first update, then kills it."""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if line.startswith('update 1/'):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    sys.exit(f'error: {" ".join(command)} ended before its first update:\n{"".join(output)}')


def measure(config: str, pairs: int) -> dict:
    """Runs and prints; returns the content of the file of `--out`."""
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        preparation = subprocess.run(
            [*train_command(config, folder, 'whole'), '--config.train.updates=2'],
            cwd=folder,
            env=os.environ | {'PYTHONPATH': str(ROOT)},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if preparation.returncode:
            print(preparation.stderr.strip().splitlines()[-1], file=sys.stderr)
            sys.exit(preparation.returncode)
        times: dict[str, list[float]] = {'cold': [], 'warm': []}
        for number in range(pairs):
            shutil.rmtree(folder / 'xla', ignore_errors=True)
            for name in times:
                command = train_command(config, folder, f'{name}{number}')
                times[name].append(seconds_to_first_update(command, folder))
                print(f'{name}: {times[name][-1]:.1f} s', flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    listing = ', '.join(f'{name} {seconds:.1f} s' for name, seconds in medians.items())
    print(f'median of {pairs}: {listing}')
    return {
        'config': pathlib.Path(config).name,
        'seconds': times,
        'median': medians,
        'hardware': f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores',
        'jax': jax.__version__,
    }


def main() -> None:
    """Runs the measurement and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--config', default=f'{ROOT}/configs/gpt2_stage1.py:tiny', help='FILE[:PRESET] to train'
    )
    parser.add_argument('--pairs', type=integer(1), default=3, help='cold and warm starts')
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    result = measure(str(pathlib.Path(options.config).absolute()), options.pairs)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
