"""LightPAFF stage 1 for BERT: pre-trains a student from scratch with the pre-trained teacher.

Makes the student of the paper's understanding tables: teacher BERT-base (109.5 M parameters with
its masked-LM head), student with 3 layers of width 512 (25.6 M), lambda 0.5, temperature 1. The
paper does not report its budget: updates, batch and learning rate are those of NAS-BERT (KDD 2021).
There is no dropout: a student this small does not overfit the text, and the fast attention kernels
have no dropout.

    python -m lightpaff_jax.main --config=configs/bert_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/bert_stage1.py:tiny     on a laptop

Reads teachers/bert_base_uncased, a Hugging Face folder with vocab.txt or tokenizer.json, and
data/wikipedia_bookcorpus, a folder of text. The preset `tiny` reads the built-in corpus and trains
its teacher first (`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mlm'
    c.student.family = c.teacher.family = 'bert'
    if preset:
        return config.tiny_stage1(c, preset, __file__)
    vocabulary = {'positions': 512, 'vocab_size': 30522}
    c.teacher.update(config.shape(12, 768, 12, **vocabulary))
    c.student.update(config.shape(3, 512, 8, **vocabulary))
    c.teacher.path = 'teachers/bert_base_uncased'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/wikipedia_bookcorpus', 0.001
    c.data.length, c.eval.batch_size, c.optim.b2 = 512, 256, 0.999
    config.use_phase(c, config.phase(**config.paper_budget(2048)), with_teacher=True)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)
    return c
