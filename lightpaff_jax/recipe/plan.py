"""The plan of a recipe: its runs, their order, and which teacher each run distills from.

    teacher pre-training  ->  teacher fine-tuning, one per task
             |                          |
             v                          v
    student pre-training  ->  student fine-tuning, one per task
         (stage 1)                  (stage 2)

Stage 1 may have an objective of its own, `recipe.stage1_objective`, such as matching losses.
The student `two_stage` distills in both stages. The ablations distill in one stage only, the
baselines in neither: `no_teacher` has the same number of updates, `no_teacher_equal_flops` the same
training FLOPs, `no_teacher_equal_time` the same training time. `two_stage_unlabelled` adds unlabelled
text to stage 2.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags
from lightpaff_jax.errors import UserError, nearest


class Student(NamedTuple):
    """A way to train the student of a task: the two-stage method, an ablation or a baseline."""

    pretrain: str  # name of its pre-training run
    with_teacher: bool  # whether its fine-tuning distills from the fine-tuned teacher
    shares_sweep: str = ''  # the student whose sweep serves it too, unless `recipe.sweep_all`
    equal: str = 'updates'  # the cost that it shares with two_stage: 'updates', 'FLOPs' or 'time'


STUDENTS = {
    'two_stage': Student('stage1', True),
    'stage1_only': Student('stage1', False),
    'stage2_only': Student('pretrain', True),
    'no_teacher': Student('pretrain', False),
    'no_teacher_equal_flops': Student('pretrain_equal_flops', False, 'no_teacher', 'FLOPs'),
    'no_teacher_equal_time': Student('pretrain_equal_time', False, 'no_teacher', 'time'),
    'two_stage_unlabelled': Student('stage1', True, shares_sweep='two_stage'),
}


class Sweep(NamedTuple):
    """Runs that differ in peak learning rate and lambda; the best one on validation is kept."""

    phase: str
    task: str  # '' in pre-training
    student: str  # key of STUDENTS, 'teacher', or the name of a pre-training run
    runs: dict[str, ConfigDict]  # by the run's folder inside the recipe's workdir
    share: float = 1.0  # share of the updates that the runs take; 1: the best one is the result


@dataclasses.dataclass
class Plan:
    """The sweeps of a recipe in order, and the record of them that becomes recipe.json.

    Only the first seed sweeps. Later seeds use the hyperparameters that it chose.
    """

    c: ConfigDict
    tasks: dict[str, ConfigDict]  # task name -> configuration of its fine-tuning
    choose: Callable[[Sweep], str]  # may train the runs; returns the name of the best
    # Returns the time of an update of the first run, which distills, divided by that of the second.
    measure: Callable[[ConfigDict, ConfigDict], float]
    # Content of recipe.json; `execute` adds 'tasks' and 'sweeps', and the ratios that `measure`
    # returned as 'step_time_ratios', by task, '' for pre-training. It measures only absent ones.
    record: dict[str, Any]
    # (phase, task, student) -> chosen peak learning rate and lambda.
    chosen: dict[tuple[str, str, str], tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )
    runs: dict[str, ConfigDict] = dataclasses.field(default_factory=dict)  # the chosen ones

    def execute(self) -> None:
        """Calls `choose` on every sweep, in an order in which each run follows its dependencies.

        One teacher serves all seeds. The pre-training runs of a seed serve all tasks.
        """
        c = self.c
        self.record |= {'tasks': {}, 'sweeps': []}
        pretraining, teacher_path = [], c.teacher.path
        if not teacher_path or c.recipe.teacher_head:
            run = self._pretraining('teacher_pretrain', c.teacher, c.seed)
            if teacher_path:
                run.student.init, run.student.init_new_head = teacher_path, True
            name = self._sweep('teacher_pretrain', 'teacher_pretrain', '', 'teacher', run)
            pretraining, teacher_path = [name], f'{c.workdir}/{name}'
        for task in self.tasks:
            run = self._finetuning(task, 'teacher_finetune', c.teacher, c.seed)
            _initialize_from(run, teacher_path)
            folder = f'{self._task_folder(task)}teacher_finetune'
            name = self._sweep(folder, 'teacher_finetune', task, 'teacher', run)
            self.record['tasks'][task] = {'teacher': [*pretraining, name], 'students': []}
        for seed in c.recipe.seeds:
            pretrained: dict[str, str] = {}
            for task in self.tasks:
                for student in self._students(task):
                    self._train_student(student, seed, task, teacher_path, pretrained)

    def _train_student(
        self, name: str, seed: int, task: str, teacher_path: str, pretrained: dict[str, str]
    ) -> None:
        """Trains the two runs of a student; adds its pre-training run to `pretrained`."""
        c, student = self.c, STUDENTS[name]
        task_record = self.record['tasks'][task]
        if student.pretrain not in pretrained:
            run = self._pretraining('student_pretrain', c.student, seed)
            if student.pretrain == 'stage1':
                _set_objective(run, c.recipe.stage1_objective or c.objective)
            pair = (pretrained.get('stage1', ''), pretrained.get('pretrain', ''))
            _extend(run, self._relative_cost(student.equal, '', run, pair))
            # A longer baseline uses the choice of 'pretrain'.
            shared = student.pretrain if c.recipe.sweep_all else student.pretrain.split('_')[0]
            pretrained[student.pretrain] = self._sweep(
                f'seed{seed}/{student.pretrain}',
                'student_pretrain',
                '',
                shared,
                run,
                teacher_path if student.pretrain == 'stage1' else '',
            )
        run = self._finetuning(task, 'student_finetune', c.student, seed)
        _initialize_from(run, f'{c.workdir}/{pretrained[student.pretrain]}')
        data = self.tasks[task].data
        run.data.update(config.augmentation(data, student.with_teacher))
        reads_unlabelled = student.with_teacher and c.recipe.unlabelled == 'stage2'
        if reads_unlabelled or name == 'two_stage_unlabelled':
            run.data.unlabelled = _relocate(c, data.unlabelled)
            run.data.unlabelled_share = data.unlabelled_share
        finetuned = {
            s['student']: s['runs'][-1] for s in task_record['students'] if s['seed'] == seed
        }
        pair = (finetuned.get('two_stage', ''), finetuned.get('no_teacher', ''))
        _extend(run, self._relative_cost(student.equal, task, run, pair))
        last = self._sweep(
            f'{self._task_folder(task)}seed{seed}/{name}',
            'student_finetune',
            task,
            (not c.recipe.sweep_all and student.shares_sweep) or name,
            run,
            f'{c.workdir}/{task_record["teacher"][-1]}' if student.with_teacher else '',
        )
        runs = [pretrained[student.pretrain], last]
        task_record['students'].append({'student': name, 'seed': seed, 'runs': runs})

    def _relative_cost(
        self, equal: str, task: str, run: ConfigDict, pair: tuple[str, str]
    ) -> float:
        """Returns the cost of an update with a teacher divided by that of one without.

        Args:
          equal: the cost, see `Student`; 1 is returned for 'updates'.
          task: name of the task, '' in pre-training.
          run: a run without a teacher.
          pair: the names of a finished run with a teacher and of one without.
        """
        if equal == 'updates':
            return 1.0
        distilled, plain = (self.runs[name] for name in pair)
        if equal == 'FLOPs':
            return _relative_flops(self.c.teacher, distilled, run)
        ratios = self.record.setdefault('step_time_ratios', {})
        if task not in ratios:
            ratios[task] = self.measure(distilled, plain)
        return ratios[task]

    def _students(self, task: str) -> list[str]:
        recipe, absent = self.c.recipe, []
        if recipe.equal_flops and task not in recipe.equal_flops:
            absent.append('no_teacher_equal_flops')
        if task not in recipe.equal_time:
            absent.append('no_teacher_equal_time')
        if recipe.unlabelled == 'stage2' or not self.tasks[task].data.unlabelled:
            absent.append('two_stage_unlabelled')
        return [student for student in STUDENTS if student not in absent]

    def _task_folder(self, task: str) -> str:
        return f'{slug(task)}/' if len(self.tasks) > 1 else ''

    def _sweep(
        self, folder: str, phase: str, task: str, student: str, run: ConfigDict, teacher: str = ''
    ) -> str:
        """Sweeps over peak learning rates and, with a teacher, lambdas; returns the chosen run."""
        p, key = self._phase(phase, task), (phase, task, student)
        rates = p.sweep_peak_lr or (p.peak_lr,)
        reads_lambda = teacher and config.OBJECTIVES[run.objective].outputs != 'matching'
        lambdas = (p.sweep_lambda or (p.lambda_,)) if reads_lambda else (0.0,)
        settings = [*itertools.product(rates, lambdas)]
        if key in self.chosen:
            settings = [self.chosen[key]]
        share = self.c.recipe.sweep_share if len(settings) > 1 else 1.0
        temperature = p.temperature if reads_lambda else 1.0
        runs = {}
        for setting in settings:
            name = folder if share == 1 else f'sweep/{folder}'
            if len(settings) > 1:
                name += f'/lr{_format_number(setting[0])}'
                name += f'_lambda{_format_number(setting[1])}' if len(lambdas) > 1 else ''
            runs[name] = self._complete(run, name, teacher, setting, temperature, share)
        best = self.choose(Sweep(phase, task, student, runs, share))
        self.chosen[key] = settings[[*runs].index(best)]
        if share < 1:
            full = self._complete(run, folder, teacher, self.chosen[key], temperature)
            best = self.choose(Sweep(phase, task, student, {folder: full}))
            runs = {best: full}
        self.runs[best] = runs[best]
        return best

    def _complete(
        self,
        run: ConfigDict,
        name: str,
        teacher: str,
        setting: tuple[float, float],
        temperature: float,
        share: float = 1.0,
    ) -> ConfigDict:
        """Returns a copy of a run with its folder, hyperparameters, share of updates and validations."""
        candidate = config.copy(run)
        candidate.workdir = f'{self.c.workdir}/{name}'
        candidate.teacher.path = teacher
        candidate.optim.peak_lr, candidate.loss.lambda_ = setting
        candidate.loss.temperature = temperature
        if not teacher or run.data.augment:  # an augmented text is another one in every epoch
            candidate.teacher.update({'cache': '', 'cache_epochs': 1})
        if not teacher:
            candidate.matching.update(config.default().matching)
        _extend(candidate, share)
        if validations := self.c.recipe.validations:
            scores = config.OBJECTIVES[run.objective].validation_scores
            metric = run.eval.metric or config.OBJECTIVES[run.objective].metrics[0]
            candidate.train.eval_every = -(-candidate.train.updates // validations)
            # A score of generated text is none of a validation.
            candidate.train.keep_best = metric if metric in scores else scores[0]
        return candidate

    def _phase(self, phase: str, task: str) -> ConfigDict:
        settings = self.c.recipe[phase]
        return settings if settings.updates or not task else self.tasks[task].recipe[phase]

    def _pretraining(self, phase: str, network: ConfigDict, seed: int) -> ConfigDict:
        run = config.copy(self.c)
        for key in ('path', 'mixture', 'decontaminate'):
            run.data[key] = _relocate(run, run.data[key])
        return self._configure(run, run.recipe[phase], network, seed)

    def _finetuning(self, task: str, phase: str, network: ConfigDict, seed: int) -> ConfigDict:
        """Returns a fine-tuning run, which combines the task's and the recipe's settings.

        The task defines the data, the objective and the scores. The recipe defines the keys that
        belong to the machine, such as the cache and the number of workers.
        """
        run, t = config.copy(self.c), self.tasks[task]
        run.task, run.student.classes = t.task, t.student.classes
        machine = {key: run.data[key] for key in ('cache', 'workers', 'prefetch', 'tfds_dir')}
        batch_size, batches = run.eval.batch_size, run.eval.batches
        for section in ('data', 'eval', 'generate', 'matching', 'optim'):
            run[section].update(t[section].to_dict())
        run.data.update(machine)
        run.eval.batch_size = batch_size
        # The smaller limit holds. A task's 0 means all batches, which no limit of the recipe cuts.
        run.eval.batches = min(t.eval.batches, batches or t.eval.batches)
        run.data.path = _relocate(run, t.data.path)
        run.data.decontaminate = _relocate(run, t.data.decontaminate)
        _set_objective(run, t.objective)
        # The teacher reads the labelled rows as they are.
        for key in ('unlabelled', 'unlabelled_share', *config.AUGMENTATION):
            run.data[key] = config.default().data[key]
        run = self._configure(run, self._phase(phase, task), network, seed)
        if phase == 'student_finetune':
            run.student.dropout = t.student.dropout or run.student.dropout
        return run

    def _configure(
        self, run: ConfigDict, p: ConfigDict, network: ConfigDict, seed: int
    ) -> ConfigDict:
        """Sets the network and the phase `p` of a run without a teacher."""
        for key in config.network():
            if key not in ('head', 'classes'):
                run.student[key] = network[key]
        run.student.init, run.seed = 'scratch', seed
        is_student = network is self.c.student
        run.tokenizer.reduce = _relocate(run, run.tokenizer.reduce) if is_student else ()
        run.teacher.update(config.network(layers=0).to_dict())
        return config.use_phase(run, p)


def _format_number(number: float) -> str:
    """Formats 0.001 and 1e-05 briefly, and all digits of a number that needs more than six."""
    return f'{number:g}' if float(f'{number:g}') == number else repr(number)


def slug(task: str) -> str:
    """Returns a task's name as a folder name."""
    return re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')


