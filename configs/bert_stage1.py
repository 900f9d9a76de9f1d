"""LightPAFF stage 1 for BERT: the student is pre-trained from scratch with the pre-trained teacher.

Reproduces the student of the paper's understanding tables: teacher BERT-base (109.5 M parameters
with its head), student 3 layers x 512 (25.6 M), lambda 0.5, temperature 1; updates, batch and
learning rate are those of NAS-BERT (KDD 2021), the paper's own are not known. There is no dropout:
a student this small learns none of the text by heart, and fast attention has none.

    python -m lightpaff_jax.main --config=configs/bert_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/bert_stage1.py:tiny     on a laptop

It starts from teachers/bert_base_uncased, a Hugging Face folder with vocab.txt or tokenizer.json,
and data/wikipedia_bookcorpus, a folder of text. `tiny` reads the embedded text and first trains
its teacher (`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mlm'
    c.student.family = c.teacher.family = 'bert'
    if preset:
        return _tiny(c, preset)
    shape = {'positions': 512, 'vocab_size': 30522}
    c.teacher.update({'layers': 12, 'width': 768, 'heads': 12, 'ffn': 3072, **shape})
    c.student.update({'layers': 3, 'width': 512, 'heads': 8, 'ffn': 2048, **shape})
    c.teacher.path = 'teachers/bert_base_uncased'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/wikipedia_bookcorpus', 0.001
    c.data.length, c.data.batch_size = 512, 2048
    c.eval.batch_size = 256
    c.optim.update({'peak_lr': 5e-4, 'schedule': 'linear', 'final_lr': 0.0, 'warmup': 10_000})
    c.optim.b2 = 0.999
    c.train.update({'updates': 125_000, 'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 5_000, 'save_every': 1_000})
    return c


def _tiny(c, preset):
    c.data.packages = ('numpy', 'optax', 'flax', 'stdlib')
    c.data.length = 64
    c.optim.peak_lr = 2e-3
    c.train.update({'updates': 200, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        return c
    c.student.update({'layers': 2, 'width': 48, 'heads': 2, 'ffn': 192})
    c.requires = (f'{__file__}:tiny_teacher',)
    c.teacher.path = 'runs/bert_stage1_tiny_teacher'
    return c
