"""MASS's table: teacher, two-stage student and controls on translation, summarization, dialogue.

    ./launch/reproduce_mass.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_mass.sh small WORKDIR data     on 2 cores within an hour
    ./launch/reproduce_mass.sh tiny  WORKDIR          on 2 cores in minutes, from the embedded text

`paper` starts from teachers/mass_middle, a Hugging Face folder in BART's format (6 + 6 layers x 1024,
208 M parameters), and data/wikipedia_bookcorpus, a folder of text; student 4 + 2 layers x 512 (37 M).
`small` pre-trains its teacher, on the train texts of its tasks, both sides. The tasks and their data
are in mass_stage2.py.
"""

import pathlib

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
    c.recipe.scale = preset or 'paper'
    stage2 = pathlib.Path(__file__).with_name('mass_stage2.py')
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
    c.teacher.path = 'teachers/mass_middle'
    c.student.update({'layers': 4, 'decoder_layers': 2, 'width': 512, 'heads': 8, 'ffn': 2048})
    c.student.update({'positions': 512, 'vocab_size': 30522})
    c.data.source, c.data.path = 'text', 'data/wikipedia_bookcorpus'
    c.data.held_out = 0.001
    c.data.length, c.eval.batch_size, c.eval.batches = 512, 256, 40
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0})
    c.recipe.student_pretrain.update({'updates': 125_000, 'warmup': 10_000, 'batch_size': 1024})
    c.recipe.student_pretrain.update({'peak_lr': 5e-4, 'lambda_': 0.5})
    c.recipe.equal_flops = ('Summarization',)
    c.recipe.notes = (
        'Translation has the vocabulary of the other tasks. The paper has a joint one there, of both languages: '
        'its BLEU is not to be compared with these.',
    )
    c.recipe.seeds = (0, 1, 2)
    c.train.update({'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 5_000, 'save_every': 1_000})


def _small(c):
    c.teacher.update({'layers': 2, 'decoder_layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
    c.student.update({'layers': 1, 'decoder_layers': 1, 'width': 64, 'heads': 4, 'ffn': 256})
    c.teacher.dropout = 0.1
    c.data.source, c.data.length, c.data.packing = 'mixture', 64, 'best_fit'
    sets = (
        'parallel:data/multi30k?suffixes=en,de',
        'parallel:data/gigaword?suffixes=article,title',
        'table:data/cornell?columns=0,1&held_out=0.05',
    )
    c.data.mixture = tuple(f'{s}={w}' for s, w in zip(sets, (0.4, 0.35, 0.25), strict=True))
    c.data.decontaminate = tuple(f'{s}#validation,test' for s in sets)
    c.data.replace = ('UNK=<unk>',)
    c.eval.batch_size, c.eval.batches = 64, 10
    p = {'warmup': 150, 'batch_size': 32}
    c.recipe.teacher_pretrain.update(p | {'updates': 1200, 'peak_lr': 1e-3})
    c.recipe.student_pretrain.update(p | {'updates': 700, 'peak_lr': 5e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('Multi30k En-De',)
    c.recipe.notes = ('Multi30k, English to German, stands where the paper has WMT16.',)
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    c.teacher.update({'layers': 2, 'decoder_layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
    c.student.update({'layers': 1, 'decoder_layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.data.length = 64
    c.eval.batch_size, c.eval.batches = 32, 10
    p = {'updates': 300, 'warmup': 30, 'batch_size': 16}
    c.recipe.teacher_pretrain.update(p | {'peak_lr': 1e-3})
    c.recipe.student_pretrain.update(p | {'peak_lr': 5e-3})
    c.recipe.equal_flops = ('jax',)
    c.mesh.data = 1
    c.train.update({'log_every': 20, 'save_every': 500})
