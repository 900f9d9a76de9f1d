"""The graph of runs that makes one student and its tables: in order, done ones skipped.

teacher_pretrain -> teacher_finetune of each task
       |                   |
       v                   v
pre-training, stage 1 -> fine-tuning, stage 2 (two_stage)
... and its controls: no teacher in one stage, or in both, at the same number of updates;
or no teacher at the same FLOPs; or a teacher that speaks of text without labels too.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Generator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import command, config, processes, validation

USAGE = """
python -m lightpaff_jax.recipe --config=FILE[:VARIANT] [--config.KEY=VALUE ...]

Runs the whole chain into config.workdir (default: runs/<config name>): teacher pre-training and
fine-tuning, stage 1, stage 2, the controls, evaluation, speed, report.md and report.html. Started
again, it skips the runs that are done and resumes the one that is not.

config.student and config.teacher are the two networks, config.data is what both are pre-trained
on, config.recipe has the four arrows and names the tasks.
"""

SET_BY_RECIPE = (
    'student.init', 'student.new_head', 'loss.lambda_', 'loss.temperature', 'optim.peak_lr',
    'optim.warmup', 'data.batch_size', 'train.updates', 'task', 'eval.metric',
)  # fmt: skip
"""Keys that each run of a recipe has its own value of."""


class Arm(NamedTuple):
    """One way to make the student of a task."""

    pretrain: str
    """Its pre-training run."""
    guided: bool
    """Whether a teacher guides its fine-tuning."""
    like: str = ''
    """The arm whose learning rate and weight of the teacher it takes; '': it has its own search."""


ARMS = {
    'two_stage': Arm('stage1', True),
    'stage1_only': Arm('stage1', False),
    'stage2_only': Arm('pretrain', True),
    'no_teacher': Arm('pretrain', False),
    'no_teacher_equal_flops': Arm('pretrain_equal_flops', False, like='no_teacher'),
    'two_stage_unlabelled': Arm('stage1', True, like='two_stage'),
}


class Step(NamedTuple):
    """Runs of which one is taken."""

    phase: str
    task: str
    """Its name; '' in pre-training."""
    arm: str
    runs: dict[str, ConfigDict]
    """Name, which is the folder in the recipe's workdir -> configuration."""


