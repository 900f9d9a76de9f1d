"""Scores of a network on a split: every example once, whatever devices and processes share it."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from lightpaff_jax import (
    check,
    config,
    distill_step,
    generate,
    metrics,
    models,
    networks,
    pretrained,
    sharding,
    workdir,
)
from lightpaff_jax import teacher as teacher_lib
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data import batches, prepare, sources, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer, selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import predictions, scores
from lightpaff_jax.losses import BATCH_AXES
from lightpaff_jax.runtime import distributed, storage

Scores = dict[str, float | str]


def language_model(c: ConfigDict, found: Mapping[str, Any], stats: Mapping) -> Scores:
    """Perplexity where every token of a text is predicted.

    Per token: exp(nll / predicted tokens). Per word: exp(nll / words), words as counted in the
    original text with one end of line each, so that tokenizers can be compared.

    Args:
      c: the run's configuration.
      found: what `distill_step.make_evaluation` found of each example, or the sums over all.
      stats: the split's `tokens` and `words`, as prepared.

    Returns:
      ce (nats a token), perplexity, word_perplexity, accuracy, tokens, words; with a teacher
      also its kl, agreement and teacher_ce. Of a split read in part, words are counted in
      proportion.
    """
    total = _total(found)
    words = stats['words'] * total['labelled'] / stats['tokens']
    word_perplexity = metrics.exp(total['ce'] / words)
    return masked(c, found, stats) | {'word_perplexity': word_perplexity, 'words': round(words)}


def masked(c: ConfigDict, found: Mapping[str, Any], stats: Mapping) -> Scores:
    """Perplexity of masked tokens, or of a masked fragment: arguments of `language_model`.

    Returns:
      ce (nats a predicted token), perplexity, accuracy, tokens; kl, agreement, teacher_ce.
    """
    del c, stats
    total = _total(found)
    means = metrics.means(total)
    compared = ('kl', 'agreement', 'teacher_ce') if 'kl' in means else ()
    made: Scores = {name: means[name] for name in ('ce', 'perplexity', 'accuracy', *compared)}
    return made | {'tokens': round(total['labelled'])}


def classification(c: ConfigDict, found: Mapping[str, Any], stats: Mapping) -> Scores:
    """Accuracy and, of two classes, F1 of a classifier: arguments of `language_model`.

    Returns:
      what `scores.of_logits` gives, and examples.
    """
    del stats
    made = scores.of_logits(
        found['logits'], found['label'], found.get('teacher_logits'), c.loss.temperature
    )
    return {**made, 'examples': len(found['label'])}


_SCORES: dict[str, Callable[[ConfigDict, Mapping[str, Any], Mapping], Scores]] = {
    'sums': masked,
    'rows': language_model,
    'logits': classification,
}
"""`outputs` of an objective -> its scores."""


def _total(found: Mapping[str, Any]) -> dict[str, float]:
    """The sums over all examples, in float64."""
    return {
        name: float(np.sum(x, dtype=np.float64))
        for name, x in found.items()
        if name not in ('ids', 'source')
    }


class Found(NamedTuple):
    """What one pass over a split found."""

    split: str
    numbers: np.ndarray
    """Of the examples (blocks, windows) in the split, rising."""
    values: dict[str, Any]
    """Of each of them, or a sum over all; see `distill_step.make_evaluation`."""
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores the parameters of one network on the splits of a run's data; see `make`."""

    c: ConfigDict
    mesh: Mesh
    prepared: Dataset | Mixture
    tokenizer: Tokenizer
    teacher_params: models.Params | None
    evaluate: Callable[..., dict[str, jax.Array]]
    write: Callable[..., dict[str, jax.Array]] | None
    """`_writer`'s; None where the metric is not of generated texts."""

    def find(self, split: str, params: models.Params) -> Found:
        """Scores a split, without generating."""
        numbers, values = self._look(split, self.evaluate, params, self.teacher_params)
        score = _SCORES[config.OBJECTIVES[self.c.objective].outputs]
        made = score(self.c, values, self.prepared.split(split))
        return Found(split, numbers, values, made)

    def finish(self, found: Found, params: models.Params, folder: Any) -> Scores:
        """All scores of a split, those of generated texts too; its predictions go to a folder.

        They are in `<split>.jsonl`, as predictions.py says.
        """
        c, split, text = self.c, found.split, ''
        values = found.values
        if self.write is not None:
            _, values = self._look(split, self.write, params)
        if 'ids' not in values:  # only sums were found
            return found.scores

        def concluded() -> Scores:
            nonlocal text
            lines = predictions.lines(c, self.tokenizer, split, found.numbers.tolist(), values)
            text = ''.join(f'{json.dumps(line)}\n' for line in lines)
            if self.write is None:
                return {}
            pairs = [(line['text'], line['reference']) for line in lines]
            return scores.OF_TEXTS[c.eval.metric](*zip(*pairs, strict=True))

        more = distributed.broadcast_from_primary(concluded)
        workdir.write_text(folder / f'{split}.jsonl', text)
        return found.scores | more

    def _look(self, split: str, call, *arguments) -> tuple[np.ndarray, dict[str, Any]]:
        """The numbers of the examples of a split, and what `call(*arguments, batch)` finds of them."""
        parts: dict[str, list[np.ndarray]] = {}
        numbers_nB = batches.evaluation_indices(self.c, self.prepared, split)
        rows = sharding.local_rows(self.mesh, self.c.eval.batch_size)
        passed = batches.evaluation(self.c, self.prepared, self.tokenizer, split, rows)
        for numbers_B, batch in zip(numbers_nB, passed, strict=True):
            found = call(*arguments, sharding.put_batch(self.mesh, batch, micro=False))
            for name, x in jax.device_get(found).items():
                parts.setdefault(name, []).append(x[numbers_B >= 0] if x.ndim else x)
        numbers = numbers_nB[numbers_nB >= 0]
        rising = np.argsort(numbers)
        values = {
            name: np.concatenate(p)[rising] if p[0].ndim else np.sum(p, dtype=np.float64)
            for name, p in parts.items()
        }
        return numbers[rising], values


