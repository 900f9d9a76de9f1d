"""Rules of the configuration: an invalid value is refused with its key and its rule."""

import math

import pytest

from lightpaff_jax import config
from lightpaff_jax.config import validate
from lightpaff_jax.errors import MissingPaths, UserError


def test_default_is_valid_on_devices_that_divide_its_batch():
    validate.validate(config.default())
    for devices in (1, 2, 4, 8):
        validate_for(config.default(), devices)
    with pytest.raises(UserError, match=r'data\.batch_size = 8: must be a multiple'):
        validate_for(config.default(), 3)


def validate_for(c, devices):
    validate.validate(c)
    validate.check_devices(c, devices)


NAN, INF = math.nan, math.inf
SOURCES = 'pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, mixture, prepared'
INVALID = [
    ('student.family', 'gpt3', "'gpt3': must be one of bert, gpt2, mass; did you mean gpt2?"),
    ('student.layers', 0, '0: must be at least 1'),
    ('student.width', -8, '-8: must be at least 1'),
    ('student.heads', 0, '0: must be at least 1'),
    ('student.heads', 3, '3: must divide student.width = 128'),
    ('student.ffn', 0, '0: must be at least 1'),
    (
        'student.positions',
        64,
        'data.length = 128: must be at least 1 and at most student.positions = 64',
    ),
    ('student.vocab_size', 0, '0: must be at least 1'),
    ('student.dropout', 1.0, '1.0: must be in [0, 1)'),
    ('student.dropout', NAN, 'nan: must be in [0, 1)'),
    ('teacher.layers', -1, '-1: must be at least 1'),
    (
        'teacher.dtype',
        'float16',
        "'float16': must be one of auto, float32, bfloat16; did you mean bfloat16?",
    ),
    ('teacher.cache', 'x', 'x: requires a teacher, config.teacher.path'),
    ('teacher.cache_epochs', 0, '0: must be at least 1'),
    ('teacher.cache_epochs', 2, '2: requires config.teacher.cache'),
    (
        'student.family',
        'bert',
        "objective = 'clm': must be one of mlm, match, classify for family 'bert'; did you mean mlm?",
    ),
    ('student.family', 'mass', "student.decoder_layers = 0: must be at least 1 for family 'mass'"),
    ('student.decoder_layers', 1, "1: is only read for family 'mass'"),
    ('student.head', 'none', "'none': must be 'lm' for family 'gpt2'"),
    (
        'student.head',
        'lms',
        "'lms': must be one of lm, classify, pretraining, none; did you mean lm?",
    ),
    ('student.classes', 2, "2: is only read for head 'classify'"),
    ('student.activation', 'gelu_new', "'gelu_new': must be one of gelu, relu; did you mean gelu?"),
    ('student.tied', 'both', "'both': must be one of all, decoder, none"),
    ('student.type_vocab_size', 0, '0: must be at least 1'),
    ('student.init', 'teacher_layers', 'teacher_layers: requires teacher.path'),
    ('student.init_layers', (1,), "(1,): is only read for student.init 'teacher_layers'"),
    ('objective', 'cml', "'cml': must be one of clm for family 'gpt2'; did you mean clm?"),
    (
        'data.view',
        'topics',
        "'topics': must be one of text, topic, pairs, summary; did you mean topic?",
    ),
    ('data.view', 'topic', "'topic': must be one of text for objective 'clm'"),
    ('data.target_length', 8, "8: is only read for objective 'mass' or 'seq2seq'"),
    ('data.source', 'SST2', f"'SST2': must be one of {SOURCES}; did you mean sst2?"),
    ('data.path', 'x', "x: is not read for source 'pydocs'"),
    ('data.files', ('train=a',), "('train=a',): is not read for source 'pydocs'"),
    ('data.held_out', 0.1, "0.1: is not read for source 'pydocs'"),
    ('data.held_out', 0.5, '0.5: must be at least 0 and below 0.5'),
    ('data.held_out_whole', True, "True: is not read for source 'pydocs'"),
    ('data.documents', 'lines', "'lines': must be one of blank, line, file; did you mean line?"),
    (
        'data.detokenize',
        'wiki',
        "'wiki': must be one of none, wikitext, ptb; did you mean wikitext?",
    ),
    ('data.on_error', 'ignore', "'ignore': must be one of stop, skip"),
    ('data.classes', -1, '-1: must be at least 0'),
    ('data.packing', 'best', "'best': must be one of contiguous, best_fit; did you mean best_fit?"),
    ('data.buckets', (64, 128), "64,128: is only read for objective 'classify' or 'seq2seq'"),
    ('data.workers', 0, '0: must be at least 1'),
    ('eval.stride', -1, '-1: must be at least 0 and at most data.length = 128'),
    ('eval.stride', 129, '129: must be at least 0 and at most data.length = 128'),
    ('data.long_text', 'cut', "'cut': must be one of truncate, error"),
    ('data.mask_rate', 1.0, '1.0: must be above 0 and below 1'),
    ('data.span_rate', 0.0, '0.0: must be above 0 and below 1'),
    ('seed', -1, '-1: must be at least 0 and below 2**31'),
    ('seed', 2**31, '2147483648: must be at least 0 and below 2**31'),
    ('loss.lambda_', 1.5, '1.5: must be in [0, 1]'),
    ('loss.lambda_', -0.1, '-0.1: must be in [0, 1]'),
    ('loss.lambda_', NAN, 'nan: must be in [0, 1]'),
    ('loss.temperature', 0.0, '0.0: must be above 0 and finite'),
    ('loss.temperature', -1.0, '-1.0: must be above 0 and finite'),
    ('loss.temperature', INF, 'inf: must be above 0 and finite'),
    ('loss.chunk', -1, '-1: must be at least 0'),
    ('optim.peak_lr', 0.0, '0.0: must be above 0 and finite'),
    ('optim.peak_lr', NAN, 'nan: must be above 0 and finite'),
    ('optim.peak_lr', 1e39, '1e+39: must fit into float32, where it is inf'),
    ('optim.peak_lr', 1e-50, '1e-50: must fit into float32, where it is 0'),
    ('optim.eps', 1e-39, '1e-39: must fit into float32, where it is 0'),
    ('optim.b2', 0.999999999, '0.999999999: must fit into float32, where it is 1'),
    ('optim.weight_decay', 1e-46, '1e-46: must fit into float32, where it is 0'),
    ('optim.clip_norm', 1e300, '1e+300: must fit into float32, where it is inf'),
    ('loss.temperature', 1e20, '1e+20: must fit into float32, where its square is inf'),
    ('loss.lambda_', 1e-60, '1e-60: must fit into float32, where it is 0'),
    (
        'recipe.student_finetune.temperature',
        1e-20,
        '1e-20: must fit into float32, where its square is 0',
    ),
    (
        'recipe.student_finetune.sweep_peak_lr',
        (1e-3, 4e38),
        '4e+38: must fit into float32, where it is inf',
    ),
    (
        'optim.schedule',
        'cosin',
        "'cosin': must be one of linear, cosine, constant; did you mean cosine?",
    ),
    ('optim.final_lr', 1.1, '1.1: must be in [0, 1]'),
    ('optim.warmup', -1, '-1: must be at least 0'),
    ('optim.warmup', 2**31, '2147483648: must be below 2**31'),
    ('train.updates', 2**31, '2147483648: must be below 2**31'),
    ('data.mask_rate', 0.3, "0.3: is only read for objective 'mlm'"),
    ('data.whole_words', True, "True: is only read for objective 'mlm'"),
    ('data.span_rate', 0.3, "0.3: is only read for objective 'mass'"),
    ('optim.b1', 1.0, '1.0: must be in [0, 1)'),
    ('optim.b2', -0.1, '-0.1: must be in [0, 1)'),
    ('optim.eps', 0.0, '0.0: must be above 0 and finite'),
    ('optim.weight_decay', -0.1, '-0.1: must be at least 0 and finite'),
    ('optim.weight_decay', INF, 'inf: must be at least 0 and finite'),
    ('optim.clip_norm', -1.0, '-1.0: must be at least 0 and finite'),
    ('data.source', 'pydoc', f"'pydoc': must be one of {SOURCES}; did you mean pydocs?"),
    ('data.length', 0, '0: must be at least 1 and at most student.positions = 128'),
    ('data.length', 129, '129: must be at least 1 and at most student.positions = 128'),
    ('data.batch_size', 0, '0: must be at least 1'),
    ('data.batch_size', 100, '100: must be a multiple of grad_accum_steps x devices = 8'),
    ('data.prefetch', 0, '0: must be at least 1'),
    ('train.updates', 0, '0: must be at least 1'),
    ('train.grad_accum_steps', 0, '0: must be at least 1'),
    (
        'train.grad_accum_steps',
        2,
        'data.batch_size = 8: must be a multiple of grad_accum_steps x devices = 16',
    ),
    (
        'train.compute_dtype',
        'bf16',
        "'bf16': must be one of float32, bfloat16; did you mean bfloat16?",
    ),
    ('train.remat', 'blocks', "'blocks': must be one of none, dots, block; did you mean block?"),
    ('train.log_every', 0, '0: must be at least 1'),
    ('train.eval_every', -1, '-1: must be at least 0'),
    ('train.save_every', 0, '0: must be at least 1'),
    ('train.keep', 0, '0: must be at least 1'),
    ('train.max_bad_steps', 0, '0: must be at least 1'),
    ('train.patience', -1, '-1: must be at least 0'),
    ('train.patience', 2, '2: requires config.train.keep_best'),
    (
        'train.keep_best',
        'bleu',
        "'bleu': must be one of ce, perplexity, word_perplexity, accuracy, kl, agreement for "
        "objective 'clm'",
    ),
    ('train.keep_best', 'kl', "'kl': requires a teacher, config.teacher.path"),
    ('train.keep_best', 'ce', "'ce': requires config.train.eval_every >= 1"),
    ('eval.batch_size', 0, '0: must be at least 1'),
    ('eval.batch_size', 12, '12: must be a multiple of devices = 8'),
    ('eval.batches', -1, '-1: must be at least 0'),
    ('mesh.data', 0, '0: must be -1 or at least 1'),
    ('mesh.fsdp', 0, '0: must be at least 1'),
    ('mesh.tensor', -1, '-1: must be at least 1'),
    (
        'mesh.fsdp',
        3,
        'mesh = (data -1, fsdp 3, tensor 1): fsdp x tensor must divide the number of devices = 8',
    ),
    (
        'mesh.data',
        16,
        'mesh = (data 16, fsdp 1, tensor 1): the product must be at most the number of devices = 8',
    ),
    ('recipe.seeds', (), '(): must name at least one seed, and none twice'),
    ('recipe.seeds', (1, 2, 1), '1,2,1: must name at least one seed, and none twice'),
    ('recipe.seeds', (0, -1), '0,-1: must be at least 0 and below 2**31'),
    ('recipe.teacher_pretrain.updates', 0, '0: must be at least 1'),
    ('recipe.teacher_finetune.peak_lr', NAN, 'nan: must be above 0 and finite'),
    ('recipe.student_pretrain.lambda_', 2.0, '2.0: must be in [0, 1]'),
    ('recipe.student_finetune.temperature', 0.0, '0.0: must be above 0 and finite'),
    ('recipe.student_finetune.warmup', -1, '-1: must be at least 0'),
    ('recipe.student_finetune.batch_size', 0, '0: must be at least 1'),
    ('recipe.tasks', ('a.py', 'a.py'), 'a.py,a.py: must name no task twice'),
    (
        'recipe.stage1_objective',
        'mass',
        "'mass': must be one of clm for family 'gpt2'",
    ),
    ('recipe.sweep_share', 0.0, '0.0: must be above 0 and at most 1'),
    ('recipe.validations', -1, '-1: must be at least 0'),
    ('recipe.student_finetune.sweep_peak_lr', (1e-3, 0.0), '0.0: must be above 0 and finite'),
    ('recipe.student_finetune.sweep_peak_lr', (1e-3, 1e-3), '0.001,0.001: must not repeat a value'),
    ('recipe.student_finetune.sweep_lambda', (0.5, 1.5), '1.5: must be in [0, 1]'),
    ('eval.metric', 'bleu', "'bleu': must be one of perplexity for objective 'clm'"),
    ('generate.beams', 0, '0: must be at least 1'),
    ('generate.max_length', 4000, '4000: must be at most student.positions = 128'),
    ('generate.length_penalty', NAN, 'nan: must be finite'),
    ('data.unlabelled', ('text:x',), "text:x: is only read for objective 'classify'"),
    ('data.unlabelled_share', 0.5, '0.5: is only read with data.unlabelled'),
    ('data.unlabelled_share', 1.0, '1.0: must be at least 0 and below 1'),
]


