"""The commands: a mistake is one line and exit code 2."""

import json
import shutil

import pytest
from helpers.commands import ROOT, WORDS, alone, call, mistake, working_in

from lightpaff_jax import config, main, speed
from lightpaff_jax.config import flags
from lightpaff_jax.data import tokenizers
from lightpaff_jax.recipe import __main__ as recipe

NO_NETWORK = (
    'must be the workdir of a finished run, or a folder with config.json and model.safetensors'
)


# Mistakes that are found before anything starts.

MISTAKES = {
    'unknown file': (
        ['--config=configs/gpt2_stag1.py'],
        '--config=configs/gpt2_stag1.py: no such file; did you mean configs/gpt2_stage1.py?',
    ),
    'unknown folder': (['--config=confgs/a.py'], '--config=confgs/a.py: no such file'),
    'a folder': (['--config=configs'], '--config=configs: no such file'),
    'unknown preset': (
        ['--config=configs/gpt2_stage1.py:tny'],
        "--config=configs/gpt2_stage1.py:tny: unknown preset 'tny', known: tiny, tiny_teacher; "
        'did you mean tiny?',
    ),
    'unknown key': (
        ['--config=configs/gpt2_stage1.py', '--config.data.lenght=3'],
        'config.data.lenght: no such key; did you mean length?',
    ),
    'a section': (
        ['--config=configs/gpt2_stage1.py', '--config.mesh=3'],
        'config.mesh: is a section, set one of data, fsdp, student, teacher, tensor',
    ),
    'wrong type': (
        ['--config=configs/gpt2_stage1.py', '--config.train.updates=many'],
        'config.train.updates = many: must be a whole number',
    ),
    'out of range': (
        ['--config=configs/gpt2_stage1.py', '--config.loss.lambda_=1.5'],
        'config.loss.lambda_ = 1.5: must be in [0, 1]',
    ),
    'longer than positions': (
        ['--config=configs/gpt2_stage1.py', '--config.data.length=1025'],
        'config.data.length = 1025: must be at least 1 and at most student.positions = 1024',
    ),
    'a stray word': (
        ['--config=configs/gpt2_stage1.py', 'fast'],
        "argument 'fast': must be one of --config, --config.KEY",
    ),
    'a stray flag': (
        ['--config=configs/gpt2_stage1.py', '--updates=3'],
        "argument '--updates=3': must be one of --config, --config.KEY",
    ),
    'no value': (
        ['--config.seed', '--config=configs/gpt2_stage1.py'],
        "argument '--config.seed': must be followed by a value",
    ),
    'no file': (['--config.seed=1'], '--config=FILE[:PRESET]: must be given'),
    'two files': (
        ['--config=configs/gpt2_stage1.py', '--config', 'configs/gpt2_stage2.py'],
        '--config: must be given once',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_right(capsys, name):
    argv, line = MISTAKES[name]
    with working_in(ROOT):
        for run in (main.run, recipe.run, speed.run):
            assert mistake(capsys, *argv, run=run) == line


DEF = 'from lightpaff_jax import config\ndef get_config(preset):\n  c = config.default()\n  '
BAD_FILES = {
    'raises': ('1 / 0', 'ZeroDivisionError: division by zero'),
    'raises in get_config': ('def get_config(preset):\n  open("no/file")', 'FileNotFoundError: '),
    'is no Python': ('def get_config(', 'SyntaxError: '),
    'has lines in its error': ('raise ValueError("a\\nb")', 'ValueError: a b'),
    'has no get_config': ('PRESETS = ()', 'must define get_config(preset)'),
    'takes no preset': ('def get_config():\n  pass', 'TypeError: get_config() takes 0 positional'),
    'sets an unknown key': (
        f'{DEF}c.train.updatse = 3\n  return c',
        'no such key updatse; did you mean updates?',
    ),
    'updates an unknown key': (
        f"{DEF}c.student.update({{'widht': 3}})\n  return c",
        'no such key widht; did you mean width?',
    ),
    'reads an unknown key': (
        f'{DEF}c.seed = c.sede\n  return c',
        'no such key sede; did you mean seed?',
    ),
    'sets another type': (
        f"{DEF}c.seed = 'a'\n  return c",
        "TypeError: Could not override field 's",
    ),
    'returns nothing': (f'{DEF}c.seed = 1', 'get_config must return the ConfigDict of config.def'),
    'returns a dict': (f'{DEF}return c.to_dict()', 'get_config must return the ConfigDict of conf'),
    'returns a section': (f'{DEF}return c.train', 'get_config must return the ConfigDict of conf'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_a_file_that_is_wrong_is_one_line_that_names_it(tmp_path, capsys, name):
    text, said = BAD_FILES[name]
    path = tmp_path / 'mine.py'
    path.write_text(text)
    assert mistake(capsys, f'--config={path}').startswith(f'--config={path}: {said}')


def test_a_file_that_sets_a_key_to_none_is_told_which(tmp_path, capsys):
    path = tmp_path / 'mine.py'
    path.write_text(f'{DEF}c.student.width = None\n  return c')
    line = mistake(capsys, f'--config={path}')
    assert line == 'config.student.width = None: must have a value'


def test_whole_numbers_in_a_list_of_names_are_names_and_nothing_else_is(tmp_path, capsys):
    path = tmp_path / 'mine.py'
    path.write_text(f"{DEF}c.data.columns, c.data.labels = (0, '', 1), (0, 1)\n  return c")
    c = flags.load(str(path))
    assert (c.data.columns, c.data.labels) == (('0', '', '1'), ('0', '1'))
    rates = 'tuple(numpy.geomspace(1e-4, 1e-3, 2))'
    text = f'{DEF}c.recipe.student_finetune.sweep_peak_lr, c.recipe.seeds = {rates}, tuple(numpy.arange(2))'
    path.write_text(f'import numpy\n{text}\n  return c')
    c = flags.load(str(path))
    assert c.recipe.student_finetune.sweep_peak_lr == pytest.approx((1e-4, 1e-3))
    assert {*map(type, c.recipe.student_finetune.sweep_peak_lr)} == {float}
    assert (c.recipe.seeds, {*map(type, c.recipe.seeds)}) == ((0, 1), {int})
    path.write_text(f'{DEF}c.recipe.seeds = (0.5,)\n  return c')
    line = mistake(capsys, f'--config={path}')
    assert line == 'config.recipe.seeds = (0.5,): must hold a whole number or several'


def test_more_updates_than_a_step_can_count_are_refused(capsys):
    for key in ('train.updates', 'optim.warmup'):
        words = ('--config=configs/quickstart.py', f'--config.{key}=3000000000')
        line = mistake(capsys, *words)
        assert line == f'config.{key} = 3000000000: must be below 2**31'


def test_a_file_that_is_no_module_is_refused(tmp_path, capsys):
    path = tmp_path / 'mine.txt'
    path.write_text('seed = 1')
    assert mistake(capsys, f'--config={path}') == f'--config={path}: must be a Python file'


def test_help_is_no_mistake(capsys):
    code, out, err = call(capsys, '--help')
    assert (code, err) == (0, '')
    assert out.strip() == main.USAGE.strip()


def recipe_defaults():
    """Returns arguments that reset the keys which a recipe sets for each of its runs."""
    default = config.flatten(config.default())
    return [
        f'--config.{key}={default[key] or ""}'
        for key in recipe.SET_BY_RECIPE
        if key != 'student.init_new_head'
    ]


def test_a_recipe_without_a_teacher_is_refused(here, capsys):
    line = mistake(capsys, '--config=small.py:teacher', *recipe_defaults(), run=recipe.run)
    assert line == (
        'config.teacher.layers = 0: must be the shape of the teacher to train; or set '
        'config.teacher.path to a trained teacher'
    )


def test_a_batch_of_a_recipe_is_named_by_the_key_that_sets_it(here, capsys):
    line = mistake(
        capsys, '--config=small.py:teacher', *recipe_defaults(), '--config.teacher.layers=1',
        '--config.teacher.vocab_size=320', '--config.recipe.student_finetune.batch_size=16',
        '--config.recipe.student_pretrain.batch_size=100',
        f'--config.recipe.tasks={ROOT}/configs/quickstart.py:text', run=recipe.run,
    )  # fmt: skip
    assert line == (
        'config.recipe.student_pretrain.batch_size = 100: '
        'must be a multiple of grad_accum_steps x devices = 8'
    )


# Mistakes in what is on disk.


@pytest.mark.parametrize(
    'argv',
    [
        ['--config={}'],
        ['--config', '{}'],
        ['--config.seed=1', '--config={}'],
    ],
)
def test_the_papers_recipe_says_what_to_put_where_and_what_to_run_without_it(
    tmp_path, capsys, argv
):
    path = str(ROOT / 'configs/gpt2_stage1.py')
    with working_in(tmp_path):
        line = mistake(capsys, *(word.format(path) for word in argv))
    assert line == (
        'config.teacher.path = teachers/gpt2_medium: no such path, put the workdir of a finished '
        'run, or a folder with config.json and model.safetensors there; config.data.path = data/openwebtext: no such path, put a folder with '
        'files like train.txt, validation.txt and test.txt, or wiki.train.tokens there; '
        f'to try it without them: --config={path}:tiny'
    )
    assert not any(tmp_path.iterdir())


def test_a_teacher_that_is_not_there_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.teacher.path=runs/none'))
    assert line == (
        'config.teacher.path = runs/none: no such path, put the workdir of a finished run, or a '
        'folder with config.json and model.safetensors there'
    )


def test_a_teacher_that_is_no_run_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.teacher.path=text'))
    assert line == f'config.teacher.path = text: {NO_NETWORK}'


def test_a_start_that_is_no_run_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.student.init=text'))
    assert line == f'config.student.init = text: {NO_NETWORK}'


def test_a_start_with_another_shape_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.student.init=runs/small_teacher'))
    assert line == 'config.student.width = 16: runs/small_teacher has 32'


def test_a_teacher_with_another_shape_than_said_is_named(here, capsys):
    shape = {'layers': 1, 'width': 48, 'heads': 2, 'ffn': 32, 'positions': 32, 'vocab_size': 320}
    line = mistake(capsys, *alone(*(f'--config.teacher.{k}={v}' for k, v in shape.items())))
    assert line == f'config.teacher.width = 48: {here}/runs/small_teacher has 32'


def test_a_teacher_with_another_vocabulary_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.student.vocab_size=330'))
    assert line == (
        'config.student.vocab_size = 330: must equal that of the teacher in '
        f'{here}/runs/small_teacher = 320'
    )


def test_a_teacher_with_fewer_positions_is_named(here, capsys):
    line = mistake(capsys, *alone('--config.data.length=48', '--config.student.positions=64'))
    assert line == (
        'config.data.length = 48: must be at most the positions of the teacher in '
        f'{here}/runs/small_teacher = 32'
    )


def test_a_teacher_with_another_tokenizer_is_named_with_both_hashes(here, capsys, tmp_path):
    other = tmp_path / 'other.model'
    tokenizers.train([' '.join(WORDS[::-1])] * 20, 320, other)
    line = mistake(capsys, *alone(f'--config.tokenizer.path={other}'))
    theirs = json.loads((here / 'runs/small_teacher/result.json').read_text())['tokenizer_hash']
    start = (
        f'config.teacher.path = {here}/runs/small_teacher: its tokenizer has hash {theirs}, '
        'the data here '
    )
    assert line.startswith(start)
    ours = line.removeprefix(start).removesuffix(f' ({other})')
    assert len(ours) == len(theirs) == 16
    assert int(ours, 16) != int(theirs, 16)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_an_empty_corpus_is_named(here, capsys, tmp_path, split):
    shutil.copytree('text', tmp_path / 'text')
    (tmp_path / f'text/{split}.txt').write_text('\n \n')
    given = next((here / 'cache/tokenizers').glob('*-320-*.model'))
    argv = [
        '--config=small.py:teacher', '--config.workdir=runs/other',
        f'--config.data.path={tmp_path}/text', f'--config.data.cache={tmp_path}/cache',
    ]  # fmt: skip
    said = f'{tmp_path}/text/{split}.txt: empty corpus, must hold a document'
    assert mistake(capsys, *argv, f'--config.tokenizer.path={given}') == said
    if split == 'train':  # what a tokenizer is trained on
        assert mistake(capsys, *argv) == said


def test_a_folder_without_a_split_is_named(here, capsys, tmp_path):
    line = mistake(capsys, *alone(f'--config.data.path={tmp_path}'))
    assert line == (
        f"config.data.path = {tmp_path}: has no split 'train': looked for files that have train in "
        'their names and end in .txt, .tokens, .raw, .text, .jsonl, .parquet, or .gz of these'
    )


def test_a_workdir_of_another_configuration_is_named_with_the_keys(here, capsys):
    before = (here / 'runs/small/config.json').read_text()
    changes = ['--config.loss.lambda_=0.25', '--config.seed=5', '--config.train.keep=4']
    line = mistake(capsys, *alone(*changes, workdir='runs/small'))
    assert line == (
        'config.workdir = runs/small: holds a run with another configuration (loss.lambda_: 0.5 -> '
        '0.25; seed: 0 -> 5); choose another workdir or remove it'
    )
    assert (here / 'runs/small/config.json').read_text() == before


def test_a_run_that_did_not_begin_leaves_its_workdir_free(here, capsys):
    wrong = alone('--config.student.vocab_size=330', workdir='runs/free')
    assert 'config.student.vocab_size' in mistake(capsys, *wrong)
    assert 'config.teacher.path' in mistake(
        capsys, *alone('--config.teacher.path=text', workdir='runs/free')
    )


def test_fewer_updates_than_were_done_are_refused(here, capsys):
    line = mistake(capsys, *alone('--config.train.updates=3', workdir='runs/small'))
    assert line == (
        'config.train.updates = 3: must be at least 6, the updates of the checkpoint in runs/small'
    )


def test_speed_needs_a_teacher_and_a_finished_run(here, capsys):
    line = mistake(capsys, '--config=small.py:teacher', run=speed.run)
    assert line == "config.teacher.path = '': must be a workdir or a Hugging Face folder"
    line = mistake(capsys, *alone(workdir='runs/none'), run=speed.run)
    assert line == f'config.workdir = runs/none: {NO_NETWORK}'
    line = mistake(
        capsys, *alone('--config.teacher.path=text', workdir='runs/small'), run=speed.run
    )
    assert line == f'config.teacher.path = text: {NO_NETWORK}'
