"""Means are sums over counts; equal runs write equal files, even if killed and resumed."""

import io
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lightpaff_jax import metrics
from lightpaff_jax.errors import NotSaved, UserError
from lightpaff_jax.metrics import Writer, add, from_json, means, to_json
from lightpaff_jax.runtime import progress

SUMS = {'loss': 6.0, 'count': 4.0, 'ce': 3.0, 'labelled': 2.0, 'correct': 1.0}
TEACHER = {'kl': 2.0, 'teacher_ce': 5.0, 'agree': 3.0}


def to_device(sums):
    return {name: jnp.float32(value) for name, value in sums.items()}


def test_means_are_sums_divided_by_their_counts():
    assert means(
        to_device(SUMS | TEACHER), {'grad_norm': jnp.float32(0.5), 'learning_rate': 1e-3}
    ) == {
        'loss': 1.5,
        'ce': 1.5,
        'accuracy': 0.5,
        'kl': 0.5,
        'teacher_ce': 2.5,
        'agreement': 0.75,
        'perplexity': math.exp(1.5),
        'grad_norm': 0.5,
        'learning_rate': 1e-3,
    }


def test_without_a_teacher_its_means_are_absent():
    assert set(means(SUMS)) == {'loss', 'ce', 'accuracy', 'perplexity'}


def test_a_batch_of_padding_has_means_of_zero():
    assert means(dict.fromkeys(SUMS, 0.0)) == {
        'loss': 0.0,
        'ce': 0.0,
        'accuracy': 0.0,
        'perplexity': 1.0,
    }


def test_means_over_labels_are_nan_if_no_row_has_one():
    unlabelled = SUMS | TEACHER | dict.fromkeys(('ce', 'labelled', 'correct', 'teacher_ce'), 0.0)
    result = means(unlabelled)
    missing = {name for name, value in result.items() if math.isnan(value)}
    assert missing == {'ce', 'accuracy', 'teacher_ce', 'perplexity'}
    assert result['kl'] == 0.5


def test_perplexity_of_a_large_ce_is_inf_and_of_nan_is_nan():
    assert means(SUMS | {'ce': 1e6})['perplexity'] == math.inf
    assert math.isnan(means(SUMS | {'ce': math.nan})['perplexity'])


def test_skipped_updates_are_counted_and_do_not_enter_the_means():
    skipped = dict.fromkeys(SUMS, 0.0) | {'skipped': 1.0}
    window = add(to_device(SUMS | {'skipped': 0.0}), to_device(skipped))
    assert means(window) == means(SUMS) | {'skipped': 1}
    assert means(SUMS | {'skipped': 0.0}) == means(SUMS)
    all_skipped = means(skipped)
    assert all_skipped.pop('skipped') == 1
    assert all(math.isnan(x) for x in all_skipped.values())


def test_unknown_sums_and_duplicate_names_are_value_errors():
    with pytest.raises(ValueError, match='grad_norm'):
        means(SUMS | {'grad_norm': 1.0})
    with pytest.raises(ValueError, match='loss'):
        means(SUMS, {'loss': 1.0})


def test_means_of_added_sums_are_means_over_both_steps():
    twice = jax.jit(add)(to_device(SUMS), to_device({**SUMS, 'loss': 2.0, 'count': 0.0}))
    assert means(twice)['loss'] == 8.0 / 4.0
    with pytest.raises(ValueError, match='key'):
        add(SUMS, TEACHER)


def write_run(workdir, first, last, resume):
    with Writer(workdir, total_updates=10, resume_step=resume, tokens=64 * resume) as writer:
        for step in range(first, last + 1):
            writer.advance(step, 64 * step)
            writer.log(step, {'loss': 1 / (step + 1), 'ce': 0.1 * step, 'accuracy': 1.0})
            if step % 4 == 0:
                writer.log(step, {'perplexity': math.inf, 'ce': 2 / 3}, kind='validation')


