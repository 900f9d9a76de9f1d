"""Claims about blocks of ids on disk."""

import json
import pathlib
import shutil

import data_fixtures
import numpy as np
import pytest

from lightpaff_jax import config
from lightpaff_jax.data import prepare, pydocs, sources, tokenizers

PREPARE = """
import data_fixtures
print(data_fixtures.prepared(data_fixtures.tiny(sys.argv[1])).path.rpartition('/')[2])
"""


@pytest.fixture(scope='module')
def c(data_cache):
    return data_fixtures.tiny(data_cache)


@pytest.fixture(scope='module')
def tokenizer(c):
    return tokenizers.load(c)


@pytest.fixture(scope='module')
def prepared(c, tokenizer):
    return prepare.prepare(c, tokenizer)


def stream(c, tokenizer, split):
    ids = [tokenizer.eos_id]
    for document in sources.SOURCES['pydocs'](c, split):
        ids += [*tokenizer.encode([document])[0], tokenizer.eos_id]
    return ids


@pytest.mark.parametrize('split', pydocs.SPLITS)
def test_every_id_after_the_first_is_predicted_exactly_once(c, tokenizer, prepared, split):
    predicted = []
    for ids, real in (prepared.blocks(split)[i] for i in range(prepared.split(split)['blocks'])):
        predicted += ids[1:real].tolist()
    assert predicted == stream(c, tokenizer, split)[1:]
    assert prepared.split(split)['tokens'] == len(predicted)


def test_a_block_begins_with_the_last_id_of_the_one_before(prepared):
    blocks = prepared.blocks('train')
    assert all(blocks[i][0][-1] == blocks[i + 1][0][0] for i in range(len(blocks) - 1))


@pytest.mark.parametrize('n', [0, 1, 2, 3, 4, 5, 8, 9, 10, 13])
def test_packing_predicts_every_id_once_whatever_the_parts(n):
    ids = list(range(100, 100 + n))
    for cut in range(n + 1):
        blocks = list(prepare.pack([ids[:cut], ids[cut:]], length=4, pad_id=0))
        assert [i for block, real in blocks for i in block[1:real].tolist()] == ids[1:]
        assert all(len(block) == 5 and not block[real:].any() for block, real in blocks)
        assert all(real == 5 for _, real in blocks[:-1])


def test_ids_of_a_large_vocabulary_survive(tmp_path):
    class Tokenizer:
        vocab_size, eos_id, pad_id = 1 << 17, 1, 0

        def encode(self, texts):
            return [[(1 << 17) - 1, 65536] for _ in texts]

    file = tmp_path / 'train.array_record'
    stats = prepare._write_split(['two words'], Tokenizer(), 3, file)
    ids, real = prepare.Blocks(file, stats, 3)[0]
    assert (ids.tolist(), real, ids.dtype) == ([1, (1 << 17) - 1, 65536, 1], 4, np.int32)


def test_words_count_the_end_of_every_line(c, prepared):
    texts = list(sources.SOURCES['pydocs'](c, 'test'))
    assert prepare.words('one two\n\n three') == 3 + 3
    assert prepared.split('test')['words'] == sum(map(prepare.words, texts))
    assert prepared.split('test')['documents'] == len(texts)


def test_equal_configs_share_a_folder_and_do_not_write_it_again(
    c, tokenizer, prepared, monkeypatch
):
    monkeypatch.setattr(prepare, '_write', None)
    other = c.copy_and_resolve_references()
    other.data.packages = tuple(reversed(c.data.packages))
    other.seed, other.data.batch_size = 7, 64
    assert prepare.prepare(other, tokenizer) == prepared


@pytest.mark.parametrize('change', ['length', 'packages', 'tokenizer'])
def test_other_contents_are_another_folder(c, tokenizer, prepared, change, tmp_path):
    other = c.copy_and_resolve_references()
    if change == 'length':
        other.data.length = 16
    if change == 'packages':
        other.data.packages = ('chex',)
    if change == 'tokenizer':
        tokenizers.train(['some text that is short'], 300, tmp_path / 'model')
        tokenizer = tokenizers.read(str(tmp_path / 'model'))
    found = prepare.prepare(other, tokenizer)
    assert found.path != prepared.path
    assert found.hash != prepared.hash


