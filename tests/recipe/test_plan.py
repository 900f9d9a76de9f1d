"""The graph of runs: every arm has its budget, its teacher, and what it starts from."""

import functools
import pathlib

import pytest

from lightpaff_jax import models
from lightpaff_jax.config import flags
from lightpaff_jax.data import objectives
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.errors import UserError
from lightpaff_jax.recipe import plan
from lightpaff_jax.report import paper_table as families

QUICKSTART = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
CASES = {
    'gpt2': ('full', ('text',), (0, 1, 2)),
    'bert': ('bert', ('topic', 'pairs'), (0, 1)),
    'mass': ('mass', ('summary',), (0,)),
}


def load(preset, tasks, seeds):
    c = flags.load(f'{QUICKSTART}:{preset}')
    c.recipe.tasks = tuple(f'{QUICKSTART}:{task}' for task in tasks)
    c.recipe.seeds, c.workdir = seeds, 'work'
    return c


@functools.cache
def planned(family):
    c = load(*CASES[family])
    return c, *plan.plan(c)


def arms_of(table):
    return [arm for task in table['tasks'].values() for arm in task['arms']]


every_family = pytest.mark.parametrize('family', CASES)


@every_family
def test_every_run_comes_after_what_it_starts_from(family):
    _, runs, _ = planned(family)
    done = set()
    for name, run in runs.items():
        needed = {run.teacher.path, run.student.init} - {'', 'scratch'}
        assert needed <= done, name
        assert run.workdir == f'work/{name}'
        done.add(run.workdir)


@every_family
def test_the_table_names_every_run_and_no_other(family):
    _, runs, table = planned(family)
    named = {run for arm in arms_of(table) for run in arm['runs']}
    named |= {run for task in table['tasks'].values() for run in task['teacher']}
    assert named == set(runs)
    assert tuple(table['tasks']) == CASES[family][1]


@every_family
def test_arms_of_equal_updates_have_equal_updates_data_and_schedule(family):
    c, runs, table = planned(family)
    same = ('data.batch_size', 'optim.peak_lr', 'optim.warmup')
    for arm in arms_of(table):
        for phase, name in zip(('student_pretrain', 'student_finetune'), arm['runs'], strict=True):
            if arm['arm'] == 'no_teacher_equal_flops':
                continue
            budget = c.recipe[phase]
            assert runs[name].train.updates == budget.updates
            assert runs[name].seed == arm['seed']
            for key in same:
                section, leaf = key.split('.')
                assert runs[name][section][leaf] == budget[leaf]
            if phase == 'student_pretrain':
                assert runs[name].data.packages == c.data.packages


@every_family
def test_a_teacher_is_in_exactly_the_stages_of_the_arm(family):
    _, runs, table = planned(family)
    for task, found in table['tasks'].items():
        first, second = (f'work/{run}' for run in found['teacher'])
        assert second == ('work/' + f'{task}/' * (len(table['tasks']) > 1) + 'teacher_finetune')
        for arm in found['arms']:
            assert [runs[name].teacher.path for name in arm['runs']] == {
                'two_stage': [first, second],
                'stage1_only': [first, ''],
                'stage2_only': ['', second],
                'no_teacher': ['', ''],
                'no_teacher_equal_flops': ['', ''],
            }[arm['arm']]


@every_family
def test_equal_flops_control_costs_what_the_distilled_student_costs(family):
    c, runs, table = planned(family)
    networks = {run.workdir: models.build(run.student) for run in runs.values()}

    def flops(task, arm):
        total = 0.0
        for name in next(a['runs'] for a in task['arms'] if a['arm'] == arm):
            r = runs[name]
            shape = objectives.OBJECTIVES[r.objective].shape(r)
            each = 3 * networks[r.workdir].flops(shape)
            each += networks[r.teacher.path].flops(shape) if r.teacher.path else 0
            total += r.train.updates * r.data.batch_size * each
        return total

    updates = min(c.recipe.student_pretrain.updates, c.recipe.student_finetune.updates)
    for task in table['tasks'].values():
        ratio = flops(task, 'no_teacher_equal_flops') / flops(task, 'two_stage')
        assert ratio == pytest.approx(1, abs=0.5 / updates)  # updates are whole numbers


