"""LightPAFF stage 1 for GPT-2: pre-trains a student from scratch with the pre-trained teacher.

Makes the student of the paper's language-modelling tables: teacher with 24 layers of width 1024
(354.8 M parameters), student with 4 layers of width 768 (67.7 M), lambda 0.5, temperature 1. The
paper does not report its updates and learning rate; these are BERT's in NAS-BERT (KDD 2021). There
is no dropout: a student this small does not overfit the text, and the fast attention kernels have
no dropout.

    python -m lightpaff_jax.main --config=configs/gpt2_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/gpt2_stage1.py:tiny     2 minutes on a laptop

Reads teachers/gpt2_medium, a Hugging Face folder with GPT-2's tokenizer, and data/openwebtext, a
folder of text. The preset `tiny` reads the built-in corpus and trains its teacher first
(`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    if preset:
        return config.tiny_stage1(c, preset, __file__)
    vocabulary = {'positions': 1024, 'vocab_size': 50257}
    c.teacher.update(config.shape(24, 1024, 16, **vocabulary))
    c.student.update(config.shape(4, 768, 12, **vocabulary))
    c.teacher.path = 'teachers/gpt2_medium'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/openwebtext', 0.001
    c.data.length, c.eval.batch_size = 1024, 64
    config.use_phase(c, config.phase(**config.paper_budget(512)), with_teacher=True)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)
    return c