def make(c: ConfigDict, mesh: Mesh, student: models.Model, teacher: teacher_lib.Teacher | None,
         prepared: Dataset | Mixture, tokenizer: Tokenizer) -> Evaluation:  # fmt: skip
    """What scores `student`; to be used under `jax.set_mesh(mesh)`.

    Args:
      c: the run's configuration.
      mesh: where parameters and batches are.
      student: the network that is scored.
      teacher: the teacher to compare with, or None.
      prepared: the run's data.
      tokenizer: the run's.
    """
    network, teacher_params = (None, None) if teacher is None else (teacher.model, teacher.params)
    written = workdir.task_keys(c)['metric'] in config.GENERATION_METRICS
    return Evaluation(
        c, mesh, prepared, tokenizer, teacher_params,
        distill_step.make_evaluation(c, mesh, student, network),
        _writer(c, mesh, student, tokenizer) if written else None,
    )  # fmt: skip


def _writer(c: ConfigDict, mesh: Mesh, student: models.Model, tokenizer: Tokenizer):
    """The jitted `(params, batch) -> found`, whole on every device: ids [B, N] and lengths [B] of
    the texts that are generated, source [B, S] and reference [B, T] (ids, -1 behind them).
    """
    settings = generate.Settings(
        max_length=c.generate.max_length or c.data.target_length,
        min_length=c.generate.min_length,
        beams=c.generate.beams,
        length_penalty=c.generate.length_penalty,
        early_stop=c.generate.early_stop,
    )
    eos = tokenizer.eos_id
    made = generate.make_generate(
        student, settings, start_id=eos, eos_id=eos, pad_id=tokenizer.pad_id
    )

    def local(params, batch):
        found = made(params, batch)
        return {'ids': found.ids, 'lengths': found.lengths}

    def write(params, batch):
        # Each device ends when its own texts do.
        rows: Any = P(BATCH_AXES)
        found = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), rows), out_specs=rows, axis_names=set(BATCH_AXES),
            check_vma=False,
        )(params, batch)  # fmt: skip
        source = jnp.where(batch.source_segments > 0, batch.source, -1)
        return found | {
            'source': source,
            'reference': jnp.where(batch.weights > 0, batch.labels, -1),
        }

    return jax.jit(write, out_shardings=sharding.replicated(mesh))


# The command

