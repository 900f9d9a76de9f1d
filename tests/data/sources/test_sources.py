"""Claims about the sources of files, about mixtures, and about what a split holds."""

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
from lightpaff_jax.data.sources import Example, splits
from lightpaff_jax.data.sources import text_files as texts_lib

DATA = os.environ.get('LIGHTPAFF_DATA')
TEXT = '\n = Title = \nfirst line \n  second  line\n \n\n\nlast one\nand its end\n\n'


def test_every_source_of_the_configuration_is_here():
    assert {*sources.SOURCES, 'prepared'} == set(config.SOURCES)


# Documents.


@pytest.mark.parametrize(
    ('parted', 'want'),
    [
        ('blank', [' = Title = \nfirst line \n  second  line', 'last one\nand its end']),
        ('line', [' = Title = ', 'first line ', '  second  line', 'last one', 'and its end']),
        ('file', [TEXT[:-1]]),
    ],
)
def test_blank_lines_or_lines_or_files_part_documents_and_the_text_is_kept(tmp_path, parted, want):
    write_files(tmp_path, train_txt=TEXT)
    c = make_config('text', tmp_path, documents=parted)
    assert read_texts(c) == want
    write_file(tmp_path / 'train.txt', TEXT.rstrip())
    assert read_texts(c) == [*want[:-1], want[-1].rstrip()]


def test_a_line_may_end_as_on_windows(tmp_path):
    write_file(tmp_path / 'train.txt', b'one\r\ntwo\r\n\r\nthree\r\n')
    assert read_texts(make_config('text', tmp_path)) == ['one\r\ntwo', 'three']
    assert read_texts(make_config('text', tmp_path, documents='line')) == ['one', 'two', 'three']


LINES = ['', ' ', 'a', 'b c', '\t', ' d  e ', '<unk> , x']


@pytest.mark.parametrize('parted', config.DOCUMENTS)
def test_words_of_the_documents_are_those_and_the_lines_of_the_file(parted):
    for lines in itertools.product(LINES, repeat=4):
        text = '\n'.join(lines) + '\n'
        found = list(texts_lib.split_documents(text.splitlines(keepends=True), parted))
        if text.strip():
            assert sum(document.words for document in found) == len(text.split()) + len(lines)
        else:
            assert found == []


def test_a_last_line_without_an_end_counts_as_one():
    assert [d.words for d in texts_lib.split_documents(['a b\n', 'c'], 'blank')] == [5]


@pytest.mark.parametrize('extension', ['txt', 'jsonl'])
def test_words_are_counted_before_spaces_are_undone(tmp_path, extension):
    text = " it 's red @-@ hot , he said "
    content = text + '\n' if extension == 'txt' else json.dumps({'text': text}) + '\n'
    write_file(tmp_path / f'train.{extension}', content)
    c = make_config('text', tmp_path, detokenize='wikitext')
    want = Example("it's red-hot, he said", words=len(text.split()) + 1)
    assert list(sources.examples(c, 'train')) == [want]


