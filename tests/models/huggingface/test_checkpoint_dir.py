"""Folders of safetensors: shards, half precision, refused files, failed writes."""

import json
import math
import shutil

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from helpers.folders import INDEX, WHOLE, read, refusal, rewrite, write_folder
from helpers.networks import FAMILIES

from lightpaff_jax.models.huggingface import checkpoint_dir


@pytest.mark.parametrize('case', FAMILIES)
def test_shards_with_an_index_equal_one_file(case, tmp_path):
    _, params = write_folder(tmp_path, case, shard_bytes=50_000)
    sizes = [file.stat().st_size for file in tmp_path.glob('model-*.safetensors')]
    assert len(sizes) > 3
    assert max(sizes) < 60_000  # the token embedding, and the header of a shard
    assert not (tmp_path / WHOLE).exists()
    chex.assert_trees_all_equal(read(tmp_path), params)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(dtype, tmp_path):
    _, params = write_folder(tmp_path, 'mass none')
    rewrite(tmp_path, lambda tensors: {name: x.astype(dtype) for name, x in tensors.items()})
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    chex.assert_trees_all_equal(read(tmp_path), expected)


@pytest.mark.parametrize(
    'name', ['pytorch_model.bin', 'model.pt', 'x.ckpt', 'tf_model.h5', 'flax_model.msgpack']
)
def test_other_formats_are_refused_with_a_conversion(name, tmp_path):
    write_folder(tmp_path, 'gpt2')
    (tmp_path / WHOLE).rename(tmp_path / name)
    message = refusal(tmp_path)
    assert message.startswith(f'has {name} but no model.safetensors: pickles and other formats')
    assert 'save_pretrained(folder, safe_serialization=True)' in message


def test_folder_without_weights_is_refused(tmp_path):
    write_folder(tmp_path, 'gpt2')
    (tmp_path / WHOLE).unlink()
    assert refusal(tmp_path) == f'has neither {WHOLE} nor {INDEX}'


@pytest.mark.parametrize('size', [0, 5, 100, 100_000])
def test_truncated_safetensors_is_refused(size, tmp_path):
    write_folder(tmp_path, 'gpt2')
    (tmp_path / WHOLE).write_bytes((tmp_path / WHOLE).read_bytes()[:size])
    assert refusal(tmp_path).startswith(f'{WHOLE} is not valid: ')


def test_file_of_another_format_is_refused(tmp_path):
    write_folder(tmp_path, 'gpt2')
    (tmp_path / WHOLE).write_bytes(b'PK\x03\x04' * 1000)
    assert refusal(tmp_path).startswith(f'{WHOLE} is not valid: ')


def test_shards_that_differ_from_their_index_are_refused(tmp_path):
    write_folder(tmp_path, 'gpt2', shard_bytes=50_000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted({*index['weight_map'].values()})
    name = next(key for key, file in index['weight_map'].items() if file == files[0])

    def with_map(**changes):
        changed = index | {'weight_map': index['weight_map'] | changes}
        (tmp_path / INDEX).write_text(json.dumps(changed))
        return refusal(tmp_path)

    wrong = with_map(**{name: files[1]})
    assert wrong == f'{files[0]} does not fit {INDEX}: + {name}'
    assert with_map(other=files[0]) == f'{files[0]} does not fit {INDEX}: - other'
    assert with_map(other='../x') == f'../x of {INDEX} does not exist'
    (tmp_path / INDEX).write_text('{"weight_map": []}')
    assert refusal(tmp_path) == f'{INDEX}: weight_map = []: must be an object'
    (tmp_path / INDEX).write_text(json.dumps(index))
    shutil.move(tmp_path / files[2], tmp_path / 'elsewhere')
    assert refusal(tmp_path) == f'{files[2]} of {INDEX} does not exist'


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_tensor_that_is_not_finite_is_refused(value, dtype, tmp_path):
    write_folder(tmp_path, 'gpt2')

    def spoil(tensors):
        tensors = {name: x.astype(dtype) for name, x in tensors.items()}
        tensors['transformer.h.1.mlp.c_fc.weight'][2, 3] = value
        return tensors

    rewrite(tmp_path, spoil)
    message = 'transformer.h.1.mlp.c_fc.weight must hold finite numbers only'
    assert refusal(tmp_path) == message


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'config.json: cannot be read: '),
        ('{"architectures": ["GPT2', 'config.json: must be JSON: '),
        ('[]', 'config.json: must be an object'),
        ('{}', 'config.json has neither architectures nor a known model_type: add "architectures"'),
    ],
)
def test_invalid_config_json_is_refused(text, message, tmp_path):
    write_folder(tmp_path, 'gpt2')
    (tmp_path / 'config.json').unlink()
    if text is not None:
        (tmp_path / 'config.json').write_text(text)
    assert refusal(tmp_path).startswith(message)


def test_rewriting_a_folder_removes_old_weights_only(tmp_path):
    write_folder(tmp_path, 'gpt2', shard_bytes=50_000)
    (tmp_path / 'tokenizer.json').write_text('ours')
    _, params = write_folder(tmp_path, 'mass all')
    assert {file.name for file in tmp_path.iterdir()} == {'config.json', WHOLE, 'tokenizer.json'}
    chex.assert_trees_all_equal(read(tmp_path), params)


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    _, params = write_folder(tmp_path, 'gpt2')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint_dir, 'save_file', full)
    with pytest.raises(OSError, match='No space left'):
        write_folder(tmp_path, 'mass all')
    assert {file.name for file in tmp_path.iterdir()} == {'config.json', WHOLE}
    chex.assert_trees_all_equal(read(tmp_path), params)


def test_interrupted_replacement_is_refused_by_readers(tmp_path, monkeypatch):
    write_folder(tmp_path, 'gpt2')
    monkeypatch.setattr(checkpoint_dir.pathlib.Path, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path, 'gpt2')
    assert refusal(tmp_path).startswith('config.json: cannot be read: ')
