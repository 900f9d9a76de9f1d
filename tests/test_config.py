"""Every key is used, every recipe is right, and a bad value is named with its rule."""

import ast
import inspect
import json
import math
import pathlib
import sys

import pytest
from ml_collections import ConfigDict

from lightpaff_jax import chain, command, config, evaluate, models, validation
from lightpaff_jax.config import UserError
from lightpaff_jax.data import objectives, sources

ROOT = pathlib.Path(config.__file__).parents[1]
PACKAGE = sorted((ROOT / 'lightpaff_jax').rglob('*.py'))
FILES = sorted((ROOT / 'configs').glob('*.py'))
RECIPES = [
    f'{path}:{variant}'.removesuffix(':')
    for path in FILES
    for variant in ('', *command._module(str(path)).VARIANTS)
]
NETWORK, PHASE = set(config.network()), set(config.phase())


def name_of(spec):
    return command.config_name(spec)


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
    """Keys of `c` that no file reads. In models/ a network is `c`; everywhere a phase is `p`."""
    inside, words = set(), set()
    outside = reads(ast.parse(inspect.getsource(config.take)))
    for path, text in files.items():
        tree = ast.parse(text)
        (inside if 'models' in path.parts else outside).update(reads(tree))
        words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}

    def is_read(key):
        *sections, leaf = ['c', *key.split('.')]
        if sections[-1] in ('student', 'teacher') and leaf in NETWORK:
            return (sections[-1], leaf) in outside or ('c', leaf) in inside
        if 'recipe' in sections and leaf in PHASE:
            return ('p', leaf) in outside and sections[-1] in words
        return (sections[-1], leaf) in outside

    return [key for key in config.flatten(c) if not is_read(key)]


@pytest.fixture(scope='module')
def sources_of_package():
    return {path: path.read_text() for path in PACKAGE if path.name != 'config.py'}


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
    known = {name for names in config.OBJECTIVES.values() for name in names}
    assert known == set(objectives.OBJECTIVES) == set(evaluate.EVALS)
    assert {*config.OBJECTIVES} == {*config.FAMILIES}
    assert set(config.LEARNS_FROM) == known
    assert set(config.FORMS.values()) == set(config.LEARNS_FROM.values())
    assert {*sources.SOURCES, 'prepared'} == set(config.SOURCES) == set(config.READS)


def test_keys_that_may_change_exist():
    known = config.flatten(config.default())
    for key in config.MAY_CHANGE:
        assert key in known or any(name.startswith(f'{key}.') for name in known), key


# Recipe files.


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_every_recipe_and_every_run_of_its_plan_is_valid(spec):
    c = command.parse([f'--config={spec}'])
    for devices in (1, 8):
        validation.validate(c, devices)
    assert c.workdir == f'runs/{name_of(spec)}'
    for before in c.after:
        validation.validate(command.load(before))
    if c.recipe.tasks:  # a graph of runs
        if not c.teacher.layers:  # read from its path before the plan is made
            c.teacher.update(config.network(family=c.student.family).to_dict())
            c.teacher.decoder_layers = c.student.decoder_layers
            c.teacher.update({'positions': 1024, 'vocab_size': c.student.vocab_size})
        runs, table = chain.plan(c)
        for task in table['tasks'].values():
            assert len(task['arms']) >= 4 * len(c.recipe.seeds)
        for run in runs.values():
            validation.validate(run, 1)


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_a_run_starts_from_the_workdirs_of_the_runs_before_it(spec):
    c = command.load(spec)
    before = [command.parse([f'--config={one}']).workdir for one in c.after]
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
    c = command.load(str(ROOT / f'configs/{stage}.py'))
    assert models.build(c.student).parameters == parameters


# validate


def test_the_default_is_valid_on_devices_that_divide_its_batch():
    validation.validate(config.default())
    for devices in (1, 2, 4, 8):
        validation.validate(config.default(), devices)
    with pytest.raises(UserError, match=r'data\.batch_size = 8: must be a multiple'):
        validation.validate(config.default(), 3)


