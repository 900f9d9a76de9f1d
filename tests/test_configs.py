"""The recipes in configs/: valid, documented, independent, with the sizes of the paper."""

import ast
import sys

import pytest
from helpers.recipes import FILES, RECIPES, ROOT, name_of

from lightpaff_jax import config, models
from lightpaff_jax.config import flags, validate
from lightpaff_jax.recipe import plan


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_recipe_and_every_run_of_its_plan_are_valid(spec):
    c = flags.parse([f'--config={spec}'])
    validate.validate(c)
    for devices in (1, 8):
        validate.check_devices(c, devices)
    assert c.workdir == f'runs/{name_of(spec)}'
    for requirement in c.requires:
        validate.validate(flags.load(requirement))
    if c.recipe.tasks:
        if not c.teacher.layers:  # the command reads the shape of this teacher from its path
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
def test_required_runs_are_the_teacher_and_the_init(spec):
    c = flags.load(spec)
    workdirs = {flags.parse([f'--config={requirement}']).workdir for requirement in c.requires}
    if workdirs:
        assert workdirs == {c.teacher.path, c.student.init} - {'', 'scratch'}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_recipe_docstring_has_a_command(path):
    tree = ast.parse(path.read_text())
    doc = ast.get_docstring(tree)
    assert doc
    assert f'configs/{path.name}' in doc or 'launch/' in doc


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_recipe_imports_only_config(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    names = {name for name in names if name.split('.')[0] not in sys.stdlib_module_names}
    assert names == {'lightpaff_jax.config'}
    assert 'importlib' not in path.read_text()


@pytest.mark.parametrize(
    ('stage', 'parameters'),
    [
        ('gpt2_stage1', 67_736_832),
        ('gpt2_stage2', 67_736_832),
        ('bert_stage1', 25_642_810),
        ('bert_stage2', 25_348_608 + 512 * 513 + 2 * 513),  # pooler and classifier, no LM head
        ('mass_stage1', 37_201_722),
        ('mass_stage2', 37_201_722),
    ],
)
def test_students_have_the_parameter_counts_of_the_paper(stage, parameters):
    c = flags.load(str(ROOT / f'configs/{stage}.py'))
    assert models.build(c.student).parameter_count == parameters
