"""Claims about the embedded corpus, as sources.py hands it out."""

import ast
import collections

import pytest
from helpers import corpus

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, pydocs, pydocs_views
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

# Prints what it read back.
SMALL_BUILD = """
import hashlib
builders = [pydocs.load(sys.argv[1], form) for form in ('text', 'topic', 'pairs', 'summary')]
read = [
    sorted(e.items()) for b in builders for name in pydocs.SPLITS for e in b.as_data_source(name)
]
digests = [b.info.metadata['digest'] for b in builders]
print(*digests, len(read), hashlib.sha256(repr(read).encode()).hexdigest())
"""


@pytest.fixture(scope='module')
def parts(data_cache):
    builder = pydocs.load(data_cache)
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
    found = [pydocs_views.Document('stdlib', 'a.py', ('The very same five words.',))]
    assert pydocs.read_documents() == found


def test_a_package_of_three_documents_is_in_every_split():
    documents = [pydocs_views.Document('chex', f'chex/{i}.py', ('text',)) for i in range(3)]
    assert {name: len(ds) for name, ds in pydocs.split_documents(documents).items()} == {
        'train': 1, 'validation': 1, 'test': 1,
    }  # fmt: skip
    assert len(pydocs.split_documents(documents[:2])['train']) == 2


def test_built_set_names_the_versions_it_saw(data_cache):
    assert dict(pydocs.load(data_cache).info.metadata['versions']) == pydocs.versions()


def test_two_builds_hold_equal_records_and_say_nothing(tmp_path):
    builds = [corpus.start_python(SMALL_BUILD, tmp_path / n, n) for n in ('1', '2')]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert len(one[0].splitlines()) == 1  # its own print


def test_two_processes_may_build_in_one_cache(tmp_path):
    builds = [corpus.start_python(SMALL_BUILD, tmp_path) for _ in range(2)]
    one, two = [b.communicate() for b in builds]
    assert one == two
    assert one[1] == ''
    assert len(list((tmp_path / 'tfds').iterdir())) == 1  # nothing half-made is left


def test_no_package_is_an_empty_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, 'PACKAGES', {'absent': ('no_such_module', 'no-such-module')})
    with pytest.raises(UserError, match='empty corpus'):
        pydocs.load(str(tmp_path))
    assert not list((tmp_path / 'tfds').iterdir())


@pytest.fixture(scope='module')
def rows(data_cache):
    """form -> split -> examples."""
    return {
        form: {name: _rows(pydocs.load(data_cache, form), name) for name in pydocs.SPLITS}
        for form in ('topic', 'pairs', 'summary')
    }


def _rows(builder, name):
    return [
        {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in e.items()}
        for e in builder.as_data_source(name)
    ]


FORMS = pytest.mark.parametrize('form', ['topic', 'pairs', 'summary'])


@FORMS
def test_an_example_is_in_the_split_of_its_file(parts, rows, form):
    split_of = {d['path']: name for name, documents in parts.items() for d in documents}
    for name, found in rows[form].items():
        assert {split_of[e['path']] for e in found} == {name}


