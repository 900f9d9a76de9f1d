"""Every configuration key: its default, its unit, its rule.

A recipe file in configs/ starts from `default()` and states its differences;
code reads `c.section.key` and never supplies a default of its own.
"""

import difflib
import json
import math
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

FAMILIES = ('gpt2',)
OBJECTIVES = ('clm',)
SOURCES = ('pydocs', 'text', 'prepared')
SCHEDULES = ('linear', 'cosine', 'constant')
DTYPES = ('float32', 'bfloat16')
REMAT = ('none', 'block')

# A run may be resumed after these keys changed; any other difference is an error.
MAY_CHANGE = (
    'workdir', 'after', 'data.cache', 'data.path', 'data.prefetch', 'tokenizer.path',
    'tokenizer.text', 'teacher.path', 'student.init', 'train.updates', 'train.compilation_cache',
    'train.log_every', 'train.eval_every', 'train.save_every', 'train.keep', 'eval.batch_size',
    'eval.batches', 'recipe',
)  # fmt: skip


class UserError(Exception):
    """A mistake in the input. Shown as one line, exit code 2, no traceback."""


class MissingPaths(UserError):
    """Files that a run starts from are not there."""


class NotSaved(UserError):
    """A checkpoint could not be written: no space, no permission."""


def network(**changes) -> ConfigDict:
    """Shape of one network; `student` and `teacher` both have these keys."""
    c = ConfigDict()
    c.family = 'gpt2'  # one of FAMILIES
    c.layers = 2  # transformer blocks
    c.width = 128  # D, features a position
    c.heads = 2  # attention heads; divides width
    c.ffn = 512  # F, width of the feed-forward layer
    c.positions = 128  # longest sequence, tokens
    c.vocab_size = 2048  # ids in use; tables are padded to a multiple of 128
    c.dropout = 0.0  # probability, while training
    c.update(changes)
    return c


def phase() -> ConfigDict:
    """One arrow of a recipe: what differs between its runs."""
    c = ConfigDict()
    c.updates = 100  # optimizer updates
    c.warmup = 10  # updates of linear warm-up
    c.peak_lr = 1e-3  # learning rate after the warm-up
    c.batch_size = 8  # sequences an update
    c.packages = ()  # pydocs packages to read; () reads all
    c.path = ''  # folder of text or of a prepared set, where data.source is one
    c.lambda_ = 0.5  # weight of the teacher, where there is one
    c.temperature = 1.0  # softens both distributions, where there is a teacher
    return c


