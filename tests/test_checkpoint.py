"""A checkpoint is restored bit for bit, or refused in one line."""

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import META, State, abstract, make_state, same_bits, save_steps
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from lightpaff_jax import checkpoint
from lightpaff_jax.checkpoint import Checkpoints, Reader
from lightpaff_jax.errors import NotSaved, UserError


def test_restore_returns_the_saved_bits(tmp_path):
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


def test_reader_returns_the_saved_params_and_meta(tmp_path):
    save_steps(tmp_path, 1, 2)
    params = make_state(2).params
    assert same_bits(Reader(tmp_path).read_params(), params)
    assert same_bits(Reader(tmp_path).read_params(abstract(params)), params)
    assert Reader(tmp_path).meta == META | {'position': 2}


def test_reader_does_not_read_the_optimizer(tmp_path):
    save_steps(tmp_path, 1)
    shutil.rmtree(tmp_path / '1' / 'training')
    assert same_bits(Reader(tmp_path).read_params(), make_state(1).params)


def test_restore_onto_another_sharding_is_equal(tmp_path):
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    sharded, replicated = NamedSharding(mesh, P('fsdp')), NamedSharding(mesh, P())

    def place(state, sharding):
        def put(x):
            return jax.device_put(x, sharding if x.ndim and x.shape[0] % 4 == 0 else replicated)

        return jax.tree.map(put, state)

    plain = make_state(1)
    for source, target in ((plain, place(plain, sharded)), (place(plain, sharded), plain)):
        folder = tmp_path / str(source is plain)
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(1, source, META)
            _, restored, _ = checkpoints.restore(abstract(target))
        assert same_bits(restored, plain)
        for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert same_bits(Reader(folder).read_params(abstract(target.params)), plain.params)


def test_arrays_outside_the_current_mesh_are_saved_and_read(tmp_path):
    save_steps(tmp_path, 1)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert same_bits(Reader(tmp_path).read_params(), make_state(1).params)
        plain = {'params': {'w': jax.device_put(jnp.ones(3), jax.devices()[1])}}
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.save(2, plain, {})
            assert same_bits(checkpoints.restore(abstract(plain))[1], plain)


def test_changing_meta_after_save_does_not_change_the_step(tmp_path):
    meta = {'positions': [1]}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), meta)
        meta['positions'].append(2)
    assert Reader(tmp_path).meta == {'positions': [1]}


@pytest.mark.parametrize('name', ['lr=[1e-3]', 'a*b', 'a?b', 'a\\b', 'x]'])
def test_folder_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    folder = tmp_path / name / 'checkpoints'
    for open_folder in (lambda: Checkpoints(folder, 1), lambda: Reader(folder)):
        with pytest.raises(UserError, match=r'/checkpoints: must not contain any of \* \? '):
            open_folder()


def test_reading_without_a_checkpoint_names_the_folder(tmp_path):
    with pytest.raises(UserError, match='nothing'):
        Reader(tmp_path / 'nothing')


def test_another_shape_type_or_structure_is_a_user_error(tmp_path):
    save_steps(tmp_path, 1)
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
                Reader(tmp_path).read_params(params)
        assert checkpoints.steps() == [1]
        assert same_bits(checkpoints.restore(abstract(state))[1], state)


def test_best_step_is_kept_until_the_next_best_one_is_complete(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path, keep=1) as saved:
        for step in (1, 2, 3, 4):
            saved.save(step, state, META, is_best=step in (1, 3))
            assert step == 1 or saved.steps()[0] == (1 if step < 4 else 3)
    assert saved.steps() == [3, 4]
    assert Reader(tmp_path, 3).meta == META
    with pytest.raises(UserError, match='no step 1 in this folder'):
        Reader(tmp_path, 1)


def test_only_the_newest_steps_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['4', '5']
    with pytest.raises(ValueError, match='keep'):
        Checkpoints(tmp_path, keep=0)


def test_an_existing_step_is_not_overwritten(tmp_path):
    save_steps(tmp_path, 1)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(1, make_state(2), {})
        assert same_bits(checkpoints.restore(abstract(make_state(0)))[1], make_state(1))


def test_donation_right_after_save_does_not_change_the_step(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    ruin = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    saves_in_progress = 0
    for place in (None, NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))):
        values = {str(i): jax.random.normal(jax.random.key(i), (512, 512)) for i in range(4)}
        before = {name: np.array(value, copy=True) for name, value in values.items()}
        state = {'params': jax.device_put(values, place) if place else values}
        del values
        wanted = abstract(state)
        ruin(
            jax.tree.map(jnp.zeros_like, state)
        )  # compiles, so that the next calls overlap with the save
        folder = tmp_path / str(place and place.spec)
        with Checkpoints(folder, keep=9) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state, META)
                saves_in_progress += not (folder / str(step)).exists()
                for _ in range(5):
                    state = ruin(state)
                jax.block_until_ready(state)
                _, restored, _ = checkpoints.restore(wanted)
                for name, value in restored['params'].items():
                    assert np.array_equal(value, before[name])
                before = jax.tree.map(lambda x: np.array(x, copy=True), state['params'])
    assert saves_in_progress  # save returned while a step was still being written


KILLED_SAVE = """
import os, pathlib, signal, sys
import jax.numpy as jnp, jax
from lightpaff_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=9)
checkpoints.save(1, {'params': {'w': jnp.ones(3)}}, {})
checkpoints.close()
checkpoints.save(2, {'params': {'w': jax.random.normal(jax.random.key(0), (4096, 2048))}}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_save_is_ignored_and_deleted(tmp_path):
    result = subprocess.run([sys.executable, '-c', KILLED_SAVE, tmp_path], capture_output=True)
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


def test_a_save_that_cannot_start_fails_at_once(tmp_path):
    (tmp_path / 'file').write_text('')
    checkpoints = Checkpoints(tmp_path / 'file', keep=1)
    with pytest.raises((NotSaved, OSError), match='file'):
        checkpoints.save(1, make_state(1), {})
    checkpoints.close()


def test_a_failed_save_raises_at_close_but_hides_no_other_error(tmp_path, caplog, monkeypatch):
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


def test_meta_that_is_not_json_fails_at_once(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, make_state(1), {'path': tmp_path})
        assert checkpoints.steps() == []


SAVE_AND_RESTORE = """
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


def test_a_program_that_saves_and_restores_prints_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, '-W', 'error', '-c', SAVE_AND_RESTORE, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
