"""LightPAFF stage 1 for MASS: pre-trains a student from scratch with the pre-trained teacher.

Makes the student of the summarization and dialogue tables: teacher MASS "middle" with 6 + 6 layers
of width 1024 (208.7 M parameters), student with 4 + 2 layers of width 512 (37.2 M), lambda 0.5,
temperature 1. The paper does not report the student's shape or its updates; this shape has a
shallow decoder because that decodes faster. The objective masks one span of half of every sequence.
There is no dropout, because the fast attention kernels have none.

    python -m lightpaff_jax.main --config=configs/mass_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/mass_stage1.py:tiny     on a laptop

Reads teachers/mass_middle, a Hugging Face folder in BART's format with its tokenizer, and
data/wikipedia_bookcorpus, a folder of text. The preset `tiny` reads the built-in corpus and trains
its teacher first (`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mass'
    c.student.family = c.teacher.family = 'mass'
    if preset:
        return config.tiny_stage1(c, preset, __file__)
    vocabulary = {'positions': 512, 'vocab_size': 30522}
    c.teacher.update(config.shape(6, 1024, 16, decoder_layers=6, **vocabulary))
    c.student.update(config.shape(4, 512, 8, decoder_layers=2, **vocabulary))
    c.teacher.path = 'teachers/mass_middle'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/wikipedia_bookcorpus', 0.001
    c.data.length, c.eval.batch_size = 512, 256
    config.use_phase(c, config.phase(**config.paper_budget(1024)), with_teacher=True)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)
    return c