def default() -> ConfigDict:
    """Every key with its default. Units are in the comments."""
    c = ConfigDict()
    c.seed = 0  # initialisation, order of the data, dropout
    c.workdir = ''  # where the run writes; '' is runs/<config name>
    c.after = ()  # FILE[:VARIANT] of runs to finish first, where main finds them unfinished
    c.objective = 'clm'  # what is predicted from what; one of OBJECTIVES

    c.student = network()  # the network that is trained (a teacher's own training too)
    c.student.init = 'scratch'  # or the workdir of a run to start from

    c.teacher = network(layers=0)  # layers 0: its shape is read from its path
    c.teacher.path = ''  # workdir of the frozen teacher; '' trains without one
    c.teacher.dtype = 'auto'  # its parameters: auto is bfloat16, on a CPU float32

    c.loss = ConfigDict()
    c.loss.lambda_ = 0.5  # weight of KL(teacher || student), in [0, 1]
    c.loss.temperature = 1.0  # > 0, softens both distributions
    c.loss.chunk = 0  # predicted positions in a visit of the head; 0 chooses

    c.optim = ConfigDict()
    c.optim.peak_lr = 1e-3  # learning rate after the warm-up
    c.optim.schedule = 'cosine'  # decay after the warm-up, one of SCHEDULES
    c.optim.final_lr = 0.1  # last learning rate, as a share of peak_lr
    c.optim.warmup = 10  # updates of linear warm-up
    c.optim.b1 = 0.9  # AdamW, decay of the first moment
    c.optim.b2 = 0.98  # AdamW, decay of the second moment
    c.optim.eps = 1e-8  # AdamW
    c.optim.weight_decay = 0.01  # AdamW, on matrices only
    c.optim.clip_norm = 1.0  # longest gradient; 0 does not clip

    c.data = ConfigDict()
    c.data.source = 'pydocs'  # one of SOURCES
    c.data.path = ''  # folder of a prepared set, or of train.txt, validation.txt, test.txt
    c.data.packages = ()  # pydocs: packages to read; () reads all
    c.data.length = 128  # T, tokens a sequence
    c.data.batch_size = 8  # sequences an update, over all devices and micro-steps
    c.data.cache = '~/.cache/lightpaff_jax'  # sets and vocabularies made here
    c.data.prefetch = 4  # batches read ahead

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ''  # a SentencePiece .model file; '' trains one
    c.tokenizer.text = ''  # folder whose train.txt it is trained on; '' is data.path

    c.train = ConfigDict()
    c.train.updates = 100  # optimizer updates in all
    c.train.micro_steps = 1  # M, parts a batch is computed in
    c.train.compute_dtype = 'float32'  # of matrix products in the networks, one of DTYPES
    c.train.remat = 'none'  # what the backward pass computes again, one of REMAT
    c.train.compilation_cache = '~/.cache/lightpaff_jax/xla'  # compiled programs; '' keeps none
    c.train.log_every = 20  # updates between lines of metrics.jsonl
    c.train.eval_every = 0  # updates between validations; 0: at the end only
    c.train.save_every = 100  # updates between checkpoints
    c.train.keep = 2  # newest checkpoints kept

    c.eval = ConfigDict()
    c.eval.batch_size = 16  # sequences a batch
    c.eval.batches = 0  # batches of each split; 0 reads it whole

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along `data`; -1 takes all that are left, fewer leave some idle
    c.mesh.fsdp = 1  # devices that share each parameter
    c.mesh.tensor = 1  # devices that share each matrix product

    c.recipe = ConfigDict()
    c.recipe.seeds = (0,)  # one student of every arm for each
    c.recipe.teacher_pretrain = phase()
    c.recipe.teacher_finetune = phase()
    c.recipe.student_pretrain = phase()  # stage 1, and its control without a teacher
    c.recipe.student_finetune = phase()  # stage 2, and its control without a teacher
    return c.lock()


def validate(c: ConfigDict, devices: int | None = None, processes: int = 1) -> None:
    """Raises UserError that names key, value and rule of the first mistake.

    Args:
      c: a configuration with the keys of `default()`.
      devices: devices there are; None skips the rules that need it.
      processes: processes that share them equally.
    """
    _validate_networks(c)
    _one_of('objective', c.objective, OBJECTIVES)
    _one_of('teacher.dtype', c.teacher.dtype, ('auto', *DTYPES))
    _check_loss('loss', c.loss.lambda_, c.loss.temperature)
    _rule('loss.chunk', c.loss.chunk, c.loss.chunk >= 0, 'must be at least 0')
    _one_of('optim.schedule', c.optim.schedule, SCHEDULES)
    for key in ('peak_lr', 'eps'):
        _positive(f'optim.{key}', c.optim[key])
    _rule('optim.final_lr', c.optim.final_lr, 0 <= c.optim.final_lr <= 1, 'must be in [0, 1]')
    _rule('optim.warmup', c.optim.warmup, c.optim.warmup >= 0, 'must be at least 0')
    for key in ('b1', 'b2'):
        _rule(f'optim.{key}', c.optim[key], 0 <= c.optim[key] < 1, 'must be in [0, 1)')
    for key in ('weight_decay', 'clip_norm'):
        value = c.optim[key]
        _rule(f'optim.{key}', value, 0 <= value < math.inf, 'must be at least 0 and finite')
    _one_of('data.source', c.data.source, SOURCES)
    _one_of('train.compute_dtype', c.train.compute_dtype, DTYPES)
    _one_of('train.remat', c.train.remat, REMAT)
    least = {
        'train': {'updates': 1, 'micro_steps': 1, 'log_every': 1, 'eval_every': 0,
                  'save_every': 1, 'keep': 1},
        'data': {'batch_size': 1, 'prefetch': 1},
        'eval': {'batch_size': 1, 'batches': 0},
        'mesh': {'fsdp': 1, 'tensor': 1},
    }  # fmt: skip
    for section, keys in least.items():
        for key, minimum in keys.items():
            value = c[section][key]
            _rule(f'{section}.{key}', value, value >= minimum, f'must be at least {minimum}')
    _rule(
        'mesh.data', c.mesh.data, c.mesh.data == -1 or c.mesh.data >= 1, 'must be -1 or at least 1'
    )
    _validate_recipe(c)
    _check_unread(c)
    _rule(
        'tokenizer.path', repr(c.tokenizer.path), c.tokenizer.path or c.data.source != 'prepared',
        "must be the tokenizer that the set was prepared with, for source 'prepared'",
    )  # fmt: skip
    if devices is not None:
        _validate_devices(c, devices, processes)


