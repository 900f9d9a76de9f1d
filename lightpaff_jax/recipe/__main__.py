"""The command `recipe`: executes a plan of runs, keeps the best run of each sweep, and reports."""

import logging
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import check, config
from lightpaff_jax.config import flags, validate
from lightpaff_jax.errors import Diverged, UserError
from lightpaff_jax.recipe import plan, teacher_cache
from lightpaff_jax.runtime import distributed, json_file

_log = logging.getLogger('lightpaff_jax')

USAGE = """
python -m lightpaff_jax.recipe --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Runs a whole recipe in config.workdir (default: runs/<config name>): pre-training and fine-tuning
of the teacher and of every student, sweeps of hyperparameters, test scores, speed, and the reports
report.md and report.html. If started again, it skips finished runs and resumes the unfinished one.

config.student and config.teacher are the two networks, and config.data is their pre-training data.
config.recipe holds the settings of the four phases and the names of the tasks. The file of a task
defines its fine-tuning and its scores with the keys data, eval, generate and optim. The smaller of
the two eval.batches applies; a task's 0 always reads all batches. Distilled runs with the
same teacher and data share a cache of its features, in config.teacher.cache or config.workdir.
"""

# Keys that a recipe sets in each of its runs.
SET_BY_RECIPE = (
    'student.init',
    'student.init_new_head',
    'loss.lambda_',
    'loss.temperature',
    'optim.peak_lr',
    'optim.warmup',
    'data.batch_size',
    'train.updates',
    'task',
    'eval.metric',
)


def run(c: ConfigDict) -> None:
    """Runs the unfinished part of a recipe and prints its results.

    Raises:
      UserError: a setting is invalid, for the recipe or for one of its runs.
    """
    validate.validate(c)
    _check_settings(c)
    distributed.sync_devices()
    _resolve_teacher(c)
    runs, _ = plan.expand(c)
    import jax

    # Checked here, so that the message names the key of the recipe and not that of a run.
    for phase in config.PHASES:
        imported = phase == 'teacher_pretrain' and c.teacher.path and not c.recipe.teacher_head
        if c.recipe[phase].updates and not imported:
            batch_size = c.recipe[phase].batch_size
            validate.check_batch(f'recipe.{phase}.batch_size', batch_size, c, jax.device_count())
    for name, r in runs.items():
        try:
            check.check(r, runs=False)
        except UserError as error:
            raise type(error)(f'run {name}: {error}') from error

    from lightpaff_jax import report, workdir

    folder = workdir.folder(c)
    with workdir.held(folder):
        record = _execute(c, folder, runs)
        _measure_speed(c, folder, record, runs)
        if distributed.is_primary():
            print(report.write(folder))
            print(f'{folder}/report.html')


def _check_settings(c: ConfigDict) -> None:
    """Raises UserError if a key is set that a recipe sets itself or does not read."""
    defaults = config.flatten(config.default())
    for key, value in config.flatten(c).items():
        if key in SET_BY_RECIPE and value != defaults[key]:
            rule = 'is set by the recipe for each of its runs, from config.recipe'
            raise UserError(f'config.{key} = {value}: {rule}')
    for key in ('train.keep_best', 'train.eval_every'):
        section, leaf = config.locate(c, key)
        if c.recipe.validations and section[leaf] != defaults[key]:
            rule = 'is not read with config.recipe.validations, which sets it for each run'
            raise UserError(f'config.{key} = {section[leaf]}: {rule}')
    if config.OBJECTIVES[c.objective].outputs == 'matching':
        raise UserError(
            f'config.objective = {c.objective!r}: must be the objective of baselines; '
            'config.recipe.stage1_objective is that of stage 1'
        )
    if c.recipe.teacher_head and not c.teacher.path:
        raise UserError('config.recipe.teacher_head = True: requires config.teacher.path')
    if c.requires:
        raise UserError(f'config.requires = {",".join(c.requires)}: is not read by a recipe')
    for name in ('teacher_finetune', 'student_finetune'):
        phase = c.recipe[name]
        for key, value in config.phase(updates=0).items():
            if not phase.updates and phase[key] != value:
                raise UserError(
                    f'config.recipe.{name}.{key} = {phase[key]}: is not read if '
                    f'config.recipe.{name}.updates = 0, since each task has its own settings; set '
                    'it in the files of config.recipe.tasks, or set updates'
                )


def _resolve_teacher(c: ConfigDict) -> None:
    """Copies the shape and the tokenizer of an imported teacher into the configuration."""
    if c.teacher.path:
        from lightpaff_jax import pretrained
        from lightpaff_jax.data import tokenizers

        if not c.teacher.layers:
            teacher = pretrained.open('config.teacher.path', c.teacher.path)
            c.teacher.update(teacher.network.to_dict())
        stage1 = config.OBJECTIVES[c.recipe.stage1_objective or c.objective].outputs
        if c.teacher.head == 'none' and stage1 != 'matching' and not c.recipe.teacher_head:
            raise UserError(
                f'config.teacher.path = {c.teacher.path}: has no head for stage 1; set '
                "config.recipe.stage1_objective = 'match', or config.recipe.teacher_head = True"
            )
        # Students that are pre-trained without the teacher use its tokenizer too.
        c.tokenizer.path = c.tokenizer.path or tokenizers.find(c.teacher.path) or ''
    elif not c.teacher.layers:
        raise UserError(
            'config.teacher.layers = 0: must be the shape of the teacher to train; or set '
            'config.teacher.path to a trained teacher'
        )


