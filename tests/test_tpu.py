"""The step compiled by the TPU compiler, on any Linux machine: the extra `tpu` brings it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers.processes import environment

from lightpaff_jax import config, distill_step, losses, sharding
from lightpaff_jax.errors import UserError
from lightpaff_jax.preflight import __main__ as preflight, compilation, hlo
from lightpaff_jax.runtime import chips
from lightpaff_jax.runtime.chips import GIB

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('full_compilation')]


@pytest.fixture(scope='module')
def v5e():
    """8 devices of a TPU v5e slice, described and not there."""
    pytest.importorskip('libtpu')
    return chips.devices('v5e:2x4')


def small(**train):
    c = config.default()
    c.train.compute_dtype = 'bfloat16'
    c.train.update(train)
    c.student.update({'layers': 2, 'width': 128, 'heads': 2, 'ffn': 512, 'vocab_size': 8192})
    c.teacher.update({'layers': 3, 'width': 256, 'heads': 4, 'ffn': 1024, 'vocab_size': 8192})
    c.data.batch_size = 64
    c.loss.chunk = 256  # several chunks on each device
    return c


@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:4x4', 'v5p:2x2x1', 'v6e:2x2'])
@pytest.mark.usefixtures('v5e')
def test_a_slice_is_described_in_silence(topology):
    code = f'from lightpaff_jax.runtime import chips; print(len(chips.devices({topology!r})))'
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ('16\n' if topology == 'v5e:4x4' else '4\n', '')


@pytest.mark.parametrize('grad_accum_steps', [1, 2])
@pytest.mark.parametrize('attention', ['xla', 'splash'])
def test_on_v5e_the_gradient_is_reduced_outside_of_every_loop(v5e, grad_accum_steps, attention):
    c = small(grad_accum_steps=grad_accum_steps, attention=attention)
    text = compilation.compile_step(c, sharding.make_mesh(c, v5e), c.teacher).text
    found = hlo.collectives(text)
    assert found
    assert {one.kind for one in found} <= {'all-reduce', 'reduce-scatter', 'all-gather'}
    assert hlo.loops(text) >= 2  # over layers and over chunks, at least
    assert [one for one in found if one.loops] == []
    cycles = hlo.cycles(text, distill_step.SCOPES)
    assert all(cycles[scope] > 0.01 * sum(cycles.values()) for scope in distill_step.SCOPES)


def test_on_v5e_a_teacher_that_is_shared_is_gathered_a_layer_at_a_time(v5e):
    c = small()
    c.mesh.fsdp, c.mesh.student = 8, ()
    c.teacher.update({'layers': 6, 'width': 1024, 'heads': 16, 'ffn': 4096})
    mesh = sharding.make_mesh(c, v5e)
    gathered = [
        one
        for one in hlo.collectives(compilation.compile_step(c, mesh, c.teacher).text)
        if one.kind in ('all-gather', 'collective-permute') and one.loops
    ]
    assert gathered
    layer = 2 * (4 * 1024**2 + 2 * 1024 * 4096)  # bytes of its matrices in bfloat16
    assert max(one.bytes for one in gathered) <= layer


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_on_v5e_the_loss_of_16384_positions_takes_a_quarter_of_a_gib(v5e, dtype):
    def placed(shape, dtype=dtype):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.sharding.SingleDeviceSharding(v5e[0])
        )

    def predictor(width):
        head = losses.Head(placed((50304, width)), placed((50304,)))
        return losses.Predictor(placed((16, 1024, width)), head)

    def loss(*arguments):
        return losses.distillation_loss(*arguments)['loss']

    labels, weights = placed((16, 1024), jnp.int32), placed((16, 1024), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss)).lower(
        predictor(768), predictor(1024), labels, weights
    )
    memory = program.compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes <= 0.25 * GIB


def test_devices_that_form_no_mesh_are_said_in_one_line(v5e):
    c = small()
    c.mesh.data = 3
    with pytest.raises(
        UserError, match=r'config.mesh = \(data 3.*3 devices of a slice do not form'
    ):
        sharding.make_mesh(c, v5e)


def test_a_step_that_needs_too_much_says_how_much(v5e):
    c = small(remat='none')
    c.data.batch_size, c.student.ffn = 1 << 17, 8192
    plan = compilation.compile_step(c, sharding.make_mesh(c, v5e), c.teacher)
    assert plan.text == ''
    assert plan.total > 15.75 * GIB


def test_a_mesh_whose_examples_the_hosts_of_a_slice_cannot_share_out_is_refused(v5e):
    c = small()
    c.mesh.tensor = 8
    with pytest.raises(UserError, match='a multiple of the number of processes = 4'):
        preflight.preflight(c, 'v5e:4x4', largest=False)
