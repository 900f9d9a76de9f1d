"""The rules of a configuration: what is checked before any device works."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import (
    ACTIVATIONS,
    ATTENTION,
    DETOKENIZERS,
    DOCUMENTS,
    DTYPES,
    FAMILIES,
    GENERATION_METRICS,
    HEADS,
    LONG_TEXT,
    OBJECTIVES,
    ON_ERROR,
    PACKING,
    PHASES,
    REMAT,
    SCHEDULES,
    SOURCES,
    SPLIT,
    STARTS,
    TIES,
    VIEWS,
    objectives_of,
)
from lightpaff_jax.errors import UserError, nearest


def validate(c: ConfigDict, devices: int | None = None, processes: int = 1) -> None:
    """Raises UserError that names key, value and rule of the first mistake.

    Args:
      c: a configuration with the keys of `default()`.
      devices: devices there are; None skips the rules that need it.
      processes: processes that share them equally.
    """
    _validate_networks(c)
    _validate_data(c)
    _one_of('teacher.dtype', c.teacher.dtype, ('auto', *DTYPES))
    _check_loss('loss', c.loss.lambda_, c.loss.temperature)
    _rule('loss.chunk', c.loss.chunk, c.loss.chunk >= 0, 'must be at least 0')
    _one_of('optim.schedule', c.optim.schedule, SCHEDULES)
    for key in ('peak_lr', 'eps'):
        _positive(f'optim.{key}', c.optim[key])
    _rule('optim.final_lr', c.optim.final_lr, 0 <= c.optim.final_lr <= 1, 'must be in [0, 1]')
    _rule('optim.warmup', c.optim.warmup, c.optim.warmup >= 0, 'must be at least 0')
    for section, key in (('optim', 'warmup'), ('train', 'updates')):
        value = c[section][key]
        _rule(f'{section}.{key}', value, value < 2**31, 'must be below 2**31')
    for key in ('b1', 'b2'):
        _rule(f'optim.{key}', c.optim[key], 0 <= c.optim[key] < 1, 'must be in [0, 1)')
    for key in ('weight_decay', 'clip_norm'):
        value = c.optim[key]
        _rule(f'optim.{key}', value, 0 <= value < math.inf, 'must be at least 0 and finite')
    _one_of('train.compute_dtype', c.train.compute_dtype, DTYPES)
    _one_of('train.remat', c.train.remat, REMAT)
    _one_of('train.attention', c.train.attention, ATTENTION)
    least = {
        'train': {'updates': 1, 'grad_accum_steps': 1, 'log_every': 1, 'eval_every': 0,
                  'save_every': 1, 'keep': 1},
        'data': {'batch_size': 1, 'prefetch': 1, 'target_length': 0, 'workers': 1},
        'eval': {'batch_size': 1, 'batches': 0},
        'mesh': {'fsdp': 1, 'tensor': 1},
        'teacher': {'microbatch_size': 0},
    }  # fmt: skip
    for section, keys in least.items():
        for key, minimum in keys.items():
            value = c[section][key]
            _rule(f'{section}.{key}', value, value >= minimum, f'must be at least {minimum}')
    _rule(
        'mesh.data', c.mesh.data, c.mesh.data == -1 or c.mesh.data >= 1, 'must be -1 or at least 1'
    )
    for name in ('student', 'teacher'):
        for axis in c.mesh[name]:
            _one_of(f'mesh.{name}', axis, SPLIT)
    _validate_scores(c)
    _validate_recipe(c)
    _check_unread(c)
    if devices is not None:
        _validate_devices(c, devices, processes)


def _validate_networks(c: ConfigDict) -> None:
    nets = [('student', c.student)]
    if c.teacher.layers:
        nets.append(('teacher', c.teacher))
    for name, net in nets:
        _validate_network(name, net)
    if c.teacher.layers:
        for key in ('family', 'vocab_size', 'classes'):
            _rule(
                f'teacher.{key}', c.teacher[key], c.teacher[key] == c.student[key],
                f'must equal student.{key} = {c.student[key]}',
            )  # fmt: skip
    started = c.student.init not in STARTS
    _rule('student.init_new_head', c.student.init_new_head, started or not c.student.init_new_head,
          'is read where student.init is a path')  # fmt: skip
    layered = c.student.init == 'teacher_layers'
    _rule('student.init', c.student.init, not layered or c.teacher.path, 'needs a teacher.path')
    for key in ('init_layers', 'init_decoder_layers'):
        _rule(
            f'student.{key}', c.student[key], layered or not c.student[key],
            "is read for student.init 'teacher_layers'",
        )  # fmt: skip


def _validate_network(name: str, net: ConfigDict) -> None:
    _one_of(f'{name}.family', net.family, FAMILIES)
    _one_of(f'{name}.head', net.head, HEADS)
    _one_of(f'{name}.activation', net.activation, ACTIVATIONS)
    _one_of(f'{name}.tied', net.tied, TIES)
    for key in ('layers', 'width', 'heads', 'ffn', 'positions', 'vocab_size', 'type_vocab_size'):
        _rule(f'{name}.{key}', net[key], net[key] >= 1, 'must be at least 1')
    _rule(
        f'{name}.heads', net.heads, net.width % net.heads == 0,
        f'must divide {name}.width = {net.width}',
    )  # fmt: skip
    _rule(f'{name}.dropout', net.dropout, 0 <= net.dropout < 1, 'must be in [0, 1)')
    decoder = net.decoder_layers >= 1 if net.family == 'mass' else net.decoder_layers == 0
    rule = "must be at least 1 for family 'mass'" if net.family == 'mass' else 'is of MASS alone'
    _rule(f'{name}.decoder_layers', net.decoder_layers, decoder, rule)
    bert_only = net.head == 'lm' or net.family == 'bert'
    _rule(f'{name}.head', repr(net.head), bert_only, "is of BERT alone; others have 'lm'")
    if net.head == 'classify':
        _rule(f'{name}.classes', net.classes, net.classes >= 2, 'must be at least 2 to classify')
    else:
        _rule(f'{name}.classes', net.classes, not net.classes, "is read for head 'classify'")


def _validate_data(c: ConfigDict) -> None:
    family = c.student.family
    allowed = objectives_of(family)
    rule = (
        f'must be one of {", ".join(allowed)} for family {family!r}{nearest(c.objective, allowed)}'
    )
    _rule('objective', repr(c.objective), c.objective in allowed, rule)
    _one_of('data.source', c.data.source, tuple(SOURCES))
    objective, source = OBJECTIVES[c.objective], SOURCES[c.data.source]
    _rule('student.head', repr(c.student.head), c.student.head == objective.head,
          f'must be {objective.head!r} for objective {c.objective!r}')  # fmt: skip
    _validate_source(c)
    _one_of('data.long_text', c.data.long_text, LONG_TEXT)
    _one_of('data.packing', c.data.packing, PACKING)
    _validate_buckets(c)
    stream = c.data.packing == 'contiguous' and not source.has_parts
    _rule('eval.stride', c.eval.stride, stream or not c.eval.stride,
          "requires data.packing 'contiguous' and one source, not a mixture")  # fmt: skip
    _rule('eval.stride', c.eval.stride, 0 <= c.eval.stride <= c.data.length,
          f'must be at least 0 and at most data.length = {c.data.length}')  # fmt: skip
    pairs = source.has_pairs or c.data.view == 'pairs'
    types = c.student.type_vocab_size
    _rule('student.type_vocab_size', types, types >= 2 or not pairs, 'must be at least 2 for pairs')
    for key in ('mask_rate', 'span_rate'):
        _rule(f'data.{key}', c.data[key], 0 < c.data[key] < 1, 'must be above 0 and below 1')
    lengths = {'length': objective.min_length}
    if objective.min_target_length:
        lengths['target_length'] = objective.min_target_length
    nets = {'student': c.student} | ({'teacher': c.teacher} if c.teacher.layers else {})
    for key, least in lengths.items():
        for name, net in nets.items():
            _rule(
                f'data.{key}', c.data[key], least <= c.data[key] <= net.positions,
                f'must be at least {least} and at most {name}.positions = {net.positions}',
            )  # fmt: skip


def _validate_source(c: ConfigDict) -> None:
    source, wanted = SOURCES[c.data.source], OBJECTIVES[c.objective].example_type
    check_set(c)
    if 'view' in source.keys:
        views = [view for view, example_type in VIEWS.items() if example_type == wanted]
        rule = f'must be one of {", ".join(views)} for objective {c.objective!r}'
        _rule('data.view', repr(c.data.view), c.data.view in views, rule)
    example_type = config.example_type(c)
    _rule(
        'data.source',
        repr(c.data.source),
        not example_type or wanted in (example_type, 'documents'),
        f'has {example_type}, which objective {c.objective!r} does not learn from',
    )
    if source.required:
        rule = f'must not be empty for source {c.data.source!r}'
        _rule(f'data.{source.required}', '()', len(c.data[source.required]) > 0, rule)


def check_set(c: ConfigDict, keys: Sequence[str] = tuple(config.default().data)) -> None:
    """Raises UserError for a value that a set's own keys of `data` cannot have; others are not looked at."""
    source, data = c.data.source, c.data
    for key, allowed in (
        ('view', tuple(VIEWS)), ('documents', DOCUMENTS), ('detokenize', DETOKENIZERS),
        ('on_error', ON_ERROR),
    ):  # fmt: skip
        if key in keys:
            _one_of(f'data.{key}', data[key], allowed)
    if 'held_out' in keys:
        share = data.held_out
        _rule('data.held_out', share, 0 <= share < 0.5, 'must be at least 0 and below 0.5')
    if 'columns' in keys:
        few, names = SOURCES[source].max_columns, ','.join(data.columns)
        _rule('data.columns', names, len(data.columns) <= few, f'must be at most {few}')
        _rule('data.columns', names, all(data.columns[2:]), 'must name the column of the class')
    if 'suffixes' in keys:
        two = len({side.lower() for side in data.suffixes}) == len(data.suffixes) == 2
        _rule('data.suffixes', ','.join(data.suffixes) or '()', two or source != 'parallel',
              "must be two marks in names of files for source 'parallel', as en,de")  # fmt: skip
    if 'classes' in keys:
        _rule('data.classes', data.classes, data.classes >= 0, 'must be at least 0')


