"""The cache of a teacher: the live teacher's arrays, the same bytes after a kill, named damage."""

import dataclasses
import functools
import json
import math
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import corpus
from helpers.checkpoints import flip
from helpers.commands import call, student_arguments, working_in
from helpers.processes import environment

from lightpaff_jax import config, distill_step, main, networks, optimizer, sharding
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data import batches, prepare
from lightpaff_jax.errors import Unfinished, UserError
from lightpaff_jax.pretrained import save
from lightpaff_jax.runtime import storage
from lightpaff_jax.teacher import Teacher, cache as teacher_cache
from lightpaff_jax.train import train

FAMILIES = {'classify': 'bert', 'mlm': 'bert', 'clm': 'gpt2', 'mass': 'mass', 'seq2seq': 'mass'}
EPSILON = 2.0**-8  # of bfloat16


def write_examples(folder):
    """Writes tables of 90 texts of 1 to 25 words with a class, and as many parallel texts."""
    draw, words = random.Random(0), ['the', 'dog', 'a', 'b', 'sunny', '.', 'quick', 'fox']
    folder.mkdir()
    for split in ('train', 'validation', 'test'):
        texts = [' '.join(draw.choices(words, k=draw.randint(1, 25))) for _ in range(90)]
        lines = [f'{text}\t{draw.randint(0, 1)}' for text in texts]
        (folder / f'{split}.tsv').write_text('\n'.join(lines) + '\n')
        for suffix, part in (('en', texts), ('de', texts[::-1])):
            (folder / f'{split}.{suffix}').write_text('\n'.join(part) + '\n')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    corpus.write_random_text(folder / 'text', 6_000)
    write_examples(folder / 'examples')
    return folder


def configured(data, objective, folder, mesh=(1, 1, 1)):
    """Returns a configuration of a small student with 2 micro-batches of 8."""
    c = config.default()
    c.objective, c.student.family = objective, FAMILIES[objective]
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    c.student.update({'layers': 1, 'width': 16, 'heads': 2, 'ffn': 16, 'vocab_size': 61})
    c.student.decoder_layers = int(c.student.family == 'mass')
    documents = objective in ('clm', 'mlm', 'mass')
    c.data.update({'path': str(data / ('text' if documents else 'examples')), 'length': 32})
    c.data.source = 'text' if documents else 'table'
    if objective == 'classify':
        c.student.head, c.student.classes, c.data.classes = 'classify', 2, 2
        c.data.columns = ('0', '', '1')
    if objective == 'seq2seq':
        c.data.source, c.data.suffixes, c.data.target_length = 'parallel', ('en', 'de'), 24
    if not documents:
        c.data.buckets = (12, 20, 32)
    c.data.batch_size, c.train.grad_accum_steps = 16, 2
    c.data.cache, c.teacher.cache = str(data / 'cache'), str(folder / 'teacher')
    c.teacher.cache_epochs = 2 if objective in ('mlm', 'mass') else 1
    c.teacher.layers = 1  # has one
    validate.validate(config_without_shape(c))
    return c


def config_without_shape(c):
    c = config.copy(c)
    c.teacher.layers, c.teacher.path = 0, 'x'
    return c


@functools.cache
def teacher_model(frozen_student):
    network = config.network(**dict(frozen_student) | {'width': 32, 'layers': 2})
    c = config.default()
    model = networks.teacher(c, network)
    params = model.init(jax.random.key(1))
    return model, jax.tree.map(lambda x: 2 * x, params)


