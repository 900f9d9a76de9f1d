"""LightPAFF stage 2 for GPT-2: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Reproduces the student of the paper's WikiText-103 row (perplexity 16.4, remembered, not seen):
teacher 24 layers x 1024, student 4 x 768, lambda 0.5, temperature 1. The paper's own updates and
learning rate are not known.

    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py:tiny     4 minutes on a laptop

It starts from runs/gpt2_stage1, from teachers/gpt2_medium_wikitext103, a workdir or Hugging Face
folder of the fine-tuned teacher, and from data/wikitext-103, a folder with wiki.train.tokens,
wiki.valid.tokens and wiki.test.tokens. `tiny` reads the embedded text,
and first does the runs that it needs: stage 1, and the fine-tuning of its teacher.
"""

import pathlib

from lightpaff_jax import config

VARIANTS = ('tiny', 'tiny_teacher')


def get_config(variant: str = ''):
    c = config.default()
    if variant:
        return _tiny(c, variant)
    shape = {'positions': 1024, 'vocab_size': 50257}
    c.teacher.update({'layers': 24, 'width': 1024, 'heads': 16, 'ffn': 4096, **shape})
    c.student.update({'layers': 4, 'width': 768, 'heads': 12, 'ffn': 3072, 'dropout': 0.1, **shape})
    c.student.init = 'runs/gpt2_stage1'
    c.teacher.path = 'teachers/gpt2_medium_wikitext103'
    c.data.source, c.data.path = 'text', 'data/wikitext-103'
    c.data.detokenize = 'wikitext'  # the teacher knows text as it is written
    c.data.length, c.data.batch_size = 1024, 64
    c.eval.batch_size = 64
    c.optim.update({'peak_lr': 1e-4, 'schedule': 'linear', 'final_lr': 0.0, 'warmup': 500})
    c.train.update({'updates': 10_000, 'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 1_000, 'save_every': 500})
    return c


def _tiny(c, variant):
    stage1 = pathlib.Path(__file__).with_name('gpt2_stage1.py')
    c.data.packages = ('jax',)
    c.data.length = 64
    c.optim.peak_lr = 5e-4
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if variant == 'tiny_teacher':
        c.student.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/gpt2_stage1_tiny_teacher'
        c.after = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/gpt2_stage1_tiny'
    c.teacher.path = 'runs/gpt2_stage2_tiny_teacher'
    c.after = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
