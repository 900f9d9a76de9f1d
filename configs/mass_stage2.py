"""LightPAFF stage 2 for MASS: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Three tasks of the paper: `summarization` (the default), `translation`, `dialogue`. The recipe mass.py
also has them small (`translation_small` and so on), and tiny, the first line of a docstring from the
rest of it (`jax_tiny`, `numpy_tiny`, `stdlib_tiny`). Teacher 6 + 6 layers x 1024,
student 4 + 2 x 512, lambda 0.5, temperature 1. The paper's own students,
updates and learning rates are not known.

    python -m lightpaff_jax.main --config=configs/mass_stage2.py:dialogue  on an accelerator
    python -m lightpaff_jax.main --config=configs/mass_stage2.py:tiny      on a laptop
    python -m lightpaff_jax.recipe --config=configs/mass.py:small          all three with their controls

| task | data | score | MASS |
| Translation | data/wmt16: {train,dev,test}.{ro,en}; small: data/multi30k, en to de | BLEU | 39.1 [S] |
| Summarization | data/gigaword: train.article.txt, train.title.txt, ... | ROUGE-1/2/L | 38.73/19.71/35.96 [S] |
| Dialogue | data/cornell: pairs.train.tsv, said, a tab, the reply | perplexity | 23.52 [S] |

Translation has the students, the stage 1 and the vocabulary of the other two. The paper's has a
joint BPE of some 64,000 and embeddings that are not tied: with a vocabulary of lower-case English
no BLEU near 39.1 can be had. With a teacher of both languages set its `vocab_size`, here and in a
stage 1 on text of both.

It starts from runs/mass_stage1 and teachers/mass_<task>, a Hugging Face folder in BART's format
with its tokenizer. `tiny` first does the runs that it needs.
"""

import pathlib

from lightpaff_jax import config

TASKS = ('summarization', 'translation', 'dialogue')
SMALL = tuple(f'{task}_small' for task in TASKS)
TINY = ('jax_tiny', 'numpy_tiny', 'stdlib_tiny')
PRESETS = (*TASKS, *SMALL, *TINY, 'tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'seq2seq'
    c.student.family = c.teacher.family = 'mass'
    task, _, scale = (preset or 'summarization').partition('_')
    if preset in ('tiny', 'tiny_teacher'):
        return _alone(c, preset)
    if scale == 'tiny':
        return _tiny(c, task)
    small = scale == 'small'
    {'summarization': _summarization, 'translation': _translation, 'dialogue': _dialogue}[task](
        c, small
    )
    return _small(c, task) if small else _paper(c, task)


def _summarization(c, small):
    c.task, c.eval.metric = 'Summarization', 'rougeL'
    c.data.source, c.data.path, c.data.suffixes = 'parallel', 'data/gigaword', ('article', 'title')
    c.data.replace = ('UNK=<unk>',)  # as train writes it
    c.data.length, c.data.target_length = (48, 24) if small else (128, 48)
    c.generate.update({'beams': 5, 'max_length': c.data.target_length})


def _translation(c, small):
    c.task = 'Multi30k En-De' if small else 'Translation'
    c.eval.metric, c.data.source = 'bleu', 'parallel'
    c.data.path = 'data/multi30k' if small else 'data/wmt16'
    c.data.suffixes = ('en', 'de') if small else ('ro', 'en')
    c.data.length, c.data.target_length = (40, 40) if small else (256, 256)
    c.generate.update({'beams': 5, 'max_length': c.data.target_length})


def _dialogue(c, small):
    c.task, c.data.source, c.data.path = 'Dialogue', 'table', 'data/cornell'
    c.data.columns, c.data.held_out = ('0', '1'), 0.05
    c.data.length, c.data.target_length = (40, 40) if small else (128, 128)


def _paper(c, task):
    c.student.update({'layers': 4, 'decoder_layers': 2, 'width': 512, 'heads': 8, 'ffn': 2048})
    c.student.update({'positions': 512, 'vocab_size': 30522, 'dropout': 0.1})
    c.student.init, c.teacher.path = 'runs/mass_stage1', f'teachers/mass_{task}'
    c.data.buckets = (48, 64, 128) if c.data.length == 128 else (64, 128, 256)
    c.eval.batch_size = 256
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0})
    updates = {'summarization': 40_000, 'translation': 50_000, 'dialogue': 4_000}[task]
    p = {'updates': updates, 'warmup': updates // 40, 'batch_size': 256}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 1e-4, 'sweep_peak_lr': (3e-5, 1e-4)})
    c.recipe.student_finetune.update(p | {'peak_lr': 1e-4, 'sweep_peak_lr': (1e-4, 3e-4)})
    config.take(c, c.recipe.student_finetune, with_teacher=True)
    c.train.update({'compute_dtype': 'bfloat16', 'log_every': 100, 'eval_every': 2_000})
    c.train.save_every = 1_000
    return c


def _small(c, task):
    c.student.decoder_layers = 1
    c.data.buckets = (32, 48) if task == 'summarization' else (24, 40)
    c.eval.batch_size = 64
    p = {'warmup': 60, 'batch_size': 32, 'lambda_': 0.8, 'temperature': 2.0}
    budgets = {'translation': (1500, 600), 'summarization': (700, 700), 'dialogue': (700, 350)}
    teacher, student = budgets[task]
    c.recipe.teacher_finetune.update(p | {'updates': teacher, 'peak_lr': 1e-3})
    c.recipe.student_finetune.update(p | {'updates': student, 'sweep_peak_lr': (4e-3, 8e-3)})
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, package):
    c.task, c.data.view, c.data.packages = package, 'summary', (package,)
    c.eval.metric = 'bleu' if package == 'jax' else 'rougeL' if package == 'numpy' else ''
    c.student.decoder_layers = 1
    c.data.length, c.data.target_length = 64, 24
    p = {'updates': 200, 'warmup': 20, 'batch_size': 16}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 2e-3})
    c.recipe.student_finetune.update(p | {'peak_lr': 8e-3})
    c.eval.batch_size, c.eval.batches = 32, 10
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _alone(c, preset):
    stage1 = pathlib.Path(__file__).with_name('mass_stage1.py')
    c.data.view = 'summary'
    c.data.length, c.data.target_length = 64, 24
    c.optim.peak_lr = 1e-3
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update({'layers': 2, 'decoder_layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/mass_stage1_tiny_teacher'
        c.requires = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'decoder_layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/mass_stage1_tiny'
    c.teacher.path = 'runs/mass_stage2_tiny_teacher'
    c.requires = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
