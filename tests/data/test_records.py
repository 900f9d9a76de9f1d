"""Records of ids on disk, manifests, and the state of unfinished datasets."""

import concurrent.futures
import hashlib
import json
import pathlib

import numpy as np
import pytest

from lightpaff_jax.data import records
from lightpaff_jax.data.prepared import shards
from lightpaff_jax.data.records import Record
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage


def ids(*values):
    return np.array(values, np.int32)


def random_records(kind, n, size=1 << 16, seed=0):
    """Returns n random records of a type."""
    rng = np.random.default_rng(seed)
    stored = []
    for _ in range(n):
        first = rng.integers(0, size, rng.integers(1, 9)).astype(np.int32)
        if kind == 'blocks':
            stored.append(Record(first))
        elif kind == 'packed':
            stored.append(Record(first, ids(1, len(first) - 1) if len(first) > 1 else ids(1)))
        else:
            second = rng.integers(0, size, rng.integers(0, 9)).astype(np.int32)
            stored.append(Record(first, second, int(rng.integers(0, 3))))
    return stored


_COUNTS = ('records', 'tokens', 'words', 'skipped')


def write_dataset(folder, kind, parts, size=1 << 16):
    """Writes a dataset with one split, which has a shard for each part."""
    dtype = records.id_type(size)
    writer = shards.Writer(folder, 'train', kind, dtype, np.dtype('<u2'), {})
    for part in parts:
        writer.write(part)
        writer.end_shard()
    counts = dict.fromkeys((*_COUNTS, 'documents', 'pieces', 'examples', 'pairs'), 9)
    counts |= {'records': writer.records, 'truncated': 0, 'fill': 1.0, 'labels': [0, 0]}
    content = {
        'format': records.FORMAT,
        'kind': kind,
        'dtype': dtype.str,
        'classes': 0,
        'source': 'text',
        'objective': 'clm',
        'packing': 'contiguous',
        'lengths': [8, 0],
        'vocabulary': {'hash': '0', 'size': size},
        'splits': {'train': writer.state() | counts},
    }
    storage.write_json(folder / records.MANIFEST, content)
    return records.Dataset(str(folder), records.read_manifest(folder))


def equal(a, b):
    return a.first.tolist() == b.first.tolist() and a.second.tolist() == b.second.tolist()


@pytest.mark.parametrize('kind', ['blocks', 'packed', 'examples'])
@pytest.mark.parametrize('size', [1 << 16, 1 << 17])
def test_records_are_read_as_written_from_any_shard(tmp_path, kind, size):
    originals = random_records(kind, 23, size)
    if kind == 'examples':
        originals += [Record(ids(size - 1), ids(1, 2), 7), Record(ids(), ids(3), 0), Record(ids(4))]
    stored = write_dataset(
        tmp_path, kind, [originals[:5], originals[5:6], originals[6:]], size
    ).records('train')
    assert len(stored) == len(originals)
    for record, wanted in zip(stored.read(range(len(originals))), originals, strict=True):
        assert equal(record, wanted)
        assert (record.label, record.first.dtype) == (wanted.label, np.int32)
    order = [7, 0, 22, 5, 5, 4, 6]
    assert all(equal(r, originals[i]) for r, i in zip(stored.read(order), order, strict=True))
    assert equal(stored[5], originals[5])
    assert stored.read([]) == []


@pytest.mark.parametrize('index', [-1, 9])
def test_index_out_of_range_is_an_index_error(tmp_path, index):
    stored = write_dataset(tmp_path, 'blocks', [random_records('blocks', 9)]).records('train')
    with pytest.raises(IndexError):
        stored.read([0, index])