def _validate_networks(c: ConfigDict) -> None:
    nets = [('student', c.student)]
    if c.teacher.layers:
        nets.append(('teacher', c.teacher))
    for name, net in nets:
        _one_of(f'{name}.family', net.family, FAMILIES)
        for key in ('layers', 'width', 'heads', 'ffn', 'positions', 'vocab_size'):
            _rule(f'{name}.{key}', net[key], net[key] >= 1, 'must be at least 1')
        _rule(
            f'{name}.heads', net.heads, net.width % net.heads == 0,
            f'must divide {name}.width = {net.width}',
        )  # fmt: skip
        _rule(f'{name}.dropout', net.dropout, 0 <= net.dropout < 1, 'must be in [0, 1)')
        _rule(
            'data.length', c.data.length, 1 <= c.data.length <= net.positions,
            f'must be at least 1 and at most {name}.positions = {net.positions}',
        )  # fmt: skip
    if c.teacher.layers:
        _rule(
            'teacher.vocab_size', c.teacher.vocab_size,
            c.teacher.vocab_size == c.student.vocab_size,
            f'must equal student.vocab_size = {c.student.vocab_size}',
        )  # fmt: skip


def _validate_recipe(c: ConfigDict) -> None:
    _seeds('seed', (c.seed,))
    _seeds('recipe.seeds', c.recipe.seeds)
    for name, p in c.recipe.items():
        if name == 'seeds':
            continue
        _check_loss(f'recipe.{name}', p.lambda_, p.temperature)
        for key, minimum in (('updates', 1), ('warmup', 0), ('batch_size', 1)):
            rule = f'must be at least {minimum}'
            _rule(f'recipe.{name}.{key}', p[key], p[key] >= minimum, rule)
        _positive(f'recipe.{name}.peak_lr', p.peak_lr)


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
    shards = _shards(c, devices)
    _rule(
        'mesh', mesh, shards % processes == 0,
        f'data x fsdp must be a multiple of the number of processes = {processes}',
    )  # fmt: skip
    check_batch('data.batch_size', c.data.batch_size, c, devices)
    _rule(
        'eval.batch_size', c.eval.batch_size, c.eval.batch_size % shards == 0,
        f'must be a multiple of devices = {shards}',
    )  # fmt: skip


def check_batch(key: str, size: int, c: ConfigDict, devices: int) -> None:
    """Raises UserError unless a batch of `size` sequences divides over micro-steps and devices."""
    parts = c.train.micro_steps * _shards(c, devices)
    rule = f'must be a multiple of micro_steps x devices = {parts}'
    _rule(key, size, size % parts == 0, rule)


