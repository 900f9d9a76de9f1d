"""One run: assemble, restore, step, log, evaluate, save. A teacher, a student and a control alike."""

import dataclasses
import itertools
import pathlib
import shutil
import tempfile
import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import (
    checkpoint,
    distill_step,
    evaluate,
    metrics,
    models,
    networks,
    optimizer,
    sharding,
    workdir,
)
from lightpaff_jax import teacher as teacher_lib
from lightpaff_jax.batch import Shape
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import distributed, fingerprint, storage


@dataclasses.dataclass
class Progress:
    """What a run has done so far, beside its state; saved with it."""

    updates: int = 0
    seconds: float = 0.0
    """Of updates, without compiling and scoring."""
    tokens: int = 0
    """Read by the student, padding too."""
    flops: float = 0.0
    window: dict | None = None
    """Sums that are not logged yet."""


class Inputs(NamedTuple):
    """What a run reads."""

    tokenizer: tokenizers.Tokenizer
    teacher: teacher_lib.Teacher | None
    initial: models.Params | None
    """Parameters to start from; None: fresh ones."""
    prepared: Dataset | Mixture
    identities: dict[str, str | None]


def train(c: ConfigDict) -> dict:
    """Runs `c` in `c.workdir` to `c.train.updates`, from its newest checkpoint if it has one.

    Returns:
      what result.json holds.

    Raises:
      UserError: the configuration, its data, its teacher or its workdir does not fit.
    """
    folder = workdir.folder(c)
    workdir.check_unchanged(c, folder)
    keep_compiled(c.train.compilation_cache)
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(folder / 'checkpoints', c.train.keep) as saved:
        inputs = _inputs(c, mesh)
        result = workdir.completed_result(c, folder, inputs.identities)
        known = {} if result is None else result['scores']
        if result is not None and not workdir.missing_splits(c, known):
            return result
        student = networks.student(c)
        network = None if inputs.teacher is None else inputs.teacher.model
        teacher_params = None if inputs.teacher is None else inputs.teacher.params
        rule = optimizer.make(c.optim)
        step = distill_step.make_step(c, mesh, student, network, rule)
        evaluation = evaluate.Evaluation(
            c, mesh, student, inputs.teacher, inputs.prepared, inputs.tokenizer
        )
        state, progress = restore(c, mesh, student, rule, saved, inputs)
        inputs = inputs._replace(initial=None)  # now in the state, or of no use beside a checkpoint
        if progress.updates < c.train.updates:  # what is said of fewer updates
            for name in ('result.json', 'predictions/validation.jsonl', 'predictions/test.jsonl'):
                workdir.remove(folder / name)
        workdir.write_config(c, folder)
        _keep_tokenizer(inputs.tokenizer, folder / 'tokenizer', c.student.family)

        def cost(shape: Shape) -> float:
            of_teacher = 0 if network is None else network.flops(shape)
            return c.data.batch_size * (3 * student.flops(shape) + of_teacher)

        take = _compiled(step, teacher_params, optimizer.hyperparameters(c))
        state, last = _updates(c, mesh, inputs, take, cost, evaluation, state, progress, saved)
        # Without an update the parameters are those that were scored before.
        scores = {} if last is not None else known
        for split in workdir.missing_splits(c, scores):
            used = last if last is not None and last.split == split else None
            found = used or evaluation.score(split, state.params)
            scores[split] = evaluation.finish(found, state.params, folder / 'predictions')
    result = (
        summary(c, student, progress, scores) | workdir.provenance(mesh.size) | inputs.identities
    )
    workdir.write_json(folder / 'result.json', result)
    return result


