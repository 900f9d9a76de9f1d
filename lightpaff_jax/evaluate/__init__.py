"""Scores a network on the splits of a run's data; the command `python -m lightpaff_jax.evaluate`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from ml_collections import ConfigDict

from lightpaff_jax import (
    check,
    config,
    distill_step,
    generate,
    matching,
    metrics,
    models,
    networks,
    pretrained,
    sharding,
    teacher as teacher_lib,
    workdir,
)
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import flags, matching as config_matching, validate
from lightpaff_jax.data import batches, prepare, sources, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.tokenizers import Tokenizer, selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import predictions, scores
from lightpaff_jax.losses import BATCH_AXES
from lightpaff_jax.models import decoding
from lightpaff_jax.models.huggingface.generation_config import Generation
from lightpaff_jax.runtime import distributed, storage

Scores = dict[str, float | str]


class SplitOutputs(NamedTuple):
    """The outputs and scores of one pass over a split, without generated text.

    `indices` are the ascending numbers of its examples (blocks, windows). `values` has a row for
    each of them, or a sum over all; see `distill_step.make_evaluation`.
    """

    split: str
    indices: np.ndarray
    values: dict[str, Any]
    scores: Scores


class Evaluation:
    """Scores the parameters of one network on the splits of a run's data.

    Make and use it under `jax.set_mesh(mesh)`. Every example is counted once, however devices and
    processes share the batches. The scores compare with `teacher`, if it is given. `generation` has
    the settings of a scored Hugging Face folder. The other arguments are those of the run.
    """

    def __init__(
        self,
        c: ConfigDict,
        mesh: Mesh,
        student: models.Model,
        teacher: teacher_lib.Teacher | None,
        prepared: Dataset | Mixture,
        tokenizer: Tokenizer,
        generation: Generation | None = None,
    ):
        self._c, self._mesh, self._prepared, self._tokenizer = c, mesh, prepared, tokenizer
        self._teacher_params = None if teacher is None else teacher.params
        teacher_model = None if teacher is None else teacher.model
        losses = None
        if teacher_model is not None:
            losses = networks.matching_losses(c, teacher_model.network)
        self._evaluate = distill_step.make_evaluation(c, mesh, student, teacher_model, losses)
        generates = workdir.metric(c) in config.GENERATION_METRICS
        self._generate = None
        if generates:
            self._generate = _make_generation(c, mesh, student, tokenizer, generation)
        for split in workdir.splits(c):
            self._check_split(split)

    def score(
        self, split: str, params: models.Params, before_batch: Callable[[], None] = lambda: None
    ) -> SplitOutputs:
        """Computes the scores of a split that need no generated text.

        Args:
          split: name of the split.
          params: parameters of the network.
          before_batch: called before each batch; may raise an exception to stop.
        """
        arguments = params, self._teacher_params
        indices, values = self._run(split, self._evaluate, *arguments, before_batch=before_batch)
        split_scores = compute_scores(self._c, values, self._prepared.split(split))
        return SplitOutputs(split, indices, values, split_scores)

    def finish(self, outputs: SplitOutputs, params: models.Params, folder: Any) -> Scores:
        """Writes the predictions of a split; returns its scores with those of generated text.

        Args:
          outputs: the result of `score`.
          params: the parameters that it scored.
          folder: receives `<split>.jsonl`, with the lines of `predictions`.
        """
        c, split, values = self._c, outputs.split, outputs.values
        if self._generate is not None:
            student_params, _ = matching.split_params(params)
            _, values = self._run(split, self._generate, student_params)
        if 'ids' not in values:  # the objective has only sums
            return outputs.scores
        text = ''

        def format_and_score() -> Scores:
            nonlocal text
            indices = outputs.indices.tolist()
            lines = predictions.lines(c, self._prepared, self._tokenizer, split, indices, values)
            text = ''.join(f'{storage.format_json(line)}\n' for line in lines)
            if self._generate is None:
                return {}
            texts, references = ([line[key] for line in lines] for key in ('text', 'reference'))
            return scores.GENERATION_SCORES[c.eval.metric](texts, references, c.eval.tokenize)

        generation_scores = distributed.broadcast_from_primary(format_and_score)
        workdir.write_text(folder / f'{split}.jsonl', text)
        return outputs.scores | generation_scores

    def _check_split(self, split: str) -> None:
        """Reads a split once, because a run should not end with an evaluation that is impossible.

        Raises:
          UserError: a record is damaged, no token is predicted, or the metric cannot score the
            references.
        """
        c, prepared = self._c, self._prepared
        predicts = [bool(batch.weights.any()) for batch in self._batches(split)]
        if not any(distributed.all_gather(any(predicts))):
            raise UserError(f'{prepared.path}: no token of split {split!r} is predicted')
        if self._generate is None:
            return
        indices = batches.evaluation_indices(c, prepared, split)
        examples = np.sort(indices[indices >= 0]).tolist()
        distributed.broadcast_from_primary(
            lambda: predictions.check_references(c, prepared, self._tokenizer, split, examples)
        )

    def _batches(self, split: str) -> Iterator[Batch]:
        rows = sharding.local_rows(self._mesh, self._c.eval.batch_size)
        return batches.evaluation(self._c, self._prepared, self._tokenizer, split, rows)

    def _run(
        self,
        split: str,
        call: Callable[..., dict[str, jax.Array]],
        *arguments: Any,
        before_batch: Callable[[], None] = lambda: None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns the ascending numbers of the examples, and their outputs: rows, or sums.

        The outputs are those of `call(*arguments, batch)` for every batch of the split.
        """
        parts: dict[str, list[np.ndarray]] = {}
        indices_NB = batches.evaluation_indices(self._c, self._prepared, split)
        for indices_B, batch in zip(indices_NB, self._batches(split), strict=True):
            before_batch()
            outputs = call(*arguments, sharding.put_batch(self._mesh, batch, micro=False))
            for name, x in jax.device_get(outputs).items():
                parts.setdefault(name, []).append(x[indices_B >= 0] if x.ndim else x)
        indices = indices_NB[indices_NB >= 0]
        order = np.argsort(indices)
        values = {
            name: np.concatenate(part)[order] if part[0].ndim else np.sum(part, dtype=np.float64)
            for name, part in parts.items()
        }
        return indices[order], values


