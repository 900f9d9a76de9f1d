"""The commands: a mistake is one line and exit code 2; a run that was stopped ends as if it was not."""

import contextlib
import gc
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lightpaff_jax import checkpoint, command, config, digests, main, metrics, recipe, speed
from lightpaff_jax.data import tokenizers

ROOT = pathlib.Path(config.__file__).parents[1]
LAST = 6  # updates of the runs made here

SMALL = """
'''Networks of a few thousand parameters, on a folder of text beside this file.'''
import pathlib
from lightpaff_jax import config

VARIANTS = ('teacher', 'alone')
HERE = pathlib.Path(__file__).parent

def get_config(variant=''):
    c = config.default()
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 32, 'positions': 32})
    c.student.vocab_size = 320
    c.data.update({'source': 'text', 'path': str(HERE / 'text'), 'length': 16, 'batch_size': 16})
    c.data.cache = str(HERE / 'cache')
    c.eval.batch_size = 32
    c.train.compilation_cache = str(HERE / 'xla')
    c.train.update({'updates': 6, 'save_every': 2, 'log_every': 3, 'keep': 9})
    c.optim.warmup = 2
    if variant == 'teacher':
        c.student.width = 32
        return c
    c.student.dropout = 0.1
    c.teacher.path = str(HERE / 'runs' / 'small_teacher')
    if not variant:
        c.after = (f'{__file__}:teacher',)
    return c
"""
NO_NETWORK = (
    'must be the workdir of a finished run, or a folder with config.json and model.safetensors'
)
WORDS = [
    'a', 'loss', 'returns', 'sums', 'and', 'count', 'the', 'teacher', 'guides', 'student', 'every',
    'token', 'is', 'predicted', 'once', 'gradient', 'norm', 'of', 'update', 'learning', 'rate',
    'attention', 'head', 'layer', 'width', 'vocabulary', 'sequence', 'batch', 'device', 'mesh',
]  # fmt: skip


def write_text(folder, seed):
    """train.txt, validation.txt, test.txt: sentences of random words."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for split, documents in (('train', 150), ('validation', 20), ('test', 20)):
        lines = [' '.join(draw.choices(WORDS, k=30)) for _ in range(documents)]
        (folder / f'{split}.txt').write_text('\n\n'.join(lines) + '\n')


@contextlib.contextmanager
def working_in(folder):
    """The folder is the working folder, and jax keeps there what it compiles."""
    before = pathlib.Path.cwd()
    changes = {
        'jax_compilation_cache_dir': str(folder / 'xla'),
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_disable_most_optimizations': True,
    }
    settings = {name: jax.config.values[name] for name in changes}

    def put(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    os.chdir(folder)
    put(changes)
    try:
        yield
    finally:
        os.chdir(before)
        put(settings)


def call(capsys, *argv, run=main.run):
    """Exit code, stdout, stderr of a command."""
    capsys.readouterr()
    code = command.main(run, main.USAGE, argv)
    return code, *capsys.readouterr()


def mistake(capsys, *argv, run=main.run):
    """The line that a command ends with, without `error: `."""
    code, _, err = call(capsys, *argv, run=run)
    *progress, line = err.splitlines()
    assert code == 2
    assert progress == []
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with text, small.py, and its finished runs: runs/small_teacher and runs/small."""
    folder = tmp_path_factory.mktemp('commands')
    write_text(folder / 'text', 0)
    (folder / 'small.py').write_text(SMALL)
    with working_in(folder):
        assert command.main(main.run, main.USAGE, ['--config=small.py']) == 0
    return folder


@pytest.fixture
def here(place):
    """The working folder of the test is that of the finished runs."""
    with working_in(place):
        yield place


def params_of(workdir):
    return jax.tree.map(np.asarray, checkpoint.load_params(workdir / 'checkpoints'))


def assert_same_run(a, b):
    """Parameters and metrics.jsonl are equal bit for bit, and the scores."""
    jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
    one, two = (json.loads((run / 'result.json').read_text()) for run in (a, b))
    for name in ('scores', 'data_hash', 'teacher_hash', 'tokenizer_hash', 'updates', 'flops'):
        assert one[name] == two[name]


# Mistakes that are found before anything starts.

