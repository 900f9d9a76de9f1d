"""Trains one network to its last update: assemble, restore, step, log, evaluate, save.

Teachers, students and baselines are trained by the same function.
"""

import dataclasses
import itertools
import json
import logging
import math
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import (
    checkpoint,
    config,
    distill_step,
    evaluate,
    matching,
    metrics,
    models,
    networks,
    optimizer,
    sharding,
    teacher as teacher_lib,
    workdir,
)
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.distill_step import TrainState
from lightpaff_jax.errors import Diverged, UserError
from lightpaff_jax.runtime import distributed, fingerprint, interrupts, storage
from lightpaff_jax.teacher import cache as teacher_cache

_log = logging.getLogger('lightpaff_jax')

# Runs a step: state, batch, rates of the step in flight -> state, sums, seconds of compilation.
Step = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any], float]]


@dataclasses.dataclass
class Progress:
    """Totals of a run; a checkpoint has them next to the state."""

    updates: int = 0
    seconds: float = 0.0
    """Time of updates, without compilation and evaluation."""
    tokens: int = 0
    """Tokens that the student has read, padding included."""
    flops: float = 0.0
    flops_saved: float = 0.0
    """FLOPs of the teacher saved by the cache, minus those of building it."""
    window: dict[str, Any] | None = None
    """Sums since the last line of metrics.jsonl."""
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of lines of each file of `metrics.Writer`."""
    best_update: int = 0
    """Update of the best validation by `config.train.keep_best`; 0: none yet."""
    best_score: float = 0.0
    validations_since_best: int = 0
    unvalidated: dict[str, Any] | None = None
    """RATES of the update whose validation a signal has stopped; a resumed run validates first."""

    def add(self, tokens: int, flops: 'Flops', sums: dict[str, Any]) -> int:
        """Counts an update with its cost and sums; returns its number."""
        self.updates += 1
        self.tokens += tokens
        self.flops += flops.computed
        self.flops_saved += flops.saved
        self.window = sums if self.window is None else metrics.add(self.window, sums)
        return self.updates

    def has_ended(self, c: ConfigDict) -> bool:
        """Returns whether the last update has run; see `workdir.has_ended`."""
        return workdir.has_ended(c, self.updates, self.validations_since_best)

    def is_best(self, keep_best: str, scores: dict[str, Any]) -> bool:
        """Counts a validation of the present update; returns whether it is the best so far."""
        if not keep_best:
            return False
        score, sign = float(scores[keep_best]), 1 if config.VALIDATION_SCORES[keep_best] else -1
        is_best = not self.best_update or sign * score > sign * self.best_score
        if is_best:
            self.best_update, self.best_score, self.validations_since_best = self.updates, score, 0
        else:
            self.validations_since_best += 1
        return is_best


class Flops(NamedTuple):
    """The FLOPs of an update: computed, and saved by reading the teacher's features."""

    computed: float
    saved: float


class Inputs(NamedTuple):
    """Everything that a run reads."""

    tokenizer: tokenizers.Tokenizer
    teacher: teacher_lib.Teacher | None
    matching: matching.Matching | None
    initial: models.Params | None
    """Parameters to start from; None: the network is initialized."""
    prepared: Dataset | Mixture
    fingerprints: dict[str, str | None]


def train(c: ConfigDict) -> dict[str, Any]:
    """Trains a network in `c.workdir` to `c.train.updates`; resumes from the newest checkpoint.

    Args:
      c: a configuration that `check.check` accepts.

    Returns:
      The content of result.json.

    Raises:
      UserError: the workdir, the teacher or the data does not fit the configuration.
      Diverged: the loss, the gradient or the parameters are no longer finite.
    """
    folder = workdir.folder(c)
    workdir.check_unchanged(c, folder)
    # A finished run is only read, perhaps by several commands at once.
    with workdir.held(folder, at_once=not workdir.has_result(folder)) as hold:
        return _train(c, folder, hold)