def compute_scores(c: ConfigDict, values: Mapping[str, Any], stats: Mapping[str, int]) -> Scores:
    """Computes the scores of a split from the outputs of `distill_step.make_evaluation`.

    Args:
      c: the configuration of the run.
      values: for each output its rows, or its sum over all examples.
      stats: the number of `tokens` and `words` of the split.

    Returns:
      For a classifier `scores.classifier_scores` and `examples`. Otherwise `ce` (nats per predicted
      token), `perplexity` = exp(ce), `accuracy` and `tokens`; with a teacher `kl`, `agreement` and
      `teacher_ce`. If every token of a text is predicted, also `word_perplexity` = exp(nats / words),
      comparable between tokenizers, and `words`: those of the original text with one end of line
      per text line, in proportion if only a part of the split was read. For matching losses only,
      `matching`, the sum of their weighted means, and the mean of each term.

    Raises:
      UserError: no token is predicted, or a logit of a classifier is not finite.
    """
    outputs = config.OBJECTIVES[c.objective].outputs
    if outputs == 'logits':
        logits, teacher_logits = values['logits'], values.get('teacher_logits')
        result = scores.classifier_scores(
            logits, values['label'], teacher_logits, c.loss.temperature
        )
        return {**result, 'examples': len(logits)}
    sums = {
        name: float(np.sum(x, dtype=np.float64))
        for name, x in values.items()
        if name not in ('ids', 'source')
    }
    if outputs == 'matching':
        terms = metrics.means({name: x for name, x in sums.items() if name != 'count'})
        weights = config_matching.terms(c)
        total = sum(weights[name].weight * mean for name, mean in terms.items())
        return {'matching': total, **terms, 'rows': round(sums['count'])}
    if not sums['labelled']:  # a mean of nothing would be the best score
        raise UserError('no token of the split is predicted, must be at least 1')
    means = metrics.means(sums)
    names = ('ce', 'perplexity', 'accuracy', 'kl', 'agreement', 'teacher_ce')
    token_scores: Scores = {name: means[name] for name in names if name in means}
    token_scores['tokens'] = round(sums['labelled'])
    if outputs == 'rows':
        words = stats['words'] * sums['labelled'] / stats['tokens']
        token_scores |= {'word_perplexity': metrics.exp(sums['ce'] / words), 'words': round(words)}
    return token_scores