class Setup:
    """A configuration with its mesh, dataset and teacher."""

    def __init__(self, vocabulary, c):
        self.c, self.tokenizer = c, vocabulary
        self.mesh = sharding.make_mesh(
            c, jax.devices()[: math.prod((c.mesh.data, c.mesh.fsdp, c.mesh.tensor))]
        )
        student = tuple((key, c.student[key]) for key in config.network())
        model, params = teacher_model(student)
        params = jax.device_put(params, sharding.param_shardings(self.mesh, params))
        self.teacher = Teacher(model, params, 'a' * 16)
        self.prepared = prepare.prepare(c, vocabulary)

    def describe(self):
        return teacher_cache.describe(self.c, self.teacher, self.prepared, self.tokenizer)

    def build(self):
        with jax.set_mesh(self.mesh):
            arguments = self.teacher, self.prepared, self.tokenizer
            return teacher_cache.open_or_build(self.c, self.mesh, *arguments)

    def batch(self, index, read_teacher=None):
        arguments = self.c, self.prepared, self.tokenizer, None, read_teacher
        return batches.batch_function(*arguments)(index)

    @functools.cached_property
    def live(self):
        function = distill_step.make_teacher_arrays(self.c, self.mesh, self.teacher.model)

        def compute(batch):
            with jax.set_mesh(self.mesh):
                flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
                inputs = sharding.put_batch(self.mesh, flat, micro=False)
                return jax.device_get(function(self.teacher.params, inputs))

        return compute


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(teacher_cache, 'SHARD_RECORDS', 24)


@pytest.fixture
def classifier(data, vocabulary, tmp_path, small_shards):
    return Setup(vocabulary, configured(data, 'classify', tmp_path))


def check_rows(setup, indices):
    """Compares what a cache has for some batches with the live teacher, where a loss reads it."""
    cache = setup.build()
    for index in indices:
        cached = setup.batch(index, cache.read)
        live = setup.live(dataclasses.replace(cached, teacher=None))['features']
        weights = np.asarray(cached.weights).reshape(*live.shape[:2], 1)
        features = np.asarray(cached.teacher['features']).reshape(live.shape)
        assert features.dtype == live.dtype
        difference = np.abs(features.astype(np.float32) - live.astype(np.float32)) * weights
        assert difference.max() <= 2 * EPSILON * np.abs(live).max()
        assert np.abs(features).max() > 0.1


@pytest.mark.parametrize(
    'objective',
    [
        'classify',
        'clm',
        'mass',
        *(pytest.param(x, marks=pytest.mark.slow) for x in ('mlm', 'seq2seq')),
    ],
)
def test_rows_are_those_of_the_live_teacher(data, vocabulary, tmp_path, small_shards, objective):
    setup = Setup(vocabulary, configured(data, objective, tmp_path))
    epoch = setup.prepared.split('train')['records'] // 16
    # Batches of each bucket, at the border of two epochs, and of the third epoch.
    check_rows(setup, [0, 1, 2, epoch, 2 * epoch + 2])


def test_masks_repeat_after_the_epochs_of_the_cache(data, vocabulary, tmp_path):
    setup = Setup(vocabulary, configured(data, 'mass', tmp_path))
    keys = [batches.mask_key(setup.c, epoch, 7) for epoch in range(4)]
    assert keys[:2] == keys[2:] != [keys[0], keys[0]]
    other = config.copy(setup.c)
    other.seed = 1
    assert batches.mask_key(other, 1, 7) == keys[1]
    setup.c.teacher.cache = other.teacher.cache = ''
    assert len({batches.mask_key(c, epoch, 7) for c in (setup.c, other) for epoch in (0, 2)}) == 4


def digests(folder):
    return corpus.file_digests(folder)


def test_interrupted_build_resumes_with_the_same_bytes(classifier, tmp_path, monkeypatch):
    expected = digests(classifier.build().folder)
    classifier.c.teacher.cache, commit, calls = str(tmp_path / 'other'), storage.commit, []

    def interrupt(part, file):
        calls.append(file.suffix)
        if calls.count('.rows') == 3:
            raise KeyboardInterrupt
        commit(part, file)

    with monkeypatch.context() as patch:
        patch.setattr(storage, 'commit', interrupt)
        with pytest.raises(KeyboardInterrupt):
            classifier.build()
    folder = classifier.describe().folder
    finished = {file: file.stat().st_mtime_ns for file in folder.glob('*.rows')}
    assert len(finished) == 2
    assert len([*folder.glob('*.part')]) == 1
    assert digests(classifier.build().folder) == expected
    assert finished.items() <= {f: f.stat().st_mtime_ns for f in folder.glob('*.rows')}.items()


