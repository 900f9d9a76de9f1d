"""Tests of the built-in corpus and its views."""

import ast
import collections

import pytest
from helpers import corpus

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, pydocs, pydocs_views
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

# Prints the digests of a build, the number of its rows and a hash over them.
SMALL_BUILD = """
import hashlib
builders = [pydocs.load(sys.argv[1], view) for view in ('text', 'topic', 'pairs', 'summary')]
read = [
    sorted(e.items()) for b in builders for name in pydocs.SPLITS for e in b.as_data_source(name)
]
digests = [b.info.metadata['digest'] for b in builders]
print(*digests, len(read), hashlib.sha256(repr(read).encode()).hexdigest())
"""


@pytest.fixture(scope='module')
def splits(data_cache):
    builder = pydocs.load(data_cache)
    return {
        name: [{k: v.decode() for k, v in e.items()} for e in builder.as_data_source(name)]
        for name in pydocs.SPLITS
    }


def test_every_package_is_in_every_split(splits):
    for documents in splits.values():
        assert {d['package'] for d in documents} == set(pydocs.PACKAGES)


def test_splits_share_no_file_and_train_is_the_largest(splits):
    paths = [d['path'] for documents in splits.values() for d in documents]
    assert len(paths) == len(set(paths))
    sizes = {name: len(documents) for name, documents in splits.items()}
    assert sizes['train'] > 5 * (sizes['validation'] + sizes['test'])


def test_paths_are_relative_to_the_installation(splits):
    for documents in splits.values():
        for d in documents:
            first = {'stdlib': d['path'], 'orbax': 'orbax/'}.get(d['package'], d['package'] + '/')
            assert d['path'].startswith(first)


def test_test_files_are_not_read(splits):
    for documents in splits.values():
        for d in documents:
            assert not {'tests', 'test'} & set(d['path'].split('/')), d['path']


def test_each_topic_of_the_reference_is_a_document(splits):
    topics = [d for ds in splits.values() for d in ds if d['path'].startswith('pydoc_data/topics')]
    assert any(d['path'].endswith('#lambda') for d in topics)
    assert len(topics) > 20


def test_docstrings_are_in_the_order_of_the_file():
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


def test_repeated_docstring_is_kept_once(tmp_path, monkeypatch):
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text('"""The very same five words."""\n')
    (tmp_path / 'broken.py').write_text('this is no Python')
    monkeypatch.setattr(pydocs, 'PACKAGES', {'stdlib': ('', '')})
    monkeypatch.setattr(pydocs, '_stdlib', lambda: tmp_path)
    assert pydocs.read_documents() == [
        pydocs_views.Document('stdlib', 'a.py', ('The very same five words.',))
    ]


def test_package_of_three_documents_is_in_every_split():
    documents = [pydocs_views.Document('chex', f'chex/{i}.py', ('text',)) for i in range(3)]
    assert {name: len(ds) for name, ds in pydocs.split_documents(documents).items()} == {
        'train': 1,
        'validation': 1,
        'test': 1,
    }
    assert len(pydocs.split_documents(documents[:2])['train']) == 2


def test_metadata_names_the_installed_versions(data_cache):
    assert dict(pydocs.load(data_cache).info.metadata['versions']) == pydocs.versions()


def test_two_builds_are_equal_and_silent(tmp_path):
    builds = [corpus.start_python(SMALL_BUILD, tmp_path / n, n) for n in ('1', '2')]
    first, second = [build.communicate() for build in builds]
    assert first == second
    assert first[1] == ''
    assert len(first[0].splitlines()) == 1  # its own print


def test_two_processes_can_build_in_one_cache(tmp_path):
    builds = [corpus.start_python(SMALL_BUILD, tmp_path) for _ in range(2)]
    first, second = [build.communicate() for build in builds]
    assert first == second
    assert first[1] == ''
    assert len(list((tmp_path / 'tfds').iterdir())) == 1  # nothing half-made is left


def test_corpus_without_packages_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, 'PACKAGES', {'absent': ('no_such_module', 'no-such-module')})
    with pytest.raises(UserError, match='empty corpus'):
        pydocs.load(str(tmp_path))
    assert not list((tmp_path / 'tfds').iterdir())


@pytest.fixture(scope='module')
def rows(data_cache):
    """view -> split -> examples."""
    return {
        view: {name: _rows(pydocs.load(data_cache, view), name) for name in pydocs.SPLITS}
        for view in ('topic', 'pairs', 'summary')
    }


def _rows(builder, name):
    return [
        {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in e.items()}
        for e in builder.as_data_source(name)
    ]


VIEWS = pytest.mark.parametrize('view', ['topic', 'pairs', 'summary'])


@VIEWS
def test_example_is_in_the_split_of_its_file(splits, rows, view):
    split_of = {d['path']: name for name, documents in splits.items() for d in documents}
    for name, split_rows in rows[view].items():
        assert {split_of[e['path']] for e in split_rows} == {name}


