"""Claims about the embedded corpus, as sources.py hands it out."""

import ast
import collections

import data_fixtures
import pytest

from lightpaff_jax import config
from lightpaff_jax.data import pydocs, sources

# Prints what it read back.
SMALL_BUILD = """
import hashlib
builder = pydocs.opened(sys.argv[1])
read = [sorted(e.items()) for name in pydocs.SPLITS for e in builder.as_data_source(name)]
print(builder.info.metadata['digest'], len(read), hashlib.sha256(repr(read).encode()).hexdigest())
"""


@pytest.fixture(scope='module')
def parts(data_cache):
    builder = pydocs.opened(data_cache)
    return {
        name: [{k: v.decode() for k, v in e.items()} for e in builder.as_data_source(name)]
        for name in pydocs.SPLITS
    }


def test_every_package_is_in_every_split(parts):
    for documents in parts.values():
        assert {d['package'] for d in documents} == set(pydocs.PACKAGES)


def test_no_file_is_in_two_splits_and_train_is_the_largest(parts):
    paths = [d['path'] for documents in parts.values() for d in documents]
    assert len(paths) == len(set(paths))
    sizes = {name: len(documents) for name, documents in parts.items()}
    assert sizes['train'] > 5 * (sizes['validation'] + sizes['test'])


def test_paths_do_not_say_where_the_packages_are_installed(parts):
    for documents in parts.values():
        for d in documents:
            first = {'stdlib': d['path'], 'orbax': 'orbax/'}.get(d['package'], d['package'] + '/')
            assert d['path'].startswith(first)


def test_no_test_file_is_read(parts):
    for documents in parts.values():
        for d in documents:
            assert not {'tests', 'test'} & set(d['path'].split('/')), d['path']


def test_topics_of_the_language_reference_are_documents_of_their_own(parts):
    topics = [d for ds in parts.values() for d in ds if d['path'].startswith('pydoc_data/topics')]
    assert any(d['path'].endswith('#lambda') for d in topics)
    assert len(topics) > 20


def test_documents_hold_docstrings_once_in_the_order_of_the_file():
    tree = ast.parse(
        '"""The module says a few words."""\n'
        'class A:\n    """The class says a few words."""\n'
        '    def f(self):\n        """\n        The method says\n          a few words.\n        """\n'
        'try:\n    pass\nexcept ValueError:\n    def g():\n        """Too short."""\n'
        'def h():\n    """The module says a few words."""\n'
    )
    assert pydocs._clean(list(pydocs._docstrings(tree))) == [
        'The module says a few words.',
        'The class says a few words.',
        'The method says\n  a few words.',
        'The module says a few words.',
    ]


def test_a_repeated_docstring_is_kept_once(tmp_path, monkeypatch):
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text('"""The very same five words."""\n')
    (tmp_path / 'broken.py').write_text('this is no Python')
    monkeypatch.setattr(pydocs, 'PACKAGES', {'stdlib': ('', '')})
    monkeypatch.setattr(pydocs, '_stdlib', lambda: tmp_path)
    found = [pydocs.Document('stdlib', 'a.py', 'The very same five words.')]
    assert pydocs.documents() == found


def test_a_package_of_three_documents_is_in_every_split():
    documents = [pydocs.Document('chex', f'chex/{i}.py', 'text') for i in range(3)]
    assert {name: len(ds) for name, ds in pydocs.split(documents).items()} == {
        'train': 1, 'validation': 1, 'test': 1,
    }  # fmt: skip
    assert len(pydocs.split(documents[:2])['train']) == 2


def test_built_set_names_the_versions_it_saw(data_cache):
    assert dict(pydocs.opened(data_cache).info.metadata['versions']) == pydocs.versions()


def test_two_builds_hold_equal_records_and_say_nothing(tmp_path):
    builds = [data_fixtures.small_process(SMALL_BUILD, tmp_path / n, n) for n in ('1', '2')]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert len(one[0].splitlines()) == 1  # its own print


def test_two_processes_may_build_in_one_cache(tmp_path):
    builds = [data_fixtures.small_process(SMALL_BUILD, tmp_path) for _ in range(2)]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert len(list((tmp_path / 'tfds').iterdir())) == 1  # nothing half-made is left


def test_no_package_is_an_empty_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, 'PACKAGES', {'absent': ('no_such_module', 'no-such-module')})
    with pytest.raises(config.UserError, match='empty corpus'):
        pydocs.opened(str(tmp_path))
    assert not list((tmp_path / 'tfds').iterdir())


def test_package_filter_reads_those_packages_only(data_cache, parts):
    c = data_fixtures.tiny(data_cache)
    for name in pydocs.SPLITS:
        texts = [d['text'] for d in parts[name] if d['package'] in c.data.packages]
        assert list(sources.SOURCES['pydocs'](c, name)) == texts


def test_all_packages_are_read_without_a_filter(data_cache, parts):
    c = data_fixtures.tiny(data_cache)
    c.data.packages = ()
    read = collections.Counter(sources.SOURCES['pydocs'](c, 'test'))
    assert read == collections.Counter(d['text'] for d in parts['test'])


def test_unknown_package_is_an_error_that_offers_the_nearest(data_cache):
    c = data_fixtures.tiny(data_cache)
    c.data.packages = ('nunpy',)
    with pytest.raises(config.UserError, match=r"'nunpy' must be .*did you mean numpy"):
        next(sources.SOURCES['pydocs'](c, 'train'))


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(config.UserError, match=r'data\.cache'):
        pydocs.publish(tmp_path / 'file' / 'below', lambda path: path.mkdir())
