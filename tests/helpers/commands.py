"""Small completed runs, and helpers that run a command and return its output."""

import contextlib
import os
import pathlib
import random

import jax
from jax.experimental.compilation_cache import compilation_cache

from lightpaff_jax import config, main
from lightpaff_jax.config import flags

ROOT = pathlib.Path(config.__file__).parents[2]
UPDATES = 6  # of every run that `make` trains

SMALL = """
'''Networks of a few thousand parameters, trained on the folder text next to this file.'''
import pathlib
from lightpaff_jax import config

PRESETS = ('teacher', 'student')  # student: does not train its teacher first
FOLDER = pathlib.Path(__file__).parent

def get_config(preset=''):
    c = config.default()
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 32, 'positions': 32})
    c.student.vocab_size = 320
    c.data.update({'source': 'text', 'path': str(FOLDER / 'text'), 'length': 16, 'batch_size': 16})
    c.data.cache = str(FOLDER / 'cache')
    c.eval.batch_size = 32
    c.train.compilation_cache = str(FOLDER / 'xla')
    c.train.update({'updates': 6, 'save_every': 2, 'log_every': 3, 'keep': 9})
    c.optim.warmup = 2
    if preset == 'teacher':
        c.student.width = 32
        return c
    c.student.dropout = 0.1
    c.teacher.path = str(FOLDER / 'runs' / 'small_teacher')
    if not preset:
        c.requires = (f'{__file__}:teacher',)
    return c
"""
VOCABULARY = (
    'a loss returns sums and count the teacher guides student every token is predicted once '
    'gradient norm of update learning rate attention head layer width vocabulary sequence batch '
    'device mesh'
)
WORDS = VOCABULARY.split()


def write_text(folder, seed):
    """Writes train.txt, validation.txt and test.txt with documents of random words."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for split, documents in (('train', 150), ('validation', 20), ('test', 20)):
        lines = [' '.join(draw.choices(WORDS, k=30)) for _ in range(documents)]
        (folder / f'{split}.txt').write_text('\n\n'.join(lines) + '\n')


@contextlib.contextmanager
def working_in(folder):
    """Makes the folder the working folder, with the cache of compiled programs in it."""
    previous = pathlib.Path.cwd()
    changes = {
        'jax_compilation_cache_dir': str(folder / 'xla'),
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_disable_most_optimizations': True,
    }
    settings = {name: jax.config.values[name] for name in changes}

    def apply(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    os.chdir(folder)
    apply(changes)
    try:
        yield
    finally:
        os.chdir(previous)
        apply(settings)


def call(capsys, *argv, run=main.run):
    """Runs a command in this process; returns its exit code, stdout and stderr."""
    capsys.readouterr()
    code = flags.main(run, main.USAGE, argv)
    return code, *capsys.readouterr()


def error_line(capsys, *argv, run=main.run):
    """Runs a command that must fail; returns its only line of stderr without `error: `."""
    code, _, err = call(capsys, *argv, run=run)
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


def student_arguments(*changes, workdir='runs/other'):
    """Returns the arguments of a student's run whose teacher is already trained."""
    return ['--config=small.py:student', f'--config.workdir={workdir}', *changes]


def make(folder):
    """Writes text and small.py, and trains runs/small_teacher and runs/small."""
    write_text(folder / 'text', 0)
    (folder / 'small.py').write_text(SMALL)
    with working_in(folder):
        assert flags.main(main.run, main.USAGE, ['--config=small.py']) == 0
