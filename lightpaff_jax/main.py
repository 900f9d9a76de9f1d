"""One run: `python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny`."""

import sys

from ml_collections import ConfigDict

from lightpaff_jax.config import flags, needed
from lightpaff_jax.runtime import distributed

USAGE = """
python -m lightpaff_jax.main --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Trains one network, from its newest checkpoint where there is one, and writes into
config.workdir (default: runs/<config name>):
  result.json        scores, cost, versions        metrics.jsonl   losses by update
  checkpoints/       newest states, verified       timing.jsonl    seconds, tokens/s
  config.json        every key of the run          tensorboard/    the same as curves
  predictions/       of validation and test, one JSON object an example

Keys, defaults and units: lightpaff_jax/config.py
"""


def run(c: ConfigDict) -> None:
    """Trains what `c` says, after the runs that it needs, and prints the scores."""
    needed.check_paths(c, runs=not c.requires)
    from lightpaff_jax.evaluate import scores
    from lightpaff_jax.train import check, train

    if c.requires:
        check(c, runs=False)
    for spec in c.requires:
        before = flags.parse([f'--config={spec}'])
        before.data.cache = c.data.cache
        before.train.compilation_cache = c.train.compilation_cache
        distributed.log_primary(f'first {spec}')
        run(before)
    result = train(c)
    for split, found in result['scores'].items():
        distributed.log_primary(f'{split}: {scores.said(found)}')
    distributed.log_primary(f'{c.workdir}/result.json')


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
