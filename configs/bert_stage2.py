"""LightPAFF stage 2 for BERT: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Reproduces the student of the paper's SST-2 row (accuracy 92.9, as another publication reports it):
teacher BERT-base, student 3 layers x 512, lambda 0.5, temperature 1. The paper's own updates and
learning rate are not known.

    python -m lightpaff_jax.main --config=configs/bert_stage2.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/bert_stage2.py:tiny     on a laptop

It starts from runs/bert_stage1, from teachers/bert_base_uncased_sst2, a Hugging Face folder of a
fine-tuned BertForSequenceClassification, and from data/SST-2, GLUE's train.tsv and dev.tsv: dev is
the test, and 5 % of train the validation. `tiny` tells from which package a docstring of the
embedded text is, and first does the runs that it needs.
"""

import pathlib

from lightpaff_jax import config

VARIANTS = ('tiny', 'tiny_teacher')


def get_config(variant: str = ''):
    c = config.default()
    c.objective = 'classify'
    c.student.family = c.teacher.family = 'bert'
    c.student.head = c.teacher.head = 'classify'
    if variant:
        return _tiny(c, variant)
    c.student.update({'layers': 3, 'width': 512, 'heads': 8, 'ffn': 2048, 'dropout': 0.1})
    c.student.update({'positions': 512, 'vocab_size': 30522, 'classes': 2})
    c.student.init, c.student.new_head = 'runs/bert_stage1', True
    c.teacher.path = 'teachers/bert_base_uncased_sst2'
    c.data.source, c.data.path, c.data.held_out = 'sst2', 'data/SST-2', 0.05
    c.data.length, c.data.buckets, c.data.batch_size = 128, (32, 64, 128), 32
    c.eval.batch_size = 64
    c.optim.update({'peak_lr': 5e-5, 'schedule': 'linear', 'final_lr': 0.0, 'warmup': 600})
    c.optim.b2 = 0.999
    c.train.update({'updates': 6_300, 'compute_dtype': 'bfloat16'})
    c.train.update({'log_every': 100, 'eval_every': 1_000, 'save_every': 500})
    return c


def _tiny(c, variant):
    stage1 = pathlib.Path(__file__).with_name('bert_stage1.py')
    c.student.update({'classes': 12, 'new_head': True})
    c.data.form = 'topic'
    c.data.length = 64
    c.optim.peak_lr = 1e-3
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if variant == 'tiny_teacher':
        c.student.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/bert_stage1_tiny_teacher'
        c.after = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/bert_stage1_tiny'
    c.teacher.path = 'runs/bert_stage2_tiny_teacher'
    c.after = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