def _validate_buckets(c: ConfigDict) -> None:
    buckets, text = c.data.buckets, ','.join(map(str, c.data.buckets))
    rising = not buckets or (list(buckets) == sorted({*buckets}) and buckets[0] >= 4)
    _rule('data.buckets', text, rising, 'must rise from at least 4')
    last = not buckets or buckets[-1] == c.data.length
    _rule('data.buckets', text, last, f'must end with data.length = {c.data.length}')


def _validate_recipe(c: ConfigDict) -> None:
    _seeds('seed', (c.seed,))
    _seeds('recipe.seeds', c.recipe.seeds)
    once = len({*c.recipe.tasks}) == len(c.recipe.tasks)
    _rule('recipe.tasks', ','.join(c.recipe.tasks), once, 'must name none twice')
    for name in PHASES:
        p = c.recipe[name]
        _check_loss(f'recipe.{name}', p.lambda_, p.temperature)
        least = {'updates': 0 if name.endswith('finetune') else 1, 'warmup': 0, 'batch_size': 1}
        for key, minimum in least.items():
            rule = f'must be at least {minimum}'
            _rule(f'recipe.{name}.{key}', p[key], p[key] >= minimum, rule)
        _positive(f'recipe.{name}.peak_lr', p.peak_lr)
        for rate in p.sweep_peak_lr:
            _positive(f'recipe.{name}.sweep_peak_lr', rate)
        for weight in p.sweep_lambda:
            _rule(f'recipe.{name}.sweep_lambda', weight, 0 <= weight <= 1, 'must be in [0, 1]')
        for key in ('sweep_peak_lr', 'sweep_lambda'):
            text = ','.join(f'{x:g}' for x in p[key])
            _rule(f'recipe.{name}.{key}', text, len({*p[key]}) == len(p[key]), 'has one twice')


