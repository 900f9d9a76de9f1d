"""BERT's table: teacher, two-stage student and controls on SST-2, QQP and polarity of reviews.

    ./launch/reproduce_bert.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_bert.sh small WORKDIR data     on 2 cores in 55 minutes
    ./launch/reproduce_bert.sh tiny  WORKDIR          on 2 cores in minutes, from the embedded text

`paper` starts from teachers/bert_base_uncased, a Hugging Face folder, and data/wikipedia_bookcorpus,
a folder of text; teacher BERT-base (109.5 M parameters), student 3 layers x 512 (25.6 M). `small`
pre-trains its teacher, on the train texts of its tasks and of WikiText-2.
The tasks and their data are in bert_stage2.py.
"""

import pathlib

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
    c.recipe.scale = preset or 'paper'
    stage2 = pathlib.Path(__file__).with_name('bert_stage2.py')
    c.recipe.tasks = tuple(f'{stage2}:{name}' for name in TASKS[preset])
    for name in ('teacher_finetune', 'student_finetune'):
        c.recipe[name].updates = 0  # the task's own
    {'': _paper, 'small': _small}.get(preset, _tiny)(c)
    if preset == 'ci':
        for name in config.PHASES:
            c.recipe[name].update({'updates': 10, 'warmup': 2, 'batch_size': 16})
        c.recipe.student_finetune.sweep_peak_lr = (5e-4, 1e-3)
        c.eval.batches = 2
    return c


def _paper(c):
    c.teacher.path = 'teachers/bert_base_uncased'
    c.student.update({'layers': 3, 'width': 512, 'heads': 8, 'ffn': 2048})
    c.student.update({'positions': 512, 'vocab_size': 30522})
    c.data.source, c.data.path = 'text', 'data/wikipedia_bookcorpus'
    c.data.held_out = 0.001
    c.data.length, c.eval.batch_size, c.eval.batches = 512, 256, 40
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0, 'b2': 0.999})
    c.recipe.student_pretrain.update({'updates': 125_000, 'warmup': 10_000, 'batch_size': 2048})
    c.recipe.student_pretrain.update({'peak_lr': 5e-4, 'lambda_': 0.5})
    c.recipe.equal_flops = ('SST-2',)
    c.recipe.seeds = (0, 1, 2)
    c.train.update({'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 5_000, 'save_every': 1_000})


def _small(c):
    shape = {'heads': 4, 'vocab_size': 4096}
    c.teacher.update({'layers': 3, 'width': 192, 'ffn': 768, **shape})
    c.student.update({'layers': 2, 'width': 76, 'ffn': 304, **shape})
    c.teacher.dropout = 0.1
    c.data.source, c.data.length, c.data.packing = 'mixture', 64, 'best_fit'
    c.data.mixture = (
        'sst2:data/SST-2?held_out=0.05=0.25', 'mr:data/MR?held_out=0.15=0.15',
        'qqp:data/QQP?held_out=0.05&on_error=skip=0.2',
        'text:data/wikitext-2?held_out=0.05&detokenize=none=0.4',
    )  # fmt: skip
    c.data.decontaminate = (
        'sst2:data/SST-2?held_out=0.05#validation,test', 'mr:data/MR?held_out=0.15#validation,test',
        'qqp:data/QQP?held_out=0.05&on_error=skip#validation,test',
    )  # fmt: skip
    c.eval.batch_size, c.eval.batches = 64, 10
    c.data.mask_rate = 0.3
    p = {'warmup': 200, 'batch_size': 16}
    c.recipe.teacher_pretrain.update(p | {'updates': 6000, 'peak_lr': 1e-3})
    c.recipe.student_pretrain.update(p | {'updates': 2000, 'peak_lr': 2e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('SST-2',)
    c.recipe.notes = (
        'Polarity: the sentences of MR, of which SST-2 is made. What SST-2 learns from has none of them, '
        'and Polarity learns from none of the dev file of SST-2.',
        'The dev files of SST-2 and QQP are the tests; 5 % of train is for validation. Rows of SST-2 are '
        'phrases of the same sentences, so its validation favours what has learnt them by heart.',
    )
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    c.teacher.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
    c.student.update({'layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.data.length = 64
    c.eval.batch_size, c.eval.batches = 32, 10
    c.recipe.teacher_pretrain.update(
        {'updates': 300, 'warmup': 30, 'batch_size': 16, 'peak_lr': 1e-3}
    )
    c.recipe.student_pretrain.update(
        {'updates': 300, 'warmup': 30, 'batch_size': 16, 'peak_lr': 4e-3}
    )
    c.recipe.equal_flops = ('topic',)
    c.mesh.data = 1
    c.train.update({'log_every': 20, 'save_every': 500})
