"""Runs with matching losses: a teacher without a head, resume, and the run that starts from them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers.corpus import tiny_config

import lightpaff_jax
from lightpaff_jax import check, checkpoint, config, evaluate, models
from lightpaff_jax.data import objectives
from lightpaff_jax.data.records import PADDING, Record
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.matching import PROJECTIONS
from lightpaff_jax.recipe import __main__ as recipe
from lightpaff_jax.runtime import fingerprint
from lightpaff_jax.train import train

SHAPE = {'family': 'bert', 'heads': 2, 'ffn': 24, 'positions': 32}


def make_config(cache, workdir, objective, teacher=''):
    c = tiny_config(cache)
    c.workdir, c.objective, c.teacher.path = str(workdir), objective, str(teacher)
    c.student.update(SHAPE | {'layers': 2, 'width': 16, 'head': config.OBJECTIVES[objective].head})
    c.eval.batches, c.optim.warmup, c.mesh.data = 1, 1, 1
    c.train.update({'updates': 4, 'save_every': 2, 'log_every': 1, 'grad_accum_steps': 1})
    return c


def matched(cache, workdir, teacher, objective='match'):
    c = make_config(cache, workdir, objective, teacher)
    c.matching.update({'hidden': 1.0, 'pooled': 0.5, 'relations': 0.5, 'relation_heads': 4})
    c.matching.hidden_layers = ('0=0', '1=2')
    return c


@pytest.fixture(scope='module')
def teacher(data_cache, tmp_path_factory):
    """A Hugging Face folder of a BertModel, which has no head."""
    folder = tmp_path_factory.mktemp('teacher')
    shape = config.network(**SHAPE | {'layers': 3, 'width': 24, 'vocab_size': 512, 'head': 'none'})
    model = models.build(shape)
    tokenizer = selection.load(make_config(data_cache, '', 'mlm'))
    lightpaff_jax.save(str(folder), model, model.init(jax.random.key(3)), tokenizer)
    assert json.loads((folder / 'config.json').read_text())['architectures'] == ['BertModel']
    return folder


@pytest.fixture(scope='module')
def stage1(data_cache, teacher, tmp_path_factory):
    """The configuration and the result of a finished run of `match`."""
    c = matched(data_cache, tmp_path_factory.mktemp('stage1') / 'run', teacher)
    c.train.eval_every, c.train.keep_best = 2, 'matching'
    return c, train(c)


def saved_params(workdir):
    arrays = checkpoint.Reader(pathlib.Path(workdir) / 'checkpoints').read_params()
    return {name: np.asarray(x).tobytes() for name, x in fingerprint.flatten(arrays).items()}


def test_match_learns_and_scores_its_own_loss(stage1):
    c, result = stage1
    lines = (pathlib.Path(c.workdir) / 'metrics.jsonl').read_text().splitlines()
    first, *_, last = [x for x in map(json.loads, lines) if x['kind'] == 'train']
    assert last['loss'] < first['loss']
    terms = 1.0 * last['hidden'] + 0.5 * last['pooled'] + 0.5 * last['relations']
    assert last['loss'] == pytest.approx(terms, rel=1e-5)
    scores = result['scores']['test']
    terms = 1.0 * scores['hidden'] + 0.5 * scores['pooled'] + 0.5 * scores['relations']
    assert scores['matching'] == pytest.approx(terms, rel=1e-5)
    assert result['metric'] == 'matching'


def test_resumed_match_has_the_same_projections(stage1, tmp_path):
    c, _ = stage1
    before = saved_params(c.workdir)
    assert any(name.startswith(PROJECTIONS) for name in before)
    copy = config.copy(c)
    copy.workdir = str(shutil.copytree(c.workdir, tmp_path / 'run'))
    shutil.rmtree(tmp_path / 'run/checkpoints/4')
    (tmp_path / 'run/result.json').unlink()
    train(copy)
    assert saved_params(copy.workdir) == before
    metrics = [(pathlib.Path(x) / 'metrics.jsonl').read_bytes() for x in (c.workdir, copy.workdir)]
    assert metrics[0] == metrics[1]


def test_cached_activations_give_the_live_losses(stage1, tmp_path):
    c, result = stage1
    cached = config.copy(c)
    cached.workdir, cached.teacher.cache = str(tmp_path / 'run'), str(tmp_path / 'cache')
    cached_result = train(cached)
    # The cache rounds the teacher's activations to bfloat16.
    expected = pytest.approx(result['scores']['test']['matching'], rel=1e-3)
    assert cached_result['scores']['test']['matching'] == expected
    assert cached_result['flops_saved'] < 0  # four updates read less than the cache has


def test_stage2_starts_from_the_network_without_projections(data_cache, stage1, tmp_path):
    c, result = stage1
    model, params = lightpaff_jax.load(c.workdir)
    assert PROJECTIONS not in params
    assert result['parameters'] == model.parameter_count
    stage2 = make_config(data_cache, tmp_path / 'stage2', 'mlm')
    stage2.student.init, stage2.student.init_new_head = c.workdir, True
    stage2.train.updates = 1
    assert train(stage2)['scores']['test']['ce'] > 0


def test_teacher_without_a_head_teaches_no_logits(data_cache, teacher, tmp_path):
    c = make_config(data_cache, tmp_path / 'run', 'mlm', teacher)
    with pytest.raises(
        UserError, match=r'has no head.*use matching losses.*or train a masked-LM head'
    ):
        train(c)
    c = matched(data_cache, tmp_path / 'run', teacher, 'mlm')
    with pytest.raises(UserError, match='has no head'):
        train(c)
    c.loss.lambda_, c.train.updates = 0.0, 1
    assert 'kl' not in train(c)['scores']['test']
    line = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[0])
    terms = line['ce'] + line['hidden'] + 0.5 * line['pooled'] + 0.5 * line['relations']
    assert line['loss'] == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, "config.objective = 'match': requires config.matching.relations > 0 or"),
        ({'hidden': -1.0}, 'config.matching.hidden = -1.0: must be at least 0 and finite'),
        ({'hidden': 1.0, 'hidden_layers': ('1',)}, 'must be pairs of layers STUDENT=TEACHER'),
        ({'hidden': 1.0, 'hidden_layers': ('decoder:1=1',)}, "family 'bert' has no decoder"),
        ({'hidden': 1.0, 'hidden_layers': ('2=1',)}, "the student's encoder, 0 to 1"),
        ({'hidden': 1.0, 'hidden_layers': ('1=1', '1=1')}, 'must name no pair twice'),
        ({'hidden': 1.0, 'relation_layers': ('1=1',)}, 'only read if matching.relations > 0'),
        ({'hidden': 1.0, 'pooling': 'first'}, 'only read if matching.pooled > 0'),
        ({'pooled': 1.0, 'pooling': 'last'}, "'last': must be one of mean, first"),
        ({'relations': 1.0, 'relation_heads': 0}, 'relation_heads = 0: must be at least 1'),
        ({'relations': 1.0, 'relation_heads': 5}, '5: must divide student.width = 16'),
    ],
)
def test_wrong_matching_settings_are_refused(data_cache, changes, message):
    c = make_config(data_cache, 'run', 'match', 'teacher')
    c.matching.update(changes)
    with pytest.raises(UserError, match=message):
        check.check(c, files=False, devices=())


def test_matching_requires_a_teacher(data_cache):
    c = make_config(data_cache, 'run', 'mlm')
    c.matching.hidden = 1.0
    with pytest.raises(UserError, match=r'matching\.hidden = 1\.0: requires a teacher'):
        check.check(c, files=False, devices=())


def test_match_refuses_the_settings_of_other_losses(data_cache):
    c = make_config(data_cache, 'run', 'match', 'teacher')
    c.matching.hidden, c.loss.lambda_ = 1.0, 0.9
    with pytest.raises(UserError, match=r"lambda_ = 0\.9: is not read for objective 'match'"):
        check.check(c, files=False, devices=())
    c = make_config(data_cache, 'run', 'mlm', 'teacher')
    c.matching.hidden, c.loss.lambda_ = 1.0, 0.0
    c.train.eval_every, c.train.keep_best = 1, 'kl'
    with pytest.raises(UserError, match=r"keep_best = 'kl': requires config\.loss\.lambda_ > 0"):
        check.check(c, files=False, devices=())


def test_run_of_match_is_not_evaluated_alone(stage1):
    c = config.copy(stage1[0])
    with pytest.raises(UserError, match="'match': cannot be scored without a teacher"):
        evaluate.run(c, c.workdir, '')


def test_rows_without_text_have_no_part_in_match(stage1):
    c, _ = stage1
    tokenizer = selection.load(c)
    records = [Record(np.arange(5, 12)), PADDING]
    arrays = objectives.OBJECTIVES['match'].arrays(c, tokenizer, records, [(0, 0, 0)] * 2)
    assert arrays['segments'].any(axis=1).tolist() == [True, False]
    assert arrays['weights'].ravel().tolist() == [1, 0]


def test_recipe_refuses_match_for_baselines_and_a_teacher_without_a_head(data_cache, teacher):
    c = make_config(data_cache, 'run', 'match', teacher)
    c.optim.warmup, c.train.updates = config.default().optim.warmup, config.default().train.updates
    with pytest.raises(UserError, match=r"objective = 'match': must be the objective of baselines"):
        recipe._check_settings(c)
    c = make_config(data_cache, 'run', 'mlm', teacher)
    with pytest.raises(UserError, match='has no head for stage 1; set'):
        recipe._resolve_teacher(c)
    c.recipe.stage1_objective = 'match'
    c.teacher.layers = 0
    recipe._resolve_teacher(c)
    assert c.teacher.layers == 3


def test_teacher_of_another_family_is_refused_by_its_family(data_cache, teacher, tmp_path):
    c = tiny_config(data_cache)
    c.workdir, c.teacher.path = str(tmp_path), str(teacher)
    with pytest.raises(UserError, match=r'student\.family = gpt2: must equal that of the teacher'):
        train(c)