def test_two_builds_are_byte_identical(tmp_path):
    builds = [data_fixtures.small_process(PREPARE, tmp_path / n, n) for n in ('1', '2')]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    first, second = [
        {
            str(p.relative_to(tmp_path / n)): p.read_bytes()
            for kind in ('prepared', 'tokenizers')
            for p in (tmp_path / n / kind).rglob('*')
            if p.is_file()
        }
        for n in ('1', '2')
    ]
    assert first == second
    assert len(first) == 1 + len(pydocs.SPLITS) + 1


def test_two_processes_may_prepare_in_one_cache(tmp_path):
    builds = [data_fixtures.small_process(PREPARE, tmp_path) for _ in range(2)]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert [p.name for p in (tmp_path / 'prepared').iterdir()] == [one[0].strip()]


def test_a_prepared_folder_may_be_moved_and_given_by_its_path(c, tokenizer, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / 'copy')
    given = c.copy_and_resolve_references()
    given.data.source, given.data.path = 'prepared', str(tmp_path / 'copy')
    found = prepare.prepare(given, tokenizer)
    assert found.hash == prepared.hash
    assert (found.blocks('test')[0][0] == prepared.blocks('test')[0][0]).all()


def test_a_prepared_folder_that_does_not_fit_is_a_user_error(c, tokenizer, prepared, tmp_path):
    tokenizers.train(['some text that is short'], 300, tmp_path / 'model')
    other = tokenizers.read(str(tmp_path / 'model'))
    given = c.copy_and_resolve_references()
    given.data.source = 'prepared'
    for path in ('', str(tmp_path / 'absent')):
        given.data.path = path
        with pytest.raises(config.UserError, match=r'data\.path = .*must be a folder'):
            prepare.prepare(given, tokenizer)
    given.data.path = str(tmp_path)
    with pytest.raises(config.UserError, match=r'has no manifest\.json'):
        prepare.prepare(given, tokenizer)
    given.data.path = prepared.path
    with pytest.raises(config.UserError, match=f'tokenizer {tokenizer.hash}, .*{other.hash}'):
        prepare.prepare(given, other)
    given.data.length = 16
    with pytest.raises(config.UserError, match=r'data\.length = 16: must equal the length 32'):
        prepare.prepare(given, tokenizer)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"format": 0}'])
def test_another_manifest_is_a_user_error(c, tokenizer, tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    given = c.copy_and_resolve_references()
    given.data.source, given.data.path = 'prepared', str(tmp_path)
    with pytest.raises(config.UserError, match=r'manifest\.json'):
        prepare.prepare(given, tokenizer)


def test_a_damaged_folder_is_a_user_error(prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / 'copy')
    manifest = json.loads((tmp_path / 'copy' / 'manifest.json').read_text())
    damaged = prepare.Prepared(str(tmp_path / 'copy'), manifest)
    manifest['splits']['train']['blocks'] += 1
    with pytest.raises(config.UserError, match='blocks'):
        damaged.blocks('train')
    pathlib.Path(damaged.path, 'test.array_record').unlink()
    with pytest.raises(config.UserError, match='no such file'):
        damaged.blocks('test')


def test_unknown_split_is_an_error_that_offers_the_nearest(prepared):
    with pytest.raises(config.UserError, match='did you mean validation'):
        prepared.split('valid')


def test_no_document_is_an_empty_corpus(c, tokenizer, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, 'pydocs', lambda c, split: iter(()))
    monkeypatch.setitem(sources.IDENTITIES, 'pydocs', lambda c: {})
    with pytest.raises(config.UserError, match='empty corpus'):
        prepare.prepare(c, tokenizer)
