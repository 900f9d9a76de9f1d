"""LightPAFF stage 1 for MASS: the student is pre-trained from scratch with the pre-trained teacher.

Reproduces the student of the paper's summarization and dialogue tables: teacher MASS "middle", 6 + 6
layers x 1024 (208.7 M parameters), and our choice of a student, 4 + 2 layers x 512 (37.2 M; a
shallow decoder decodes faster); lambda 0.5, temperature 1. Half of every sequence is one masked
fragment. The paper's own updates are not known. There is no dropout, as fast attention has none.

    python -m lightpaff_jax.main --config=configs/mass_stage1.py          on an accelerator
    python -m lightpaff_jax.main --config=configs/mass_stage1.py:tiny     on a laptop

It starts from teachers/mass_middle, a Hugging Face folder in BART's format with its tokenizer,
and data/wikipedia_bookcorpus, a folder of text. `tiny` reads the embedded text and first trains
its teacher (`tiny_teacher`).
"""

from lightpaff_jax import config

PRESETS = ('tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mass'
    c.student.family = c.teacher.family = 'mass'
    if preset:
        return _tiny(c, preset)
    shape = {'positions': 512, 'vocab_size': 30522}
    c.teacher.update({'layers': 6, 'decoder_layers': 6, 'width': 1024, 'heads': 16, 'ffn': 4096})
    c.teacher.update(shape)
    c.student.update({'layers': 4, 'decoder_layers': 2, 'width': 512, 'heads': 8, 'ffn': 2048})
    c.student.update(shape)
    c.teacher.path = 'teachers/mass_middle'
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/wikipedia_bookcorpus', 0.001
    c.data.length, c.data.batch_size = 512, 1024
    c.eval.batch_size = 256
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
        c.student.update({'layers': 2, 'decoder_layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        return c
    c.student.update({'layers': 2, 'decoder_layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.requires = (f'{__file__}:tiny_teacher',)
    c.teacher.path = 'runs/mass_stage1_tiny_teacher'
    return c
