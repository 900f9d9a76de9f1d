"""Helpers that recipe files share: network shapes, parts of datasets, and the presets they have in common.

A recipe file states its differences from `config.default()`. A helper sets a group of keys that
several recipe files set alike; it changes the configuration in place.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax.config.objectives import AUGMENT_CHANGES, AUGMENTATION

PHASES = ('teacher_pretrain', 'teacher_finetune', 'student_pretrain', 'student_finetune')


def shape(layers: int, width: int, heads: int, **others: Any) -> dict[str, Any]:
    """Returns the keys of a network whose feed-forward layers are 4 times as wide as the network.

        c.student.update(config.shape(4, 768, 12, positions=1024, vocab_size=50257))

    Args:
      layers: transformer blocks; of an encoder-decoder those of the encoder.
      width: features of a position.
      heads: attention heads.
      **others: other keys of `config.network()`.
    """
    return {'layers': layers, 'width': width, 'heads': heads, 'ffn': 4 * width, **others}


def part(
    source: str,
    path: str = '',
    *,
    weight: float | None = None,
    splits: Sequence[str] = (),
    **settings: Any,
) -> str:
    """Returns a dataset as an entry of `config.data.mixture`, `.decontaminate` or `.unlabelled`.

        part('qqp', 'data/QQP', held_out=0.05, weight=0.2)  # qqp:data/QQP?held_out=0.05=0.2

    Args:
      source: one of the sources of `config.data.source`.
      path: its `config.data.path`; '' for a source without path.
      weight: share of the rows in a mixture; None in other lists.
      splits: splits to read; () reads all.
      **settings: other keys of `config.data` for this dataset; a sequence is joined by commas.
    """
    values = {
        key: value if isinstance(value, str | int | float) else ','.join(map(str, value))
        for key, value in settings.items()
    }
    query = '&'.join(f'{key}={value}' for key, value in values.items())
    return (
        source
        + (f':{path}' if path else '')
        + (f'?{query}' if query else '')
        + (f'#{",".join(splits)}' if splits else '')
        + ('' if weight is None else f'={weight:g}')
    )


def use_phase(c: ConfigDict, phase: ConfigDict, with_teacher: bool = False) -> ConfigDict:
    """Sets the budget and the loss of a recipe's phase for a single run.

    Args:
      c: configuration of the run; it is changed and returned.
      phase: a section like `config.phase()`.
      with_teacher: whether the run has a teacher; without one its weight is 0.
    """
    c.train.updates, c.optim.warmup = phase.updates, phase.warmup
    c.optim.peak_lr, c.data.batch_size = phase.peak_lr, phase.batch_size
    loss = (phase.lambda_, phase.temperature) if with_teacher else (0.0, 1.0)
    c.loss.lambda_, c.loss.temperature = loss
    return c


def augmentation(data: ConfigDict, with_teacher: bool) -> dict[str, Any]:
    """Returns the augmentation of `data` for a run.

    Without a teacher the changed rows keep their labels, and pairs keep their second text.
    """
    keys = {key: data[key] for key in AUGMENTATION}
    if not with_teacher and data.augment:
        keys |= {'augment_pairs': 0.0, 'augment_keep_labels': True}
        if not any(keys[key] for key in AUGMENT_CHANGES):
            keys |= {'augment': 0.0, 'augment_keep_labels': False}
    return keys


def paper_scale(c: ConfigDict, eval_every: int, save_every: int, remat: str = 'block') -> None:
    """Sets linear decay to 0, bfloat16, rematerialization, and a log line every 100 updates."""
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0})
    c.train.update({'compute_dtype': 'bfloat16', 'remat': remat, 'log_every': 100})
    c.train.update({'eval_every': eval_every, 'save_every': save_every})


def paper_budget(batch_size: int) -> dict[str, Any]:
    """Returns the pre-training budget of NAS-BERT (KDD 2021); LightPAFF does not report its own."""
    return {'updates': 125_000, 'warmup': 10_000, 'peak_lr': 5e-4, 'batch_size': batch_size}


def tiny_stage1(c: ConfigDict, preset: str, file: str) -> ConfigDict:
    """Fills in the presets `tiny` and `tiny_teacher` of a stage-1 file: 200 updates on the built-in corpus.

    Args:
      c: configuration with its family and objective; it is changed and returned.
      preset: 'tiny' or 'tiny_teacher'.
      file: the recipe file, `__file__`.
    """
    c.data.packages, c.data.length = ('numpy', 'optax', 'flax', 'stdlib'), 64
    c.optim.peak_lr = 2e-3
    c.train.update({'updates': 200, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update(_decoder(c, 2) | shape(2, 128, 4))
        return c
    c.student.update(_decoder(c, 1) | shape(2, 48, 2))
    c.teacher.path = f'runs/{pathlib.Path(file).stem}_tiny_teacher'
    c.requires = (f'{file}:tiny_teacher',)
    return c


def tiny_stage2(c: ConfigDict, preset: str, file: str) -> ConfigDict:
    """Fills in the presets `tiny` and `tiny_teacher` of a stage-2 file: 100 updates after stage 1.

    Arguments as in `tiny_stage1`; `file` is FAMILY_stage2.py, next to FAMILY_stage1.py.
    """
    stage2 = pathlib.Path(file)
    stage1 = stage2.with_name(stage2.name.replace('stage2', 'stage1'))
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update(_decoder(c, 2) | shape(2, 128, 4))
        c.student.init = f'runs/{stage1.stem}_tiny_teacher'
        c.requires = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update(_decoder(c, 1) | shape(2, 48, 2))
    c.student.init = f'runs/{stage1.stem}_tiny'
    c.teacher.path = f'runs/{stage2.stem}_tiny_teacher'
    c.requires = (f'{stage1}:tiny', f'{file}:tiny_teacher')
    return c


def _decoder(c: ConfigDict, layers: int) -> dict[str, int]:
    return {'decoder_layers': layers} if c.student.family == 'mass' else {}


def family_table(c: ConfigDict, preset: str, file: str, tasks: Sequence[str]) -> ConfigDict:
    """Names the tasks of a family's table; the preset 'ci' runs 10 updates of each phase.

    Args:
      c: configuration of the recipe; it is changed and returned.
      preset: '' is the paper's scale.
      file: the recipe file FAMILY.py, next to FAMILY_stage2.py.
      tasks: presets of FAMILY_stage2.py, each a task. Their files set the budget of fine-tuning.
    """
    path = pathlib.Path(file)
    stage2 = path.with_name(f'{path.stem}_stage2.py')
    c.recipe.scale = preset or 'paper'
    c.recipe.tasks = tuple(f'{stage2}:{task}' for task in tasks)
    c.recipe.teacher_finetune.updates = c.recipe.student_finetune.updates = 0
    if preset == 'ci':
        for name in PHASES:
            c.recipe[name].update({'updates': 10, 'warmup': 2, 'batch_size': 16})
        c.recipe.student_finetune.sweep_peak_lr = (5e-4, 1e-3)
        c.eval.batches = 2
    return c


def tiny_table(c: ConfigDict, equal_flops: str, teacher_lr: float, student_lr: float) -> None:
    """Fills in the preset `tiny` of a family's table: networks and budgets for minutes on 2 cores.

    Args:
      c: configuration of the recipe.
      equal_flops: the task that also has a student without a teacher at equal FLOPs.
      teacher_lr: peak learning rate of the teacher's pre-training.
      student_lr: peak learning rate of the student's pre-training.
    """
    c.teacher.update(_decoder(c, 2) | shape(2, 128, 4))
    c.student.update(_decoder(c, 1) | shape(1, 48, 2))
    c.data.length = 64
    c.eval.batch_size, c.eval.batches = 32, 10
    budget = {'updates': 300, 'warmup': 30, 'batch_size': 16}
    c.recipe.teacher_pretrain.update(budget | {'peak_lr': teacher_lr})
    c.recipe.student_pretrain.update(budget | {'peak_lr': student_lr})
    c.recipe.equal_flops = (equal_flops,)
    c.mesh.data = 1
    c.train.update({'log_every': 20, 'save_every': 500})
