"""Configuration keys: each is read, and survives JSON, the command line and copies."""

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
WRITERS = (('config', '__init__.py'), ('config', 'recipes.py'))  # these modules set keys
NETWORK, PHASE = set(config.network()), set(config.phase())


def last_name(node):
    """Returns 'a' for `a`, `x.a` and `x['a']`."""
    if isinstance(node, ast.Subscript):
        return node.slice.value if isinstance(node.slice, ast.Constant) else last_name(node.value)
    return getattr(node, 'attr', None) or getattr(node, 'id', None)


def aliases(tree):
    """Maps each assigned name to the last name of its value: `o = c.optim` gives o -> optim."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(
                    value, ast.Attribute | ast.Subscript
                ):
                    names[target.id] = last_name(value)
    return names


def reads(tree):
    """Returns (owner, key) of every read `owner.key` and `owner['key']`, with aliases resolved."""
    owners, pairs = aliases(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant):
                continue
            owner = last_name(node.value)
            pairs |= {(owner, last_name(node)), (owners.get(owner), last_name(node))}
    return pairs


def unread(c, files):
    """Returns the keys of `c` that no file reads.

    Modules of models/ name a network `c`. All modules may name a phase `p` or `phase`, and the
    section student `s`.
    """
    model_reads, strings = set(), set()
    other_reads = reads(ast.parse(inspect.getsource(config.use_phase)))
    for path, text in files.items():
        tree = ast.parse(text)
        (model_reads if 'models' in path.parts else other_reads).update(reads(tree))
        strings |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}

    def is_read(key):
        *sections, leaf = ['c', *key.split('.')]
        if sections[-1] in ('student', 'teacher') and leaf in NETWORK:
            return (sections[-1], leaf) in other_reads or ('c', leaf) in model_reads
        if 'recipe' in sections and leaf in PHASE:
            return {('p', leaf), ('phase', leaf)} & other_reads and sections[-1] in strings
        owners = {'student': {'student', 's'}}.get(sections[-1], {sections[-1]})
        return any((owner, leaf) in other_reads for owner in owners)

    return [key for key in config.flatten(c) if not is_read(key)]


@pytest.fixture(scope='module')
def package_texts():
    return {path: path.read_text() for path in PACKAGE if path.parts[-2:] not in WRITERS}


def test_every_key_is_read(package_texts):
    assert unread(config.default(), package_texts) == []


def test_unread_keys_are_detected(package_texts):
    c = config.default().unlock()
    keys = {
        'made_up',
        'train.made_up',
        'optim.path',
        'student.made_up',
        'teacher.init',
        'recipe.student_finetune.made_up',
    }
    for key in keys:
        assign(c, key, 1)
    c.recipe.made_up = config.phase()
    phase_keys = {f'recipe.made_up.{key}' for key in PHASE}
    assert set(unread(c, package_texts)) == keys | phase_keys


def hidden_defaults(text):
    """Returns the lines that may replace a missing key by a default: `.get` or `getattr`."""
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
def test_module_has_no_hidden_defaults(path):
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
def test_hidden_default_is_detected(text):
    assert hidden_defaults(text)


def test_choices_of_keys_equal_the_registries():
    assert tuple(models.MODELS) == config.FAMILIES
    assert set(objectives.OBJECTIVES) == set(config.OBJECTIVES)
    records = config.OBJECTIVES.values()
    assert {family for o in records for family in o.families} == {*config.FAMILIES}
    assert {o.outputs for o in records} == {'sums', 'rows', 'logits', 'matching'}
    assert set(config.VIEWS.values()) == {o.example_type for o in records}
    assert {*sources.SOURCES, 'prepared'} == set(config.SOURCES)


def test_keys_of_may_change_exist():
    keys = config.flatten(config.default())
    for name in config.MAY_CHANGE:
        assert any(f'{key}.'.startswith(f'{name}.') for key in keys), name


# Values of the command line.


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
def test_text_is_parsed_as_the_type_of_the_default(key, text, value):
    c = config.default()
    flags.override(c, key, text)
    parsed = config.flatten(c)[key]
    assert (parsed, type(parsed)) == (value, type(value))


SECTION_KEYS = ', '.join(sorted(config.default().data))
INVALID_TEXTS = [
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
    ('data', '3', f'data: is a section, set one of {SECTION_KEYS}'),
    ('data.lenght', '3', 'data.lenght: no such key; did you mean length?'),
    ('optm.b1', '3', 'optm: no such key; did you mean optim?'),
    ('seed.x', '3', 'seed.x: no such key'),
    ('batch_size', '3', 'batch_size: no such key; did you mean eval.batch_size?'),
    ('', '3', ': no such key'),
]


@pytest.mark.parametrize(('key', 'text', 'message'), INVALID_TEXTS)
def test_invalid_text_is_refused_and_changes_nothing(key, text, message):
    c = config.default()
    with pytest.raises(UserError) as error:
        flags.override(c, key, text)
    assert str(error.value).startswith(f'config.{message}')
    assert config.to_json(c) == config.to_json(config.default())


@pytest.mark.parametrize(
    ('key', 'text', 'message'),
    [
        ('optim.peak_lr', '9' * 400, 'must be a number'),
        ('recipe.teacher_pretrain.sweep_peak_lr', '1,' + '9' * 400, 'must hold a number or sev'),
        ('seed', '0x' + 'f' * 5000, 'config.seed: must be below 2**63'),
        ('recipe.seeds', '1,-0x' + 'f' * 5000, 'config.recipe.seeds: must be below 2**63'),
        ('eval.batch_size', '9' * 5000, 'must be a whole number'),
        ('data.cache', 'a\udcff', "config.data.cache = 'a\\udcff': must be UTF-8, without NUL"),
        ('workdir', 'a\0b', 'must be UTF-8, without NUL'),
    ],
)
def test_value_that_cannot_be_stored_is_refused(key, text, message):
    with pytest.raises(UserError) as raised:
        flags.parse(['--config=configs/gpt2_stage1.py:tiny', f'--config.{key}={text}'])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'seed': {}}, 'c: seed = {}: must be a whole number'),
        ({'seed': True}, 'c: seed = true: must be a whole number'),
        ({'data': 3}, 'c: data = 3: must be an object'),
        ({'data': {'buckets': [1.5]}}, 'c: data.buckets[0] = 1.5: must be a whole number'),
        ({'optim': {'eps': '1'}}, 'c: optim.eps = "1": must be a number'),
        ({'__class__': 1}, 'c: config.__class__: no such key'),
        ([], 'c: must be an object'),
    ],
)
def test_json_of_another_type_is_refused(values, message):
    with pytest.raises(UserError) as raised:
        config.from_dict(values, 'c')
    assert str(raised.value) == message


def test_last_of_two_values_of_a_key_is_used():
    spec = str(ROOT / 'configs/quickstart.py')
    argv = ['--config.seed=1', '--config', spec, '--config.mesh.data', '-1', '--config.seed=2']
    assert flags.parse(argv).seed == 2


def test_tilde_of_a_workdir_is_expanded(monkeypatch):
    monkeypatch.setenv('HOME', '/home/user')
    spec = str(ROOT / 'configs/quickstart.py')
    c = flags.parse([f'--config={spec}', '--config.workdir=~/runs/a'])
    assert c.workdir == '/home/user/runs/a'


@pytest.mark.parametrize(
    ('spec', 'name'),
    [
        ('configs/gpt2_stage1.py', 'gpt2_stage1'),
        ('configs/gpt2_stage1.py:tiny', 'gpt2_stage1_tiny'),
        ('/a.b/c.py:x', 'c_x'),
        ('c.py:', 'c'),
    ],
)
def test_run_name_is_that_of_file_and_preset(spec, name):
    assert flags.config_name(spec) == name


# JSON, copies, differences.


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_json_round_trip_keeps_values_and_types(spec):
    c = flags.load(spec)
    values = config.flatten(c)
    parsed = config.flatten(config.from_dict(json.loads(config.to_json(c)), 'config.json'))
    assert parsed == values
    assert {key: type(parsed[key]) for key in values} == {key: type(values[key]) for key in values}


def test_unknown_key_of_json_is_refused_with_a_suggestion():
    values = config.default().to_dict()
    values['train']['updatse'] = 1
    with pytest.raises(
        UserError, match=r'^config\.json: config\.train\.updatse: no such key; did you mean'
    ):
        config.from_dict(json.loads(json.dumps(values)), 'config.json')


@pytest.mark.parametrize('text', ['{"seed": 1', '{"sed": 1}', '{"seed": "a"}', None])
def test_unreadable_config_json_is_named_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError) as error:
        config.read(tmp_path)
    assert str(error.value).startswith(f'{tmp_path}/config.json: ')
    assert '\n' not in str(error.value)


def changed(value):
    """Returns another value of the same type."""
    if isinstance(value, tuple):
        return (*value, 7)
    if isinstance(value, bool):
        return not value
    return f'{value}x' if isinstance(value, str) else value + 1


def assign(c, key, value):
    *sections, leaf = key.split('.')
    for name in sections:
        c = c[name]
    c[leaf] = value


@pytest.mark.parametrize('key', list(config.flatten(config.default())))
def test_changed_key_is_a_difference_unless_it_may_change(key):
    before, after = config.default(), config.default()
    old = config.flatten(before)[key]
    assign(after, key, changed(old))
    may_change = key in config.MAY_CHANGE or key.split('.')[0] in ('recipe', 'eval', 'generate')
    expected = [] if may_change else [f'{key}: {old!r} -> {changed(old)!r}']
    assert config.differences(before, after) == expected


def test_keys_that_define_a_run_may_not_change():
    keys = (
        'seed objective student.width loss.lambda_ optim.peak_lr data.length data.batch_size '
        'data.packages train.grad_accum_steps train.compute_dtype'
    )
    assert not set(keys.split()) & set(config.MAY_CHANGE)


def test_copy_shares_no_values_and_stays_locked():
    c = config.default()
    other = config.copy(c)
    other.student.width, other.recipe.student_pretrain.updates = 5, 6
    assert config.to_json(c) == config.to_json(config.default())
    with pytest.raises(AttributeError):
        other.train.made_up = 1
    assert isinstance(other.recipe, ConfigDict)


@pytest.mark.parametrize(('objective', 'count'), [('mlm', 1), ('classify', 0)])
def test_cache_of_the_teacher_may_change_unless_it_repeats_masks(objective, count):
    before, after = config.default(), config.default()
    before.objective = after.objective = objective
    after.teacher.cache = 'folder'
    assert len(config.differences(before, after)) == count
    before.teacher.cache = 'another'
    assert config.differences(before, after) == []
