"""One run: assemble, restore, step, log, evaluate, save. A teacher, a student and a control alike."""

import json
import pathlib
import shutil
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lightpaff_jax import (
    checkpoint,
    digests,
    distill_step,
    evaluate,
    metrics,
    models,
    optimizer,
    sharding,
    teacher,
    validation,
    workdir,
)
from lightpaff_jax.batch import Shape
from lightpaff_jax.config import UserError
from lightpaff_jax.data import batches, objectives, prepare, pydocs, sources, tokenizers


def train(c: ConfigDict) -> dict:
    """Runs `c` in `c.workdir` to `c.train.updates`, from its newest checkpoint if it has one.

    Returns:
      what result.json holds.

    Raises:
      UserError: the configuration, its data, its teacher or its workdir does not fit.
    """
    check(c)
    folder = pathlib.Path(c.workdir).expanduser()
    workdir.check(c, folder)
    keep_compiled(c.train.compilation_cache)
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(folder / 'checkpoints', c.train.keep) as saved:
        tokenizer = tokenizers.load(c)
        guide = teacher.load(c, mesh, tokenizer)
        initial = teacher.load_initial(c, mesh, tokenizer, guide)
        prepared = prepare.prepare(c, tokenizer)
        identities = {
            'tokenizer_hash': tokenizer.hash,
            'data_hash': prepared.hash,
            'teacher_hash': None if guide is None else guide.hash,
            'init_hash': None if initial is None else digests.identity(initial),
        }
        result = workdir.finished(c, folder, identities)
        if result is not None:
            return result
        student = models.build(c.student, compute_dtype=c.train.compute_dtype, remat=c.train.remat)
        network, guide_params = (None, None) if guide is None else (guide.model, guide.params)
        rule = optimizer.make(c)
        step = distill_step.make_step(c, mesh, student, network, rule, optimizer.schedule(c))
        score = distill_step.make_evaluation(c, mesh, student, network)
        state, start, seconds, window = restore(c, mesh, student, rule, saved, identities, initial)
        workdir.claim(c, folder)
        _keep_tokenizer(tokenizer, folder / 'tokenizer', c.student.family)
        if start < c.train.updates:
            (folder / 'result.json').unlink(missing_ok=True)

        shape = objectives.OBJECTIVES[c.objective].shape(c)
        tokens = c.data.batch_size * (shape.tokens + shape.source)
        with metrics.Writer(folder, c.train.updates, tokens, start) as writer:

            def scores_of(split: str) -> dict[str, float]:
                passed = batches.evaluation(c, prepared, tokenizer, split)
                stats = prepared.split(split)
                evaluation = evaluate.EVALS[c.objective]
                return evaluation(score, state.params, guide_params, passed, mesh, stats)

            compiled, in_flight, found, began = None, None, None, 0.0
            for index, batch in enumerate(
                batches.training(c, prepared, tokenizer, start), start + 1
            ):
                if index > c.train.updates:
                    break
                placed = sharding.put_batch(mesh, batch, micro=True)
                if compiled is None:
                    compiled = step.lower(state, guide_params, placed).compile()
                    began = time.perf_counter()
                state, sums = compiled(state, guide_params, placed)
                jax.block_until_ready(in_flight)  # at most one step in flight
                in_flight = sums['loss']
                rates = {name: sums.pop(name) for name in ('grad_norm', 'learning_rate')}
                window = sums if window is None else metrics.add(window, sums)
                last = index == c.train.updates
                if index % c.train.log_every == 0 or last:
                    writer.log(index, metrics.means(window, rates))
                    window = None
                writer.advance(index)
                if last or (c.train.eval_every and index % c.train.eval_every == 0):
                    jax.block_until_ready(state)
                    seconds += time.perf_counter() - began
                    found = scores_of('validation')
                    writer.log(index, found, kind='validation')
                    began = time.perf_counter()
                # Saved after all lines of this update: a resumed run repeats none of them.
                if index % c.train.save_every == 0 or last:
                    jax.block_until_ready(state)
                    seconds += time.perf_counter() - began
                    meta = {'seconds': seconds, 'window': metrics.to_json(window), **identities}
                    saved.save(index, state, meta)
                    began = time.perf_counter()
            found = found or scores_of('validation')
            scores = {'validation': found, 'test': scores_of('test')}
    result = (
        summary(c, shape, student, network, seconds, scores) | workdir.provenance() | identities
    )
    workdir.write(folder / 'result.json', json.dumps(result, indent=2) + '\n')
    return result


def _keep_tokenizer(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, family: str) -> None:
    """Puts the tokenizer beside the checkpoints, so that the workdir can be loaded and exported."""
    if jax.process_index() != 0:
        return
    if folder.exists() and tokenizers.read(str(folder)).hash != tokenizer.hash:
        shutil.rmtree(folder)  # of an attempt that came to nothing
    if not folder.exists():
        pydocs.publish(folder, lambda temporary: tokenizer.save(temporary, family))


def check(c: ConfigDict, runs: bool = True) -> None:
    """Raises UserError for what can be known before any device works.

    Args:
      c: the run's configuration.
      runs: whether the runs that it starts from must be there already.
    """
    if c.teacher.layers and not c.teacher.path:
        raise UserError(
            "config.teacher.path = '': must be the workdir of a run, as config.teacher.layers is "
            'given; `python -m lightpaff_jax.recipe` is the command that trains its teacher'
        )
    validation.check_paths(c, runs)
    sources.check(c)
    validation.validate(c, jax.device_count(), jax.process_count())


def keep_compiled(folder: str) -> None:
    """Programs compiled once are read from `folder` the next time. jax takes the first folder."""
    if folder:
        path = str(pathlib.Path(folder).expanduser())
        jax.config.update('jax_compilation_cache_dir', path)


def restore(c: ConfigDict, mesh: Mesh, student: models.Model, rule, saved: checkpoint.Checkpoints,
            identities: dict, initial: models.Params | None):  # fmt: skip
    """State, updates done, seconds they took, sums not yet logged: of the newest checkpoint.

    Without one: the parameters `initial`, or fresh ones.

    Raises:
      UserError: the checkpoint is of other data, another teacher or another start, or has done
        more updates than `c.train.updates`.
    """
    places = distill_step.state_shardings(mesh, student, rule)

    def fresh():
        return distill_step.init_state(student, rule, c.seed)

    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(fresh),
        places,
    )
    found = saved.restore(abstract)
    if found is None:
        state = jax.jit(fresh, out_shardings=places)()
        if initial is not None:
            state = distill_step.TrainState(state.step, initial, state.opt_state)
        return state, 0, 0.0, None
    step, state, meta = found
    for name, value in identities.items():
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
    return state, step, meta['seconds'], metrics.from_json(meta['window'])


def summary(c: ConfigDict, shape: Shape, student: models.Model, network: models.Model | None,
            seconds: float, scores: dict) -> dict:  # fmt: skip
    """Scores and cost. Seconds are those of updates, without compiling and scoring."""
    examples, length = c.train.updates * c.data.batch_size, shape.tokens + shape.source
    flops = 3 * student.flops(shape)
    flops += 0 if network is None else network.flops(shape)
    return {
        'objective': c.objective,
        'updates': c.train.updates,
        'tokens': examples * length,
        'seconds': seconds,
        'flops': examples * flops,
        'tokens_per_second': examples * length / seconds,
        'parameters': student.parameters,
        'bytes': 4 * student.parameters,
        'scores': scores,
        'protocol': workdir.protocol(c),
        'seed': c.seed,
    }
