"""GPT-2's table: teacher, two-stage student and controls on WikiText-2, PTB and WikiText-103.

    ./launch/reproduce_gpt2.sh paper WORKDIR data     at the paper's scale, on accelerators
    ./launch/reproduce_gpt2.sh small WORKDIR data     on 2 cores in 50 minutes
    ./launch/reproduce_gpt2.sh tiny  WORKDIR          on 2 cores in minutes, from the embedded text

`paper` starts from teachers/gpt2_medium, a Hugging Face folder, and data/openwebtext, a folder of
text; teacher 24 layers x 1024 (354.8 M parameters), student 4 x 768 (67.7 M). `small` pre-trains its
teacher, on the train texts of WikiText-2 and PTB and on the embedded text, and has documentation
where WikiText-103 is. The tasks and their data are in gpt2_stage2.py.
"""

import pathlib

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
    c.recipe.scale = preset or 'paper'
    stage2 = pathlib.Path(__file__).with_name('gpt2_stage2.py')
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
    c.teacher.path = 'teachers/gpt2_medium'
    c.student.update({'layers': 4, 'width': 768, 'heads': 12, 'ffn': 3072})
    c.student.update({'positions': 1024, 'vocab_size': 50257})
    c.data.source, c.data.path, c.data.held_out = 'text', 'data/openwebtext', 0.001
    c.data.columns = ('text',)
    c.data.length, c.eval.batch_size, c.eval.batches = 1024, 64, 40
    c.optim.update({'schedule': 'linear', 'final_lr': 0.0})
    c.recipe.student_pretrain.update({'updates': 125_000, 'warmup': 10_000, 'batch_size': 512})
    c.recipe.student_pretrain.update({'peak_lr': 5e-4, 'lambda_': 0.5})
    c.recipe.equal_flops = ('WikiText-2',)
    c.recipe.seeds = (0, 1, 2)
    c.train.update({'compute_dtype': 'bfloat16', 'remat': 'block'})
    c.train.update({'log_every': 100, 'eval_every': 5_000, 'save_every': 1_000})


def _small(c):
    c.teacher.update({'layers': 3, 'width': 192, 'heads': 4, 'ffn': 768})
    c.student.update({'layers': 2, 'width': 88, 'heads': 4, 'ffn': 352})
    c.data.source, c.data.length = 'mixture', 128
    c.data.mixture = (
        'text:data/wikitext-2?held_out=0.05=0.5',
        'text:data/ptb?held_out=0.05&documents=line=0.25',
        'pydocs=0.25',
    )
    c.data.decontaminate = (
        'text:data/wikitext-2?held_out=0.05#validation,test',
        'text:data/ptb?held_out=0.05&documents=line#validation,test',
        'pydocs?packages=jax,numpy#validation,test',
    )
    c.eval.batch_size, c.eval.batches = 32, 20
    p = {'warmup': 100, 'batch_size': 8}
    c.recipe.teacher_pretrain.update(p | {'updates': 3600, 'peak_lr': 2e-3})
    c.recipe.student_pretrain.update(p | {'updates': 2000, 'peak_lr': 4e-3})
    c.recipe.student_pretrain.update({'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('WikiText-2',)
    c.recipe.notes = (
        'Documentation, a set of the embedded text, stands where the paper has WikiText-103.',
        'A set without a test file is tested on its valid file and validated on 5 % of train.',
    )
    c.recipe.seeds = (0, 1)
    c.mesh.data = 1
    c.train.update({'log_every': 50, 'save_every': 1000})


def _tiny(c):
    c.teacher.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
    c.student.update({'layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.data.length = 64
    c.eval.batch_size, c.eval.batches = 32, 10
    p = {'updates': 300, 'warmup': 30, 'batch_size': 16}
    c.recipe.teacher_pretrain.update(p | {'peak_lr': 2e-3})
    c.recipe.student_pretrain.update(p | {'peak_lr': 3e-3, 'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.equal_flops = ('jax',)
    c.mesh.data = 1
    c.train.update({'log_every': 20, 'save_every': 500})