@pytest.mark.parametrize(('key', 'value', 'message'), INVALID, ids=lambda x: str(x)[:40])
def test_invalid_value_is_refused_with_its_key_and_rule(key, value, message):
    c = config.default()
    assign(c, key, value)
    if ' = ' not in message.partition(':')[0]:
        message = f'{key} = {message}'
    with pytest.raises(UserError) as error:
        validate_for(c, 8)
    assert str(error.value) == f'config.{message}'


def assign(c, key, value):
    *sections, leaf = key.split('.')
    for name in sections:
        c = c[name]
    c[leaf] = value


def test_batch_size_divides_by_accumulation_and_devices():
    c = config.default()
    c.data.batch_size, c.train.grad_accum_steps = 100, 4
    validate.validate(c)
    message = 'config.data.batch_size = 100: must be a multiple of grad_accum_steps x devices = 32'
    with pytest.raises(UserError) as error:
        validate_for(c, 8)
    assert str(error.value) == message


def test_tensor_parallel_devices_share_their_examples():
    c = config.default()
    c.mesh.tensor, c.data.batch_size = 4, 2
    c.eval.batch_size, c.student.heads = 6, 4
    validate_for(c, 8)
    c.mesh.tensor = 1
    with pytest.raises(UserError, match=r'data\.batch_size = 2: must be a multiple'):
        validate_for(c, 8)


