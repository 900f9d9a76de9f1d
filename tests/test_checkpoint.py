"""What is saved comes back bit for bit, or is refused in one clear line."""

import collections
import dataclasses
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lightpaff_jax import checkpoint
from lightpaff_jax.checkpoint import Checkpoints, load_params, read_meta
from lightpaff_jax.config import NotSaved, UserError

META = {'position': 7, 'config': {'seed': 0, 'optim': {'peak_lr': 1e-3}}, 'teacher': None}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


def make_state(seed: int, width: int = 16) -> State:
    key = jax.random.key(seed)
    params = {
        'blocks': {'attn': {'qkv': {'kernel': jax.random.normal(key, (2, width, 8))}}},
        'half': jax.random.normal(key, (width, 3)).astype(jnp.bfloat16),
        'ids': jax.random.randint(key, (5,), -9, 9, jnp.int8),
        'mask': jnp.array([True, False, True]),
        'scale': jnp.float32(seed),
    }
    opt_state = optax.adamw(1e-3).init(params)
    moments = jax.tree.map(lambda x: (x + 1).astype(x.dtype), opt_state)
    return State(jnp.int32(seed), params, moments)


def small_state(seed: int) -> State:
    kernel = jax.random.normal(jax.random.key(seed), (16, 32))
    params = {'blocks': {'kernel': kernel, 'half': kernel[0].astype(jnp.bfloat16)}}
    moments = optax.TraceState({'kernel': kernel * 2})
    return State(jnp.int32(seed), params, (moments, optax.EmptyState()))


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def same_bits(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def saved(directory: pathlib.Path, *steps: int, keep: int = 9) -> pathlib.Path:
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), META | {'position': step})
    return directory


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)


def test_restore_returns_the_bits_that_were_saved(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path / 'new' / 'checkpoints', keep=2) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        assert checkpoints.steps() == []
        checkpoints.save(3, state, META)
        step, restored, meta = checkpoints.restore(abstract(state))
    assert (step, meta) == (3, META)
    assert isinstance(restored, State)
    assert same_bits(restored, state)


def test_a_state_of_dicts_and_sequences_is_restored(tmp_path):
    state = {'step': jnp.int32(1), 'params': {'w': jnp.ones(3)}, 'opt_state': [(jnp.zeros(2),)]}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        assert same_bits(checkpoints.restore(abstract(state))[1], state)


def test_load_params_and_read_meta_equal_what_was_saved(tmp_path):
    saved(tmp_path, 1, 2)
    params = make_state(2).params
    assert same_bits(load_params(tmp_path), params)
    assert same_bits(load_params(tmp_path, abstract(params)), params)
    assert read_meta(tmp_path) == META | {'position': 2}


def test_load_params_reads_nothing_of_the_optimizer(tmp_path):
    saved(tmp_path, 1)
    shutil.rmtree(tmp_path / '1' / 'training')
    assert same_bits(load_params(tmp_path), make_state(1).params)


def test_restore_onto_another_sharding_is_equal(tmp_path):
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    sharded, replicated = NamedSharding(mesh, P('fsdp')), NamedSharding(mesh, P())

    def place(state, sharding):
        def put(x):
            return jax.device_put(x, sharding if x.ndim and x.shape[0] % 4 == 0 else replicated)

        return jax.tree.map(put, state)

    plain = make_state(1)
    for here, there in ((plain, place(plain, sharded)), (place(plain, sharded), plain)):
        folder = tmp_path / str(here is plain)
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(1, here, META)
            _, restored, _ = checkpoints.restore(abstract(there))
        assert same_bits(restored, plain)
        for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(there), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert same_bits(load_params(folder, abstract(there.params)), plain.params)


def test_arrays_on_other_devices_than_the_mesh_of_the_caller_are_saved_and_read(tmp_path):
    saved(tmp_path, 1)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert same_bits(load_params(tmp_path), make_state(1).params)
        plain = {'params': {'w': jax.device_put(jnp.ones(3), jax.devices()[1])}}
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.save(2, plain, {})
            assert same_bits(checkpoints.restore(abstract(plain))[1], plain)


def test_changing_meta_after_save_does_not_change_what_is_saved(tmp_path):
    meta = {'positions': [1]}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), meta)
        meta['positions'].append(2)
    assert read_meta(tmp_path) == {'positions': [1]}


