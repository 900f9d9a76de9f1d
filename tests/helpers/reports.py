"""Workdirs of finished recipes. All figures are invented inputs."""

import json
import math

import numpy as np

from lightpaff_jax import report
from lightpaff_jax.report import bootstrap, findings, results

# Student -> its two runs, and the test perplexity of seed 0.
STUDENTS = {
    'two_stage': ('stage1', 'two_stage', 31.0),
    'stage1_only': ('stage1', 'stage1_only', 32.0),
    'stage2_only': ('plain', 'stage2_only', 33.0),
    'no_teacher': ('plain', 'no_teacher', 34.0),
    'no_teacher_equal_flops': ('plain_long', 'no_teacher_long', 32.5),
    'no_teacher_equal_time': ('plain_time', 'no_teacher_time', 33.0),
}
TEACHER = ('teacher_pretrain', 'teacher_finetune', 28.0)
ACCURACY = {
    'teacher': 0.95,
    'two_stage': 0.93,
    'stage1_only': 0.92,
    'stage2_only': 0.91,
    'no_teacher': 0.90,
    'no_teacher_equal_flops': 0.915,
    'no_teacher_equal_time': 0.91,
}
UPDATES = {'no_teacher_equal_flops': 560, 'no_teacher_equal_time': 520}
DISTILLED = ('stage1', 'two_stage', 'stage2_only', 'two_stage_unlabelled')  # 1.4 times the FLOPs
# Added to the perplexity of seeds 0, 1, 2, or to their accuracy in percentage points.
SPREAD = (0.0, 0.3, -0.15)
EXAMPLES = 500


def scores_of(objective, value):
    """Returns the test scores of a run with the perplexity or the accuracy `value`."""
    if objective == 'classify':
        return {'accuracy': value, 'ce': 1.1 - value, 'examples': EXAMPLES}
    nll = math.log(value)
    scores = {'perplexity': value, 'ce': nll, 'accuracy': 1 / nll, 'tokens': 1000}
    words = {'word_perplexity': value**1.4, 'words': 700}
    return scores | (words if objective in ('clm', 'seq2seq') else {})


def make_run(
    folder, value, seed, updates=400, size=1_000_000, cost=1.0, objective='clm', **changes
):
    """Writes result.json and metrics.jsonl of a run; `changes` replaces keys of the result."""
    folder.mkdir(parents=True, exist_ok=True)
    test = scores_of(objective, value)
    result = {
        'updates': updates,
        'tokens': updates * 1024,
        'seconds': updates / 4,
        'flops': updates * 1024.0 * 6 * size * cost,
        'tokens_per_second': 4096.0,
        'parameters': size,
        'bytes': 4 * size,
        'scores': {'validation': test, 'test': test},
        'versions': {'jax': '0.0.1'},
        'git_commit': 'abc1234',
        'hardware': 'test input, 2 cores',
        'seed': seed,
        'teacher_hash': None,
        'tokenizer_hash': 'f00d',
        'protocol': f'{objective} of 128 tokens',
        'objective': objective,
    } | changes
    (folder / 'result.json').write_text(json.dumps(result))
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(10, updates + 1, 10):
        ce = test['ce'] + 4 * math.exp(-6 * step / updates)
        lines.append({'step': step, 'kind': 'train', 'ce': ce + 0.05 * noise.normal()})
        if step % 100 == 0:
            lines.append({'step': step, 'kind': 'validation', 'ce': ce})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def make_workdir(workdir, seeds=3, name='quickstart', **changes):
    """Writes a recipe with one language model; `changes` replaces perplexities of STUDENTS."""
    figures = {student: runs[2] for student, runs in STUDENTS.items()}
    figures |= {'teacher': TEACHER[2]} | changes
    make_recipe(workdir, {'text': ('clm', figures)}, seeds, name)
    return workdir


def make_classifier(workdir, seeds=3, **changes):
    """Writes a recipe with one classifier; `changes` replaces values of ACCURACY."""
    return make_recipe(workdir, {'topic': ('classify', ACCURACY | changes)}, seeds)


