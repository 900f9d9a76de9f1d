"""The table of MASS: teacher, two-stage student and baselines on translation, summarization and dialogue.

    ./launch/reproduce_mass.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_mass.sh small WORKDIR data     an hour on 2 cores
    ./launch/reproduce_mass.sh tiny  WORKDIR          minutes on 2 cores, on the built-in corpus

`paper` reads teachers/mass_middle, a Hugging Face folder in BART's format (6 + 6 layers of width
1024, 208 M parameters), and data/wikipedia_bookcorpus, a folder of text; the student has 4 + 2
layers of width 512 (37 M). `small` pre-trains its teacher on both texts of the train splits of its
tasks. mass_stage2.py has the tasks and their data.
"""

from lightpaff_jax import config

PRESETS = ('small', 'tiny', 'ci')
TASKS = {
    '': ('translation', 'summarization', 'dialogue'),
    'small': ('translation_small', 'summarization_small', 'dialogue_small'),
    'tiny': ('jax_tiny', 'numpy_tiny', 'stdlib_tiny'),
    'ci': ('jax_tiny',),
}


def get_config(preset: str = ''):
    c = config.default()
    c.objective = 'mass'
    c.student.family = c.teacher.family = 'mass'
    {'': _paper, 'small': _small}.get(preset, _tiny)(c)
    return config.family_table(c, preset, __file__, TASKS[preset])


def _paper(c):
    c.teacher.path = 'teachers/mass_middle'
    c.student.update(config.shape(4, 512, 8, decoder_layers=2, positions=512, vocab_size=30522))
    c.data.source, c.data.path = 'text', 'data/wikipedia_bookcorpus'
    c.data.held_out = 0.001
    c.data.length, c.eval.batch_size, c.eval.batches = 512, 256, 40
    c.recipe.student_pretrain.update(config.paper_budget(1024))
    c.recipe.equal_flops = ('Summarization',)
    c.recipe.notes = (
        'Translation uses the vocabulary of the other tasks. The paper uses a joint vocabulary of '
        'both languages, so its BLEU cannot be compared with these figures.',
    )
    c.recipe.seeds = (0, 1, 2)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)


def _small(c):
    c.teacher.update(config.shape(2, 128, 4, decoder_layers=2, dropout=0.1))
    c.student.update(config.shape(1, 64, 4, decoder_layers=1))
    c.data.source, c.data.length, c.data.packing = 'mixture', 64, 'best_fit'
    cornell = {'source': 'table', 'path': 'data/cornell', 'columns': ('0', '1')}
    tasks = (
        {'source': 'parallel', 'path': 'data/multi30k', 'suffixes': ('en', 'de')},
        {'source': 'parallel', 'path': 'data/gigaword', 'suffixes': ('article', 'title')},
        {**cornell, 'quoting': 'none', 'held_out': 0.05},
    )
    c.data.mixture = tuple(
        config.part(**task, weight=weight)
        for task, weight in zip(tasks, (0.4, 0.35, 0.25), strict=True)
    )
    c.data.decontaminate = tuple(
        config.part(**task, splits=('validation', 'test')) for task in tasks
    )
    c.data.replace = ('UNK=<unk>',)
    c.eval.batch_size, c.eval.batches = 64, 10
    budget = {'warmup': 150, 'batch_size': 32}
    c.recipe.teacher_pretrain.update(budget | {'updates': 1200, 'peak_lr': 1e-3})
    c.recipe.student_pretrain.update(budget | {'updates': 700, 'peak_lr': 5e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('Multi30k En-De',)
    c.recipe.notes = ('Multi30k, English to German, takes the place of WMT16.',)
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    config.tiny_table(c, equal_flops='jax', teacher_lr=1e-3, student_lr=5e-3)
