"""One run: assemble, restore, step, log, save, evaluate. A teacher, a student and a control alike."""

import json
import os
import pathlib
import platform
import subprocess
import time
from importlib.metadata import version

import jax
from ml_collections import ConfigDict

import lightpaff_jax
from lightpaff_jax import (
    checkpoint,
    config,
    distill_step,
    evaluate,
    metrics,
    models,
    optimizer,
    sharding,
    teacher,
)
from lightpaff_jax.config import UserError
from lightpaff_jax.data import batches, prepare, tokenizers


def train(c: ConfigDict) -> dict:
    """Runs `c` in `c.workdir` to `c.train.updates`, from its newest checkpoint if it has one.

    Returns:
      what result.json holds.

    Raises:
      UserError: the configuration, its data, its teacher or its workdir does not fit.
    """
    config.check_paths(c)
    config.validate(c, jax.device_count())
    workdir = pathlib.Path(c.workdir).expanduser()
    claim(c, workdir)
    keep_compiled(c.train.compilation_cache)
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(workdir / 'checkpoints', c.train.keep) as saved:
        tokenizer = tokenizers.load(c)
        guide = teacher.load(c, mesh, tokenizer.hash)
        prepared = prepare.prepare(c, tokenizer)
        guide_params = None if guide is None else guide.params
        identities = {
            'tokenizer_hash': tokenizer.hash,
            'data_hash': prepared.hash,
            'teacher_hash': None if guide is None else guide.hash,
        }
        student = models.build(c.student, compute_dtype=c.train.compute_dtype, remat=c.train.remat)
        rule = optimizer.make(c)
        network = None if guide is None else guide.model
        step = distill_step.make_step(c, mesh, student, network, rule, optimizer.schedule(c))
        score = distill_step.make_evaluation(c, mesh, student, network)

        result = finished(c, workdir, identities)
        if result is not None:
            return result
        state, done = restore(c, mesh, student, rule, saved, identities)
        start, seconds, window = done['step'], done['seconds'], done['window']
        tokens = c.data.batch_size * c.data.length
        with metrics.Writer(workdir, c.train.updates, tokens, start) as writer:

            def scores_of(split: str) -> dict[str, float]:
                passed = batches.evaluation(c, prepared, split)
                stats = prepared.split(split)
                evaluation = evaluate.EVALS[c.objective]
                return evaluation(score, state.params, guide_params, passed, mesh, stats)

            began, in_flight, validation = time.perf_counter(), None, None
            for index, batch in enumerate(batches.training(c, prepared, start), start + 1):
                if index > c.train.updates:
                    break
                state, sums = step(state, guide_params, sharding.put_batch(mesh, batch, micro=True))
                jax.block_until_ready(in_flight)  # at most one step behind
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
                    validation = scores_of('validation')
                    writer.log(index, validation, kind='validation')
                    began = time.perf_counter()
                # Saved after all lines of this update: a resumed run repeats none of them.
                if index % c.train.save_every == 0 or last:
                    jax.block_until_ready(state)
                    seconds += time.perf_counter() - began
                    meta = {'seconds': seconds, 'window': metrics.to_json(window), **identities}
                    saved.save(index, state, meta)
                    began = time.perf_counter()
            scores = {'validation': validation or scores_of('validation'), 'test': scores_of('test')}
    result = summary(c, student, network, seconds, scores, identities)
    write_whole(workdir / 'result.json', json.dumps(result, indent=2) + '\n')
    return result


def keep_compiled(folder: str) -> None:
    """Programs compiled once are read from `folder` the next time; '' keeps none."""
    path = str(pathlib.Path(folder).expanduser()) if folder else None
    jax.config.update('jax_compilation_cache_dir', path)


def finished(c: ConfigDict, workdir: pathlib.Path, identities: dict) -> dict | None:
    """result.json of a run that has come to `c.train.updates` with the same data and teacher."""
    path = workdir / 'result.json'
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    same = all(result[name] == value for name, value in identities.items())
    return result if same and result['updates'] == c.train.updates else None


def claim(c: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json, or checks that the workdir belongs to the same configuration."""
    if (workdir / 'checkpoints').is_dir():  # else an attempt that came to nothing
        changed = config.differences(config.read(workdir), c)
        if changed:
            raise UserError(
                f'config.workdir = {c.workdir}: holds a run with another configuration '
                f'({"; ".join(changed)}); choose another workdir or remove it'
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / 'config.json', config.to_json(c) + '\n')


def restore(c, mesh, student, rule, saved, identities):
    """The state to go on from, and what its checkpoint says of step, seconds and window."""
    places = distill_step.state_shardings(mesh, student, rule)

    def fresh():
        return distill_step.init_state(student, rule, c.seed)

    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(fresh),
        places,
    )
    found = saved.restore(abstract)
    if found is not None:
        step, state, meta = found
        for name, value in identities.items():
            if meta[name] != value:
                raise UserError(
                    f'config.workdir = {c.workdir}: its checkpoint has {name} {meta[name]}, '
                    f'this run {value}; resuming needs the same'
                )
        if step > c.train.updates:
            raise UserError(
                f'config.train.updates = {c.train.updates}: must be at least {step}, the updates '
                f'that {c.workdir} has done'
            )
        window = metrics.from_json(meta['window'])
        return state, {'step': step, 'seconds': meta['seconds'], 'window': window}
    if c.student.init != 'scratch':
        shape = teacher.read_shape('student.init', c.student.init)
        for key, value in shape.items():
            if key != 'dropout' and c.student[key] != value:
                raise UserError(
                    f'config.student.{key} = {c.student[key]}: {c.student.init} has {value}'
                )
    state = jax.jit(fresh, out_shardings=places)()
    if c.student.init != 'scratch':
        hash_ = identities['tokenizer_hash']
        _, params = teacher.read_run('student.init', c.student.init, mesh, hash_)
        state = distill_step.TrainState(state.step, params, state.opt_state)
    return state, {'step': 0, 'seconds': 0.0, 'window': None}


def summary(c, student, network, seconds, scores, identities) -> dict:
    """result.json: scores, cost, and what made them."""
    examples = c.train.updates * c.data.batch_size
    length = c.data.length
    flops = 3 * student.flops(length, length)
    flops += 0 if network is None else network.flops(length, length)
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    device = jax.devices()[0]
    return {
        'updates': c.train.updates,
        'tokens': examples * length,
        'seconds': seconds,
        'flops': examples * flops,
        'tokens_per_second': examples * length / seconds,
        'parameters': student.parameters,
        'bytes': 4 * student.parameters,
        'scores': scores,
        'protocol': f'disjoint blocks of {length} tokens'
        + (f', the first {c.eval.batches} batches' if c.eval.batches else ''),
        'seed': c.seed,
        'hardware': f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores, '
        f'{platform.machine()}',
        'versions': {
            'lightpaff_jax': lightpaff_jax.__version__,
            'python': platform.python_version(),
            **{name: version(name) for name in names},
        },
        'git_commit': git_commit(),
        **identities,
    }


def git_commit() -> str | None:
    """The commit of the code that runs; None where it is no checkout."""
    root = pathlib.Path(__file__).parent
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def write_whole(path: pathlib.Path, text: str) -> None:
    """A file that is there is whole: written beside its place and renamed."""
    if jax.process_index() == 0:
        part = path.with_name(path.name + '.part')
        part.write_text(text)
        part.replace(path)