def test_damaged_row_is_named_and_its_file_is_built_again(classifier):
    cache = classifier.build()
    before = digests(cache.folder)
    file = max(cache.folder.glob('*.rows'), key=lambda path: path.stat().st_size)
    flip(file, 8 * file.stat().st_size // 2)
    records = range(classifier.prepared.split('train')['records'])
    message = f'^{file}: the row of record .* is damaged; remove it, and the same command builds it'
    with pytest.raises(UserError, match=message):
        cache.read(records, [0] * len(records), 2)
    file.unlink()
    assert digests(classifier.build().folder) == before
    cache.read(records, [0] * len(records), 2)


@pytest.mark.parametrize('change', [lambda data: data[:-1], lambda data: data + b'x'])
def test_file_of_another_size_is_refused_at_the_start(classifier, change):
    file = next(classifier.build().folder.glob('*.rows'))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=f'^{file}: must have [0-9]+ bytes; remove it'):
        classifier.build()


def test_rows_of_another_record_or_cache_are_refused(classifier):
    cache, files = classifier.build(), []
    for number in (0, 1):
        (file,) = cache.folder.glob(f'0-32-0000{number}.rows')
        files.append(file)
    shutil.copy(*files)
    records = np.flatnonzero(batches.record_buckets(classifier.c, classifier.prepared) == 2)
    cache.read(records[:24].tolist(), [0] * 24, 2)
    with pytest.raises(UserError, match='is damaged'):
        cache.read(records[24:25].tolist(), [0], 2)
    other = classifier.describe()
    other._digest = bytes(32)
    other.folder = cache.folder
    with pytest.raises(UserError, match='is damaged'):
        other.read(records[:1].tolist(), [0], 2)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train.compute_dtype', 'bfloat16'),
        ('data.buckets', (12, 32)),
        ('teacher.cache_epochs', 3),
        ('data.mask_rate', 0.3),
    ],
)
def test_settings_that_change_the_arrays_name_another_cache(classifier, key, value):
    folder = classifier.describe().folder
    section, leaf = config.locate(classifier.c, key)
    section[leaf] = value
    assert classifier.describe().folder != folder
    assert classifier.describe().folder.parent == folder.parent


def test_another_teacher_names_another_cache(classifier):
    folder = classifier.describe().folder
    classifier.c.seed, classifier.c.optim.peak_lr = 5, 0.1
    assert classifier.describe().folder == folder
    classifier.teacher = classifier.teacher._replace(hash='b' * 16)
    assert classifier.describe().folder != folder


def test_size_is_logged_before_anything_is_written(classifier, monkeypatch, caplog):
    usage = shutil.disk_usage('.')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    with pytest.raises(UserError) as error:
        classifier.build()
    folder = classifier.c.teacher.cache
    size = '90 records x 1 maskings x 72 bytes = 6.48e-06 GB'
    assert str(error.value) == (
        f'config.teacher.cache = {folder}: 6.48e-06 GB must fit: {size}, 1e-06 GB are free'
    )
    assert [path.name for path in classifier.describe().folder.iterdir()] == []
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=10**9))
    with caplog.at_level('INFO', 'lightpaff_jax'):
        classifier.build()
        classifier.build()
    assert [r.message.partition(': ')[2] for r in caplog.records] == [f'{size}, 1 GB are free']


def test_full_disk_keeps_finished_files(classifier, monkeypatch):
    commit, calls = storage.commit, []

    def fail(part, file):
        calls.append(file)
        if len(calls) == 3:  # cache.json is the first
            raise OSError(28, 'No space left on device')
        commit(part, file)

    monkeypatch.setattr(storage, 'commit', fail)
    with pytest.raises(
        Unfinished, match='cannot be written: No space left on device; the finished'
    ):
        classifier.build()
    names = sorted(path.name for path in calls[0].parent.iterdir())
    assert names == sorted(path.name for path in calls[:2])


