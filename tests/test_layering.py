"""Imports go down the layers, and only down."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import lightpaff_jax

ROOT = pathlib.Path(lightpaff_jax.__file__).parent

# A module imports from lower levels only. A dot stands before a name inside a folder.
LEVELS = {
    'main': 6,
    'recipe': 6,
    'train': 5,
    'chain': 4,
    'evaluate': 4,
    'predictions': 3,
    'scores': 2,
    'speed': 4,
    'preflight': 4,
    'report': 4,
    'results': 4,
    'findings': 4,
    'tables': 4,
    'plots': 4,
    'page': 4,
    'paper': 0,
    'family': 4,
    'grids': 4,
    'differences': 4,
    'distill_step': 3,
    'teacher': 3,
    'pretrained': 3,
    'generate': 3,
    'decoding': 2,
    'checkpoint': 2,
    'losses': 2,
    'networks': 2,
    'optimizer': 2,
    'metrics': 2,
    'digests': 0,
    'workdir': 1,
    'data': 1,
    'data.batches': 1,
    'data.detokenize': 1,
    'data.encoding': 1,
    'data.files': 1,
    'data.fitting': 1,
    'data.making': 1,
    'data.packing': 1,
    'data.progress': 1,
    'data.shards': 1,
    'data.worker': 1,
    'data.objectives': 1,
    'data.order': 1,
    'data.overlap': 1,
    'data.specs': 1,
    'data.forms': 1,
    'data.masking': 1,
    'data.mixture': 1,
    'data.prepare': 1,
    'data.pydocs': 1,
    'data.readers': 1,
    'data.records': 1,
    'data.rows': 1,
    'data.sources': 1,
    'data.splits': 1,
    'data.spm': 1,
    'data.spm_json': 1,
    'data.tables': 1,
    'data.texts': 1,
    'data.tfds_sets': 1,
    'data.tokenizer_files': 1,
    'data.tokenizers': 1,
    'models': 1,
    'models.attention': 1,
    'models.bert': 1,
    'models.folders': 1,
    'models.gpt2': 1,
    'models.huggingface': 1,
    'models.layers': 1,
    'models.mass': 1,
    'models.settings': 1,
    'cluster': 0,
    'chips': 0,
    'hlo': 0,
    'command': 0,
    'local': 0,
    'paths': 0,
    'processes': 0,
    'quiet': 0,
    'config': 0,
    'needed': 0,
    'validation': 0,
    'batch': 0,
    'sharding': 0,
    '': 7,
}
# Of one level, outside data/ and models/.
BESIDE = {
    ('report', 'results'),
    ('report', 'findings'),
    ('report', 'tables'),
    ('report', 'plots'),
    ('report', 'page'),
    ('report', 'family'),
    ('report', 'grids'),
    ('report', 'differences'),
    ('page', 'tables'),
    ('page', 'differences'),
    ('family', 'findings'),
    ('family', 'results'),
    ('family', 'tables'),
    ('grids', 'findings'),
    ('grids', 'results'),
    ('grids', 'tables'),
    ('differences', 'results'),
    ('findings', 'results'),
    ('tables', 'results'),
    ('plots', 'results'),
    ('teacher', 'pretrained'),
    ('generate', 'predictions'),
    ('generate', 'pretrained'),
    ('cluster', 'config'),
    ('processes', 'cluster'),
    ('processes', 'config'),
    ('paths', 'config'),
    ('command', 'config'),
    ('command', 'paths'),
    ('command', 'processes'),
    ('command', 'validation'),
    ('needed', 'config'),
    ('validation', 'config'),
    ('sharding', 'config'),
    ('chips', 'config'),
}


def name_of(path):
    return (
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('__init__').strip('.')
    )


FILES = {name_of(path): path for path in sorted(ROOT.rglob('*.py'))}


def imports(name, text):
    """Modules of ours that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name}: a relative import'
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'
                found.add(whole if whole.removeprefix('lightpaff_jax.') in FILES else node.module)
    ours = {one for one in found if one.split('.')[0] == 'lightpaff_jax'}
    return {one.removeprefix('lightpaff_jax').strip('.') for one in ours} - {name}


def forbidden(name, text):
    """Imports of a module that its level does not allow."""
    folder = name.split('.')[0]

    def allowed(other):
        sibling = folder in ('data', 'models') and other.split('.')[0] == folder
        lower = LEVELS[other] < LEVELS[name] or other == ''
        return sibling or lower or (name, other) in BESIDE

    return {other for other in imports(name, text) if not allowed(other)}


def test_every_module_has_a_level():
    assert FILES.keys() == LEVELS.keys()


@pytest.mark.parametrize('name', FILES)
def test_a_module_imports_only_from_lower_levels(name):
    assert forbidden(name, FILES[name].read_text()) == set()


@pytest.mark.parametrize(
    ('name', 'text', 'found'),
    [
        ('data.batches', 'from lightpaff_jax import models', 'models'),
        ('models.gpt2', 'from lightpaff_jax.data import prepare', 'data.prepare'),
        ('models.gpt2', 'def f():\n  import lightpaff_jax.data.prepare', 'data.prepare'),
        ('losses', 'from lightpaff_jax.metrics import means', 'metrics'),
        ('config', 'from lightpaff_jax.command import main', 'command'),
        ('evaluate', 'from lightpaff_jax import train', 'train'),
        ('results', 'from lightpaff_jax import report', 'report'),
    ],
)
def test_an_import_that_is_not_allowed_is_found(name, text, found):
    assert forbidden(name, text) == {found}


def test_the_loss_imports_no_module_of_ours():
    assert imports('losses', FILES['losses'].read_text()) == set()


def test_imports_have_no_cycle():
    graph = {
        # A package imports its __init__ first; that is no cycle of ours.
        name: {one for one in imports(name, path.read_text()) if not name.startswith(f'{one}.')}
        for name, path in FILES.items()
    }
    assert set(graphlib.TopologicalSorter(graph).static_order()) == LEVELS.keys()


def test_files_are_short():
    longer = {name for name, path in FILES.items() if len(path.read_text().splitlines()) > 400}
    assert longer == set()


@pytest.mark.e2e
def test_commands_start_without_jax():
    """So that a mistake on the command line is answered at once."""
    code = (
        'import sys, lightpaff_jax, lightpaff_jax.main, lightpaff_jax.recipe\n'
        "heavy = {'jax', 'flax', 'orbax', 'optax', 'numpy', 'grain', 'tensorflow_datasets'}\n"
        'print(*sorted(heavy & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ''