@FORMS
def test_texts_of_an_example_are_from_its_package_and_split(parts, rows, form):
    """Up to white space, which a topic does not keep."""
    for name, found in rows[form].items():
        whole = {
            package: ' '.join(
                ' '.join(d['text'].split()) for d in parts[name] if d['package'] == package
            )
            for package in pydocs.PACKAGES
        }
        for e in found[:: max(1, len(found) // 200)]:
            for text in (e['first'], e['second']):
                assert ' '.join(text.split()) in whole[e['package']]


def test_no_topic_is_given_twice(rows):
    firsts = [e['first'] for found in rows['topic'].values() for e in found]
    assert len(firsts) == len(set(firsts)) > 10_000
    assert max(len(first.split()) for first in firsts) == 60


def test_a_topic_is_the_index_of_its_package(rows):
    names = list(pydocs.PACKAGES)
    for found in rows['topic'].values():
        assert {e['label'] for e in found} == set(range(len(names)))
        assert all(e['label'] == names.index(e['package']) and not e['second'] for e in found)


def test_no_package_is_more_than_three_tenths_of_the_topics(rows):
    for found in rows['topic'].values():
        counts = collections.Counter(e['label'] for e in found)
        assert max(counts.values()) <= 0.3 * len(found)


def test_each_summary_and_each_body_occurs_once_with_either_label(rows):
    found = [e for found in rows['pairs'].values() for e in found]
    for key in ('first', 'second'):
        counts = collections.Counter((e[key], e['label']) for e in found)
        assert set(counts.values()) == {1}
        assert {text for text, label in counts if label} == {
            text for text, label in counts if not label
        }
    assert {e['label'] for e in found} == {0, 1}


def test_a_pair_belongs_together_where_a_docstring_has_both(rows):
    belongs = {(e['second'], e['first']) for found in rows['summary'].values() for e in found}
    for found in rows['pairs'].values():
        for e in found:
            assert ((e['first'], e['second']) in belongs) == (e['label'] == 1)


def test_a_pair_that_does_not_belong_together_is_of_one_package_and_split(rows):
    for found in rows['pairs'].values():
        home = {e['second']: e['package'] for e in found if e['label']}
        assert all(home[e['second']] == e['package'] for e in found)


def test_a_summary_is_one_line_of_a_few_words_and_no_other_has_it(rows):
    for key, fewest in (('first', 8), ('second', 4)):
        texts = [e[key] for found in rows['summary'].values() for e in found]
        assert len(texts) == len(set(texts)) > 5_000
        assert all(len(text.split()) >= fewest for text in texts)
    assert all('\n' not in e['second'] for found in rows['summary'].values() for e in found)


def test_a_docstring_without_an_empty_line_has_no_summary():
    body = 'The body says a good deal more, in two lines\nor three.'
    texts = (
        f'The line says it.\n\n{body}',
        f'The line does not end\nbut goes on here.\nAnother {body}',
        'The line has nothing below.',
        'Too short.\n\n' + body,
        'The body is too short.\n\nIt is.',
    )
    parts = {'train': [pydocs_views.Document('chex', 'chex/a.py', texts)]}
    assert pydocs_views.summary(parts, ['chex']) == {
        'train': [
            {'package': 'chex', 'path': 'chex/a.py', 'first': body, 'second': 'The line says it.',
             'label': -1}
        ]
    }  # fmt: skip
    assert pydocs_views.pairs(parts, ['chex']) == {
        'train': []
    }  # no other docstring to take a body from


@FORMS
def test_package_filter_reads_examples_of_those_packages_only(data_cache, rows, form):
    c = corpus.examples_config(data_cache, form)
    for name in ('validation', 'test'):
        want = [
            Example(e['first'], e['second'], e['label'])
            for e in rows[form][name]
            if e['package'] in c.data.packages
        ]
        assert list(sources.examples(c, name)) == want


@pytest.mark.parametrize(
    ('form', 'classes'),
    [('text', 0), ('topic', len(pydocs.PACKAGES)), ('pairs', 2), ('summary', 0)],
)
def test_classes_hold_every_label(data_cache, form, classes):
    c = corpus.tiny_config(data_cache)
    c.data.view, c.data.packages = form, ()
    assert sources.classes(c) == classes
    labels = {e.label for e in sources.SOURCES['pydocs'].examples(c, 'test', print)}
    assert labels == (set(range(classes)) or {-1})


def test_package_filter_reads_those_packages_only(data_cache, parts):
    c = corpus.tiny_config(data_cache)
    for name in pydocs.SPLITS:
        texts = [d['text'] for d in parts[name] if d['package'] in c.data.packages]
        assert list(sources.examples(c, name)) == [Example(t, '', -1) for t in texts]


def test_all_packages_are_read_without_a_filter(data_cache, parts):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ()
    read = collections.Counter(e.first for e in sources.examples(c, 'test'))
    assert read == collections.Counter(d['text'] for d in parts['test'])


def test_unknown_package_is_an_error_that_offers_the_nearest(data_cache):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ('nunpy',)
    with pytest.raises(UserError, match=r"'nunpy' must be .*did you mean numpy"):
        next(sources.examples(c, 'train'))


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'data\.cache'):
        storage.publish(tmp_path / 'file' / 'below', lambda path: path.mkdir())
