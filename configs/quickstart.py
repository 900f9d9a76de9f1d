"""Makes a student without any download: teacher, stage 1, stage 2, baselines and a table.

    ./launch/quickstart.sh           GPT-2; one seed, within 10 minutes on 2 cores
    ./launch/quickstart.sh bert      BERT: the package of a text, and whether two texts belong together
    ./launch/quickstart.sh mass      MASS: the first line of a docstring, from the rest of it
    ./launch/quickstart.sh full      GPT-2; three seeds, within an hour on 2 cores

Reads the built-in corpus, the documentation in the packages that this project installs. GPT-2 is
pre-trained on all of them but jax, and fine-tuned on jax; the other families read all packages.
"""

from lightpaff_jax import config

PRESETS = ('gpt2', 'bert', 'mass', 'full', 'ci', 'bert_ci', 'mass_ci')
TASKS = {'gpt2': ('text',), 'bert': ('topic', 'pairs'), 'mass': ('summary',)}
PRESETS += tuple(task for tasks in TASKS.values() for task in tasks)

TASK = ('jax',)
GENERAL = (
    'stdlib',
    'numpy',
    'scipy',
    'flax',
    'optax',
    'orbax',
    'tensorflow_datasets',
    'grain',
    'ml_collections',
    'chex',
    'etils',
)


def get_config(preset: str = ''):
    c = config.default()
    c.mesh.data = 1  # networks of this size are not faster on more devices
    c.eval.batch_size, c.eval.batches = 32, 40  # a task's own splits are read whole
    families = {task: family for family, tasks in TASKS.items() for task in tasks}
    if preset in families:
        return _task(c, preset, families[preset])
    c.teacher.update(config.shape(3, 192, 4))
    c.student.update(config.shape(2, 64, 2))
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


def _task(c, view, family):
    """Fine-tuning on one view of the built-in corpus."""
    c.task = c.data.view = view
    c.student.family = c.teacher.family = family
    if family == 'gpt2':
        c.data.packages = TASK
    if family == 'bert':
        c.objective, c.data.length = 'classify', 64
        c.student.update({'head': 'classify', 'classes': 12 if view == 'topic' else 2})
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
    c.teacher.update(config.shape(2, 128, 4))
    c.student.update(config.shape(1, 48, 2))
    c.data.length = 64
    _phases(c, (1000, 700), (1000, 600), batch_size=16)


def _mass(c, preset):
    c.objective = 'mass'
    _post_norm(c, 'mass')
    c.teacher.decoder_layers, c.student.decoder_layers = 3, 1
    c.data.length = 96
    _phases(c, (400, 300), (400, 300), batch_size=8)


def _post_norm(c, family):
    """Halves the learning rates: at twice these a post-norm network learned only unigram frequencies."""
    c.student.family = c.teacher.family = family
    c.recipe.teacher_pretrain.peak_lr = 1e-3
    c.recipe.student_pretrain.update({'peak_lr': 2e-3, 'lambda_': 0.5, 'temperature': 1.0})


def _phases(c, teacher, student, warmup=5, batch_size=4):
    """Sets the updates of pre-training and fine-tuning; 1 / warmup of them are warm-up."""
    for name, budget in (('teacher', teacher), ('student', student)):
        for phase, updates in zip(('pretrain', 'finetune'), budget, strict=True):
            budget = {'updates': updates, 'warmup': updates // warmup, 'batch_size': batch_size}
            c.recipe[f'{name}_{phase}'].update(budget)
