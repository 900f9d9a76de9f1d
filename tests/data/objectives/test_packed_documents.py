"""Claims about rows of several whole documents: each is as if it were alone."""

import jax
import numpy as np
import pytest
from helpers import corpus

from lightpaff_jax import config, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import objectives
from lightpaff_jax.data.objectives import collate
from lightpaff_jax.data.records import PADDING, Record

LENGTH = 24
ALL = pytest.mark.parametrize('name', ['clm', 'mlm', 'mass'])
FAMILIES = {'clm': 'gpt2', 'mlm': 'bert', 'mass': 'mass'}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return corpus.wordpiece_tokenizer(tmp_path_factory.mktemp('wordpiece'))


def configured(name, packing='best_fit'):
    c = config.default()
    c.objective, c.data.length, c.data.packing = name, LENGTH, packing
    c.student.update(
        {'family': FAMILIES[name], 'width': 32, 'vocab_size': 128, 'positions': LENGTH}
    )
    c.student.decoder_layers = 2 if name == 'mass' else 0
    return c


def packed(*documents):
    return Record(
        np.concatenate(documents).astype(np.int32), np.array([len(d) for d in documents], np.int32)
    )


def drawn(tokenizer, *sizes, seed=0):
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))
    generator = np.random.default_rng(seed)
    return [generator.choice(ordinary, n).astype(np.int32) for n in sizes]


def arrays(c, tokenizer, records):
    keys = [(0, 0, i) for i in range(len(records))]
    return objectives.OBJECTIVES[c.objective].arrays(c, tokenizer, records, keys)


def test_clm_of_documents_by_hand(tokenizer):
    c = configured('clm')
    c.data.length = 8
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    found = arrays(c, tokenizer, [packed([eos, 7, 8, eos], [eos, 9, 10, 11, eos])])
    assert {k: v[0].tolist() for k, v in found.items()} == {
        'tokens': [eos, 7, 8, eos, 9, 10, 11, pad],
        'labels': [7, 8, eos, 9, 10, 11, eos, 0],
        'weights': [1, 1, 1, 1, 1, 1, 1, 0],
        'segments': [1, 1, 1, 2, 2, 2, 2, 0],
        'position_ids': [0, 1, 2, 0, 1, 2, 3, 0],
    }


def test_mlm_of_documents_has_special_tokens_around_each(tokenizer):
    c = configured('mlm')
    a, b = drawn(tokenizer, 6, 9)
    found = {k: v[0] for k, v in arrays(c, tokenizer, [packed(a, b)]).items()}
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    original = found['tokens'].copy()
    real = found['weights'] > 0
    original[found['positions'][real]] = found['labels'][real]
    assert original.tolist() == [cls, *a, sep, cls, *b, sep, *[pad] * 5]
    assert found['segments'].tolist() == [1] * 8 + [2] * 11 + [0] * 5
    assert found['position_ids'].tolist() == [*range(8), *range(11), *[0] * 5]
    assert real.sum() == round(0.15 * 15)


@pytest.mark.parametrize('sizes', [(5, 9), (1, 1, 1, 1), (22,), (3, 18)])
def test_each_document_of_mass_has_a_fragment_of_its_own(tokenizer, sizes):
    c = configured('mass')
    originals = drawn(tokenizer, *sizes)
    found = {k: v[0] for k, v in arrays(c, tokenizer, [packed(*originals)]).items()}
    real = found['weights'] > 0
    assert set(found['segments'][real]) == set(range(1, len(sizes) + 1))
    assert not found['segments'][~real].any()
    for k, ids in enumerate(originals, 1):
        at = found['position_ids'][found['segments'] == k]
        assert len(at) == max(1, round(0.5 * len(ids)))
        assert at.tolist() == list(range(at[0], at[0] + len(at)))
        assert found['labels'][found['segments'] == k].tolist() == ids[at].tolist()
        before = [tokenizer.eos_id if p == 0 else ids[p - 1] for p in at]
        assert found['tokens'][found['segments'] == k].tolist() == before
        source = found['source'][found['source_segments'] == k]
        kept = np.setdiff1d(np.arange(len(ids)), at)
        assert source[kept].tolist() == ids[kept].tolist()
        assert source[-1] == tokenizer.eos_id
    assert (found['source_segments'] > 0).sum() == sum(sizes) + len(sizes)


