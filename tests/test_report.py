"""Claims about the report of a recipe. All figures here are made up inputs."""

import json
import math
import re

import numpy as np
import pytest

from lightpaff_jax import report, results

# Arm -> its two runs, and the test perplexity of seed 0.
ARMS = {
    'two_stage': ('stage1', 'two_stage', 31.0),
    'stage1_only': ('stage1', 'stage1_only', 32.0),
    'stage2_only': ('plain', 'stage2_only', 33.0),
    'no_teacher': ('plain', 'no_teacher', 34.0),
    'no_teacher_equal_flops': ('plain_long', 'no_teacher_long', 32.5),
}
TEACHER = ('teacher_pretrain', 'teacher_finetune', 28.0)
DISTILLED = ('stage1', 'two_stage', 'stage2_only')  # these cost 1.4 times the FLOPs
SPREAD = (0.0, 0.3, -0.15)  # added to the perplexity of seed 0, 1, 2


def make_run(folder, perplexity, seed, updates=400, size=1_000_000, cost=1.0, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    test = {
        'perplexity': perplexity, 'word_perplexity': perplexity**1.4, 'ce': math.log(perplexity),
        'accuracy': 1 / math.log(perplexity), 'tokens': 1000, 'words': 700,
    }  # fmt: skip
    result = {
        'updates': updates, 'tokens': updates * 1024, 'seconds': updates / 4,
        'flops': updates * 1024.0 * 6 * size * cost, 'tokens_per_second': 4096.0,
        'parameters': size, 'bytes': 4 * size, 'scores': {'validation': test, 'test': test},
        'versions': {'jax': '0.0.1'}, 'git_commit': 'abc1234', 'hardware': 'test input, 2 cores',
        'seed': seed, 'teacher_hash': None, 'tokenizer_hash': 'f00d',
        'protocol': 'disjoint blocks of 128 tokens',
    } | changes  # fmt: skip
    (folder / 'result.json').write_text(json.dumps(result))
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(10, updates + 1, 10):
        ce = math.log(perplexity) + 4 * math.exp(-6 * step / updates)
        lines.append({'step': step, 'kind': 'train', 'ce': ce + 0.05 * noise.normal()})
        if step % 100 == 0:
            lines.append({'step': step, 'kind': 'validation', 'ce': ce})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def make_workdir(workdir, seeds=3, name='quickstart', **perplexities):
    """A finished recipe; `perplexities` replaces those of the table above."""
    ppl = {arm: runs[2] for arm, runs in ARMS.items()} | {'teacher': TEACHER[2]} | perplexities
    for run in TEACHER[:2]:
        make_run(workdir / run, ppl['teacher'], 0, size=5_000_000)
    arms = []
    for seed in range(seeds):
        for arm, (first, last, _) in ARMS.items():
            runs = [f'seed{seed}/{first}', f'seed{seed}/{last}']
            arms.append({'arm': arm, 'seed': seed, 'runs': runs})
            updates = 560 if arm == 'no_teacher_equal_flops' else 400
            for run in runs:
                cost = 1.4 if run.endswith(DISTILLED) else 1.0
                make_run(workdir / run, ppl[arm] + SPREAD[seed], seed, updates, cost=cost)
    recipe = {'name': name, 'teacher': list(TEACHER[:2]), 'arms': arms}
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    student = {
        'parameters': 1_000_000, 'bytes': 4_000_000, 'flops_per_token': 2e6, 'latency_ms': 4.0,
        'tokens_per_second': 32000.0,
    }  # fmt: skip
    teacher = {k: v / 5 if k == 'tokens_per_second' else v * 5 for k, v in student.items()}
    ratios = dict.fromkeys(('parameters', 'bytes', 'flops_per_token', 'latency', 'throughput'), 5.0)
    speed = {
        'batch_size': 1, 'length': 128, 'pairs': 7, 'teacher': teacher, 'student': student,
        'ratios': ratios, 'hardware': 'test input, 2 cores',
    }  # fmt: skip
    (workdir / 'speed.json').write_text(json.dumps(speed))
    return workdir


def said_of(workdir):
    _, rows, _ = results.read(workdir)
    return '\n'.join(results.headlines(rows, results.read_speed(workdir)))


def test_mean_and_standard_error_are_those_of_numpy():
    values = [31.0, 31.3, 30.85, 29.9]
    mean, error = results.mean_error(values)
    assert error is not None
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-14)  # float64 sums of 4 numbers
    np.testing.assert_allclose(error, np.std(values, ddof=1) / np.sqrt(4), rtol=1e-14)
    assert results.mean_error([31.0]) == (31.0, None)


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ([12.0], '12.00'),
        ([12.0, 12.2], '12.10 ± 0.10'),
        ([0.3, 0.3004], '0.3002 ± 0.0002'),
        ([3.0, 3.0], '3.00 ± 0.00'),
    ],
)
def test_an_error_is_shown_with_a_digit_that_is_not_zero_unless_it_is_zero(values, text):
    assert results.plus_minus(values, 2) == text


