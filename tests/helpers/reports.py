"""Finished recipes as their runs would have left them. All figures here are made up inputs."""

import json
import math

import numpy as np

from lightpaff_jax.report import findings, results

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
DISTILLED = (
    'stage1',
    'two_stage',
    'stage2_only',
    'two_stage_unlabelled',
)  # these cost 1.4 times the FLOPs
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
                arms.append({'student': arm, 'seed': seed, 'runs': runs})
                updates = 560 if arm == 'no_teacher_equal_flops' else 400
                costs = [1.4 if run.endswith(DISTILLED) else 1.0 for run in runs]
                spread = SPREAD[seed] / (100 if objective == 'classify' else 1)
                value = figures[arm] + spread
                make_run(workdir / runs[0], 35.0, seed, updates, cost=costs[0], objective=before)
                make_run(
                    workdir / runs[1], value, seed, updates, cost=costs[1], objective=objective
                )
        recipe['tasks'][task] = {'teacher': teacher, 'students': arms}
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


# Family -> scale, and task -> objective, metric, score of the two-stage student, arms left out.
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
WORSE = {
    'teacher': -0.03, 'two_stage': 0.0, 'two_stage_unlabelled': -0.004, 'stage1_only': 0.01,
    'stage2_only': 0.02, 'no_teacher': 0.04, 'no_teacher_equal_flops': 0.015,
}  # fmt: skip
"""Row -> how much worse than the two-stage student, as a share."""
WORDS = ('the', 'film', 'is', 'warm', 'and', 'often', 'a', 'funny', 'story', 'of', 'late', 'people')


def make_family(workdir, family='bert', scale='small', seeds=2, examples=60):
    """A finished recipe of three tasks, with notes, a search and predictions."""
    before = {'bert': 'mlm', 'gpt2': 'clm', 'mass': 'mass'}[family]
    recipe: dict = {
        'name': f'{family}_{scale}', 'family': family, 'scale': scale,
        'command': f'python -m lightpaff_jax.recipe --config=configs/{family}.py:{scale}',
        'notes': ['Learning rates are searched alike for every arm.'], 'tasks': {},
        'sweeps': [_search(workdir, 'student_pretrain', '', arm, 'perplexity') for arm in ('stage1', 'pretrain')],
    }  # fmt: skip
    size = {'objective': before, 'size': 5_000_000}
    make_run(workdir / 'teacher_pretrain', 29.0, 0, **size)
    for task, (objective, metric, value) in FAMILIES[family].items():
        slug = task.lower().replace(' ', '-')
        teacher = ['teacher_pretrain', f'{slug}/teacher_finetune']
        of = {'objective': objective, 'metric': metric, 'task': task}
        _make_end(workdir / teacher[1], value, 'teacher', 0, of, examples, size=5_000_000)
        arms = []
        for seed in range(seeds):
            for arm in WORSE:
                if arm == 'teacher' or ('unlab' in arm and task != 'SST-2'):
                    continue
                first = ARMS.get(arm, ARMS['two_stage'])[0]
                runs = [f'seed{seed}/{first}', f'{slug}/seed{seed}/{arm}']
                long = {'updates': 560 if arm == 'no_teacher_equal_flops' else 400}
                costs = [1.4 if run.endswith(DISTILLED) else 1.0 for run in runs]
                make_run(workdir / runs[0], 35.0, seed, cost=costs[0], objective=before, **long)
                _make_end(workdir / runs[1], value, arm, seed, of, examples, cost=costs[1], **long)
                arms.append({'student': arm, 'seed': seed, 'runs': runs})
        recipe['tasks'][task] = {'teacher': teacher, 'students': arms}
        recipe['sweeps'] += [
            _search(workdir, 'student_finetune', task, arm, metric)
            for arm in ('two_stage', 'stage1_only', 'stage2_only', 'no_teacher')
        ]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    _make_speed(workdir, 'classifies a text' if family == 'bert' else 'scores a sequence')
    return workdir


def _search(workdir, phase, task, arm, metric):
    with_teacher = arm in DISTILLED
    higher = results.METRICS[metric].higher
    candidates = [
        {'run': f'search/{task}/{arm}/lr{peak:g}_lambda{weight:g}', 'peak_lr': peak,
         'lambda_': weight, 'score': 0.5 + (0.1 if higher else -0.1) * (peak == 1e-3) + 0.01 * number}
        for peak in (3e-4, 1e-3, 3e-3)
        for number, weight in enumerate((0.9, 0.5) if with_teacher else (0.0,))
    ]  # fmt: skip
    for candidate in candidates:
        make_run(workdir / candidate['run'], 30.0, 0, 100)
    best = (max if higher else min)(candidates, key=lambda c: c['score'])
    return {
        'phase': phase, 'task': task, 'student': arm, 'metric': metric, 'candidates': candidates,
        'chosen': best['run'],
    }  # fmt: skip


def _make_end(folder, value, arm, seed, of, examples, **changes):
    """The run that ends a chain, with its predictions."""
    metric, objective = of['metric'], of['objective']
    worse = WORSE[arm] + SPREAD[seed] / 100
    score = value * (1 - worse if results.METRICS[metric].higher else 1 + worse)
    base = {'classify': score if metric == 'accuracy' else 0.9, 'clm': score, 'seq2seq': 40.0}
    test = scores_of(objective, score if metric == 'perplexity' else base[objective])
    test |= {
        'f1': {'f1': score}, 'bleu': {'bleu': score, 'bleu_signature': 'nrefs:1|case:mixed'},
        'rouge1': {'rouge1': score, 'rouge2': score / 2, 'rougeL': score * 0.9},
    }.get(metric, {})  # fmt: skip
    if arm in DISTILLED:
        test |= {'agreement': 0.93 - worse, 'kl': 0.05 + worse, 'teacher_ce': 0.2}
    make_run(folder, 0.9 if objective == 'classify' else 40.0, seed, **of, **changes,
             scores={'validation': test, 'test': test})  # fmt: skip
    if objective != 'seq2seq' or metric != 'perplexity':
        right = 0.9 - worse
        write_predictions(folder, objective, [arm != 'teacher', seed], right, examples)


def write_predictions(folder, objective, key, right, examples):
    """predictions/test.jsonl: texts of few words, `right` of them as they should be."""
    texts = np.random.default_rng(7)
    noise = np.random.default_rng([int(part) for part in key])
    lines = []
    for index in range(examples):
        text = ' '.join(texts.choice(WORDS, 14))
        label = int(texts.integers(2))
        good = noise.random() < right
        sure = 0.5 + 0.49 * noise.random()
        predicted = label if good else 1 - label
        if objective == 'classify':
            p = [1 - sure, sure] if predicted else [sure, 1 - sure]
            line = {'text': text, 'label': label, 'predicted': predicted, 'probabilities': p}
        elif objective == 'seq2seq':
            written = text.split()[: 12 if good else int(noise.integers(4, 12))]
            line = {'source': text[::-1], 'reference': text, 'text': ' '.join(written)}
        else:
            line = {'text': text, 'nll': 14 * (3.0 + noise.random() - right), 'tokens': 14}
        lines.append(json.dumps({'index': index} | line) + '\n')
    (folder / 'predictions').mkdir(exist_ok=True)
    (folder / 'predictions' / 'test.jsonl').write_text(''.join(lines))