def test_threads_can_share_records(tmp_path):
    originals = random_records('blocks', 200)
    stored = write_dataset(tmp_path, 'blocks', [originals[:70], originals[70:]]).records('train')
    orders = [np.random.default_rng(i).permutation(200).tolist() for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, got in zip(orders, pool.map(stored.read, orders), strict=True):
            assert all(equal(r, originals[i]) for r, i in zip(got, order, strict=True))


def test_lengths_count_the_ids_of_both_texts(tmp_path):
    originals = random_records('examples', 30)
    stored = (
        write_dataset(tmp_path, 'examples', [originals[:11], originals[11:]])
        .records('train')
        .lengths()
    )
    assert stored.tolist() == [[len(r.first), len(r.second)] for r in originals]
    assert stored.dtype == np.int32


def test_hash_depends_on_ids_and_not_on_shards(tmp_path):
    originals = random_records('examples', 30)
    hashes = []
    for name, end in (('a', False), ('b', True)):
        (tmp_path / name).mkdir()
        writer = shards.Writer(
            tmp_path / name, 'train', 'examples', records.id_type(1 << 16), np.dtype('<u2'), {}
        )
        for part in (originals[:11], originals[11:]):
            writer.write(part)
            if end:
                writer.end_shard()
        writer.end_shard()
        hashes.append(writer.state()['hash'])
        assert len(writer.shards) == 1 + end
    assert hashes[0] == hashes[1]
    (tmp_path / 'c').mkdir()
    other = write_dataset(
        tmp_path / 'c', 'examples', [originals[:11], [*originals[11:-1], originals[0]]]
    )
    assert other.split('train')['hash'] != hashes[0]


def test_manifest_has_size_and_sha256_of_each_shard(tmp_path):
    originals = random_records('blocks', 30)
    for shard in write_dataset(tmp_path, 'blocks', [originals[:11], originals[11:]]).split('train')[
        'shards'
    ]:
        data = (tmp_path / shard['file']).read_bytes()
        assert (shard['bytes'], shard['sha256']) == (len(data), hashlib.sha256(data).hexdigest())
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        'manifest.json',
        'train-00000.array_record',
        'train-00001.array_record',
    ]


@pytest.mark.parametrize('keep', [0, 100, 0.5, -1])
def test_truncated_shard_is_an_error_with_its_size(tmp_path, keep):
    originals = random_records('blocks', 2000)
    prepared = write_dataset(tmp_path, 'blocks', [originals[:1000], originals[1000:]])
    file = tmp_path / 'train-00001.array_record'
    data = file.read_bytes()
    cut = data[: int(keep * len(data)) if isinstance(keep, float) else keep]
    file.write_bytes(cut)
    with pytest.raises(UserError) as raised:
        prepared.records('train')
    assert str(raised.value) == (
        f'{file}: has {len(cut)} bytes, manifest.json lists {len(data)} bytes; remove {tmp_path} '
        'and prepare it again'
    )


def test_missing_shard_is_an_error(tmp_path):
    prepared = write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)])
    file = pathlib.Path(tmp_path, 'train-00000.array_record')
    file.unlink()
    with pytest.raises(UserError, match=r'00000\.array_record: no such file, .* again$'):
        prepared.records('train')


def test_flipped_bit_is_an_error(tmp_path):
    originals = random_records('blocks', 2000)
    prepared = write_dataset(tmp_path, 'blocks', [originals])
    file = tmp_path / 'train-00000.array_record'
    data = bytearray(file.read_bytes())
    at = data.find(originals[1000].first.astype('<u2').tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r'00000\.array_record: is damaged: .* again$'):
        prepared.records('train').read(range(2000))


@pytest.mark.parametrize('damage', ['missing', 'short', 'other'])
def test_damaged_lengths_are_an_error(tmp_path, damage):
    originals = random_records('examples', 30)
    prepared = write_dataset(tmp_path, 'examples', [originals])
    file = tmp_path / 'train-00000.npy'
    if damage == 'missing':
        file.unlink()
    elif damage == 'short':
        file.write_bytes(file.read_bytes()[:-7])
    else:
        np.save(file, np.zeros((29, 2), np.uint16))
    with pytest.raises(UserError, match=r'train-00000\.npy: .* prepare it again'):
        prepared.records('train').lengths()


def test_changed_lengths_are_an_error(tmp_path):
    prepared = write_dataset(tmp_path, 'examples', [random_records('examples', 30)])
    file = tmp_path / 'train-00000.npy'
    np.save(file, np.load(file) + 1)
    with pytest.raises(UserError, match=r'train-00000\.npy: was changed, .* prepare it again'):
        prepared.records('train')


