"""LightPAFF stage 2 for MASS: fine-tunes the student of stage 1 with the fine-tuned teacher.

Three tasks of the paper: `summarization` (the default), `translation` and `dialogue`. The recipe
mass.py also reads small presets (`summarization_small` and others) and tiny ones on the built-in
corpus (`jax_tiny`, `numpy_tiny`, `stdlib_tiny`). The teacher is MASS "middle" with 6 + 6 layers of
width 1024, the student has 4 + 2 layers of width 512; lambda is 0.5, the temperature 1. The paper
does not report its students' shapes, updates and learning rates.

    python -m lightpaff_jax.main --config=configs/mass_stage2.py:dialogue  on an accelerator
    python -m lightpaff_jax.main --config=configs/mass_stage2.py:tiny      on a laptop
    python -m lightpaff_jax.recipe --config=configs/mass.py:small          all three tasks, with baselines

| task | data | score | MASS |
| Translation | data/wmt16: {train,dev,test}.{ro,en}; small: data/multi30k, en to de | BLEU | 39.1 [S] |
| Summarization | data/gigaword: train.article.txt, train.title.txt, ... | ROUGE-1/2/L | 38.73/19.71/35.96 [S] |
| Dialogue | data/cornell: pairs.train.tsv, a line, a tab, the reply | perplexity | 23.52 [S] |

Translation shares the students, the stage 1 and the vocabulary of the other two tasks. The paper
uses a joint BPE vocabulary of about 64,000 and untied embeddings there; a lower-case English
vocabulary cannot reach a BLEU near 39.1. For a teacher of both languages set its `vocab_size` here
and in a stage 1 on text of both languages.

Reads runs/mass_stage1 and teachers/mass_<task>, a Hugging Face folder in BART's format with its
tokenizer. The preset `tiny` reads the built-in corpus; it runs stage 1 and the fine-tuning of its
teacher first.
"""

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
        c.data.view, c.data.length, c.data.target_length = 'summary', 64, 24
        c.optim.peak_lr = 1e-3
        return config.tiny_stage2(c, preset, __file__)
    if scale == 'tiny':
        return _tiny(c, task)
    set_task = {'summarization': _summarization, 'translation': _translation, 'dialogue': _dialogue}
    set_task[task](c, scale == 'small')
    return _small(c, task) if scale else _paper(c, task)


def _summarization(c, small):
    c.task, c.eval.metric = 'Summarization', 'rougeL'
    c.data.source, c.data.path, c.data.suffixes = 'parallel', 'data/gigaword', ('article', 'title')
    c.data.replace = ('UNK=<unk>',)  # the test file spells unknown words differently than train
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
    c.data.columns, c.data.quoting, c.data.held_out = ('0', '1'), 'none', 0.05
    c.data.length, c.data.target_length = (40, 40) if small else (128, 128)


def _paper(c, task):
    c.student.update(config.shape(4, 512, 8, decoder_layers=2, dropout=0.1))
    c.student.update({'positions': 512, 'vocab_size': 30522})
    c.student.init, c.teacher.path = 'runs/mass_stage1', f'teachers/mass_{task}'
    c.data.buckets = (48, 64, 128) if c.data.length == 128 else (64, 128, 256)
    c.eval.batch_size = 256
    updates = {'summarization': 40_000, 'translation': 50_000, 'dialogue': 4_000}[task]
    budget = {'updates': updates, 'warmup': updates // 40, 'batch_size': 256, 'peak_lr': 1e-4}
    c.recipe.teacher_finetune.update(budget | {'sweep_peak_lr': (3e-5, 1e-4)})
    c.recipe.student_finetune.update(budget | {'sweep_peak_lr': (1e-4, 3e-4)})
    config.paper_scale(c, eval_every=2_000, save_every=1_000, remat='none')
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _small(c, task):
    c.student.decoder_layers = 1
    c.data.buckets = (32, 48) if task == 'summarization' else (24, 40)
    c.eval.batch_size = 64
    budget = {'warmup': 60, 'batch_size': 32, 'lambda_': 0.8, 'temperature': 2.0}
    updates = {'translation': (1500, 600), 'summarization': (700, 700), 'dialogue': (700, 350)}
    teacher, student = updates[task]
    c.recipe.teacher_finetune.update(budget | {'updates': teacher, 'peak_lr': 1e-3})
    c.recipe.student_finetune.update(budget | {'updates': student, 'sweep_peak_lr': (4e-3, 8e-3)})
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, package):
    c.task, c.data.view, c.data.packages = package, 'summary', (package,)
    c.eval.metric = {'jax': 'bleu', 'numpy': 'rougeL'}.get(package, '')
    c.student.decoder_layers = 1
    c.data.length, c.data.target_length = 64, 24
    budget = {'updates': 200, 'warmup': 20, 'batch_size': 16}
    c.recipe.teacher_finetune.update(budget | {'peak_lr': 2e-3})
    c.recipe.student_finetune.update(budget | {'peak_lr': 8e-3})
    c.eval.batch_size, c.eval.batches = 32, 10
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)
