"""LightPAFF stage 1 for GPT-2: the student is pre-trained from scratch with the pre-trained teacher.

Reproduces the student of the paper's language-modelling tables: teacher 24 layers x 1024
(354.8 M parameters), student 4 x 768 (67.7 M), lambda 0.5, temperature 1. The paper's own
updates and learning rate are not known; these follow BERT's in NAS-BERT (KDD 2021), but for dropout,
of which there is none: a student this small learns none of the text by heart, and fast attention
has none.

    python -m lightpaff_jax.main --config=configs/gpt2_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny     2 minutes on a laptop

It starts from teachers/gpt2_medium, a Hugging Face folder with GPT-2's tokenizer, and
data/openwebtext, a folder of text. `tiny` reads the embedded text and first trains its teacher (`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    if preset:
        return _tiny(c, preset)
    shape = {'positions': 1024, 'vocab_size': 50257}
    c.teacher.update({'layers': 24, 'width': 1024, 'heads': 16, 'ffn': 4096, **shape})
    c.student.update({'layers': 4, 'width': 768, 'heads': 12, 'ffn': 3072, **shape})
    c.teacher.path = 'teachers/gpt2_medium'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/openwebtext', 0.001
    c.data.length, c.data.batch_size = 1024, 512
    c.eval.batch_size = 64
    c.optim.update({'peak_lr': 5e-4, 'schedule': 'linear', 'final_lr': 0.0, 'warmup': 10_000})
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
    c.teacher.path = 'runs/gpt2_stage1_tiny_teacher'
    return c
