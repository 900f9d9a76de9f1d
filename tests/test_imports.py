"""Modules import lower layers only, and commands start without jax."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_imports_follow_the_layers_of_pyproject():
    run = subprocess.run(
        [sys.executable, '-c', 'from importlinter.cli import lint_imports_command as c; c()'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert '2 kept, 0 broken' in run.stdout


@pytest.mark.e2e
def test_commands_start_without_jax():
    """So a mistake on the command line is reported at once."""
    code = (
        'import sys, lightpaff_jax, lightpaff_jax.main, lightpaff_jax.fetch\n'
        'import lightpaff_jax.recipe.__main__\n'
        "heavy = {'jax', 'flax', 'orbax', 'optax', 'numpy', 'grain', 'tensorflow_datasets'}\n"
        'print(*sorted(heavy & set(sys.modules)))'
    )
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ''