def _validate_scores(c: ConfigDict) -> None:
    metrics, metric = OBJECTIVES[c.objective].metrics, c.eval.metric
    rule = f'must be one of {", ".join(metrics)} for objective {c.objective!r}'
    _rule('eval.metric', repr(metric), metric in ('', *metrics), rule + nearest(metric, metrics))
    two = metric != 'f1' or c.student.classes == 2
    _rule('eval.metric', repr(metric), two, 'is of two classes, of which 1 is the positive one')
    g = c.generate
    for key, minimum in (('beams', 1), ('min_length', 0), ('max_length', 0)):
        _rule(f'generate.{key}', g[key], g[key] >= minimum, f'must be at least {minimum}')
    penalty = g.length_penalty
    _rule('generate.length_penalty', penalty, math.isfinite(penalty), 'must be finite')
    if metric in GENERATION_METRICS or g.max_length:
        longest = g.max_length or c.data.target_length
        _rule('generate.min_length', g.min_length, g.min_length <= longest,
              f'must be at most the longest text, {longest}')  # fmt: skip
        nets = {'student': c.student} | ({'teacher': c.teacher} if c.teacher.layers else {})
        for name, net in nets.items():
            _rule('generate.max_length', longest, longest <= net.positions,
                  f'must be at most {name}.positions = {net.positions}')  # fmt: skip