@VIEWS
def test_example_has_texts_of_its_package_and_split(splits, rows, view):
    """White space is normalized, because a topic does not keep it."""
    for name, split_rows in rows[view].items():
        whole = {
            package: ' '.join(
                ' '.join(d['text'].split()) for d in splits[name] if d['package'] == package
            )
            for package in pydocs.PACKAGES
        }
        for e in split_rows[:: max(1, len(split_rows) // 200)]:
            for text in (e['first'], e['second']):
                assert ' '.join(text.split()) in whole[e['package']]


def test_topics_are_unique(rows):
    firsts = [e['first'] for split_rows in rows['topic'].values() for e in split_rows]
    assert len(firsts) == len(set(firsts)) > 10_000
    assert max(len(first.split()) for first in firsts) == 60


def test_topic_label_is_the_index_of_the_package(rows):
    names = list(pydocs.PACKAGES)
    for split_rows in rows['topic'].values():
        assert {e['label'] for e in split_rows} == set(range(len(names)))
        assert all(e['label'] == names.index(e['package']) and not e['second'] for e in split_rows)


def test_no_package_exceeds_30_percent_of_the_topics(rows):
    for split_rows in rows['topic'].values():
        counts = collections.Counter(e['label'] for e in split_rows)
        assert max(counts.values()) <= 0.3 * len(split_rows)


def test_each_text_of_pairs_occurs_once_with_each_label(rows):
    examples = [e for split_rows in rows['pairs'].values() for e in split_rows]
    for key in ('first', 'second'):
        counts = collections.Counter((e[key], e['label']) for e in examples)
        assert set(counts.values()) == {1}
        assert {text for text, label in counts if label} == {
            text for text, label in counts if not label
        }
    assert {e['label'] for e in examples} == {0, 1}


def test_positive_pair_comes_from_one_docstring(rows):
    belongs = {
        (e['second'], e['first']) for split_rows in rows['summary'].values() for e in split_rows
    }
    for split_rows in rows['pairs'].values():
        for e in split_rows:
            assert ((e['first'], e['second']) in belongs) == (e['label'] == 1)


def test_negative_pair_comes_from_one_package_and_split(rows):
    for split_rows in rows['pairs'].values():
        home = {e['second']: e['package'] for e in split_rows if e['label']}
        assert all(home[e['second']] == e['package'] for e in split_rows)


def test_summaries_are_unique_lines_of_enough_words(rows):
    for key, fewest in (('first', 8), ('second', 4)):
        texts = [e[key] for split_rows in rows['summary'].values() for e in split_rows]
        assert len(texts) == len(set(texts)) > 5_000
        assert all(len(text.split()) >= fewest for text in texts)
    assert all(
        '\n' not in e['second'] for split_rows in rows['summary'].values() for e in split_rows
    )


def test_docstring_without_an_empty_line_has_no_summary():
    body = 'The body says a good deal more, in two lines\nor three.'
    texts = (
        f'The line says it.\n\n{body}',
        f'The line does not end\nbut goes on here.\nAnother {body}',
        'The line has nothing below.',
        'Too short.\n\n' + body,
        'The body is too short.\n\nIt is.',
    )
    splits = {'train': [pydocs_views.Document('chex', 'chex/a.py', texts)]}
    assert pydocs_views.summary(splits, ['chex']) == {
        'train': [
            {
                'package': 'chex',
                'path': 'chex/a.py',
                'first': body,
                'second': 'The line says it.',
                'label': -1,
            }
        ]
    }
    assert pydocs_views.pairs(splits, ['chex']) == {
        'train': []
    }  # no other docstring to take a body from


@VIEWS
def test_package_filter_selects_examples_of_a_view(data_cache, rows, view):
    c = corpus.examples_config(data_cache, view)
    for name in ('validation', 'test'):
        want = [
            Example(e['first'], e['second'], e['label'])
            for e in rows[view][name]
            if e['package'] in c.data.packages
        ]
        assert list(sources.examples(c, name)) == want


@pytest.mark.parametrize(
    ('view', 'classes'),
    [('text', 0), ('topic', len(pydocs.PACKAGES)), ('pairs', 2), ('summary', 0)],
)
def test_classes_count_every_label_of_a_view(data_cache, view, classes):
    c = corpus.tiny_config(data_cache)
    c.data.view, c.data.packages = view, ()
    assert sources.classes(c) == classes
    labels = {e.label for e in sources.SOURCES['pydocs'].examples(c, 'test', print)}
    assert labels == (set(range(classes)) or {-1})


def test_package_filter_selects_documents(data_cache, splits):
    c = corpus.tiny_config(data_cache)
    for name in pydocs.SPLITS:
        texts = [d['text'] for d in splits[name] if d['package'] in c.data.packages]
        assert list(sources.examples(c, name)) == [Example(t, '', -1) for t in texts]


def test_all_packages_are_read_without_a_filter(data_cache, splits):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ()
    read = collections.Counter(e.first for e in sources.examples(c, 'test'))
    assert read == collections.Counter(d['text'] for d in splits['test'])


def test_unknown_package_is_an_error_with_a_suggestion(data_cache):
    c = corpus.tiny_config(data_cache)
    c.data.packages = ('nunpy',)
    with pytest.raises(UserError, match=r"'nunpy' must be .*did you mean numpy"):
        next(sources.examples(c, 'train'))


def test_cache_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'file: cannot be written'):
        storage.publish(tmp_path / 'file' / 'below', lambda path: path.mkdir())
