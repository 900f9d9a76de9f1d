"""Prints digests of the parameters and the losses of finished runs: one line a run.

    python benchmarks/golden.py RUNS > golden.txt

A refactoring keeps them: on one machine, in float32, with the same versions of the packages, every
run ends with the same bits. The lines are sorted by the path of the run below RUNS.
"""

import hashlib
import pathlib
import sys

import jax
import numpy as np

import lightpaff_jax


def parameters_digest(run: pathlib.Path) -> str:
    """Returns the digest of the names, shapes, types and bits of a run's parameters."""
    _, params = lightpaff_jax.load(str(run))
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        array = np.ascontiguousarray(array)
        digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def main(root: str) -> None:
    """Prints `parameters losses run` for each run below a folder."""
    folder = pathlib.Path(root)
    for metrics in sorted(folder.rglob('metrics.jsonl')):
        losses = hashlib.sha256(metrics.read_bytes()).hexdigest()[:16]
        print(parameters_digest(metrics.parent), losses, metrics.parent.relative_to(folder))


if __name__ == '__main__':
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        print('usage: python benchmarks/golden.py RUNS, a folder of finished runs', file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
