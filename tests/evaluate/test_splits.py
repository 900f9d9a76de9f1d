"""Scores and predictions at the end of a run, for any mesh, batch size and source."""

import json
import pathlib

import jax
import numpy as np
import pytest
from helpers import corpus
from helpers.checkpoints import flip
from helpers.sources import make_config, write_file

from lightpaff_jax import config, evaluate, generate, models, sharding
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import batches, objectives, prepare, records, sampler, sources
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.teacher import Teacher
from lightpaff_jax.train import train

SMALL = {'layers': 1, 'width': 32, 'heads': 2, 'ffn': 32, 'positions': 512}


def evaluate_split(c, folder, split='test', teacher_seed=None):
    """Returns the scores of a network with large random weights, and its lines of predictions."""
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    student = models.build(c.student)
    params = jax.tree.map(lambda x: 5 * x, student.init(jax.random.key(2)))
    mesh = sharding.make_mesh(c)
    teacher = None
    if teacher_seed is not None:
        other = jax.tree.map(lambda x: 5 * x, student.init(jax.random.key(teacher_seed)))
        teacher = Teacher(student, other, '')
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.device_put, params, sharding.param_shardings(mesh, params))
        evaluation = evaluate.Evaluation(c, mesh, student, teacher, prepared, tokenizer)
        scores = evaluation.finish(evaluation.score(split, params), params, folder)
    return scores, [json.loads(x) for x in (folder / f'{split}.jsonl').read_text().splitlines()]


def reference_logits(c, numbers, seed):
    """Returns float64 logits of test examples, one at a time and without padding rows."""
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    student = models.build(c.student)
    params = jax.tree.map(lambda x: 5 * x, student.init(jax.random.key(seed)))
    records, compute_logits = prepared.records('test'), jax.jit(student.logits)
    logits = []
    for number in numbers:
        batch = Batch(**objectives.classify(c, tokenizer, records.read([number]), []))
        logits.append(np.asarray(compute_logits(params, batch), np.float64)[0, 0])
    return np.array(logits)


@pytest.fixture
def pairs(data_cache):
    c = corpus.examples_config(data_cache, 'pairs')
    c.student.update(SMALL)
    c.data.packages, c.data.length = ('flax', 'optax'), 64
    c.eval.batch_size = 16
    return c