NAN, INF = math.nan, math.inf
BAD = [
    ('student.family', 'gpt3', "'gpt3': must be one of bert, gpt2, mass; did you mean gpt2?"),
    ('student.layers', 0, '0: must be at least 1'),
    ('student.width', -8, '-8: must be at least 1'),
    ('student.heads', 0, '0: must be at least 1'),
    ('student.heads', 3, '3: must divide student.width = 128'),
    ('student.ffn', 0, '0: must be at least 1'),
    ('student.positions', 64, 'data.length = 128: must be at least 1 and at most student.positions = 64'),
    ('student.vocab_size', 0, '0: must be at least 1'),
    ('student.dropout', 1.0, '1.0: must be in [0, 1)'),
    ('student.dropout', NAN, 'nan: must be in [0, 1)'),
    ('teacher.layers', -1, '-1: must be at least 1'),
    ('teacher.dtype', 'float16', "'float16': must be one of auto, float32, bfloat16; did you mean bfloat16?"),
    ('student.family', 'bert', "objective = 'clm': must be one of mlm, classify for family 'bert'; did you mean mlm?"),
    ('student.family', 'mass', '''student.decoder_layers = 0: must be at least 1 for family 'mass' '''.strip()),
    ('student.decoder_layers', 1, '1: is of MASS alone'),
    ('student.head', 'none', "'none': is of BERT alone; others have 'lm'"),
    ('student.head', 'lms', "'lms': must be one of lm, classify, pretraining, none; did you mean lm?"),
    ('student.classes', 2, "2: is read for head 'classify'"),
    ('student.activation', 'gelu_new', "'gelu_new': must be one of gelu, relu; did you mean gelu?"),
    ('student.tied', 'both', "'both': must be one of all, decoder, none"),
    ('student.types', 0, '0: must be at least 1'),
    ('student.init', 'teacher_layers', 'teacher_layers: needs a teacher.path'),
    ('student.init_layers', (1,), "(1,): is read for student.init 'teacher_layers'"),
    ('objective', 'cml', "'cml': must be one of clm for family 'gpt2'; did you mean clm?"),
    ('data.form', 'topics', "'topics': must be one of text, topic, pairs, summary; did you mean topic?"),
    ('data.form', 'topic', "'topic': must be one of text for objective 'clm'"),
    ('data.target_length', 8, '8: is of MASS alone'),
    ('data.source', 'SST2', "'SST2': must be one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, mixture, prepared; did you mean sst2?"),
    ('data.path', 'x', 'x: is not read from \'pydocs\''),
    ('data.files', ('train=a',), "('train=a',): is not read from 'pydocs'"),
    ('data.held_out', 0.1, "0.1: is not read from 'pydocs'"),
    ('data.held_out', 0.5, '0.5: must be at least 0 and below 0.5'),
    ('data.documents', 'lines', "'lines': must be one of blank, line, file; did you mean line?"),
    ('data.detokenize', 'wiki', "'wiki': must be one of none, wikitext, ptb; did you mean wikitext?"),
    ('data.on_error', 'ignore', "'ignore': must be one of stop, skip"),
    ('data.classes', -1, '-1: must be at least 0'),
    ('data.packing', 'best', "'best': must be one of contiguous, best_fit; did you mean best_fit?"),
    ('data.buckets', (64, 128), "64,128: has no use for objective 'clm'"),
    ('data.workers', 0, '0: must be at least 1'),
    ('eval.stride', -1, '-1: must be at least 0 and at most data.length = 128'),
    ('eval.stride', 129, '129: must be at least 0 and at most data.length = 128'),
    ('data.long_text', 'cut', "'cut': must be one of truncate, error"),
    ('data.masked', 1.0, '1.0: must be above 0 and below 1'),
    ('data.fragment', 0.0, '0.0: must be above 0 and below 1'),
    ('seed', -1, '-1: must be at least 0 and below 2**31'),
    ('seed', 2**31, '2147483648: must be at least 0 and below 2**31'),
    ('loss.lambda_', 1.5, '1.5: must be in [0, 1]'),
    ('loss.lambda_', -0.1, '-0.1: must be in [0, 1]'),
    ('loss.lambda_', NAN, 'nan: must be in [0, 1]'),
    ('loss.temperature', 0.0, '0.0: must be above 0 and finite'),
    ('loss.temperature', -1.0, '-1.0: must be above 0 and finite'),
    ('loss.temperature', INF, 'inf: must be above 0 and finite'),
    ('loss.chunk', -1, '-1: must be at least 0'),
    ('optim.peak_lr', 0.0, '0.0: must be above 0 and finite'),
    ('optim.peak_lr', NAN, 'nan: must be above 0 and finite'),
    ('optim.schedule', 'cosin', "'cosin': must be one of linear, cosine, constant; did you mean cosine?"),
    ('optim.final_lr', 1.1, '1.1: must be in [0, 1]'),
    ('optim.warmup', -1, '-1: must be at least 0'),
    ('optim.b1', 1.0, '1.0: must be in [0, 1)'),
    ('optim.b2', -0.1, '-0.1: must be in [0, 1)'),
    ('optim.eps', 0.0, '0.0: must be above 0 and finite'),
    ('optim.weight_decay', -0.1, '-0.1: must be at least 0 and finite'),
    ('optim.weight_decay', INF, 'inf: must be at least 0 and finite'),
    ('optim.clip_norm', -1.0, '-1.0: must be at least 0 and finite'),
    ('data.source', 'pydoc', "'pydoc': must be one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, mixture, prepared; did you mean pydocs?"),
    ('data.length', 0, '0: must be at least 1 and at most student.positions = 128'),
    ('data.length', 129, '129: must be at least 1 and at most student.positions = 128'),
    ('data.batch_size', 0, '0: must be at least 1'),
    ('data.batch_size', 100, '100: must be a multiple of micro_steps x devices = 8'),
    ('data.prefetch', 0, '0: must be at least 1'),
    ('train.updates', 0, '0: must be at least 1'),
    ('train.micro_steps', 0, '0: must be at least 1'),
    ('train.micro_steps', 2, 'data.batch_size = 8: must be a multiple of micro_steps x devices = 16'),
    ('train.compute_dtype', 'bf16', "'bf16': must be one of float32, bfloat16; did you mean bfloat16?"),
    ('train.remat', 'blocks', "'blocks': must be one of none, dots, block; did you mean block?"),
    ('train.log_every', 0, '0: must be at least 1'),
    ('train.eval_every', -1, '-1: must be at least 0'),
    ('train.save_every', 0, '0: must be at least 1'),
    ('train.keep', 0, '0: must be at least 1'),
    ('eval.batch_size', 0, '0: must be at least 1'),
    ('eval.batch_size', 12, '12: must be a multiple of devices = 8'),
    ('eval.batches', -1, '-1: must be at least 0'),
    ('mesh.data', 0, '0: must be -1 or at least 1'),
    ('mesh.fsdp', 0, '0: must be at least 1'),
    ('mesh.tensor', -1, '-1: must be at least 1'),
    ('mesh.fsdp', 3, 'mesh = (data -1, fsdp 3, tensor 1): fsdp x tensor must divide the number of devices = 8'),
    ('mesh.data', 16, 'mesh = (data 16, fsdp 1, tensor 1): the product must be at most the number of devices = 8'),
    ('recipe.seeds', (), '(): must name at least one seed, none twice'),
    ('recipe.seeds', (1, 2, 1), '1,2,1: must name at least one seed, none twice'),
    ('recipe.seeds', (0, -1), '0,-1: must be at least 0 and below 2**31'),
    ('recipe.teacher_pretrain.updates', 0, '0: must be at least 1'),
    ('recipe.teacher_finetune.peak_lr', NAN, 'nan: must be above 0 and finite'),
    ('recipe.student_pretrain.lambda_', 2.0, '2.0: must be in [0, 1]'),
    ('recipe.student_finetune.temperature', 0.0, '0.0: must be above 0 and finite'),
    ('recipe.student_finetune.warmup', -1, '-1: must be at least 0'),
    ('recipe.student_finetune.batch_size', 0, '0: must be at least 1'),
    ('recipe.tasks', ('a.py', 'a.py'), 'a.py,a.py: must name none twice'),
    ('recipe.student_finetune.peak_lrs', (1e-3, 0.0), '0.0: must be above 0 and finite'),
    ('recipe.student_finetune.peak_lrs', (1e-3, 1e-3), '0.001,0.001: has one twice'),
    ('recipe.student_finetune.lambdas', (0.5, 1.5), '1.5: must be in [0, 1]'),
    ('eval.metric', 'bleu', "'bleu': must be one of perplexity for objective 'clm'"),
    ('generate.beams', 0, '0: must be at least 1'),
    ('generate.max_length', 4000, '4000: must be at most student.positions = 128'),
    ('generate.length_penalty', NAN, 'nan: must be finite'),
    ('data.unlabelled', ('text:x',), "text:x: is of objective 'classify' alone"),
]  # fmt: skip