@pytest.mark.parametrize('cut', [0, 5])
def test_a_killed_and_resumed_run_writes_equal_metrics(tmp_path, cut):
    write_run(tmp_path / 'whole', 1, 10, 0)
    write_run(tmp_path / 'killed', 1, 8, 0)
    for name in ('metrics.jsonl', 'timing.jsonl'):
        path = tmp_path / 'killed' / name
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - cut])  # killed while it wrote a line
    write_run(tmp_path / 'killed', 5, 10, 4)
    whole = (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    assert (tmp_path / 'killed' / 'metrics.jsonl').read_bytes() == whole
    timing = (tmp_path / 'killed' / 'timing.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in timing] == list(range(1, 11))


def test_sums_keep_their_bits_in_json():
    sums = {'loss': jnp.float32(0.1), 'count': jnp.float32(math.inf)}
    back = from_json(json.loads(json.dumps(to_json(sums))))
    assert {name: value.tobytes() for name, value in back.items()} == {
        name: np.asarray(value).tobytes() for name, value in sums.items()
    }
    assert to_json(None) is from_json(None) is None


DAMAGES = (
    b'\x00\x00\x00',
    b'{"step": "2"}',
    b'{"step": null}',
    b'{"step": -1}',
    b'{"step": 1e3}',
    b'{"step": true}',
    b'{"step": 2, "kind": 3}',
    b'[2]',
    b'',
    b'\xff',
    b'[' * 100_000,
    b'{"step": 2' + b'0' * 400 + b'}',
)


@pytest.mark.parametrize('name', ['metrics', 'timing'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_line_is_an_error_and_nothing_is_cut(tmp_path, damage, name):
    path = tmp_path / f'{name}.jsonl'
    for end in (b'', b'{"step": 2}\n{"step": 3}\n'):
        text = b'{"step": 1}\n' + damage + b'\n' + end
        path.write_bytes(text)
        with pytest.raises(
            UserError, match=rf'{name}\.jsonl: line 2: .*; repair or remove the line'
        ):
            Writer(tmp_path, 10, resume_step=2)
        assert path.read_bytes() == text


@pytest.mark.parametrize('end', [b'{"st', b'\0\0', b'{"step": 2}', b'\xff', b'['])
def test_incomplete_last_line_is_cut_and_logged(tmp_path, end, caplog):
    caplog.set_level('INFO', 'lightpaff_jax')
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2, "kind": "train"}\n' + end)
    with Writer(tmp_path, 10, resume_step=2):
        pass
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "kind": "train"}\n'
    assert caplog.messages == [f'{path}: line 3: is incomplete and removed']


@pytest.mark.parametrize(
    ('steps', 'number'), [('1,2,1', 3), ('2,2', 2), ('1,2,5,3', 4), ('5,1', 2), ('3,4,4', 3)]
)
def test_lines_out_of_order_are_an_error_and_are_kept(tmp_path, steps, number):
    path = tmp_path / 'metrics.jsonl'
    text = ''.join(f'{{"step": {step}, "kind": "train"}}\n' for step in steps.split(','))
    path.write_text(text)
    with pytest.raises(UserError, match=f'line {number}: repeats step'):
        Writer(tmp_path, 10, resume_step=2)
    assert path.read_text() == text


@pytest.mark.parametrize('name', ['metrics', 'timing'])
@pytest.mark.parametrize('kept', [[0, 1, 3, 4], [1, 2, 3, 4], [0, 1, 2]])
def test_missing_lines_are_an_error_that_names_the_line(tmp_path, name, kept):
    with Writer(tmp_path, 10, resume_step=0) as writer:
        for step in range(1, 6):
            writer.log(step, {'ce': 1.0})
            if step == 4:
                saved = dict(writer.lines)
    path = tmp_path / f'{name}.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    text = b''.join(lines[i] for i in kept)
    path.write_bytes(text)
    count = sum(i < 4 for i in kept)
    with pytest.raises(UserError, match=rf'{name}\.jsonl: line {count}: .* saved after line 4;'):
        Writer(tmp_path, 10, resume_step=4, lines=saved)
    assert path.read_bytes() == text
    path.unlink()  # the remedy
    for _ in range(2):  # it was killed before it has saved the new number
        with Writer(tmp_path, 10, resume_step=4, lines=saved) as writer:
            writer.log(5, {'ce': 1.0})
            assert writer.lines == {'metrics': 5, 'timing': 5, name: 1}


@pytest.mark.parametrize('name', ['metrics', 'timing', 'tensorboard'])
def test_full_disk_is_one_line_that_names_the_file(tmp_path, name):
    """/dev/full is a file on a full disk."""
    writer = Writer(tmp_path, 10, resume_step=0)
    writer.log(1, {'ce': 1.0})
    with open('/dev/full', 'ab', buffering=0) as full:
        if name == 'tensorboard':
            os.dup2(full.fileno(), writer._tensorboard._writer._writer.fileno())
        else:
            os.dup2(full.fileno(), writer._files[name].fileno())

    def save():
        writer.log(2, {'ce': 1.0})
        writer.upload()

    with pytest.raises(NotSaved, match=rf'{name}.*: cannot be written: No space left on device$'):
        save()
    writer.__exit__(NotSaved, NotSaved(), None)


def test_a_run_from_step_0_starts_with_empty_files(tmp_path):
    for _ in range(2):
        (tmp_path / 'timing.jsonl').write_bytes(DAMAGES[0] + b'\n{"step": 1}\n')
        write_run(tmp_path, 0, 3, 0)
        lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
        assert [json.loads(line)['step'] for line in lines] == [0, 0, 1, 2, 3]


def test_lines_are_flushed_exact_and_sorted_by_key(tmp_path):
    with Writer(tmp_path / 'new', 10, resume_step=0) as writer:
        writer.log(1, {'loss': 0.1 + 0.2, 'ce': float(jnp.float32(0.1))})
        writer.log(1, {'b': 1, 'a': math.nan}, kind='validation')
        assert (tmp_path / 'new' / 'metrics.jsonl').read_text() == (
            '{"step": 1, "kind": "train", "ce": 0.10000000149011612, "loss": 0.30000000000000004}\n'
            '{"step": 1, "kind": "validation", "a": null, "b": 1.0}\n'
        )


def test_tokens_per_second_exclude_compilation_and_evaluation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    with Writer(tmp_path, 10, resume_step=0) as writer:
        now[0] = 60.0  # compilation
        writer.advance(1, 90)
        now[0] = 64.0
        writer.advance(3, 290)
        writer.log(3, {'loss': 1.0})
        now[0] = 90.0
        writer.log(3, {'ce': 1.0}, kind='validation')
        now[0] = 111.0
        writer.advance(4, 390, idle=20.0)  # another shape was compiled
        writer.log(4, {'loss': 1.0})
    lines = (tmp_path / 'timing.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {'step': 3, 'seconds': 64.0, 'tokens_per_second': 50.0},
        {'step': 4, 'seconds': 111.0, 'tokens_per_second': 100.0},
    ]


def test_progress_without_a_terminal_is_a_line_every_10_s(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    with Writer(tmp_path, 100, resume_step=0) as writer:
        for step in range(1, 101):
            now[0] += 1.0
            writer.advance(step, 1000 * step, loss=2.0)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ''
    assert lines[1] == 'update 11/100  loss 2.0000  1,000 tokens/s  0:01:29 left'
    assert lines[-1] == 'update 100/100  loss 2.0000  1,000 tokens/s  0:00:00 left'
    assert len(lines) == 11


def test_progress_on_a_terminal_is_a_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, 'Console', lambda stderr: console)
    with Writer(tmp_path, 10, resume_step=4) as writer:
        writer.log(5, {'loss': 1.25})
        writer.advance(10, 640)
    assert 'update 10/10' in screen.getvalue()
    assert 'loss 1.2500' in screen.getvalue()


def test_tensorboard_has_the_means_and_purges_after_a_resume(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write_run(tmp_path, 1, 4, 0)
    write_run(tmp_path, 3, 4, 2)
    files = sorted((tmp_path / 'tensorboard').iterdir())
    assert len(files) == 2
    scalars, purges = set(), []
    for path in files:
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], 'little')
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            scalars |= {(value.tag, event.step) for value in event.summary.value}
            if event.HasField('session_log'):
                purges.append(event.step)
    assert {('train/loss', 4), ('validation/ce', 4)} <= scalars
    assert 3 in purges


def test_only_process_0_writes_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.distributed, 'is_primary', lambda: False)
    write_run(tmp_path / 'other', 1, 10, 0)
    assert not (tmp_path / 'other').exists()
    assert capsys.readouterr() == ('', '')


def test_tokens_per_second_exclude_saving(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    with Writer(tmp_path, 10, resume_step=0) as writer:
        writer.advance(1, 100)
        now[0] = 1.0
        writer.advance(2, 200)
        now[0] = 31.0
        writer.exclude(30.0)
        now[0] = 32.0
        writer.advance(3, 300)
        writer.log(3, {'loss': 1.0})
    (line,) = (tmp_path / 'timing.jsonl').read_text().splitlines()
    assert json.loads(line)['tokens_per_second'] == 100.0
