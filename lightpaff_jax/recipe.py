"""The graph of runs that makes one student and its table: in order, done ones skipped.

teacher_pretrain -> teacher_finetune
       |                   |
       v                   v
pre-training, stage 1 -> fine-tuning, stage 2 (two_stage)
... and its controls: no teacher in one stage, or in both, at the same number of updates;
or no teacher at the same FLOPs.
"""

import json
import pathlib
import shlex
import sys

from ml_collections import ConfigDict

from lightpaff_jax import command, config, processes, validation

USAGE = """
python -m lightpaff_jax.recipe --config=FILE[:VARIANT] [--config.KEY=VALUE ...]

Runs the whole chain into config.workdir (default: runs/<config name>): teacher pre-training and
fine-tuning, stage 1, stage 2, the controls, evaluation, speed, report.md and report.html. Started
again, it skips the runs that are done and resumes the one that is not.

config.student and config.teacher are the two networks, config.recipe the four arrows.
"""

SET_BY_RECIPE = (
    'student.init', 'student.new_head', 'teacher.path', 'loss.lambda_', 'loss.temperature',
    'optim.peak_lr', 'optim.warmup', 'data.batch_size', 'data.form', 'data.packages', 'data.path',
    'train.updates',
)  # fmt: skip
"""Keys that each run of a recipe has its own value of."""

ARMS = {
    'two_stage': ('stage1', True),
    'stage1_only': ('stage1', False),
    'stage2_only': ('pretrain', True),
    'no_teacher': ('pretrain', False),
    'no_teacher_equal_flops': ('pretrain_equal_flops', False),
}
"""Arm -> the student's pre-training run, and whether a teacher guides its fine-tuning."""


def plan(c: ConfigDict) -> tuple[dict[str, ConfigDict], dict]:
    """Run name -> its configuration, in an order in which each finds what it needs; recipe.json.

    A run's name is its folder in c.workdir. One teacher serves all seeds; the pre-training of
    a seed serves all tasks.

    Raises:
      UserError: a task that the family does not learn.
    """
    runs = {'teacher_pretrain': _run(c, 'teacher_pretrain', c.teacher, c.seed)}
    tasks: dict[str, dict] = {}
    for task in c.recipe.tasks:
        inside = f'{task}/' if len(c.recipe.tasks) > 1 else ''
        taught = f'{inside}teacher_finetune'
        runs[taught] = _run(c, 'teacher_finetune', c.teacher, c.seed, task)
        _start(c, runs[taught], 'teacher_pretrain')
        tasks[task] = {'teacher': ['teacher_pretrain', taught], 'arms': []}
    for seed in c.recipe.seeds:
        for task in c.recipe.tasks:
            inside = f'{task}/' if len(c.recipe.tasks) > 1 else ''
            for arm, (pretrain, guided) in ARMS.items():
                first, last = f'seed{seed}/{pretrain}', f'{inside}seed{seed}/{arm}'
                longer = arm == 'no_teacher_equal_flops'
                if first not in runs:
                    runs[first] = _run(c, 'student_pretrain', c.student, seed, longer=longer)
                    if pretrain == 'stage1':
                        _guide(c, runs[first], 'student_pretrain', 'teacher_pretrain')
                runs[last] = _run(c, 'student_finetune', c.student, seed, task, longer)
                _start(c, runs[last], first)
                if guided:
                    _guide(c, runs[last], 'student_finetune', f'{inside}teacher_finetune')
                tasks[task]['arms'].append({'arm': arm, 'seed': seed, 'runs': [first, last]})
    for name, r in runs.items():
        r.workdir = f'{c.workdir}/{name}'
    return runs, {'name': pathlib.Path(c.workdir).name, 'tasks': tasks}