@pytest.mark.parametrize(('key', 'value', 'message'), BAD, ids=lambda x: str(x)[:40])
def test_a_bad_value_is_named_with_its_key_and_its_rule(key, value, message):
    c = config.default()
    put(c, key, value)
    if ' = ' not in message.partition(':')[0]:
        message = f'{key} = {message}'
    with pytest.raises(UserError) as error:
        validation.validate(c, 8)
    assert str(error.value) == f'config.{message}'


def put(c, key, value):
    *sections, leaf = key.split('.')
    for name in sections:
        c = c[name]
    c[leaf] = value


def test_the_rule_of_the_batch_counts_micro_steps_and_devices():
    c = config.default()
    c.data.batch_size, c.train.micro_steps = 100, 4
    validation.validate(c)
    message = 'config.data.batch_size = 100: must be a multiple of micro_steps x devices = 32'
    with pytest.raises(UserError) as error:
        validation.validate(c, 8)
    assert str(error.value) == message


def test_devices_of_one_matrix_product_share_their_examples():
    c = config.default()
    c.mesh.tensor, c.data.batch_size = 4, 2
    c.eval.batch_size, c.student.heads = 6, 4
    validation.validate(c, 8)
    c.mesh.tensor = 1
    with pytest.raises(UserError, match=r'data\.batch_size = 2: must be a multiple'):
        validation.validate(c, 8)


