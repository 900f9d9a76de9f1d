"""The runs of a recipe, one after the other: done ones skipped, the best of a grid taken, a report."""

import json
import math
import pathlib
import shlex
import sys
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import flags, validate
from lightpaff_jax.errors import UserError
from lightpaff_jax.recipe.plan import Chain, Step, load_tasks, plan
from lightpaff_jax.runtime import distributed

USAGE = """
python -m lightpaff_jax.recipe --config=FILE[:PRESET] [--config.KEY=VALUE ...]

Runs the whole chain into config.workdir (default: runs/<config name>): teacher pre-training and
fine-tuning, stage 1, stage 2, the controls, evaluation, speed, report.md and report.html. Started
again, it skips the runs that are done and resumes the one that is not.

config.student and config.teacher are the two networks, config.data is what both are pre-trained
on, config.recipe has the four arrows and names the tasks. What a task is fine-tuned on, and how it
is scored, are the keys data, eval, generate and optim of its own file; of two eval.batches the
smaller number counts, a 0 of the task's, which reads all, before any.
"""

SET_BY_RECIPE = (
    'student.init', 'student.init_new_head', 'loss.lambda_', 'loss.temperature', 'optim.peak_lr',
    'optim.warmup', 'data.batch_size', 'train.updates', 'task', 'eval.metric',
)  # fmt: skip
"""Keys that each run of a recipe has its own value of."""


def run(c: ConfigDict) -> None:
    """Does what is left of the recipe and prints its tables."""
    import jax

    _check(c)
    runs, _ = plan(c)
    for name in config.PHASES:  # said of the key that sets it, not of the run's
        size, imported = c.recipe[name].batch_size, name == 'teacher_pretrain' and c.teacher.path
        if c.recipe[name].updates and not imported:
            validate.check_batch(f'recipe.{name}.batch_size', size, c, jax.device_count())
    from lightpaff_jax import report, train, workdir

    for name, r in runs.items():
        try:
            train.check(r, runs=False)
        except UserError as error:
            raise type(error)(f'run {name}: {error}') from error

    folder = workdir.folder(c)
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
    if distributed.is_primary():
        print(report.write(folder))
        print(f'{folder}/report.html')


def _check(c: ConfigDict) -> None:
    if c.teacher.path:
        from lightpaff_jax import pretrained
        from lightpaff_jax.data import tokenizers

        if not c.teacher.layers:
            c.teacher.update(pretrained.read_network('teacher.path', c.teacher.path).to_dict())
        # Also of the students that are pre-trained without it.
        c.tokenizer.path = c.tokenizer.path or tokenizers.find(c.teacher.path) or ''
    elif not c.teacher.layers:
        raise UserError(
            'config.teacher.layers = 0: a recipe trains its teacher, give its shape, or a finished '
            'one in config.teacher.path'
        )
    for key in SET_BY_RECIPE:
        value, plain = config.flatten(c)[key], config.flatten(config.default())[key]
        if value != plain:
            raise UserError(
                f'config.{key} = {value}: a recipe sets it for each of its runs, from config.recipe'
            )
    if c.requires:
        raise UserError(f'config.requires = {",".join(c.requires)}: is not read by a recipe')
    for name in ('teacher_finetune', 'student_finetune'):
        p, plain = c.recipe[name], config.phase(updates=0)
        unread = () if p.updates else [key for key in plain if p[key] != plain[key]]
        for key in unread:
            raise UserError(
                f'config.recipe.{name}.{key} = {p[key]}: is not read where config.recipe.{name}.updates '
                '= 0, each task has its own: set it in the files of config.recipe.tasks, or give updates'
            )


def _choose(step: Step, done: int, of: int, search: list[dict]) -> str:
    """Trains the runs of a step; the name of the best by its score on the validation split."""
    from lightpaff_jax import train

    scores: dict[str, float] = {}
    for number, (name, r) in enumerate(step.runs.items(), done + 1):
        distributed.log_primary(f'[{number}/{of}] {name}')
        r = config.copy(r)
        r.eval.test = len(step.runs) == 1
        result = train.train(r)
        found = result['scores']['validation']
        # A diverged classifier answers too; what it scores says nothing.
        scores[name] = found[result['metric']] if math.isfinite(found['ce']) else math.nan
        sign = 1 if result['metric'] == 'perplexity' else -1
    if len(scores) == 1:
        return name
    # All processes take the same one.
    chosen = distributed.broadcast_from_primary(
        lambda: min(scores, key=lambda name: _or_inf(sign * scores[name]))
    )
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
    """speed.json: teacher against student of the first task, unless it is there, of these."""
    from lightpaff_jax import speed, workdir

    first = next(iter(chain.table['tasks'].values()))
    names = {'teacher': first['teacher'][-1], 'student': first['arms'][0]['runs'][-1]}

    def there() -> bool:
        try:
            known = json.loads((folder / 'speed.json').read_text())
            sizes = {
                name: json.loads((folder / run / 'result.json').read_text())['parameters']
                for name, run in names.items()
            }
            return known['runs'] == names and all(
                known[name]['parameters'] == size for name, size in sizes.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False  # none, or of other networks

    if distributed.broadcast_from_primary(there):
        return
    r = config.copy(runs[names['student']])
    r.teacher.path = f'{c.workdir}/{names["teacher"]}'
    found = speed.compare(r) | {'runs': names}
    workdir.write(folder / 'speed.json', json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(flags.main(run, USAGE))
