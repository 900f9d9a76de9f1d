"""A damaged step is detected and renamed; the step before it is restored."""

import collections
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import (
    META,
    abstract,
    flip,
    largest,
    make_state,
    same_bits,
    save_steps,
    small_state,
)

from lightpaff_jax.checkpoint import Checkpoints, Reader
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import fingerprint


def test_a_flipped_bit_is_never_restored_silently(tmp_path, caplog):
    pristine = tmp_path / 'pristine'
    states = {number: small_state(number) for number in (1, 2)}
    with Checkpoints(pristine, keep=2) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, META | {'position': step})
    files = [p for p in sorted((pristine / '2').rglob('*')) if p.is_file() and p.stat().st_size]
    sizes = [p.stat().st_size for p in files]
    rng = random.Random(0)
    paths = files + rng.choices(files, sizes, k=30 - len(files))
    outcomes = collections.Counter()
    for number, path in enumerate(paths):
        name = path.relative_to(pristine)
        folder = tmp_path / str(number)
        shutil.copytree(pristine, folder)
        bit = rng.randrange(path.stat().st_size * 8)
        flip(folder / name, bit)
        with Checkpoints(folder, keep=9) as checkpoints:
            step, state, meta = checkpoints.restore(abstract(states[1]))
        assert same_bits(state, states[step]), f'{name}, bit {bit}'
        assert meta == META | {'position': step}, f'{name}, bit {bit}'
        assert (folder / '2.corrupt').exists() == (step == 1)
        outcomes['detected' if step == 1 else 'harmless'] += 1
        shutil.rmtree(folder)
    assert outcomes['detected'] >= 20


def test_each_flip_in_an_array_is_detected_and_names_it(tmp_path, caplog):
    pristine = tmp_path / 'pristine'
    value = jax.random.bits(jax.random.key(0), (4096,))  # random bits are not compressed
    state = {'step': jnp.int32(1), 'params': {'blocks': {'kernel': value}}}
    with Checkpoints(pristine, keep=2) as checkpoints:
        checkpoints.save(1, state, META)
        checkpoints.save(2, state, META)
    data = largest(pristine / '2' / 'params')
    start = data.read_bytes().find(np.asarray(value).tobytes()[:64])
    assert start >= 0
    for position in range(0, value.nbytes, value.nbytes // 15):
        folder = tmp_path / str(position)
        shutil.copytree(pristine, folder)
        flip(folder / data.relative_to(pristine), (start + position) * 8 + position % 8)
        caplog.clear()
        with Checkpoints(folder, keep=2) as checkpoints:
            assert checkpoints.restore(abstract(state))[0] == 1
        assert 'params/blocks/kernel: the bytes are not those that were saved' in caplog.text


def test_each_damaged_step_is_logged_in_one_line(tmp_path, caplog, capfd):
    save_steps(tmp_path, 1, 2, 3)
    for step in ('2', '3'):
        path = tmp_path / step / 'meta' / 'data.json'
        flip(path, 8 * path.read_bytes().index(step.encode()))  # position 2 -> 3, 3 -> 2
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        step, state, _ = checkpoints.restore(abstract(make_state(0)))
        assert (step, checkpoints.steps()) == (1, [1])
    assert same_bits(state, make_state(1))
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path}: step 3 is renamed to 3.corrupt: meta: not what was saved',
        f'{tmp_path}: step 2 is renamed to 2.corrupt: meta: not what was saved',
        f'{tmp_path}: step 1 is used instead',
    ]
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('part', ['all', 'params', 'training', 'meta', 'digests'])
def test_a_renamed_or_mixed_step_is_not_restored(tmp_path, caplog, part):
    save_steps(tmp_path, 1, 2)
    folder = tmp_path / ('2' if part == 'all' else f'2/{part}')
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / ('1' if part == 'all' else f'1/{part}'), folder)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        step, state, meta = checkpoints.restore(abstract(make_state(0)))
    assert (step, meta['position']) == (1, 1)
    assert same_bits(state, make_state(1))
    assert (tmp_path / '2.corrupt').is_dir()


