"""Finished recipes as their runs would have left them. All figures here are made up inputs."""

import json
import math

import numpy as np

from lightpaff_jax import findings, results

# Arm -> its two runs, and the test perplexity of seed 0.
ARMS = {
    'two_stage': ('stage1', 'two_stage', 31.0),
    'stage1_only': ('stage1', 'stage1_only', 32.0),
    'stage2_only': ('plain', 'stage2_only', 33.0),
    'no_teacher': ('plain', 'no_teacher', 34.0),
    'no_teacher_equal_flops': ('plain_long', 'no_teacher_long', 32.5),
}
TEACHER = ('teacher_pretrain', 'teacher_finetune', 28.0)
ACCURACY = {
    'teacher': 0.95, 'two_stage': 0.93, 'stage1_only': 0.92, 'stage2_only': 0.91,
    'no_teacher': 0.90, 'no_teacher_equal_flops': 0.915,
}  # fmt: skip
DISTILLED = ('stage1', 'two_stage', 'stage2_only')  # these cost 1.4 times the FLOPs
SPREAD = (0.0, 0.3, -0.15)  # added to the perplexity of seed 0, 1, 2; to an accuracy in points
EXAMPLES = 500


def scores_of(objective, value):
    """Test scores of a run: of the perplexity, or of the accuracy, `value`."""
    if objective == 'classify':
        return {'accuracy': value, 'ce': 1.1 - value, 'examples': EXAMPLES}
    scores = {
        'perplexity': value, 'ce': math.log(value), 'accuracy': 1 / math.log(value), 'tokens': 1000,
    }  # fmt: skip
    words = {'word_perplexity': value**1.4, 'words': 700}
    return scores | (words if objective in ('clm', 'seq2seq') else {})


def make_run(folder, value, seed, updates=400, size=1_000_000, cost=1.0, objective='clm',
             **changes):  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    test = scores_of(objective, value)
    result = {
        'updates': updates, 'tokens': updates * 1024, 'seconds': updates / 4,
        'flops': updates * 1024.0 * 6 * size * cost, 'tokens_per_second': 4096.0,
        'parameters': size, 'bytes': 4 * size, 'scores': {'validation': test, 'test': test},
        'versions': {'jax': '0.0.1'}, 'git_commit': 'abc1234', 'hardware': 'test input, 2 cores',
        'seed': seed, 'teacher_hash': None, 'tokenizer_hash': 'f00d',
        'protocol': f'{objective} of 128 tokens', 'objective': objective,
    } | changes  # fmt: skip
    (folder / 'result.json').write_text(json.dumps(result))
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(10, updates + 1, 10):
        ce = test['ce'] + 4 * math.exp(-6 * step / updates)
        lines.append({'step': step, 'kind': 'train', 'ce': ce + 0.05 * noise.normal()})
        if step % 100 == 0:
            lines.append({'step': step, 'kind': 'validation', 'ce': ce})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def make_workdir(workdir, seeds=3, name='quickstart', **changed):
    """A finished recipe of one language model; `changed` replaces perplexities above."""
    figures = {arm: runs[2] for arm, runs in ARMS.items()} | {'teacher': TEACHER[2]} | changed
    make_recipe(workdir, {'text': ('clm', figures)}, seeds, name)
    return workdir


def make_classifier(workdir, seeds=3, **changed):
    """A finished recipe of one classifier; `changed` replaces accuracies above."""
    return make_recipe(workdir, {'topic': ('classify', ACCURACY | changed)}, seeds)


def make_recipe(workdir, tasks, seeds=3, name='quickstart'):
    """A finished recipe; `tasks`: name -> objective and the score of each row.

    Pre-training is masked, and shared, where a task classifies.
    """
    before = 'mlm' if any(of == 'classify' for of, _ in tasks.values()) else 'clm'
    recipe: dict = {'name': name, 'tasks': {}}
    make_run(workdir / TEACHER[0], 29.0, 0, size=5_000_000, objective=before)
    for task, (objective, figures) in tasks.items():
        inside = f'{task}/' if len(tasks) > 1 else ''
        teacher = [TEACHER[0], f'{inside}{TEACHER[1]}']
        make_run(workdir / teacher[1], figures['teacher'], 0, size=5_000_000, objective=objective)
        arms = []
        for seed in range(seeds):
            for arm, (first, last, _) in ARMS.items():
                runs = [f'seed{seed}/{first}', f'{inside}seed{seed}/{last}']
                arms.append({'arm': arm, 'seed': seed, 'runs': runs})
                updates = 560 if arm == 'no_teacher_equal_flops' else 400
                costs = [1.4 if run.endswith(DISTILLED) else 1.0 for run in runs]
                spread = SPREAD[seed] / (100 if objective == 'classify' else 1)
                value = figures[arm] + spread
                make_run(workdir / runs[0], 35.0, seed, updates, cost=costs[0], objective=before)
                make_run(
                    workdir / runs[1], value, seed, updates, cost=costs[1], objective=objective
                )
        recipe['tasks'][task] = {'teacher': teacher, 'arms': arms}
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    first = next(iter(tasks.values()))[0]
    _make_speed(workdir, 'classifies a text' if first == 'classify' else 'scores a sequence')
    return workdir


def _make_speed(workdir, task):
    student = {
        'parameters': 1_000_000, 'bytes': 4_000_000, 'flops': 2e8, 'latency_ms': 4.0,
        'tokens_per_second': 32000.0,
    }  # fmt: skip
    teacher = {k: v / 5 if k == 'tokens_per_second' else v * 5 for k, v in student.items()}
    ratios = dict.fromkeys(('parameters', 'bytes', 'flops', 'latency', 'throughput'), 5.0)
    speed = {
        'task': task, 'batch_size': 1, 'length': 128, 'pairs': 7, 'teacher': teacher,
        'student': student, 'ratios': ratios, 'hardware': 'test input, 2 cores',
    }  # fmt: skip
    (workdir / 'speed.json').write_text(json.dumps(speed))


def said_of(workdir):
    """The sentences of a recipe's first task."""
    _, tasks, _ = results.read(workdir)
    return '\n'.join(findings.headlines(next(iter(tasks.values())), results.read_speed(workdir)))


def cells(table):
    """Line -> column -> cell of a table in markdown."""
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.strip().splitlines()
    ]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