@pytest.mark.parametrize(
    ('key', 'value', 'rule'),
    [
        ('data.augment', 0.5, 'requires data.augment = 0: each epoch would have other texts'),
        ('teacher.cache', 'gs://b', 'must be a local folder; mount the bucket and name that path'),
        ('teacher.layers', 0, 'requires a teacher, config.teacher.path'),
    ],
)
def test_unsupported_cache_settings_are_refused(data, tmp_path, key, value, rule):
    c = configured(data, 'classify', tmp_path)
    c.teacher.update({'family': 'bert', 'head': 'classify', 'classes': 2, 'vocab_size': 61})
    c.data.augment_mask = float(key == 'data.augment')
    section, leaf = config.locate(c, key)
    section[leaf] = value
    with pytest.raises(UserError) as error:
        validate.validate(c)
    assert str(error.value) == f'config.teacher.cache = {c.teacher.cache}: {rule}'


def losses(folder):
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [line['loss'] for line in lines if line['kind'] == 'train']


def read_result(folder):
    return json.loads((folder / 'result.json').read_text())


def run_student(capsys, *changes, workdir):
    code, _, err = call(capsys, *student_arguments(*changes, workdir=workdir))
    assert code == 0, err
    return err


@pytest.fixture(scope='module')
def cached(small_runs):
    """The folder of a run of 6 updates that has built a cache, and the cache."""
    with working_in(small_runs):
        arguments = student_arguments('--config.teacher.cache=teacher', workdir='runs/cached')
        assert flags.main(main.run, main.USAGE, arguments) == 0
    return small_runs / 'runs/cached', small_runs / 'teacher'


def test_cached_run_has_the_losses_of_the_live_teacher(here, cached):
    # The teacher's features are rounded to 8 bits.
    np.testing.assert_allclose(losses(cached[0]), losses(here / 'runs/small'), rtol=1e-3)
    live, builder = [read_result(folder) for folder in (here / 'runs/small', cached[0])]
    assert 'flops_saved' not in live
    assert builder['flops'] + builder['flops_saved'] == pytest.approx(live['flops'])
    assert builder['flops_saved'] < 0, '6 updates read less than an epoch'


@pytest.mark.e2e
def test_only_the_building_run_counts_the_flops_of_a_cache(here, cached, capsys):
    before = digests(cached[1])
    run_student(capsys, '--config.teacher.cache=teacher', '--config.seed=1', workdir='runs/seed1')
    assert digests(cached[1]) == before
    live, reader = [read_result(here / 'runs' / name) for name in ('small', 'seed1')]
    assert reader['flops'] + reader['flops_saved'] == pytest.approx(live['flops'])
    assert reader['flops_saved'] > 0.1 * live['flops']