def test_the_table_adds_up_the_costs_of_a_chain_and_averages_scores_over_seeds(tmp_path):
    table = report.write(make_workdir(tmp_path))
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    rows = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert list(rows) == [label for label, _ in results.ROWS.values()]
    two = rows['two-stage']
    values = 31.0 + np.array(SPREAD)
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert two['perplexity per token'] == f'{np.mean(values):.2f} ± {error:.2f}'
    assert two['ratio to teacher'] == f'{np.mean(values) / 28:.3f} ± {error / 28:.3f}'
    assert two['updates'] == '800'
    assert two['train seconds'] == '200'
    assert float(two['train FLOPs']) == pytest.approx(
        2 * 400 * 1024 * 6e6 * 1.4, rel=5e-3
    )  # shown: 3 digits
    assert rows['teacher']['perplexity per token'] == '28.00'


def test_throughput_of_a_chain_is_all_tokens_over_the_time_they_took():
    chain = [
        {'tokens': 100, 'tokens_per_second': 10.0},
        {'tokens': 300, 'tokens_per_second': 100.0},
    ]
    assert results.throughput(chain) == pytest.approx(400 / (10 + 3))


@pytest.mark.parametrize(('long', 'word'), [(30.0, 'better'), (32.5, 'worse'), (31.0, 'as well')])
def test_the_equal_flops_sentence_follows_the_numbers(tmp_path, long, word):
    said = said_of(make_workdir(tmp_path, no_teacher_equal_flops=long))
    assert f'plain training for the same FLOPs does {word}: {long + 0.05:.2f} against 31.05' in said


def test_flops_or_updates_that_are_not_equal_are_called_out(tmp_path):
    workdir = make_workdir(tmp_path)
    assert 'Warning' not in said_of(workdir)
    make_run(workdir / 'seed0/no_teacher_long', 32.5, 0, updates=5600)
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, updates=500)
    said = said_of(workdir)
    assert 'Warning: the FLOPs are not the same' in said
    assert 'Warning: the updates are not equal: two-stage 800' in said


@pytest.mark.parametrize(
    ('rival', 'best', 'more'),
    [(32.0, 'is the best', 'is more than'), (31.1, 'is the best', 'is not more than'),
     (30.0, 'is not the best', 'is more than')],
)  # fmt: skip
def test_two_stage_wins_only_by_its_numbers_and_their_error(tmp_path, rival, best, more):
    said = said_of(make_workdir(tmp_path, stage1_only=rival))
    line = next(s for s in said.splitlines() if s.startswith('Two-stage'))
    assert best in line
    assert f'{more} its standard error' in line


def test_one_seed_claims_no_significance(tmp_path):
    said = said_of(make_workdir(tmp_path, seeds=1))
    assert said.count('One seed cannot tell') == 2
    assert 'standard error' not in said


@pytest.mark.parametrize(('teacher', 'warns'), [(28.0, False), (33.5, True), (36.0, True)])
def test_a_teacher_hardly_better_than_the_undistilled_student_is_warned_of(
    tmp_path, teacher, warns
):
    said = said_of(make_workdir(tmp_path, teacher=teacher))
    assert ('there is little to distil' in said) == warns
    assert ('higher than the undistilled' in said) == (teacher > 34.05)


def test_missing_runs_are_named_and_the_rest_is_printed(tmp_path):
    workdir = make_workdir(tmp_path)
    for run in ('seed1/two_stage', 'seed0/plain_long', 'seed1/plain_long', 'seed2/plain_long'):
        (workdir / run / 'result.json').unlink()
    (workdir / 'speed.json').unlink()
    table = report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    for run in ('seed1/two_stage', 'seed0/plain_long', 'seed2/plain_long'):
        assert run in text
    assert 'no speed.json' in text
    assert 'equal FLOPs' not in table
    assert re.search(r'\| two-stage (.*\|){4} +2 \|', table)


@pytest.mark.parametrize('arms', [(), ('stage1_only',)])
def test_a_recipe_with_little_done_still_gives_a_page(tmp_path, arms):
    workdir = make_workdir(tmp_path, seeds=1)
    recipe = json.loads((workdir / 'recipe.json').read_text())
    recipe['arms'] = [arm for arm in recipe['arms'] if arm['arm'] in arms]
    recipe['teacher'] = recipe['teacher'][: 1 + len(arms)]
    (workdir / 'recipe.json').write_text(json.dumps(recipe))
    report.write(workdir)
    assert '<svg' in (workdir / 'report.html').read_text('utf-8')


