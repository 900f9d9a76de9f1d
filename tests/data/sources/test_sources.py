"""Text files, splits, identities, example types and mixtures."""

import itertools
import json
import os
import pathlib
import tracemalloc

import pytest
from helpers import sources as source_cases
from helpers.sources import make_config, read_texts, write_file, write_files

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, splits, text_files as text_files

DATA = os.environ.get('LIGHTPAFF_DATA')
TEXT = '\n = Title = \nfirst line \n  second  line\n \n\n\nlast one\nand its end\n\n'


def test_every_configured_source_has_functions():
    assert {*sources.SOURCES, 'prepared'} == set(config.SOURCES)


# Documents.


@pytest.mark.parametrize(
    ('boundary', 'want'),
    [
        ('blank', [' = Title = \nfirst line \n  second  line', 'last one\nand its end']),
        ('line', [' = Title = ', 'first line ', '  second  line', 'last one', 'and its end']),
        ('file', [TEXT[:-1]]),
    ],
)
def test_blank_lines_lines_or_files_split_documents(tmp_path, boundary, want):
    write_files(tmp_path, train_txt=TEXT)
    c = make_config('text', tmp_path, documents=boundary)
    assert read_texts(c) == want
    write_file(tmp_path / 'train.txt', TEXT.rstrip())
    assert read_texts(c) == [*want[:-1], want[-1].rstrip()]


LINES = ['', ' ', 'a', 'b c', '\t', ' d  e ', '<unk> , x']


@pytest.mark.parametrize('boundary', config.DOCUMENTS)
def test_words_of_documents_sum_to_those_of_the_file(boundary):
    for lines in itertools.product(LINES, repeat=4):
        text = '\n'.join(lines) + '\n'
        documents = list(text_files.split_documents(text.splitlines(keepends=True), boundary))
        if text.strip():
            assert sum(document.words for document in documents) == len(text.split()) + len(lines)
        else:
            assert documents == []


def test_last_line_without_an_end_counts():
    assert [d.words for d in text_files.split_documents(['a b\n', 'c'], 'blank')] == [5]


@pytest.mark.parametrize('extension', ['txt', 'jsonl'])
def test_words_are_counted_before_detokenization(tmp_path, extension):
    text = " it 's red @-@ hot , he said "
    content = text + '\n' if extension == 'txt' else json.dumps({'text': text}) + '\n'
    write_file(tmp_path / f'train.{extension}', content)
    c = make_config('text', tmp_path, detokenize='wikitext')
    want = Example("it's red-hot, he said", words=len(text.split()) + 1)
    assert list(sources.examples(c, 'train')) == [want]


