"""The plan of a recipe: the budget, the teacher and the initial parameters of every student."""

import functools
import pathlib

import pytest

from lightpaff_jax import config, models, networks
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data import objectives
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.errors import UserError
from lightpaff_jax.recipe import plan
from lightpaff_jax.report import paper_table

QUICKSTART = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
# Family -> preset, tasks and seeds of its recipe.
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
def expand(family):
    c = load(*CASES[family])
    return c, *plan.expand(c)


def students_of(record):
    return [student for task in record['tasks'].values() for student in task['students']]


every_family = pytest.mark.parametrize('family', CASES)


@every_family
def test_every_run_follows_its_dependencies(family):
    _, runs, _ = expand(family)
    finished = set()
    for name, run in runs.items():
        dependencies = {run.teacher.path, run.student.init} - {'', 'scratch'}
        assert dependencies <= finished, name
        assert run.workdir == f'work/{name}'
        finished.add(run.workdir)


@every_family
def test_recipe_json_names_exactly_the_runs_of_the_plan(family):
    _, runs, record = expand(family)
    names = {run for student in students_of(record) for run in student['runs']}
    names |= {run for task in record['tasks'].values() for run in task['teacher']}
    assert names == set(runs)
    assert tuple(record['tasks']) == CASES[family][1]


@every_family
def test_students_of_equal_updates_share_data_and_schedule(family):
    c, runs, record = expand(family)
    for student in students_of(record):
        if student['student'] == 'no_teacher_equal_flops':
            continue
        phases = ('student_pretrain', 'student_finetune')
        for phase, name in zip(phases, student['runs'], strict=True):
            budget, run = c.recipe[phase], runs[name]
            assert run.train.updates == budget.updates
            assert run.seed == student['seed']
            assert run.data.batch_size == budget.batch_size
            assert run.optim.peak_lr == budget.peak_lr
            assert run.optim.warmup == budget.warmup
            if phase == 'student_pretrain':
                assert run.data.packages == c.data.packages


@every_family
def test_each_stage_has_the_teacher_its_student_names(family):
    _, runs, record = expand(family)
    for task_name, task in record['tasks'].items():
        first, second = (f'work/{run}' for run in task['teacher'])
        folder = f'{task_name}/' if len(record['tasks']) > 1 else ''
        assert second == f'work/{folder}teacher_finetune'
        for student in task['students']:
            assert [runs[name].teacher.path for name in student['runs']] == {
                'two_stage': [first, second],
                'stage1_only': [first, ''],
                'stage2_only': ['', second],
                'no_teacher': ['', ''],
                'no_teacher_equal_flops': ['', ''],
            }[student['student']]


def check_equal_flops(c, runs, record):
    """Checks that two-stage and the baseline at equal FLOPs cost the same in every task."""
    models_of = {run.workdir: models.build(run.student) for run in runs.values()}

    def flops(task, name):
        total = 0.0
        for run in next(s['runs'] for s in task['students'] if s['student'] == name):
            r = runs[run]
            shape = objectives.OBJECTIVES[r.objective].shape(r)
            teacher = losses = None
            if r.teacher.path:
                network = {**models_of[r.teacher.path].network, 'head': r.student.head}
                teacher = models.build(config.network(**network))
                losses = networks.matching_losses(r, teacher.network)
            per_example = sum(networks.update_flops(models_of[r.workdir], teacher, losses, shape))
            total += r.train.updates * r.data.batch_size * per_example
        return total

    updates = min(c.recipe.student_pretrain.updates, c.recipe.student_finetune.updates)
    for task in record['tasks'].values():
        ratio = flops(task, 'no_teacher_equal_flops') / flops(task, 'two_stage')
        assert ratio == pytest.approx(1, abs=0.5 / updates)  # updates are whole numbers


@every_family
def test_equal_flops_baseline_costs_as_much_as_distillation(family):
    check_equal_flops(*expand(family))


def test_stage_1_by_matching_differs_from_the_pretraining_of_baselines():
    c = load('bert', ('topic', 'pairs'), (0, 1))
    c.recipe.stage1_objective, c.matching.hidden = 'match', 1.0
    c.data.mask_rate = 0.3  # read by the baselines' objective only
    c.recipe.student_pretrain.sweep_lambda = (0.5, 0.9)
    runs, record = plan.expand(c)
    for name, run in runs.items():
        validate.validate(run)
        is_stage1 = name.endswith('/stage1')
        assert run.matching.hidden == (1.0 if is_stage1 else 0.0), name
        if is_stage1:
            assert (run.objective, run.student.head) == ('match', 'none')
            assert run.loss.lambda_ == 0
        elif 'pretrain' in name.split('/')[-1]:
            assert (run.objective, run.student.head, run.data.mask_rate) == ('mlm', 'lm', 0.3)
        else:
            assert run.student.init_new_head
            assert run.objective == 'classify'
    check_equal_flops(c, runs, record)


