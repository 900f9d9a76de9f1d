"""The table of BERT: teacher, two-stage student and baselines on SST-2, QQP and review polarity.

    ./launch/reproduce_bert.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_bert.sh small WORKDIR data     55 minutes on 2 cores
    ./launch/reproduce_bert.sh tiny  WORKDIR          minutes on 2 cores, on the built-in corpus

`paper` reads teachers/bert_base_uncased, a Hugging Face folder, and data/wikipedia_bookcorpus, a
folder of text; the teacher is BERT-base (109.5 M parameters), the student has 3 layers of width 512
(25.6 M). `small` pre-trains its teacher on the train splits of its tasks and of WikiText-2.
bert_stage2.py has the tasks and their data.
"""

from lightpaff_jax import config

PRESETS = ('small', 'tiny', 'ci')
TASKS = {
    '': ('sst2', 'qqp', 'polarity'),
    'small': ('sst2_small', 'qqp_small', 'polarity_small'),
    'tiny': ('topic_tiny', 'pairs_tiny', 'origin_tiny'),
    'ci': ('topic_tiny',),
}


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mlm'
    c.student.family = c.teacher.family = 'bert'
    {'': _paper, 'small': _small}.get(preset, _tiny)(c)
    return config.family_table(c, preset, __file__, TASKS[preset])


def _paper(c):
    c.teacher.path = 'teachers/bert_base_uncased'
    c.student.update(config.shape(3, 512, 8, positions=512, vocab_size=30522))
    c.data.source, c.data.path = 'text', 'data/wikipedia_bookcorpus'
    c.data.held_out, c.optim.b2 = 0.001, 0.999
    c.data.length, c.eval.batch_size, c.eval.batches = 512, 256, 40
    c.recipe.student_pretrain.update(config.paper_budget(2048))
    c.recipe.equal_flops = ('SST-2',)
    c.recipe.seeds = (0, 1, 2)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)


def _small(c):
    c.teacher.update(config.shape(3, 192, 4, vocab_size=4096, dropout=0.1))
    c.student.update(config.shape(2, 76, 4, vocab_size=4096))
    c.data.source, c.data.length, c.data.packing = 'mixture', 64, 'best_fit'
    sst2 = {'source': 'sst2', 'path': 'data/SST-2', 'held_out': 0.05}
    mr = {'source': 'mr', 'path': 'data/MR', 'held_out': 0.15}
    qqp = {'source': 'qqp', 'path': 'data/QQP', 'held_out': 0.05, 'on_error': 'skip'}
    wikitext = {'source': 'text', 'path': 'data/wikitext-2', 'held_out': 0.05}
    c.data.mixture = (
        config.part(**sst2, weight=0.25),
        config.part(**mr, weight=0.15),
        config.part(**qqp, weight=0.2),
        config.part(**wikitext, detokenize='none', weight=0.4),
    )
    c.data.decontaminate = tuple(
        config.part(**task, splits=('validation', 'test')) for task in (sst2, mr, qqp)
    )
    c.eval.batch_size, c.eval.batches = 64, 10
    c.data.mask_rate = 0.3
    budget = {'warmup': 200, 'batch_size': 16}
    c.recipe.teacher_pretrain.update(budget | {'updates': 6000, 'peak_lr': 1e-3})
    c.recipe.student_pretrain.update(budget | {'updates': 2000, 'peak_lr': 2e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('SST-2',)
    c.recipe.notes = (
        'Polarity is the sentences of MR, from which SST-2 was made. The train split of SST-2 holds '
        'no sentence of Polarity, and that of Polarity no sentence of the dev file of SST-2.',
        'The dev files of SST-2 and QQP are the test splits; 5 % of train is the validation split. '
        'Rows of SST-2 are phrases of shared sentences, so its validation split favours students '
        'that memorize.',
    )
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    config.tiny_table(c, equal_flops='topic', teacher_lr=1e-3, student_lr=4e-3)