@pytest.mark.parametrize(('columns', 'name'), [((), 'text'), (('body',), 'body')])
def test_row_of_jsonl_is_a_document(tmp_path, columns, name):
    rows = [{name: 'one\n\nstill one', 'id': 1}, {name: 'two', 'id': 2}]
    write_file(tmp_path / 'train.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
    c = make_config('text', tmp_path, columns=columns)
    assert list(sources.examples(c, 'train')) == [
        Example('one\n\nstill one', words=6),
        Example('two', words=2),
    ]


@pytest.mark.parametrize('content', ['\n \n\t\n', '\n'])
@pytest.mark.parametrize('boundary', config.DOCUMENTS)
def test_file_of_blank_lines_is_an_empty_corpus(tmp_path, content, boundary):
    write_files(tmp_path, train_txt=content)
    line = source_cases.read_error(make_config('text', tmp_path, documents=boundary))
    assert line == f'{tmp_path}/train.txt: empty corpus, must hold a document'


def test_error_names_an_empty_file(tmp_path):
    write_files(tmp_path, train_txt='')
    line = source_cases.read_error(make_config('text', tmp_path))
    assert line == f'{tmp_path}/train.txt: empty corpus, must hold a line'


def test_large_file_is_not_held_in_memory(tmp_path):
    write_file(tmp_path / 'train.txt', 'a line of some words\n\n' * 250_000)
    tracemalloc.start()
    for _ in itertools.islice(sources.examples(make_config('text', tmp_path), 'train'), 20_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # of a file of 5 MiB


# Splits.


def write_lines(folder, n=4000, **others):
    """Writes train.txt of n lines, a third of them repeated, and other files of one line."""
    lines = [f'line {i % (3 * n // 4)}' for i in range(n)]
    write_files(folder, train_txt='\n'.join(lines), **others)
    return lines


@pytest.mark.parametrize(
    ('others', 'cut'),
    [
        ({}, {'validation', 'test'}),
        ({'dev_txt': 'a dev line'}, {'validation'}),
        ({'test_txt': 'a test line'}, {'validation'}),
        ({'dev_txt': 'a dev line', 'test_txt': 'a test line'}, set()),
    ],
)
def test_splits_without_files_are_shares_of_train(tmp_path, others, cut):
    lines = write_lines(tmp_path, **others)
    c = make_config('text', tmp_path, documents='line', held_out=0.1)
    sources.check(c)
    texts = {split: read_texts(c, split) for split in sources.SPLITS}
    assert sorted(itertools.chain(texts['train'], *(texts[split] for split in cut))) == sorted(
        lines
    )
    for split in cut:
        assert 0.07 < len(texts[split]) / len(lines) < 0.13
    if 'test' not in cut:
        assert texts['test'] == ['a test line' if 'test_txt' in others else 'a dev line']
    if 'validation' not in cut:
        assert texts['validation'] == ['a dev line']


def test_repeated_text_is_in_one_split(tmp_path):
    write_lines(tmp_path)
    c = make_config('text', tmp_path, documents='line', held_out=0.2)
    texts = [set(read_texts(c, split)) for split in sources.SPLITS]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(texts, 2))


def test_shares_do_not_depend_on_order_or_detokenization(tmp_path):
    lines = [f"it 's line {i}" for i in range(500)]
    cuts = []
    for name, undo, order in (('a', 'none', 1), ('b', 'ptb', 1), ('c', 'none', -1)):
        write_files(tmp_path / name, train_txt='\n'.join(lines[::order]))
        c = make_config('text', tmp_path / name, documents='line', detokenize=undo, held_out=0.1)
        cuts.append({text.replace(" '", "'") for text in read_texts(c, 'test')})
    assert cuts[0] == cuts[1] == cuts[2] != set()


def test_shares_are_the_same_on_every_machine(tmp_path):
    write_files(tmp_path, train_txt='\n'.join(f'line {i}' for i in range(30)))
    c = make_config('text', tmp_path, documents='line', held_out=0.1)
    assert read_texts(c, 'test') == ['line 4', 'line 8']
    assert read_texts(c, 'validation') == [f'line {i}' for i in (2, 3, 13, 16, 25)]


@pytest.mark.parametrize(
    ('split', 'names'), [('train', 'train'), ('validation', 'validation or valid or val or dev')]
)
def test_error_of_a_missing_split_describes_its_files(tmp_path, split, names):
    others = {'train_txt', 'dev_txt', 'test_txt'} - {f'{split}_txt'.replace('validation', 'dev')}
    write_files(tmp_path, **dict.fromkeys(others, 'a text'))
    line = source_cases.check_error(make_config('text', tmp_path))
    share = '' if split == 'train' else '; config.data.held_out = 0.05 would cut it from train'
    assert line == (
        f'config.data.path = {tmp_path}: has no split {split!r}: looked for files that have {names} '
        'in their names and end in .txt, .tokens, .raw, .text, .jsonl, .parquet, or .gz of these'
        f'{share}'
    )


def test_share_without_examples_is_an_empty_corpus(tmp_path):
    write_files(tmp_path, train_txt='one\n')
    c = make_config('text', tmp_path, held_out=0.01)
    message = f"config.data.path = {tmp_path}: empty corpus, no example of split 'test'"
    assert source_cases.read_error(c, 'test') == message


def test_held_out_is_ignored_if_all_splits_have_files():
    c = make_config('text', held_out=0.1)
    assert splits.resolve(c, sources.SPLITS) == {s: splits.SplitSource(s) for s in sources.SPLITS}


# Identities.


def test_identity_changes_only_with_the_examples(tmp_path):
    write_lines(tmp_path / 'a', dev_txt='x', test_txt='y')
    write_lines(tmp_path / 'b', dev_txt='x', test_txt='y')
    before = sources.identity(make_config('text', tmp_path / 'a'))
    assert json.loads(json.dumps(before)) == before
    assert sources.identity(make_config('text', tmp_path / 'b')) == before
    c = make_config('text', tmp_path / 'a')
    for key, value in (('documents', 'line'), ('held_out', 0.1), ('detokenize', 'ptb')):
        c.data[key], default = value, c.data[key]
        assert sources.identity(c) != before
        c.data[key] = default
    write_file(tmp_path / 'b' / 'test.txt', 'z')
    assert sources.identity(make_config('text', tmp_path / 'b')) != before
    train = sources.identity(make_config('text', tmp_path / 'b'), ('train',))
    assert train == sources.identity(c, ('train',))


def test_extension_is_part_of_the_identity(tmp_path):
    write_file(tmp_path / 'a/train.tsv', 'text\none\n')
    write_file(tmp_path / 'b/train.csv', 'text\none\n')
    identities = [
        sources.identity(make_config('table', tmp_path / name, columns=('text',)), ('train',))
        for name in 'ab'
    ]
    assert identities[0] != identities[1]


# Example types.


def test_classified_texts_are_one_document_for_clm(tmp_path):
    write_file(tmp_path / 'train.tsv', 'a\tb\tmark\none\ttwo\t1\nthree\t\t0\n')
    c = make_config('table', tmp_path, columns=('a', 'b', 'mark'), classes=2)
    assert list(sources.examples(c, 'train')) == [
        Example('one', 'two', 1),
        Example('three', '', 0),
    ]
    c.objective = 'clm'
    assert list(sources.examples(c, 'train')) == [Example(t) for t in ('one\ntwo', 'three')]


def test_objective_of_other_example_type_is_an_error(tmp_path):
    write_file(tmp_path / 'train.tsv', 'a\tb\none\ttwo\n')
    c = make_config('table', tmp_path, columns=('a', 'b'), held_out=0.1)
    c.objective = 'classify'
    message = f"config.data.source = 'table': {tmp_path} has targets, which objective 'classify' does not learn from"
    assert source_cases.check_error(c) == source_cases.read_error(c) == message


def test_prepared_source_has_no_text(tmp_path):
    c = make_config('prepared', tmp_path, example_type='documents')
    assert source_cases.read_error(c) == (
        f"config.data.path = {tmp_path}: source 'prepared' has ids and no text, "
        'config.tokenizer.path must name its tokenizer'
    )


# Mixtures.


@pytest.fixture
def mixture_config(tmp_path):
    write_files(tmp_path / 'a', train_txt='one\n\ntwo\n', dev_txt='x\n', test_txt='y\n')
    write_file(tmp_path / 'b' / 'train.tsv', 'sentence\tlabel\n' + 'three\t1\n' * 3)
    write_file(tmp_path / 'b' / 'dev.tsv', 'sentence\tlabel\nfour\t0\n')
    write_file(tmp_path / 'b' / 'test.tsv', 'sentence\tlabel\nfive\t0\n')
    return make_config('mixture', mixture=(f'text:{tmp_path}/a=3', f'sst2:{tmp_path}/b=0.5'))


def test_parts_of_a_mixture_are_read_in_turn(mixture_config):
    sources.check(mixture_config)
    assert [(p.data.source, weight) for p, weight in sources.parts(mixture_config)] == [
        ('text', 3.0),
        ('sst2', 0.5),
    ]
    assert read_texts(mixture_config) == ['one', 'two', *['three'] * 3]
    assert read_texts(mixture_config, 'test') == ['y', 'five']
    assert sources.classes(mixture_config) == 0


def test_identity_of_a_mixture_depends_on_its_parts(mixture_config, tmp_path):
    before = sources.identity(mixture_config)
    assert json.loads(json.dumps(before)) == before
    write_file(tmp_path / 'b' / 'dev.tsv', 'sentence\tlabel\nother\t0\n')
    assert sources.identity(mixture_config) != before


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        (
            'txt:x=1',
            'must begin with one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, prepared; did you mean text?',
        ),
        (
            'mixture:x=1',
            'must begin with one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, prepared',
        ),
        ('text:x', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text=1', "source 'text' must have a path"),
        ('pydocs:x=1', "source 'pydocs' must not have a path"),
        ('text:x=0', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text:x=inf', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text:x=much', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        (
            'text:/none=1',
            '/none: no such path, put a folder with files like train.txt, validation.txt and test.txt, or wiki.train.tokens there',
        ),
    ],
)
def test_error_names_a_malformed_part(entry, message):
    c = make_config('mixture', mixture=(entry,))
    assert source_cases.check_error(c) == f'config.data.mixture = {entry!r}: {message}'


def test_prepared_part_of_a_mixture_has_no_text(tmp_path):
    c = make_config('mixture', mixture=(f'prepared:{tmp_path}=1', 'pydocs=2'))
    assert sources.parts(c)[0][0].data.path == str(tmp_path)
    assert "source 'prepared' has ids and no text" in source_cases.read_error(c)


# Published figures.


@pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')
@pytest.mark.parametrize('undo', config.DETOKENIZERS)
@pytest.mark.parametrize('boundary', config.DOCUMENTS)
def test_words_of_published_files_equal_published_counts(boundary, undo):
    published = {
        'ptb': {'train': 929_589, 'validation': 73_760, 'test': 82_430},
        'wikitext-2': {'train': 2_088_628, 'validation': 217_646},
    }
    for name, counts in published.items():
        c = make_config('text', pathlib.Path(DATA) / name, documents=boundary, detokenize=undo)
        for split, words in counts.items():
            assert sum(e.words for e in sources.examples(c, split)) == words
