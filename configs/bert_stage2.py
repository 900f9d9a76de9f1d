"""LightPAFF stage 2 for BERT: the student of stage 1 is fine-tuned with the fine-tuned teacher.

Three tasks of the paper: `sst2` (the default), `qqp`, `polarity`. The recipe bert.py also has them
small (`sst2_small` and so on), and tiny, from the embedded text (`topic_tiny`, `pairs_tiny`,
`origin_tiny`). Teacher BERT-base, student 3 layers x 512, lambda 0.5, temperature 1. The paper's
own updates and learning rates are not known.

    python -m lightpaff_jax.main --config=configs/bert_stage2.py:qqp      on an accelerator
    python -m lightpaff_jax.main --config=configs/bert_stage2.py:tiny     on a laptop
    python -m lightpaff_jax.recipe --config=configs/bert.py:small         all three with their controls

| task | data | score | the paper's student |
| SST-2 | data/SST-2: GLUE's train.tsv, dev.tsv | accuracy | 92.9 [S] |
| QQP | data/QQP: GLUE's train.tsv, dev.tsv | F1 and accuracy | - / 88.6 [S] |
| Polarity | data/yelp: Yelp's train.csv, test.csv; small: data/MR, its sentences | accuracy | not known |

It starts from runs/bert_stage1 and teachers/bert_base_uncased_<task>, a Hugging Face folder of a
fine-tuned BertForSequenceClassification. GLUE's dev is the test, and 5 % of train the validation.
`tiny` tells from which package a docstring of the embedded text is, and first does the runs that
it needs.
"""

import pathlib

from lightpaff_jax import config

TASKS = ('sst2', 'qqp', 'polarity')
SMALL = tuple(f'{task}_small' for task in TASKS)
TINY = ('topic_tiny', 'pairs_tiny', 'origin_tiny')
PRESETS = (*TASKS, *SMALL, *TINY, 'tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'classify'
    c.student.family = c.teacher.family = 'bert'
    c.student.head = c.teacher.head = 'classify'
    c.student.classes = 2
    task, _, scale = (preset or 'sst2').partition('_')
    if preset in ('tiny', 'tiny_teacher'):
        return _alone(c, preset)
    if scale == 'tiny':
        return _tiny(c, task)
    {'sst2': _sst2, 'qqp': _qqp, 'polarity': _polarity}[task](c, scale == 'small')
    return _small(c, task) if scale else _paper(c, task)


def _sst2(c, small):
    c.task, c.data.source, c.data.path, c.data.held_out = 'SST-2', 'sst2', 'data/SST-2', 0.05
    if small:  # its sentences are sentences of MR
        c.data.decontaminate = ('mr:data/MR?held_out=0.15',)


def _qqp(c, small):
    c.task, c.data.source, c.data.path, c.data.held_out = 'QQP', 'qqp', 'data/QQP', 0.05
    c.data.on_error, c.eval.metric = 'skip', 'f1'


def _polarity(c, small):
    c.task = 'Polarity'
    if small:
        c.data.source, c.data.path, c.data.held_out = 'mr', 'data/MR', 0.15
        c.data.decontaminate = ('sst2:data/SST-2?held_out=0.05#test',)
        c.data.unlabelled = ('sst2:data/SST-2?held_out=0.05#train',)
    else:
        c.data.source, c.data.path, c.data.held_out = 'table', 'data/yelp', 0.02
        c.data.columns, c.data.labels = ('1', '', '0'), ('1', '2')


def _paper(c, task):
    c.student.update({'layers': 3, 'width': 512, 'heads': 8, 'ffn': 2048, 'dropout': 0.1})
    c.student.update({'positions': 512, 'vocab_size': 30522})
    c.student.init, c.student.init_new_head = 'runs/bert_stage1', True
    c.teacher.path = f'teachers/bert_base_uncased_{task}'
    c.data.length, c.data.buckets = (
        (512, (128, 256, 512)) if task == 'polarity' else (128, (32, 64, 128))
    )
    c.eval.batch_size = 64
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0, 'b2': 0.999})
    updates = {'sst2': 6_300, 'qqp': 34_000, 'polarity': 52_000}[task]  # 3 epochs
    p = {'updates': updates, 'warmup': updates // 10, 'batch_size': 32}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 2e-5, 'sweep_peak_lr': (2e-5, 3e-5, 5e-5)})
    c.recipe.student_finetune.update(p | {'peak_lr': 5e-5, 'sweep_peak_lr': (5e-5, 1e-4, 2e-4)})
    config.take(c, c.recipe.student_finetune, with_teacher=True)
    c.train.update({'compute_dtype': 'bfloat16', 'log_every': 100, 'eval_every': 1_000})
    c.train.save_every = 500
    return c


def _small(c, task):
    c.data.length, c.data.buckets = 64, (32, 64) if task == 'qqp' else (16, 32, 64)
    c.eval.batch_size = 64
    c.student.vocab_size = 4096
    p = {'warmup': 40, 'batch_size': 32, 'lambda_': 0.8, 'temperature': 2.0}
    # A teacher that has learnt its examples by heart says of them what their labels say.
    updates, rates = (2500, (5e-4,)) if task == 'sst2' else (500, (2e-4, 5e-4))
    c.recipe.teacher_finetune.update(p | {'updates': updates, 'sweep_peak_lr': rates})
    p |= {'updates': 300, 'warmup': 30}
    c.recipe.student_finetune.update(p | {'sweep_peak_lr': (2e-3, 4e-3)})
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, form):
    c.task, c.data.length = form, 64
    c.data.view = 'pairs' if form == 'pairs' else 'topic'
    c.data.packages = ('numpy', 'scipy', 'flax') if form == 'origin' else ()
    c.student.classes = 2 if form == 'pairs' else 12
    p = {'updates': 200, 'warmup': 20, 'batch_size': 16}
    c.recipe.teacher_finetune.update(p | {'peak_lr': 1e-3})
    c.recipe.student_finetune.update(p | {'peak_lr': 4e-3})
    c.eval.batch_size, c.eval.batches = 32, 20
    return config.take(c, c.recipe.student_finetune, with_teacher=True)


def _alone(c, preset):
    stage1 = pathlib.Path(__file__).with_name('bert_stage1.py')
    c.student.update({'classes': 12, 'init_new_head': True})
    c.data.view = 'topic'
    c.data.length = 64
    c.optim.peak_lr = 1e-3
    c.train.update({'updates': 100, 'save_every': 50, 'log_every': 10})
    c.eval.batches = 20
    if preset == 'tiny_teacher':
        c.student.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
        c.student.init = 'runs/bert_stage1_tiny_teacher'
        c.requires = (f'{stage1}:tiny_teacher',)
        return c
    c.student.update({'layers': 2, 'width': 48, 'heads': 2, 'ffn': 192})
    c.student.init = 'runs/bert_stage1_tiny'
    c.teacher.path = 'runs/bert_stage2_tiny_teacher'
    c.requires = (f'{stage1}:tiny', f'{__file__}:tiny_teacher')
    return c
