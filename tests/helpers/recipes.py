"""The recipe files of configs/ with their presets, and the outputs of a finished recipe."""

import json
import pathlib

from lightpaff_jax import config
from lightpaff_jax.config import flags

ROOT = pathlib.Path(config.__file__).parents[2]
FILES = sorted((ROOT / 'configs').glob('*.py'))
RECIPES = [
    f'{path}:{preset}'.removesuffix(':')
    for path in FILES
    for preset in ('', *flags._module(str(path)).PRESETS)
]


def name_of(spec):
    return flags.config_name(spec)


def outputs_of(workdir):
    """Returns recipe.json and every result.json, without times and the git commit.

    A developer may commit while the tests run, so the commits of two runs may differ.
    """
    record = json.loads((workdir / 'recipe.json').read_text())
    results = {
        str(path.parent.relative_to(workdir)): {
            key: value
            for key, value in json.loads(path.read_text()).items()
            if key not in ('seconds', 'tokens_per_second', 'git_commit')
        }
        for path in workdir.rglob('result.json')
    }
    return record, results
