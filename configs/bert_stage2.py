"""LightPAFF stage 2 for BERT: fine-tunes the student of stage 1 with the fine-tuned teacher.

Three tasks of the paper: `sst2` (the default), `qqp` and `polarity`. The recipe bert.py also reads
small presets (`sst2_small` and others) and tiny ones on the built-in corpus (`topic_tiny`,
`pairs_tiny`, `origin_tiny`). The teacher is BERT-base, the student has 3 layers of width 512; lambda
is 0.5, the temperature 1. The paper does not report its updates and learning rates.

    python -m lightpaff_jax.main --config=configs/bert_stage2.py:qqp      on an accelerator
    python -m lightpaff_jax.main --config=configs/bert_stage2.py:tiny     on a laptop
    python -m lightpaff_jax.recipe --config=configs/bert.py:small         all three tasks, with baselines

| task | data | score | the paper's student |
| SST-2 | data/SST-2: GLUE's train.tsv, dev.tsv | accuracy | 92.9 [S] |
| QQP | data/QQP: GLUE's train.tsv, dev.tsv | F1 and accuracy | - / 88.6 [S] |
| Polarity | data/yelp: Yelp's train.csv, test.csv; small: data/MR, its sentences | accuracy | not known |

Reads runs/bert_stage1 and teachers/bert_base_uncased_<task>, a Hugging Face folder of a fine-tuned
BertForSequenceClassification. GLUE's dev file is the test split, and 5 % of train the validation
split. The preset `tiny` classifies docstrings of the built-in corpus by their package; it runs
stage 1 and the fine-tuning of its teacher first.
"""

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
    task, _, scale = (preset or 'sst2').partition('_')
    if preset in ('tiny', 'tiny_teacher'):
        c.student.update({'classes': 12, 'init_new_head': True})
        c.data.view, c.data.length, c.optim.peak_lr = 'topic', 64, 1e-3
        return config.tiny_stage2(c, preset, __file__)
    c.student.classes = 2
    if scale == 'tiny':
        return _tiny(c, task)
    {'sst2': _sst2, 'qqp': _qqp, 'polarity': _polarity}[task](c, scale == 'small')
    return _small(c, task) if scale else _paper(c, task)


def _sst2(c, small):
    c.task, c.data.source, c.data.path, c.data.held_out = 'SST-2', 'sst2', 'data/SST-2', 0.05
    if small:  # SST-2 was made from sentences of MR, which is the dataset of Polarity there
        c.data.decontaminate = (config.part('mr', 'data/MR', held_out=0.15),)


def _qqp(c, small):
    c.task, c.data.source, c.data.path, c.data.held_out = 'QQP', 'qqp', 'data/QQP', 0.05
    c.data.on_error, c.eval.metric = 'skip', 'f1'


def _polarity(c, small):
    c.task = 'Polarity'
    if small:
        c.data.source, c.data.path, c.data.held_out = 'mr', 'data/MR', 0.15
        sst2 = {'source': 'sst2', 'path': 'data/SST-2', 'held_out': 0.05}
        c.data.decontaminate = (config.part(**sst2, splits=('test',)),)
        c.data.unlabelled = (config.part(**sst2, splits=('train',)),)
    else:
        c.data.source, c.data.path, c.data.held_out = 'table', 'data/yelp', 0.02
        c.data.columns, c.data.labels = ('1', '', '0'), ('1', '2')


def _paper(c, task):
    c.student.update(config.shape(3, 512, 8, dropout=0.1, positions=512, vocab_size=30522))
    c.student.init, c.student.init_new_head = 'runs/bert_stage1', True
    c.teacher.path = f'teachers/bert_base_uncased_{task}'
    c.data.length = 512 if task == 'polarity' else 128
    c.data.buckets = (128, 256, 512) if task == 'polarity' else (32, 64, 128)
    c.eval.batch_size, c.optim.b2 = 64, 0.999
    updates = {'sst2': 6_300, 'qqp': 34_000, 'polarity': 52_000}[task]  # 3 epochs
    budget = {'updates': updates, 'warmup': updates // 10, 'batch_size': 32}
    c.recipe.teacher_finetune.update(budget | {'peak_lr': 2e-5})
    c.recipe.teacher_finetune.sweep_peak_lr = (2e-5, 3e-5, 5e-5)
    c.recipe.student_finetune.update(budget | {'peak_lr': 5e-5})
    c.recipe.student_finetune.sweep_peak_lr = (5e-5, 1e-4, 2e-4)
    config.paper_scale(c, eval_every=1_000, save_every=500, remat='none')
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _small(c, task):
    c.data.length, c.data.buckets = 64, (32, 64) if task == 'qqp' else (16, 32, 64)
    c.eval.batch_size = 64
    c.student.vocab_size = 4096
    budget = {'warmup': 40, 'batch_size': 32, 'lambda_': 0.8, 'temperature': 2.0}
    # A teacher that has memorized its examples predicts their labels and adds nothing to them.
    updates, rates = (2500, (5e-4,)) if task == 'sst2' else (500, (2e-4, 5e-4))
    c.recipe.teacher_finetune.update(budget | {'updates': updates, 'sweep_peak_lr': rates})
    budget |= {'updates': 300, 'warmup': 30}
    c.recipe.student_finetune.update(budget | {'sweep_peak_lr': (2e-3, 4e-3)})
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, view):
    c.task, c.data.length = view, 64
    c.data.view = 'pairs' if view == 'pairs' else 'topic'
    c.data.packages = ('numpy', 'scipy', 'flax') if view == 'origin' else ()
    c.student.classes = 2 if view == 'pairs' else 12
    budget = {'updates': 200, 'warmup': 20, 'batch_size': 16}
    c.recipe.teacher_finetune.update(budget | {'peak_lr': 1e-3})
    c.recipe.student_finetune.update(budget | {'peak_lr': 4e-3})
    c.eval.batch_size, c.eval.batches = 32, 20
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)
