"""Error messages about invalid files. All figures are invented inputs."""

import pytest
from helpers.reports import (
    STUDENTS,
    make_family,
    make_run,
    make_workdir,
    scores_of,
    write_predictions,
)

from lightpaff_jax import report


def delete_all_results(workdir):
    for path in workdir.rglob('result.json'):
        path.unlink()
    return 'teacher_finetune'


def break_result(workdir):
    (workdir / 'seed1/stage2_only/result.json').write_text('{"updates": 1')
    return 'seed1/stage2_only'


def break_score(workdir):
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, scores={'test': {}})
    return 'seed0/no_teacher'


def break_key(workdir):
    (workdir / 'seed0/stage1/result.json').write_text('{"updates": 1}')
    return "seed0/stage1/result.json: must have the key 'tokens'"


def break_student(workdir):
    path = workdir / 'recipe.json'
    path.write_text(path.read_text().replace('"no_teacher"', '"no_techer"'))
    return "student = 'no_techer': must be one of"


def break_metrics(workdir):
    (workdir / 'seed0/stage1/metrics.jsonl').write_text('{"step": 1, "kind": "train"\n')
    return 'seed0/stage1/metrics.jsonl: line 1'


def break_metrics_bytes(workdir):
    path = workdir / 'seed0/stage1/metrics.jsonl'
    path.write_bytes(b'{"step": 1, "kind": "\xff"}\n')
    return 'seed0/stage1/metrics.jsonl: line 1'


def mix_objectives_in_a_task(workdir):
    make_run(workdir / 'seed0/no_teacher', 0.9, 0, objective='classify')
    return "task 'text': its last runs must have one objective, not classify and clm"


def misspell_objective(workdir):
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, scores={'test': {}})
    path = workdir / 'seed0/no_teacher/result.json'
    path.write_text(path.read_text().replace('"clm"', '"clx"'))
    return "objective = 'clx': must be one of clm,"


def break_accuracy(workdir):
    make_run(workdir / 'seed0/no_teacher', 93.0, 0, objective='classify')
    return 'scores.test.accuracy = 93.0: must be in [0, 1]'


def break_tasks(workdir):
    (workdir / 'recipe.json').write_text('{"name": "q", "tasks": {}}')
    return 'recipe.json: tasks: must name at least one task'


def break_task(workdir):
    path = workdir / 'recipe.json'
    path.write_text(path.read_text().replace('"teacher":', '"tutor":'))
    return "recipe.json: tasks.text: must have the key 'teacher'"


def break_speed(workdir):
    path = workdir / 'speed.json'
    path.write_text(path.read_text().replace('"flops": 5.0', '"flops": 0.2'))
    return 'ratios.flops = 0.2: must be 5'


def break_time_type(workdir):
    path = workdir / 'speed.json'
    path.write_text(path.read_text().replace('"latency": 5.0', '"latency": "fast"'))
    return 'speed.json: ratios.latency = "fast": must be a number'


def break_time_ratio(workdir):
    path = workdir / 'speed.json'
    path.write_text(path.read_text().replace('"latency": 5.0', '"latency": 0.0'))
    return 'ratios.latency = 0.0: must be above 0'


def break_metric(workdir):
    make_run(workdir / 'seed0/no_teacher', 34.0, 0, metric='bleu')
    return "seed0/no_teacher/result.json: metric = 'bleu': must be one of perplexity"


def mix_metrics_in_a_task(workdir):
    for folder in workdir.rglob('teacher_finetune'):
        make_run(folder, 34.0, 0, objective='seq2seq', metric='perplexity')
    for _, run, _ in STUDENTS.values():
        for folder in workdir.rglob(f'*/{run}'):
            scores = {'test': scores_of('seq2seq', 30.0) | {'bleu': 20.0}}
            make_run(folder, 34.0, 0, objective='seq2seq', metric='bleu', scores=scores)
    return "task 'text': its last runs must have one metric, not bleu and perplexity"