@pytest.mark.parametrize('name', ['student', 'teacher'])
def test_tensor_axis_must_divide_the_heads(name):
    c = config.default()
    c.mesh.tensor, c.student.heads = 4, 4
    c.teacher.update({'layers': 2, 'heads': 4})
    validate_for(c, 8)
    c[name].heads = 2
    with pytest.raises(UserError, match=rf'mesh\.tensor = 4: must divide {name}\.heads = 2'):
        validate_for(c, 8)
    c.mesh[name] = ('fsdp',)
    validate_for(c, 8)


def test_teacher_with_another_vocabulary_size_is_refused():
    c = config.default()
    c.teacher.layers, c.teacher.vocab_size = 2, 4096
    with pytest.raises(UserError) as error:
        validate.validate(c)
    assert str(error.value) == (
        'config.teacher.vocab_size = 4096: must equal student.vocab_size = 2048'
    )


@pytest.mark.parametrize('source', ['text', 'prepared'])
def test_source_of_files_requires_a_path(source):
    c = config.default()
    c.data.source = source
    with pytest.raises(UserError) as error:
        validate.check_paths(c)
    assert str(error.value) == f"config.data.path = '': must be a folder for source '{source}'"


SOURCE_RULES = [
    ({'source': 'table'}, "data.columns = (): must not be empty for source 'table'"),
    ({'source': 'table', 'columns': tuple('abcd')}, 'data.columns = a,b,c,d: must be at most 3'),
    ({'source': 'text', 'columns': tuple('ab')}, 'data.columns = a,b: must be at most 1'),
    ({'source': 'mixture'}, "data.mixture = (): must not be empty for source 'mixture'"),
    (
        {'source': 'text', 'suffixes': ('en', 'de')},
        "data.suffixes = ('en', 'de'): is not read for source 'text'",
    ),
]