@pytest.mark.parametrize(('columns', 'name'), [((), 'text'), (('body',), 'body')])
def test_a_row_of_jsonl_is_a_document(tmp_path, columns, name):
    rows = [{name: 'one\n\nstill one', 'id': 1}, {name: 'two', 'id': 2}]
    write_file(tmp_path / 'train.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
    c = make_config('text', tmp_path, columns=columns)
    assert list(sources.examples(c, 'train')) == [
        Example('one\n\nstill one', words=6), Example('two', words=2),
    ]  # fmt: skip


@pytest.mark.parametrize('content', ['\n \n\t\n', '\n'])
@pytest.mark.parametrize('parted', config.DOCUMENTS)
def test_a_file_of_blank_lines_is_an_empty_corpus(tmp_path, content, parted):
    write_files(tmp_path, train_txt=content)
    line = source_cases.read_error(make_config('text', tmp_path, documents=parted))
    assert line == f'{tmp_path}/train.txt: empty corpus, must hold a document'


def test_an_empty_file_is_named(tmp_path):
    write_files(tmp_path, train_txt='')
    line = source_cases.read_error(make_config('text', tmp_path))
    assert line == f'{tmp_path}/train.txt: empty corpus, must hold a line'


def test_a_large_file_is_not_held_in_memory(tmp_path):
    write_file(tmp_path / 'train.txt', 'a line of some words\n\n' * 250_000)
    tracemalloc.start()
    for _ in itertools.islice(sources.examples(make_config('text', tmp_path), 'train'), 20_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # of a file of 5 MiB


# Splits.


def numbered(folder, n=4000, **others):
    """A train.txt of n lines, a third of which are there twice, and other files of a line each."""
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
def test_what_has_no_file_is_cut_from_train_and_nothing_is_lost(tmp_path, others, cut):
    lines = numbered(tmp_path, **others)
    c = make_config('text', tmp_path, documents='line', held_out=0.1)
    sources.check(c)
    found = {split: read_texts(c, split) for split in sources.SPLITS}
    assert sorted(itertools.chain(found['train'], *(found[split] for split in cut))) == sorted(
        lines
    )
    for split in cut:
        assert 0.07 < len(found[split]) / len(lines) < 0.13
    if 'test' not in cut:
        assert found['test'] == ['a test line' if 'test_txt' in others else 'a dev line']
    if 'validation' not in cut:
        assert found['validation'] == ['a dev line']


def test_a_text_that_is_there_twice_is_in_one_split(tmp_path):
    numbered(tmp_path)
    c = make_config('text', tmp_path, documents='line', held_out=0.2)
    found = [set(read_texts(c, split)) for split in sources.SPLITS]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(found, 2))


def test_the_cut_is_the_same_whatever_is_done_to_the_text_and_the_order(tmp_path):
    lines = [f"it 's line {i}" for i in range(500)]
    cuts = []
    for name, undo, order in (('a', 'none', 1), ('b', 'ptb', 1), ('c', 'none', -1)):
        write_files(tmp_path / name, train_txt='\n'.join(lines[::order]))
        c = make_config('text', tmp_path / name, documents='line', detokenize=undo, held_out=0.1)
        cuts.append({text.replace(" '", "'") for text in read_texts(c, 'test')})
    assert cuts[0] == cuts[1] == cuts[2] != set()


def test_the_same_lines_are_cut_on_every_machine(tmp_path):
    write_files(tmp_path, train_txt='\n'.join(f'line {i}' for i in range(30)))
    c = make_config('text', tmp_path, documents='line', held_out=0.1)
    assert read_texts(c, 'test') == ['line 4', 'line 8']
    assert read_texts(c, 'validation') == [f'line {i}' for i in (2, 3, 13, 16, 25)]


@pytest.mark.parametrize(
    ('split', 'names'), [('train', 'train'), ('validation', 'validation or valid or val or dev')]
)
def test_a_split_without_files_is_named_with_what_was_looked_for(tmp_path, split, names):
    others = {'train_txt', 'dev_txt', 'test_txt'} - {f'{split}_txt'.replace('validation', 'dev')}
    write_files(tmp_path, **dict.fromkeys(others, 'a text'))
    line = source_cases.check_error(make_config('text', tmp_path))
    share = '' if split == 'train' else '; config.data.held_out = 0.05 would cut it from train'
    assert line == (
        f'config.data.path = {tmp_path}: has no split {split!r}: looked for files that have {names} '
        'in their names and end in .txt, .tokens, .raw, .text, .jsonl, .parquet, or .gz of these'
        f'{share}'
    )


def test_a_share_without_an_example_is_an_empty_corpus(tmp_path):
    write_files(tmp_path, train_txt='one\n')
    c = make_config('text', tmp_path, held_out=0.01)
    said = f"config.data.path = {tmp_path}: empty corpus, no example of split 'test'"
    assert source_cases.read_error(c, 'test') == said


def test_held_out_changes_nothing_where_every_split_has_files():
    c = make_config('text', held_out=0.1)
    assert splits.resolve(c, sources.SPLITS) == {s: splits.SplitSource(s) for s in sources.SPLITS}


# Identities.


def test_identity_changes_with_what_the_examples_depend_on_and_nothing_else(tmp_path):
    numbered(tmp_path / 'a', dev_txt='x', test_txt='y')
    numbered(tmp_path / 'b', dev_txt='x', test_txt='y')
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


def test_equal_bytes_of_another_extension_are_another_identity(tmp_path):
    write_file(tmp_path / 'a/train.tsv', 'text\none\n')
    write_file(tmp_path / 'b/train.csv', 'text\none\n')
    found = [
        sources.identity(make_config('table', tmp_path / name, columns=('text',)), ('train',))
        for name in 'ab'
    ]
    assert found[0] != found[1]


# Kinds.


def test_for_a_language_model_what_is_classified_together_is_a_document(tmp_path):
    write_file(tmp_path / 'train.tsv', 'a\tb\tmark\none\ttwo\t1\nthree\t\t0\n')
    c = make_config('table', tmp_path, columns=('a', 'b', 'mark'), classes=2)
    assert list(sources.examples(c, 'train')) == [
        Example('one', 'two', 1), Example('three', '', 0),
    ]  # fmt: skip
    c.objective = 'clm'
    assert list(sources.examples(c, 'train')) == [Example(t) for t in ('one\ntwo', 'three')]


def test_an_objective_that_cannot_learn_from_the_examples_is_told(tmp_path):
    write_file(tmp_path / 'train.tsv', 'a\tb\none\ttwo\n')
    c = make_config('table', tmp_path, columns=('a', 'b'), held_out=0.1)
    c.objective = 'classify'
    said = f"config.data.source = 'table': {tmp_path} has targets, which objective 'classify' does not learn from"
    assert source_cases.check_error(c) == source_cases.read_error(c) == said


def test_prepared_sets_have_no_text(tmp_path):
    c = make_config('prepared', tmp_path, example_type='documents')
    assert source_cases.read_error(c) == (
        f"config.data.path = {tmp_path}: source 'prepared' has ids and no text, "
        'config.tokenizer.path must name its tokenizer'
    )


# Mixtures.


@pytest.fixture
def mixed(tmp_path):
    write_files(tmp_path / 'a', train_txt='one\n\ntwo\n', dev_txt='x\n', test_txt='y\n')
    write_file(tmp_path / 'b' / 'train.tsv', 'sentence\tlabel\n' + 'three\t1\n' * 3)
    write_file(tmp_path / 'b' / 'dev.tsv', 'sentence\tlabel\nfour\t0\n')
    write_file(tmp_path / 'b' / 'test.tsv', 'sentence\tlabel\nfive\t0\n')
    return make_config('mixture', mixture=(f'text:{tmp_path}/a=3', f'sst2:{tmp_path}/b=0.5'))


def test_parts_of_a_mixture_are_read_one_after_the_other(mixed):
    sources.check(mixed)
    assert [(p.data.source, weight) for p, weight in sources.parts(mixed)] == [
        ('text', 3.0), ('sst2', 0.5),
    ]  # fmt: skip
    assert read_texts(mixed) == ['one', 'two', *['three'] * 3]
    assert read_texts(mixed, 'test') == ['y', 'five']
    assert sources.classes(mixed) == 0


def test_identity_of_a_mixture_is_that_of_its_parts(mixed, tmp_path):
    before = sources.identity(mixed)
    assert json.loads(json.dumps(before)) == before
    write_file(tmp_path / 'b' / 'dev.tsv', 'sentence\tlabel\nother\t0\n')
    assert sources.identity(mixed) != before


@pytest.mark.parametrize(
    ('entry', 'said'),
    [
        ('txt:x=1', 'must begin with one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, prepared; did you mean text?'),
        ('mixture:x=1', 'must begin with one of pydocs, text, sst2, qqp, mrpc, mr, table, parallel, tfds, prepared'),
        ('text:x', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text=1', "source 'text' must have a path"),
        ('pydocs:x=1', "source 'pydocs' must not have a path"),
        ('text:x=0', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text:x=inf', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text:x=much', 'must be SOURCE:PATH=WEIGHT, WEIGHT a number above 0'),
        ('text:/none=1', '/none: no such path, put a folder with files like train.txt, validation.txt and test.txt, or wiki.train.tokens there'),
    ],
)  # fmt: skip
def test_a_malformed_part_is_named(entry, said):
    c = make_config('mixture', mixture=(entry,))
    assert source_cases.check_error(c) == f'config.data.mixture = {entry!r}: {said}'


def test_a_prepared_part_of_a_mixture_has_no_text(tmp_path):
    c = make_config('mixture', mixture=(f'prepared:{tmp_path}=1', 'pydocs=2'))
    assert sources.parts(c)[0][0].data.path == str(tmp_path)
    assert "source 'prepared' has ids and no text" in source_cases.read_error(c)


# Published figures.


@pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')
@pytest.mark.parametrize('undo', config.DETOKENIZERS)
@pytest.mark.parametrize('parted', config.DOCUMENTS)
def test_words_of_published_files_are_the_published_ones(parted, undo):
    known = {
        'ptb': {'train': 929_589, 'validation': 73_760, 'test': 82_430},
        'wikitext-2': {'train': 2_088_628, 'validation': 217_646},
    }
    for name, counts in known.items():
        c = make_config('text', pathlib.Path(DATA) / name, documents=parted, detokenize=undo)
        for split, words in counts.items():
            assert sum(e.words for e in sources.examples(c, split)) == words
