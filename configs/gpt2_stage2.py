"""LightPAFF stage 2 for GPT-2: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Three tasks of the paper: `wikitext103` (the default), `wikitext2`, `ptb`. The recipe gpt2.py also has
them small (`wikitext2_small` and so on), and tiny, from the embedded text (`jax_tiny`, `numpy_tiny`,
`scipy_tiny`). Teacher 24 layers x 1024, student 4 x 768, lambda 0.5,
temperature 1. The paper's own updates and learning rates are not known.

    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py:ptb      on an accelerator
    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py:tiny     4 minutes on a laptop
    python -m lightpaff_jax.recipe --config=configs/gpt2.py:small         all three with their controls

| task | data | the paper's student, perplexity |
| WikiText-2 | data/wikitext-2: wiki.{train,valid,test}.tokens | 18.8 [U] |
| PTB | data/ptb: ptb.{train,valid,test}.txt | 22.8 [U] |
| WikiText-103 | data/wikitext-103: wiki.{train,valid,test}.tokens; small: documentation, a set of its own | 16.4 [U] |

It starts from runs/gpt2_stage1 and teachers/gpt2_medium_<task>, a workdir or Hugging Face folder of
the fine-tuned teacher. Where it is small, a set without a test file is tested on its valid file, and
validated on 5 % of train. `tiny` reads the embedded text, and first does the runs that it needs: stage 1, and the
fine-tuning of its teacher.
"""

import pathlib

from lightpaff_jax import config

TASKS = ('wikitext103', 'wikitext2', 'ptb')
SMALL = ('wikitext2_small', 'ptb_small', 'documentation_small')
TINY = ('jax_tiny', 'numpy_tiny', 'scipy_tiny')
PRESETS = (*TASKS, *SMALL, *TINY, 'tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    task, _, scale = (preset or 'wikitext103').partition('_')
    if preset in ('tiny', 'tiny_teacher'):
        return _alone(c, preset)
    if scale == 'tiny':
        return _tiny(c, task)
    if task == 'documentation':
        # Stands where WikiText-103 does at the paper's scale, and is no part of it.
        c.task, c.data.packages = 'Documentation', ('jax', 'numpy')
    elif task == 'ptb':
        c.task, c.data.source, c.data.path, c.data.documents = 'PTB', 'text', 'data/ptb', 'line'
    else:
        c.task = {'wikitext2': 'WikiText-2', 'wikitext103': 'WikiText-103'}[task]
        c.data.source, c.data.path = 'text', f'data/wikitext-{task.removeprefix("wikitext")}'
    return _small(c, task) if scale else _paper(c, task)


def _paper(c, task):
    shape = {'positions': 1024, 'vocab_size': 50257}
    c.teacher.update({'layers': 24, 'width': 1024, 'heads': 16, 'ffn': 4096, **shape})
    c.student.update({'layers': 4, 'width': 768, 'heads': 12, 'ffn': 3072, 'dropout': 0.1, **shape})
    c.student.init = 'runs/gpt2_stage1'
    c.teacher.path = f'teachers/gpt2_medium_{task}'
    c.data.detokenize = 'ptb' if task == 'ptb' else 'wikitext'  # the teacher knows plain text
    c.data.length, c.eval.batch_size = 1024, 64
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0})
    updates = {'wikitext103': 10_000, 'wikitext2': 400, 'ptb': 200}[task]
    p = {'updates': updates, 'warmup': updates // 20, 'batch_size': 64}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 3e-5, 'sweep_peak_lr': (1e-5, 3e-5, 1e-4)})
    c.recipe.student_finetune.update(p | {'peak_lr': 1e-4, 'sweep_peak_lr': (5e-5, 1e-4, 3e-4)})
    config.take(c, c.recipe.student_finetune, with_teacher=True)
    c.train.update({'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 1_000, 'save_every': 500})
    return c


def _small(c, task):
    if task != 'documentation':
        c.data.held_out = 0.05
    c.data.length, c.eval.batch_size = 128, 32
    p = {'updates': 300, 'warmup': 30, 'batch_size': 8, 'lambda_': 0.7, 'temperature': 2.0}
    c.recipe.teacher_finetune.update(p | {'sweep_peak_lr': (1e-3, 2e-3)})
    c.recipe.student_finetune.update(p | {'sweep_peak_lr': (2e-3, 4e-3)})
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, package):
    c.task, c.data.packages, c.data.length = package, (package,), 64
    p = {'updates': 60, 'warmup': 6, 'batch_size': 16}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 1e-3})
    c.recipe.student_finetune.update(p | {'peak_lr': 1e-3})
    c.eval.batch_size, c.eval.batches = 32, 20
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _alone(c, preset):
    stage1 = pathlib.Path(__file__).with_name('gpt2_stage1.py')
    c.data.packages = ('jax',)
    c.data.length = 64
    c.optim.peak_lr = 5e-4
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/gpt2_stage1_tiny_teacher'
        c.requires = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/gpt2_stage1_tiny'
    c.teacher.path = 'runs/gpt2_stage2_tiny_teacher'
    c.requires = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