def test_stage_2_has_the_matching_losses_of_its_task(monkeypatch):
    c = load('bert', ('topic',), (0,))
    tasks = plan.load_tasks(c)
    tasks['topic'].matching.pooled = 0.5
    monkeypatch.setattr(plan, 'load_tasks', lambda _: tasks)
    runs, _ = plan.expand(c)
    weights = {name for name, run in runs.items() if run.matching.pooled == 0.5}
    assert weights == {'seed0/two_stage', 'seed0/stage2_only'}


def test_head_of_an_imported_teacher_is_trained_first():
    c = load('bert', ('topic',), (0,))
    c.teacher.path, c.recipe.teacher_head = 'teachers/minilm', True
    runs, record = plan.expand(c)
    first = runs['teacher_pretrain']
    assert (first.student.init, first.student.init_new_head) == ('teachers/minilm', True)
    assert (first.objective, first.teacher.path) == ('mlm', '')
    assert runs['teacher_finetune'].student.init == 'work/teacher_pretrain'
    assert runs['seed0/stage1'].teacher.path == 'work/teacher_pretrain'
    assert record['tasks']['topic']['teacher'] == ['teacher_pretrain', 'teacher_finetune']


@every_family
def test_students_and_tasks_share_pretraining_per_seed(family):
    c, runs, record = expand(family)
    tasks, seeds = len(c.recipe.tasks), len(c.recipe.seeds)
    assert {student['runs'][0] for student in students_of(record)} == {
        f'seed{seed}/{name}'
        for seed in c.recipe.seeds
        for name in ('stage1', 'pretrain', 'pretrain_equal_flops')
    }
    assert len(runs) == 1 + tasks + (3 + 5 * tasks) * seeds
    for student in students_of(record):
        first, last = (runs[name] for name in student['runs'])
        assert last.student.init == first.workdir


def test_runs_of_a_single_task_have_no_task_folder():
    _, runs, _ = expand('mass')
    assert list(runs) == [
        'teacher_pretrain',
        'teacher_finetune',
        'seed0/stage1',
        'seed0/two_stage',
        'seed0/stage1_only',
        'seed0/pretrain',
        'seed0/stage2_only',
        'seed0/no_teacher',
        'seed0/pretrain_equal_flops',
        'seed0/no_teacher_equal_flops',
    ]
    c = load('full', ('text',), (0,))
    assert list(plan.expand(c)[0]) == list(runs)


def test_finetuning_runs_of_several_tasks_have_task_folders():
    _, runs, _ = expand('bert')
    shared = {name for name in runs if not name.startswith(('topic/', 'pairs/'))}
    assert shared == {'teacher_pretrain'} | {
        f'seed{seed}/{name}'
        for seed in (0, 1)
        for name in ('stage1', 'pretrain', 'pretrain_equal_flops')
    }
    for task in ('topic', 'pairs'):
        names = {name.removeprefix(f'{task}/') for name in runs if name.startswith(f'{task}/')}
        assert names == {'teacher_finetune'} | {
            f'seed{seed}/{student}'
            for seed in (0, 1)
            for student in plan.STUDENTS
            if student not in ('two_stage_unlabelled', 'no_teacher_equal_time')
        }


@pytest.mark.parametrize(
    ('family', 'task', 'pretraining', 'finetuning', 'head', 'classes'),
    [
        ('gpt2', 'text', 'clm', 'clm', 'lm', 0),
        ('bert', 'topic', 'mlm', 'classify', 'classify', len(pydocs.PACKAGES)),
        ('bert', 'pairs', 'mlm', 'classify', 'classify', 2),
        ('mass', 'summary', 'mass', 'seq2seq', 'lm', 0),
    ],
)
def test_runs_have_the_objective_and_head_of_their_task(
    family, task, pretraining, finetuning, head, classes
):
    _, runs, record = expand(family)
    entry = record['tasks'][task]
    for names in (entry['teacher'], *(student['runs'] for student in entry['students'])):
        first, last = (runs[name] for name in names)
        assert (first.objective, first.data.view) == (pretraining, 'text')
        assert (first.student.head, first.student.classes) == ('lm', 0)
        assert (first.student.init, first.student.init_new_head) == ('scratch', False)
        assert (last.objective, last.data.view) == (finetuning, task)
        assert (last.student.head, last.student.classes) == (head, classes)
        assert last.student.init_new_head == (head == 'classify')


