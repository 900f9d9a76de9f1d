"""LightPAFF stage 2 for MASS: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Reproduces the student of the paper's Gigaword row (its score is not known; a MASS of 123 M has
ROUGE-1/2/L 38.73/19.71/35.96): teacher 6 + 6 layers x 1024, student 4 + 2 layers x 512, lambda
0.5, temperature 1. The paper's own updates and learning rate are not known.

    python -m lightpaff_jax.main --config=configs/mass_stage2.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/mass_stage2.py:tiny     on a laptop

It starts from runs/mass_stage1, from teachers/mass_middle_gigaword, a Hugging Face folder in
BART's format with its tokenizer, and from data/gigaword, files of one text a line like
train.article.txt and train.title.txt. `tiny` writes the first line of a docstring from the rest of
it, and first does the runs that it needs.
"""

import pathlib

from lightpaff_jax import config

VARIANTS = ('tiny', 'tiny_teacher')


def get_config(variant: str = ''):
    c = config.default()
    c.objective = 'seq2seq'
    c.student.family = c.teacher.family = 'mass'
    if variant:
        return _tiny(c, variant)
    c.student.update({'layers': 4, 'decoder_layers': 2, 'width': 512, 'heads': 8, 'ffn': 2048})
    c.student.update({'positions': 512, 'vocab_size': 30522, 'dropout': 0.1})
    c.student.init = 'runs/mass_stage1'
    c.teacher.path = 'teachers/mass_middle_gigaword'
    c.data.source, c.data.path = 'parallel', 'data/gigaword'
    c.data.sides, c.data.buckets = ('article', 'title'), (48, 64, 128)
    c.data.update({'length': 128, 'target_length': 48, 'batch_size': 256})
    c.eval.batch_size = 256
    c.optim.update({'peak_lr': 1e-4, 'schedule': 'linear', 'final_lr': 0.0, 'warmup': 1_000})
    c.train.update({'updates': 40_000, 'compute_dtype': 'bfloat16'})
    c.train.update({'log_every': 100, 'eval_every': 2_000, 'save_every': 1_000})
    return c


def _tiny(c, variant):
    stage1 = pathlib.Path(__file__).with_name('mass_stage1.py')
    c.data.form = 'summary'
    c.data.length, c.data.target_length = 64, 24
    c.optim.peak_lr = 1e-3
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if variant == 'tiny_teacher':
        c.student.update({'layers': 2, 'decoder_layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/mass_stage1_tiny_teacher'
        c.after = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'decoder_layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/mass_stage1_tiny'
    c.teacher.path = 'runs/mass_stage2_tiny_teacher'
    c.after = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
