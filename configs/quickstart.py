"""A student from nothing but this machine: teacher, stage 1, stage 2, controls, table.

    ./launch/quickstart.sh           GPT-2; one seed, within 10 minutes on 2 cores
    ./launch/quickstart.sh bert      BERT: which package is a text from, do two texts belong together
    ./launch/quickstart.sh mass      MASS: the first line of a docstring from the rest of it
    ./launch/quickstart.sh full      GPT-2; three seeds, within an hour on 2 cores

Text: pydocs, the documentation inside the packages that this project installs. GPT-2 is pre-trained
on all of them but jax and fine-tuned on jax; the others read all packages.
"""

from lightpaff_jax import config

PRESETS = ('gpt2', 'bert', 'mass', 'full', 'ci', 'bert_ci', 'mass_ci')
TASKS = {'gpt2': ('text',), 'bert': ('topic', 'pairs'), 'mass': ('summary',)}
PRESETS += tuple(task for tasks in TASKS.values() for task in tasks)

TASK = ('jax',)
GENERAL = (
    'stdlib', 'numpy', 'scipy', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'grain',
    'ml_collections', 'chex', 'etils',
)  # fmt: skip


def get_config(preset: str = ''):
    c = config.default()
    c.mesh.data = 1  # networks of this size gain nothing from more devices
    c.eval.batch_size, c.eval.batches = 32, 40  # the task's splits are read whole
    families = {task: family for family, tasks in TASKS.items() for task in tasks}
    if preset in families:
        return _task(c, preset, families[preset])
    c.teacher.update({'layers': 3, 'width': 192, 'heads': 4, 'ffn': 768})
    c.student.update({'layers': 2, 'width': 64, 'heads': 2, 'ffn': 256})
    c.train.log_every = 20
    c.train.save_every = 500
    c.recipe.teacher_pretrain.peak_lr = 2e-3
    c.recipe.student_pretrain.update({'peak_lr': 3e-3, 'lambda_': 1.0, 'temperature': 2.0})
    c.recipe.student_finetune.update({'peak_lr': 1e-3, 'lambda_': 0.5, 'temperature': 1.0})
    family, _, small = preset.partition('_')
    family = family if family in TASKS else 'gpt2'
    c.recipe.tasks = tuple(f'{__file__}:{task}' for task in TASKS[family])
    {'bert': _bert, 'mass': _mass, 'gpt2': _gpt2}[family](c, preset)
    if preset == 'ci' or small == 'ci':
        c.eval.batches = 2
        _phases(c, (20, 10), (20, 10))
    return c


def _task(c, form, family):
    """What is fine-tuned for: a form of the embedded text."""
    c.task = c.data.view = form
    c.student.family = c.teacher.family = family
    if family == 'gpt2':
        c.data.packages = TASK
    if family == 'bert':
        c.objective, c.data.length = 'classify', 64
        c.student.update({'head': 'classify', 'classes': 12 if form == 'topic' else 2})
    if family == 'mass':
        c.objective, c.student.decoder_layers = 'seq2seq', 1
        c.data.length, c.data.target_length = 96, 24
    return c


def _gpt2(c, preset):
    if preset == 'full':
        c.recipe.seeds = (0, 1, 2)
        _phases(c, (4000, 1000), (1500, 600), warmup=20)
    else:
        _phases(c, (800, 300), (700, 300))
    c.data.packages = GENERAL


def _bert(c, preset):
    c.objective = 'mlm'
    _post_norm(c, 'bert')
    c.teacher.update({'layers': 2, 'width': 128, 'heads': 4, 'ffn': 512})
    c.student.update({'layers': 1, 'width': 48, 'heads': 2, 'ffn': 192})
    c.data.length = 64
    _phases(c, (1000, 700), (1000, 600), batch_size=16)


def _mass(c, preset):
    c.objective = 'mass'
    _post_norm(c, 'mass')
    c.teacher.decoder_layers, c.student.decoder_layers = 3, 1
    c.data.length = 96
    _phases(c, (400, 300), (400, 300), batch_size=8)


def _post_norm(c, family):
    """At twice this rate a BERT of 3 x 192 learned nothing but how frequent ids are."""
    c.student.family = c.teacher.family = family
    c.recipe.teacher_pretrain.peak_lr = 1e-3
    c.recipe.student_pretrain.update({'peak_lr': 2e-3, 'lambda_': 0.5, 'temperature': 1.0})


def _phases(c, teacher, student, warmup=5, batch_size=4):
    """Updates of pre-training and fine-tuning; 1 / warmup of them raise the learning rate."""
    for name, budget in (('teacher', teacher), ('student', student)):
        for phase, updates in zip(('pretrain', 'finetune'), budget, strict=True):
            p = c.recipe[f'{name}_{phase}']
            p.updates, p.warmup, p.batch_size = updates, updates // warmup, batch_size
