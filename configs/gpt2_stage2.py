"""LightPAFF stage 2 for GPT-2: fine-tunes the student of stage 1 with the fine-tuned teacher.

Three tasks of the paper: `wikitext103` (the default), `wikitext2` and `ptb`. The recipe gpt2.py also
reads small presets (`wikitext2_small` and others) and tiny ones on the built-in corpus (`jax_tiny`,
`numpy_tiny`, `scipy_tiny`). The teacher has 24 layers of width 1024, the student 4 of width 768;
lambda is 0.5, the temperature 1. The paper does not report its updates and learning rates.

    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py:ptb      on an accelerator
    python -m lightpaff_jax.main --config=configs/gpt2_stage2.py:tiny     4 minutes on a laptop
    python -m lightpaff_jax.recipe --config=configs/gpt2.py:small         all three tasks, with baselines

| task | data | perplexity of the paper's student |
| WikiText-2 | data/wikitext-2: wiki.{train,valid,test}.tokens | 18.8 [U] |
| PTB | data/ptb: ptb.{train,valid,test}.txt | 22.8 [U] |
| WikiText-103 | data/wikitext-103: wiki.{train,valid,test}.tokens; small: documentation instead | 16.4 [U] |

Reads runs/gpt2_stage1 and teachers/gpt2_medium_<task>, the fine-tuned teacher as a run's workdir or
a Hugging Face folder. In the small presets a dataset without a test file is tested on its valid
file and validated on 5 % of train. The preset `tiny` reads the built-in corpus; it runs stage 1 and
the fine-tuning of its teacher first.
"""

from lightpaff_jax import config

TASKS = ('wikitext103', 'wikitext2', 'ptb')
SMALL = ('wikitext2_small', 'ptb_small', 'documentation_small')
TINY = ('jax_tiny', 'numpy_tiny', 'scipy_tiny')
PRESETS = (*TASKS, *SMALL, *TINY, 'tiny', 'tiny_teacher')


def get_config(preset: str = ''):
    c = config.default()
    task, _, scale = (preset or 'wikitext103').partition('_')
    if preset in ('tiny', 'tiny_teacher'):
        c.data.packages, c.data.length, c.optim.peak_lr = ('jax',), 64, 5e-4
        return config.tiny_stage2(c, preset, __file__)
    if scale == 'tiny':
        return _tiny(c, task)
    if task == 'documentation':
        # It takes the place of WikiText-103 in the small table; the paper's table does not have it.
        c.task, c.data.packages = 'Documentation', ('jax', 'numpy')
    elif task == 'ptb':
        c.task, c.data.source, c.data.path, c.data.documents = 'PTB', 'text', 'data/ptb', 'line'
    else:
        c.task = {'wikitext2': 'WikiText-2', 'wikitext103': 'WikiText-103'}[task]
        c.data.source, c.data.path = 'text', f'data/wikitext-{task.removeprefix("wikitext")}'
    return _small(c, task) if scale else _paper(c, task)


def _paper(c, task):
    vocabulary = {'positions': 1024, 'vocab_size': 50257}
    c.teacher.update(config.shape(24, 1024, 16, **vocabulary))
    c.student.update(config.shape(4, 768, 12, dropout=0.1, **vocabulary))
    c.student.init = 'runs/gpt2_stage1'
    c.teacher.path = f'teachers/gpt2_medium_{task}'
    # The teacher was pre-trained on text without spaces around punctuation.
    c.data.detokenize = 'ptb' if task == 'ptb' else 'wikitext'
    c.data.length, c.eval.batch_size = 1024, 64
    updates = {'wikitext103': 10_000, 'wikitext2': 400, 'ptb': 200}[task]
    budget = {'updates': updates, 'warmup': updates // 20, 'batch_size': 64}
    c.recipe.teacher_finetune.update(budget | {'peak_lr': 3e-5})
    c.recipe.teacher_finetune.sweep_peak_lr = (1e-5, 3e-5, 1e-4)
    c.recipe.student_finetune.update(budget | {'peak_lr': 1e-4})
    c.recipe.student_finetune.sweep_peak_lr = (5e-5, 1e-4, 3e-4)
    config.paper_scale(c, eval_every=1_000, save_every=500)
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _small(c, task):
    if task != 'documentation':
        c.data.held_out = 0.05
    c.data.length, c.eval.batch_size = 128, 32
    budget = {'updates': 300, 'warmup': 30, 'batch_size': 8, 'lambda_': 0.7, 'temperature': 2.0}
    c.recipe.teacher_finetune.update(budget | {'sweep_peak_lr': (1e-3, 2e-3)})
    c.recipe.student_finetune.update(budget | {'sweep_peak_lr': (2e-3, 4e-3)})
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)


def _tiny(c, package):
    c.task, c.data.packages, c.data.length = package, (package,), 64
    for phase in (c.recipe.teacher_finetune, c.recipe.student_finetune):
        phase.update({'updates': 60, 'warmup': 6, 'batch_size': 16, 'peak_lr': 1e-3})
    c.eval.batch_size, c.eval.batches = 32, 20
    return config.use_phase(c, c.recipe.student_finetune, with_teacher=True)
