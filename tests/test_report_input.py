"""Claims about what a report says of bad input. All figures here are made up inputs."""

import pytest
from report_fixtures import make_run, make_workdir

from lightpaff_jax import report


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


def break_objective(workdir):
    make_run(workdir / 'seed0/no_teacher', 0.9, 0, objective='classify')
    return "task 'text': its last runs must have one objective, not classify and clm"


def break_objective_name(workdir):
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
    return "recipe.json: task 'text': must have teacher"


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
        break_objective,
        break_objective_name,
        break_accuracy,
        break_tasks,
        break_task,
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