@dataclasses.dataclass
class Chain:
    """The runs of a recipe, one step after the other, and what recipe.json says of them."""

    c: ConfigDict
    tasks: dict[str, ConfigDict]
    """Name -> configuration."""
    picked: dict[tuple[str, str, str], tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )
    """(phase, task, arm) -> the learning rate and weight of the teacher that were taken."""
    table: dict[str, Any] = dataclasses.field(default_factory=dict)

    def steps(self) -> Generator[Step, str, None]:
        """Yields steps; is sent the name of the run that is taken of each.

        A run's name is its folder. One teacher serves all seeds; the pre-training of a seed serves
        all tasks. The first seed searches, the others take what it found.
        """
        c = self.c
        self.table |= {'tasks': {}, 'search': []}
        taught, before = {}, []
        origin = c.teacher.path
        if not origin:
            r = self._pretraining('teacher_pretrain', c.teacher, c.seed)
            name = yield from self._step('teacher_pretrain', 'teacher_pretrain', '', 'teacher', r)
            before, origin = [name], f'{c.workdir}/{name}'
        for task, t in self.tasks.items():
            r = self._finetuning(t, 'teacher_finetune', c.teacher, c.seed)
            _start(r, origin)
            name = f'{self._inside(task)}teacher_finetune'
            taught[task] = yield from self._step(name, 'teacher_finetune', task, 'teacher', r)
            teacher = [*before, taught[task]]
            self.table['tasks'][task] = {'note': '', 'teacher': teacher, 'arms': []}
        for seed in c.recipe.seeds:
            first: dict[str, str] = {}
            for task in self.tasks:
                for arm in self._arms(task):
                    yield from self._arm(seed, task, arm, origin, taught[task], first)

    def _arm(
        self, seed: int, task: str, name: str, origin: str, taught: str, first: dict[str, str]
    ) -> Generator[Step, str, None]:
        """Both runs of an arm; `first` has the pre-training runs of this seed."""
        c, arm, t = self.c, ARMS[name], self.tasks[task]
        if arm.pretrain not in first:
            longer = arm.pretrain == 'pretrain_equal_flops'
            r = self._pretraining('student_pretrain', c.student, seed, longer)
            teacher = origin if arm.pretrain == 'stage1' else ''
            slot = 'stage1' if teacher else 'pretrain'
            first[arm.pretrain] = yield from self._step(
                f'seed{seed}/{arm.pretrain}', 'student_pretrain', '', slot, r, teacher
            )
        longer = name == 'no_teacher_equal_flops'
        r = self._finetuning(t, 'student_finetune', c.student, seed, longer)
        _start(r, f'{c.workdir}/{first[arm.pretrain]}')
        if name == 'two_stage_unlabelled':
            r.data.unlabelled = _moved(c, t.data.unlabelled)
        last = yield from self._step(
            f'{self._inside(task)}seed{seed}/{name}', 'student_finetune', task, arm.like or name, r,
            f'{c.workdir}/{taught}' if arm.guided else '',
        )  # fmt: skip
        runs = [first[arm.pretrain], last]
        self.table['tasks'][task]['arms'].append({'arm': name, 'seed': seed, 'runs': runs})

    def _arms(self, task: str) -> list[str]:
        wanted = self.c.recipe.equal_flops
        absent = [] if not wanted or task in wanted else ['no_teacher_equal_flops']
        if not self.tasks[task].data.unlabelled:
            absent.append('two_stage_unlabelled')
        return [arm for arm in ARMS if arm not in absent]

    def _inside(self, task: str) -> str:
        return f'{slug(task)}/' if len(self.tasks) > 1 else ''

    def _step(
        self, name: str, phase: str, task: str, arm: str, r: ConfigDict, teacher: str = ''
    ) -> Generator[Step, str, str]:
        """The run `r` with every learning rate and weight of the teacher to choose from."""
        p, slot = self._phase(phase, task), (phase, task, arm)
        rates = p.peak_lrs or (p.peak_lr,)
        weights = (p.lambdas or (p.lambda_,)) if teacher else (0.0,)
        grid = [*itertools.product(rates, weights)]
        if slot in self.picked:
            grid = [self.picked[slot]]
        runs = {}
        for rate, weight in grid:
            one = config.copy(r)
            one.optim.peak_lr = rate
            one.teacher.path = teacher
            one.loss.lambda_ = weight
            one.loss.temperature = p.temperature if teacher else 1.0
            folder = name
            if len(grid) > 1:
                folder += f'/lr{rate:g}' + (f'_lambda{weight:g}' if len(weights) > 1 else '')
            one.workdir = f'{self.c.workdir}/{folder}'
            runs[folder] = one
        chosen = yield Step(phase, task, arm, runs)
        self.picked[slot] = grid[[*runs].index(chosen)]
        return chosen

    def _phase(self, phase: str, task: str) -> ConfigDict:
        """The recipe's, or the task's own where the recipe has none."""
        ours = self.c.recipe[phase]
        return ours if ours.updates or not task else self.tasks[task].recipe[phase]

    def _pretraining(self, phase: str, network: ConfigDict, seed: int, longer: bool = False):
        r = config.copy(self.c)
        r.data.path, r.data.mixture = _moved(r, r.data.path), _moved(r, r.data.mixture)
        r.data.exclude = _moved(r, r.data.exclude)
        return self._run(r, phase, '', network, seed, longer)

    def _finetuning(
        self, t: ConfigDict, phase: str, network: ConfigDict, seed: int, longer: bool = False
    ):
        """What is learnt and how it is scored is the task's; the machine's keys are the recipe's."""
        r = config.copy(self.c)
        r.task, r.objective = t.task, t.objective
        r.student.head, r.student.classes = t.student.head, t.student.classes
        kept = {key: r.data[key] for key in ('cache', 'workers', 'prefetch')}
        for section in ('data', 'eval', 'generate', 'optim'):
            r[section].update(t[section].to_dict())
        r.data.update(kept)
        r.data.path, r.data.exclude = _moved(r, t.data.path), _moved(r, t.data.exclude)
        r.data.unlabelled = ()
        return self._run(r, phase, t.task, network, seed, longer)

    def _run(self, r, phase: str, task: str, network: ConfigDict, seed: int, longer: bool):
        """A run without a teacher; `longer`: as many FLOPs as distilling takes, by more updates."""
        p = self._phase(phase, task)
        for key in config.network():
            if key not in ('head', 'classes'):
                r.student[key] = network[key]
        r.student.init, r.seed = 'scratch', seed
        cost = _cost_of_teacher(self.c.teacher, r) if longer else 1.0
        r.teacher.update(config.network(layers=0).to_dict())
        config.take(r, p)
        r.train.updates, r.optim.warmup = round(p.updates * cost), round(p.warmup * cost)
        return r