def _relocate(c: ConfigDict, paths: Any) -> Any:
    """Replaces the leading folder `data` of a path, or of each path, by `config.recipe.data`."""
    if not c.recipe.data:
        return paths
    if isinstance(paths, str):
        return re.sub(r'^(\w+:)?data(?=[/?#=]|$)', lambda m: (m[1] or '') + c.recipe.data, paths)
    return tuple(_relocate(c, path) for path in paths)


def _initialize_from(run: ConfigDict, path: str) -> None:
    run.student.init = path
    run.student.init_new_head = run.student.head == 'classify'


def _set_objective(run: ConfigDict, name: str) -> None:
    """Sets the objective of a run and its head; keys that it does not read get their defaults."""
    objective, defaults = config.OBJECTIVES[name], config.default()
    run.objective, run.student.head = name, objective.head
    for key in {key for other in config.OBJECTIVES.values() for key in other.keys}:
        if key not in objective.keys:
            section, leaf = config.locate(run, key)
            section[leaf] = config.locate(defaults, key)[0][leaf]


def _extend(run: ConfigDict, factor: float) -> None:
    """Multiplies the updates of a run, and its warm-up, by a factor."""
    run.train.updates = max(1, round(run.train.updates * factor))
    run.optim.warmup = round(run.optim.warmup * factor)


