"""The rules of a configuration, section by section: settings, paths, devices. No rule uses jax."""

import ctypes
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.config import GENERATION_METRICS, OBJECTIVES, SOURCES, STARTS, VIEWS, matching
from lightpaff_jax.errors import MissingPaths, UserError, nearest

# Keys with one value of a fixed set.
_CHOICES = {
    'data.long_text': config.LONG_TEXT,
    'data.packing': config.PACKING,
    'eval.tokenize': config.TOKENIZE,
    'teacher.dtype': ('auto', *config.DTYPES),
    'matching.pooling': config.POOLING,
    'optim.schedule': config.SCHEDULES,
    'train.compute_dtype': config.DTYPES,
    'train.remat': config.REMAT,
    'train.attention': config.ATTENTION,
    'recipe.unlabelled': config.UNLABELLED,
}

_LEAST_FLOAT32 = 2.0**-126  # the least normal number

# Least value -> keys.
_LEAST = {
    0: (
        *('data.target_length', 'eval.batches', 'generate.min_length', 'generate.max_length'),
        *('loss.chunk', 'optim.warmup', 'teacher.microbatch_size', 'train.eval_every'),
        *('train.patience', 'recipe.validations'),
    ),
    1: (
        *('data.batch_size', 'data.prefetch', 'data.workers', 'eval.batch_size', 'generate.beams'),
        'teacher.cache_epochs',
        *('mesh.fsdp', 'mesh.tensor', 'train.updates', 'train.grad_accum_steps'),
        *('train.log_every', 'train.save_every', 'train.keep', 'train.max_bad_steps'),
    ),
}


def validate(c: ConfigDict) -> None:
    """Checks the settings of a configuration; reads no file and uses no device.

    Raises:
      UserError: names key, value and rule of the first mistake.
    """
    _check_networks(c)
    _check_data(c)
    values = config.flatten(c)
    for key, choices in _CHOICES.items():
        _check_choice(key, values[key], choices)
    for least, keys in _LEAST.items():
        for key in keys:
            _rule(key, values[key], values[key] >= least, f'must be at least {least}')
    _check_loss('loss', c.loss)
    check_teacher_cache(c)
    _check_matching(c)
    _check_optim(c)
    _check_eval(c)
    _check_keep_best(c)
    _rule(
        'mesh.data', c.mesh.data, c.mesh.data >= 1 or c.mesh.data == -1, 'must be -1 or at least 1'
    )
    for name in ('student', 'teacher'):
        for axis in c.mesh[name]:
            _check_choice(f'mesh.{name}', axis, config.SPLIT)
    _check_seeds('seed', (c.seed,))
    _check_recipe(c.recipe, c.student.family)
    _check_unread(c)
    _check_range(values)


def _check_range(values: dict[str, Any]) -> None:
    """Refuses numbers that do not fit on the device, which has int32 and float32."""
    for key, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                _check_float32(key, number)
            if isinstance(number, int) and not -(2**31) <= number < 2**31:
                shown = number if abs(number) < 2**63 else f'a number of {number.bit_length()} bits'
                _rule(key, shown, False, 'must be below 2**31')