@pytest.mark.parametrize('name', ['student', 'teacher'])
def test_heads_that_devices_share_must_divide(name):
    c = config.default()
    c.mesh.tensor, c.student.heads = 4, 4
    c.teacher.update({'layers': 2, 'heads': 4})
    validation.validate(c, 8)
    c[name].heads = 2
    with pytest.raises(UserError, match=rf'mesh\.tensor = 4: must divide {name}\.heads = 2'):
        validation.validate(c, 8)
    c.mesh[name] = ('fsdp',)
    validation.validate(c, 8)


def test_teacher_and_student_must_share_a_vocabulary():
    c = config.default()
    c.teacher.layers, c.teacher.vocab_size = 2, 4096
    with pytest.raises(UserError) as error:
        validation.validate(c)
    assert str(error.value) == (
        'config.teacher.vocab_size = 4096: must equal student.vocab_size = 2048'
    )


@pytest.mark.parametrize('source', ['text', 'prepared'])
def test_a_source_of_files_needs_their_folder(source):
    c = config.default()
    c.data.source = source
    with pytest.raises(UserError) as error:
        validation.check_paths(c)
    assert str(error.value) == f"config.data.path = '': must be a folder for source '{source}'"


SOURCE_RULES = [
    ({'source': 'table'}, "data.columns = (): must name the columns for source 'table'"),
    ({'source': 'table', 'columns': tuple('abcd')}, 'data.columns = a,b,c,d: must be at most 3'),
    ({'source': 'text', 'columns': tuple('ab')}, 'data.columns = a,b: must be at most 1'),
    ({'source': 'mixture'}, "data.mixture = (): must name the parts for source 'mixture'"),
    ({'source': 'text', 'sides': ('en', 'de')}, "data.sides = ('en', 'de'): is not read from 'text'"),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'message'), SOURCE_RULES)
def test_a_source_says_what_it_needs_and_what_it_does_not_read(changes, message):
    c = config.default()
    c.data.path = 'x' if changes['source'] != 'mixture' else ''
    c.data.update(changes)
    with pytest.raises(UserError) as error:
        validation.validate(c)
    assert str(error.value) == f'config.{message}'


def classifier():
    c = config.default()
    c.objective, c.student.family = 'classify', 'bert'
    c.student.head, c.student.classes = 'classify', 2
    c.data.form = 'pairs'
    return c


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('buckets', (64, 32, 128), '64,32,128: must rise from at least 4'),
        ('buckets', (2, 128), '2,128: must rise from at least 4'),
        ('buckets', (32, 64), '32,64: must end with data.length = 128'),
        (
            'packing',
            'best_fit',
            "'best_fit': packs documents, of which objective 'classify' has none",
        ),
    ],
)
def test_examples_have_rules_of_their_own(key, value, message):
    c = classifier()
    c.data[key] = value
    with pytest.raises(UserError) as error:
        validation.validate(c)
    assert str(error.value) == f'config.data.{key} = {message}'


@pytest.mark.parametrize(
    ('source', 'kind'), [('text', 'documents'), ('parallel', 'targets'), ('sst2', 'classes')]
)
def test_an_objective_learns_from_its_kind_of_examples_and_from_texts_of_all(source, kind):
    for name, wanted in config.LEARNS_FROM.items():
        c = classifier() if name == 'classify' else config.default()
        family = next(f for f, names in config.OBJECTIVES.items() if name in names)
        c.student.family, c.objective, c.data.form = family, name, 'text'
        if family == 'mass':
            c.student.decoder_layers = 2
            c.data.target_length = 64 if name == 'seq2seq' else 0
        c.data.source, c.data.path = source, 'x'
        c.data.sides = ('en', 'de') if source == 'parallel' else ()
        if wanted in ('documents', kind):
            validation.validate(c)
            continue
        with pytest.raises(UserError) as error:
            validation.validate(c)
        rule = f'has {kind}, which objective {name!r} does not learn from'
        assert str(error.value) == f'config.data.source = {source!r}: {rule}'


