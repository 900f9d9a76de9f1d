"""Which runs of a recipe read a cache of their teacher, and what that saves."""

import pathlib
import shutil

import pytest
from helpers import corpus
from helpers.recipes import outputs_of

from lightpaff_jax import config, speed
from lightpaff_jax.recipe import __main__ as recipe, plan, teacher_cache

TASK = """
from lightpaff_jax import config


def get_config(preset=''):
    c = config.default()
    c.task, c.data.source, c.data.path, c.data.length = 'text', 'text', {path!r}, 32
    c.eval.batch_size, c.eval.batches = 8, 1
    return c
"""


@pytest.fixture
def small(tmp_path, vocabulary):
    """A recipe on 50 blocks of text, of which each run reads 24 rows, with a sweep of fine-tuning."""
    corpus.write_random_text(tmp_path / 'text', 2_500)
    (tmp_path / 'task.py').write_text(TASK.format(path=str(tmp_path / 'text')))
    c = config.default()
    c.workdir, c.recipe.tasks = str(tmp_path / 'recipe'), (str(tmp_path / 'task.py'),)
    c.data.update({'source': 'text', 'path': str(tmp_path / 'text'), 'length': 32})
    c.data.cache, c.tokenizer.path = str(tmp_path / 'cache'), vocabulary.path
    c.mesh.data, c.eval.batches, c.eval.batch_size = 1, 1, 8
    c.train.compilation_cache = ''
    network = {'layers': 1, 'heads': 2, 'ffn': 16, 'positions': 32, 'vocab_size': 61}
    c.student.update({'width': 8, **network})
    c.teacher.update({'width': 32, **network})
    for name in config.PHASES:
        c.recipe[name].update({'updates': 3, 'warmup': 1, 'batch_size': 8})
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 1e-2)
    return c


def caches(c, monkeypatch, records):
    """Returns the runs that read a cache if the data of all runs has so many records."""
    monkeypatch.setattr(teacher_cache, '_records', lambda run: records)
    monkeypatch.setattr(teacher_cache, '_row_bytes', lambda run: 1000)
    runs, _ = plan.expand(c)
    sharing = teacher_cache.Sharing(c, runs.values())
    cached = {name: sharing.with_cache(run) for name, run in runs.items()}
    assert all(run.teacher.path for run in cached.values() if run.teacher.cache)
    return {name: run.teacher.cache for name, run in cached.items() if run.teacher.cache}


def test_runs_that_share_a_teacher_and_data_share_a_cache(small, monkeypatch):
    names = [
        f'seed0/{student}/lr{rate}'
        for student in ('two_stage', 'stage2_only')
        for rate in ('0.001', '0.01')
    ]
    folder = f'{small.workdir}/teacher_cache'
    assert caches(small, monkeypatch, 95) == dict.fromkeys(names, folder)
    assert caches(small, monkeypatch, 96) == {}, 'they read 4 x 24 rows'
    small.recipe.cache_teacher = False
    assert caches(small, monkeypatch, 95) == {}


def test_large_cache_is_made_only_in_a_folder_that_is_set(small, monkeypatch, caplog):
    monkeypatch.setattr(teacher_cache, 'MAX_BYTES', 94_999)
    with caplog.at_level('INFO', 'lightpaff_jax'):
        assert caches(small, monkeypatch, 95) == {}
    message = 'a cache of the teacher would take 9.5e-05 GB, '
    assert message in caplog.records[0].message
    small.teacher.cache = 'folder'
    assert len(caches(small, monkeypatch, 95)) == 5


def test_default_cache_must_fit_the_free_disk(small, monkeypatch):
    monkeypatch.setattr(teacher_cache, '_free_bytes', lambda workdir: 94_999)
    assert caches(small, monkeypatch, 95) == {}
    monkeypatch.setattr(teacher_cache, '_free_bytes', lambda workdir: 95_000)
    assert len(caches(small, monkeypatch, 95)) > 0


def test_stage_1_of_several_seeds_shares_a_cache(small, monkeypatch):
    small.recipe.seeds = (0, 1, 2)
    shared = [name for name in caches(small, monkeypatch, 71) if name.endswith('stage1')]
    assert shared == ['seed0/stage1', 'seed1/stage1', 'seed2/stage1']
    assert not [name for name in caches(small, monkeypatch, 72) if name.endswith('stage1')]


def test_masks_are_cached_only_in_a_folder_that_is_set(small, monkeypatch):
    small.student.family = small.teacher.family = 'bert'
    small.objective, small.recipe.seeds = 'mlm', (0, 1, 2)
    task = pathlib.Path(small.recipe.tasks[0])
    lines = "    c.student.family = 'bert'; c.objective = 'mlm'\n    return c"
    task.write_text(task.read_text().replace('    return c', lines))
    assert caches(small, monkeypatch, 10) == {}
    small.teacher.cache, small.teacher.cache_epochs = 'folder', 7
    assert caches(small, monkeypatch, 1000)['seed1/stage1'] == 'folder'


@pytest.mark.e2e
def test_recipe_reports_what_its_cache_saves(small, monkeypatch):
    students = {name: plan.STUDENTS[name] for name in ('two_stage', 'stage2_only')}
    monkeypatch.setattr(plan, 'STUDENTS', students)
    monkeypatch.setattr(speed, '_SECONDS', 0.01)
    recipe.run(small)
    workdir = pathlib.Path(small.workdir)
    record, results = outputs_of(workdir)
    saved = {name: r['flops_saved'] for name, r in results.items() if 'flops_saved' in r}
    assert sorted(saved) == sorted(name for name in results if '/lr' in name)
    builder, *readers = sorted(saved.values())
    assert len({*readers}) == 1
    total = sum(result['flops'] for result in results.values())
    assert record['teacher_cache'] == {'flops': total, 'flops_saved': sum(saved.values())}
    assert sum(saved.values()) > 0 > builder
    share = 100 * sum(saved.values()) / (total + sum(saved.values()))
    assert f'{share:.1f} % of all runs, sweeps included' in (workdir / 'report.md').read_text()
    (folder,) = (workdir / 'teacher_cache').iterdir()
    rows = [file for file in folder.iterdir() if file.suffix == '.rows']
    assert len(rows) == 1
    before = outputs_of(workdir)
    for run in saved:
        shutil.rmtree(workdir / run / 'checkpoints')
        (workdir / run / 'result.json').unlink()
    recipe.run(small)
    assert outputs_of(workdir) == before