def test_a_single_renamed_step_is_an_error(tmp_path, caplog):
    save_steps(tmp_path, 1)
    (tmp_path / '1').rename(tmp_path / '70')
    with pytest.raises(UserError, match='no intact checkpoint'):
        Reader(tmp_path)
    assert 'saved as step 1, not 70' in caplog.text
    with pytest.raises(UserError, match='no intact checkpoint'):
        Checkpoints(tmp_path, keep=9).restore(abstract(make_state(0)))


def test_step_of_an_earlier_version_is_refused_and_not_renamed(tmp_path, monkeypatch):
    def record_without_step(step, arrays, meta):
        content = {'arrays': fingerprint.entries(arrays), 'meta': fingerprint.sha256(meta)}
        return content | {'self': fingerprint.sha256(content)}

    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, 'record', record_without_step)
        save_steps(tmp_path, 1)
    for read in (Reader, lambda path: Checkpoints(path, 9).restore(abstract(make_state(0)))):
        with pytest.raises(UserError, match=rf'^{tmp_path}/1: was saved by an earlier version'):
            read(tmp_path)
    assert (tmp_path / '1').is_dir()


def test_names_that_no_save_writes_are_no_steps(tmp_path):
    save_steps(tmp_path, 1)
    for name in ('07', '٣', '8 ', '-9'):
        shutil.copytree(tmp_path / '1', tmp_path / name)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1


@pytest.mark.parametrize('damage', ['truncated', 'missing file', 'missing part', 'empty'])
def test_with_damaged_files_the_step_before_is_read(tmp_path, caplog, damage):
    save_steps(tmp_path, 1, 2)
    data = largest(tmp_path / '2' / 'params')
    if damage == 'truncated':
        data.write_bytes(data.read_bytes()[:50])
    elif damage == 'missing file':
        data.unlink()
    elif damage == 'missing part':
        shutil.rmtree(tmp_path / '2' / 'digests')
    else:
        shutil.rmtree(tmp_path / '2')
        (tmp_path / '2').mkdir()
    assert same_bits(Reader(tmp_path).read_params(), make_state(1).params)
    assert (tmp_path / '2').exists()  # a Reader renames nothing
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1
    assert all('\n' not in r.getMessage() and len(r.getMessage()) < 500 for r in caplog.records)


def test_without_an_intact_step_the_error_names_the_folder(tmp_path, caplog):
    save_steps(tmp_path, 1)
    flip(tmp_path / '1' / 'digests' / 'data.json', 100)
    with pytest.raises(UserError, match=str(tmp_path)):
        Reader(tmp_path)
    for _ in range(2):  # the first restore renames the step
        checkpoints = Checkpoints(tmp_path, keep=9)
        with pytest.raises(UserError, match=str(tmp_path)):
            checkpoints.restore(abstract(make_state(0)))


RESTORE_DAMAGED = """
import pathlib, sys
import jax.numpy as jnp
import jax
from lightpaff_jax.checkpoint import Checkpoints
root = pathlib.Path(sys.argv[1])
state = {'params': {str(i): jax.random.normal(jax.random.key(i), (32, 32)) for i in range(8)}}
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
for kind in ('node', 'data'):
    with Checkpoints(root / kind, keep=9) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    data = 'params/d/*' if kind == 'node' else 'params/ocdbt.process_0/d/*'
    path = max((root / kind / '2').glob(data), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with Checkpoints(root / kind, keep=9) as checkpoints:
        assert checkpoints.restore(abstract)[0] == 1
"""


def test_a_program_prints_two_lines_for_a_damaged_step(tmp_path):
    result = subprocess.run(
        [sys.executable, '-W', 'error', '-c', RESTORE_DAMAGED, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, '')
    lines = result.stderr.splitlines()
    assert len(lines) == 4, result.stderr
    for kind, (first, second) in zip(('node', 'data'), (lines[:2], lines[2:]), strict=True):
        assert f'{tmp_path / kind}: step 2 is renamed to 2.corrupt: params: ' in first
        assert f'{tmp_path / kind}: step 1 is used instead' in second