def test_windows_are_of_one_stream():
    c = config.default()
    c.eval.stride = 64
    validation.validate(c)
    c.data.packing = 'best_fit'
    with pytest.raises(
        UserError, match=r"^config\.eval\.stride = 64: is of objective 'clm' and the"
    ):
        validation.validate(c)


def test_every_path_that_is_not_there_is_named_in_one_line(tmp_path):
    c = config.default()
    c.data.source, c.data.path, c.student.init = 'text', str(tmp_path), 'runs/a'
    c.teacher.path, c.tokenizer.path, c.tokenizer.text = 'runs/b', 'c.model', 'd'
    with pytest.raises(config.MissingPaths) as error:
        validation.check_paths(c)
    named = [part.partition(':')[0] for part in str(error.value).split('; ')]
    assert sorted(named) == [
        'config.student.init = runs/a',
        'config.teacher.path = runs/b',
        'config.tokenizer.path = c.model',
        'config.tokenizer.text = d',
    ]


def test_a_teacher_whose_shape_is_read_from_its_path_has_no_rule():
    c = config.default()
    c.teacher.vocab_size, c.teacher.heads = 4096, 7
    validation.validate(c)
    c.teacher.layers = 2
    with pytest.raises(UserError, match=r'config\.teacher\.heads = 7'):
        validation.validate(c)


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
        ('data.packages', '()', ()),
        ('recipe.seeds', '1,2', (1, 2)),
        ('recipe.seeds', '3', (3,)),
        ('recipe.seeds', '[4, 5]', (4, 5)),
        ('recipe.seeds', '()', ()),
        ('student.init_layers', '0,2', (0, 2)),
        ('student.new_head', 'True', True),
        ('workdir', '7', '7'),
        ('data.path', "it's = here", "it's = here"),
        ('teacher.path', '', ''),
        ('recipe.student_finetune.lambda_', '0', 0.0),
    ],
)
def test_text_becomes_the_type_of_the_default(key, text, value):
    c = config.default()
    command.override(c, key, text)
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
        ('recipe.seeds', '1.5', 'recipe.seeds = 1.5: must be a list like a,b'),
        ('data.packages', "'a',2", "data.packages = 'a',2: must hold a name or several"),
        ('student.init_layers', 'a', 'student.init_layers = a: must hold a whole number or several'),
        ('student.new_head', '1', 'student.new_head = 1: must be True or False'),
        ('data', '3', 'data: is a section, set one of batch_size, buckets, cache, classes, columns, detokenize, documents, exclude, files, form, fragment, held_out, labels, length, long_text, masked, mixture, on_error, packages, packing, path, prefetch, replace, sides, source, target_length, tfds_dir, unlabelled, whole_words, workers'),
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
        command.override(c, key, text)
    assert str(error.value).startswith(f'config.{message}')
    assert config.to_json(c) == config.to_json(config.default())


def test_the_last_of_two_values_holds():
    spec = str(ROOT / 'configs/quickstart.py')
    argv = ['--config.seed=1', '--config', spec, '--config.mesh.data', '-1', '--config.seed=2']
    assert command.parse(argv).seed == 2


def test_the_home_of_a_workdir_is_found(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    spec = str(ROOT / 'configs/quickstart.py')
    c = command.parse([f'--config={spec}', '--config.workdir=~/runs/a'])
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
    assert command.config_name(spec) == name


# JSON, copies, differences.


@pytest.mark.parametrize('spec', RECIPES, ids=name_of)
def test_json_keeps_every_value_and_its_type(spec):
    c = command.load(spec)
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
             'data.batch_size', 'data.packages', 'train.micro_steps', 'train.compute_dtype'}  # fmt: skip
    assert not fixed & set(config.MAY_CHANGE)


def test_a_copy_shares_nothing_and_stays_locked():
    c = config.default()
    other = config.copy(c)
    other.student.width, other.recipe.student_pretrain.updates = 5, 6
    assert config.to_json(c) == config.to_json(config.default())
    with pytest.raises(AttributeError):
        other.train.made_up = 1
    assert isinstance(other.recipe, ConfigDict)