def test_one_bit_flips_are_never_restored_silently(tmp_path, caplog):
    pristine = tmp_path / 'pristine'
    states = {number: small_state(number) for number in (1, 2)}
    with Checkpoints(pristine, keep=2) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, META | {'position': step})
    files = [p for p in sorted((pristine / '2').rglob('*')) if p.is_file() and p.stat().st_size]
    sizes = [p.stat().st_size for p in files]
    rng = random.Random(0)
    chosen = files + rng.choices(files, sizes, k=30 - len(files))
    seen = collections.Counter()
    for number, path in enumerate(chosen):
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
        seen['detected' if step == 1 else 'harmless', name.parts[1], name.name[:12]] += 1
        shutil.rmtree(folder)
    for what, count in sorted(seen.items()):
        print(*what, count)
    assert sum(count for (what, *_), count in seen.items() if what == 'detected') >= 20


def test_every_flip_in_the_data_of_an_array_is_detected_and_named(tmp_path, caplog):
    pristine = tmp_path / 'pristine'
    value = jax.random.bits(jax.random.key(0), (4096,))  # random bits: stored as they are
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


def test_falling_back_says_so_in_one_line_each(tmp_path, caplog, capfd):
    saved(tmp_path, 1, 2, 3)
    for step in ('2', '3'):
        path = tmp_path / step / 'meta' / 'data.json'
        flip(path, 8 * path.read_bytes().index(step.encode()))  # position 2 -> 3, 3 -> 2
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        step, state, _ = checkpoints.restore(abstract(make_state(0)))
        assert (step, checkpoints.steps()) == (1, [1])
    assert same_bits(state, make_state(1))
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path}: step 3 is set aside as 3.corrupt: meta: not what was saved',
        f'{tmp_path}: step 2 is set aside as 2.corrupt: meta: not what was saved',
        f'{tmp_path}: step 1 is used instead',
    ]
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('damage', ['truncated', 'missing', 'no part', 'empty'])
def test_damaged_files_make_the_step_before_the_newest(tmp_path, caplog, damage):
    saved(tmp_path, 1, 2)
    data = largest(tmp_path / '2' / 'params')
    if damage == 'truncated':
        data.write_bytes(data.read_bytes()[:50])
    elif damage == 'missing':
        data.unlink()
    elif damage == 'no part':
        shutil.rmtree(tmp_path / '2' / 'digests')
    else:
        shutil.rmtree(tmp_path / '2')
        (tmp_path / '2').mkdir()
    assert same_bits(load_params(tmp_path), make_state(1).params)
    assert (tmp_path / '2').exists()  # readers rename nothing
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1
    assert all('\n' not in r.getMessage() and len(r.getMessage()) < 500 for r in caplog.records)


def test_none_intact_is_an_error_that_names_the_folder_also_the_second_time(tmp_path, caplog):
    saved(tmp_path, 1)
    flip(tmp_path / '1' / 'digests' / 'data.json', 100)
    for read in (load_params, read_meta):
        with pytest.raises(UserError, match=str(tmp_path)):
            read(tmp_path)
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path, keep=9)
        with pytest.raises(UserError, match=str(tmp_path)):
            checkpoints.restore(abstract(make_state(0)))


def test_no_checkpoint_is_an_error_that_names_the_folder(tmp_path):
    for read in (load_params, read_meta):
        with pytest.raises(UserError, match='nothing'):
            read(tmp_path / 'nothing')


def test_another_shape_type_or_structure_is_a_user_error_and_sets_nothing_aside(tmp_path):
    saved(tmp_path, 1)
    state = make_state(1)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    uneven = abstract(state.params, NamedSharding(mesh, P()))
    uneven['half'] = jax.ShapeDtypeStruct(
        (16, 3), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, 'data'))
    )
    less = {name: x for name, x in state.params.items() if name != 'mask'}
    cases = {
        'params/blocks/attn/qkv/kernel is float32': abstract(make_state(1, width=8).params),
        'params/half is bfloat16': abstract(state.params | {'half': jnp.ones((16, 3))}),
        'has no array params/more': abstract(state.params | {'more': jnp.ones(3)}),
        'has the array params/mask': abstract(less),
        'params/half bfloat16': uneven,
    }
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for message, params in cases.items():
            wanted = dataclasses.replace(abstract(state), params=params)
            with pytest.raises(UserError, match=message):
                checkpoints.restore(wanted)
            with pytest.raises(UserError, match=message):
                load_params(tmp_path, params)
        assert checkpoints.steps() == [1]
        assert same_bits(checkpoints.restore(abstract(state))[1], state)


