"""Errors of the commands: one line on stderr and exit code 2."""

import errno
import json
import os
import shutil

import pytest
from helpers.commands import ROOT, WORDS, call, error_line, student_arguments, working_in

from lightpaff_jax import config, main, speed
from lightpaff_jax.config import flags
from lightpaff_jax.data import tokenizers
from lightpaff_jax.recipe import __main__ as recipe
from lightpaff_jax.runtime import storage

INVALID_NETWORK = (
    'must be the workdir of a finished run, or a folder with config.json and model.safetensors'
)


# Errors of the command line and the configuration.

INVALID_ARGUMENTS = {
    'unknown file': (
        ['--config=configs/gpt2_stag1.py'],
        '--config=configs/gpt2_stag1.py: no such file; did you mean configs/gpt2_stage1.py?',
    ),
    'unknown folder': (['--config=confgs/a.py'], '--config=confgs/a.py: no such file'),
    'folder': (['--config=configs'], '--config=configs: no such file'),
    'unknown preset': (
        ['--config=configs/gpt2_stage1.py:tny'],
        "--config=configs/gpt2_stage1.py:tny: unknown preset 'tny', known: tiny, tiny_teacher; "
        'did you mean tiny?',
    ),
    'unknown key': (
        ['--config=configs/gpt2_stage1.py', '--config.data.lenght=3'],
        'config.data.lenght: no such key; did you mean length?',
    ),
    'section': (
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
    'unexpected word': (
        ['--config=configs/gpt2_stage1.py', 'fast'],
        "argument 'fast': must be one of --config, --config.KEY",
    ),
    'unexpected flag': (
        ['--config=configs/gpt2_stage1.py', '--updates=3'],
        "argument '--updates=3': must be one of --config, --config.KEY",
    ),
    'missing value': (
        ['--config.seed', '--config=configs/gpt2_stage1.py'],
        "argument '--config.seed': must be followed by a value",
    ),
    'control characters': (
        ['--config=configs/gpt2_stage1.py', '--config.seed=1\r\n\x1b[2J'],
        'config.seed = 1\\r\\n\\x1b[2J: must be a whole number',
    ),
    'missing file': (['--config.seed=1'], '--config=FILE[:PRESET]: must be given'),
    'two files': (
        ['--config=configs/gpt2_stage1.py', '--config', 'configs/gpt2_stage2.py'],
        '--config: must be given once',
    ),
}


@pytest.mark.parametrize('name', INVALID_ARGUMENTS)
def test_invalid_argument_is_refused_in_one_line(capsys, name):
    argv, line = INVALID_ARGUMENTS[name]
    with working_in(ROOT):
        for run in (main.run, recipe.run, speed.run):
            assert error_line(capsys, *argv, run=run) == line


GET_CONFIG = 'from lightpaff_jax import config\ndef get_config(preset):\n  c = config.default()\n  '
INVALID_FILES = {
    'raises': ('1 / 0', 'ZeroDivisionError: division by zero'),
    'raises in get_config': ('def get_config(preset):\n  open("no/file")', 'FileNotFoundError: '),
    'is not Python': ('def get_config(', 'SyntaxError: '),
    'raises an error of two lines': ('raise ValueError("a\\nb")', 'ValueError: a b'),
    'has no get_config': ('PRESETS = ()', 'must define get_config(preset)'),
    'takes no preset': ('def get_config():\n  pass', 'TypeError: get_config() takes 0 positional'),
    'sets an unknown key': (
        f'{GET_CONFIG}c.train.updatse = 3\n  return c',
        'no such key updatse; did you mean updates?',
    ),
    'updates an unknown key': (
        f"{GET_CONFIG}c.student.update({{'widht': 3}})\n  return c",
        'no such key widht; did you mean width?',
    ),
    'reads an unknown key': (
        f'{GET_CONFIG}c.seed = c.sede\n  return c',
        'no such key sede; did you mean seed?',
    ),
    'sets another type': (
        f"{GET_CONFIG}c.seed = 'a'\n  return c",
        "TypeError: Could not override field 's",
    ),
    'returns nothing': (
        f'{GET_CONFIG}c.seed = 1',
        'get_config must return the ConfigDict of config.def',
    ),
    'returns a dict': (
        f'{GET_CONFIG}return c.to_dict()',
        'get_config must return the ConfigDict of conf',
    ),
    'returns a section': (
        f'{GET_CONFIG}return c.train',
        'get_config must return the ConfigDict of conf',
    ),
}


@pytest.mark.parametrize('name', INVALID_FILES)
def test_error_of_a_config_file_names_the_file(tmp_path, capsys, name):
    text, message = INVALID_FILES[name]
    path = tmp_path / 'recipe.py'
    path.write_text(text)
    assert error_line(capsys, f'--config={path}').startswith(f'--config={path}: {message}')


def test_config_file_that_sets_none_is_refused_with_its_key(tmp_path, capsys):
    path = tmp_path / 'recipe.py'
    path.write_text(f'{GET_CONFIG}c.student.width = None\n  return c')
    line = error_line(capsys, f'--config={path}')
    assert line == 'config.student.width = None: must have a value'


def test_config_file_tuples_get_the_element_type_of_their_key(tmp_path, capsys):
    path = tmp_path / 'recipe.py'
    path.write_text(f"{GET_CONFIG}c.data.columns, c.data.labels = (0, '', 1), (0, 1)\n  return c")
    c = flags.load(str(path))
    assert (c.data.columns, c.data.labels) == (('0', '', '1'), ('0', '1'))
    path.write_text(
        f'import numpy\n{GET_CONFIG}c.recipe.seeds = tuple(numpy.arange(2))\n'
        '  c.recipe.student_finetune.sweep_peak_lr = tuple(numpy.geomspace(1e-4, 1e-3, 2))\n'
        '  return c'
    )
    c = flags.load(str(path))
    peak_lrs = c.recipe.student_finetune.sweep_peak_lr
    assert peak_lrs == pytest.approx((1e-4, 1e-3))
    assert {*map(type, peak_lrs)} == {float}
    assert (c.recipe.seeds, {*map(type, c.recipe.seeds)}) == ((0, 1), {int})
    path.write_text(f'{GET_CONFIG}c.recipe.seeds = (0.5,)\n  return c')
    line = error_line(capsys, f'--config={path}')
    assert line == 'config.recipe.seeds = (0.5,): must hold a whole number or several'


def test_update_counts_beyond_int32_are_refused(capsys):
    for key in ('train.updates', 'optim.warmup'):
        line = error_line(capsys, '--config=configs/quickstart.py', f'--config.{key}=3000000000')
        assert line == f'config.{key} = 3000000000: must be below 2**31'


def test_config_file_without_py_suffix_is_refused(tmp_path, capsys):
    path = tmp_path / 'recipe.txt'
    path.write_text('seed = 1')
    assert error_line(capsys, f'--config={path}') == f'--config={path}: must be a Python file'


def test_help_prints_usage_and_exits_with_0(capsys):
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


def test_recipe_without_a_teacher_is_refused(here, capsys):
    line = error_line(capsys, '--config=small.py:teacher', *recipe_defaults(), run=recipe.run)
    assert line == (
        'config.teacher.layers = 0: must be the shape of the teacher to train; or set '
        'config.teacher.path to a trained teacher'
    )


def test_recipe_batch_size_error_names_the_key_of_its_phase(here, capsys):
    changes = [
        '--config.teacher.layers=1',
        '--config.teacher.vocab_size=320',
        '--config.recipe.student_finetune.batch_size=16',
        '--config.recipe.student_pretrain.batch_size=100',
        f'--config.recipe.tasks={ROOT}/configs/quickstart.py:text',
    ]
    argv = ['--config=small.py:teacher', *recipe_defaults(), *changes]
    line = error_line(capsys, *argv, run=recipe.run)
    assert line == (
        'config.recipe.student_pretrain.batch_size = 100: '
        'must be a multiple of grad_accum_steps x devices = 8'
    )


# Errors of files and folders.


@pytest.mark.parametrize(
    'argv',
    [
        ['--config={}'],
        ['--config', '{}'],
        ['--config.seed=1', '--config={}'],
    ],
)
def test_missing_files_of_a_recipe_are_listed_with_its_preset(tmp_path, capsys, argv):
    path = str(ROOT / 'configs/gpt2_stage1.py')
    with working_in(tmp_path):
        line = error_line(capsys, *(word.format(path) for word in argv))
    assert line == (
        'config.teacher.path = teachers/gpt2_medium: no such path, put the workdir of a finished '
        'run, or a folder with config.json and model.safetensors there; '
        'config.data.path = data/openwebtext: no such path, put a folder with files like '
        'train.txt, validation.txt and test.txt, or wiki.train.tokens there; '
        f'to try it without them: --config={path}:tiny'
    )
    assert not any(tmp_path.iterdir())


def test_missing_teacher_is_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.teacher.path=runs/none'))
    assert line == (
        'config.teacher.path = runs/none: no such path, put the workdir of a finished run, or a '
        'folder with config.json and model.safetensors there'
    )


def test_teacher_folder_without_a_network_is_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.teacher.path=text'))
    assert line == f'config.teacher.path = text: {INVALID_NETWORK}'


def test_init_folder_without_a_network_is_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.student.init=text'))
    assert line == f'config.student.init = text: {INVALID_NETWORK}'


def test_init_of_another_shape_is_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.student.init=runs/small_teacher'))
    assert line == 'config.student.width = 16: runs/small_teacher has 32'


def test_teacher_of_another_shape_than_configured_is_refused(here, capsys):
    shape = {'layers': 1, 'width': 48, 'heads': 2, 'ffn': 32, 'positions': 32, 'vocab_size': 320}
    line = error_line(
        capsys, *student_arguments(*(f'--config.teacher.{k}={v}' for k, v in shape.items()))
    )
    assert line == f'config.teacher.width = 48: {here}/runs/small_teacher has 32'


def test_teacher_with_another_vocabulary_size_is_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.student.vocab_size=330'))
    assert line == (
        'config.student.vocab_size = 330: must equal that of the teacher in '
        f'{here}/runs/small_teacher = 320'
    )


def test_length_beyond_the_positions_of_the_teacher_is_refused(here, capsys):
    line = error_line(
        capsys, *student_arguments('--config.data.length=48', '--config.student.positions=64')
    )
    assert line == (
        'config.data.length = 48: must be at most the positions of the teacher in '
        f'{here}/runs/small_teacher = 32'
    )


def test_teacher_with_another_tokenizer_is_refused(here, capsys, tmp_path):
    tokenizer = tmp_path / 'other.model'
    tokenizers.train([' '.join(WORDS[::-1])] * 20, 320, tokenizer)
    line = error_line(capsys, *student_arguments(f'--config.tokenizer.path={tokenizer}'))
    result = json.loads((here / 'runs/small_teacher/result.json').read_text())
    teacher_hash = result['tokenizer_hash']
    start = (
        f'config.teacher.path = {here}/runs/small_teacher: its tokenizer has hash {teacher_hash}, '
        'the data here '
    )
    assert line.startswith(start)
    rule = f' ({tokenizer}), which is no reduction of it: both must be WordPiece tokenizers'
    data_hash = line.removeprefix(start).removesuffix(rule)
    assert len(data_hash) == len(teacher_hash) == 16
    assert int(data_hash, 16) != int(teacher_hash, 16)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_empty_split_of_text_is_refused_with_its_file(here, capsys, tmp_path, split):
    shutil.copytree('text', tmp_path / 'text')
    (tmp_path / f'text/{split}.txt').write_text('\n \n')
    tokenizer = next((here / 'cache/tokenizers').glob('*-320-*.model'))
    argv = [
        '--config=small.py:teacher',
        '--config.workdir=runs/other',
        f'--config.data.path={tmp_path}/text',
        f'--config.data.cache={tmp_path}/cache',
    ]
    message = f'{tmp_path}/text/{split}.txt: empty corpus, must hold a document'
    assert error_line(capsys, *argv, f'--config.tokenizer.path={tokenizer}') == message
    if split == 'train':  # a tokenizer is trained on this split
        assert error_line(capsys, *argv) == message


def test_text_folder_without_a_split_is_refused(here, capsys, tmp_path):
    line = error_line(capsys, *student_arguments(f'--config.data.path={tmp_path}'))
    assert line == (
        f"config.data.path = {tmp_path}: has no split 'train': looked for files that have train in "
        'their names and end in .txt, .tokens, .raw, .text, .jsonl, .parquet, or .gz of these'
    )


def test_workdir_of_another_configuration_is_refused_with_keys(here, capsys):
    content = (here / 'runs/small/config.json').read_text()
    changes = ['--config.loss.lambda_=0.25', '--config.seed=5', '--config.train.keep=4']
    line = error_line(capsys, *student_arguments(*changes, workdir='runs/small'))
    assert line == (
        'config.workdir = runs/small: holds a run with another configuration (loss.lambda_: 0.5 -> '
        '0.25; seed: 0 -> 5); choose another workdir or remove it'
    )
    assert (here / 'runs/small/config.json').read_text() == content


def test_refused_run_leaves_its_workdir_free(here, capsys):
    for key, value in (('student.vocab_size', 330), ('teacher.path', 'text')):
        argv = student_arguments(f'--config.{key}={value}', workdir='runs/free')
        assert f'config.{key}' in error_line(capsys, *argv)


def test_fewer_updates_than_a_checkpoint_has_are_refused(here, capsys):
    line = error_line(capsys, *student_arguments('--config.train.updates=3', workdir='runs/small'))
    assert line == (
        'config.train.updates = 3: must be at least 6, the updates of the checkpoint in runs/small'
    )


def test_full_disk_at_the_end_of_a_run_is_one_line(here, capsys, tmp_path, monkeypatch):
    run = shutil.copytree('runs/small', tmp_path / 'run')
    arguments, commit = student_arguments(workdir=run), storage.commit
    file = run / 'result.json'
    scores = json.loads(file.read_text())['scores']
    file.unlink()

    def sync(part, path):
        if path == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, 'commit', sync)
        line = error_line(capsys, *arguments)
    assert line == f'{file}: cannot be written: No space left on device'
    assert not file.exists()
    assert not list(run.rglob('*.part'))
    assert call(capsys, *arguments)[0] == 0
    assert json.loads(file.read_text())['scores'] == scores


def test_speed_requires_a_teacher_and_a_completed_run(here, capsys):
    line = error_line(capsys, '--config=small.py:teacher', run=speed.run)
    assert line == "config.teacher.path = '': must be a workdir or a Hugging Face folder"
    line = error_line(capsys, *student_arguments(workdir='runs/none'), run=speed.run)
    assert line == f'config.workdir = runs/none: {INVALID_NETWORK}'
    line = error_line(
        capsys,
        *student_arguments('--config.teacher.path=text', workdir='runs/small'),
        run=speed.run,
    )
    assert line == f'config.teacher.path = text: {INVALID_NETWORK}'