MISTAKES = {
    'unknown file': (
        ['--config=configs/gpt2_stag1.py'],
        '--config=configs/gpt2_stag1.py: no such file; did you mean configs/gpt2_stage1.py?',
    ),
    'unknown folder': (['--config=confgs/a.py'], '--config=confgs/a.py: no such file'),
    'a folder': (['--config=configs'], '--config=configs: no such file'),
    'unknown variant': (
        ['--config=configs/gpt2_stage1.py:tny'],
        "--config=configs/gpt2_stage1.py:tny: unknown variant 'tny', known: tiny, tiny_teacher; "
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
        "argument 'fast': must be --config=FILE[:VARIANT] or --config.KEY=VALUE",
    ),
    'a stray flag': (
        ['--config=configs/gpt2_stage1.py', '--updates=3'],
        "argument '--updates=3': must be --config=FILE[:VARIANT] or --config.KEY=VALUE",
    ),
    'no value': (
        ['--config.seed', '--config=configs/gpt2_stage1.py'],
        "argument '--config.seed': must be followed by a value",
    ),
    'no file': (['--config.seed=1'], '--config=FILE: must be given once, was given 0 times'),
    'two files': (
        ['--config=configs/gpt2_stage1.py', '--config', 'configs/gpt2_stage2.py'],
        '--config=FILE: must be given once, was given 2 times',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_right(capsys, name):
    argv, line = MISTAKES[name]
    with working_in(ROOT):
        for run in (main.run, recipe.run, speed.run):
            assert mistake(capsys, *argv, run=run) == line


DEF = 'from lightpaff_jax import config\ndef get_config(variant):\n  c = config.default()\n  '
BAD_FILES = {
    'raises': ('1 / 0', 'ZeroDivisionError: division by zero'),
    'raises in get_config': ('def get_config(variant):\n  open("no/file")', 'FileNotFoundError: '),
    'is no Python': ('def get_config(', 'SyntaxError: '),
    'has lines in its error': ('raise ValueError("a\\nb")', 'ValueError: a b'),
    'has no get_config': ('VARIANTS = ()', 'must define get_config(variant)'),
    'takes no variant': ('def get_config():\n  pass', 'TypeError: get_config() takes 0 positional'),
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


def test_a_file_that_is_no_module_is_refused(tmp_path, capsys):
    path = tmp_path / 'mine.txt'
    path.write_text('seed = 1')
    assert mistake(capsys, f'--config={path}') == f'--config={path}: must be a Python file'


def test_help_is_no_mistake(capsys):
    code, out, err = call(capsys, '--help')
    assert (code, err) == (0, '')
    assert out.strip() == main.USAGE.strip()


def test_a_recipe_without_a_teacher_is_refused(here, capsys):
    line = mistake(capsys, '--config=small.py:teacher', run=recipe.run)
    assert line == (
        'config.teacher.layers = 0: a recipe trains its teacher, give its shape, or a finished one '
        'in config.teacher.path'
    )


def test_a_batch_of_a_recipe_is_named_by_the_key_that_sets_it(here, capsys):
    unset = [
        f'--config.{key}={config.flatten(config.default())[key] or ""}'
        for key in recipe.SET_BY_RECIPE
        if key != 'student.new_head'
    ]
    line = mistake(
        capsys, '--config=small.py:teacher', *unset, '--config.teacher.layers=1',
        '--config.teacher.vocab_size=320', '--config.recipe.student_finetune.batch_size=16',
        '--config.recipe.student_pretrain.batch_size=100',
        f'--config.recipe.tasks={ROOT}/configs/quickstart.py:text', run=recipe.run,
    )  # fmt: skip
    assert line == (
        'config.recipe.student_pretrain.batch_size = 100: '
        'must be a multiple of micro_steps x devices = 8'
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


def alone(*changes, workdir='runs/other'):
    return ['--config=small.py:alone', f'--config.workdir={workdir}', *changes]


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
        'config.train.updates = 3: must be at least 6, the updates that runs/small has done'
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


# Runs.


def test_a_command_does_first_what_its_run_needs(place):
    teacher, student = place / 'runs/small_teacher', place / 'runs/small'
    found = json.loads((student / 'result.json').read_text())
    params = checkpoint.load_params(teacher / 'checkpoints')
    assert found['teacher_hash'] == digests.identity(params)
    assert (teacher / 'result.json').stat().st_mtime < (student / 'config.json').stat().st_mtime


def test_a_finished_run_is_not_done_again(here, capsys):
    files = [*(here / 'runs').rglob('*.jsonl'), *(here / 'runs').rglob('result.json')]
    before = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 10
    code, out, _ = call(capsys, '--config=small.py')
    assert code == 0
    assert 'test: ce ' in out
    assert out.endswith('runs/small/result.json\n')
    assert [path.stat().st_mtime_ns for path in files] == before


class Stop(Exception):
    pass


def test_a_run_that_stopped_between_checkpoints_ends_as_if_it_had_not(
    here, tmp_path, capsys, monkeypatch
):
    log = metrics.Writer.log

    def stop(writer, step, *args, **kwargs):
        log(writer, step, *args, **kwargs)
        if step == 3:  # the last checkpoint is that of update 2, within a window of 3
            raise Stop

    argv = alone(workdir=tmp_path / 'stopped')
    monkeypatch.setattr(metrics.Writer, 'log', stop)
    with pytest.raises(Stop):
        call(capsys, *argv)
    monkeypatch.undo()
    assert checkpoint.Checkpoints(tmp_path / 'stopped/checkpoints', 9).steps() == [2]
    assert '"step": 3' in (tmp_path / 'stopped/metrics.jsonl').read_text()
    assert call(capsys, *argv)[0] == 0
    assert_same_run(here / 'runs/small', tmp_path / 'stopped')


def damage(step):
    """Changes a byte in every file of the parameters' arrays."""
    files = [path for path in (step / 'params').rglob('*') if path.is_file() and '/d/' in str(path)]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(here, tmp_path, capsys):
    workdir = tmp_path / 'damaged'
    shutil.copytree(here / 'runs/small', workdir)
    (workdir / 'result.json').unlink()
    damage(workdir / f'checkpoints/{LAST}')
    code, _, err = call(capsys, *alone(workdir=workdir))
    assert code == 0
    assert f'step {LAST} is set aside as {LAST}.corrupt: ' in err
    assert f'step {LAST - 2} is used instead' in err
    assert (workdir / f'checkpoints/{LAST}.corrupt').is_dir()
    assert_same_run(here / 'runs/small', workdir)


# Processes of their own.


def start(*argv, module='main', cwd=ROOT):
    environment = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, '-m', f'lightpaff_jax.{module}', *argv],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('module', 'argv', 'line'),
    [
        (
            'main',
            ['--config=configs/gpt2_stag1.py'],
            '--config=configs/gpt2_stag1.py: no such file',
        ),
        ('recipe', ['--config=configs/quickstart.py:ful'], '--config=configs/quickstart.py:ful: u'),
        ('speed', ['--config=configs/quickstart.py', '--config.sed=1'], 'config.sed: no such key'),
        ('report', ['runs/no_such_run'], 'runs/no_such_run: no such folder'),
    ],
)
def test_a_process_with_a_mistake_writes_one_line_and_exits_with_2(module, argv, line):
    process = start(*argv, module=module)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ''
    assert err.startswith(f'error: {line}')
    assert err.count('\n') == 1
    assert 'Traceback' not in err


@pytest.mark.e2e
def test_a_killed_process_started_again_ends_as_if_it_had_not_been(place):
    updates, save_every = 60, 10
    settings = [
        f'--config.train.updates={updates}', f'--config.train.save_every={save_every}',
        '--config.train.eval_every=25', '--config.eval.batches=2',
    ]  # fmt: skip

    def run(name):
        return start(*alone(*settings, workdir=f'runs/{name}'), cwd=place)

    undisturbed = run('undisturbed')
    out, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err
    assert 'test: ce ' in out

    workdir = place / 'runs/killed'

    def at():
        """The newest checkpoint and the last line."""
        saved = [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit()]
        lines = workdir / 'metrics.jsonl'
        steps = re.findall(r'"step": (\d+), .*\n', lines.read_text() if lines.exists() else '')
        return max(saved, default=0), int(steps[-1]) if steps else 0

    killed, deadline = run('killed'), time.monotonic() + 300
    while not 0 < at()[0] < at()[1]:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert all(0 < step < updates for step in at()), 'in the middle'

    again = run('killed')
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert_same_run(place / 'runs/undisturbed', workdir)


class _Rest:
    """Garbage that takes longer to go than an interrupt waits; what is raised here is dropped."""

    def __del__(self):
        time.sleep(0.1)


def _interrupted(when):
    def _xla_gc_callback(*_):  # by the name of jax's, from which Python raises nothing
        signal.raise_signal(signal.SIGINT)

    with command.heard():
        if when == 'working':
            signal.raise_signal(signal.SIGINT)
        gc.callbacks.append(_xla_gc_callback)
        rest = _Rest()
        rest.itself = rest
        del rest
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(_xla_gc_callback)
        if when == 'collecting at the end':
            return
        for _ in range(1000):  # one sleep would end first
            time.sleep(0.01)


@pytest.mark.parametrize('when', ['working', 'collecting', 'collecting at the end'])
def test_an_interrupt_is_heard_once_wherever_it_comes(when):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(when)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for _ in range(10):  # as long as a second one would take
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)
