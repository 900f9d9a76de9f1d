"""Folders of prepared datasets: what their names depend on, and how they are opened."""

import shutil

import pytest
from helpers import corpus

from lightpaff_jax import config
from lightpaff_jax.data import prepare, sources, tokenizers
from lightpaff_jax.data.prepared import build
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError

PREPARE = """
from helpers import corpus
print(corpus.prepare_dataset(corpus.tiny_config(sys.argv[1])).path.rpartition('/')[2])
"""


@pytest.fixture(scope='module')
def c(data_cache):
    return corpus.tiny_config(data_cache)


@pytest.fixture(scope='module')
def tokenizer(c):
    return selection.load(c)


@pytest.fixture(scope='module')
def prepared(c, tokenizer):
    return prepare.prepare(c, tokenizer)


def test_equal_configs_share_a_folder(c, tokenizer, prepared, monkeypatch):
    monkeypatch.setattr(build, 'build', None)
    other = config.copy(c)
    other.data.packages = tuple(reversed(c.data.packages))
    other.seed, other.data.batch_size = 7, 64
    assert prepare.prepare(other, tokenizer) == prepared


@pytest.mark.parametrize('change', ['length', 'packages', 'tokenizer', 'objective'])
def test_other_contents_have_another_folder(c, tokenizer, prepared, change, tmp_path):
    other = config.copy(c)
    if change == 'length':
        other.data.length = 16
    if change == 'packages':
        other.data.packages = ('chex',)
    if change in ('tokenizer', 'objective'):
        tokenizer = corpus.wordpiece_tokenizer(tmp_path)
    if change == 'objective':
        prepared = prepare.prepare(other, tokenizer)
        other.objective = 'mass'
    dataset = prepare.prepare(other, tokenizer)
    assert dataset.path != prepared.path
    assert dataset.hash != prepared.hash


@pytest.mark.e2e
def test_view_and_target_length_decide_the_folder(data_cache, vocabulary):
    c = corpus.examples_config(data_cache, 'summary')
    datasets = [prepare.prepare(c, vocabulary)]
    c.data.target_length = 9
    datasets.append(prepare.prepare(c, vocabulary))
    datasets += [
        prepare.prepare(corpus.examples_config(data_cache, view), vocabulary)
        for view in ('topic', 'pairs')
    ]
    assert len({p.path for p in datasets}) == len({p.hash for p in datasets}) == 4
    assert [p.manifest['classes'] for p in datasets] == [0, 0, len(pydocs.PACKAGES), 2]


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('data.mask_rate', 0.3),
        ('data.span_rate', 0.3),
        ('data.whole_words', True),
        ('seed', 5),
        ('data.batch_size', 64),
        ('data.long_text', 'error'),
        ('student.width', 64),
    ],
)
def test_unrelated_keys_do_not_change_the_folder(c, tokenizer, prepared, key, value):
    other = config.copy(c)
    *sections, leaf = key.split('.')
    node = other
    for name in sections:
        node = node[name]
    node[leaf] = value
    assert prepare.prepare(other, tokenizer) == prepared


def test_two_builds_have_equal_files(tmp_path):
    builds = [corpus.start_python(PREPARE, tmp_path / n, n) for n in ('1', '2')]
    output_a, output_b = [b.communicate() for b in builds]
    assert output_a == output_b
    assert output_a[1] == ''
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


def test_two_processes_can_prepare_in_one_cache(tmp_path):
    builds = [corpus.start_python(PREPARE, tmp_path) for _ in range(2)]
    output_a, output_b = [b.communicate() for b in builds]
    assert output_a == output_b
    assert output_a[1] == ''
    assert [p.name for p in (tmp_path / 'prepared').iterdir()] == [output_a[0].strip()]


def test_prepared_folder_can_be_copied_and_named(c, tokenizer, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / 'copy')
    reader = config.copy(c)
    reader.data.source, reader.data.path = 'prepared', str(tmp_path / 'copy')
    dataset = prepare.prepare(reader, tokenizer)
    assert dataset.hash == prepared.hash
    assert (dataset.records('test')[0].first == prepared.records('test')[0].first).all()
    assert sources.classes(reader) == dataset.manifest['classes'] == 0


@pytest.mark.parametrize(
    ('source', 'key'), [('text', 'data.cache'), ('pydocs', 'data.cache'), ('prepared', 'data.path')]
)
def test_bucket_for_array_record_is_one_line(tmp_path, vocabulary, monkeypatch, source, key):
    monkeypatch.chdir(tmp_path)
    c = corpus.text_config(tmp_path / 'text')
    c.data.source = source
    name = key.removeprefix('data.')
    c.data[name] = 'gs://bucket/folder'
    message = f'^config.{key} = gs://bucket/folder: ArrayRecord needs a folder, mount .* gcsfuse'
    for call in (lambda: prepare.prepare(c, vocabulary), lambda: selection.load(c)):
        with pytest.raises(UserError, match=message):
            call()
    if source == 'prepared':
        with pytest.raises(UserError, match=message):
            sources.classes(c)
    assert [path.name for path in tmp_path.iterdir()] == ['text']


def test_prepared_folder_that_does_not_fit_is_an_error(c, tokenizer, prepared, tmp_path):
    tokenizers.train(['some text that is short'], 300, tmp_path / 'model')
    other = tokenizers.read(str(tmp_path / 'model'))
    reader = config.copy(c)
    reader.data.source = 'prepared'
    for path in ('', str(tmp_path / 'absent')):
        reader.data.path = path
        with pytest.raises(UserError, match=r'data\.path = .*must be a folder'):
            prepare.prepare(reader, tokenizer)
    reader.data.path = str(tmp_path)
    with pytest.raises(UserError, match=r'has no manifest\.json'):
        prepare.prepare(reader, tokenizer)
    reader.data.path = prepared.path
    with pytest.raises(
        UserError, match=f'tokenizer {tokenizer.fingerprint}, .*{other.fingerprint}'
    ):
        prepare.prepare(reader, other)
    reader.data.length = 16
    with pytest.raises(UserError, match=r'data\.length = 16: must equal the 32 that'):
        prepare.prepare(reader, tokenizer)


@pytest.mark.parametrize(
    ('key', 'value', 'was'),
    [
        ('target_length', 9, '12'),
        ('packing', 'best_fit', "'contiguous'"),
        ('objective', 'clm', "'seq2seq'"),
    ],
)
def test_prepared_folder_of_other_settings_is_an_error(data_cache, vocabulary, key, value, was):
    reader = corpus.examples_config(data_cache, 'summary')
    path = prepare.prepare(reader, vocabulary).path
    reader.data.source, reader.data.path = 'prepared', path
    assert prepare.prepare(reader, vocabulary).path == path
    section = reader if key == 'objective' else reader.data
    section[key] = value
    with pytest.raises(UserError, match=f'{key} = {value!r}: must equal the {was} that'):
        prepare.prepare(reader, vocabulary)


def test_prepared_folder_has_its_number_of_classes(data_cache, vocabulary):
    reader = corpus.examples_config(data_cache, 'topic')
    reader.data.path = prepare.prepare(reader, vocabulary).path
    reader.data.source = 'prepared'
    assert sources.classes(reader) == len(pydocs.PACKAGES)
