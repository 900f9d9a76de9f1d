"""Small networks of every family and head, and batches for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch

SIZES = {'layers': 3, 'width': 48, 'heads': 4, 'ffn': 80, 'positions': 40, 'vocab_size': 201}
"""Sizes that all differ from each other and from their padded sizes."""
MASS = {'family': 'mass', 'decoder_layers': 2}
CASES = {
    'bert lm': {'family': 'bert', 'type_vocab_size': 3},
    'bert pretraining': {'family': 'bert', 'head': 'pretraining'},
    'bert none': {'family': 'bert', 'head': 'none'},
    'bert classify': {'family': 'bert', 'head': 'classify', 'classes': 3},
    'gpt2': {'family': 'gpt2'},
    'mass all': MASS,
    'mass decoder': MASS | {'tied': 'decoder', 'activation': 'relu'},
    'mass none': MASS | {'tied': 'none', 'scale_embedding': False},
}
FAMILIES = ('bert lm', 'gpt2', 'mass all')
VOCABULARY = 201
PADDED = 256


def network(case: str, **changes):
    return config.network(**SIZES | CASES[case] | changes)


@functools.cache
def model_and_params(case: str) -> tuple[models.Model, models.Params]:
    """Returns a model and its noisy parameters."""
    model = models.build(network(case))
    return model, noisy(model)


def noisy(model: models.Model, seed: int = 0) -> models.Params:
    """Returns parameters that are never 0 or 1, except in the padding of the vocabulary.

    Scales of norms are 1 + 0.1 n, all others 0.1 n, with n standard normal.
    """
    rng = np.random.default_rng(seed)

    def noise(path, x):
        x = (0.1 * rng.normal(size=x.shape) + (path[-1].key == 'scale')).astype(np.float32)
        if x.shape[0] == PADDED:
            x[VOCABULARY:] = 0
        return jnp.asarray(x)

    return jax.tree_util.tree_map_with_path(noise, model.abstract_params)


def batch_of(ids, **more) -> Batch:
    """Returns a batch with ids [B, T] as tokens, labels and source."""
    ids = jnp.asarray(ids, jnp.int32)
    return Batch(ids, ids, jnp.ones(ids.shape), **{'source': ids} | more)


def random_ids(*shape: int, seed: int = 2):
    """Returns ids that no format uses for padding."""
    return np.random.default_rng(seed).integers(4, VOCABULARY, shape)