def _validate_devices(c: ConfigDict, devices: int, processes: int) -> None:
    model = c.mesh.fsdp * c.mesh.tensor
    mesh = f'(data {c.mesh.data}, fsdp {c.mesh.fsdp}, tensor {c.mesh.tensor})'
    if c.mesh.data == -1:
        fits = devices % model == 0
        _rule('mesh', mesh, fits, f'fsdp x tensor must divide the number of devices = {devices}')
    else:
        few = c.mesh.data * model <= devices and (processes == 1 or c.mesh.data * model == devices)
        least = 'at most' if processes == 1 else 'equal to'
        _rule('mesh', mesh, few, f'the product must be {least} the number of devices = {devices}')
    shards = batch_shards(c, devices)
    rule = f'data x fsdp must be a multiple of the number of processes = {processes}'
    _rule('mesh', mesh, shards % processes == 0, rule)
    check_batch('data.batch_size', c.data.batch_size, c, devices)
    local, rows = (
        c.data.batch_size // (c.train.grad_accum_steps * shards),
        c.teacher.microbatch_size,
    )
    fits = not rows or not (c.teacher.path or c.teacher.layers) or local % rows == 0
    rule = f"must divide a device's sequences of a micro-batch = {local}"
    _rule('teacher.microbatch_size', rows, fits, rule)
    for name, net in (('student', c.student), ('teacher', c.teacher)):
        whole = not net.layers or 'tensor' not in c.mesh[name] or net.heads % c.mesh.tensor == 0
        _rule('mesh.tensor', c.mesh.tensor, whole, f'must divide {name}.heads = {net.heads}')
    _rule(
        'eval.batch_size', c.eval.batch_size, c.eval.batch_size % shards == 0,
        f'must be a multiple of devices = {shards}',
    )  # fmt: skip


def check_batch(key: str, size: int, c: ConfigDict, devices: int) -> None:
    """Raises UserError unless a batch of `size` sequences divides over micro-steps and devices."""
    parts = c.train.grad_accum_steps * batch_shards(c, devices)
    rule = f'must be a multiple of grad_accum_steps x devices = {parts}'
    _rule(key, size, size % parts == 0, rule)


def _check_unread(c: ConfigDict) -> None:
    """A key that the source or the objective does not read must have its default: it would be ignored."""
    name, plain = c.data.source, config.flatten(config.default())
    source, values = SOURCES[name], config.flatten(c)
    for key in dict.fromkeys(f'data.{key}' for record in SOURCES.values() for key in record.keys):
        unread = key.removeprefix('data.') not in source.keys and values[key] != plain[key]
        _rule(key, values[key], not unread, f'is not read from {name!r}')
    for key in dict.fromkeys(key for record in OBJECTIVES.values() for key in record.keys):
        readers = [reader for reader, record in OBJECTIVES.items() if key in record.keys]
        unread = c.objective not in readers and values[key] != plain[key]
        rule = f'is read for objective {" or ".join(map(repr, readers))}'
        _rule(key, _text(values[key]), not unread, rule)
    for key in ('replace', 'decontaminate', 'unlabelled'):
        _rule(f'data.{key}', _text(c.data[key]), source.has_text or not c.data[key],
              f'is not read from {name!r}')  # fmt: skip
    used = name == 'text' and not c.tokenizer.path
    _rule('tokenizer.text', c.tokenizer.text, used or not c.tokenizer.text,
          "is read for data.source 'text' and no tokenizer.path")  # fmt: skip


def batch_shards(c: ConfigDict, devices: int) -> int:
    """Parts that a batch is split into over devices."""
    return devices // c.mesh.tensor if c.mesh.data == -1 else c.mesh.data * c.mesh.fsdp


def _check_loss(where: str, lambda_: float, temperature: float) -> None:
    _rule(f'{where}.lambda_', lambda_, 0 <= lambda_ <= 1, 'must be in [0, 1]')
    _positive(f'{where}.temperature', temperature)


def _positive(key: str, value: float) -> None:
    _rule(key, value, 0 < value < math.inf, 'must be above 0 and finite')


def _seeds(key: str, seeds: Sequence[int]) -> None:
    text = ','.join(map(str, seeds)) or '()'
    _rule(key, text, len({*seeds}) == len(seeds) >= 1, 'must name at least one seed, none twice')
    _rule(key, text, all(0 <= seed < 2**31 for seed in seeds), 'must be at least 0 and below 2**31')


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    rule = f'must be one of {", ".join(allowed)}{nearest(value, allowed)}'
    _rule(key, repr(value), value in allowed, rule)


def _text(value) -> str:
    """A value as a command line has it: a list without brackets."""
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rule(key: str, value, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'config.{key} = {value}: {rule}')
