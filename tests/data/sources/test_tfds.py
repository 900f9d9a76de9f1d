"""Tests of datasets that TFDS prepared. They prepare small ones with builders of TFDS."""

import contextlib
import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets
from helpers.sources import check_error, make_config, read_error, read_texts

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.data.sources import Example, tfds

Features = tensorflow_datasets.features
SST2 = {
    'sentence': Features.Text(),
    'label': Features.ClassLabel(names=['negative', 'positive']),
    'idx': np.int32,
}
ROWS = {
    'train': [{'sentence': f'text {i} ä', 'label': i % 2, 'idx': i} for i in range(600)],
    'validation': [{'sentence': 'a dev text', 'label': 1, 'idx': 0}],
    'test': [{'sentence': 'a test text', 'label': -1, 'idx': i} for i in range(3)],
}


def build(folder, name, features, rows, variant=None, version='1.0.0'):
    """Prepares a dataset as ArrayRecord, as `tfds build` does."""

    class Small(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version(version)
        BUILDER_CONFIGS = [tensorflow_datasets.core.BuilderConfig(name=variant)] if variant else []
        code_path = None
        pkg_dir_path = folder

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features, disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows[split]) for split in rows}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Small.name = name
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        Small(data_dir=str(folder)).download_and_prepare(file_format='array_record')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Prepares small datasets with names of real ones."""
    root = tmp_path_factory.mktemp('tfds')
    build(root, 'glue', Features.FeaturesDict(SST2), ROWS, 'sst2')
    languages = Features.Translation(languages=('ro', 'en'))
    build(root, 'wmt16_translate', languages, {'train': [{'ro': 'unu', 'en': 'one'}]}, 'ro-en')
    text = Features.FeaturesDict({'title': Features.Text(), 'text': Features.Text()})
    for version in ('1.0.0', '10.0.0', '2.0.0'):
        rows = {
            'train': [{'title': 'x', 'text': f'version {version}'}, {'title': 'y', 'text': 'b'}]
        }
        build(root, 'lm1b', text, rows, version=version)
    features = Features.FeaturesDict({'body': Features.Text(), 'score': np.float32})
    build(root, 'mine', features, {'train': [{'body': 'my text', 'score': 1.0}]})
    return root


def tfds_config(folder, path, kind='classes', **keys):
    return make_config('tfds', path, kind, tfds_dir=str(folder), **keys)


def test_dataset_of_classes_has_its_listed_columns(folder):
    c = tfds_config(folder, 'glue/sst2', held_out=0.1)
    sources.check(c)
    assert sources.SOURCES['tfds'].example_type(c) == 'classes'
    assert sources.classes(c) == 2
    train, cut = (list(sources.examples(c, split)) for split in ('train', 'validation'))
    expected = [Example(row['sentence'], '', row['label']) for row in ROWS['train']]
    assert sorted(train + cut) == sorted(expected)
    assert train == [example for example in expected if example not in cut]
    assert list(sources.examples(c, 'test')) == [Example('a dev text', '', 1)]
    c.data.held_out_whole = True
    whole = list(sources.examples(c, 'validation'))
    assert {*whole} <= {*cut}
    assert {*whole}.isdisjoint(sources.examples(c, 'train'))


def test_classes_are_found_by_their_names(folder):
    c = tfds_config(folder, 'glue/sst2', held_out=0.1)
    plain, before = list(sources.examples(c, 'train')), sources.identity(c)
    c.data.labels = ('positive', 'negative')
    swapped = [example._replace(label=1 - example.label) for example in plain]
    assert list(sources.examples(c, 'train')) == swapped
    assert sources.identity(c) != before
    assert sources.class_names(c) == ('positive', 'negative')
    c.data.labels = ('negative', 'good')
    assert check_error(c) == (
        "config.data.labels = ('negative', 'good'): must be the classes of glue/sst2/1.0.0, "
        'negative, positive'
    )
    c = tfds_config(folder, 'mine', 'documents', columns=('body',), labels=('a', 'b'))
    assert check_error(c).endswith('must be the classes of mine/1.0.0, which has no classes')


def test_record_that_is_malformed_is_an_error(tmp_path):
    rows = {
        'train': [
            {'sentence': b'x', 'label': 0, 'idx': 0},
            {'sentence': b'\xff', 'label': 1, 'idx': 1},
        ]
    }
    build(tmp_path, 'glue', Features.FeaturesDict(SST2), rows, 'sst2')
    start = f"{tmp_path}/glue/sst2/1.0.0: record 1 of split 'train': "
    line = read_error(tfds_config(tmp_path, 'glue/sst2', held_out=0.1))
    assert line.startswith(f"{start}'utf-8' codec can't decode byte 0xff in position 0")
    rows['train'][1] = {'sentence': 'y', 'label': -1, 'idx': 1}
    build(tmp_path, 'glue', Features.FeaturesDict(SST2), rows, 'sst2', version='2.0.0')
    line = read_error(tfds_config(tmp_path, 'glue/sst2', held_out=0.1))
    assert line == f"{start.replace('1.0.0', '2.0.0')}'label' is -1, must be at least 0 and below 2"


def test_split_without_labels_has_no_classes(folder):
    line = check_error(tfds_config(folder, 'glue/sst2'))
    assert line == (
        "config.data.path = glue/sst2: has no split 'test': the set has train, validation; "
        'config.data.held_out = 0.05 would take the validation files for it, and cut validation '
        'from train'
    )
    c = tfds_config(folder, 'glue/sst2', 'documents', columns=('sentence',))
    assert read_texts(c, 'test') == ['a test text'] * 3


def test_languages_of_a_translation_are_its_columns(folder):
    c = tfds_config(folder, 'wmt16_translate/ro-en', 'targets')
    assert list(sources.examples(c, 'train')) == [Example('unu', 'one')]
    c.data.columns = ('en', 'ro')
    assert list(sources.examples(c, 'train')) == [Example('one', 'unu')]
    assert sources.classes(c) == 0


def test_newest_version_is_the_default(folder):
    assert read_texts(tfds_config(folder, 'lm1b', 'documents')) == ['version 10.0.0', 'b']
    assert read_texts(tfds_config(folder, 'lm1b:2.0.0', 'documents')) == ['version 2.0.0', 'b']


def test_dataset_without_a_tfds_builder_is_read(folder):
    assert read_texts(tfds_config(folder, 'mine', 'documents', columns=('body',))) == ['my text']


def test_language_model_reads_all_texts_as_documents(folder):
    c = tfds_config(folder, 'wmt16_translate/ro-en', 'documents')
    assert list(sources.examples(c, 'train')) == [Example('unu'), Example('one')]


def test_tfds_dataset_can_be_part_of_a_mixture(folder):
    c = make_config(
        'mixture', mixture=('tfds:lm1b:2.0.0=1', 'tfds:glue/sst2=2'), tfds_dir=str(folder)
    )
    assert read_texts(c)[:3] == ['version 2.0.0', 'b', 'text 0 ä']


def test_identity_changes_with_version_and_columns(folder):
    identities = [
        sources.identity(tfds_config(folder, path, 'documents', columns=columns), ('train',))
        for path, columns in (('lm1b', ()), ('lm1b:2.0.0', ()), ('lm1b', ('title',)))
    ]
    assert identities[0] not in identities[1:]
    assert identities[0] == sources.identity(
        tfds_config(folder, 'lm1b:10.0.0', 'documents'), ('train',)
    )


BUILD = (
    'is not prepared in {0}; build it once, with the network and TensorFlow '
    '(./launch/environment.sh tf): tfds build {1} --file_format=array_record --data_dir={0}'
)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('glu/sst2', "neither TFDS nor {0} has a set 'glu'; did you mean glue?"),
        ('mein', "neither TFDS nor {0} has a set 'mein'; did you mean mine?"),
        (
            'glue/sst3',
            'must be glue/CONFIG, with one of sst2, cola, mrpc, qqp, stsb, mnli, mnli_mismatched, mnli_matched, ...; did you mean sst2?',
        ),
        (
            'glue',
            'must be glue/CONFIG, with one of sst2, cola, mrpc, qqp, stsb, mnli, mnli_mismatched, mnli_matched, ...',
        ),
        (
            'wmt16_translate/en-ro',
            'must be wmt16_translate/CONFIG, with one of ro-en, cs-en, de-en, fi-en, ru-en, tr-en',
        ),
        ('lm1b:3.0.0', '{0}/lm1b has version 1.0.0, 2.0.0, 10.0.0; did you mean 2.0.0?'),
        ('glue/qqp', BUILD.replace('{1}', 'glue/qqp')),
        ('gigaword', BUILD.replace('{1}', 'gigaword')),
        ('yelp_polarity_reviews', BUILD.replace('{1}', 'yelp_polarity_reviews')),
        ('wikipedia/20230601.en', BUILD.replace('{1}', 'wikipedia/20230601.en')),
    ],
)
def test_missing_dataset_is_an_error_with_a_remedy(folder, path, message):
    line = check_error(tfds_config(folder, path))
    assert line == f'config.data.path = {path}: {message.format(folder)}'


@pytest.mark.parametrize(
    ('path', 'columns', 'message'),
    [
        ('mine', (), 'config.data.columns = (): must name those of mine: the set has body, score'),
        (
            'mine',
            ('bodi',),
            "config.data.columns = ('bodi',): mine has no 'bodi': the set has body, score; did you mean body?",
        ),
        ('mine', ('score',), "config.data.columns = ('score',): 'score' must be text"),
        (
            'mine',
            ('body', '', 'score'),
            "config.data.columns = ('body', '', 'score'): 'score' must be a class",
        ),
        (
            'mine',
            ('', 'body'),
            "config.data.columns = ('', 'body'): must name those of mine: the set has body, score",
        ),
    ],
)
def test_columns_that_do_not_fit_are_an_error(folder, path, columns, message):
    c = tfds_config(folder, path, 'documents', columns=columns)
    assert check_error(c) == message


def test_example_type_that_does_not_fit_is_an_error(folder):
    c = tfds_config(folder, 'wmt16_translate/ro-en', 'classes')
    message = "config.data.source = 'tfds': wmt16_translate/ro-en has targets, which objective 'classify' does not learn from"
    assert read_error(c) == message


@pytest.fixture
def damaged(folder, tmp_path):
    """Returns a configuration of a copy of glue/sst2, and the folder of the copy."""
    shutil.copytree(folder / 'glue', tmp_path / 'glue')
    return tfds_config(tmp_path, 'glue/sst2'), tmp_path / 'glue/sst2/1.0.0'


@pytest.mark.parametrize('size', [0, 10, 70_000])
def test_truncated_dataset_is_an_error(damaged, size):
    c, folder = damaged
    file = next(folder.glob('*-train*'))
    file.write_bytes(file.read_bytes()[:size])
    line = read_error(c)
    assert line.startswith(f"{folder}: split 'train' cannot be read: ")


def test_dataset_without_a_file_is_an_error(damaged):
    c, folder = damaged
    next(folder.glob('*-train*')).unlink()
    assert read_error(c).startswith(f"{folder}: split 'train' cannot be read: ")


def test_dataset_with_other_counts_than_its_files_is_an_error(damaged):
    """Otherwise only the first records would be read."""
    c, folder = damaged
    info = folder / 'dataset_info.json'
    info.write_text(info.read_text().replace('"600"', '"500"'))
    file = next(folder.glob('*-train*'))
    assert read_error(c) == f'{file}: has 600 records, dataset_info.json lists 500'


def test_dataset_with_damaged_metadata_is_an_error(damaged):
    c, folder = damaged
    (folder / 'dataset_info.json').write_text('{"name":')
    assert read_error(c).startswith(f'{folder}: must be a dataset that TFDS prepared: ')


def test_dataset_in_another_format_is_an_error_with_command(damaged):
    c, folder = damaged
    info = folder / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    assert read_error(c) == (
        f'{folder}: is prepared as tfrecord, must be array_record; build it once, with the network '
        'and TensorFlow (./launch/environment.sh tf): tfds build glue/sst2 '
        f'--file_format=array_record --data_dir={folder.parents[2]} --overwrite'
    )


def test_bucket_of_datasets_must_be_mounted():
    c = tfds_config('gs://bucket/sets', 'lm1b', 'documents')
    assert read_error(c) == (
        'config.data.tfds_dir = gs://bucket/sets: ArrayRecord needs a folder, mount the bucket '
        'with gcsfuse and name that'
    )


def test_columns_are_listed_for_existing_builders():
    paper = {'glue', 'gigaword', 'wmt16_translate', 'yelp_polarity_reviews', 'wikipedia', 'lm1b'}
    assert paper <= {*tfds.builder_names()}
    assert {name.split('/')[0] for name in tfds.COLUMNS} <= {*tfds.builder_names()}
    assert all(name in tfds._builder_configs('glue') for name in ('sst2', 'qqp', 'mrpc'))


@pytest.mark.e2e
def test_reading_imports_no_tensorflow_and_is_silent(folder):
    code = (
        'import sys\n'
        'from lightpaff_jax import config\n'
        'from lightpaff_jax.data import sources\n'
        'c = config.default()\n'
        "c.data.source, c.data.path, c.data.tfds_dir = 'tfds', 'lm1b', sys.argv[1]\n"
        "assert len(list(sources.examples(c, 'train'))) == 2\n"
        "c.data.path = 'lm2b'\n"
        'try:\n'
        "    list(sources.examples(c, 'train'))\n"
        'except config.UserError as error:\n'
        '    print(error)\n'
        "print(*sorted({'tensorflow', 'tensorflow_datasets.image'} & {*sys.modules}))\n"
    )
    root = pathlib.Path(config.__file__).parents[2]
    process = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code, str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    message = (
        f"config.data.path = lm2b: neither TFDS nor {folder} has a set 'lm2b'; did you mean lm1b?"
    )
    assert (process.stdout, process.stderr) == (f'{message}\n\n', '')