def _check_unread(c: ConfigDict) -> None:
    """A key that the source does not read must be empty: it would be ignored."""
    source, phases = (
        c.data.source,
        [(f'recipe.{k}', p) for k, p in c.recipe.items() if k != 'seeds'],
    )
    for where, section in [('data', c.data), *phases]:
        key = 'path' if source == 'pydocs' else 'packages'
        _rule(f'{where}.{key}', section[key], not section[key], f'is not read from {source!r}')
    used = source == 'text' and not c.tokenizer.path
    _rule('tokenizer.text', c.tokenizer.text, used or not c.tokenizer.text,
          "is read for data.source 'text' and no tokenizer.path")  # fmt: skip


def _shards(c: ConfigDict, devices: int) -> int:
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


def _rule(key: str, value, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'config.{key} = {value}: {rule}')


def nearest(name: str, names: Sequence[str]) -> str:
    """'; did you mean X?' for the closest of names, or nothing."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'; did you mean {found[0]}?' if found else ''


def check_paths(c: ConfigDict, runs: bool = True) -> None:
    """Raises MissingPaths that names every path a run needs and does not find.

    Args:
      c: the run's configuration.
      runs: whether the runs that it starts from must be there already.
    """
    _rule(
        'data.path', repr(c.data.path), c.data.path or c.data.source == 'pydocs',
        f'must be a folder for source {c.data.source!r}',
    )  # fmt: skip
    run_of = 'the workdir of a finished run'
    needed = [
        ('teacher.path', c.teacher.path, run_of),
        ('student.init', c.student.init if c.student.init != 'scratch' else '', run_of),
        ('data.path', c.data.path, {
            'pydocs': '',
            'text': 'a folder with train.txt, validation.txt and test.txt',
            'prepared': 'a folder that lightpaff_jax.data.prepare wrote',
        }[c.data.source]),
        ('tokenizer.path', c.tokenizer.path, 'a SentencePiece model'),
        ('tokenizer.text', c.tokenizer.text, 'a folder with train.txt, validation.txt and test.txt'),
    ]  # fmt: skip
    missing = [
        f'config.{key} = {path}: no such path, put {what} there'
        for key, path, what in needed
        if path
        and what
        and (runs or what != run_of)
        and not pathlib.Path(path).expanduser().exists()
    ]
    if missing:
        raise MissingPaths('; '.join(missing))


def flatten(c: ConfigDict, prefix: str = '') -> dict:
    """Dotted key -> value, sorted within each section."""
    flat: dict = {}
    for key, value in c.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def copy(c: ConfigDict) -> ConfigDict:
    """An independent copy that still refuses unknown keys."""
    return c.copy_and_resolve_references()


def to_json(c: ConfigDict) -> str:
    """Every key and value; `from_json` reads it back."""
    return json.dumps(c.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote; raises UserError on keys this version does not have."""
    c = default()
    known = flatten(c)
    for key, value in flatten(ConfigDict(json.loads(text))).items():
        if key not in known:
            raise UserError(f'config.{key}: no such key{nearest(key, list(known))}')
        *sections, leaf = key.split('.')
        node = c
        for name in sections:
            node = node[name]
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return c


def read(workdir: pathlib.Path) -> ConfigDict:
    """config.json of a run; raises UserError that names the file where it cannot be read."""
    path = workdir / 'config.json'
    try:
        return from_json(path.read_text())
    except (UserError, OSError, ValueError, TypeError) as error:
        raise UserError(f'{path}: {" ".join(str(error).split())}') from error


def differences(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Keys that differ and may not change when a run is resumed, as 'key: old -> new'."""
    old, new = flatten(before), flatten(after)
    return [
        f'{key}: {old[key]!r} -> {new[key]!r}'
        for key in new
        if old[key] != new[key] and not any(key == m or key.startswith(f'{m}.') for m in MAY_CHANGE)
    ]
