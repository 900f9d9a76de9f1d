"""Tests of the sources of GLUE tasks."""

import pytest
from helpers.sources import check_error, make_config, read_error, read_texts, write_file

from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example

HINT = " (config.data.on_error = 'skip' skips such rows)"


def glue(folder, **contents):
    for name, text in contents.items():
        stem, _, extension = name.rpartition('_')
        write_file(folder / f'{stem}.{extension}', text.replace('|', '\t'))
    return folder


SST2 = 'sentence|label\nit "works|1\nfails , badly|0\n'
QQP = 'id|qid1|qid2|question1|question2|is_duplicate\n0|1|2|why ?|how "so ?|1\n'
MRPC = '\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String\r\n1|5|6|He said "no|She said no\r\n'
UNLABELLED = {
    'sst2': 'index|sentence\n0|what is it\n',
    'qqp': 'id|question1|question2\n0|why|how\n',
    'mrpc': 'index|#1 ID|#2 ID|#1 String|#2 String\n0|1|2|why|how\n',
}


@pytest.mark.parametrize(
    ('source', 'text', 'expected'),
    [
        ('sst2', SST2, [Example('it "works', '', 1), Example('fails , badly', '', 0)]),
        ('qqp', QQP, [Example('why ?', 'how "so ?', 1)]),
        ('mrpc', MRPC, [Example('He said "no', 'She said no', 1)]),
    ],
)
def test_glue_ignores_quotes_and_unlabelled_test_files(tmp_path, source, text, expected):
    glue(tmp_path, train_tsv=text, dev_tsv=text, test_tsv=UNLABELLED[source], dev_ids_tsv='1\n')
    c = make_config(source, tmp_path)
    for split in ('train', 'validation'):
        assert list(sources.examples(c, split)) == expected
    line = check_error(c)
    assert line.startswith(f"config.data.path = {tmp_path}: has no split 'test': looked for a .tsv")
    c.data.held_out = 0.01
    assert list(sources.examples(c, 'test')) == expected
    assert sources.classes(c) == 2
    glue(tmp_path, test_tsv=text)
    c.data.held_out = 0.0
    assert list(sources.examples(c, 'test')) == expected


def test_mrpc_is_read_from_its_original_files(tmp_path):
    other = MRPC.replace('He', 'It')
    glue(tmp_path, msr_paraphrase_train_txt=MRPC, msr_paraphrase_test_txt=other)
    c = make_config('mrpc', tmp_path)
    assert read_texts(c) == ['He said "no']
    assert read_texts(c, 'test') == ['It said "no']
    assert "has no split 'validation'" in check_error(c)


def test_validation_rows_of_mrpc_are_not_in_train(tmp_path):
    """GLUE's train.tsv and dev.tsv are two parts of msr_paraphrase_train.txt."""
    texts = {name: MRPC.replace('He', name) for name in ('train', 'dev', 'both', 'last')}
    glue(
        tmp_path,
        train_tsv=texts['train'],
        dev_tsv=texts['dev'],
        test_tsv=UNLABELLED['mrpc'],
        msr_paraphrase_train_txt=texts['both'],
        msr_paraphrase_test_txt=texts['last'],
    )
    c = make_config('mrpc', tmp_path)
    stems = [read_texts(c, split)[0].split()[0] for split in sources.SPLITS]
    assert stems == ['train', 'dev', 'last']
    (tmp_path / 'train.tsv').unlink()
    assert "has no split 'train'" in check_error(c)


def test_unknown_label_of_glue_is_an_error(tmp_path):
    glue(tmp_path, train_tsv='sentence|label\nfine|2\n')
    line = read_error(make_config('sst2', tmp_path))
    assert line == f"{tmp_path}/train.tsv:2: 'label' is '2', must be one of 0, 1{HINT}"


def test_header_of_another_dataset_is_an_error(tmp_path):
    glue(tmp_path, train_tsv=SST2, dev_tsv=SST2, test_tsv=SST2)
    c = make_config('qqp', tmp_path, held_out=0.1)
    assert check_error(c) == (
        f"{tmp_path}/train.tsv:1: no column 'question1' of source 'qqp': has 'sentence', 'label'"
    )