USAGE = """
python -m lightpaff_jax.evaluate --model=DIR --config=FILE[:PRESET] [--out=DIR] [--config.KEY=VALUE ...]

Scores a network on the data of a configuration, exactly as a run does at its end, and prints the
scores.

  --model=DIR   the workdir of a run, or a Hugging Face folder (BERT, GPT-2, BART)
  --config=...  the data, the objective, eval and generate; of config.student only the family is read
  --out=DIR     receives scores.json and predictions/<split>.jsonl; default: evaluation/ in --model

The network is compared with the teacher in config.teacher.path; --config.teacher.path= compares with
none. Keys, defaults and units: lightpaff_jax/config/__init__.py
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.main(run, USAGE, argv, {'model': '', 'out': ''})


def run(c: ConfigDict, model: str, out: str) -> None:
    """Scores a network; prints the scores and writes them.

    Args:
      c: the configuration of the task.
      model: path of the network.
      out: folder to write into; '' is evaluation/ in `model`.

    Raises:
      UserError: the network does not exist, or does not fit the task or its data.
    """
    if not model:
        raise UserError('--model=DIR: must be given')
    out = out or f'{model.rstrip("/")}/evaluation'
    validate.validate(c)  # the task; the network replaces its student afterwards
    storage.check_reachable(model)
    storage.check_reachable(out)
    distributed.sync_devices()
    source = pretrained.open('--model', model)
    _adopt(c, source)
    check.check(c)
    result = _evaluated(c, source, storage.to_path(out))
    for split, split_scores in result['scores'].items():
        distributed.log_primary(f'{split}: {scores.said(split_scores)}')
    workdir.write_json(storage.to_path(out) / 'scores.json', result)
    distributed.log_primary(f'{out}/scores.json')


def _adopt(c: ConfigDict, source: pretrained.Pretrained) -> None:
    """Makes the network that is scored the student of the configuration."""
    network = source.network
    if network.family != c.student.family:
        raise UserError(
            f'{source.label}: is of family {network.family!r}, the task of the configuration is '
            f'for {c.student.family!r}'
        )
    needed = config.OBJECTIVES[c.objective].head
    if network.head == 'pretraining' and needed == 'lm':
        network.head = 'lm'  # the masked-LM half of it
    if network.head != needed:
        raise UserError(
            f'{source.label}: its head is {network.head!r}, objective {c.objective!r} needs '
            f'{needed!r}'
        )
    classes = sources.classes(c) if needed == 'classify' else 0
    if network.classes != classes:
        raise UserError(
            f'{source.label}: has {network.classes} classes, the examples of source '
            f'{c.data.source!r} have {classes}'
        )
    for key in config.network():
        c.student[key] = network[key]
    plain = config.default()
    for key in ('init', 'init_new_head', 'init_layers', 'init_decoder_layers'):
        c.student[key] = plain.student[key]
    if not c.tokenizer.path:
        c.tokenizer.path = tokenizers.find(source.path) or ''
    if not (c.tokenizer.path or c.teacher.path):
        raise UserError(f'{source.label}: must hold the tokenizer of the network')
    if not c.teacher.path:
        c.teacher.update(config.network(layers=0).to_dict())
    # Nothing is trained.
    shards = validate.batch_shards(c, jax.device_count())
    c.train.grad_accum_steps, c.data.batch_size, c.data.unlabelled = 1, shards, ()
    c.teacher.microbatch_size = 0


def _evaluated(c: ConfigDict, source: pretrained.Pretrained, out: Any) -> dict[str, Any]:
    """What scores.json holds."""
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh):
        tokenizer = selection.load(c)
        source.check_tokenizer(tokenizer, c.tokenizer.lowercase)
        teacher = teacher_lib.load(c, mesh, tokenizer)
        prepared = prepare.prepare(c, tokenizer)
        student = networks.student(c)
        params = source.read_params(student, mesh)
        evaluation = make(c, mesh, student, teacher, prepared, tokenizer)
        made = {
            split: evaluation.finish(evaluation.find(split, params), params, out / 'predictions')
            for split in workdir.splits(c)
        }
    return workdir.task_keys(c) | {
        'model': source.path,
        'parameters': student.parameter_count,
        'scores': made,
        'protocol': workdir.protocol(c),
        'tokenizer_hash': tokenizer.fingerprint,
        'data_hash': prepared.hash,
        'teacher_hash': None if teacher is None else teacher.hash,
        **workdir.provenance(mesh.size),
    }