def slug(task: str) -> str:
    """A task's name as a folder."""
    return re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')


def _moved(c: ConfigDict, paths: Any) -> Any:
    """A path, or entries with one, below the folder that stands for `data`."""
    if not c.recipe.data:
        return paths
    if isinstance(paths, str):
        return re.sub(r'^(\w+:)?data(?=/|$)', lambda m: (m[1] or '') + c.recipe.data, paths)
    return tuple(_moved(c, path) for path in paths)


def _start(r: ConfigDict, path: str) -> None:
    r.student.init = path
    r.student.new_head = r.student.head == 'classify'


def _cost_of_teacher(teacher: ConfigDict, r: ConfigDict) -> float:
    """FLOPs of a distilled update of run `r` over those of one without a teacher."""
    from lightpaff_jax import models
    from lightpaff_jax.data import objectives

    shape = objectives.OBJECTIVES[r.objective].shape(r)
    network = config.network(**{key: teacher[key] for key in config.network()})
    network.update({'head': r.student.head, 'classes': r.student.classes})
    student = 3 * models.build(r.student).flops(shape)
    return 1 + models.build(network).flops(shape) / student


def load_tasks(c: ConfigDict) -> dict[str, ConfigDict]:
    """Name -> configuration of each of `config.recipe.tasks`.

    Raises:
      UserError: none, one of another family, or without a name of its own; an unknown task in
        `config.recipe.equal_flops`.
    """
    if not c.recipe.tasks:
        raise config.UserError('config.recipe.tasks = (): must name a FILE[:VARIANT] at least')
    tasks: dict[str, ConfigDict] = {}
    for spec in c.recipe.tasks:
        t, where = command.load(spec), f'config.recipe.tasks = {spec}'
        if t.student.family != c.student.family:
            raise config.UserError(
                f'{where}: is of family {t.student.family!r}, the recipe of {c.student.family!r}'
            )
        if not slug(t.task) or slug(t.task) in map(slug, tasks):
            raise config.UserError(f'{where}: config.task = {t.task!r}: must be a name of its own')
        tasks[t.task] = t
    for name in c.recipe.equal_flops:
        if name not in tasks:
            near = config.nearest(name, list(tasks))
            rule = f'must be one of {", ".join(tasks)}{near}'
            raise config.UserError(f'config.recipe.equal_flops = {name!r}: {rule}')
    return tasks


def plan(c: ConfigDict) -> tuple[dict[str, ConfigDict], dict]:
    """Every run that there may be, in its order, and recipe.json were the first of each taken."""
    chain = Chain(c, load_tasks(c))
    runs: dict[str, ConfigDict] = {}
    steps = chain.steps()
    try:
        step = next(steps)
        while True:
            runs |= step.runs
            step = steps.send(next(iter(step.runs)))
    except StopIteration:
        return runs, chain.table