@pytest.mark.parametrize(
    ('family', 'keys'),
    [
        ('gpt2', ('layers', 'width')),
        ('bert', ('layers', 'width')),
        ('mass', ('layers', 'decoder_layers', 'width')),
    ],
)
def test_teacher_and_student_runs_have_their_own_shapes(family, keys):
    c, runs, record = expand(family)
    teachers = {run for task in record['tasks'].values() for run in task['teacher']}
    for name, run in runs.items():
        network = c.teacher if name in teachers else c.student
        assert [run.student[key] for key in keys] == [network[key] for key in keys], name


@every_family
def test_paper_scale_students_use_dropout_in_finetuning_only(family):
    c = flags.load(str(QUICKSTART.with_name(f'{family}.py')))
    c.teacher.update({'layers': 6, 'width': 64, 'heads': 4, 'ffn': 64, 'family': family})
    c.teacher.decoder_layers = c.student.decoder_layers and 6
    runs, record = plan.expand(c)
    stages = [[runs[name] for name in student['runs']] for student in students_of(record)]
    assert {(first.student.dropout, last.student.dropout) for first, last in stages} == {(0.0, 0.1)}


def test_task_of_another_family_is_rejected():
    c = load('full', ('topic',), (0,))
    with pytest.raises(UserError, match="topic: family 'bert' must be that of the recipe, 'gpt2'"):
        plan.expand(c)


def test_recipe_rejects_missing_unnamed_and_unknown_tasks():
    c = load('full', (), (0,))
    with pytest.raises(UserError, match='must name at least one FILE'):
        plan.expand(c)
    c.recipe.tasks = (f'{QUICKSTART}:text', f'{QUICKSTART.parent}/gpt2_stage1.py:tiny')
    with pytest.raises(UserError, match=r"config\.task = '': must be a unique name"):
        plan.expand(c)
    for key in ('equal_flops', 'equal_time'):
        c = load('full', ('text',), (0,))
        c.recipe[key] = ('texts',)
        with pytest.raises(UserError, match=f'recipe.{key}.*must be one of text; did you mean'):
            plan.expand(c)


FAMILIES = {
    'bert': ('SST-2', 'QQP', 'Polarity'),
    'gpt2': ('WikiText-2', 'PTB', 'Documentation'),
    'mass': ('Multi30k En-De', 'Summarization', 'Dialogue'),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_small_recipe_has_three_tasks_and_every_student(family):
    c = flags.load(f'{QUICKSTART.parent}/{family}.py:small')
    c.workdir, c.recipe.data = 'work', '/elsewhere'
    runs, record = plan.expand(c)
    assert tuple(record['tasks']) == FAMILIES[family]
    assert models.build(c.student).parameter_count * 4.5 <= models.build(c.teacher).parameter_count
    assert len(c.recipe.seeds) >= 2
    names = [student['student'] for student in students_of(record)]
    assert set(list(plan.STUDENTS)[:4]) <= set(names)
    assert 'no_teacher_equal_flops' in names
    assert ('two_stage_unlabelled' in names) == (family == 'bert')
    for name, run in runs.items():
        paths = [run.data.path, *run.data.mixture, *run.data.decontaminate, *run.data.unlabelled]
        assert not any(path.startswith('data/') or ':data/' in path for path in paths), name
        assert bool(run.data.unlabelled) == ('two_stage_unlabelled' in name)


def execute(c, ratios=None, measure=None):
    """Executes a plan that trains nothing; returns its sweeps and its record."""
    sweeps, record = [], {} if ratios is None else {'step_time_ratios': ratios}

    def choose_last(sweep):
        sweeps.append(sweep)
        return list(sweep.runs)[-1]

    plan.Plan(c, plan.load_tasks(c), choose_last, measure or (lambda *_: 1.0), record).execute()
    return sweeps, record


def test_first_seed_sweeps_and_later_seeds_use_its_choice():
    c = load('bert', ('topic',), (0, 1))
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 3e-3)
    c.recipe.student_finetune.sweep_lambda = (0.5, 0.9)
    c.recipe.equal_flops = ()
    sweeps, _ = execute(c)
    for sweep in sweeps:
        for run in sweep.runs.values():
            assert bool(run.loss.lambda_) == bool(run.teacher.path)
        if 'seed1' in next(iter(sweep.runs)) and sweep.phase == 'student_finetune':
            (run,) = sweep.runs.values()
            assert run.optim.peak_lr == 3e-3
            assert run.loss.lambda_ == (0.9 if run.teacher.path else 0)
    runs = [list(sweep.runs) for sweep in sweeps]
    assert ['seed1/two_stage'] in runs
    assert [
        'seed0/two_stage/lr0.001_lambda0.5',
        'seed0/two_stage/lr0.001_lambda0.9',
        'seed0/two_stage/lr0.003_lambda0.5',
        'seed0/two_stage/lr0.003_lambda0.9',
    ] in runs
    assert ['seed0/no_teacher/lr0.001', 'seed0/no_teacher/lr0.003'] in runs