def _train(c: ConfigDict, folder: pathlib.Path, hold: Callable[[], None]) -> dict[str, Any]:
    use_compilation_cache(c.train.compilation_cache)
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(folder / 'checkpoints', c.train.keep) as saved:
        inputs = load_inputs(c, mesh)
        result = workdir.completed_result(c, folder, inputs.fingerprints)
        scores = {} if result is None else result['scores']
        if result is not None and not workdir.missing_splits(c, scores):
            return result
        hold()
        student, teacher = networks.student(c), inputs.teacher
        teacher_model, teacher_params = (teacher.model, teacher.params) if teacher else (None, None)
        rule = optimizer.make(c.optim)
        losses = inputs.matching
        step = distill_step.make_step(c, mesh, student, teacher_model, rule, losses)
        evaluation = evaluate.Evaluation(
            c, mesh, student, teacher, inputs.prepared, inputs.tokenizer
        )
        state, progress = restore(c, mesh, student, rule, saved, inputs)
        inputs = inputs._replace(initial=None)  # frees memory: the state has a copy
        cache = _open_cache(c, mesh, inputs, progress)
        if result is None:  # files of fewer updates, or of another protocol, are out of date
            workdir.remove_scores(folder, 'result.json')
        workdir.write_config(c, folder)
        _save_tokenizer(inputs.tokenizer, folder / 'tokenizer', c.student.family)

        def flops(shape: Shape) -> Flops:
            update = networks.update_flops(student, teacher_model, losses, shape)
            saved = 0.0 if cache is None else update.teacher
            computed = sum(update) - saved
            return Flops(c.data.batch_size * computed, c.data.batch_size * saved)

        run_step = compile_by_shape(step, teacher_params, optimizer.hyperparameters(c))
        state, outputs = _run_updates(
            c, mesh, inputs, cache, run_step, flops, evaluation, state, progress, saved
        )
        # Without a new update, the existing scores are those of the present parameters.
        scores = {} if outputs is not None else scores
        params = state.params
        del state  # frees memory: the optimizer is not needed any more
        if progress.best_update:
            best, name, score = progress.best_update, c.train.keep_best, progress.best_score
            _log.info('%s: update %d is the best by %s = %g', folder, best, name, score)
        if progress.best_update not in (0, progress.updates):
            outputs = None
            del params  # frees memory: only the best parameters are scored
            abstract = distill_step.abstract_state(c, mesh, student, rule, losses)
            params = _read_best(c, saved, progress, abstract.params)
        _score_missing(c, folder, evaluation, params, outputs, scores)
    result = _summary(c, student, progress, scores)
    result |= workdir.provenance(mesh.size) | inputs.fingerprints
    workdir.write_json(folder / 'result.json', result)
    return result


def _score_missing(
    c: ConfigDict,
    folder: Any,
    evaluation: evaluate.Evaluation,
    params: models.Params,
    outputs: evaluate.SplitOutputs | None,
    scores: dict[str, Any],
) -> None:
    """Adds the missing scores to `scores`; `outputs` are those of one split, or None."""
    for split in workdir.missing_splits(c, scores):
        if outputs is None or outputs.split != split:
            outputs = evaluation.score(split, params)
        scores[split] = evaluation.finish(outputs, params, folder / 'predictions')


def _run_updates(
    c: ConfigDict,
    mesh: Mesh,
    inputs: Inputs,
    cache: teacher_cache.Cache | None,
    run_step: Step,
    flops: Callable[[Shape], Flops],
    evaluation: evaluate.Evaluation,
    state: TrainState,
    progress: Progress,
    saved: checkpoint.Checkpoints,
) -> tuple[TrainState, evaluate.SplitOutputs | None]:
    """Runs the remaining updates; returns the state and the outputs of the last validation."""
    folder, outputs, in_flight = workdir.folder(c), None, None
    with (
        distributed.stop_signal() as stop_signal,
        metrics.Writer(
            folder, c.train.updates, progress.updates, progress.tokens, progress.lines
        ) as writer,
    ):
        start_time = time.perf_counter()
        for batch in _remaining_batches(c, mesh, inputs, cache, progress):
            if batch is None:  # only the validation of the last update is left
                in_flight = progress.unvalidated
            else:
                state, sums, compilation_time = run_step(state, batch, in_flight)
                start_time += compilation_time
                # At most one step is in flight: more can deadlock XLA's CPU devices.
                jax.block_until_ready(in_flight)
                _check_updates(c, progress.updates, in_flight)
                in_flight = {name: sums.pop(name) for name in distill_step.RATES}
                tokens = c.data.batch_size * (batch.shape.tokens + batch.shape.source)
                progress.add(tokens, flops(batch.shape), sums)
                writer.advance(progress.updates, progress.tokens, idle=compilation_time)
                if _is_due(c, progress.updates, c.train.log_every):
                    _log_window(writer, progress, in_flight)
            assert in_flight is not None, 'an update has run'
            index = progress.updates
            evaluates = batch is None or _is_due(c, index, c.train.eval_every)
            stop, is_best = stop_signal(), False
            saves = bool(stop) or _is_due(c, index, c.train.save_every)
            if evaluates or saves:
                jax.block_until_ready(state)
                progress.seconds += time.perf_counter() - start_time
                _check_updates(c, index, in_flight, state.params)
            if evaluates:
                progress.unvalidated = metrics.to_json(in_flight)
                outputs = _validate(c, index, in_flight, evaluation, state.params, stop_signal)
                stop = stop_signal()
            if evaluates and outputs is not None:
                is_best = _log_validation(c, writer, progress, in_flight, outputs.scores)
            saves = saves or bool(stop) or is_best or progress.has_ended(c)
            if saves:  # after all lines of this update, so that a resumed run repeats none
                _save(c, saved, state, progress, writer, inputs.fingerprints, is_best)
            if stop:
                saved.close()
                where = f' after update {index} of {folder}, saved; the same command resumes'
                raise interrupts.Saved(stop, where)
            if progress.has_ended(c):
                break
            if evaluates or saves:
                start_time = time.perf_counter()
    return state, outputs


