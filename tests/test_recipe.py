"""The graph of runs: every arm has its budget, its teacher, and what it starts from."""

import pathlib

import pytest

from lightpaff_jax import command, models, recipe

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
