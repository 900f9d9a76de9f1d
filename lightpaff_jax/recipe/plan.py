"""What runs a recipe has, in which order, from what each starts and which teacher it has.

teacher_pretrain -> teacher_finetune of each task
       |                   |
       v                   v
pre-training, stage 1 -> fine-tuning, stage 2 (two_stage)
... and its controls: no teacher in one stage, or in both, at the same number of updates;
or no teacher at the same FLOPs; or a teacher that speaks of text without labels too.
"""

import dataclasses
import itertools
import re
from collections.abc import Generator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError, nearest


class Arm(NamedTuple):
    """One way to make the student of a task."""

    pretrain: str
    """Its pre-training run."""
    with_teacher: bool
    """Whether fine-tuning has a teacher."""
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
            self.table['tasks'][task] = {'teacher': teacher, 'arms': []}
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
            f'{c.workdir}/{taught}' if arm.with_teacher else '',
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
        rates = p.sweep_peak_lr or (p.peak_lr,)
        weights = (p.sweep_lambda or (p.lambda_,)) if teacher else (0.0,)
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
                folder += f'/lr{_short(rate)}'
                folder += f'_lambda{_short(weight)}' if len(weights) > 1 else ''
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
        r.data.decontaminate = _moved(r, r.data.decontaminate)
        return self._run(r, phase, '', network, seed, longer)

    def _finetuning(
        self, t: ConfigDict, phase: str, network: ConfigDict, seed: int, longer: bool = False
    ):
        """What is learnt and how it is scored is the task's; the machine's keys are the recipe's."""
        r = config.copy(self.c)
        r.task, r.objective = t.task, t.objective
        r.student.head, r.student.classes = t.student.head, t.student.classes
        kept = {key: r.data[key] for key in ('cache', 'workers', 'prefetch', 'tfds_dir')}
        size, batches = r.eval.batch_size, r.eval.batches
        for section in ('data', 'eval', 'generate', 'optim'):
            r[section].update(t[section].to_dict())
        r.data.update(kept)
        r.eval.batch_size = size
        r.eval.batches = min(t.eval.batches, batches or t.eval.batches)  # 0 reads all
        r.data.path, r.data.decontaminate = _moved(r, t.data.path), _moved(r, t.data.decontaminate)
        r.data.unlabelled = ()
        r = self._run(r, phase, t.task, network, seed, longer)
        if phase == 'student_finetune':
            r.student.dropout = t.student.dropout or r.student.dropout
        return r

    def _run(self, r, phase: str, task: str, network: ConfigDict, seed: int, longer: bool):
        """A run without a teacher; `longer`: as many FLOPs as distilling takes, by more updates."""
        p = self._phase(phase, task)
        for key in config.network():
            if key not in ('head', 'classes'):
                r.student[key] = network[key]
        r.student.init, r.seed = 'scratch', seed
        cost = _cost_of_teacher(self.c.teacher, r) if longer else 1.0
        r.teacher.update(config.network(layers=0).to_dict())
        config.use_phase(r, p)
        r.train.updates, r.optim.warmup = round(p.updates * cost), round(p.warmup * cost)
        return r


def _short(number: float) -> str:
    """0.001 and 1e-05, and every digit of what needs more than six."""
    return f'{number:g}' if float(f'{number:g}') == number else repr(number)


def slug(task: str) -> str:
    """A task's name as a folder."""
    return re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')


def _moved(c: ConfigDict, paths: Any) -> Any:
    """A path, or entries with one, below the folder that stands for `data`."""
    if not c.recipe.data:
        return paths
    if isinstance(paths, str):
        return re.sub(r'^(\w+:)?data(?=[/?#=]|$)', lambda m: (m[1] or '') + c.recipe.data, paths)
    return tuple(_moved(c, path) for path in paths)


def _start(r: ConfigDict, path: str) -> None:
    r.student.init = path
    r.student.init_new_head = r.student.head == 'classify'


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
        raise UserError('config.recipe.tasks = (): must name a FILE[:PRESET] at least')
    tasks: dict[str, ConfigDict] = {}
    for spec in c.recipe.tasks:
        t, where = flags.load(spec), f'config.recipe.tasks = {spec}'
        if t.student.family != c.student.family:
            raise UserError(
                f'{where}: is of family {t.student.family!r}, the recipe of {c.student.family!r}'
            )
        if not slug(t.task) or slug(t.task) in map(slug, tasks):
            raise UserError(f'{where}: config.task = {t.task!r}: must be a name of its own')
        tasks[t.task] = t
    for name in c.recipe.equal_flops:
        if name not in tasks:
            near = nearest(name, list(tasks))
            rule = f'must be one of {", ".join(tasks)}{near}'
            raise UserError(f'config.recipe.equal_flops = {name!r}: {rule}')
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