def run(c: ConfigDict) -> None:
    """Does what is left of the recipe and prints its tables."""
    import jax

    _check(c)
    runs, _ = plan(c)
    for name in config.PHASES:  # said of the key that sets it, not of the run's
        validation.check_batch(
            f'recipe.{name}.batch_size', c.recipe[name].batch_size, c, jax.device_count()
        )
    from lightpaff_jax import report, train, workdir

    for name, r in runs.items():
        try:
            train.check(r, runs=False)
        except config.UserError as error:
            raise type(error)(f'run {name}: {error}') from error

    folder = workdir.place(c)
    chain = Chain(c, load_tasks(c))
    told = {
        'name': pathlib.Path(c.workdir).name,
        'family': c.student.family,
        'scale': c.recipe.scale,
        'notes': list(c.recipe.notes),
        'command': f'python -m lightpaff_jax.recipe {shlex.join(sys.argv[1:])}',
    }
    chain.table |= told
    steps, done = chain.steps(), 0
    try:
        step = next(steps)
        while True:
            chosen = _choose(step, done, len(runs), chain.table['search'])
            done += len(step.runs)
            step = steps.send(chosen)
            workdir.write(folder / 'recipe.json', json.dumps(chain.table, indent=2) + '\n')
    except StopIteration:
        workdir.write(folder / 'recipe.json', json.dumps(chain.table, indent=2) + '\n')
    _measure(c, folder, chain, runs)
    if processes.first():
        print(report.write(folder))
        print(f'{folder}/report.html')


def _check(c: ConfigDict) -> None:
    if c.teacher.path:
        from lightpaff_jax import pretrained

        if not c.teacher.layers:
            c.teacher.update(pretrained.read_network('teacher.path', c.teacher.path).to_dict())
    elif not c.teacher.layers:
        raise config.UserError(
            'config.teacher.layers = 0: a recipe trains its teacher, give its shape, or a finished '
            'one in config.teacher.path'
        )
    for key in SET_BY_RECIPE:
        value, plain = config.flatten(c)[key], config.flatten(config.default())[key]
        if value != plain:
            raise config.UserError(
                f'config.{key} = {value}: a recipe sets it for each of its runs, from config.recipe'
            )


def _choose(step: Step, done: int, of: int, search: list[dict]) -> str:
    """Trains the runs of a step; the name of the best by its score on the validation split."""
    from lightpaff_jax import train

    scores: dict[str, float] = {}
    for number, (name, r) in enumerate(step.runs.items(), done + 1):
        processes.say(f'[{number}/{of}] {name}')
        r = config.copy(r)
        r.eval.test = len(step.runs) == 1
        result = train.train(r)
        scores[name] = result['scores']['validation'][result['metric']]
        sign = 1 if result['metric'] == 'perplexity' else -1
    if len(scores) == 1:
        return name
    chosen = min(scores, key=lambda name: _or_inf(sign * scores[name]))
    train.train(step.runs[chosen])  # scored on the test split, once
    candidates = [
        {'run': name, 'peak_lr': r.optim.peak_lr, 'lambda_': r.loss.lambda_, 'score': scores[name]}
        for name, r in step.runs.items()
    ]
    search.append(
        {'phase': step.phase, 'task': step.task, 'arm': step.arm, 'metric': result['metric'],
         'candidates': candidates, 'chosen': chosen}
    )  # fmt: skip
    return chosen


def _or_inf(value: float) -> float:
    """Of a run that diverged, the worst."""
    return value if value == value else float('inf')


def _measure(c: ConfigDict, folder: Any, chain: Chain, runs: dict[str, ConfigDict]) -> None:
    """speed.json: teacher against student of the first task, unless it is there."""
    from lightpaff_jax import speed, workdir

    if processes.of_first(lambda: (folder / 'speed.json').is_file()):
        return
    first = next(iter(chain.table['tasks'].values()))
    r = config.copy(runs[first['arms'][0]['runs'][-1]])
    r.teacher.path = f'{c.workdir}/{first["teacher"][-1]}'
    workdir.write(folder / 'speed.json', json.dumps(speed.compare(r), indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(command.main(run, USAGE))
