"""Claims about sets that TFDS prepared; the tests prepare small ones with its own builders."""

import contextlib
import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets
from helpers import sources as source_cases
from helpers.sources import make_config, read_texts

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
    """Prepares a set as ArrayRecord, as `tfds build` does."""

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
            return {split: self._generate_examples(found) for split, found in rows.items()}

        def _generate_examples(self, found):
            yield from enumerate(found)

    Small.name = name
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        Small(data_dir=str(folder)).download_and_prepare(file_format='array_record')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Sets of the names that TFDS has, with a few rows."""
    made = tmp_path_factory.mktemp('tfds')
    build(made, 'glue', Features.FeaturesDict(SST2), ROWS, 'sst2')
    languages = Features.Translation(languages=('ro', 'en'))
    build(made, 'wmt16_translate', languages, {'train': [{'ro': 'unu', 'en': 'one'}]}, 'ro-en')
    text = Features.FeaturesDict({'title': Features.Text(), 'text': Features.Text()})
    for version in ('1.0.0', '10.0.0', '2.0.0'):
        rows = {
            'train': [{'title': 'x', 'text': f'version {version}'}, {'title': 'y', 'text': 'b'}]
        }
        build(made, 'lm1b', text, rows, version=version)
    mine = Features.FeaturesDict({'body': Features.Text(), 'score': np.float32})
    build(made, 'mine', mine, {'train': [{'body': 'my text', 'score': 1.0}]})
    return made


def tfds_set(folder, path, kind='classes', **keys):
    return make_config('tfds', path, kind, tfds_dir=str(folder), **keys)


def test_a_set_of_classes_is_read_with_its_known_columns(folder):
    c = tfds_set(folder, 'glue/sst2', held_out=0.1)
    sources.check(c)
    assert sources.SOURCES['tfds'].example_type(c) == 'classes'
    assert sources.classes(c) == 2
    train, cut = (list(sources.examples(c, split)) for split in ('train', 'validation'))
    want = [Example(row['sentence'], '', row['label']) for row in ROWS['train']]
    assert sorted(train + cut) == sorted(want)
    assert train == [example for example in want if example not in cut]
    assert list(sources.examples(c, 'test')) == [Example('a dev text', '', 1)]


def test_a_split_without_labels_is_no_split_of_classes(folder):
    line = source_cases.check_error(tfds_set(folder, 'glue/sst2'))
    assert line == (
        "config.data.path = glue/sst2: has no split 'test': the set has train, validation; "
        'config.data.held_out = 0.05 would take the validation files for it, and cut validation '
        'from train'
    )
    c = tfds_set(folder, 'glue/sst2', 'documents', columns=('sentence',))
    assert read_texts(c, 'test') == ['a test text'] * 3


def test_languages_of_a_translation_are_its_columns(folder):
    c = tfds_set(folder, 'wmt16_translate/ro-en', 'targets')
    assert list(sources.examples(c, 'train')) == [Example('unu', 'one')]
    c.data.columns = ('en', 'ro')
    assert list(sources.examples(c, 'train')) == [Example('one', 'unu')]
    assert sources.classes(c) == 0


def test_the_newest_version_is_read_unless_one_is_named(folder):
    assert read_texts(tfds_set(folder, 'lm1b', 'documents')) == ['version 10.0.0', 'b']
    assert read_texts(tfds_set(folder, 'lm1b:2.0.0', 'documents')) == ['version 2.0.0', 'b']


def test_a_set_that_tfds_has_no_builder_of_is_read_by_its_columns(folder):
    assert read_texts(tfds_set(folder, 'mine', 'documents', columns=('body',))) == ['my text']


def test_texts_of_any_set_are_documents_for_a_language_model(folder):
    c = tfds_set(folder, 'wmt16_translate/ro-en', 'documents')
    assert list(sources.examples(c, 'train')) == [Example('unu'), Example('one')]


def test_a_part_of_a_mixture_may_be_a_set(folder):
    c = make_config(
        'mixture', mixture=('tfds:lm1b:2.0.0=1', 'tfds:glue/sst2=2'), tfds_dir=str(folder)
    )
    assert read_texts(c)[:3] == ['version 2.0.0', 'b', 'text 0 ä']


def test_identity_changes_with_version_and_columns(folder):
    found = [
        sources.identity(tfds_set(folder, path, 'documents', columns=columns), ('train',))
        for path, columns in (('lm1b', ()), ('lm1b:2.0.0', ()), ('lm1b', ('title',)))
    ]
    assert found[0] not in found[1:]
    assert found[0] == sources.identity(tfds_set(folder, 'lm1b:10.0.0', 'documents'), ('train',))


BUILD = (
    'is not prepared in {0}; build it once, with the network and TensorFlow '
    '(./launch/environment.sh tf): tfds build {1} --file_format=array_record --data_dir={0}'
)


@pytest.mark.parametrize(
    ('path', 'said'),
    [
        ('glu/sst2', "neither TFDS nor {0} has a set 'glu'; did you mean glue?"),
        ('mein', "neither TFDS nor {0} has a set 'mein'; did you mean mine?"),
        ('glue/sst3', 'must be glue/CONFIG, with one of sst2, cola, mrpc, qqp, stsb, mnli, mnli_mismatched, mnli_matched, ...; did you mean sst2?'),
        ('glue', 'must be glue/CONFIG, with one of sst2, cola, mrpc, qqp, stsb, mnli, mnli_mismatched, mnli_matched, ...'),
        ('wmt16_translate/en-ro', 'must be wmt16_translate/CONFIG, with one of ro-en, cs-en, de-en, fi-en, ru-en, tr-en'),
        ('lm1b:3.0.0', '{0}/lm1b has version 1.0.0, 2.0.0, 10.0.0; did you mean 2.0.0?'),
        ('glue/qqp', BUILD.replace('{1}', 'glue/qqp')),
        ('gigaword', BUILD.replace('{1}', 'gigaword')),
        ('yelp_polarity_reviews', BUILD.replace('{1}', 'yelp_polarity_reviews')),
        ('wikipedia/20230601.en', BUILD.replace('{1}', 'wikipedia/20230601.en')),
    ],
)  # fmt: skip
def test_a_set_that_is_not_there_is_named_with_what_is_near_or_builds_it(folder, path, said):
    line = source_cases.check_error(tfds_set(folder, path))
    assert line == f'config.data.path = {path}: {said.format(folder)}'


@pytest.mark.parametrize(
    ('path', 'columns', 'said'),
    [
        ('mine', (), 'config.data.columns = (): must name those of mine: the set has body, score'),
        ('mine', ('bodi',), "config.data.columns = ('bodi',): mine has no 'bodi': the set has body, score; did you mean body?"),
        ('mine', ('score',), "config.data.columns = ('score',): 'score' must be text"),
        ('mine', ('body', '', 'score'), "config.data.columns = ('body', '', 'score'): 'score' must be a class"),
        ('mine', ('', 'body'), "config.data.columns = ('', 'body'): must name those of mine: the set has body, score"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_named(folder, path, columns, said):
    c = tfds_set(folder, path, 'documents', columns=columns)
    assert source_cases.check_error(c) == said


def test_a_set_of_another_kind_than_the_objective_learns_from_is_told(folder):
    c = tfds_set(folder, 'wmt16_translate/ro-en', 'classes')
    said = "config.data.source = 'tfds': wmt16_translate/ro-en has targets, which objective 'classify' does not learn from"
    assert source_cases.read_error(c) == said


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of glue/sst2, and its folder."""
    shutil.copytree(folder / 'glue', tmp_path / 'glue')
    return tfds_set(tmp_path, 'glue/sst2'), tmp_path / 'glue/sst2/1.0.0'