def _remaining_batches(
    c: ConfigDict,
    mesh: Mesh,
    inputs: Inputs,
    cache: teacher_cache.Cache | None,
    progress: Progress,
) -> Iterator[Batch | None]:
    """Yields the batches from the next update to the last one, on the devices.

    If a signal has stopped the validation of the last update, the first one is None.
    """
    if progress.unvalidated is not None:
        yield None
    start = progress.updates
    rows = sharding.local_rows(mesh, c.data.batch_size // c.train.grad_accum_steps)
    read_teacher = None if cache is None else cache.read
    stream = batches.training(c, inputs.prepared, inputs.tokenizer, start, rows, read_teacher)
    remaining = 0 if progress.has_ended(c) else c.train.updates - start
    yield from sharding.prefetch(mesh, itertools.islice(stream, remaining))


def _is_due(c: ConfigDict, update: int, every: int) -> bool:
    """Returns whether this is the last update, or the number of updates is a multiple of `every`."""
    return update == c.train.updates or (every > 0 and update % every == 0)


def _log_window(writer: metrics.Writer, progress: Progress, rates: dict[str, Any]) -> None:
    assert progress.window is not None, 'an update has been added'
    rates = {name: rates[name] for name in ('grad_norm', 'learning_rate')}
    writer.log(progress.updates, metrics.means(progress.window, rates))
    progress.window = None


def _log_validation(
    c: ConfigDict,
    writer: metrics.Writer,
    progress: Progress,
    rates: dict[str, Any],
    scores: evaluate.Scores,
) -> bool:
    """Logs the validation of the present update; returns whether it is the best so far."""
    progress.unvalidated = None
    writer.log(progress.updates, scores, kind='validation')
    is_best = progress.is_best(c.train.keep_best, scores)
    if progress.has_ended(c) and progress.window is not None:
        _log_window(writer, progress, rates)
    return is_best


def _save(
    c: ConfigDict,
    saved: checkpoint.Checkpoints,
    state: TrainState,
    progress: Progress,
    writer: metrics.Writer,
    fingerprints: dict[str, str | None],
    is_best: bool,
) -> None:
    start_time = time.perf_counter()
    writer.upload()
    progress.lines = writer.lines
    saved.save(progress.updates, state, _meta(c, progress) | fingerprints, is_best)
    writer.exclude(time.perf_counter() - start_time)


def _meta(c: ConfigDict, progress: Progress) -> dict[str, Any]:
    """Builds the JSON of a checkpoint, without the fingerprints."""
    window = metrics.to_json(progress.window)
    totals = dataclasses.asdict(dataclasses.replace(progress, window=window))
    return {'progress': totals, 'config': json.loads(config.to_json(c))}


def _check_updates(
    c: ConfigDict, update: int, rates: dict[str, Any] | None, params: models.Params | None = None
) -> None:
    """Raises Diverged after too many bad steps in a row, or if parameters are not finite.

    Args:
      c: the configuration of the run.
      update: the number of an update that has ended.
      rates: the distill_step.RATES of this update; None before the first.
      params: the parameters after it, or None.
    """
    if rates is None:
        return
    bad_steps = round(float(rates['bad_steps']))
    if bad_steps >= c.train.max_bad_steps:
        raise _diverged(c, update, rates, f'{bad_steps} updates in a row were not finite')
    # With a huge learning rate, a finite gradient leads to parameters that are not finite.
    names = [] if params is None else fingerprint.non_finite(params)
    if names:
        raise _diverged(c, update, rates, f'parameters {names[0]} are not finite')


def _validate(
    c: ConfigDict,
    update: int,
    rates: dict[str, Any],
    evaluation: evaluate.Evaluation,
    params: models.Params,
    stop_signal: Callable[[], int],
) -> evaluate.SplitOutputs | None:
    """Scores the validation split, or returns None if a signal stops the run.

    Raises:
      Diverged: its perplexity is not finite.
    """

    def before_batch() -> None:
        if number := stop_signal():
            raise interrupts.Stopped(number)

    try:
        outputs = evaluation.score('validation', params, before_batch)
    except interrupts.Stopped:
        return None
    except Diverged as error:
        raise _diverged(c, update, rates, str(error)) from error
    objective = config.OBJECTIVES[c.objective]
    loss = float(outputs.scores[objective.validation_scores[0]])
    has_perplexity = objective.outputs != 'matching'
    if not math.isfinite(metrics.exp(loss) if has_perplexity else loss):
        raise _diverged(c, update, rates, f'its validation loss is {loss:g}')
    return outputs


def _diverged(c: ConfigDict, update: int, rates: dict[str, Any], reason: str) -> Diverged:
    loss, norm, rate = (float(rates[name]) for name in ('mean_loss', 'grad_norm', 'learning_rate'))
    return Diverged(
        f'{c.workdir}: the run has diverged, {reason}: update {update}, loss {loss:g}, gradient '
        f'norm {norm:g}, learning rate {rate:g}; checkpoints of earlier updates are kept'
    )


def _read_best(
    c: ConfigDict, saved: checkpoint.Checkpoints, progress: Progress, abstract: models.Params
) -> models.Params:
    """Reads the parameters of the best step; raises UserError, with the remedy, if it is damaged."""
    best, folder = progress.best_update, saved.directory
    saved.close()  # the step may be the one that is still written
    try:
        return checkpoint.Reader(folder, best).read_params(abstract)
    except checkpoint.NoStep as error:
        remedy = f'remove {folder / str(best)}, then the next validation counts as the best'
        if progress.has_ended(c):
            remedy = f'remove {folder} to train again from the start'
        raise UserError(f'{error}; it is the best by {c.train.keep_best}: {remedy}') from error


def compile_by_shape(
    step: jax.stages.Wrapped,
    teacher_params: models.Params | None,
    hyperparameters: optimizer.Hyperparameters,
) -> Step:
    """Returns a function that compiles the step at the first batch of each shape, and runs it."""
    programs: dict[Shape, jax.stages.Compiled] = {}

    def run_step(
        state: TrainState, batch: Batch, in_flight: Any
    ) -> tuple[TrainState, dict[str, Any], float]:
        arguments = (state, teacher_params, batch, hyperparameters)
        compilation_time = 0.0
        if batch.shape not in programs:
            jax.block_until_ready(in_flight)
            start = time.perf_counter()
            programs[batch.shape] = step.lower(*arguments).compile()
            # Processes compile at different speeds, but CPU devices wait only 30 s for each other.
            distributed.all_gather(None)
            compilation_time = time.perf_counter() - start
        return *programs[batch.shape](*arguments), compilation_time

    return run_step


def load_inputs(c: ConfigDict, mesh: Mesh) -> Inputs:
    """Reads everything that a run starts from."""
    tokenizer = selection.load(c)
    teacher = teacher_lib.load(c, mesh, tokenizer)
    initial = teacher_lib.load_initial(c, mesh, tokenizer, teacher)
    prepared = prepare.prepare(c, tokenizer)
    fingerprints = {
        'tokenizer_hash': tokenizer.fingerprint,
        'data_hash': prepared.hash,
        'teacher_hash': None if teacher is None else teacher.hash,
        'init_hash': None if initial is None else fingerprint.fingerprint(initial),
    }
    losses = teacher and networks.matching_losses(c, teacher.model.network)
    return Inputs(tokenizer, teacher, losses, initial, prepared, fingerprints)


def _open_cache(
    c: ConfigDict, mesh: Mesh, inputs: Inputs, progress: Progress
) -> teacher_cache.Cache | None:
    """Opens or builds the cache of the teacher; None without one, or if no update remains.

    Before the first update, counts the FLOPs of building it, whether or not it was interrupted.
    """
    if not c.teacher.cache or inputs.teacher is None or progress.has_ended(c):
        return None
    arguments = inputs.teacher, inputs.prepared, inputs.tokenizer
    cache = teacher_cache.open_or_build(c, mesh, *arguments)
    if not progress.updates:
        flops = teacher_cache.building_flops(c, cache, inputs.teacher.model)
        progress.flops, progress.flops_saved = flops, -flops
    return cache


def _save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, family: str) -> None:
    if not distributed.is_primary():
        return
    if storage.is_remote(folder):
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save(temporary, family)
            storage.upload(pathlib.Path(temporary), folder)
        return
    if folder.exists() and tokenizers.read(str(folder)).fingerprint != tokenizer.fingerprint:
        shutil.rmtree(folder)  # left by an attempt that failed before its first checkpoint
    if not folder.exists():
        storage.publish(folder, lambda temporary: tokenizer.save(temporary, family))


