"""What tests of the commands share: a folder with small finished runs, and a command's outcome."""

import contextlib
import os
import pathlib
import random

import jax
from jax.experimental.compilation_cache import compilation_cache

from lightpaff_jax import config, main
from lightpaff_jax.config import flags

ROOT = pathlib.Path(config.__file__).parents[2]
LAST = 6  # updates of the runs made here

SMALL = """
'''Networks of a few thousand parameters, on a folder of text beside this file.'''
import pathlib
from lightpaff_jax import config

PRESETS = ('teacher', 'alone')
HERE = pathlib.Path(__file__).parent

def get_config(preset=''):
    c = config.default()
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 32, 'positions': 32})
    c.student.vocab_size = 320
    c.data.update({'source': 'text', 'path': str(HERE / 'text'), 'length': 16, 'batch_size': 16})
    c.data.cache = str(HERE / 'cache')
    c.eval.batch_size = 32
    c.train.compilation_cache = str(HERE / 'xla')
    c.train.update({'updates': 6, 'save_every': 2, 'log_every': 3, 'keep': 9})
    c.optim.warmup = 2
    if preset == 'teacher':
        c.student.width = 32
        return c
    c.student.dropout = 0.1
    c.teacher.path = str(HERE / 'runs' / 'small_teacher')
    if not preset:
        c.requires = (f'{__file__}:teacher',)
    return c
"""
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
    code = flags.main(run, main.USAGE, argv)
    return code, *capsys.readouterr()


def mistake(capsys, *argv, run=main.run):
    """The line that a command ends with, without `error: `."""
    code, _, err = call(capsys, *argv, run=run)
    *progress, line = err.splitlines()
    assert code == 2
    assert progress == []
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


def alone(*changes, workdir='runs/other'):
    """Arguments of a run without its teacher's."""
    return ['--config=small.py:alone', f'--config.workdir={workdir}', *changes]


def make(folder):
    """Puts there the text, small.py, and its finished runs: runs/small_teacher and runs/small."""
    write_text(folder / 'text', 0)
    (folder / 'small.py').write_text(SMALL)
    with working_in(folder):
        assert flags.main(main.run, main.USAGE, ['--config=small.py']) == 0
