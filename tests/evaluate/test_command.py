"""The command `python -m lightpaff_jax.evaluate`, on workdirs and Hugging Face folders."""

import contextlib
import json
import shutil
import subprocess
import sys

import jax
import pytest
from helpers import corpus
from helpers.processes import environment

import lightpaff_jax
from lightpaff_jax import evaluate, models, workdir
from lightpaff_jax.config import flags
from lightpaff_jax.data import tokenizers
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection
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
def workspace(data_cache, tmp_path_factory):
    """Returns a folder with small.py, its run runs/summary, and hf/summary and hf/text.

    hf/text has random parameters in the shape of the preset 'text'.
    """
    folder = tmp_path_factory.mktemp('evaluate')
    shape = "'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'positions': 32"
    text = CONFIG.replace('SHAPE', shape).replace('CACHE', repr(data_cache))
    topics = str(len(pydocs.PACKAGES))
    (folder / 'small.py').write_text(text.replace('TOPICS', topics))
    with contextlib.chdir(folder):
        train(flags.parse(['--config=small.py', '--config.workdir=runs/summary']))
        model, params = lightpaff_jax.load('runs/summary')
        tokenizer = tokenizers.read('runs/summary/tokenizer')
        lightpaff_jax.save('hf/summary', model, params, tokenizer)
        c = flags.parse(['--config=small.py:text'])
        model = models.build(c.student)
        params = model.init(jax.random.key(0))
        lightpaff_jax.save('hf/text', model, params, selection.load(c))
        yield folder


def call(capsys, *words):
    code = evaluate.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize('path', ['runs/summary', 'hf/summary'])
def test_scores_equal_those_at_the_end_of_the_run(workspace, capsys, path):
    code, out, err = call(capsys, f'--model={path}', '--config=small.py')
    assert code == 0, err
    assert out.splitlines()[-1] == f'{path}/evaluation/scores.json'
    result = json.loads((workspace / 'runs/summary/result.json').read_text())
    scores = json.loads((workspace / path / 'evaluation/scores.json').read_text())
    for name in ('scores', 'protocol', 'metric', 'objective', 'data_hash', 'parameters'):
        assert scores[name] == result[name], name
    for split in ('validation', 'test'):
        expected = workspace / f'runs/summary/predictions/{split}.jsonl'
        predictions = workspace / path / f'evaluation/predictions/{split}.jsonl'
        assert predictions.read_bytes() == expected.read_bytes()
        assert f'{split}: ce ' in out


def test_settings_of_a_folder_are_in_the_protocol(workspace, capsys):
    shutil.copytree(workspace / 'hf/summary', workspace / 'hf/edited')
    file = workspace / 'hf/edited/generation_config.json'
    eos = json.loads((workspace / 'hf/edited/config.json').read_text())['eos_token_id']
    values = {'eos_token_id': eos, 'decoder_start_token_id': eos, 'repetition_penalty': 1.5}
    file.write_text(json.dumps(values))
    code, _, err = call(capsys, '--model=hf/edited', '--config=small.py')
    assert code == 0, err
    scores = json.loads((workspace / 'hf/edited/evaluation/scores.json').read_text())
    assert '12 tokens, repetition_penalty 1.5; BLEU' in scores['protocol']


def test_teacher_is_compared_and_out_is_written(workspace, capsys):
    words = ('--model', 'hf/text', '--config=small.py:text', '--out', 'elsewhere')
    code, out, err = call(capsys, *words, '--config.teacher.path=hf/text')
    assert code == 0, err
    assert out.endswith('elsewhere/scores.json\n')
    scores = json.loads((workspace / 'elsewhere/scores.json').read_text())['scores']['test']
    assert scores['agreement'] == 1.0
    assert scores['kl'] == pytest.approx(0, abs=1e-6)


def test_stopped_evaluation_leaves_no_scores_of_another(workspace, monkeypatch):
    finish = evaluate.Evaluation.finish
    for name in ('scores.json', 'predictions/validation.jsonl', 'predictions/test.jsonl'):
        workdir.write_json(workspace / 'both' / name, {'of': 'another network'})

    def stop(evaluation, outputs, *args):
        if outputs.split == 'test':
            raise KeyboardInterrupt
        return finish(evaluation, outputs, *args)

    monkeypatch.setattr(evaluate.Evaluation, 'finish', stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(flags.parse(['--config=small.py']), 'hf/summary', 'both')
    (file,) = (workspace / 'both').rglob('*.json*')
    assert file.name == 'validation.jsonl'
    assert 'another' not in file.read_text()


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
        [
            '--model=hf/text',
            '--config=small.py:text',
            '--config.student.positions=64',
            '--config.data.length=64',
        ],
        'config.data.length = 64: must be at least 1 and at most student.positions = 32',
    ),
    'an unknown key': (
        ['--model=hf/text', '--config=small.py:text', '--config.evl.batches=3'],
        'config.evl: no such key; did you mean eval?',
    ),
    'an unknown flag': (
        ['--model=hf/text', '--config=small.py:text', '--modle=x'],
        "argument '--modle=x': must be one of --model, --out, --config, --config.KEY; did you mean --model?",
    ),
    'a flag without its value': (
        ['--config=small.py:text', '--model'],
        "argument '--model': must be followed by a value",
    ),
    'a flag with an empty value': (
        ['--model=', '--config=small.py:text'],
        '--model=: must have a value',
    ),
    'a flag twice': (
        ['--model=hf/text', '--model=x', '--config=small.py:text'],
        '--model: must be given once',
    ),
    'batches that do not divide': (
        ['--model=hf/text', '--config=small.py:text', '--config.eval.batch_size=9'],
        'config.eval.batch_size = 9: must be a multiple of devices = 8',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_is_one_line(workspace, capsys, name):
    words, line = MISTAKES[name]
    assert call(capsys, *words) == (2, '', f'error: {line}\n')


def test_other_tokenizer_is_an_error(workspace, capsys, tmp_path):
    corpus.wordpiece_tokenizer(tmp_path)
    words = ('--model=hf/text', '--config=small.py:text', f'--config.tokenizer.path={tmp_path}')
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, '')
    assert err.startswith('error: --model=hf/text: its tokenizer has hash ')
    assert err.count('\n') == 1


def test_help_prints_usage(capsys):
    code, out, err = call(capsys, '--help')
    assert (code, err) == (0, '')
    assert out.startswith('python -m lightpaff_jax.evaluate --model=DIR')
    assert call(capsys)[0] == 2


@pytest.mark.slow
def test_two_processes_write_equal_files(workspace):
    """Every device has the same rows in both cases, so that all sums have the same bits."""
    words = ['-m', 'lightpaff_jax.evaluate', '--model=runs/summary', '--config=small.py']
    commands = []
    for number in (1, 2):
        local = [sys.executable, '-m', 'lightpaff_jax.local', str(number), sys.executable]
        command = subprocess.Popen(
            [*local, *words, f'--out=of_{number}'],
            env=environment(DEVICES=str(2 // number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        commands.append(command)
    for command in commands:
        out, err = command.communicate()
        assert command.returncode == 0, err
        assert len(out.splitlines()) == 3
    single, double = (json.loads((workspace / f'of_{n}/scores.json').read_text()) for n in (1, 2))
    assert double['processes'] == 2
    assert single['scores'] == double['scores']
    for split in ('validation', 'test'):
        single, double = (
            (workspace / f'of_{n}/predictions/{split}.jsonl').read_bytes() for n in (1, 2)
        )
        assert single == double