@every_family
def test_a_seed_is_pre_trained_once_for_all_its_arms_and_tasks(family):
    c, runs, table = planned(family)
    tasks, seeds = len(c.recipe.tasks), len(c.recipe.seeds)
    assert {name for arm in arms_of(table) for name in arm['runs'][:1]} == {
        f'seed{seed}/{name}'
        for seed in c.recipe.seeds
        for name in ('stage1', 'pretrain', 'pretrain_equal_flops')
    }
    assert len(runs) == 1 + tasks + (3 + 5 * tasks) * seeds
    for arm in arms_of(table):
        first, last = (runs[name] for name in arm['runs'])
        assert last.student.init == first.workdir


def test_folders_of_one_task_have_no_prefix():
    _, runs, _ = planned('mass')
    assert list(runs) == [
        'teacher_pretrain', 'teacher_finetune', 'seed0/stage1', 'seed0/two_stage',
        'seed0/stage1_only', 'seed0/pretrain', 'seed0/stage2_only', 'seed0/no_teacher',
        'seed0/pretrain_equal_flops', 'seed0/no_teacher_equal_flops',
    ]  # fmt: skip
    c = load('full', ('text',), (0,))
    assert list(plan.plan(c)[0]) == list(runs)


def test_fine_tuning_folders_of_several_tasks_stand_in_the_folder_of_the_task():
    _, runs, _ = planned('bert')
    shared = {name for name in runs if not name.startswith(('topic/', 'pairs/'))}
    assert shared == {'teacher_pretrain'} | {
        f'seed{seed}/{name}'
        for seed in (0, 1)
        for name in ('stage1', 'pretrain', 'pretrain_equal_flops')
    }
    for task in ('topic', 'pairs'):
        inside = {name.removeprefix(f'{task}/') for name in runs if name.startswith(f'{task}/')}
        assert inside == {'teacher_finetune'} | {
            f'seed{seed}/{arm}'
            for seed in (0, 1)
            for arm in plan.ARMS
            if arm != 'two_stage_unlabelled'
        }


@pytest.mark.parametrize(
    ('family', 'task', 'before', 'after', 'head', 'classes'),
    [
        ('gpt2', 'text', 'clm', 'clm', 'lm', 0),
        ('bert', 'topic', 'mlm', 'classify', 'classify', len(pydocs.PACKAGES)),
        ('bert', 'pairs', 'mlm', 'classify', 'classify', 2),
        ('mass', 'summary', 'mass', 'seq2seq', 'lm', 0),
    ],
)
def test_a_run_learns_its_task_with_the_head_that_it_needs(
    family, task, before, after, head, classes
):
    _, runs, table = planned(family)
    found = table['tasks'][task]
    for names in (found['teacher'], *(arm['runs'] for arm in found['arms'])):
        first, last = (runs[name] for name in names)
        assert (first.objective, first.data.view) == (before, 'text')
        assert (first.student.head, first.student.classes) == ('lm', 0)
        assert (first.student.init, first.student.init_new_head) == ('scratch', False)
        assert (last.objective, last.data.view) == (after, task)
        assert (last.student.head, last.student.classes) == (head, classes)
        assert last.student.init_new_head == (head == 'classify')


@pytest.mark.parametrize(
    ('family', 'shape'),
    [('gpt2', ('layers', 'width')), ('bert', ('layers', 'width')),
     ('mass', ('layers', 'decoder_layers', 'width'))],
)  # fmt: skip
def test_teachers_have_the_shape_of_the_teacher_and_students_that_of_the_student(family, shape):
    c, runs, table = planned(family)
    teachers = {run for task in table['tasks'].values() for run in task['teacher']}
    for name, run in runs.items():
        network = c.teacher if name in teachers else c.student
        assert [run.student[key] for key in shape] == [network[key] for key in shape], name


@pytest.mark.parametrize('family', CASES)
def test_at_the_scale_of_the_paper_students_have_dropout_in_fine_tuning_alone(family):
    c = flags.load(str(QUICKSTART.with_name(f'{family}.py')))
    c.teacher.update({'layers': 6, 'width': 64, 'heads': 4, 'ffn': 64, 'family': family})
    c.teacher.decoder_layers = c.student.decoder_layers and 6
    runs, table = plan.plan(c)
    stages = [[runs[name] for name in arm['runs']] for arm in arms_of(table)]
    assert {(first.student.dropout, last.student.dropout) for first, last in stages} == {(0.0, 0.1)}


def test_a_task_of_another_family_is_one_line():
    c = load('full', ('topic',), (0,))
    with pytest.raises(UserError, match="topic: is of family 'bert', the recipe of 'gpt2'"):
        plan.plan(c)


