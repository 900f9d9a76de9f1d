"""The graph of runs: every arm has its budget, its teacher, and what it starts from."""

import json
import pathlib

import data_fixtures
import pytest

from lightpaff_jax import command, models, recipe, train
from lightpaff_jax.config import UserError

QUICKSTART = pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'


@pytest.fixture(scope='module')
def planned():
    c = command.load(f'{QUICKSTART}:full')
    c.workdir = 'work'
    runs, table = recipe.plan(c)
    return c, runs, table


def test_every_run_comes_after_what_it_starts_from(planned):
    _, runs, _ = planned
    done = set()
    for name, run in runs.items():
        needed = {run.teacher.path, run.student.init} - {'', 'scratch'}
        assert needed <= done, name
        assert run.workdir == f'work/{name}'
        done.add(run.workdir)


def test_arms_of_equal_updates_have_equal_updates_data_and_schedule(planned):
    c, runs, table = planned
    same = ('train.updates', 'data.batch_size', 'data.packages', 'optim.peak_lr', 'optim.warmup')
    for arm in table['arms']:
        for phase, name in zip(('student_pretrain', 'student_finetune'), arm['runs'], strict=True):
            if arm['arm'] == 'no_teacher_equal_flops':
                continue
            budget = c.recipe[phase]
            assert runs[name].train.updates == budget.updates
            assert runs[name].seed == arm['seed']
            for key in same[1:]:
                section, leaf = key.split('.')
                assert runs[name][section][leaf] == budget[leaf]


def test_a_teacher_guides_exactly_the_stages_of_the_arm(planned):
    _, runs, table = planned
    guided = {
        arm['arm']: [runs[name].teacher.path for name in arm['runs']] for arm in table['arms']
    }
    first, second = 'work/teacher_pretrain', 'work/teacher_finetune'
    assert guided == {
        'two_stage': [first, second],
        'stage1_only': [first, ''],
        'stage2_only': ['', second],
        'no_teacher': ['', ''],
        'no_teacher_equal_flops': ['', ''],
    }


def test_equal_flops_control_costs_what_the_distilled_student_costs(planned):
    c, runs, table = planned
    length = c.data.length
    student = 3 * models.build(c.student).flops(length, length)
    teacher = models.build(c.teacher).flops(length, length)

    def flops(arm):
        names = next(a['runs'] for a in table['arms'] if a['arm'] == arm)
        return sum(
            runs[n].train.updates * (student + (teacher if runs[n].teacher.path else 0))
            for n in names
        )

    # Updates are whole numbers: half an update of some thousands.
    assert flops('no_teacher_equal_flops') / flops('two_stage') == pytest.approx(1, abs=1e-3)


def test_arms_share_the_pre_training_they_can(planned):
    c, runs, table = planned
    pretrained = {name for arm in table['arms'] for name in arm['runs'][:1]}
    assert len(pretrained) == 3 * len(c.recipe.seeds)
    assert len(runs) == 2 + (3 + 5) * len(c.recipe.seeds)


def test_the_student_has_at_most_a_fraction_of_the_parameters_of_the_teacher(planned):
    c, _, _ = planned
    assert models.build(c.student).parameters * 4.5 <= models.build(c.teacher).parameters


def test_pre_training_and_fine_tuning_read_different_packages(planned):
    c, _, _ = planned
    general = set(c.recipe.student_pretrain.packages)
    task = set(c.recipe.student_finetune.packages)
    assert general
    assert task
    assert not general & task


@pytest.fixture
def micro(data_cache, tmp_path):
    """A recipe of a few updates on one device."""
    c = data_fixtures.tiny(data_cache)
    c.workdir = str(tmp_path / 'recipe')
    c.data.packages, c.data.batch_size, c.train.micro_steps = (), 8, 1
    c.mesh.data, c.eval.batches = 1, 1
    c.train.update({'compilation_cache': str(tmp_path / 'xla'), 'updates': 100})
    small = {'layers': 1, 'heads': 2, 'ffn': 16, 'positions': 32, 'vocab_size': 512}
    c.student.update({'width': 8, **small})
    c.teacher.update({'width': 32, **small})
    for name, phase in c.recipe.items():
        if name != 'seeds':
            packages = ('chex',) if 'finetune' in name else ('ml_collections',)
            phase.update({'updates': 3, 'warmup': 1, 'batch_size': 4, 'packages': packages})
    return c


def test_a_recipe_that_was_stopped_goes_on_and_a_finished_one_changes_nothing(
    micro, capsys, monkeypatch
):
    real, started = train.train, []

    def stopping(c):
        started.append(c.workdir)
        if len(started) == 4:
            raise KeyboardInterrupt
        return real(c)

    monkeypatch.setattr(train, 'train', stopping)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(micro)
    workdir = pathlib.Path(micro.workdir)
    results = sorted(workdir.rglob('result.json'))
    assert len(results) == 3
    stamps = [path.stat().st_mtime_ns for path in results]
    recipe.run(micro)
    assert [path.stat().st_mtime_ns for path in results] == stamps
    table = capsys.readouterr().out
    assert 'two-stage' in table
    assert len(list(workdir.rglob('result.json'))) == 10
    tested = json.loads((workdir / 'seed0' / 'two_stage' / 'result.json').read_text())
    assert f'{tested["scores"]["test"]["perplexity"]:.2f}' in table
    files = [workdir / 'report.md', workdir / 'speed.json']
    before = [path.read_text() for path in files]
    recipe.run(micro)
    assert [path.read_text() for path in files] == before


def test_a_key_that_the_recipe_sets_itself_is_refused(micro):
    micro.train.updates = 7
    with pytest.raises(UserError, match='a recipe sets it for each of its runs'):
        recipe.run(micro)