@pytest.mark.parametrize(('changes', 'message'), SOURCE_RULES)
def test_source_refuses_missing_and_unread_keys(changes, message):
    c = config.default()
    c.data.path = 'x' if changes['source'] != 'mixture' else ''
    c.data.update(changes)
    with pytest.raises(UserError) as error:
        validate.validate(c)
    assert str(error.value) == f'config.{message}'


def classifier():
    c = config.default()
    c.objective, c.student.family = 'classify', 'bert'
    c.student.head, c.student.classes = 'classify', 2
    c.data.view = 'pairs'
    return c


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('buckets', (64, 32, 128), '64,32,128: must increase and begin with at least 4'),
        ('buckets', (2, 128), '2,128: must increase and begin with at least 4'),
        ('buckets', (32, 64), '32,64: must end with data.length = 128'),
        (
            'packing',
            'best_fit',
            "best_fit: is only read for objective 'clm' or 'mlm' or 'match' or 'mass'",
        ),
    ],
)
def test_invalid_buckets_and_packing_of_examples_are_refused(key, value, message):
    c = classifier()
    c.data[key] = value
    with pytest.raises(UserError) as error:
        validate.validate(c)
    assert str(error.value) == f'config.data.{key} = {message}'


@pytest.mark.parametrize(
    ('source', 'example_type'),
    [('text', 'documents'), ('parallel', 'targets'), ('sst2', 'classes')],
)
def test_objective_accepts_its_example_type_or_documents(source, example_type):
    for name, objective in config.OBJECTIVES.items():
        c = classifier() if name == 'classify' else config.default()
        c.student.family, c.objective, c.data.view = objective.families[0], name, 'text'
        c.student.head = objective.head
        if objective.outputs == 'matching':
            c.matching.hidden, c.teacher.path = 1.0, 'y'
        if 'mass' in objective.families:
            c.student.decoder_layers = 2
            c.data.target_length = 64 if name == 'seq2seq' else 0
        c.data.source, c.data.path = source, 'x'
        c.data.suffixes = ('en', 'de') if source == 'parallel' else ()
        if objective.example_type in ('documents', example_type):
            validate.validate(c)
            continue
        with pytest.raises(UserError) as error:
            validate.validate(c)
        rule = f'has {example_type}; objective {name!r} requires {objective.example_type}'
        assert str(error.value) == f'config.data.source = {source!r}: {rule}'


def test_stride_requires_contiguous_packing():
    c = config.default()
    c.eval.stride = 64
    validate.validate(c)
    c.data.packing = 'best_fit'
    with pytest.raises(UserError, match=r'^config\.eval\.stride = 64: requires data.packing'):
        validate.validate(c)


def test_missing_paths_are_named_in_one_line(tmp_path):
    c = config.default()
    c.data.source, c.data.path, c.student.init = 'text', str(tmp_path), 'runs/a'
    c.teacher.path, c.tokenizer.path, c.tokenizer.text = 'runs/b', 'c.model', 'd'
    with pytest.raises(MissingPaths) as error:
        validate.check_paths(c)
    settings = [part.partition(':')[0] for part in str(error.value).split('; ')]
    assert sorted(settings) == [
        'config.student.init = runs/a',
        'config.teacher.path = runs/b',
        'config.tokenizer.path = c.model',
        'config.tokenizer.text = d',
    ]


def test_teacher_rules_apply_only_to_a_configured_shape():
    c = config.default()
    c.teacher.vocab_size, c.teacher.heads = 4096, 7
    validate.validate(c)
    c.teacher.layers = 2
    with pytest.raises(UserError, match=r'config\.teacher\.heads = 7'):
        validate.validate(c)