def break_companion(workdir):
    scores = {'test': scores_of('classify', 0.9)}
    make_run(workdir / 'seed0/no_teacher', 0.9, 0, objective='classify', metric='f1', scores=scores)
    return "seed0/no_teacher/result.json: scores.test: must have the key 'f1'"


def break_bleu(workdir):
    scores = {'test': scores_of('seq2seq', 30.0) | {'bleu': 120.0}}
    make_run(
        workdir / 'seed0/no_teacher', 0.9, 0, objective='seq2seq', metric='bleu', scores=scores
    )
    return 'scores.test.bleu = 120.0: must be in [0, 100]'


def break_predictions(workdir):
    for run in ('teacher_finetune', 'seed0/two_stage'):
        write_predictions(workdir / run, 'clm', [0, 0], 0.5, 3)
    path = workdir / 'seed0/two_stage/predictions/test.jsonl'
    path.write_text(path.read_text().replace('"nll"', '"null"'))
    return "seed0/two_stage/predictions/test.jsonl: line 1: must have the key 'nll'"


def break_predictions_bytes(workdir):
    for run in ('teacher_finetune', 'seed0/two_stage'):
        write_predictions(workdir / run, 'clm', [0, 0], 0.5, 3)
    path = workdir / 'seed0/two_stage/predictions/test.jsonl'
    path.write_bytes(b'\xff' + path.read_bytes())
    return 'seed0/two_stage/predictions/test.jsonl: line 1: must be JSON: '


def break_predictions_examples(workdir):
    for run, lines in (('teacher_finetune', 3), ('seed0/two_stage', 4)):
        write_predictions(workdir / run, 'clm', [0, 0], 0.5, lines)
    return 'seed0/two_stage/predictions/test.jsonl: must have the same examples as'


@pytest.mark.parametrize(
    'damage',
    [
        delete_all_results,
        break_result,
        break_score,
        break_key,
        break_student,
        break_metrics,
        break_metrics_bytes,
        break_predictions_bytes,
        mix_objectives_in_a_task,
        misspell_objective,
        break_accuracy,
        break_tasks,
        break_task,
        break_speed,
        break_time_type,
        break_time_ratio,
        break_metric,
        mix_metrics_in_a_task,
        break_companion,
        break_bleu,
        break_predictions,
        break_predictions_examples,
    ],
)
def test_invalid_file_is_one_line_and_exit_code_2(tmp_path, capsys, damage):
    workdir = make_workdir(tmp_path)
    message = damage(workdir)
    assert report.main([str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1
    assert message in err


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('"family": "bert"', '"family": "bret"', "family = 'bret': must be one of bert, gpt2"),
        ('"scale": "small"', '"scale": "smal"', "scale = 'smal': must be one of '', paper"),
        ('"family": "bert", ', '', "must have family, since scale = 'small'"),
        ('"phase": ', '"face": ', "sweeps[0]: must have the key 'phase'"),
        ('"peak_lr": ', '"peak": ', "must have the key 'peak_lr'"),
        ('"metric": "perplexity"', '"metric": "perplex"', 'did you mean perplexity?'),
        ('"chosen": "sweep', '"chosen": "swep', "lambda0.9': must be one of sweep/"),
    ],
)
def test_invalid_recipe_json_is_one_line_and_exit_code_2(tmp_path, capsys, old, new, message):
    workdir = make_family(tmp_path, 'bert', seeds=1)
    path = workdir / 'recipe.json'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert report.main([str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1
    assert f'{path}: ' in err
    assert message in err


def test_missing_folder_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert report.main([str(tmp_path / 'nowhere')]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err == f'error: {tmp_path}/nowhere: no such folder\n'


def test_command_prints_the_tables_that_write_returns(tmp_path, capsys):
    workdir = make_workdir(tmp_path, seeds=1)
    assert report.main([str(workdir)]) == 0
    out = capsys.readouterr().out
    assert report.write(workdir) in out
    assert str(workdir) in out
