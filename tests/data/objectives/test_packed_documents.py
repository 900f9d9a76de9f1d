"""Rows of several whole documents, which do not influence each other."""

import jax
import numpy as np
import pytest

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import objectives
from lightpaff_jax.data.objectives import collate
from lightpaff_jax.data.records import PADDING, Record

LENGTH = 24
ALL = pytest.mark.parametrize('name', ['clm', 'mlm', 'mass'])
FAMILIES = {'clm': 'gpt2', 'mlm': 'bert', 'mass': 'mass'}


@pytest.fixture(scope='module')
def tokenizer(vocabulary):
    return vocabulary


def configured(name, packing='best_fit'):
    c = config.default()
    c.objective, c.data.length, c.data.packing = name, LENGTH, packing
    c.student.update(
        {'family': FAMILIES[name], 'width': 32, 'vocab_size': 128, 'positions': LENGTH}
    )
    c.student.decoder_layers = 2 if name == 'mass' else 0
    return c


def pack(*documents):
    return Record(
        np.concatenate(documents).astype(np.int32), np.array([len(d) for d in documents], np.int32)
    )


def draw_documents(tokenizer, *sizes, seed=0):
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))
    generator = np.random.default_rng(seed)
    return [generator.choice(ordinary, n).astype(np.int32) for n in sizes]


def arrays(c, tokenizer, records):
    keys = [(0, 0, i) for i in range(len(records))]
    return objectives.OBJECTIVES[c.objective].arrays(c, tokenizer, records, keys)


def test_clm_document_arrays_equal_handwritten_ones(tokenizer):
    c = configured('clm')
    c.data.length = 8
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    fields = arrays(c, tokenizer, [pack([eos, 7, 8, eos], [eos, 9, 10, 11, eos])])
    assert {k: v[0].tolist() for k, v in fields.items()} == {
        'tokens': [eos, 7, 8, eos, 9, 10, 11, pad],
        'labels': [7, 8, eos, 9, 10, 11, eos, 0],
        'weights': [1, 1, 1, 1, 1, 1, 1, 0],
        'segments': [1, 1, 1, 2, 2, 2, 2, 0],
        'position_ids': [0, 1, 2, 0, 1, 2, 3, 0],
    }


def test_mlm_documents_have_their_own_special_tokens(tokenizer):
    c = configured('mlm')
    a, b = draw_documents(tokenizer, 6, 9)
    fields = {k: v[0] for k, v in arrays(c, tokenizer, [pack(a, b)]).items()}
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    original = fields['tokens'].copy()
    real = fields['weights'] > 0
    original[fields['positions'][real]] = fields['labels'][real]
    assert original.tolist() == [cls, *a, sep, cls, *b, sep, *[pad] * 5]
    assert fields['segments'].tolist() == [1] * 8 + [2] * 11 + [0] * 5
    assert fields['position_ids'].tolist() == [*range(8), *range(11), *[0] * 5]
    assert real.sum() == round(0.15 * 15)


@pytest.mark.parametrize('sizes', [(5, 9), (1, 1, 1, 1), (22,), (3, 18)])
def test_every_mass_document_has_a_span(tokenizer, sizes):
    c = configured('mass')
    originals = draw_documents(tokenizer, *sizes)
    fields = {k: v[0] for k, v in arrays(c, tokenizer, [pack(*originals)]).items()}
    real = fields['weights'] > 0
    assert set(fields['segments'][real]) == set(range(1, len(sizes) + 1))
    assert not fields['segments'][~real].any()
    for k, ids in enumerate(originals, 1):
        at = fields['position_ids'][fields['segments'] == k]
        assert len(at) == max(1, round(0.5 * len(ids)))
        assert at.tolist() == list(range(at[0], at[0] + len(at)))
        assert fields['labels'][fields['segments'] == k].tolist() == ids[at].tolist()
        before = [tokenizer.eos_id if p == 0 else ids[p - 1] for p in at]
        assert fields['tokens'][fields['segments'] == k].tolist() == before
        source = fields['source'][fields['source_segments'] == k]
        unmasked = np.setdiff1d(np.arange(len(ids)), at)
        assert source[unmasked].tolist() == ids[unmasked].tolist()
        assert source[-1] == tokenizer.eos_id
    assert (fields['source_segments'] > 0).sum() == sum(sizes) + len(sizes)