def test_keep_leaves_the_newest_steps(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['4', '5']
    with pytest.raises(ValueError, match='keep'):
        Checkpoints(tmp_path, keep=0)


def test_a_step_that_is_there_is_left_as_it_is(tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(1, make_state(2), {})
        assert same_bits(checkpoints.restore(abstract(make_state(0)))[1], make_state(1))


def test_donation_right_after_save_does_not_change_what_is_saved(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    ruin = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    early = 0
    for place in (None, NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))):
        values = {str(i): jax.random.normal(jax.random.key(i), (512, 512)) for i in range(4)}
        before = {name: np.array(value, copy=True) for name, value in values.items()}
        state = {'params': jax.device_put(values, place) if place else values}
        del values
        wanted = abstract(state)
        ruin(jax.tree.map(jnp.zeros_like, state))  # compiles, so that the next calls are quick
        folder = tmp_path / str(place and place.spec)
        with Checkpoints(folder, keep=9) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state, META)
                early += not (folder / str(step)).exists()
                for _ in range(5):
                    state = ruin(state)
                jax.block_until_ready(state)
                _, restored, _ = checkpoints.restore(wanted)
                for name, value in restored['params'].items():
                    assert np.array_equal(value, before[name])
                before = jax.tree.map(lambda x: np.array(x, copy=True), state['params'])
    assert early  # save returned while a step was still being written


KILLED = """
import os, pathlib, signal, sys
import jax.numpy as jnp, jax
from lightpaff_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=9)
checkpoints.save(1, {'params': {'w': jnp.ones(3)}}, {})
checkpoints.close()
checkpoints.save(2, {'params': {'w': jax.random.normal(jax.random.key(0), (4096, 2048))}}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_save_is_ignored_and_cleaned_up(tmp_path):
    result = subprocess.run([sys.executable, '-c', KILLED, tmp_path], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / '1').exists()
    assert not (tmp_path / '2').exists()
    (tmp_path / '7.orbax-checkpoint-tmp').mkdir(exist_ok=True)
    (tmp_path / '0.deleted').mkdir()
    state = {'params': {'w': jnp.ones(3)}}
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.steps() == [1]
        step, restored, _ = checkpoints.restore(abstract(state))
        assert step == 1
        assert same_bits(restored, state)
        checkpoints.save(2, state, {})
    assert {path.name for path in tmp_path.iterdir()} == {'1', '2'}


def test_a_save_that_cannot_begin_is_an_error_at_once(tmp_path):
    (tmp_path / 'file').write_text('')
    checkpoints = Checkpoints(tmp_path / 'file', keep=1)
    with pytest.raises((NotSaved, OSError), match='file'):
        checkpoints.save(1, make_state(1), {})
    checkpoints.close()


def test_a_failed_save_is_an_error_at_close_and_hides_no_other(tmp_path, caplog, monkeypatch):
    def fail(*_):
        response = unittest.mock.Mock()
        response.result.side_effect = ValueError('no space left on device')
        return response

    monkeypatch.setattr(checkpoint.ocp, 'save_checkpointables_async', fail)
    message = f'{tmp_path}: step 1 was not saved: ValueError: no space left on device'
    with (
        pytest.raises(NotSaved, match=re.escape(message)),
        Checkpoints(tmp_path, keep=1) as checkpoints,
    ):
        checkpoints.save(1, make_state(1), {})

    def interrupted():
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(1, make_state(1), {})
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert caplog.messages == [message]


def test_meta_that_is_not_json_is_refused_at_once(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, make_state(1), {'path': tmp_path})
        assert checkpoints.steps() == []


QUIET = """
import pathlib, sys, threading
import jax.numpy as jnp
import jax
from absl import logging
logging.set_verbosity(logging.INFO)
logging.use_absl_handler()
from lightpaff_jax.checkpoint import Checkpoints
state = {'params': {'w': jnp.ones((9, 9))}}
with Checkpoints(pathlib.Path(sys.argv[1]), keep=1) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.save(2, state, {})
    checkpoints.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
"""


def test_nothing_is_printed_and_no_thread_keeps_the_program_alive(tmp_path):
    result = subprocess.run(
        [sys.executable, '-W', 'error', '-c', QUIET, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


DAMAGED = """
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


def test_a_damaged_step_prints_one_line_and_the_step_used_instead_another(tmp_path):
    result = subprocess.run(
        [sys.executable, '-W', 'error', '-c', DAMAGED, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, '')
    lines = result.stderr.splitlines()
    assert len(lines) == 4, result.stderr
    for kind, (first, second) in zip(('node', 'data'), (lines[:2], lines[2:]), strict=True):
        assert f'{tmp_path / kind}: step 2 is set aside as 2.corrupt: params: ' in first
        assert f'{tmp_path / kind}: step 1 is used instead' in second