def _networks(c: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the networks whose shapes the configuration states; a teacher's may come from its path."""
    return {'student': c.student} | ({'teacher': c.teacher} if c.teacher.layers else {})


def _check_networks(c: ConfigDict) -> None:
    for name, network in _networks(c).items():
        _check_network(name, network)
        for key in ('family', 'classes', *(() if c.tokenizer.reduce else ('vocab_size',))):
            equal = network[key] == c.student[key]
            _rule(
                f'{name}.{key}', network[key], equal, f'must equal student.{key} = {c.student[key]}'
            )
    rule = f'must be at least student.vocab_size = {c.student.vocab_size}'
    least = min(network.vocab_size for network in _networks(c).values())
    _rule('teacher.vocab_size', c.teacher.vocab_size, least == c.student.vocab_size, rule)
    is_path = c.student.init not in STARTS
    is_read, rule = is_path or not c.student.init_new_head, 'is only read if student.init is a path'
    _rule('student.init_new_head', c.student.init_new_head, is_read, rule)
    copies = c.student.init == 'teacher_layers'
    needs_teacher = c.student.init in STARTS[1:]
    fits = bool(c.teacher.path) or not needs_teacher
    _rule('student.init', c.student.init, fits, 'requires teacher.path')
    for key in ('init_layers', 'init_decoder_layers'):
        rule = "is only read for student.init 'teacher_layers'"
        _rule(f'student.{key}', c.student[key], copies or not c.student[key], rule)


def _check_network(name: str, network: ConfigDict) -> None:
    for key, choices in (
        ('family', config.FAMILIES),
        ('head', config.HEADS),
        ('activation', config.ACTIVATIONS),
        ('tied', config.TIES),
    ):
        _check_choice(f'{name}.{key}', network[key], choices)
    for key in ('layers', 'width', 'heads', 'ffn', 'positions', 'vocab_size', 'type_vocab_size'):
        _rule(f'{name}.{key}', network[key], network[key] >= 1, 'must be at least 1')
    width, heads, head = network.width, network.heads, network.head
    _rule(f'{name}.heads', heads, width % heads == 0, f'must divide {name}.width = {width}')
    _rule(f'{name}.dropout', network.dropout, 0 <= network.dropout < 1, 'must be in [0, 1)')
    is_mass, layers = network.family == 'mass', network.decoder_layers
    rule = "must be at least 1 for family 'mass'" if is_mass else "is only read for family 'mass'"
    _rule(f'{name}.decoder_layers', layers, layers >= 1 if is_mass else layers == 0, rule)
    rule = f"must be 'lm' for family {network.family!r}"
    _rule(f'{name}.head', repr(head), head == 'lm' or network.family == 'bert', rule)
    if head == 'classify':
        rule = "must be at least 2 for head 'classify'"
        _rule(f'{name}.classes', network.classes, network.classes >= 2, rule)
    else:
        rule = "is only read for head 'classify'"
        _rule(f'{name}.classes', network.classes, not network.classes, rule)


def _check_data(c: ConfigDict) -> None:
    family, allowed = c.student.family, config.objectives_of(c.student.family)
    options = f'must be one of {", ".join(allowed)} for family {family!r}'
    rule = options + nearest(c.objective, allowed)
    _rule('objective', repr(c.objective), c.objective in allowed, rule)
    _check_choice('data.source', c.data.source, tuple(SOURCES))
    objective, source = OBJECTIVES[c.objective], SOURCES[c.data.source]
    rule = f'must be {objective.head!r} for objective {c.objective!r}'
    _rule('student.head', repr(c.student.head), c.student.head == objective.head, rule)
    _check_source(c)
    buckets, text = c.data.buckets, _text(c.data.buckets)
    rising = not buckets or (list(buckets) == sorted({*buckets}) and buckets[0] >= 4)
    _rule('data.buckets', text, rising, 'must increase and begin with at least 4')
    is_last = not buckets or buckets[-1] == c.data.length
    _rule('data.buckets', text, is_last, f'must end with data.length = {c.data.length}')
    pairs, types = source.has_pairs or c.data.view == 'pairs', c.student.type_vocab_size
    _rule('student.type_vocab_size', types, types >= 2 or not pairs, 'must be at least 2 for pairs')
    share = c.data.unlabelled_share
    _rule('data.unlabelled_share', share, 0 <= share < 1, 'must be at least 0 and below 1')
    is_read, rule = not share or c.data.unlabelled, 'is only read with data.unlabelled'
    _rule('data.unlabelled_share', share, is_read, rule)
    _check_augmentation(c.data)
    for key in ('mask_rate', 'span_rate'):
        _rule(f'data.{key}', c.data[key], 0 < c.data[key] < 1, 'must be above 0 and below 1')
    lengths = {'length': objective.min_length, 'target_length': objective.min_target_length}
    for key, least in lengths.items():
        for name, network in _networks(c).items() if least else ():
            fits = least <= c.data[key] <= network.positions
            rule = f'must be at least {least} and at most {name}.positions = {network.positions}'
            _rule(f'data.{key}', c.data[key], fits, rule)


def _check_augmentation(data: ConfigDict) -> None:
    for key in ('augment', *config.AUGMENT_CHANGES):
        _rule(f'data.{key}', data[key], 0 <= data[key] <= 1, 'must be in [0, 1]')
    for key in config.AUGMENTATION[1:]:
        is_read = data.augment > 0 or not data[key]
        _rule(f'data.{key}', data[key], is_read, 'is only read if data.augment > 0')
    fits = not data.augment or any(data[key] > 0 for key in config.AUGMENT_CHANGES)
    rule = f'requires one of {", ".join(f"data.{key}" for key in config.AUGMENT_CHANGES)}'
    _rule('data.augment', data.augment, fits, rule)
    rule = f'must be at most 1 together with data.augment_mask = {data.augment_mask}'
    fits = data.augment_mask + data.augment_replace <= 1
    _rule('data.augment_replace', data.augment_replace, fits, rule)
    fits = not (data.augment_pairs and data.augment_keep_labels)
    rule = 'must be False if data.augment_pairs > 0: the label is not that of the new pair'
    _rule('data.augment_keep_labels', data.augment_keep_labels, fits, rule)


def _check_source(c: ConfigDict) -> None:
    """Checks that the source has examples of the type that the objective learns from."""
    source, required = SOURCES[c.data.source], OBJECTIVES[c.objective].example_type
    check_set(c)
    if 'view' in source.keys:
        views = [view for view, example_type in VIEWS.items() if example_type == required]
        rule = f'must be one of {", ".join(views)} for objective {c.objective!r}'
        _rule('data.view', repr(c.data.view), c.data.view in views, rule)
    example_type = config.example_type(c)
    fits = not example_type or required in (example_type, 'documents')
    rule = f'has {example_type}; objective {c.objective!r} requires {required}'
    _rule('data.source', repr(c.data.source), fits, rule)
    if source.required:
        rule = f'must not be empty for source {c.data.source!r}'
        _rule(f'data.{source.required}', '()', len(c.data[source.required]) > 0, rule)


def check_set(c: ConfigDict, keys: Sequence[str] = tuple(config.default().data)) -> None:
    """Checks the keys of `data` that describe one set, which a mixture may state for each part.

    Args:
      c: a configuration.
      keys: the names to check.

    Raises:
      UserError: the first invalid value.
    """
    data = c.data
    for key, choices in (
        ('view', tuple(VIEWS)),
        ('documents', config.DOCUMENTS),
        ('detokenize', config.DETOKENIZERS),
        ('quoting', config.QUOTING),
        ('on_error', config.ON_ERROR),
    ):
        if key in keys:
            _check_choice(f'data.{key}', data[key], choices)
    if 'held_out' in keys:
        rule = 'must be at least 0 and below 0.5'
        _rule('data.held_out', data.held_out, 0 <= data.held_out < 0.5, rule)
    if 'columns' in keys:
        most, names = SOURCES[data.source].max_columns, ','.join(data.columns)
        _rule('data.columns', names, len(data.columns) <= most, f'must be at most {most}')
        _rule('data.columns', names, all(data.columns[2:]), 'must name the column of the class')
    if 'suffixes' in keys:
        two = len({suffix.lower() for suffix in data.suffixes}) == len(data.suffixes) == 2
        rule = "must be two different suffixes for source 'parallel', such as en,de"
        text = ','.join(data.suffixes) or '()'
        _rule('data.suffixes', text, two or data.source != 'parallel', rule)
    if 'classes' in keys:
        _rule('data.classes', data.classes, data.classes >= 0, 'must be at least 0')


def _check_loss(prefix: str, section: ConfigDict) -> None:
    _rule(f'{prefix}.lambda_', section.lambda_, 0 <= section.lambda_ <= 1, 'must be in [0, 1]')
    _check_positive(f'{prefix}.temperature', section.temperature)
    _check_float32(f'{prefix}.temperature', section.temperature, section.temperature)


def check_teacher_cache(c: ConfigDict) -> None:
    """Raises UserError if the teacher of a run cannot have a cache, or the run does not read its keys."""
    folder, epochs = c.teacher.cache, c.teacher.cache_epochs
    for holds, rule in (
        (_has_teacher(c), 'requires a teacher, config.teacher.path'),
        ('://' not in folder, 'must be a local folder; mount the bucket and name that path'),
        (not c.data.augment, 'requires data.augment = 0: each epoch would have other texts'),
    ):
        _rule('teacher.cache', folder, holds or not folder, rule)
    is_read = folder or epochs == 1
    _rule('teacher.cache_epochs', epochs, is_read, 'requires config.teacher.cache')


def _has_teacher(c: ConfigDict) -> bool:
    return bool(c.teacher.path or c.teacher.layers)


def _check_matching(c: ConfigDict) -> None:
    settings, defaults = c.matching, config.default().matching
    terms = matching.terms(c)
    for name, (weight, layers, key) in terms.items():
        rule = 'must be at least 0 and finite'
        _rule(f'matching.{name}', weight, 0 <= weight < math.inf, rule)
        rule = f'is only read if matching.{name} > 0'
        _rule(f'matching.{key}', _text(layers), bool(weight or not layers), rule)
        for stack, layer, _ in matching.parse_pairs(key, layers, c.student.family):
            count = matching.layers_of(c.student, stack)
            rule = f"must name layers of the student's {stack}, 0 to {count - 1}"
            _rule(f'matching.{key}', _text(layers), layer < count, rule)
    for key, name in (('relation_heads', 'relations'), ('pooling', 'pooled')):
        is_read = bool(terms[name].weight) or settings[key] == defaults[key]
        _rule(f'matching.{key}', settings[key], is_read, f'is only read if matching.{name} > 0')
    heads = settings.relation_heads
    _rule('matching.relation_heads', heads, heads >= 1, 'must be at least 1')
    for name, network in _networks(c).items() if settings.relations else ():
        rule = f'must divide {name}.width = {network.width}'
        _rule('matching.relation_heads', heads, network.width % heads == 0, rule)
    used = [name for name, term in terms.items() if term.weight]
    needs_term = OBJECTIVES[c.objective].outputs == 'matching'
    names = ' or '.join(f'config.matching.{name} > 0' for name in terms)
    _rule('objective', repr(c.objective), bool(used) or not needs_term, f'requires {names}')
    for key, value in config.default().loss.items() if needs_term else ():
        rule = f'is not read for objective {c.objective!r}'
        _rule(f'loss.{key}', c.loss[key], c.loss[key] in (value, 0), rule)
    for name in used:
        rule = 'requires a teacher, config.teacher.path'
        _rule(f'matching.{name}', settings[name], _has_teacher(c), rule)


def _check_optim(c: ConfigDict) -> None:
    optim = c.optim
    _check_positive('optim.peak_lr', optim.peak_lr)
    _check_positive('optim.eps', optim.eps)
    _rule('optim.final_lr', optim.final_lr, 0 <= optim.final_lr <= 1, 'must be in [0, 1]')
    for key in ('b1', 'b2'):
        _rule(f'optim.{key}', optim[key], 0 <= optim[key] < 1, 'must be in [0, 1)')
    for key in ('weight_decay', 'clip_norm'):
        fits = 0 <= optim[key] < math.inf
        _rule(f'optim.{key}', optim[key], fits, 'must be at least 0 and finite')


def _check_eval(c: ConfigDict) -> None:
    source, stride, length = SOURCES[c.data.source], c.eval.stride, c.data.length
    is_stream = c.data.packing == 'contiguous' and not source.has_parts
    rule = "requires data.packing 'contiguous' and one source, not a mixture"
    _rule('eval.stride', stride, is_stream or not stride, rule)
    rule = f'must be at least 0 and at most data.length = {length}'
    _rule('eval.stride', stride, 0 <= stride <= length, rule)
    metrics, metric = OBJECTIVES[c.objective].metrics, c.eval.metric
    rule = f'must be one of {", ".join(metrics)} for objective {c.objective!r}'
    _rule('eval.metric', repr(metric), metric in ('', *metrics), rule + nearest(metric, metrics))
    rule = 'requires exactly two classes (class 1 is the positive one)'
    _rule('eval.metric', repr(metric), metric != 'f1' or c.student.classes == 2, rule)
    is_read = metric in GENERATION_METRICS or c.eval.tokenize == config.TOKENIZE[0]
    rule = f'is only read for eval.metric {" or ".join(GENERATION_METRICS)}'
    _rule('eval.tokenize', repr(c.eval.tokenize), is_read, rule)
    generate = c.generate
    rule = f'must be at most half of student.vocab_size = {c.student.vocab_size}'
    _rule('generate.beams', generate.beams, 2 * generate.beams <= c.student.vocab_size, rule)
    penalty = generate.length_penalty
    _rule('generate.length_penalty', penalty, math.isfinite(penalty), 'must be finite')
    if metric in GENERATION_METRICS or generate.max_length:
        longest = generate.max_length or c.data.target_length
        rule = f'must be at most the greatest length of a generated text, {longest}'
        _rule('generate.min_length', generate.min_length, generate.min_length <= longest, rule)
        for name, network in _networks(c).items():
            rule = f'must be at most {name}.positions = {network.positions}'
            _rule('generate.max_length', longest, longest <= network.positions, rule)


def _check_keep_best(c: ConfigDict) -> None:
    name, scores = c.train.keep_best, OBJECTIVES[c.objective].validation_scores
    rule = f'must be one of {", ".join(scores)} for objective {c.objective!r}'
    fits = name in ('', *scores)
    _rule('train.keep_best', repr(name), fits, rule + nearest(name, scores))
    is_comparison = name in OBJECTIVES[c.objective].teacher_scores
    rule = 'requires a teacher, config.teacher.path'
    _rule('train.keep_best', repr(name), _has_teacher(c) or not is_comparison, rule)
    reads_logits = c.loss.lambda_ > 0 or not matching.is_used(c)
    rule = 'requires config.loss.lambda_ > 0: the teacher may have no logits'
    _rule('train.keep_best', repr(name), reads_logits or not is_comparison, rule)
    fits, rule = name != 'f1' or c.student.classes == 2, 'requires exactly two classes'
    _rule('train.keep_best', repr(name), fits, rule)
    fits, rule = not name or c.train.eval_every > 0, 'requires config.train.eval_every >= 1'
    _rule('train.keep_best', repr(name), fits, rule)
    fits = bool(name or not c.train.patience)
    _rule('train.patience', c.train.patience, fits, 'requires config.train.keep_best')


def _check_seeds(key: str, seeds: Sequence[int]) -> None:
    text = _text(seeds) or '()'
    unique = len({*seeds}) == len(seeds) >= 1
    _rule(key, text, unique, 'must name at least one seed, and none twice')
    _rule(key, text, all(0 <= seed < 2**31 for seed in seeds), 'must be at least 0 and below 2**31')


def _check_recipe(recipe: ConfigDict, family: str) -> None:
    _check_seeds('recipe.seeds', recipe.seeds)
    unique = len({*recipe.tasks}) == len(recipe.tasks)
    _rule('recipe.tasks', ','.join(recipe.tasks), unique, 'must name no task twice')
    names = [n for n in config.objectives_of(family) if OBJECTIVES[n].example_type == 'documents']
    name, rule = recipe.stage1_objective, f'must be one of {", ".join(names)} for family {family!r}'
    _rule('recipe.stage1_objective', repr(name), name in ('', *names), rule + nearest(name, names))
    share = recipe.sweep_share
    _rule('recipe.sweep_share', share, 0 < share <= 1, 'must be above 0 and at most 1')
    for name in config.PHASES:
        phase, prefix = recipe[name], f'recipe.{name}'
        _check_loss(prefix, phase)
        least = {'updates': 0 if name.endswith('finetune') else 1, 'warmup': 0, 'batch_size': 1}
        for key, minimum in least.items():
            rule = f'must be at least {minimum}'
            _rule(f'{prefix}.{key}', phase[key], phase[key] >= minimum, rule)
        _check_positive(f'{prefix}.peak_lr', phase.peak_lr)
        for rate in phase.sweep_peak_lr:
            _check_positive(f'{prefix}.sweep_peak_lr', rate)
        for weight in phase.sweep_lambda:
            _rule(f'{prefix}.sweep_lambda', weight, 0 <= weight <= 1, 'must be in [0, 1]')
        for key in ('sweep_peak_lr', 'sweep_lambda'):
            text = ','.join(f'{value:g}' for value in phase[key])
            unique = len({*phase[key]}) == len(phase[key])
            _rule(f'{prefix}.{key}', text, unique, 'must not repeat a value')


def _check_unread(c: ConfigDict) -> None:
    """Requires the default of each key that the source or the objective ignores."""
    name, defaults, values = c.data.source, config.flatten(config.default()), config.flatten(c)
    source = SOURCES[name]
    for key in dict.fromkeys(f'data.{key}' for record in SOURCES.values() for key in record.keys):
        ignored = key.removeprefix('data.') not in source.keys and values[key] != defaults[key]
        _rule(key, values[key], not ignored, f'is not read for source {name!r}')
    for key in dict.fromkeys(key for record in OBJECTIVES.values() for key in record.keys):
        readers = [reader for reader, record in OBJECTIVES.items() if key in record.keys]
        ignored = c.objective not in readers and values[key] != defaults[key]
        rule = f'is only read for objective {" or ".join(map(repr, readers))}'
        _rule(key, _text(values[key]), not ignored, rule)
    for key in ('replace', 'decontaminate', 'unlabelled'):
        rule = f'is not read for source {name!r}'
        _rule(f'data.{key}', _text(c.data[key]), source.has_text or not c.data[key], rule)
    is_read = c.data.held_out > 0 or not c.data.held_out_whole
    rule = 'is only read if config.data.held_out > 0'
    _rule('data.held_out_whole', c.data.held_out_whole, is_read, rule)
    named = c.tokenizer.path or c.tokenizer.reduce
    is_read = not c.tokenizer.text or (name == 'text' and not named)
    rule = "is only read for data.source 'text' without tokenizer.path and tokenizer.reduce"
    _rule('tokenizer.text', c.tokenizer.text, is_read, rule)


def _is_missing(path: str) -> bool:
    return '://' not in path and not pathlib.Path(path).expanduser().exists()


def check_data_path(c: ConfigDict) -> None:
    """Raises MissingPaths if `config.data.path` does not exist; the message describes its layout."""
    layout = SOURCES[c.data.source].layout
    if layout and _is_missing(c.data.path):
        raise MissingPaths(f'{c.data.path}: no such path, put {layout} there')


def check_paths(c: ConfigDict, runs: bool = True) -> None:
    """Checks the paths that a run reads.

    Args:
      c: a valid configuration.
      runs: whether the runs that it starts from must exist.

    Raises:
      MissingPaths: names every missing path.
      UserError: a path is not set.
    """
    source = SOURCES[c.data.source]
    if not c.data.path and 'path' in source.keys:
        _rule('data.path', "''", False, f'must be {source.path} for source {c.data.source!r}')
    fits = not c.tokenizer.reduce or c.tokenizer.path or c.teacher.path
    rule = 'requires the tokenizer to reduce: tokenizer.path or teacher.path'
    _rule('tokenizer.reduce', _text(c.tokenizer.reduce), fits, rule)
    run = 'the workdir of a finished run, or a folder with config.json and model.safetensors'
    paths = [
        ('teacher.path', c.teacher.path, run if runs else ''),
        ('student.init', c.student.init, run if runs and c.student.init not in STARTS else ''),
        ('data.path', c.data.path, source.layout),
        ('tokenizer.path', c.tokenizer.path, 'a tokenizer'),
        (
            'tokenizer.text',
            c.tokenizer.text,
            'a folder with train.txt, validation.txt and test.txt',
        ),
    ]
    missing = [
        f'config.{key} = {path}: no such path, put {content} there'
        for key, path, content in paths
        if path and content and _is_missing(path)
    ]
    if missing:
        raise MissingPaths('; '.join(missing))


def batch_shards(c: ConfigDict, devices: int) -> int:
    """Returns the number of parts that a batch is split into over devices."""
    return devices // c.mesh.tensor if c.mesh.data == -1 else c.mesh.data * c.mesh.fsdp


def check_batch(key: str, size: int, c: ConfigDict, devices: int) -> None:
    """Raises UserError unless `size` sequences divide evenly over micro-batches and devices."""
    parts = c.train.grad_accum_steps * batch_shards(c, devices)
    _rule(
        key, size, size % parts == 0, f'must be a multiple of grad_accum_steps x devices = {parts}'
    )


def check_devices(c: ConfigDict, devices: int, processes: int = 1) -> None:
    """Checks that mesh and batches fit the devices.

    Args:
      c: a valid configuration.
      devices: number of devices.
      processes: number of processes, which have equally many devices.

    Raises:
      UserError: names key, value and rule of the first mistake.
    """
    fsdp, tensor, data = c.mesh.fsdp, c.mesh.tensor, c.mesh.data
    mesh = f'(data {data}, fsdp {fsdp}, tensor {tensor})'
    if data == -1:
        rule = f'fsdp x tensor must divide the number of devices = {devices}'
        _rule('mesh', mesh, devices % (fsdp * tensor) == 0, rule)
    else:
        size = data * fsdp * tensor
        fits = size <= devices if processes == 1 else size == devices
        bound = 'at most' if processes == 1 else 'equal to'
        _rule('mesh', mesh, fits, f'the product must be {bound} the number of devices = {devices}')
    shards = batch_shards(c, devices)
    rule = f'data x fsdp must be a multiple of the number of processes = {processes}'
    _rule('mesh', mesh, shards % processes == 0, rule)
    check_batch('data.batch_size', c.data.batch_size, c, devices)
    local = c.data.batch_size // (c.train.grad_accum_steps * shards)
    size = c.teacher.microbatch_size
    rule = f'must divide the sequences of a micro-batch on a device = {local}'
    _rule(
        'teacher.microbatch_size', size, not (size and _has_teacher(c)) or local % size == 0, rule
    )
    for name, network in _networks(c).items():
        divides = 'tensor' not in c.mesh[name] or network.heads % tensor == 0
        _rule('mesh.tensor', tensor, divides, f'must divide {name}.heads = {network.heads}')
    rule = f'must be a multiple of devices = {shards}'
    _rule('eval.batch_size', c.eval.batch_size, c.eval.batch_size % shards == 0, rule)


def _check_float32(key: str, value: float, factor: float = 1.0) -> None:
    """Checks that a number, or its product with a factor, keeps its meaning in float32.

    The step computes in float32. There a rate of 1e39 is inf, a rate of 1e-50 is 0 and a decay of
    0.99999999 is 1. The rules of these keys forbid such values.
    """
    rounded = ctypes.c_float(value * factor).value
    rounded = rounded if abs(rounded) >= _LEAST_FLOAT32 else 0.0  # XLA replaces subnormals by 0
    keeps = math.isfinite(rounded) and (rounded in (0, 1)) == (value in (0, 1))
    name = 'it' if factor == 1 else 'its square'
    _rule(key, value, keeps, f'must fit into float32, where {name} is {rounded:g}')


def _check_positive(key: str, value: float) -> None:
    _rule(key, value, 0 < value < math.inf, 'must be above 0 and finite')


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    rule = f'must be one of {", ".join(choices)}{nearest(value, choices)}'
    _rule(key, repr(value), value in choices, rule)


def _text(value: Any) -> str:
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rule(key: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'config.{key} = {value}: {rule}')
