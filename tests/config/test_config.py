"""Every key is used, and goes to JSON, the command line and back as it was."""

import ast
import inspect
import json

import pytest
from helpers.recipes import RECIPES, ROOT, name_of
from ml_collections import ConfigDict

from lightpaff_jax import config, models
from lightpaff_jax.config import flags
from lightpaff_jax.data import objectives, sources
from lightpaff_jax.errors import UserError

PACKAGE = sorted((ROOT / 'lightpaff_jax').rglob('*.py'))
DEFAULTS = (('config', '__init__.py'), ('config', 'recipes.py'))  # they set keys
NETWORK, PHASE = set(config.network()), set(config.phase())


def text_of(node):
    """The last name of `a`, of `x.a` and of `x['a']`."""
    if isinstance(node, ast.Subscript):
        return node.slice.value if isinstance(node.slice, ast.Constant) else text_of(node.value)
    return getattr(node, 'attr', None) or getattr(node, 'id', None)


def aliases(tree):
    """Name -> last name of what it was assigned: `o = c.optim` gives o -> optim."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(
                    value, ast.Attribute | ast.Subscript
                ):
                    found[target.id] = text_of(value)
    return found


def reads(tree):
    """(owner, key) of every `owner.key` and `owner['key']` that is read, aliases followed."""
    owners = aliases(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant):
                continue
            owner = text_of(node.value)
            found |= {(owner, text_of(node)), (owners.get(owner), text_of(node))}
    return found


def unread(c, files):
    """Keys of `c` that no file reads. In models/ a network is `c`; everywhere a phase is `p` or
    `phase`, and the section `student` may be `s`.
    """
    inside, words = set(), set()
    outside = reads(ast.parse(inspect.getsource(config.use_phase)))
    for path, text in files.items():
        tree = ast.parse(text)
        (inside if 'models' in path.parts else outside).update(reads(tree))
        words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}

    def is_read(key):
        *sections, leaf = ['c', *key.split('.')]
        if sections[-1] in ('student', 'teacher') and leaf in NETWORK:
            return (sections[-1], leaf) in outside or ('c', leaf) in inside
        if 'recipe' in sections and leaf in PHASE:
            return {('p', leaf), ('phase', leaf)} & outside and sections[-1] in words
        owners = {'student': {'student', 's'}}.get(sections[-1], {sections[-1]})
        return any((owner, leaf) in outside for owner in owners)

    return [key for key in config.flatten(c) if not is_read(key)]


@pytest.fixture(scope='module')
def sources_of_package():
    return {path: path.read_text() for path in PACKAGE if path.parts[-2:] not in DEFAULTS}


def test_every_key_is_read_somewhere(sources_of_package):
    assert unread(config.default(), sources_of_package) == []


def test_a_key_that_nothing_reads_is_found(sources_of_package):
    c = config.default().unlock()
    c.made_up = c.train.made_up = c.optim.path = c.student.made_up = 1
    c.teacher.init = c.recipe.student_finetune.made_up = 1
    c.recipe.made_up = config.phase()
    assert set(unread(c, sources_of_package)) == {
        'made_up', 'train.made_up', 'optim.path', 'student.made_up', 'teacher.init',
        'recipe.student_finetune.made_up', *(f'recipe.made_up.{key}' for key in PHASE),
    }  # fmt: skip


def hidden_defaults(text):
    """Lines that read a configuration with a default of their own: `.get` or `getattr`."""
    tree = ast.parse(text)
    names = {'c', 'config'} | {
        node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and 'ConfigDict' in ast.unparse(node.annotation or ast.Pass())
    }

    def root(node):
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
        return getattr(node, 'id', None)

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and root(node.value) in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            get = isinstance(node.func, ast.Attribute) and node.func.attr == 'get'
            attr = isinstance(node.func, ast.Name) and node.func.id in ('getattr', 'hasattr')
            if (get and root(node.func) in names) or (attr and root(node.args[0]) in names):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize('path', PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_has_a_default_of_its_own(path):
    assert hidden_defaults(path.read_text()) == []


@pytest.mark.parametrize(
    'text',
    [
        "c.get('seed', 0)",
        "c.train['x'].get('seed')",
        "o = c.optim\no.get('b1', 0.9)",
        "def f(settings: ConfigDict):\n  settings.get('x')",
        "getattr(c.train, 'x', 0)",
    ],
)
def test_a_default_where_a_key_is_used_is_found(text):
    assert hidden_defaults(text)


def test_names_that_a_key_may_have_are_those_of_the_tables():
    assert tuple(models.MODELS) == config.FAMILIES
    assert set(objectives.OBJECTIVES) == set(config.OBJECTIVES)
    learners = config.OBJECTIVES.values()
    assert {family for o in learners for family in o.families} == {*config.FAMILIES}
    assert {o.outputs for o in learners} == {'sums', 'rows', 'logits'}
    assert set(config.VIEWS.values()) == {o.example_type for o in learners}
    assert {*sources.SOURCES, 'prepared'} == set(config.SOURCES)


def test_keys_that_may_change_exist():
    known = config.flatten(config.default())
    for key in config.MAY_CHANGE:
        assert key in known or any(name.startswith(f'{key}.') for name in known), key


# Values on the command line.


@pytest.mark.parametrize(
    ('key', 'text', 'value'),
    [
        ('train.updates', '7', 7),
        ('mesh.data', '-1', -1),
        ('train.updates', '1_000', 1000),
        ('optim.peak_lr', '3', 3.0),
        ('optim.peak_lr', '1e-4', 1e-4),
        ('optim.peak_lr', '-2.5', -2.5),
        ('data.packages', 'jax,flax', ('jax', 'flax')),
        ('data.packages', "('jax', 'flax')", ('jax', 'flax')),
        ('data.packages', 'jax', ('jax',)),
        ('data.packages', '', ()),
        ('data.columns', '1,,0', ('1', '', '0')),
        ('data.columns', '0,1', ('0', '1')),
        ('data.columns', '0', ('0',)),
        ('data.labels', 'None,x', ('None', 'x')),
        ('data.labels', 'True,False', ('True', 'False')),
        ('data.labels', '0.5,1.5', ('0.5', '1.5')),
        ('data.labels', 'negative, neutral', ('negative', 'neutral')),
        ('data.labels', "('a,b', 'c')", ('a,b', 'c')),
        ('data.labels', '(1,)', ('1',)),
        ('data.columns', '0,', ('0', '')),
        ('data.columns', "(0, '', 1)", ('0', '', '1')),
        ('data.packages', '()', ()),
        ('recipe.seeds', '1,2', (1, 2)),
        ('recipe.seeds', '3', (3,)),
        ('recipe.seeds', '[4, 5]', (4, 5)),
        ('recipe.seeds', '()', ()),
        ('student.init_layers', '0,2', (0, 2)),
        ('student.init_new_head', 'True', True),
        ('workdir', '7', '7'),
        ('data.path', "it's = here", "it's = here"),
        ('teacher.path', '', ''),
        ('recipe.student_finetune.lambda_', '0', 0.0),
    ],
)
def test_text_becomes_the_type_of_the_default(key, text, value):
    c = config.default()
    flags.override(c, key, text)
    found = config.flatten(c)[key]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ('key', 'text', 'message'),
    [
        ('train.updates', '1.5', 'train.updates = 1.5: must be a whole number'),
        ('train.updates', 'True', 'train.updates = True: must be a whole number'),
        ('train.updates', '', 'train.updates = : must be a whole number'),
        ('train.updates', '{[]: 1}', 'train.updates = {[]: 1}: must be a whole number'),
        ('optim.peak_lr', 'fast', 'optim.peak_lr = fast: must be a number'),
        ('optim.peak_lr', 'nan', 'optim.peak_lr = nan: must be a number'),
        ('recipe.seeds', 'a,b', 'recipe.seeds = a,b: must hold a whole number or several'),
        ('recipe.seeds', '0,"a"', 'recipe.seeds = 0,"a": must hold a whole number or several'),
        ('recipe.seeds', '1.5', 'recipe.seeds = 1.5: must hold a whole number or several'),
        ('data.packages', "'a',(2,)", "data.packages = 'a',(2,): must hold a name or several"),
        ('student.init_layers', 'a', 'student.init_layers = a: must hold a whole number or several'),
        ('student.init_new_head', '1', 'student.init_new_head = 1: must be True or False'),
        ('data', '3', 'data: is a section, set one of batch_size, buckets, cache, classes, columns, decontaminate, detokenize, documents, files, held_out, labels, length, long_text, mask_rate, mixture, on_error, packages, packing, path, prefetch, replace, source, span_rate, suffixes, target_length, tfds_dir, unlabelled, view, whole_words, workers'),
        ('data.lenght', '3', 'data.lenght: no such key; did you mean length?'),
        ('optm.b1', '3', 'optm: no such key; did you mean optim?'),
        ('seed.x', '3', 'seed.x: no such key'),
        ('batch_size', '3', 'batch_size: no such key; did you mean eval.batch_size?'),
        ('', '3', ': no such key'),
    ],
)  # fmt: skip
def test_text_that_does_not_fit_is_refused(key, text, message):
    c = config.default()
    with pytest.raises(UserError) as error:
        flags.override(c, key, text)
    assert str(error.value).startswith(f'config.{message}')
    assert config.to_json(c) == config.to_json(config.default())


def test_the_last_of_two_values_holds():
    spec = str(ROOT / 'configs/quickstart.py')
    argv = ['--config.seed=1', '--config', spec, '--config.mesh.data', '-1', '--config.seed=2']
    assert flags.parse(argv).seed == 2


def test_the_home_of_a_workdir_is_found(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    spec = str(ROOT / 'configs/quickstart.py')
    c = flags.parse([f'--config={spec}', '--config.workdir=~/runs/a'])
    assert c.workdir == '/home/someone/runs/a'


@pytest.mark.parametrize(
    ('spec', 'name'),
    [
        ('configs/gpt2_stage1.py', 'gpt2_stage1'),
        ('configs/gpt2_stage1.py:tiny', 'gpt2_stage1_tiny'),
        ('/a.b/c.py:x', 'c_x'),
        ('c.py:', 'c'),
    ],
)
def test_a_run_is_named_after_its_file_and_variant(spec, name):
    assert flags.config_name(spec) == name


# JSON, copies, differences.


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_json_keeps_every_value_and_its_type(spec):
    c = flags.load(spec)
    back = config.from_json(config.to_json(c))
    assert config.flatten(back) == config.flatten(c)
    for key, value in config.flatten(c).items():
        assert type(config.flatten(back)[key]) is type(value), key


def test_json_with_an_unknown_key_is_refused_with_the_nearest():
    values = config.default().to_dict()
    values['train']['updatse'] = 1
    with pytest.raises(UserError, match=r'^config\.train\.updatse: no such key; did you mean'):
        config.from_json(json.dumps(values))


@pytest.mark.parametrize('text', ['{"seed": 1', '{"sed": 1}', '{"seed": "a"}', None])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError) as error:
        config.read(tmp_path)
    assert str(error.value).startswith(f'{tmp_path}/config.json: ')
    assert '\n' not in str(error.value)


def changed(value):
    """Another value of the same type."""
    if isinstance(value, tuple):
        return (*value, 7)
    if isinstance(value, bool):
        return not value
    return f'{value}x' if isinstance(value, str) else value + 1


def put(c, key, value):
    *sections, leaf = key.split('.')
    for name in sections:
        c = c[name]
    c[leaf] = value


@pytest.mark.parametrize('key', list(config.flatten(config.default())))
def test_a_changed_key_is_reported_unless_it_may_change(key):
    before, after = config.default(), config.default()
    old = config.flatten(before)[key]
    put(after, key, changed(old))
    free = key in config.MAY_CHANGE or key.split('.')[0] in ('recipe', 'eval', 'generate')
    expected = [] if free else [f'{key}: {old!r} -> {changed(old)!r}']
    assert config.differences(before, after) == expected


def test_what_defines_a_run_may_not_change():
    fixed = {'seed', 'objective', 'student.width', 'loss.lambda_', 'optim.peak_lr', 'data.length',
             'data.batch_size', 'data.packages', 'train.grad_accum_steps', 'train.compute_dtype'}  # fmt: skip
    assert not fixed & set(config.MAY_CHANGE)


def test_a_copy_shares_nothing_and_stays_locked():
    c = config.default()
    other = config.copy(c)
    other.student.width, other.recipe.student_pretrain.updates = 5, 6
    assert config.to_json(c) == config.to_json(config.default())
    with pytest.raises(AttributeError):
        other.train.made_up = 1
    assert isinstance(other.recipe, ConfigDict)