def _relative_flops(teacher: ConfigDict, distilled: ConfigDict, plain: ConfigDict) -> float:
    """Returns the FLOPs of a distilled update divided by those of an update without a teacher.

    Both are those of the longest batches.
    """
    from lightpaff_jax import models, networks
    from lightpaff_jax.data import objectives

    network = config.network(**{key: teacher[key] for key in config.network()})
    # The teacher predicts the ids of the student only.
    for key in ('head', 'classes', 'vocab_size'):
        network[key] = distilled.student[key]
    frozen, losses = models.build(network), networks.matching_losses(distilled, network)
    shape, plain_shape = (objectives.OBJECTIVES[c.objective].shape(c) for c in (distilled, plain))
    cost = networks.update_flops(models.build(distilled.student), frozen, losses, shape)
    baseline_cost = networks.update_flops(models.build(plain.student), None, None, plain_shape)
    return sum(cost) / sum(baseline_cost)


def load_tasks(c: ConfigDict) -> dict[str, ConfigDict]:
    """Loads the configurations named by `config.recipe.tasks`.

    Returns:
      task name -> configuration.

    Raises:
      UserError: no task, a task of another family or without a unique name, or an unknown task in
        `config.recipe.equal_flops` or `config.recipe.equal_time`.
    """
    if not c.recipe.tasks:
        raise UserError('config.recipe.tasks = (): must name at least one FILE[:PRESET]')
    tasks: dict[str, ConfigDict] = {}
    for spec in c.recipe.tasks:
        t, where = flags.load(spec), f'config.recipe.tasks = {spec}'
        if t.student.family != c.student.family:
            raise UserError(
                f'{where}: family {t.student.family!r} must be that of the recipe, '
                f'{c.student.family!r}'
            )
        if not slug(t.task) or slug(t.task) in map(slug, tasks):
            raise UserError(f'{where}: config.task = {t.task!r}: must be a unique name')
        tasks[t.task] = t
    for key in ('equal_flops', 'equal_time'):
        for name in c.recipe[key]:
            if name not in tasks:
                near = nearest(name, list(tasks))
                rule = f'must be one of {", ".join(tasks)}{near}'
                raise UserError(f'config.recipe.{key} = {name!r}: {rule}')
    return tasks


def expand(c: ConfigDict) -> tuple[dict[str, ConfigDict], dict[str, Any]]:
    """Returns every run a recipe may train, in order, and recipe.json if each first run is chosen.

    Nothing is trained or measured: the updates of baselines at equal time are those of ratio 1.
    """
    runs: dict[str, ConfigDict] = {}

    def choose_first(sweep: Sweep) -> str:
        runs.update(sweep.runs)
        return next(iter(sweep.runs))

    record: dict[str, Any] = {}
    Plan(c, load_tasks(c), choose_first, lambda distilled, plain: 1.0, record).execute()
    return runs, record
