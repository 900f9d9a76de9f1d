"""The step compiled by the TPU compiler, on any Linux machine: `pip install libtpu` brings it."""

import os

import jax
import numpy as np
import pytest
from test_distill_step import collectives

from lightpaff_jax import config, distill_step, models, sharding
from lightpaff_jax.batch import Batch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('full_compilation')]


@pytest.fixture(scope='module')
def v5e():
    """8 devices of a TPU v5e slice, described and not there."""
    pytest.importorskip('libtpu')
    from jax.experimental import topologies

    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    described = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
    return list(described.devices)


@pytest.mark.parametrize('micro_steps', [1, 2])
def test_on_v5e_the_gradient_is_reduced_outside_of_every_loop(v5e, micro_steps):
    c = config.default()
    c.train.micro_steps = micro_steps
    c.train.compute_dtype = 'bfloat16'
    c.student.update({'layers': 2, 'width': 128, 'heads': 2, 'ffn': 512, 'vocab_size': 8192})
    shape = config.network(layers=3, width=256, heads=4, ffn=1024, vocab_size=8192)
    c.loss.chunk = 256  # several chunks on each device
    student = models.build(c.student, compute_dtype='bfloat16')
    teacher = models.build(shape, compute_dtype='bfloat16')
    mesh = sharding.make_mesh(c, v5e)

    def placed(tree, places):
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
        )

    def params(model):
        return placed(model.abstract, sharding.of_params(mesh, model.abstract))

    rows = (micro_steps, 64 // micro_steps, 128)
    batch = Batch(*(np.zeros(rows, kind) for kind in (np.int32, np.int32, np.float32)))
    place = sharding.of_batch(mesh, micro=True)
    batch = placed(batch, jax.tree.map(lambda _: place, batch))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    gradient = jax.jit(distill_step.make_gradient(c, mesh, student, teacher))
    with jax.set_mesh(mesh):
        text = gradient.lower(params(student), params(teacher), batch, key).compile().as_text()
    found = collectives(text)
    everywhere = found.pop('')
    assert everywhere
    assert set(everywhere) <= {'all-reduce', 'reduce-scatter', 'all-gather'}
    assert len(found) >= 2  # the loops over layers and over chunks, at least
    assert all(inside == [] for inside in found.values()), found
