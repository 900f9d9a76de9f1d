"""The training step, compiled by the TPU compiler of the extra `tpu` on any Linux machine."""

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
    """The 8 described devices of a TPU v5e slice; none is attached."""
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
def test_slice_is_described_without_output(topology):
    code = f'from lightpaff_jax.runtime import chips; print(len(chips.devices({topology!r})))'
    process = subprocess.run(
        [sys.executable, '-c', code], env=environment(), capture_output=True, text=True, check=True
    )
    assert (process.stdout, process.stderr) == ('16\n' if topology == 'v5e:4x4' else '4\n', '')


@pytest.mark.parametrize('grad_accum_steps', [1, 2])
@pytest.mark.parametrize('attention', ['xla', 'splash'])
def test_v5e_gradient_is_reduced_outside_all_loops(v5e, grad_accum_steps, attention):
    c = small(grad_accum_steps=grad_accum_steps, attention=attention)
    text = compilation.compile_step(c, sharding.make_mesh(c, v5e), c.teacher).text
    collectives = hlo.collectives(text)
    assert collectives
    assert {collective.kind for collective in collectives} <= {
        'all-reduce',
        'reduce-scatter',
        'all-gather',
    }
    assert hlo.loops(text) >= 2  # at least over layers and over chunks
    assert [collective for collective in collectives if collective.loops] == []
    cycles = hlo.cycles(text, distill_step.SCOPES)
    assert all(cycles[scope] > 0.01 * sum(cycles.values()) for scope in distill_step.SCOPES)


def test_v5e_sharded_teacher_is_gathered_layer_by_layer(v5e):
    c = small()
    c.mesh.fsdp, c.mesh.student = 8, ()
    c.teacher.update({'layers': 6, 'width': 1024, 'heads': 16, 'ffn': 4096})
    mesh = sharding.make_mesh(c, v5e)
    sizes = [
        collective.bytes
        for collective in hlo.collectives(compilation.compile_step(c, mesh, c.teacher).text)
        if collective.kind in ('all-gather', 'collective-permute') and collective.loops
    ]
    assert sizes
    layer_bytes = 2 * (4 * 1024**2 + 2 * 1024 * 4096)  # of the matrices of a layer in bfloat16
    assert max(sizes) <= layer_bytes


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_v5e_loss_of_16384_positions_takes_at_most_256_mib(v5e, dtype):
    def array(shape, dtype=dtype):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.sharding.SingleDeviceSharding(v5e[0])
        )

    def predictor(width):
        head = losses.Head(array((50304, width)), array((50304,)))
        return losses.Predictor(array((16, 1024, width)), head)

    def loss(*arguments):
        return losses.distillation_loss(*arguments)['loss']

    labels, weights = array((16, 1024), jnp.int32), array((16, 1024), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss)).lower(
        predictor(768), predictor(1024), labels, weights
    )
    memory = program.compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes <= 0.25 * GIB


def test_devices_that_form_no_mesh_are_refused(v5e):
    c = small()
    c.mesh.data = 3
    with pytest.raises(
        UserError, match=r'config.mesh = \(data 3.*3 devices of a slice do not form'
    ):
        sharding.make_mesh(c, v5e)


def test_step_beyond_the_memory_reports_its_bytes(v5e):
    c = small(remat='none')
    c.data.batch_size, c.student.ffn = 1 << 17, 8192
    program = compilation.compile_step(c, sharding.make_mesh(c, v5e), c.teacher)
    assert program.text == ''
    assert program.total > 15.75 * GIB


def test_mesh_with_fewer_data_shards_than_hosts_is_refused(v5e):
    c = small()
    c.mesh.tensor = 8
    with pytest.raises(UserError, match='a multiple of the number of processes = 4'):
        preflight.preflight(c, 'v5e:4x4', largest=False)