@pytest.mark.parametrize('place', ['absolute', 'above', 'link'])
def test_shard_outside_of_the_folder_is_refused(tmp_path, place):
    other, folder = tmp_path / 'other', tmp_path / 'set'
    for path in (other, folder):
        path.mkdir()
        content = write_dataset(path, 'blocks', [random_records('blocks', 5)]).manifest
    shard = content['splits']['train']['shards'][0]
    secret = other / shard['file']
    if place == 'link':
        (folder / shard['file']).unlink()
        (folder / shard['file']).symlink_to(secret)
    else:
        shard['file'] = str(secret) if place == 'absolute' else f'../other/{secret.name}'
        storage.write_json(folder / records.MANIFEST, content)
    with pytest.raises(UserError, match=f'must be (a file )?in {folder}'):
        records.Dataset.open(folder).records('train')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'records': 1 << 40}, 'must be a whole number from 0 to'),
        ({'records': 1 << 30}, 'its shards have 1073741824'),
        ({'bytes': -1}, 'must be a whole number from 0 to'),
        ({'bytes': 1}, 'manifest.json lists 1 bytes'),
        ({'file': 7}, 'must be text'),
    ],
)
def test_impossible_size_in_a_manifest_is_refused(tmp_path, change, message):
    content = write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)]).manifest
    content['splits']['train']['shards'][0] |= change
    storage.write_json(tmp_path / records.MANIFEST, content)
    with pytest.raises(UserError, match=message):
        records.Dataset.open(tmp_path).records('train')


def test_more_records_than_bytes_are_refused(tmp_path):
    content = write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)]).manifest
    content['splits']['train']['shards'][0]['records'] = 1 << 30
    content['splits']['train']['records'] = 1 << 30
    storage.write_json(tmp_path / records.MANIFEST, content)
    with pytest.raises(UserError, match='cannot have the 1073741824 records'):
        records.Dataset.open(tmp_path).records('train')


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"format": 2}'])
def test_malformed_manifest_is_an_error(tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    with pytest.raises(UserError, match=r'manifest\.json') as raised:
        records.read_manifest(tmp_path)
    if 'format' in text:
        assert 'has format 2, this version reads 3: prepare the dataset again' in str(raised.value)


@pytest.mark.parametrize(
    'key', ['classes', 'dtype', 'kind', 'lengths', 'objective', 'packing', 'splits', 'vocabulary']
)
def test_manifest_without_a_key_is_an_error(tmp_path, key):
    content = dict(write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)]).manifest)
    for value in (None, 'gone'):
        content.pop(key) if value else content.update({key: None})
        (tmp_path / 'manifest.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match=r'manifest\.json: .*must (be|have)'):
            records.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ('place', 'key'),
    [('vocabulary', 'hash'), ('vocabulary', 'size'), ('train', 'hash'), ('train', 'shards')]
    + [('train', key) for key in _COUNTS],
)
def test_manifest_part_without_a_key_is_an_error(tmp_path, place, key):
    content = write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)]).manifest
    del (content['splits'] | content)[place][key]
    (tmp_path / 'manifest.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'manifest\.json: .*must (be|have)'):
        records.read_manifest(tmp_path)


@pytest.mark.parametrize('key', ['file', 'records', 'bytes', 'sha256'])
def test_manifest_shard_without_a_key_is_an_error(tmp_path, key):
    content = write_dataset(tmp_path, 'blocks', [random_records('blocks', 5)]).manifest
    del content['splits']['train']['shards'][0][key]
    (tmp_path / 'manifest.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'manifest\.json: .*must (be|have)'):
        records.read_manifest(tmp_path)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{}',
        '5',
        '{"identity": {}}',
        '{"identity": {}, "splits": []}',
        '{"identity": {}, "splits": {"train": {}}}',
        '{"identity": {}, "splits": {"train": 5}}',
        '{"identity": {}, "splits": {"train": {"counts": {}, "hash": "", "shards": [{}]}}}',
    ],
)
def test_malformed_state_is_one_line(tmp_path, text):
    (tmp_path / records.STATE).write_text(text)
    with pytest.raises(UserError, match=r'^/.*state\.json: .*must (be|have) .*; remove /.*$'):
        shards.State(tmp_path, {})


def test_unfinished_dataset_is_an_error(tmp_path):
    shards.State(tmp_path, {})
    with pytest.raises(UserError, match=r'has no manifest\.json, its preparation is unfinished'):
        records.read_manifest(tmp_path)


def test_record_without_ids_can_be_stored(tmp_path):
    """A clm stream of one id has such a block; an example can have empty texts."""
    originals = [Record(ids()), Record(ids(), ids(), 0)]
    stored = write_dataset(tmp_path, 'examples', [originals]).records('train').read([1, 0])
    assert [r.label for r in stored] == [0, -1]
    assert json.loads((tmp_path / 'manifest.json').read_text())['kind'] == 'examples'
