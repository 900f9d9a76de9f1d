"""The sources of parallel files and of movie reviews."""

import itertools

import pytest
from helpers import sources as source_cases
from helpers.sources import make_config, read_texts, write_file, write_files

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example

HINT = " (config.data.on_error = 'skip' skips such rows)"


# Parallel files.


def parallel(path, **keys):
    return make_config('parallel', path, **({'suffixes': ('en', 'de')} | keys))


@pytest.mark.parametrize(
    'names',
    [
        ('train.en', 'train.de'),
        ('train.en.txt', 'train.de.txt'),
        ('train_en.filter.txt', 'train_de.filter.txt'),
        ('train.en-de.en', 'train.en-de.de'),
        ('train/corpus.en', 'train/corpus.de'),
    ],
)
def test_lines_of_two_files_are_pairs(tmp_path, names):
    write_file(tmp_path / names[0], 'one\ntwo words \n')
    write_file(tmp_path / names[1], 'eins\nzwei\n')
    write_file(tmp_path / 'train.fr', 'un\n')
    want = [Example('one', 'eins'), Example('two words ', 'zwei')]
    assert list(sources.examples(parallel(tmp_path), 'train')) == want
    back = [Example(e.second, e.first) for e in want]
    assert list(sources.examples(parallel(tmp_path, suffixes=('de', 'en')), 'train')) == back


def test_shards_of_both_sides_are_paired_in_order(tmp_path):
    for shard, side in itertools.product('21', ('en', 'de')):
        write_file(tmp_path / f'train.{shard}.{side}', f'{side} {shard}\n')
    want = [Example('en 1', 'de 1'), Example('en 2', 'de 2')]
    assert list(sources.examples(parallel(tmp_path), 'train')) == want


SIDES = 'config.data.suffixes = en,de: '
SHARDS = SIDES + 'must have one file of each side for every shard, the files are '


@pytest.mark.parametrize(
    ('contents', 'message'),
    [
        (
            {'train.en': 'a\nb\nc\n', 'train.de': 'a\n'},
            '{0}/train.en: has 3 lines, {0}/train.de has 1, must be as many',
        ),
        (
            {'train.en': 'a\nb\n', 'train.de': 'a\nb\nc\nd\ne'},
            '{0}/train.en: has 2 lines, {0}/train.de has 5, must be as many',
        ),
        (
            {'train.en': 'a\n'},
            SIDES + "no file of split 'train' has 'de' in its name, its files are train.en",
        ),
        (
            {'train.1.en': 'a\n', 'train.2.en': 'a\n', 'train.1.de': 'a\n'},
            SHARDS + 'train.1.en, train.2.en, train.1.de',
        ),
        (
            {'train.1.en': 'a\n', 'train.2.en': 'a\n', 'train.1.de': 'a\n', 'train.3.de': 'a\n'},
            SHARDS + 'train.1.en, train.2.en, train.1.de, train.3.de',
        ),
        (
            {'train.en': 'a\n \n', 'train.de': 'a\nb\n'},
            "{0}/train.en:2: 'train.en' is empty" + HINT,
        ),
        ({'train.en': 'a\nb\n', 'train.de': 'a\n\n'}, "{0}/train.en:2: 'train.de' is empty" + HINT),
        (
            {'train.en': 'a\n', 'train.de': b'\xff\n'},
            '{0}/train.de:1: must be UTF-8, has byte 0xff: invalid start byte' + HINT,
        ),
        ({'train.en': '', 'train.de': ''}, '{0}/train.en: empty corpus, must hold a line'),
    ],
)
def test_error_names_files_that_form_no_pairs(tmp_path, contents, message):
    for name, content in contents.items():
        write_file(tmp_path / name, content)
    assert source_cases.read_error(parallel(tmp_path)) == message.format(tmp_path)


def test_pair_without_a_side_is_skipped(tmp_path):
    write_files(tmp_path, train_en='a\n\nc\n', train_de='x\ny\nz\n')
    c, skipped = parallel(tmp_path, on_error='skip'), []
    read = list(sources.examples(c, 'train', skipped.append))
    assert read == [Example('a', 'x'), Example('c', 'z')]
    assert skipped == [f"{tmp_path}/train.en:2: 'train.en' is empty"]


def test_pairs_of_one_source_text_are_in_one_split(tmp_path):
    write_files(
        tmp_path,
        train_en='\n'.join(f'source {i % 300}' for i in range(900)),
        train_de='\n'.join(f'target {i}' for i in range(900)),
    )
    c = parallel(tmp_path, held_out=0.1)
    texts = [set(read_texts(c, split)) for split in sources.SPLITS]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(texts, 2))
    assert sum(map(len, texts)) == 300


# Movie reviews.


def test_file_name_decides_the_class_of_reviews(tmp_path):
    write_files(tmp_path, **{'rt-polarity_neg': 'bad \nworse\n', 'rt-polarity_pos': 'good\n'})
    c = make_config('mr', tmp_path)
    assert list(sources.examples(c, 'train')) == [
        Example('bad ', '', 0),
        Example('worse', '', 0),
        Example('good', '', 1),
    ]
    assert sources.classes(c) == 2
    assert source_cases.check_error(c) == (
        f"config.data.path = {tmp_path}: has no split 'validation': rt-polarity.neg and "
        'rt-polarity.pos are all train; config.data.held_out = 0.05 would cut it from train'
    )


def test_files_of_reviews_can_be_configured(tmp_path):
    write_files(tmp_path, a_neg='bad\n', a_pos='good\n', b_neg='no\n', b_pos='yes\n')
    c = make_config('mr', tmp_path, files=('train=a.*', 'test=b.*'))
    assert read_texts(c, 'test') == ['no', 'yes']


@pytest.mark.parametrize(
    ('contents', 'message'),
    [
        (
            {'neg': 'bad\n'},
            "config.data.path = {0}: split 'train' must have one file .neg and one .pos, has rt-polarity.neg",
        ),
        ({'neg': 'bad\n\n', 'pos': 'x\n'}, '{0}/rt-polarity.neg:2: is empty' + HINT),
        (
            {'neg': 'bad\n', 'pos': b'caf\xe9\n'},
            '{0}/rt-polarity.pos:1: must be UTF-8, has byte 0xe9: invalid continuation byte' + HINT,
        ),
        ({'neg': 'bad\n', 'pos': ''}, '{0}/rt-polarity.pos: empty corpus, must hold a line'),
    ],
)
def test_error_names_malformed_reviews(tmp_path, contents, message):
    for mark, content in contents.items():
        write_file(tmp_path / f'rt-polarity.{mark}', content)
    assert source_cases.read_error(make_config('mr', tmp_path)) == message.format(tmp_path)