@pytest.mark.parametrize('size', [0, 10, 70_000])
def test_a_set_that_is_cut_short_is_named(damaged, size):
    c, place = damaged
    file = next(place.glob('*-train*'))
    file.write_bytes(file.read_bytes()[:size])
    line = source_cases.read_error(c)
    assert line.startswith(f"{place}: split 'train' cannot be read: ")


def test_a_set_whose_file_is_gone_is_named(damaged):
    c, place = damaged
    next(place.glob('*-train*')).unlink()
    assert source_cases.read_error(c).startswith(f"{place}: split 'train' cannot be read: ")


def test_a_set_whose_description_is_damaged_is_named(damaged):
    c, place = damaged
    (place / 'dataset_info.json').write_text('{"name":')
    assert source_cases.read_error(c).startswith(f'{place}: must be a dataset that TFDS prepared: ')


def test_a_set_in_another_format_is_told_how_to_build_it(damaged):
    c, place = damaged
    info = place / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    assert source_cases.read_error(c) == (
        f'{place}: is prepared as tfrecord, must be array_record; build it once, with the network '
        'and TensorFlow (./launch/environment.sh tf): tfds build glue/sst2 '
        f'--file_format=array_record --data_dir={place.parents[2]} --overwrite'
    )


def test_a_bucket_of_sets_must_be_mounted():
    c = tfds_set('gs://bucket/sets', 'lm1b', 'documents')
    assert source_cases.read_error(c) == (
        'config.data.tfds_dir = gs://bucket/sets: ArrayRecord needs a folder, mount the bucket '
        'with gcsfuse and name that'
    )


def test_the_sets_of_the_paper_are_known_with_their_columns():
    paper = {'glue', 'gigaword', 'wmt16_translate', 'yelp_polarity_reviews', 'wikipedia', 'lm1b'}
    assert paper <= {*tfds.builder_names()}
    assert {name.split('/')[0] for name in tfds.COLUMNS} <= {*tfds.builder_names()}
    assert all(name in tfds._builder_configs('glue') for name in ('sst2', 'qqp', 'mrpc'))


@pytest.mark.e2e
def test_a_set_is_read_and_a_typo_answered_in_silence_without_tensorflow(folder):
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
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code, str(folder)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = (
        f"config.data.path = lm2b: neither TFDS nor {folder} has a set 'lm2b'; did you mean lm1b?"
    )
    assert (done.stdout, done.stderr) == (f'{said}\n\n', '')