def make_recipe(workdir, tasks, seeds=3, name='quickstart'):
    """Writes a finished recipe.

    Pre-training is shared by the tasks. Its objective is mlm if a task classifies, else clm.

    Args:
      workdir: folder to write to.
      tasks: task name -> its objective, and the score of each row.
      seeds: number of seeds.
      name: name of the recipe.
    """
    classifies = any(objective == 'classify' for objective, _ in tasks.values())
    pretraining = 'mlm' if classifies else 'clm'
    recipe: dict = {'name': name, 'tasks': {}}
    make_run(workdir / TEACHER[0], 29.0, 0, size=5_000_000, objective=pretraining)
    for task, (objective, figures) in tasks.items():
        folder = f'{task}/' if len(tasks) > 1 else ''
        teacher = [TEACHER[0], f'{folder}{TEACHER[1]}']
        make_run(workdir / teacher[1], figures['teacher'], 0, size=5_000_000, objective=objective)
        students = []
        for seed in range(seeds):
            for student, (first, last, _) in STUDENTS.items():
                runs = [f'seed{seed}/{first}', f'{folder}seed{seed}/{last}']
                students.append({'student': student, 'seed': seed, 'runs': runs})
                updates = UPDATES.get(student, 400)
                costs = [1.4 if run.endswith(DISTILLED) else 1.0 for run in runs]
                spread = SPREAD[seed] / (100 if objective == 'classify' else 1)
                value = figures[student] + spread
                make_run(
                    workdir / runs[0], 35.0, seed, updates, cost=costs[0], objective=pretraining
                )
                make_run(
                    workdir / runs[1], value, seed, updates, cost=costs[1], objective=objective
                )
        recipe['tasks'][task] = {'teacher': teacher, 'students': students}
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    first = next(iter(tasks.values()))[0]
    _make_speed(workdir, 'classifies a text' if first == 'classify' else 'scores a sequence')
    return workdir


def _make_speed(workdir, task):
    student = {
        'parameters': 1_000_000,
        'bytes': 4_000_000,
        'flops': 2e8,
        'latency_ms': 4.0,
        'tokens_per_second': 32000.0,
    }
    teacher = {k: v / 5 if k == 'tokens_per_second' else v * 5 for k, v in student.items()}
    ratios = dict.fromkeys(('parameters', 'bytes', 'flops', 'latency', 'throughput'), 5.0)
    speed = {
        'task': task,
        'batch_size': 1,
        'length': 128,
        'pairs': 7,
        'teacher': teacher,
        'student': student,
        'ratios': ratios,
        'hardware': 'test input, 2 cores',
    }
    (workdir / 'speed.json').write_text(json.dumps(speed))


def findings_of(workdir):
    """Returns the sentences about a recipe's first task."""
    _, tasks, _ = results.read(workdir)
    rows = next(iter(tasks.values()))
    return '\n'.join(findings.headlines(rows, bootstrap.leads(workdir, rows)))


def cells(workdir, title='Results'):
    """Writes the report; returns the cells of a table of report.md: line -> column -> text."""
    report.write(workdir)
    parts = (workdir / 'report.md').read_text('utf-8').split('\n## ')
    part = next(part for part in parts if part.startswith(f'{title}\n'))
    table = next(block for block in part.split('\n\n') if block.startswith('|'))
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.strip().splitlines()
    ]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


# Family -> task -> objective, metric, and score of the two-stage student.
FAMILIES = {
    'bert': {
        'SST-2': ('classify', 'accuracy', 0.91),
        'QQP': ('classify', 'f1', 0.70),
        'Polarity': ('classify', 'accuracy', 0.93),
    },
    'gpt2': {
        'WikiText-2': ('clm', 'perplexity', 31.0),
        'PTB': ('clm', 'perplexity', 25.0),
        'pydocs': ('clm', 'perplexity', 28.0),
    },
    'mass': {
        'Multi30k En-De': ('seq2seq', 'bleu', 30.0),
        'Gigaword': ('seq2seq', 'rouge1', 33.0),
        'Cornell dialogue': ('seq2seq', 'perplexity', 40.0),
    },
}
RELATIVE_LOSS = {
    'teacher': -0.03,
    'two_stage': 0.0,
    'two_stage_unlabelled': -0.004,
    'stage1_only': 0.01,
    'stage2_only': 0.02,
    'no_teacher': 0.04,
    'no_teacher_equal_flops': 0.015,
    'no_teacher_equal_time': 0.02,
}
"""Row -> the fraction by which its score is worse than that of the two-stage student."""
WORDS = ('the', 'film', 'is', 'warm', 'and', 'often', 'a', 'funny', 'story', 'of', 'late', 'people')