def _make_generation(
    c: ConfigDict,
    mesh: Mesh,
    student: models.Model,
    tokenizer: Tokenizer,
    generation: Generation | None,
):
    """Returns the jitted function `(params, batch) -> outputs`, replicated on all devices.

    Its outputs are the generated `ids` [B, N] and their `lengths` [B], and the ids `source` [B, S]
    and `reference` [B, T], with -1 for padding.
    """
    max_length = c.generate.max_length or c.data.target_length
    configured = c.generate.to_dict() | {'max_length': max_length}
    eos = tokenizer.eos_id
    ends: Sequence[int] = (eos,)
    if generation is not None:  # `config.generate` has no repetition and no forced tokens
        ends = generation.eos_ids
        configured = {
            k: v for k, v in generation.settings.items() if k not in decoding.SAMPLING
        } | configured
    settings = generate.Settings(**configured)
    rows: Any = P(BATCH_AXES)
    # Under shard_map each device stops when its own rows have ended.
    generate_shards = jax.shard_map(
        generate.make_generate(
            student, settings, start_id=eos, eos_id=ends, pad_id=tokenizer.pad_id
        ),
        mesh=mesh,
        in_specs=(P(), rows),
        out_specs=rows,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )

    def generate_batch(params, batch):
        generated = generate_shards(params, batch)
        return {
            'ids': generated.ids,
            'lengths': generated.lengths,
            'source': jnp.where(batch.source_segments > 0, batch.source, -1),
            'reference': jnp.where(batch.weights > 0, batch.labels, -1),
        }

    return jax.jit(generate_batch, out_shardings=sharding.replicated(mesh))


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
    if config.OBJECTIVES[c.objective].outputs == 'matching':
        raise UserError(
            f'config.objective = {c.objective!r}: cannot be scored without a teacher; its runs write '
            'their matching losses to result.json'
        )
    out = out or f'{model.rstrip("/")}/evaluation'
    defaults = config.default()  # training reads these sections, and their rules need a teacher
    c.matching.update(defaults.matching.to_dict())
    c.teacher.cache, c.teacher.cache_epochs = defaults.teacher.cache, defaults.teacher.cache_epochs
    validate.validate(c)  # the task; the network replaces its student afterwards
    storage.check_reachable(model)
    storage.check_reachable(out)
    distributed.sync_devices()
    source = pretrained.open('--model', model)
    _adopt(c, source)
    check.check(c)
    with workdir.held(storage.to_path(out)):
        result = _evaluate(c, source, storage.to_path(out))
        for split, split_scores in result['scores'].items():
            distributed.log_primary(f'{split}: {scores.format_scores(split_scores)}')
        workdir.write_json(storage.to_path(out) / 'scores.json', result)
    distributed.log_primary(f'{out}/scores.json')


def _adopt(c: ConfigDict, source: pretrained.Pretrained) -> None:
    """Sets the scored network as the student, and resets the keys that only training reads."""
    network, head = source.network, config.OBJECTIVES[c.objective].head
    if network.family != c.student.family:
        raise UserError(
            f'{source.label}: is of family {network.family!r}, the task of the configuration is '
            f'for {c.student.family!r}'
        )
    if network.head == 'pretraining' and head == 'lm':
        network.head = 'lm'  # a pre-training head of BERT contains an LM head
    if network.head != head:
        raise UserError(
            f'{source.label}: its head is {network.head!r}, objective {c.objective!r} needs '
            f'{head!r}'
        )
    classes = sources.classes(c) if head == 'classify' else 0
    if network.classes != classes:
        raise UserError(
            f'{source.label}: has {network.classes} classes, the examples of source '
            f'{c.data.source!r} have {classes}'
        )
    c.student.update(network.to_dict())
    default = config.default().student
    for key in ('init', 'init_new_head', 'init_layers', 'init_decoder_layers'):
        c.student[key] = default[key]
    if c.tokenizer.reduce or not c.tokenizer.path:  # the network has its own reduced tokenizer
        c.tokenizer.path, c.tokenizer.reduce = tokenizers.find(source.path) or '', ()
    if not (c.tokenizer.path or c.teacher.path):
        raise UserError(f'{source.label}: must hold the tokenizer of the network')
    if not c.teacher.path:
        c.teacher.update(config.network(layers=0).to_dict())
    c.train.grad_accum_steps, c.teacher.microbatch_size = 1, 0
    for key in ('unlabelled', 'unlabelled_share', *config.AUGMENTATION):
        c.data[key] = config.default().data[key]
    c.data.batch_size = validate.batch_shards(c, jax.device_count())


def _evaluate(c: ConfigDict, source: pretrained.Pretrained, out: Any) -> dict[str, Any]:
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh):
        tokenizer = selection.load(c)
        source.check_tokenizer(tokenizer, c.tokenizer.lowercase)
        teacher = teacher_lib.load(c, mesh, tokenizer)
        prepared = prepare.prepare(c, tokenizer)
        student = networks.student(c)
        names = sources.class_names(c) if c.student.head == 'classify' else ()
        params = source.read_params(student, mesh, class_names=names)
        generates = workdir.metric(c) in config.GENERATION_METRICS
        generation = source.generation(tokenizer) if generates else None
        evaluation = Evaluation(c, mesh, student, teacher, prepared, tokenizer, generation)
        split_scores: dict[str, Scores] = {}
        for split in workdir.splits(c):
            outputs = evaluation.score(split, params)
            if not split_scores:  # the folder never holds files of two networks
                workdir.remove_scores(out, 'scores.json')
            split_scores[split] = evaluation.finish(outputs, params, out / 'predictions')
    return workdir.task_keys(c) | {
        'model': source.path,
        'parameters': student.parameter_count,
        'scores': split_scores,
        'protocol': workdir.protocol(c, generation and generation.settings),
        'tokenizer_hash': tokenizer.fingerprint,
        'data_hash': prepared.hash,
        'teacher_hash': None if teacher is None else teacher.hash,
        **workdir.provenance(mesh.size),
    }