def _execute(c: ConfigDict, folder: Any, runs: dict[str, ConfigDict]) -> dict[str, Any]:
    """Trains the `runs` of the plan, writes recipe.json after every sweep, and returns it."""
    from lightpaff_jax import workdir

    record = {
        'name': pathlib.Path(c.workdir).name,
        'family': c.student.family,
        'scale': c.recipe.scale,
        **({'title': c.recipe.title} if c.recipe.title else {}),
        'notes': list(c.recipe.notes),
        'command': f'python -m lightpaff_jax.recipe {shlex.join(sys.argv[1:])}',
    }
    if c.recipe.equal_time:
        record['step_time_ratios'] = distributed.broadcast_from_primary(
            lambda: _read_ratios(folder / 'recipe.json')
        )
    sharing = teacher_cache.Sharing(c, runs.values())
    finished: list[str] = []

    def write() -> None:
        workdir.write_json(folder / 'recipe.json', record)

    def choose(sweep: plan.Sweep) -> str:
        if finished:
            write()
        cached = {name: sharing.with_cache(r) for name, r in sweep.runs.items()}
        name = _run_sweep(sweep._replace(runs=cached), len(finished), len(runs), record['sweeps'])
        finished.extend(sweep.runs)
        return name

    plan.Plan(c, plan.load_tasks(c), choose, _measure_ratio, record).execute()
    record |= distributed.broadcast_from_primary(lambda: _savings(folder, finished))
    write()
    return record


def _savings(folder: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns the FLOPs of all training, and those that caches of the teacher saved, if any."""
    flops, saved = 0.0, 0.0
    for name in names:
        path = folder / name / 'result.json'
        if path.exists():  # a run that diverged has no result
            result = json_file.read(path, {'flops': float, 'flops_saved?': float})
            flops += result['flops']
            saved += result.get('flops_saved', 0.0)
    return {'teacher_cache': {'flops': flops, 'flops_saved': saved}} if saved else {}


def _read_ratios(path: Any) -> dict[str, float]:
    """Returns the ratios of step times that recipe.json has, which a restart uses again."""
    schema = {'step_time_ratios?': {str: float}}
    return json_file.read(path, schema).get('step_time_ratios', {}) if path.exists() else {}


def _measure_ratio(distilled: ConfigDict, plain: ConfigDict) -> float:
    from lightpaff_jax.recipe import step_time

    ratio = step_time.ratio(distilled, plain)
    distributed.log_primary(
        f'an update of {distilled.workdir} takes {ratio:.2f} times as long as one of '
        f'{plain.workdir}'
    )
    return ratio


def _run_sweep(sweep: plan.Sweep, finished: int, total: int, records: list[dict]) -> str:
    """Trains the runs of a sweep and returns the name of the best one on validation.

    Only the best run is scored on the test split, and only if it is the result of the sweep. If
    there are several runs, appends the scores and the choice to `records`; a run that diverged has
    the score None and is never chosen.

    Raises:
      Diverged: all runs have diverged.
    """
    from lightpaff_jax import train
    from lightpaff_jax.report.results import METRICS

    scores, errors = {}, []
    for number, (name, r) in enumerate(sweep.runs.items(), finished + 1):
        distributed.log_primary(f'[{number}/{total}] {name}')
        r = config.copy(r)
        r.eval.test = len(sweep.runs) == 1
        try:
            result = train.train(r)
        except Diverged as error:
            if len(sweep.runs) == 1:
                raise
            _log.warning('%s', error)
            errors.append(error)
            continue
        metric = result['metric']
        scores[name] = result['scores']['validation'][metric]
    if not scores:
        raise errors[0]
    if len(sweep.runs) == 1:
        return name
    best = max if METRICS[metric].higher_is_better else min
    # Process 0 decides, so that all processes train the same run next.
    chosen = distributed.broadcast_from_primary(lambda: best(scores, key=scores.__getitem__))
    if sweep.share == 1:
        train.train(sweep.runs[chosen])  # is trained already: adds the test scores
    candidates = [
        {
            'run': name,
            'peak_lr': r.optim.peak_lr,
            'lambda_': r.loss.lambda_,
            'score': scores.get(name),
        }
        for name, r in sweep.runs.items()
    ]
    records.append(
        {
            'phase': sweep.phase,
            'task': sweep.task,
            'student': sweep.student,
            'metric': metric,
            'candidates': candidates,
            'chosen': chosen,
        }
        | ({'share': sweep.share} if sweep.share < 1 else {})
    )
    return chosen


def _measure_speed(
    c: ConfigDict, folder: Any, record: dict[str, Any], runs: dict[str, ConfigDict]
) -> None:
    """Writes speed.json, the teacher's and the student's speed in the first task.

    Keeps an existing file if it is about these two networks.
    """
    from lightpaff_jax import speed, workdir

    task = next(iter(record['tasks'].values()))
    networks = {'teacher': task['teacher'][-1], 'student': task['students'][0]['runs'][-1]}
    if distributed.broadcast_from_primary(lambda: _is_speed_current(folder, networks)):
        return
    r = config.copy(runs[networks['student']])
    r.teacher.path = f'{c.workdir}/{networks["teacher"]}'
    comparison = speed.compare(r) | {'runs': networks}
    workdir.write_json(folder / 'speed.json', comparison)


def _is_speed_current(folder: Any, networks: dict[str, str]) -> bool:
    from lightpaff_jax.report import results

    try:
        speed = results.read_speed(folder)
        sizes = {
            name: json_file.read(folder / run / 'result.json', {'parameters': int})['parameters']
            for name, run in networks.items()
        }
    except UserError:  # a missing or damaged file: the speed is measured again
        return False
    return (
        speed is not None
        and speed.get('runs') == networks
        and all(speed[name]['parameters'] == size for name, size in sizes.items())
    )


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
