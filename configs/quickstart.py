"""A GPT-2 student from nothing but this machine: teacher, stage 1, stage 2, controls, table.

    ./launch/quickstart.sh           one seed, within 10 minutes on 2 cores
    ./launch/quickstart.sh full      three seeds, within an hour on 2 cores

Text: pydocs, the documentation inside the packages that this project installs. Pre-training
reads all of them but jax, fine-tuning jax alone.
"""

from lightpaff_jax import config

VARIANTS = ('full', 'ci')

TASK = ('jax',)
GENERAL = (
    'stdlib', 'numpy', 'scipy', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'grain',
    'ml_collections', 'chex', 'etils',
)  # fmt: skip


def get_config(variant: str = ''):
    c = config.default()
    c.teacher.update({'layers': 3, 'width': 192, 'heads': 4, 'ffn': 768})
    c.student.update({'layers': 2, 'width': 64, 'heads': 2, 'ffn': 256})
    c.mesh.data = 1  # networks of this size gain nothing from more devices
    c.eval.batch_size, c.eval.batches = 32, 40  # the task's splits are read whole
    c.train.log_every = 20
    c.train.save_every = 500
    r = c.recipe
    warmup = 20 if variant == 'full' else 5  # its share of the updates; 40 are too few at this rate
    budget = {
        '': {'teacher': (800, 300), 'student': (700, 300)},
        'full': {'teacher': (4000, 1000), 'student': (1500, 600)},
        'ci': {'teacher': (20, 10), 'student': (20, 10)},
    }[variant]
    for name in ('teacher', 'student'):
        for phase, updates in zip(('pretrain', 'finetune'), budget[name], strict=True):
            p = r[f'{name}_{phase}']
            p.updates, p.warmup, p.batch_size = updates, updates // warmup, 4
            p.packages = GENERAL if phase == 'pretrain' else TASK
    r.teacher_pretrain.peak_lr = 2e-3
    r.student_pretrain.update({'peak_lr': 3e-3, 'lambda_': 1.0, 'temperature': 2.0})
    r.student_finetune.update({'peak_lr': 1e-3, 'lambda_': 0.5, 'temperature': 1.0})
    if variant == 'full':
        r.seeds = (0, 1, 2)
    if variant == 'ci':
        c.eval.batches = 2
    return c