def test_tasks_must_be_there_and_have_names_of_their_own():
    c = load('full', (), (0,))
    with pytest.raises(UserError, match='must name a FILE'):
        plan.plan(c)
    c.recipe.tasks = (f'{QUICKSTART}:text', f'{QUICKSTART.parent}/gpt2_stage1.py:tiny')
    with pytest.raises(UserError, match=r"config\.task = '': must be a name of its own"):
        plan.plan(c)
    c = load('full', ('text',), (0,))
    c.recipe.equal_flops = ('texts',)
    with pytest.raises(UserError, match='must be one of text; did you mean text'):
        plan.plan(c)


FAMILIES = {
    'bert': ('SST-2', 'QQP', 'Polarity'),
    'gpt2': ('WikiText-2', 'PTB', 'Documentation'),
    'mass': ('Multi30k En-De', 'Summarization', 'Dialogue'),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_the_table_of_a_family_has_three_tasks_and_every_arm(family):
    c = flags.load(f'{QUICKSTART.parent}/{family}.py:small')
    c.workdir, c.recipe.data = 'work', '/elsewhere'
    runs, table = plan.plan(c)
    assert tuple(table['tasks']) == FAMILIES[family]
    assert models.build(c.student).parameters * 4.5 <= models.build(c.teacher).parameters
    assert len(c.recipe.seeds) >= 2
    extra = [a['arm'] for a in arms_of(table) if a['arm'] not in list(plan.ARMS)[:4]]
    assert extra.count('no_teacher_equal_flops') >= 1
    assert ('two_stage_unlabelled' in extra) == (family == 'bert')
    for name, run in runs.items():
        paths = [run.data.path, *run.data.mixture, *run.data.decontaminate, *run.data.unlabelled]
        assert not any(path.startswith('data/') or ':data/' in path for path in paths), name
        assert bool(run.data.unlabelled) == ('two_stage_unlabelled' in name)


def test_every_arm_chooses_from_the_same_learning_rates_and_later_seeds_take_the_choice():
    c = load('bert', ('topic',), (0, 1))
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 3e-3)
    c.recipe.student_finetune.sweep_lambda = (0.5, 0.9)
    c.recipe.equal_flops = ()
    steps, names = plan.Chain(c, plan.load_tasks(c)).steps(), []
    step = next(steps)
    try:
        while True:
            names.append((step.arm, list(step.runs)))
            taken = list(step.runs.values())[-1]
            for run in step.runs.values():
                assert bool(run.loss.lambda_) == bool(run.teacher.path)
            if 'seed1' in next(iter(step.runs)) and step.phase == 'student_finetune':
                assert len(step.runs) == 1
                assert taken.optim.peak_lr == 3e-3
                assert taken.loss.lambda_ == (0.9 if taken.teacher.path else 0)
            step = steps.send(list(step.runs)[-1])
    except StopIteration:
        pass
    assert dict(names)['two_stage'] == ['seed1/two_stage']  # of the last seed
    first = next(runs for _, runs in names if runs[0].startswith('seed0/two_stage'))
    assert first == [
        'seed0/two_stage/lr0.001_lambda0.5', 'seed0/two_stage/lr0.001_lambda0.9',
        'seed0/two_stage/lr0.003_lambda0.5', 'seed0/two_stage/lr0.003_lambda0.9',
    ]  # fmt: skip
    assert ['seed0/no_teacher/lr0.001', 'seed0/no_teacher/lr0.003'] in [runs for _, runs in names]


@pytest.mark.parametrize('preset', ['', ':small', ':tiny', ':ci'])
@pytest.mark.parametrize('name', FAMILIES)
def test_the_report_knows_the_scale_of_every_recipe(name, preset):
    c = flags.load(f'{QUICKSTART.with_name(name)}.py{preset}')
    assert c.recipe.scale
    families.check('recipe.json', {'family': c.student.family, 'scale': c.recipe.scale})


def test_the_student_has_at_most_a_fraction_of_the_parameters_of_the_teacher():
    c, _, _ = planned('gpt2')
    assert models.build(c.student).parameters * 4.5 <= models.build(c.teacher).parameters


def test_pre_training_and_fine_tuning_read_different_packages():
    c, runs, table = planned('gpt2')
    task = set(runs[table['tasks']['text']['teacher'][-1]].data.packages)
    assert task
    assert c.data.packages
    assert not set(c.data.packages) & task