@pytest.mark.e2e
def test_resumed_cached_run_is_bitwise_equal(here, cached, capsys):
    resumed = here / 'runs/resumed'
    shutil.copytree(cached[0], resumed)
    for update in (4, 6):
        shutil.rmtree(resumed / f'checkpoints/{update}')
    (resumed / 'result.json').unlink()
    shutil.move(cached[1], here / 'moved')
    run_student(capsys, '--config.teacher.cache=moved', workdir='runs/resumed')
    shutil.move(here / 'moved', cached[1])
    for name in ('metrics.jsonl', 'predictions/test.jsonl'):
        assert (resumed / name).read_bytes() == (cached[0] / name).read_bytes()
    first, second = read_result(cached[0]), read_result(resumed)
    for key in ('flops', 'flops_saved', 'scores', 'teacher_hash'):
        assert first[key] == second[key]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [(8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize('objective', ['classify', 'mass'])
def test_gradient_on_8_devices_equals_that_of_the_live_teacher(
    data, vocabulary, tmp_path, objective, mesh
):
    setup = Setup(vocabulary, configured(data, objective, tmp_path, mesh=mesh))
    c, cache = setup.c, setup.build()
    student = networks.student(c)
    rule = optimizer.make(c.optim)
    gradient = jax.jit(distill_step.make_gradient(c, setup.mesh, student, setup.teacher.model))
    state = distill_step.init_state(student, rule, 0)

    def run(batch):
        batch = sharding.put_batch(setup.mesh, batch, micro=True)
        with jax.set_mesh(setup.mesh):
            arguments = state.params, setup.teacher.params, batch, jax.random.key(0)
            return jax.device_get(gradient(*arguments))

    (sums, grads), (cached_sums, cached_grads) = (
        run(setup.batch(0)),
        run(setup.batch(0, cache.read)),
    )
    assert sums['kl'] > 0
    for name in sums:
        np.testing.assert_allclose(
            cached_sums[name], sums[name], rtol=1e-2 if name == 'kl' else 2e-3
        )
    norm = float(optimizer.optax.tree.norm(grads))
    difference = jax.tree.map(np.subtract, grads, cached_grads)
    assert float(optimizer.optax.tree.norm(difference)) < 1e-2 * norm


@pytest.mark.slow
@pytest.mark.parametrize('objective', ['classify', 'mlm', 'clm', 'mass'])
def test_200_updates_have_the_losses_of_the_live_teacher(
    data, vocabulary, tmp_path, monkeypatch, objective
):
    c = configured(data, objective, tmp_path)
    setup = Setup(vocabulary, c)
    c.teacher.path, c.tokenizer.path = str(tmp_path / 'network'), vocabulary.path
    save(c.teacher.path, setup.teacher.model, setup.teacher.params, vocabulary)
    c.teacher.layers = 0
    c.eval.batches, c.eval.batch_size, c.loss.lambda_ = 1, 8, 0.9
    c.train.update({'updates': 200, 'log_every': 10, 'save_every': 200, 'compilation_cache': ''})
    epochs = c.teacher.cache_epochs
    # The live teacher sees the masks of the cache.
    monkeypatch.setattr(batches, 'mask_key', lambda _, epoch, i: (0, epoch % epochs, i))
    for name, folder in (('cached', c.teacher.cache), ('live', '')):
        c.teacher.cache, c.workdir = folder, str(tmp_path / name)
        train(c)
    cached, live = losses(tmp_path / 'cached'), losses(tmp_path / 'live')
    assert len(cached) == 20  # a classifier predicts only 16 positions per update
    assert live[-1] < live[0]
    np.testing.assert_allclose(cached, live, rtol=1e-3)


KILLED = """
import os, signal, sys
from lightpaff_jax import main
from lightpaff_jax.config import flags
from lightpaff_jax.runtime import storage
from lightpaff_jax.teacher import cache

cache.SHARD_RECORDS, left, write = 128, int(sys.argv.pop(1)), cache.Cache.write

def kill(self, shard, parts):
    def parts_until_death():
        global left
        for part in parts:
            yield part
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    write(self, shard, parts_until_death())

cache.Cache.write = kill
sys.exit(flags.main(main.run, '', sys.argv[1:]))
"""


@pytest.mark.slow
def test_sigkill_while_writing_leaves_the_same_bytes(here):
    def start(moment, name):
        arguments = student_arguments(f'--config.teacher.cache={name}', workdir=f'runs/{name}')
        command = [sys.executable, '-c', KILLED, str(moment), *arguments]
        return subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert start(0, 'undisturbed').returncode == 0
    for moment in (3, 20, 30):  # batches of 16: in the first file, in the third, and so on
        assert start(moment, 'killed').returncode == -signal.SIGKILL
    process = start(0, 'killed')
    assert process.returncode == 0, process.stderr
    expected, result = digests(here / 'undisturbed'), digests(here / 'killed')
    (name,) = [file for file in expected if file.endswith('cache.json')]
    assert expected.pop(name) != result.pop(name), 'it names the run'
    assert expected == result
    assert losses(here / 'runs/killed') == losses(here / 'runs/undisturbed')
    first, second = [read_result(here / 'runs' / name) for name in ('undisturbed', 'killed')]
    assert first['flops_saved'] == second['flops_saved']