def _run(c: ConfigDict, phase: str, network: ConfigDict, seed: int, task: str = '',
         longer: bool = False):  # fmt: skip
    """A run without a teacher: the network's shape and the phase's settings.

    Args:
      c: the recipe's configuration.
      phase: its section of `config.recipe`.
      network: of the student or the teacher.
      seed: of initialisation and order.
      task: form that is fine-tuned for; '' pre-trains.
      longer: whether to take as many FLOPs as distilling takes, by more updates.
    """
    r, p = config.copy(c), c.recipe[phase]
    for key in config.network():
        r.student[key] = network[key]
    r.student.init = 'scratch'
    r.teacher.layers, r.teacher.path = 0, ''
    r.seed = seed
    r.data.batch_size = p.batch_size
    r.data.packages = p.packages
    r.data.path = p.path
    _set_task(r, task)
    cost = _cost_of_teacher(c, r) if longer else 1.0
    r.train.updates = round(p.updates * cost)
    r.optim.warmup = round(p.warmup * cost)
    r.optim.peak_lr = p.peak_lr
    if r.data.source == 'text' and not r.tokenizer.path:
        r.tokenizer.text = r.tokenizer.text or c.recipe.teacher_pretrain.path
    r.loss.lambda_, r.loss.temperature = 0.0, 1.0
    return r


def _set_task(r: ConfigDict, task: str) -> None:
    """What is learnt, from which form of the data, with which head."""
    from lightpaff_jax.data import sources

    family = r.student.family
    form = task or 'text'
    fitting = [o for o in config.OBJECTIVES[family] if config.LEARNS_FROM[o] == config.FORMS[form]]
    if not fitting:
        raise config.UserError(
            f'config.recipe.tasks = {task}: must be a form that family {family!r} learns'
        )
    r.objective = fitting[0]
    r.data.form = form
    if r.objective == 'classify':
        r.student.head, r.student.classes = 'classify', sources.classes(r)


def _start(c: ConfigDict, r: ConfigDict, before: str) -> None:
    r.student.init = f'{c.workdir}/{before}'
    r.student.new_head = r.student.head == 'classify'


def _guide(c: ConfigDict, r: ConfigDict, phase: str, teacher: str) -> None:
    r.teacher.path = f'{c.workdir}/{teacher}'
    r.loss.lambda_ = c.recipe[phase].lambda_
    r.loss.temperature = c.recipe[phase].temperature


def _cost_of_teacher(c: ConfigDict, r: ConfigDict) -> float:
    """FLOPs of a distilled update of run `r` over those of one without a teacher."""
    from lightpaff_jax import models
    from lightpaff_jax.data import objectives

    shape = objectives.OBJECTIVES[r.objective].shape(r)
    teacher = config.copy(c).teacher
    teacher.update({'head': r.student.head, 'classes': r.student.classes})
    student = 3 * models.build(r.student).flops(shape)
    return 1 + models.build(teacher).flops(shape) / student


def run(c: ConfigDict) -> None:
    """Does what is left of the recipe and prints its table."""
    import jax

    if not c.teacher.layers:
        raise config.UserError(
            'config.teacher.layers = 0: a recipe trains its teacher, give its shape'
        )
    for key in SET_BY_RECIPE:
        section, leaf = key.split('.')
        if c[section][leaf] != config.default()[section][leaf]:
            raise config.UserError(
                f'config.{key} = {c[section][leaf]}: a recipe sets it for each of its runs, from '
                f'config.recipe'
            )
    runs, table = plan(c)
    devices = jax.device_count()
    for name, p in c.recipe.items():
        if name not in ('seeds', 'tasks'):  # said of the key that sets it, not of the run's
            validation.check_batch(f'recipe.{name}.batch_size', p.batch_size, c, devices)
    from lightpaff_jax import report, speed, train, workdir

    for name, r in runs.items():
        try:
            train.check(r, runs=False)
        except config.UserError as error:
            raise config.UserError(f'run {name}: {error}') from error

    folder = workdir.place(c)
    table['command'] = f'python -m lightpaff_jax.recipe {shlex.join(sys.argv[1:])}'
    workdir.write(folder / 'recipe.json', json.dumps(table, indent=2) + '\n')
    for number, (name, r) in enumerate(runs.items(), 1):
        processes.say(f'[{number}/{len(runs)}] {name}')
        train.train(r)
    if not processes.of_first(lambda: (folder / 'speed.json').is_file()):
        first = table['tasks'][c.recipe.tasks[0]]
        student = first['arms'][0]['runs'][-1]
        r = config.copy(runs[student])
        r.teacher.path = f'{c.workdir}/{first["teacher"][-1]}'
        found = speed.compare(r)
        workdir.write(folder / 'speed.json', json.dumps(found, indent=2) + '\n')
    if processes.first():
        print(report.write(folder))
        print(f'{folder}/report.html')


if __name__ == '__main__':
    sys.exit(command.main(run, USAGE))
