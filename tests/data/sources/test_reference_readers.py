"""Examples equal the rows that pandas and the library `datasets` read from the same files."""

import csv
import io
import json
import random

import pyarrow
import pytest
from helpers.sources import make_config, write_file
from pyarrow import parquet

from lightpaff_jax.data import sources

pytestmark = pytest.mark.compare
ALPHABET = 'ab c"\'é猫,;\u2028\x0c'
LABELS = ('no', 'yes')


def random_rows(seed, alphabet=ALPHABET):
    """Returns texts that are not blank, and classes."""
    draw = random.Random(seed)
    texts = (''.join(draw.choices(alphabet, k=draw.randint(1, 9))) for _ in range(60))
    return [(text, draw.choice(LABELS)) for text in texts if text.strip()]


def read(folder, **keys):
    c = make_config('table', folder, columns=('text', '', 'label'), labels=LABELS, **keys)
    return [(example.first, LABELS[example.label]) for example in sources.examples(c, 'train')]


@pytest.mark.parametrize(('name', 'delimiter'), [('train.csv', ','), ('train.tsv', '\t')])
@pytest.mark.parametrize('quoting', ['double', 'none'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_delimited_rows_equal_those_of_pandas(tmp_path, name, delimiter, quoting, end):
    pandas = pytest.importorskip('pandas')
    alphabet = ALPHABET + '\t\n' if quoting == 'double' else ALPHABET.replace(',', '')
    rows = [('text', 'label'), *random_rows(5, alphabet), ('NA', 'yes'), ('1.50', 'no')]
    if quoting == 'double':
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
        content = text.getvalue()
    else:
        content = ''.join(f'{delimiter.join(row)}{end}' for row in rows)
    write_file(tmp_path / name, content)
    how = csv.QUOTE_MINIMAL if quoting == 'double' else csv.QUOTE_NONE
    frame = pandas.read_csv(
        tmp_path / name, sep=delimiter, dtype=str, keep_default_na=False, quoting=how
    )
    expected = list(frame[['text', 'label']].itertuples(index=False, name=None))
    assert len(expected) > 40
    assert read(tmp_path, quoting=quoting) == expected


def test_json_lines_equal_those_of_pandas(tmp_path):
    pandas = pytest.importorskip('pandas')
    rows = [{'text': text, 'label': label, 'n': 1} for text, label in random_rows(6)]
    write_file(tmp_path / 'train.jsonl', ''.join(json.dumps(row) + '\r\n' for row in rows))
    frame = pandas.read_json(tmp_path / 'train.jsonl', lines=True, dtype=False)
    expected = list(frame[['text', 'label']].itertuples(index=False, name=None))
    assert read(tmp_path) == expected


@pytest.mark.parametrize('labels', [LABELS, LABELS[::-1]])
def test_classes_of_parquet_equal_those_of_datasets(tmp_path, labels):
    datasets = pytest.importorskip('datasets')
    rows = random_rows(7)
    label = datasets.ClassLabel(names=list(labels))
    features = datasets.Features({'text': datasets.Value('string'), 'label': label})
    numbers = [label.str2int(name) for _, name in rows]
    columns = {'text': [text for text, _ in rows], 'label': numbers}
    table = pyarrow.table(columns, features.arrow_schema)
    parquet.write_table(table, tmp_path / 'train.parquet')
    assert read(tmp_path) == rows


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_lines_equal_those_of_datasets(tmp_path, end):
    datasets = pytest.importorskip('datasets')
    lines = [text for text, _ in random_rows(8)]
    write_file(tmp_path / 'train.txt', end.join(lines))
    files = str(tmp_path / 'train.txt')
    dataset = datasets.load_dataset(
        'text', data_files=files, split='train', cache_dir=str(tmp_path / 'cache')
    )
    c = make_config('text', tmp_path, documents='line')
    assert [example.first for example in sources.examples(c, 'train')] == dataset['text'][:]
