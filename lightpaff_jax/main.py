"""One run: `python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny`."""

import pathlib
import sys

from ml_collections import ConfigDict

from lightpaff_jax import command, config

USAGE = """
python -m lightpaff_jax.main --config=FILE[:VARIANT] [--config.KEY=VALUE ...]

Trains one network, from its newest checkpoint where there is one, and writes into
config.workdir (default: runs/<config name>):
  result.json        scores, cost, versions        metrics.jsonl   losses by update
  checkpoints/       newest states, verified       timing.jsonl    seconds, tokens/s
  config.json        every key of the run          tensorboard/    the same as curves

Keys, defaults and units: lightpaff_jax/config.py
"""


def run(c: ConfigDict) -> None:
    """Trains what `c` says, after the runs that it needs, and prints the scores."""
    if not c.after:
        config.check_paths(c)
    from lightpaff_jax.train import train  # after the configuration is known to be right

    for spec in c.after:
        before = command.parse([f'--config={spec}'])
        before.data.cache = c.data.cache
        before.train.compilation_cache = c.train.compilation_cache
        if not (pathlib.Path(before.workdir) / 'result.json').is_file():
            print(f'first {spec}', flush=True)
            run(before)
    result = train(c)
    for split, scores in result['scores'].items():
        print(f'{split}: ' + ', '.join(f'{name} {value:.6g}' for name, value in scores.items()))
    print(f'{c.workdir}/result.json')


if __name__ == '__main__':
    sys.exit(command.main(run, USAGE))