def make_family(workdir, family='bert', scale='small', seeds=2, examples=60):
    """Writes a finished recipe with three tasks, notes, sweeps and predictions."""
    pretraining = {'bert': 'mlm', 'gpt2': 'clm', 'mass': 'mass'}[family]
    recipe: dict = {
        'name': f'{family}_{scale}',
        'family': family,
        'scale': scale,
        'command': f'python -m lightpaff_jax.recipe --config=configs/{family}.py:{scale}',
        'notes': ['All students are swept over the same learning rates.'],
        'tasks': {},
        'sweeps': [
            _make_sweep(workdir, 'student_pretrain', '', run, 'perplexity')
            for run in ('stage1', 'pretrain')
        ],
    }
    make_run(workdir / 'teacher_pretrain', 29.0, 0, objective=pretraining, size=5_000_000)
    for task, (objective, metric, value) in FAMILIES[family].items():
        slug = task.lower().replace(' ', '-')
        teacher = ['teacher_pretrain', f'{slug}/teacher_finetune']
        keys = {'objective': objective, 'metric': metric, 'task': task}
        _make_finetuning(workdir / teacher[1], value, 'teacher', 0, keys, examples, size=5_000_000)
        students = []
        for seed in range(seeds):
            for student in RELATIVE_LOSS:
                if student == 'teacher' or ('unlabelled' in student and task != 'SST-2'):
                    continue
                first = STUDENTS.get(student, STUDENTS['two_stage'])[0]
                runs = [f'seed{seed}/{first}', f'{slug}/seed{seed}/{student}']
                updates = UPDATES.get(student, 400)
                costs = [1.4 if run.endswith(DISTILLED) else 1.0 for run in runs]
                make_run(
                    workdir / runs[0], 35.0, seed, updates, cost=costs[0], objective=pretraining
                )
                costs_of_last = {'cost': costs[1], 'updates': updates}
                _make_finetuning(
                    workdir / runs[1], value, student, seed, keys, examples, **costs_of_last
                )
                students.append({'student': student, 'seed': seed, 'runs': runs})
        recipe['tasks'][task] = {'teacher': teacher, 'students': students}
        recipe['sweeps'] += [
            _make_sweep(workdir, 'student_finetune', task, student, metric)
            for student in ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
        ]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    _make_speed(workdir, 'classifies a text' if family == 'bert' else 'scores a sequence')
    return workdir


def _make_sweep(workdir, phase, task, student, metric):
    lambdas = (0.9, 0.5) if student in DISTILLED else (0.0,)
    higher = results.METRICS[metric].higher_is_better
    candidates = [
        {
            'run': f'sweep/{task}/{student}/lr{peak_lr:g}_lambda{lambda_:g}',
            'peak_lr': peak_lr,
            'lambda_': lambda_,
            'score': 0.5 + (0.1 if higher else -0.1) * (peak_lr == 1e-3) + 0.01 * number,
        }
        for peak_lr in (3e-4, 1e-3, 3e-3)
        for number, lambda_ in enumerate(lambdas)
    ]
    for candidate in candidates:
        make_run(workdir / candidate['run'], 30.0, 0, 100)
    best = (max if higher else min)(candidates, key=lambda c: c['score'])
    return {
        'phase': phase,
        'task': task,
        'student': student,
        'metric': metric,
        'candidates': candidates,
        'chosen': best['run'],
    }


def _make_finetuning(folder, value, student, seed, keys, examples, **changes):
    """Writes a fine-tuning run with its predictions; `keys` are the task's keys of the result."""
    metric, objective = keys['metric'], keys['objective']
    loss = RELATIVE_LOSS[student] + SPREAD[seed] / 100
    score = value * (1 - loss if results.METRICS[metric].higher_is_better else 1 + loss)
    value_of = {'classify': score if metric == 'accuracy' else 0.9, 'clm': score, 'seq2seq': 40.0}
    test = scores_of(objective, score if metric == 'perplexity' else value_of[objective])
    test |= {
        'f1': {'f1': score},
        'bleu': {'bleu': score, 'bleu_signature': 'nrefs:1|case:mixed'},
        'rouge1': {'rouge1': score, 'rouge2': score / 2, 'rougeL': score * 0.9},
    }.get(metric, {})
    if student in DISTILLED:
        test |= {'agreement': 0.93 - loss, 'kl': 0.05 + loss, 'teacher_ce': 0.2}
    scores = {'validation': test, 'test': test}
    base = 0.9 if objective == 'classify' else 40.0
    make_run(folder, base, seed, **keys, **changes, scores=scores)
    if objective != 'seq2seq' or metric != 'perplexity':
        write_predictions(folder, objective, [student != 'teacher', seed], 0.9 - loss, examples)


def write_predictions(folder, objective, key, accuracy, examples):
    """Writes predictions/test.jsonl, of which a fraction `accuracy` is correct."""
    texts = np.random.default_rng(7)
    noise = np.random.default_rng([int(part) for part in key])
    lines = []
    for index in range(examples):
        text = ' '.join(texts.choice(WORDS, 14))
        label = int(texts.integers(2))
        correct = noise.random() < accuracy
        confidence = 0.5 + 0.49 * noise.random()
        predicted = label if correct else 1 - label
        if objective == 'classify':
            p = [1 - confidence, confidence] if predicted else [confidence, 1 - confidence]
            line = {'text': text, 'label': label, 'predicted': predicted, 'probabilities': p}
        elif objective == 'seq2seq':
            words = text.split()[: 12 if correct else int(noise.integers(4, 12))]
            line = {'source': text[::-1], 'reference': text, 'text': ' '.join(words)}
        else:
            line = {'text': text, 'nll': 14 * (3.0 + noise.random() - accuracy), 'tokens': 14}
        lines.append(json.dumps({'index': index} | line) + '\n')
    (folder / 'predictions').mkdir(exist_ok=True)
    (folder / 'predictions' / 'test.jsonl').write_text(''.join(lines))