def test_fragments_of_many_short_documents_stay_within_the_room(tokenizer):
    c = configured('mass')
    c.data.span_rate = 0.3
    found = arrays(c, tokenizer, [packed(*drawn(tokenizer, *[1] * 12))])
    predicted = objectives.OBJECTIVES['mass'].shape(c).predicted
    assert predicted == 7
    assert found['weights'].tolist() == [[1] * predicted]
    assert found['segments'].tolist() == [[1, 2, 3, 4, 5, 6, 7]]


@ALL
def test_padding_of_a_batch_has_no_weight(name, tokenizer):
    found = arrays(configured(name), tokenizer, [packed(*drawn(tokenizer, 4, 5)), PADDING])
    assert found['weights'][0].any()
    assert not found['weights'][1].any()
    assert all(np.isfinite(v).all() for v in found.values())


@ALL
def test_a_single_document_is_masked_as_a_block_of_it_is(name, tokenizer):
    (ids,) = drawn(tokenizer, 15)
    if name == 'clm':
        ids = np.array([tokenizer.eos_id, *ids, tokenizer.eos_id], np.int32)
    whole, block = arrays(configured(name), tokenizer, [packed(ids)]), Record(ids)
    alone = arrays(configured(name, 'contiguous'), tokenizer, [block])
    if name == 'clm':  # the last id of a block stays an input that nothing is predicted from
        alone['tokens'] = np.where(alone['weights'] > 0, alone['tokens'], tokenizer.pad_id)
    for key, value in alone.items():
        assert np.array_equal(whole[key], value), key


@ALL
def test_a_network_computes_for_each_document_what_it_does_for_it_alone(name, tokenizer):
    c = configured(name)
    model = models.build(c.student)
    params = model.init(jax.random.key(0))
    parts = drawn(tokenizer, 7, 11)
    together = arrays(c, tokenizer, [packed(*parts)])
    logits = model.logits(params, Batch(**together))[0]
    segments = together['segments'][0]
    at = segments if name != 'mlm' else segments[together['positions'][0]]
    seen = 0
    for k in (1, 2):
        mine = _only(name, together, k)
        want = model.logits(params, Batch(**mine))[0][mine['weights'][0] > 0]
        got = logits[(at == k) & (together['weights'][0] > 0)]
        seen += len(got)
        np.testing.assert_allclose(got, want, atol=1e-5)  # float32, logits of order 1
    assert seen == together['weights'].sum()


def _only(name, found, k):
    """The row's document k alone, moved to the row's start, as masked there."""
    pieces = {}
    sides = [('segments', ['tokens', 'segments', 'position_ids'])]
    if name == 'mass':
        sides.append(('source_segments', ['source', 'source_segments', 'source_position_ids']))
    if name != 'mlm':
        sides[0][1].extend(['labels', 'weights'])
    for which, keys in sides:
        here = found[which][0] == k
        for key in keys:
            row = np.zeros_like(found[key][0])
            row[: here.sum()] = found[key][0][here]
            pieces[key] = row[None]
    if name == 'mlm':
        start = int(np.argmax(found['segments'][0] == k))
        chosen = (found['segments'][0][found['positions'][0]] == k) & (found['weights'][0] > 0)
        for key in ('positions', 'labels', 'weights'):
            row = np.zeros_like(found[key][0])
            row[: chosen.sum()] = found[key][0][chosen] - (start if key == 'positions' else 0)
            pieces[key] = row[None]
    return pieces


def test_documents_of_a_record_are_what_was_packed():
    a, b = np.array([1, 2, 3], np.int32), np.array([4], np.int32)
    assert [d.tolist() for d in collate.split_documents(packed(a, b))] == [[1, 2, 3], [4]]
    assert collate.split_documents(PADDING) == []
