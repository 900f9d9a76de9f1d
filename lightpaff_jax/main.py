"""Trains one network: `python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny`."""

import sys

from ml_collections import ConfigDict

from lightpaff_jax import check
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import distributed

USAGE = """
python -m lightpaff_jax.main --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Trains one network and writes into config.workdir (default: runs/<config name>). It resumes from the
newest checkpoint there. The workdir then holds:
  result.json        scores, cost, versions        metrics.jsonl   losses by update
  checkpoints/       newest states, verified       timing.jsonl    seconds, tokens/s
  config.json        every key of the run          tensorboard/    the same as curves
  predictions/       of validation and test, one JSON object per example

Keys, defaults and units: lightpaff_jax/config/__init__.py
"""


def run(c: ConfigDict) -> None:
    """Trains a network, after the runs that it requires, and prints the scores."""
    check.check(c, runs=not c.requires)
    from lightpaff_jax.evaluate import scores
    from lightpaff_jax.train import train

    for spec in c.requires:
        required = flags.parse([f'--config={spec}'])
        required.data.cache = c.data.cache
        required.train.compilation_cache = c.train.compilation_cache
        distributed.log_primary(f'first {spec}')
        run(required)
    result = train(c)
    for split, split_scores in result['scores'].items():
        distributed.log_primary(f'{split}: {scores.format_scores(split_scores)}')
    distributed.log_primary(f'{c.workdir}/result.json')


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
