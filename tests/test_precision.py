"""Losses in bfloat16 and float32 over a short run of each objective."""

import json

import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax.train import train

pytestmark = pytest.mark.usefixtures('full_compilation')

NETWORKS = {
    'clm': {'family': 'gpt2'},
    'mlm': {'family': 'bert'},
    'classify': {'family': 'bert', 'head': 'classify', 'classes': 2},
    'mass': {'family': 'mass', 'decoder_layers': 2},
    'seq2seq': {'family': 'mass', 'decoder_layers': 2},
}
VIEWS = {'classify': 'pairs', 'seq2seq': 'summary'}


def losses(cache, workdir, objective, dtype):
    c = corpus.tiny_config(cache)
    c.workdir, c.objective, c.train.compute_dtype = str(workdir), objective, dtype
    c.student.update({'layers': 2, 'width': 64, 'heads': 4, 'ffn': 256, **NETWORKS[objective]})
    c.data.packages = ('etils', 'optax')
    c.data.view = VIEWS.get(objective, 'text')
    c.data.target_length = 16 * (objective == 'seq2seq')
    c.mesh.data, c.train.grad_accum_steps, c.data.batch_size = 1, 1, 16
    c.eval.batches = 1
    c.train.update({'updates': 50, 'save_every': 50, 'log_every': 1})
    train(c)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return np.array([line['loss'] for line in lines if line['kind'] == 'train'])


@pytest.mark.slow
@pytest.mark.parametrize('objective', NETWORKS)
def test_bfloat16_loss_is_within_2_percent_of_float32(data_cache, tmp_path, objective):
    float32_losses = losses(data_cache, tmp_path / 'float32', objective, 'float32')
    bfloat16_losses = losses(data_cache, tmp_path / 'bfloat16', objective, 'bfloat16')
    assert len(float32_losses) == len(bfloat16_losses) == 50
    assert np.any(bfloat16_losses != float32_losses)
    largest = float(np.abs(bfloat16_losses / float32_losses - 1).max())
    print(
        f'{objective}: at most {largest:.2%} apart, loss {float32_losses[0]:.3f} to {float32_losses[-1]:.3f}'
    )
    assert largest < 0.02