def use_compilation_cache(folder: str) -> None:
    """Makes jax keep compiled programs in a folder; jax keeps the first folder of a process."""
    if folder:
        path = folder if storage.is_remote(folder) else str(pathlib.Path(folder).expanduser())
        jax.config.update('jax_compilation_cache_dir', path)


def initial_state(
    c: ConfigDict,
    mesh: Mesh,
    student: models.Model,
    rule: optax.GradientTransformation,
    inputs: Inputs,
) -> TrainState:
    """Returns the state before the first update."""
    shardings = distill_step.state_shardings(c, mesh, student, rule, inputs.matching)
    initialize = jax.jit(
        lambda seed: distill_step.init_state(student, rule, seed, inputs.matching),
        out_shardings=shardings,
    )
    state = initialize(optimizer.hyperparameters(c).seed)
    if inputs.initial is None:
        return state
    params = jax.device_put(state.params | inputs.initial, shardings.params)
    return dataclasses.replace(state, params=params)


def restore(
    c: ConfigDict,
    mesh: Mesh,
    student: models.Model,
    rule: optax.GradientTransformation,
    saved: checkpoint.Checkpoints,
    inputs: Inputs,
) -> tuple[TrainState, Progress]:
    """Restores the newest checkpoint, or returns the state before the first update.

    Sets `saved.best`, the best step by `c.train.keep_best`.

    Raises:
      UserError: the checkpoint has other data, another teacher, tokenizer or start, or more updates
        than `c.train.updates`; or the best step is damaged.
    """
    abstract = distill_step.abstract_state(c, mesh, student, rule, inputs.matching)
    newest = saved.restore(abstract)
    if newest is None:
        return initial_state(c, mesh, student, rule, inputs), Progress()
    step, state, meta = newest
    workdir.check_saved_config(c, meta, saved.directory)
    for name, value in inputs.fingerprints.items():
        if meta.get(name) != value:
            raise UserError(
                f'config.workdir = {c.workdir}: its checkpoint has {name} {meta.get(name)}, this '
                f'run {value}; both must be equal: choose another workdir or remove it'
            )
    if step > c.train.updates:
        raise UserError(
            f'config.train.updates = {c.train.updates}: must be at least {step}, the updates of the '
            f'checkpoint in {c.workdir}'
        )
    progress = Progress(**meta['progress'])
    progress.window = metrics.from_json(progress.window)
    best = progress.best_update
    is_missing = not distributed.broadcast_from_primary(lambda: best in saved.steps())
    if best and is_missing and not progress.has_ended(c):
        # It was damaged and set aside, so the next validation counts as the best.
        _log.warning('%s: step %d, the best, is missing', saved.directory, best)
        progress.best_update = 0
    elif best not in (0, step):  # the end of the run reads it: damage is found before training
        _read_best(c, saved, progress, abstract.params)
    saved.best = progress.best_update or None
    return state, progress


def _summary(
    c: ConfigDict, student: models.Model, progress: Progress, scores: dict[str, Any]
) -> dict[str, Any]:
    best = {
        'keep_best': c.train.keep_best,
        'best_update': progress.best_update,
        'validations_since_best': progress.validations_since_best,
    }
    return (
        (best if progress.best_update else {})
        | workdir.task_keys(c)
        | {
            'updates': progress.updates,
            'tokens': progress.tokens,
            'seconds': progress.seconds,
            'flops': progress.flops,
            **({'flops_saved': progress.flops_saved} if progress.flops_saved else {}),
            'tokens_per_second': progress.tokens / progress.seconds,
            'parameters': student.parameter_count,
            'bytes': 4 * student.parameter_count,
            'scores': scores,
            'protocol': workdir.protocol(c),
            'seed': c.seed,
        }
    )
