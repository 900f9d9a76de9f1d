"""The files of configs/, and each with every variant of it."""

import pathlib

from lightpaff_jax import command, config

ROOT = pathlib.Path(config.__file__).parents[1]
FILES = sorted((ROOT / 'configs').glob('*.py'))
RECIPES = [
    f'{path}:{variant}'.removesuffix(':')
    for path in FILES
    for variant in ('', *command._module(str(path)).VARIANTS)
]


def name_of(spec):
    return command.config_name(spec)