def test_equal_time_baseline_multiplies_updates_by_the_ratio_measured_once():
    c, pairs = load('bert', ('topic', 'pairs'), (0, 1)), []
    c.recipe.equal_time = ('topic',)

    def measure(distilled, plain):
        pairs.append((distilled.workdir, plain.workdir))
        return 1.5 if len(pairs) == 1 else 2.0

    sweeps, record = execute(c, measure=measure)
    assert pairs == [
        ('work/seed0/stage1', 'work/seed0/pretrain'),
        ('work/topic/seed0/two_stage', 'work/topic/seed0/no_teacher'),
    ]
    assert record['step_time_ratios'] == {'': 1.5, 'topic': 2.0}
    runs = {name: run for sweep in sweeps for name, run in sweep.runs.items()}
    for seed in (0, 1):
        pretrain = runs[f'seed{seed}/pretrain_equal_time']
        assert pretrain.train.updates == 1.5 * c.recipe.student_pretrain.updates
        finetune = runs[f'topic/seed{seed}/no_teacher_equal_time']
        assert finetune.train.updates == 2 * c.recipe.student_finetune.updates
        assert finetune.optim.warmup == 2 * c.recipe.student_finetune.warmup
        assert f'pairs/seed{seed}/no_teacher_equal_time' not in runs


def test_stored_step_time_ratios_are_not_measured_again():
    c = load('bert', ('topic',), (0,))
    c.recipe.equal_time = ('topic',)

    def measure(*_):
        raise AssertionError('must not be measured')

    sweeps, record = execute(c, {'': 1.25, 'topic': 3.0}, measure)
    runs = {name: run for sweep in sweeps for name, run in sweep.runs.items()}
    updates = runs['seed0/no_teacher_equal_time'].train.updates
    assert updates == 3 * c.recipe.student_finetune.updates
    assert record['step_time_ratios'] == {'': 1.25, 'topic': 3.0}


def test_sweeps_on_a_share_of_updates_run_their_choice_in_full():
    c = load('bert', ('topic',), (0, 1))
    budget = c.recipe.student_finetune
    budget.sweep_peak_lr, c.recipe.sweep_share = (1e-3, 3e-3), 1 / 3
    sweeps, _ = execute(c)
    swept = {name: s.share for s in sweeps for name in s.runs if 'two_stage' in name}
    assert swept == {
        'sweep/seed0/two_stage/lr0.001': 1 / 3,
        'sweep/seed0/two_stage/lr0.003': 1 / 3,
        'seed0/two_stage': 1.0,
        'seed1/two_stage': 1.0,
    }
    runs = {name: run for sweep in sweeps for name, run in sweep.runs.items()}
    for name in swept:
        share = 1 / 3 if name.startswith('sweep/') else 1
        assert runs[name].train.updates == round(share * budget.updates)
        assert runs[name].optim.warmup == round(share * budget.warmup)
    assert runs['seed0/two_stage'].optim.peak_lr == runs['seed1/two_stage'].optim.peak_lr == 3e-3


@pytest.mark.parametrize('every', [False, True])
def test_sweep_all_gives_baselines_at_equal_cost_their_own_sweeps(every):
    c = load('bert', ('topic',), (0,))
    c.recipe.equal_time, c.recipe.sweep_all = ('topic',), every
    c.recipe.student_pretrain.sweep_peak_lr = (1e-3, 3e-3)
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 3e-3)
    sizes = {next(iter(s.runs)).split('/lr')[0]: len(s.runs) for s in execute(c)[0]}
    for name in ('pretrain_equal_flops', 'pretrain_equal_time'):
        assert sizes[f'seed0/{name}'] == 1 + every
    for name in ('no_teacher_equal_flops', 'no_teacher_equal_time'):
        assert sizes[f'seed0/{name}'] == 1 + every
    assert sizes['seed0/no_teacher'] == sizes['seed0/two_stage'] == 2