def test_classifier_scores_equal_a_float64_reference(pairs, tmp_path):
    scores, lines = evaluate_split(pairs, tmp_path, teacher_seed=1)
    examples = list(sources.examples(pairs, 'test'))
    assert len(examples) % 16  # the last batch is partial
    assert [line['index'] for line in lines] == list(range(len(examples)))
    s, t = (reference_logits(pairs, range(len(examples)), seed) for seed in (2, 1))
    log_s, log_t = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (s, t))
    labels = np.array([example.label for example in examples])
    predicted = s.argmax(1)
    assert 0 < predicted.mean() < 1
    hits = ((predicted == 1) & (labels == 1)).sum()
    precision, recall = hits / (predicted == 1).sum(), hits / (labels == 1).sum()
    assert scores['examples'] == len(examples)
    assert scores['accuracy'] == (predicted == labels).mean()
    assert scores['f1'] == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    assert scores['agreement'] == (predicted == t.argmax(1)).mean()
    # The logits are float32.
    rows = np.arange(len(labels))
    assert scores['ce'] == pytest.approx(-log_s[rows, labels].mean(), rel=1e-5)
    assert scores['teacher_ce'] == pytest.approx(-log_t[rows, labels].mean(), rel=1e-5)
    kl = (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
    assert scores['kl'] == pytest.approx(kl, rel=1e-4)
    for line, example, row in zip(lines, examples, log_s, strict=True):
        assert line['text'] == f'{example.first} [SEP] {example.second}'
        assert line['label'] == example.label
        assert line['predicted'] == row.argmax()
        assert line['probabilities'] == pytest.approx(np.exp(row).tolist(), abs=1e-5)


@pytest.mark.parametrize('mesh', [{'data': 1}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_classifier_scores_do_not_depend_on_mesh_or_batch_size(pairs, tmp_path, mesh):
    expected, lines = evaluate_split(pairs, tmp_path)
    pairs.mesh.update(mesh)
    pairs.eval.batch_size = 24
    scores, other_lines = evaluate_split(pairs, tmp_path)
    assert scores == pytest.approx(expected, rel=1e-5)
    for line, other in zip(lines, other_lines, strict=True):  # logits of some 10, float32
        assert line.pop('probabilities') == pytest.approx(other.pop('probabilities'), abs=1e-5)
        assert line == other


def test_partial_split_is_predicted_in_split_order(pairs, tmp_path):
    pairs.eval.batches = 1
    scores, lines = evaluate_split(pairs, tmp_path)
    assert scores['examples'] == len(lines) == 16
    numbers = [line['index'] for line in lines]
    assert numbers == sorted(numbers) != list(range(16))
    examples = list(sources.examples(pairs, 'test'))
    assert [line['label'] for line in lines] == [examples[n].label for n in numbers]


def as_prepared(c):
    """Returns the configuration that reads the same data as a prepared dataset."""
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    changed = config.copy(c)
    plain = config.default().data
    changed.data.update({key: plain[key] for key in ('packages', 'view')})
    changed.data.update({'source': 'prepared', 'path': prepared.path})
    changed.tokenizer.path = tokenizer.path
    return changed


def test_texts_of_a_prepared_dataset_are_decoded_ids(pairs, tmp_path):
    pairs.data.length = 512
    expected, lines = evaluate_split(pairs, tmp_path)
    scores, other_lines = evaluate_split(as_prepared(pairs), tmp_path)
    assert scores == expected
    same = [line['text'] == other['text'] for line, other in zip(lines, other_lines, strict=True)]
    assert sum(same) > 10  # texts of at most 512 ids
    for line, other in zip(lines, other_lines, strict=True):
        first, second = other['text'].split(' [SEP] ')
        whole_first, whole_second = line['text'].split(' [SEP] ')
        assert whole_first.startswith(first.rstrip('�'))
        assert whole_second.startswith(second.rstrip('�'))


def test_blocks_have_text_and_loss(data_cache, tmp_path):
    c = corpus.tiny_config(data_cache)
    c.student.update(SMALL)
    c.eval.batch_size = 24
    scores, lines = evaluate_split(c, tmp_path)
    assert sum(line['tokens'] for line in lines) == scores['tokens']
    nll = sum(line['nll'] for line in lines)
    assert nll / scores['tokens'] == pytest.approx(scores['ce'], rel=1e-12)
    tokenizer = selection.load(c)
    records = prepare.prepare(c, tokenizer).records('test')
    assert [line['index'] for line in lines] == list(range(len(records)))
    for line in lines[:20] + lines[-1:]:
        assert line['text'] == tokenizer.decode(records[line['index']].first[1:].tolist())


@pytest.fixture
def summaries(data_cache):
    c = corpus.examples_config(data_cache, 'summary')
    c.student.update(SMALL | {'decoder_layers': 1})
    c.data.packages, c.data.length = ('flax', 'optax'), 64
    c.eval.update({'batch_size': 8, 'batches': 2, 'metric': 'rouge1'})
    return c


@pytest.mark.parametrize('beams', [1, 3])
@pytest.mark.parametrize('mesh', [{}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_generated_texts_equal_those_of_generate(summaries, tmp_path, beams, mesh):
    c = summaries
    c.generate.beams, c.generate.min_length = beams, 2
    c.mesh.update(mesh)
    scores, lines = evaluate_split(c, tmp_path)
    assert {'rouge1', 'rouge2', 'rougeL', 'perplexity'} <= scores.keys()
    assert len(lines) == 16
    examples = list(sources.examples(c, 'test'))
    tokenizer = selection.load(c)
    student = models.build(c.student)
    params = jax.tree.map(lambda x: 5 * x, student.init(jax.random.key(2)))
    settings = generate.Settings(max_length=12, min_length=2, beams=beams)
    eos = tokenizer.eos_id
    write = jax.jit(
        generate.make_generate(student, settings, start_id=eos, eos_id=eos, pad_id=tokenizer.pad_id)
    )
    records = prepare.prepare(c, tokenizer).records('test')
    for line in lines[:4] + lines[-1:]:
        example = examples[line['index']]
        assert (line['source'], line['reference']) == (example.first, example.second)
        source = np.append(records[line['index']].first, eos)[None]
        unused = np.zeros((1, 1), np.int32)
        mask = np.ones_like(source)
        prompt = Batch(unused, unused, unused, source=source, source_segments=mask)
        ids = np.asarray(write(params, prompt).ids)[0].tolist()
        assert line['text'] == tokenizer.decode([i for i in ids if i != eos])


def test_targets_without_generation_have_nll(summaries, tmp_path):
    summaries.eval.metric = ''
    scores, lines = evaluate_split(summaries, tmp_path)
    assert sum(line['tokens'] for line in lines) == scores['tokens']
    assert sum(line['nll'] for line in lines) == pytest.approx(scores['ce'] * scores['tokens'])
    examples = list(sources.examples(summaries, 'test'))
    for line in lines:
        example = examples[line['index']]
        assert (line['source'], line['reference']) == (example.first, example.second)
    _, other_lines = evaluate_split(as_prepared(summaries), tmp_path)
    for line, other in zip(lines, other_lines, strict=True):
        assert line['reference'].startswith(other['reference'].rstrip('�'))
        assert line['nll'] == pytest.approx(other['nll'])


def test_references_of_a_prepared_dataset_are_decoded_ids(summaries, tmp_path):
    summaries.data.update({'length': 256, 'target_length': 24})
    _, lines = evaluate_split(summaries, tmp_path)
    _, other_lines = evaluate_split(as_prepared(summaries), tmp_path)
    for line, other in zip(lines, other_lines, strict=True):
        assert line['text'] == other['text']
        assert line['reference'].startswith(other['reference'].rstrip('�'))
        assert line['source'].startswith(other['source'].rstrip('�'))
    uncut = [line for line, other in zip(lines, other_lines, strict=True) if line == other]
    assert uncut


# Before the training.


@pytest.fixture
def letters(tmp_path, vocabulary):
    """A function that configures a task whose targets, of one-letter words, are those of a split."""

    def configure(is_prepared, split, targets):
        texts = {name: ['a b c d'] * 40 for name in sources.SPLITS} | {split: targets}
        for name, column in texts.items():
            rows = ['s\tt', *(f'a\t{target}' for target in column), '']
            write_file(tmp_path / f'data/{name}.tsv', '\n'.join(rows))
        c = make_config('table', tmp_path / 'data', columns=('s', 't'))
        c.student.update(SMALL | {'family': 'mass', 'decoder_layers': 1})
        c.student.vocab_size = vocabulary.vocab_size
        c.tokenizer.path = vocabulary.path
        c.data.update({'cache': str(tmp_path / 'cache'), 'length': 8, 'target_length': 8})
        c.eval.update({'batch_size': 8, 'metric': 'bleu'})
        return as_prepared(c) if is_prepared else c

    return configure


def make_evaluation(c):
    tokenizer, mesh = selection.load(c), sharding.make_mesh(c)
    with jax.set_mesh(mesh):
        prepared = prepare.prepare(c, tokenizer)
        evaluate.Evaluation(c, mesh, models.build(c.student), None, prepared, tokenizer)


@pytest.mark.parametrize('is_prepared', [False, True])
@pytest.mark.parametrize('split', ['validation', 'test'])
def test_references_without_4_words_are_refused(letters, is_prepared, split):
    c = letters(is_prepared, split, ['a b c', 'd'])
    with pytest.raises(
        UserError, match=rf'^bleu: no reference has 4 words, .* \(split {split!r} of'
    ):
        make_evaluation(c)
    c.eval.metric = 'rouge1'
    make_evaluation(c)
    c.eval.metric, c.eval.test = 'bleu', False
    if split == 'test':  # it is not scored
        make_evaluation(c)


def test_one_reference_of_4_words_that_is_scored_is_enough(letters):
    targets = ['a'] * 40
    targets[sampler.evaluation_order(40)(39)] = 'a b c d'
    make_evaluation(letters(False, 'test', targets))
    c = letters(False, 'test', targets)
    c.eval.batches = 1
    with pytest.raises(UserError, match='no reference has 4 words'):
        make_evaluation(c)


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_record_that_is_damaged_is_found_before_training(letters, split):
    targets = [f'{letter} b c d' for letter in 'aefghijklmnopqrstuvwxyz']
    c = letters(True, split, targets)
    prepared = records.Dataset.open(pathlib.Path(c.data.path))
    last = batches.evaluation_indices(c, prepared, split)[-1, 0]
    file = records.shard_path(pathlib.Path(c.data.path), split, 0)
    content = records.to_bytes(prepared.records(split)[last], 'examples', np.dtype('<u2'))
    start = file.read_bytes().index(content)
    flip(file, start)
    with pytest.raises(UserError, match=f'^{file}: is damaged'):
        make_evaluation(c)


# At the end of a run.


@pytest.mark.slow
def test_a_run_generates_only_at_its_end(summaries, tmp_path):
    c = summaries
    configured(c, tmp_path)
    c.train.eval_every = 2
    result = train(c)
    for name in ('rouge1', 'rouge2', 'rougeL', 'perplexity'):
        assert name in result['scores']['test']
    assert result['metric'] == 'rouge1'
    metrics = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    scores = [line for line in metrics if line['kind'] == 'validation']
    assert [line['step'] for line in scores] == [2, 4]
    assert not any('rouge1' in line for line in scores)
    assert scores[-1]['perplexity'] == result['scores']['validation']['perplexity']


def test_missing_splits_and_metrics_are_scored_later(summaries, tmp_path):
    c = summaries
    configured(c, tmp_path)
    c.eval.test, c.eval.metric = False, ''
    first = train(c)
    assert list(first['scores']) == ['validation']
    assert [p.name for p in (tmp_path / 'predictions').iterdir()] == ['validation.jsonl']
    checkpoint, metrics = tmp_path / 'checkpoints' / '4', tmp_path / 'metrics.jsonl'
    stamp, text = checkpoint.stat().st_mtime_ns, metrics.read_bytes()
    c.eval.test = True
    second = train(c)
    assert list(second['scores']) == ['validation', 'test']
    assert second['scores']['validation'] == first['scores']['validation']
    assert second['seconds'] == first['seconds']
    c.eval.metric = 'bleu'
    third = train(c)
    assert third['scores']['test'].pop('bleu') >= 0
    assert 'version:' in third['scores']['test'].pop('bleu_signature')
    assert third['scores']['test'] == second['scores']['test']
    assert len((tmp_path / 'predictions/test.jsonl').read_text().splitlines()) == 16
    assert (checkpoint.stat().st_mtime_ns, metrics.read_bytes()) == (stamp, text)
    third = json.loads((tmp_path / 'result.json').read_text())
    stamp = (tmp_path / 'result.json').stat().st_mtime_ns
    c.eval.test = False  # the result has more splits than are requested
    assert train(c) == third
    assert (tmp_path / 'result.json').stat().st_mtime_ns == stamp


def configured(c, workdir):
    c.workdir = str(workdir)
    c.task = 'news'
    c.mesh.data = 1  # compiles faster; the tests above cover meshes
    c.train.grad_accum_steps, c.optim.warmup = 1, 2
    c.train.update({'updates': 4, 'save_every': 2, 'log_every': 2})
