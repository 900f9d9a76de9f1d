"""A recipe whose process is killed, at moments that nothing chose, ends as one that was not."""

import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
from helpers.recipes import tables_of

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'mass.py'


def start(place, name):
    return subprocess.Popen(
        [
            sys.executable, '-m', 'lightpaff_jax.recipe', f'--config={CONFIG}:ci',
            f'--config.workdir={name}/recipe', '--config.data.cache=cache', '--config.train.save_every=3',
            '--config.train.compilation_cache=xla',
        ],
        cwd=place, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_a_recipe_killed_at_random_moments_ends_with_the_same_table(seed, tmp_path):
    undisturbed = start(tmp_path, 'undisturbed')
    _, err = undisturbed.communicate(timeout=1800)
    assert undisturbed.returncode == 0, err
    draw, kills = random.Random(seed), 0
    while True:
        process = start(tmp_path, 'killed')
        try:
            _, err = process.communicate(timeout=draw.uniform(5, 40))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert kills < 50, 'it does not get on'
            continue
        assert process.returncode == 0, err
        break
    assert kills > 2
    expected = tables_of(tmp_path / 'undisturbed' / 'recipe')
    found = tables_of(tmp_path / 'killed' / 'recipe')
    for recipe_json, _ in (expected, found):
        recipe_json.pop('command')  # has the folder's name
    assert found == expected