def test_a_diverged_run_is_left_out_and_named(tmp_path):
    workdir = make_workdir(tmp_path)
    path = workdir / 'seed2/no_teacher/result.json'
    result = json.loads(path.read_text())
    result['scores']['test']['perplexity'] = math.inf
    path.write_text(json.dumps(result))
    report.write(workdir)
    assert 'seed2/no_teacher (test perplexity inf)' in (workdir / 'report.md').read_text('utf-8')


def test_runs_with_another_tokenizer_are_not_compared_in_silence(tmp_path):
    workdir = make_workdir(tmp_path)
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, tokenizer_hash='beef')
    report.write(workdir)
    text = (workdir / 'report.md').read_text('utf-8')
    assert 'Warning: the runs differ in tokenizer: beef; f00d.' in text


def test_the_page_refers_to_nothing_outside_and_its_ids_are_unique(tmp_path):
    workdir = make_workdir(tmp_path)
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert 'http' not in page
    assert not re.search(r'<(script|link|img|iframe|object)|@import|\bsrc=', page)
    assert page.count('<svg') == page.count('<figure>') == 4
    targets = re.findall(r'href="([^"]*)"', page) + re.findall(r'url\(([^)]*)\)', page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert targets
    assert {target.removeprefix('#') for target in targets} <= set(ids)
    assert len(ids) == len(set(ids))
    assert 'name="viewport"' in page
    assert 'prefers-color-scheme: dark' in page


def test_the_plots_show_every_seed_and_every_run(tmp_path):
    workdir = make_workdir(tmp_path)
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    arms, _, pretrain, finetune = re.findall(r'<figure>.*?</figure>', page, flags=re.S)
    for label, colour in results.ROWS.values():
        assert f'>{label}</text>' in re.sub(r'>\s+', '>', arms)
        assert colour in finetune
    assert arms.count(f'fill: {results.ROWS["two_stage"][1]}; fill-opacity') >= 3
    assert 'two-stage and stage 1 only' in pretrain


def test_a_name_with_markup_is_escaped(tmp_path):
    workdir = make_workdir(tmp_path, name='<script>alert("|")</script>')
    report.write(workdir)
    for name in ('report.html', 'report.md'):
        text = (workdir / name).read_text('utf-8')
        assert '<script>' not in text
        assert '&lt;script&gt;' in text


def test_equal_inputs_give_equal_files(tmp_path):
    workdir = make_workdir(tmp_path)
    report.write(workdir)
    first = (workdir / 'report.html').read_text('utf-8')
    report.write(workdir)
    assert (workdir / 'report.html').read_text('utf-8') == first


def break_nothing_there(workdir):
    for path in workdir.rglob('result.json'):
        path.unlink()
    return 'teacher_finetune'


def break_result(workdir):
    (workdir / 'seed1/stage2_only/result.json').write_text('{"updates": 1')
    return 'seed1/stage2_only'


def break_score(workdir):
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, scores={'validation': {}})
    return 'seed0/no_teacher'


def break_key(workdir):
    (workdir / 'seed0/stage1/result.json').write_text('{"updates": 1}')
    return "seed0/stage1/result.json: must have the key 'tokens'"


def break_arm(workdir):
    path = workdir / 'recipe.json'
    path.write_text(path.read_text().replace('"no_teacher"', '"no_techer"'))
    return "arm 'no_techer': must be one of"


def break_metrics(workdir):
    (workdir / 'seed0/stage1/metrics.jsonl').write_text('{"step": 1, "kind": "train"\n')
    return 'seed0/stage1/metrics.jsonl: line 1'


def break_speed(workdir):
    path = workdir / 'speed.json'
    path.write_text(path.read_text().replace('"latency": 5.0', '"latency": 0.2'))
    return 'ratios.latency = 0.2'


@pytest.mark.parametrize(
    'break_it',
    [
        break_nothing_there,
        break_result,
        break_score,
        break_key,
        break_arm,
        break_metrics,
        break_speed,
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(tmp_path, capsys, break_it):
    workdir = make_workdir(tmp_path)
    named = break_it(workdir)
    assert report.main([str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1
    assert named in err


def test_a_missing_folder_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert report.main([str(tmp_path / 'nowhere')]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err == f'error: {tmp_path}/nowhere: no such folder\n'


def test_the_command_prints_the_table_that_write_returns(tmp_path, capsys):
    workdir = make_workdir(tmp_path, seeds=1)
    assert report.main([str(workdir)]) == 0
    out = capsys.readouterr().out
    assert report.write(workdir) in out
    assert str(workdir) in out
