"""The table of GPT-2: teacher, two-stage student and baselines on WikiText-2, PTB and WikiText-103.

    ./launch/reproduce_gpt2.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_gpt2.sh small WORKDIR data     50 minutes on 2 cores
    ./launch/reproduce_gpt2.sh tiny  WORKDIR          minutes on 2 cores, on the built-in corpus

`paper` reads teachers/gpt2_medium, a Hugging Face folder, and data/openwebtext, a folder of text;
the teacher has 24 layers of width 1024 (354.8 M parameters), the student 4 of width 768 (67.7 M).
`small` pre-trains its teacher on the train splits of WikiText-2 and PTB and on the built-in corpus,
and has a dataset of documentation in place of WikiText-103. gpt2_stage2.py has the tasks and their
data.
"""

from lightpaff_jax import config

PRESETS = ('small', 'tiny', 'ci')
TASKS = {
    '': ('wikitext2', 'ptb', 'wikitext103'),
    'small': ('wikitext2_small', 'ptb_small', 'documentation_small'),
    'tiny': ('jax_tiny', 'numpy_tiny', 'scipy_tiny'),
    'ci': ('jax_tiny',),
}


def get_config(preset: str = ''):
    c = config.default()
    {'': _paper, 'small': _small}.get(preset, _tiny)(c)
    return config.family_table(c, preset, __file__, TASKS[preset])


def _paper(c):
    c.teacher.path = 'teachers/gpt2_medium'
    c.student.update(config.shape(4, 768, 12, positions=1024, vocab_size=50257))
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/openwebtext', 0.001
    c.data.columns = ('text',)
    c.data.length, c.eval.batch_size, c.eval.batches = 1024, 64, 40
    c.recipe.student_pretrain.update(config.paper_budget(512))
    c.recipe.equal_flops = ('WikiText-2',)
    c.recipe.seeds = (0, 1, 2)
    config.paper_scale(c, eval_every=5_000, save_every=1_000)


def _small(c):
    c.teacher.update(config.shape(3, 192, 4))
    c.student.update(config.shape(2, 88, 4))
    c.data.source, c.data.length = 'mixture', 128
    wikitext = {'source': 'text', 'path': 'data/wikitext-2', 'held_out': 0.05}
    ptb = {'source': 'text', 'path': 'data/ptb', 'held_out': 0.05, 'documents': 'line'}
    c.data.mixture = (
        config.part(**wikitext, weight=0.5),
        config.part(**ptb, weight=0.25),
        config.part('pydocs', weight=0.25),
    )
    evaluated = ('validation', 'test')
    c.data.decontaminate = (
        config.part(**wikitext, splits=evaluated),
        config.part(**ptb, splits=evaluated),
        config.part('pydocs', packages=('jax', 'numpy'), splits=evaluated),
    )
    c.eval.batch_size, c.eval.batches = 32, 20
    budget = {'warmup': 100, 'batch_size': 8}
    c.recipe.teacher_pretrain.update(budget | {'updates': 3600, 'peak_lr': 2e-3})
    c.recipe.student_pretrain.update(budget | {'updates': 2000, 'peak_lr': 4e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('WikiText-2',)
    c.recipe.notes = (
        'Documentation, a dataset from the built-in corpus, takes the place of WikiText-103.',
        'A dataset without a test file is tested on its valid file and validated on 5 % of train.',
    )
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    config.tiny_table(c, equal_flops='jax', teacher_lr=2e-3, student_lr=3e-3)
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
