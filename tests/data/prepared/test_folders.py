"""Claims about the folder of what is prepared: what it depends on, and how it is found again."""

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


def test_equal_configs_share_a_folder_and_do_not_write_it_again(
    c, tokenizer, prepared, monkeypatch
):
    monkeypatch.setattr(build, 'build', None)
    other = config.copy(c)
    other.data.packages = tuple(reversed(c.data.packages))
    other.seed, other.data.batch_size = 7, 64
    assert prepare.prepare(other, tokenizer) == prepared


@pytest.mark.parametrize('change', ['length', 'packages', 'tokenizer', 'objective'])
def test_other_contents_are_another_folder(c, tokenizer, prepared, change, tmp_path):
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
    found = prepare.prepare(other, tokenizer)
    assert found.path != prepared.path
    assert found.hash != prepared.hash


def test_another_form_or_target_length_is_another_folder(data_cache, vocabulary):
    c = corpus.examples_config(data_cache, 'summary')
    found = [prepare.prepare(c, vocabulary)]
    c.data.target_length = 9
    found.append(prepare.prepare(c, vocabulary))
    found += [
        prepare.prepare(corpus.examples_config(data_cache, form), vocabulary)
        for form in ('topic', 'pairs')
    ]
    assert len({p.path for p in found}) == len({p.hash for p in found}) == 4
    assert [p.manifest['classes'] for p in found] == [0, 0, len(pydocs.PACKAGES), 2]


@pytest.mark.parametrize(
    ('key', 'value'),
    [('data.mask_rate', 0.3), ('data.span_rate', 0.3), ('data.whole_words', True), ('seed', 5),
     ('data.batch_size', 64), ('data.long_text', 'error'), ('student.width', 64)],
)  # fmt: skip
def test_what_the_records_do_not_depend_on_shares_a_folder(c, tokenizer, prepared, key, value):
    other = config.copy(c)
    *sections, leaf = key.split('.')
    node = other
    for name in sections:
        node = node[name]
    node[leaf] = value
    assert prepare.prepare(other, tokenizer) == prepared


def test_two_builds_are_byte_identical(tmp_path):
    builds = [corpus.start_python(PREPARE, tmp_path / n, n) for n in ('1', '2')]
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
    builds = [corpus.start_python(PREPARE, tmp_path) for _ in range(2)]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert [p.name for p in (tmp_path / 'prepared').iterdir()] == [one[0].strip()]


def test_a_prepared_folder_may_be_moved_and_given_by_its_path(c, tokenizer, prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / 'copy')
    given = config.copy(c)
    given.data.source, given.data.path = 'prepared', str(tmp_path / 'copy')
    found = prepare.prepare(given, tokenizer)
    assert found.hash == prepared.hash
    assert (found.records('test')[0].first == prepared.records('test')[0].first).all()
    assert sources.classes(given) == found.manifest['classes'] == 0


@pytest.mark.parametrize(
    ('source', 'key'), [('text', 'data.cache'), ('pydocs', 'data.cache'), ('prepared', 'data.path')]
)
def test_a_bucket_where_arrayrecord_needs_a_folder_is_one_line(
    tmp_path, vocabulary, monkeypatch, source, key
):
    monkeypatch.chdir(tmp_path)
    c = corpus.text_config(tmp_path / 'text')
    c.data.source = source
    name = key.removeprefix('data.')
    c.data[name] = 'gs://bucket/folder'
    said = f'^config.{key} = gs://bucket/folder: ArrayRecord needs a folder, mount .* gcsfuse'
    for call in (lambda: prepare.prepare(c, vocabulary), lambda: selection.load(c)):
        with pytest.raises(UserError, match=said):
            call()
    if source == 'prepared':
        with pytest.raises(UserError, match=said):
            sources.classes(c)
    assert [path.name for path in tmp_path.iterdir()] == ['text']


def test_a_prepared_folder_that_does_not_fit_is_a_user_error(c, tokenizer, prepared, tmp_path):
    tokenizers.train(['some text that is short'], 300, tmp_path / 'model')
    other = tokenizers.read(str(tmp_path / 'model'))
    given = config.copy(c)
    given.data.source = 'prepared'
    for path in ('', str(tmp_path / 'absent')):
        given.data.path = path
        with pytest.raises(UserError, match=r'data\.path = .*must be a folder'):
            prepare.prepare(given, tokenizer)
    given.data.path = str(tmp_path)
    with pytest.raises(UserError, match=r'has no manifest\.json'):
        prepare.prepare(given, tokenizer)
    given.data.path = prepared.path
    with pytest.raises(
        UserError, match=f'tokenizer {tokenizer.fingerprint}, .*{other.fingerprint}'
    ):
        prepare.prepare(given, other)
    given.data.length = 16
    with pytest.raises(UserError, match=r'data\.length = 16: must equal the 32 that'):
        prepare.prepare(given, tokenizer)


@pytest.mark.parametrize(
    ('key', 'value', 'was'),
    [
        ('target_length', 9, '12'),
        ('packing', 'best_fit', "'contiguous'"),
        ('objective', 'clm', "'seq2seq'"),
    ],
)
def test_a_prepared_folder_of_another_kind_is_a_user_error(data_cache, vocabulary, key, value, was):
    given = corpus.examples_config(data_cache, 'summary')
    path = prepare.prepare(given, vocabulary).path
    given.data.source, given.data.path = 'prepared', path
    assert prepare.prepare(given, vocabulary).path == path
    section = given if key == 'objective' else given.data
    section[key] = value
    with pytest.raises(UserError, match=f'{key} = {value!r}: must equal the {was} that'):
        prepare.prepare(given, vocabulary)


def test_classes_of_a_prepared_folder_are_those_it_was_made_with(data_cache, vocabulary):
    given = corpus.examples_config(data_cache, 'topic')
    given.data.path = prepare.prepare(given, vocabulary).path
    given.data.source = 'prepared'
    assert sources.classes(given) == len(pydocs.PACKAGES)
