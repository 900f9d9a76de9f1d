"""`python -m lightpaff_jax.evaluate`: a workdir or a Hugging Face folder on any data that it fits."""

import contextlib
import json
import subprocess
import sys

import pytest
from helpers import corpus
from helpers.processes import environment

import lightpaff_jax
from lightpaff_jax import evaluate
from lightpaff_jax.config import flags
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.train import train

CONFIG = """
'''A small network on a small part of pydocs.'''
from lightpaff_jax import config

PRESETS = ('test', 'topic', 'text')

def get_config(preset=''):
    c = config.default()
    c.student.update({SHAPE})
    c.student.vocab_size = 512
    c.data.update({'cache': CACHE, 'packages': ('flax', 'optax'), 'length': 32})
    c.data.batch_size, c.eval.batch_size, c.eval.batches = 8, 8, 2
    c.train.update({'updates': 2, 'save_every': 2, 'log_every': 1, 'compilation_cache': ''})
    c.optim.warmup = 1
    if preset == 'topic':
        c.student.update({'family': 'bert', 'head': 'classify', 'classes': TOPICS})
        c.data.view, c.objective = 'topic', 'classify'
    elif preset != 'text':
        c.student.update({'family': 'mass', 'decoder_layers': 1})
        c.data.update({'view': 'summary', 'target_length': 12})
        c.objective, c.eval.metric, c.generate.beams = 'seq2seq', 'bleu', 2
    return c
"""


pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def place(data_cache, tmp_path_factory):
    """A folder with small.py, the workdirs runs/ of its presets '' and 'text', and both as hf/."""
    folder = tmp_path_factory.mktemp('evaluate')
    shape = "'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'positions': 32"
    text = CONFIG.replace('SHAPE', shape).replace('CACHE', repr(data_cache))
    topics = str(len(pydocs.PACKAGES))
    (folder / 'small.py').write_text(text.replace('TOPICS', topics))
    with contextlib.chdir(folder):
        for preset in ('', 'text'):
            name = preset or 'summary'
            train(flags.parse([f'--config=small.py:{preset}', f'--config.workdir=runs/{name}']))
            model, params = lightpaff_jax.load(f'runs/{name}')
            kept = tokenizers.read(f'runs/{name}/tokenizer')
            lightpaff_jax.save(f'hf/{name}', model, params, kept)
        yield folder


def call(capsys, *words):
    code = evaluate.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize('path', ['runs/summary', 'hf/summary'])
def test_scores_are_those_of_the_end_of_the_run(place, capsys, path):
    code, out, err = call(capsys, f'--model={path}', '--config=small.py')
    assert code == 0, err
    assert out.splitlines()[-1] == f'{path}/evaluation/scores.json'
    wanted = json.loads((place / 'runs/summary/result.json').read_text())
    found = json.loads((place / path / 'evaluation/scores.json').read_text())
    for name in ('scores', 'protocol', 'metric', 'objective', 'data_hash', 'parameters'):
        assert found[name] == wanted[name], name
    for split in ('validation', 'test'):
        theirs = place / f'runs/summary/predictions/{split}.jsonl'
        ours = place / path / f'evaluation/predictions/{split}.jsonl'
        assert ours.read_bytes() == theirs.read_bytes()
        assert f'{split}: ce ' in out


def test_a_teacher_may_be_compared_with_and_another_folder_be_written(place, capsys):
    words = ('--model', 'runs/text', '--config=small.py:text', '--out', 'elsewhere')
    code, out, err = call(capsys, *words, '--config.teacher.path=hf/text')
    assert code == 0, err
    assert out.endswith('elsewhere/scores.json\n')
    found = json.loads((place / 'elsewhere/scores.json').read_text())['scores']['test']
    assert found['agreement'] == 1.0
    assert found['kl'] == pytest.approx(0, abs=1e-6)


MISTAKES = {
    'no model': (['--config=small.py'], '--model=DIR: must be given'),
    'no folder': (
        ['--model=runs/none', '--config=small.py'],
        '--model=runs/none: must be the workdir of a finished run, or a folder with config.json '
        'and model.safetensors',
    ),
    'another family': (
        ['--model=hf/text', '--config=small.py'],
        "--model=hf/text: is of family 'gpt2', the task of the configuration is for 'mass'",
    ),
    'another family, that classifies': (
        ['--model=runs/summary', '--config=small.py:topic'],
        "--model=runs/summary: is of family 'mass', the task of the configuration is for 'bert'",
    ),
    'longer texts than positions': (
        ['--model=runs/summary', '--config=small.py', '--config.generate.max_length=33'],
        'config.generate.max_length = 33: must be at most student.positions = 32',
    ),
    'longer blocks than positions': (
        ['--model=runs/text', '--config=small.py:text', '--config.student.positions=64',
         '--config.data.length=64'],
        'config.data.length = 64: must be at least 1 and at most student.positions = 32',
    ),
    'an unknown key': (
        ['--model=runs/text', '--config=small.py:text', '--config.evl.batches=3'],
        'config.evl: no such key; did you mean eval?',
    ),
    'an unknown flag': (
        ['--model=runs/text', '--config=small.py:text', '--modle=x'],
        "argument '--modle=x': must be one of --model, --out, --config, --config.KEY; did you mean --model?",
    ),
    'a flag without its value': (
        ['--config=small.py:text', '--model'], "argument '--model': must be followed by a value",
    ),
    'a flag with an empty value': (
        ['--model=', '--config=small.py:text'], '--model=: must have a value',
    ),
    'a flag twice': (
        ['--model=runs/text', '--model=x', '--config=small.py:text'],
        '--model: must be given once',
    ),
    'batches that do not divide': (
        ['--model=runs/text', '--config=small.py:text', '--config.eval.batch_size=9'],
        'config.eval.batch_size = 9: must be a multiple of devices = 8',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_line(place, capsys, name):
    words, line = MISTAKES[name]
    assert call(capsys, *words) == (2, '', f'error: {line}\n')


def test_another_tokenizer_is_named(place, capsys, tmp_path):
    corpus.wordpiece_tokenizer(tmp_path)
    words = ('--model=runs/text', '--config=small.py:text', f'--config.tokenizer.path={tmp_path}')
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, '')
    assert err.startswith('error: --model=runs/text: its tokenizer has hash ')
    assert err.count('\n') == 1


def test_help_says_how(capsys):
    code, out, err = call(capsys, '--help')
    assert (code, err) == (0, '')
    assert out.startswith('python -m lightpaff_jax.evaluate --model=DIR')
    assert call(capsys)[0] == 2


def test_two_processes_write_the_same(place):
    """Each device has the same part of a batch, so that all sums are added up alike."""
    words = ['-m', 'lightpaff_jax.evaluate', '--model=runs/summary', '--config=small.py']
    for number in (1, 2):
        start = [sys.executable, '-m', 'lightpaff_jax.local', str(number), sys.executable]
        done = subprocess.run(
            [*start, *words, f'--out=of_{number}'], env=environment(DEVICES=str(2 // number)),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3
    one, two = (json.loads((place / f'of_{n}/scores.json').read_text()) for n in (1, 2))
    assert two['processes'] == 2
    assert one['scores'] == two['scores']
    for split in ('validation', 'test'):
        one, two = ((place / f'of_{n}/predictions/{split}.jsonl').read_bytes() for n in (1, 2))
        assert one == two