def test_every_run_has_equally_many_validations_and_keeps_its_best():
    c = load('bert', ('topic',), (0,))
    c.recipe.validations, c.recipe.sweep_share = 7, 0.3
    c.recipe.student_finetune.sweep_peak_lr = (1e-3, 3e-3)
    for name, run in plan.expand(c)[0].items():
        validations = -(-run.train.updates // run.train.eval_every)
        assert validations == 7, name
        assert run.train.keep_best == ('perplexity' if run.objective == 'mlm' else 'accuracy')


def test_runs_with_a_teacher_share_its_cache_but_not_those_with_augmentation(monkeypatch):
    c = load('bert', ('topic', 'pairs'), (0,))
    c.teacher.cache, c.teacher.cache_epochs = 'cache', 4
    tasks = plan.load_tasks(c)
    tasks['pairs'].data.update({'augment': 0.5, 'augment_mask': 0.1})
    monkeypatch.setattr(plan, 'load_tasks', lambda _: tasks)
    runs, _ = plan.expand(c)
    caches = {name: run.teacher.cache_epochs for name, run in runs.items() if run.teacher.cache}
    assert caches == {'seed0/stage1': 4, 'topic/seed0/two_stage': 1, 'topic/seed0/stage2_only': 1}
    for run in runs.values():
        assert run.teacher.cache_epochs == 1 or run.objective == 'mlm'


def test_unlabelled_text_is_read_in_every_stage_2_with_a_teacher(monkeypatch):
    c = load('bert', ('topic',), (0,))
    c.recipe.unlabelled = 'stage2'
    tasks = plan.load_tasks(c)
    tasks['topic'].data.unlabelled = ('pydocs?view=topic#train',)
    tasks['topic'].data.unlabelled_share = 0.5
    monkeypatch.setattr(plan, 'load_tasks', lambda _: tasks)
    runs, record = plan.expand(c)
    students = [student['student'] for student in students_of(record)]
    assert 'two_stage_unlabelled' not in students
    readers = {name: run.data.unlabelled_share for name, run in runs.items() if run.data.unlabelled}
    assert readers == {'seed0/two_stage': 0.5, 'seed0/stage2_only': 0.5}


@pytest.mark.parametrize('preset', ['', ':small', ':tiny', ':ci'])
@pytest.mark.parametrize('name', FAMILIES)
def test_report_accepts_the_scale_of_every_recipe(name, preset):
    c = flags.load(f'{QUICKSTART.with_name(name)}.py{preset}')
    assert c.recipe.scale
    paper_table.check('recipe.json', {'family': c.student.family, 'scale': c.recipe.scale})


def test_student_is_at_least_4_5_times_smaller_than_teacher():
    c, _, _ = expand('gpt2')
    assert models.build(c.student).parameter_count * 4.5 <= models.build(c.teacher).parameter_count


def test_pretraining_and_finetuning_read_different_packages():
    c, runs, record = expand('gpt2')
    finetuning = set(runs[record['tasks']['text']['teacher'][-1]].data.packages)
    assert finetuning
    assert c.data.packages
    assert not set(c.data.packages) & finetuning


def test_only_students_read_augmented_rows_and_baselines_keep_labels():
    c, runs = load(*CASES['bert']), {}
    tasks = plan.load_tasks(c)
    for task in tasks.values():
        task.data.update({'augment': 0.5, 'augment_mask': 0.1, 'augment_pairs': 0.2})

    def choose_last(sweep):
        runs.update(sweep.runs)
        return list(sweep.runs)[-1]

    plan.Plan(c, tasks, choose_last, lambda *_: 1.0, {}).execute()
    finetuned = [run for run in runs.values() if run.objective == 'classify']
    teachers = [run for run in finetuned if run.student.layers == c.teacher.layers]
    students = [run for run in finetuned if run.student.layers == c.student.layers]
    assert {run.data.augment for run in teachers} == {0}
    assert {run.data.augment for run in students} == {0.5}
    for run in students:
        has_teacher = bool(run.teacher.path)
        assert run.data.augment_keep_labels != has_teacher
        assert run.data.augment_pairs == (0.2 if has_teacher else 0)


def test_students_reduce_the_vocabulary_of_a_whole_teacher():
    c = load('bert', ('topic',), (0,))
    c.tokenizer.path, c.tokenizer.reduce = 'data/vocab', ('text:data/text',)
    c.teacher.vocab_size, c.recipe.data = 2 * c.student.vocab_size, '/sets'
    runs, _ = plan.expand(c)
    for name, run in runs.items():
        is_teacher = 'teacher_pretrain' in name or 'teacher_finetune' in name
        assert run.tokenizer.reduce == (() if is_teacher else ('text:/sets/text',)), name
        assert run.student.vocab_size == (c.teacher if is_teacher else c.student).vocab_size, name
        assert run.tokenizer.path == 'data/vocab', name
