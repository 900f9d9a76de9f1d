"""The files of configs/: each is right, says what it is, and has the sizes of the paper."""

import ast
import sys

import pytest
from helpers.recipes import FILES, RECIPES, ROOT, name_of

from lightpaff_jax import config, models
from lightpaff_jax.config import flags, validate
from lightpaff_jax.recipe import plan


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_every_recipe_and_every_run_of_its_plan_is_valid(spec):
    c = flags.parse([f'--config={spec}'])
    validate.validate(c)
    for devices in (1, 8):
        validate.check_devices(c, devices)
    assert c.workdir == f'runs/{name_of(spec)}'
    for before in c.requires:
        validate.validate(flags.load(before))
    if c.recipe.tasks:  # a graph of runs
        if not c.teacher.layers:  # read from its path before the plan is made
            c.teacher.update(config.network(family=c.student.family).to_dict())
            c.teacher.decoder_layers = c.student.decoder_layers
            c.teacher.update({'positions': 1024, 'vocab_size': c.student.vocab_size})
        runs, table = plan.expand(c)
        for task in table['tasks'].values():
            assert len(task['students']) >= 4 * len(c.recipe.seeds)
        for run in runs.values():
            validate.validate(run)
            validate.check_devices(run, 1)


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_a_run_starts_from_the_workdirs_of_the_runs_before_it(spec):
    c = flags.load(spec)
    before = [flags.parse([f'--config={one}']).workdir for one in c.requires]
    if before:
        needed = {c.teacher.path, c.student.init} - {'', 'scratch'}
        assert needed == set(before)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_a_recipe_says_what_it_is_and_how_to_run_it(path):
    tree = ast.parse(path.read_text())
    doc = ast.get_docstring(tree)
    assert doc
    assert f'configs/{path.name}' in doc or 'launch/' in doc


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_no_recipe_imports_another(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported |= {f'{node.module}.{alias.name}' for alias in node.names}
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    imported = {name for name in imported if name.split('.')[0] not in sys.stdlib_module_names}
    assert imported == {'lightpaff_jax.config'}
    assert 'importlib' not in path.read_text()


@pytest.mark.parametrize(
    ('stage', 'parameters'),
    [
        ('gpt2_stage1', 67_736_832),
        ('gpt2_stage2', 67_736_832),
        ('bert_stage1', 25_642_810),
        ('bert_stage2', 25_348_608 + 512 * 513 + 2 * 513),  # no masked-LM head; pooler, classifier
        ('mass_stage1', 37_201_722),
        ('mass_stage2', 37_201_722),
    ],
)
def test_students_have_the_sizes_of_the_paper(stage, parameters):
    c = flags.load(str(ROOT / f'configs/{stage}.py'))
    assert models.build(c.student).parameter_count == parameters