def _updates(c, mesh, inputs, take, cost, evaluation, state, progress, saved):
    """The updates that are left; the state, and what the last validation found if there was one."""
    folder, found, in_flight = workdir.folder(c), None, None
    start = progress.updates
    with metrics.Writer(folder, c.train.updates, start, progress.tokens) as writer:
        rows = sharding.local_rows(mesh, c.data.batch_size // c.train.grad_accum_steps)
        stream = batches.training(c, inputs.prepared, inputs.tokenizer, start, rows)
        began = time.perf_counter()
        for batch in sharding.prefetch(mesh, itertools.islice(stream, c.train.updates - start)):
            state, sums, compiling = take(state, batch, in_flight)
            began += compiling
            jax.block_until_ready(in_flight)  # at most one step in flight
            in_flight = sums['loss']
            rates = {name: sums.pop(name) for name in ('grad_norm', 'learning_rate')}
            index = progress.updates = progress.updates + 1
            progress.tokens += c.data.batch_size * (batch.shape.tokens + batch.shape.source)
            progress.flops += cost(batch.shape)
            writer.advance(index, progress.tokens, idle=compiling)
            window = progress.window
            progress.window = sums if window is None else metrics.add(window, sums)
            last = index == c.train.updates
            if index % c.train.log_every == 0 or last:
                writer.log(index, metrics.means(progress.window, rates))
                progress.window = None
            scored = last or (c.train.eval_every and index % c.train.eval_every == 0)
            kept = last or index % c.train.save_every == 0
            if scored or kept:
                jax.block_until_ready(state)
                progress.seconds += time.perf_counter() - began
            if scored:
                found = evaluation.score('validation', state.params)
                writer.log(index, found.scores, kind='validation')
            if kept:  # after all lines of this update: a resumed run repeats none of them
                saving = time.perf_counter()
                window = metrics.to_json(progress.window)
                done = dataclasses.asdict(dataclasses.replace(progress, window=window))
                writer.upload()
                saved.save(index, state, {'progress': done, **inputs.identities})
                writer.exclude(time.perf_counter() - saving)
            if scored or kept:
                began = time.perf_counter()
    return state, found


def _compiled(step: jax.stages.Wrapped, teacher_params, hyperparameters: optimizer.Hyperparameters):
    """`(state, batch, in flight) -> state, sums, seconds of compiling`: one program a shape."""
    programs: dict[Shape, jax.stages.Compiled] = {}

    def take(state, batch, in_flight):
        began = time.perf_counter()
        if batch.shape not in programs:
            jax.block_until_ready(in_flight)
            began = time.perf_counter()
            programs[batch.shape] = step.lower(
                state, teacher_params, batch, hyperparameters
            ).compile()
            distributed.all_gather(None)  # on CPUs devices that meet first wait 30 s for each other
        compiling = time.perf_counter() - began
        return *programs[batch.shape](state, teacher_params, batch, hyperparameters), compiling

    return take


def _inputs(c: ConfigDict, mesh: Mesh) -> Inputs:
    tokenizer = selection.load(c)
    teacher = teacher_lib.load(c, mesh, tokenizer)
    initial = teacher_lib.load_initial(c, mesh, tokenizer, teacher)
    prepared = prepare.prepare(c, tokenizer)
    identities = {
        'tokenizer_hash': tokenizer.fingerprint,
        'data_hash': prepared.hash,
        'teacher_hash': None if teacher is None else teacher.hash,
        'init_hash': None if initial is None else fingerprint.fingerprint(initial),
    }
    return Inputs(tokenizer, teacher, initial, prepared, identities)


def _keep_tokenizer(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, family: str) -> None:
    """Puts the tokenizer beside the checkpoints, so that the workdir can be loaded and exported."""
    if not distributed.is_primary():
        return
    if storage.is_remote(folder):
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save(temporary, family)
            storage.upload(pathlib.Path(temporary), folder)
        return
    if folder.exists() and tokenizers.read(str(folder)).fingerprint != tokenizer.fingerprint:
        shutil.rmtree(folder)  # of an attempt that came to nothing
    if not folder.exists():
        storage.publish(folder, lambda temporary: tokenizer.save(temporary, family))


def keep_compiled(folder: str) -> None:
    """Programs compiled once are read from `folder` the next time. jax takes the first folder."""
    if folder:
        path = folder if storage.is_remote(folder) else str(pathlib.Path(folder).expanduser())
        jax.config.update('jax_compilation_cache_dir', path)


def restore(c: ConfigDict, mesh: Mesh, student: models.Model, rule,
            saved: checkpoint.Checkpoints, inputs: Inputs):  # fmt: skip
    """(state, Progress) of the newest checkpoint.

    Without one: the parameters to start from, or fresh ones.

    Raises:
      UserError: the checkpoint is of other data, another teacher or another start, or has done
        more updates than `c.train.updates`.
    """
    places = distill_step.state_shardings(c, mesh, student, rule)
    seed = optimizer.hyperparameters(c).seed

    def fresh(seed):
        return distill_step.init_state(student, rule, seed)

    found = saved.restore(distill_step.abstract_state(c, mesh, student, rule))
    if found is None:
        state = jax.jit(fresh, out_shardings=places)(seed)
        if inputs.initial is not None:
            params = jax.device_put(inputs.initial, places.params)
            state = distill_step.TrainState(state.step, params, state.opt_state)
        return state, Progress()
    step, state, meta = found
    for name, value in inputs.identities.items():
        if meta.get(name) != value:
            raise UserError(
                f'config.workdir = {c.workdir}: its checkpoint has {name} {meta.get(name)}, this '
                f'run {value}; resuming needs the same: choose another workdir or remove it'
            )
    if step > c.train.updates:
        raise UserError(
            f'config.train.updates = {c.train.updates}: must be at least {step}, the updates that '
            f'{c.workdir} has done'
        )
    progress = Progress(**meta['progress'])
    progress.window = metrics.from_json(progress.window)
    return state, progress


def summary(c: ConfigDict, student: models.Model, progress: Progress, scores: dict) -> dict:
    """Scores and cost."""
    return workdir.task_keys(c) | {
        'updates': progress.updates,
        'tokens': progress.tokens,
        'seconds': progress.seconds,
        'flops': progress.flops,
        'tokens_per_second': progress.tokens / progress.seconds,
        'parameters': student.parameter_count,
        'bytes': 4 * student.parameter_count,
        'scores': scores,
        'protocol': workdir.protocol(c),
        'seed': c.seed,
    }