def test_spans_of_many_documents_stay_within_capacity(tokenizer):
    c = configured('mass')
    c.data.span_rate = 0.3
    fields = arrays(c, tokenizer, [pack(*draw_documents(tokenizer, *[1] * 12))])
    predicted = objectives.OBJECTIVES['mass'].shape(c).predicted
    assert predicted == 7
    assert fields['weights'].tolist() == [[1] * predicted]
    assert fields['segments'].tolist() == [[1, 2, 3, 4, 5, 6, 7]]


@ALL
def test_padding_row_of_documents_has_no_weight(name, tokenizer):
    fields = arrays(configured(name), tokenizer, [pack(*draw_documents(tokenizer, 4, 5)), PADDING])
    assert fields['weights'][0].any()
    assert not fields['weights'][1].any()
    assert all(np.isfinite(v).all() for v in fields.values())


@ALL
def test_single_document_equals_a_block(name, tokenizer):
    (ids,) = draw_documents(tokenizer, 15)
    if name == 'clm':
        ids = np.array([tokenizer.eos_id, *ids, tokenizer.eos_id], np.int32)
    whole, block = arrays(configured(name), tokenizer, [pack(ids)]), Record(ids)
    alone = arrays(configured(name, 'contiguous'), tokenizer, [block])
    if name == 'clm':  # the last id of a block is an input without a prediction
        alone['tokens'] = np.where(alone['weights'] > 0, alone['tokens'], tokenizer.pad_id)
    for key, value in alone.items():
        assert np.array_equal(whole[key], value), key


@ALL
def test_logits_of_a_document_do_not_depend_on_others(name, tokenizer):
    c = configured(name)
    model = models.build(c.student)
    params = model.init(jax.random.key(0))
    parts = draw_documents(tokenizer, 7, 11)
    together = arrays(c, tokenizer, [pack(*parts)])
    rows = [together, _only(name, together, 1), _only(name, together, 2)]
    fields = {key: np.concatenate([row[key] for row in rows]) for key in together}
    logits = jax.jit(model.logits)(params, Batch(**fields))
    segments = together['segments'][0]
    at = segments if name != 'mlm' else segments[together['positions'][0]]
    compared = 0
    for k in (1, 2):
        expected = logits[k][rows[k]['weights'][0] > 0]
        document_logits = logits[0][(at == k) & (together['weights'][0] > 0)]
        compared += len(document_logits)
        # float32, logits of order 1
        np.testing.assert_allclose(document_logits, expected, atol=1e-5)
    assert compared == together['weights'].sum()


def _only(name, fields, k):
    """Returns a row with only document k, moved to its start, with the same mask."""
    pieces = {}
    sides = [('segments', ['tokens', 'segments', 'position_ids'])]
    if name == 'mass':
        sides.append(('source_segments', ['source', 'source_segments', 'source_position_ids']))
    if name != 'mlm':
        sides[0][1].extend(['labels', 'weights'])
    for which, keys in sides:
        here = fields[which][0] == k
        for key in keys:
            row = np.zeros_like(fields[key][0])
            row[: here.sum()] = fields[key][0][here]
            pieces[key] = row[None]
    if name == 'mlm':
        start = int(np.argmax(fields['segments'][0] == k))
        chosen = (fields['segments'][0][fields['positions'][0]] == k) & (fields['weights'][0] > 0)
        for key in ('positions', 'labels', 'weights'):
            row = np.zeros_like(fields[key][0])
            row[: chosen.sum()] = fields[key][0][chosen] - (start if key == 'positions' else 0)
            pieces[key] = row[None]
    return pieces


def test_split_documents_inverts_packing():
    a, b = np.array([1, 2, 3], np.int32), np.array([4], np.int32)
    assert [d.tolist() for d in collate.split_documents(pack(a, b))] == [[1, 2, 3], [4]]
    assert collate.split_documents(PADDING) == []
