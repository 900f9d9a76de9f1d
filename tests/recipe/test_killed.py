"""A recipe whose process is killed at random moments gives the results of an undisturbed one."""

import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
from helpers.recipes import outputs_of

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'mass.py'


def start(folder, name):
    command = [sys.executable, '-m', 'lightpaff_jax.recipe', f'--config={CONFIG}:ci']
    command += [f'--config.workdir={name}/recipe', '--config.data.cache=cache']
    command += ['--config.train.save_every=3', '--config.train.compilation_cache=xla']
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_recipe_after_random_sigkills_has_equal_results(seed, tmp_path):
    undisturbed = start(tmp_path, 'undisturbed')
    _, err = undisturbed.communicate(timeout=1800)
    assert undisturbed.returncode == 0, err
    moments, kills = random.Random(seed), 0
    while True:
        process = start(tmp_path, 'killed')
        try:
            _, err = process.communicate(timeout=moments.uniform(5, 40))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert kills < 50, 'the recipe makes no progress'
            continue
        assert process.returncode == 0, err
        break
    assert kills > 2
    expected = outputs_of(tmp_path / 'undisturbed' / 'recipe')
    outputs = outputs_of(tmp_path / 'killed' / 'recipe')
    for record, _ in (expected, outputs):
        record.pop('command')  # it names the workdir
    assert outputs == expected
