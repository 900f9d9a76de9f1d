"""Kernels of attention: equality with each other, and unmet requirements."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from lightpaff_jax import config, models, sharding
from lightpaff_jax.batch import Batch, Shape
from lightpaff_jax.models import attention

CLOSE = 1e-5  # rounding of sums of some hundred float32 terms


@pytest.fixture
def interpret_splash(monkeypatch):
    """Runs the TPU kernel in interpret mode."""
    make = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, 'make_splash_mha', make)


def segments(*lengths, size=128):
    """Returns segments 1, 2, ... of these lengths, then padding."""
    return np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, size - sum(lengths)])


SEGMENTS = np.stack([segments(50, 40), segments(128)]).astype(np.int32)


def inputs(S=128):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((2, 128, 2, 64), (2, S, 2, 64), (2, S, 2, 64))
    return [jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)]


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_attention_with_rate_zero_equals_the_library(causal, masked):
    mask = attention.self_mask(jnp.asarray(SEGMENTS) if masked else None, causal)
    actual = attention.attention(*inputs(), mask, jax.random.key(1), 1e-9)
    np.testing.assert_allclose(actual, attention.attention(*inputs(), mask), atol=CLOSE)


@pytest.mark.usefixtures('interpret_splash')
@pytest.mark.parametrize(
    ('causal', 'S', 'segment_ids'),
    [
        (True, 128, None),
        (False, 256, None),
        (True, 128, (SEGMENTS, SEGMENTS)),
        (False, 256, (SEGMENTS, np.stack([segments(200, 20, size=256), segments(9, size=256)]))),
    ],
)
def test_splash_equals_xla_in_value_and_gradient(causal, S, segment_ids):
    queries, keys = (None, None) if segment_ids is None else map(jnp.asarray, segment_ids)
    real = 1.0 if queries is None else (queries > 0)[:, :, None, None]

    def loss(kernel, *qkv):
        return jnp.sum(
            real
            * attention.attention(*qkv, attention.AttentionMask(causal, queries, keys, kernel)) ** 3
        )

    def both(kernel):
        return jax.value_and_grad(lambda qkv: loss(kernel, *qkv))(inputs(S))

    expected = both('xla')
    actual = both('splash')
    largest = max(float(jnp.abs(x).max()) for x in expected[1])
    np.testing.assert_allclose(actual[0], expected[0], rtol=CLOSE)
    chex.assert_trees_all_close(actual[1], expected[1], rtol=0, atol=CLOSE * largest)


FAMILIES = {'gpt2': {}, 'bert': {'family': 'bert'}, 'mass': {'family': 'mass', 'decoder_layers': 1}}


@pytest.mark.usefixtures('interpret_splash')
@pytest.mark.parametrize('family', ['gpt2', 'bert', pytest.param('mass', marks=pytest.mark.slow)])
def test_splash_gradient_on_a_mesh_equals_xla(family):
    c = config.default()
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 2
    net = config.network(layers=1, width=128, heads=2, ffn=64, vocab_size=128)
    net.update(FAMILIES[family])
    ids = np.random.default_rng(0).integers(0, 128, (2, 128)).astype(np.int32)
    batch = Batch(ids, ids, (SEGMENTS > 0).astype(np.float32), segments=SEGMENTS)
    if family == 'mass':
        batch = Batch(ids, ids, batch.weights, source=ids[::-1].copy(), source_segments=SEGMENTS)
    mesh = sharding.make_mesh(c, jax.devices()[:4])

    def gradient(kernel):
        model = models.build(net, attention=kernel)
        params = model.init(jax.random.key(0))
        params = jax.device_put(params, sharding.param_shardings(mesh, params))

        def loss(params):
            return jnp.sum(batch.weights[..., None] * model.features(params, batch) ** 3)

        with jax.set_mesh(mesh):
            return jax.device_get(jax.jit(jax.grad(loss))(params))

    expected = gradient('xla')
    actual = gradient('splash')
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=CLOSE * largest)


@pytest.mark.parametrize(
    ('kernel', 'platform', 'changes', 'requirement'),
    [
        ('xla', 'cpu', {'length': 7, 'dropout': 0.1}, ''),
        ('splash', 'tpu', {}, ''),
        ('splash', 'gpu', {}, "requires platform 'tpu', this is 'gpu'"),
        ('splash', 'tpu', {'dropout': 0.1}, 'requires dropout 0, this is 0.1'),
        ('splash', 'tpu', {'heads': 4}, 'requires a head width divisible by 64, this is 32'),
        ('splash', 'tpu', {'length': 48}, 'requires lengths divisible by 128, one is 48'),
        (
            'splash',
            'tpu',
            {'tensor': 4},
            'requires heads divisible by config.mesh.tensor = 4, these are 2',
        ),
        ('cudnn', 'gpu', {'length': 6}, ''),
        ('cudnn', 'gpu', {'length': 7}, 'requires lengths divisible by 2, one is 7'),
        ('cudnn', 'cpu', {}, "requires platform 'gpu', this is 'cpu'"),
        (
            'cudnn',
            'gpu',
            {'dtype': 'float32'},
            "requires compute_dtype 'bfloat16', this is 'float32'",
        ),
        ('cudnn', 'gpu', {'width': 24}, 'requires a head width of 8, 16, ... 128, this is 12'),
    ],
)
def test_first_unmet_requirement_of_a_kernel_is_returned(kernel, platform, changes, requirement):
    c = {'width': 128, 'heads': 2, 'length': 128, 'dtype': 'bfloat16', 'tensor': 2, 'dropout': 0.0}
    c |= changes
    net = config.network(width=c['width'], heads=c['heads'])
    shapes = [Shape(128, 1, 128), Shape(128, 1, c['length'])]
    work = attention.Workload(platform, net, shapes, c['dtype'], c['tensor'], c['dropout'])
    assert attention.unmet_requirement(kernel, work) == requirement


@pytest.mark.parametrize(
    ('platform', 'length', 'kernel'),
    [('cpu', 128, 'xla'), ('tpu', 128, 'splash'), ('tpu', 100, 'xla'), ('gpu', 100, 'cudnn')],
)
def test_auto_chooses_the_first_usable_kernel(platform, length, kernel):
    net, shape = config.network(width=128, heads=2), Shape(length, length)
    work = attention.Workload(platform, net, [shape], 'bfloat16', 1)
    assert attention.choose_kernel(work) == kernel
