"""The command that prepares datasets: its files, its output and its error messages."""

import json
import os
import pathlib
import shutil

import pytest
import tokenizers as reference
from helpers import corpus

from lightpaff_jax import config
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data import prepare, records, sources, tokenizers
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import storage

DATA = os.environ.get('LIGHTPAFF_DATA')
ROOT = pathlib.Path(config.__file__).parents[2]


def call(capsys, *argv):
    """Runs the command; returns its exit code, stdout and stderr."""
    capsys.readouterr()
    return prepare.main(argv), *capsys.readouterr()


def error_line(capsys, *argv):
    """Returns the only line on stderr of a command that fails, without `error: `."""
    code, _, err = call(capsys, *argv)
    *others, line = err.splitlines()
    assert code == 2
    assert others == []
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Returns a folder with text and a vocabulary."""
    folder = tmp_path_factory.mktemp('prepare')
    corpus.write_random_text(folder / 'text', 30_000)
    (folder / 'vocabulary').mkdir()
    corpus.wordpiece_tokenizer(folder / 'vocabulary')
    return folder


@pytest.fixture
def arguments(place, tmp_path):
    """Returns the required arguments."""
    return (
        f'--source=text:{place}/text',
        f'--tokenizer={place}/vocabulary',
        f'--out={tmp_path}/set',
        '--workers=1',
    )


def config_for(folder):
    """Returns a configuration that names only the folder of the dataset."""
    c = config.default()
    c.data.source, c.data.path = 'prepared', str(folder)
    return c


def test_printed_counts_equal_direct_tokenization(capsys, arguments, place, tmp_path):
    code, out, err = call(capsys, *arguments, '--config.data.length=64')
    assert (code, err) == (0, '')
    direct = reference.Tokenizer.from_file(str(tmp_path / 'set/tokenizer/tokenizer.json'))
    for split, line in zip(sources.SPLITS, out.splitlines(), strict=False):
        documents = (place / f'text/{split}.txt').read_text().rstrip('\n').split('\n\n')
        tokens = sum(
            len(encoding.ids)
            for encoding in direct.encode_batch(documents, add_special_tokens=False)
        )
        words = sum(len(document.split()) for document in documents) + 2 * len(documents) - 1
        assert line == (
            f'{split}: {len(documents):,} documents, {words:,} words, '
            f'{tokens + len(documents):,} tokens, {-(-(tokens + len(documents)) // 64):,} records, 1 shards'
        )
    assert out.splitlines()[-1].startswith(f'{tmp_path}/set: hash ')


def test_run_needs_only_the_folder_of_the_dataset(capsys, arguments, tmp_path):
    call(capsys, *arguments, '--config.data.length=64')
    c = config_for(tmp_path / 'set')
    c.data.length, c.student.vocab_size = 64, 128
    validate.validate(c)
    tokenizer = selection.load(c)
    prepared = prepare.prepare(c, tokenizer)
    ids = prepared.records('test')[0].first.tolist()
    first = next(sources.examples(text_config(arguments), 'test')).first
    assert ids[1 : 1 + len(first.split())] == tokenizer.encode([first])[0][: len(first.split())]


def text_config(arguments):
    c = config.default()
    c.data.source, _, c.data.path = arguments[0].partition('=')[2].partition(':')
    return c


def test_finished_dataset_is_not_built_again(capsys, arguments, tmp_path):
    call(capsys, *arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*')}
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, '')
    assert out.startswith(f'{tmp_path}/set: is prepared already\ntrain: ')
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*')} == before


@pytest.mark.parametrize('damage', ['gone', 'short'])
def test_finished_dataset_with_a_damaged_shard_is_an_error(capsys, arguments, tmp_path, damage):
    call(capsys, *arguments)
    shard = tmp_path / 'set' / 'test-00000.array_record'
    shard.write_bytes(shard.read_bytes()[:-9])
    if damage == 'gone':
        shard.unlink()
    line = error_line(capsys, *arguments)
    assert line.startswith(f'{shard}: ')
    assert line.endswith(f'; remove {tmp_path}/set and prepare it again')


def test_missing_tokenizer_of_a_dataset_is_restored(capsys, arguments, tmp_path):
    call(capsys, *arguments)
    before = corpus.file_digests(tmp_path / 'set')
    shutil.rmtree(tmp_path / 'set' / 'tokenizer')
    code, out, _ = call(capsys, *arguments)
    assert (code, 'is prepared already' in out) == (0, True)
    assert corpus.file_digests(tmp_path / 'set') == before


@pytest.mark.parametrize(
    ('flag', 'wanted'),
    [([], 7), (['--config.data.workers=1'], 1), (['--config.data.workers=3'], 3)],
)
def test_number_of_workers_is_the_cores_or_the_flag(arguments, monkeypatch, flag, wanted):
    monkeypatch.setattr(prepare, '_cores', lambda: 7)
    c, _ = prepare._configure(flags.arguments([*arguments[:3], *flag], prepare._FLAGS))
    assert c.data.workers == wanted


def test_command_and_cache_build_the_same_content(capsys, arguments, place, tmp_path):
    call(capsys, *arguments, '--shard-tokens=900', '--config.data.length=64')
    c = text_config(arguments)
    c.data.length, c.data.cache = 64, str(tmp_path / 'cache')
    prepared = prepare.prepare(c, tokenizers.read(str(place / 'vocabulary')))
    manifest = records.Dataset(str(tmp_path / 'set'), records.read_manifest(tmp_path / 'set'))
    assert manifest.hash == prepared.hash


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ('--config.data.length=64', 'lengths: [128, 0], not [64, 0]'),
        ('--config.data.packing=best_fit', "packing: 'contiguous', not 'best_fit'"),
        ('--shard-tokens=1000', 'shard_tokens: 16777216, not 1000'),
    ],
)
def test_error_names_the_changes_of_another_dataset(capsys, arguments, tmp_path, change, says):
    call(capsys, *arguments)
    before = corpus.file_digests(tmp_path / 'set')
    line = error_line(capsys, *arguments, change)
    assert line.startswith(f'--out={tmp_path}/set: holds another dataset ({says}')
    assert corpus.file_digests(tmp_path / 'set') == before


def test_changed_text_is_another_dataset(capsys, arguments, place, tmp_path):
    corpus.write_random_text(tmp_path / 'text', 5000)
    argv = (f'--source=text:{tmp_path}/text', *arguments[1:])
    call(capsys, *argv)
    (tmp_path / 'text/test.txt').write_text('the dog')
    assert 'holds another dataset (made_from.files.test' in error_line(capsys, *argv)


@pytest.mark.parametrize(
    ('argv', 'objective', 'kind', 'dtype'),
    [
        (('--config.objective=mlm',), 'mlm', 'blocks', '<u2'),
        (('--config.objective=mass', '--config.data.packing=best_fit'), 'mass', 'packed', '<u2'),
    ],
)
def test_keys_of_the_configuration_reach_the_manifest(
    capsys, arguments, tmp_path, argv, objective, kind, dtype
):
    code, _, err = call(capsys, *arguments, *argv)
    assert (code, err) == (0, '')
    manifest = records.read_manifest(tmp_path / 'set')
    assert (manifest['objective'], manifest['kind'], manifest['dtype']) == (objective, kind, dtype)


def test_pairs_and_targets_are_prepared(capsys, arguments, tmp_path):
    rows = ['a b\tthe dog\t1', 'b\tfox\t0', 'a', 'a b a\tquick\t1']
    (tmp_path / 'table').mkdir()
    for split in sources.SPLITS:
        text = '\n'.join(['first\tsecond\tclass', *rows]) + '\n'
        (tmp_path / 'table' / f'{split}.tsv').write_text(text)
    table = (f'--source=table:{tmp_path}/table', arguments[1], arguments[3])
    pairs = (
        '--config.objective=classify',
        '--config.data.columns=first,second,class',
        '--config.data.classes=2',
        '--config.data.length=16',
    )
    line = error_line(capsys, *table, *pairs, f'--out={tmp_path}/pairs')
    assert 'train.tsv' in line
    assert [path.name for path in (tmp_path / 'pairs').iterdir()] == ['tokenizer']
    code, out, err = call(capsys, *table, *pairs, f'--out={tmp_path}/pairs', '--on-error=skip')
    assert code == 0
    assert err.count('skipped: ') == 3
    assert out.count('3 examples, ') == out.count(', 1 malformed rows skipped') == 3
    manifest = records.read_manifest(tmp_path / 'pairs')
    assert (manifest['classes'], manifest['splits']['train']['pairs']) == (2, 3)
    targets = (
        '--config.objective=seq2seq',
        '--config.data.columns=first,second',
        '--config.data.target_length=8',
        '--on-error=skip',
    )
    code, out, _ = call(capsys, *table, *targets, f'--out={tmp_path}/targets')
    assert code == 0
    prepared = records.Dataset(f'{tmp_path}/targets', records.read_manifest(tmp_path / 'targets'))
    assert prepared.records('train').lengths().tolist() == [[2, 2], [1, 3], [3, 5]]


@pytest.mark.parametrize(
    ('source', 'flags', 'names'),
    [
        ('sst2', (), ('negative', 'positive')),
        (
            'table',
            ('--config.data.columns=sentence,,label', '--config.data.labels=1,0'),
            ('1', '0'),
        ),
        ('table', ('--config.data.columns=sentence,,label', '--config.data.classes=2'), ()),
    ],
)
def test_dataset_keeps_the_class_names_of_its_source(
    capsys, arguments, tmp_path, source, flags, names
):
    (tmp_path / 'rows').mkdir()
    for split in ('train', 'dev', 'test'):
        (tmp_path / f'rows/{split}.tsv').write_text('sentence\tlabel\n' + 40 * 'a b\t0\nc d\t1\n')
    argv = (f'--source={source}:{tmp_path}/rows', '--config.objective=classify', *flags)
    assert call(capsys, *arguments[1:], *argv)[0] == 0
    c, file = config_for(tmp_path / 'set'), tmp_path / 'set/manifest.json'
    assert sources.class_names(c) == names
    manifest = json.loads(file.read_text())
    del manifest['class_names']  # as an earlier version wrote it
    storage.write_json(file, manifest)
    assert sources.class_names(c) == names


@pytest.mark.parametrize(
    ('change', 'rule'),
    [
        ({'class_names': ['a']}, 'has the classes a: must be 0 different names'),
        ({'class_names': 'ab'}, 'class_names = "ab": must be a list'),
        ({'made_from': []}, 'made_from = []: must be an object'),
        ({'made_from': {'keys': {'labels': 'ab'}}}, 'made_from.keys.labels = "ab": must be a list'),
        ({'made_from': {'keys': {'labels': ['a', 3]}}}, 'labels[1] = 3: must be text'),
        (
            {'made_from': {'keys': {'labels': ['a']}}},
            'has the classes a: must be 0 different names',
        ),
    ],
)
def test_malformed_class_names_of_a_dataset_are_one_line(tmp_path, change, rule):
    manifest = {'format': 3, 'objective': 'clm', 'source': 'text', 'splits': {}, 'classes': 0}
    manifest |= {'dtype': '<u2', 'kind': 'blocks', 'lengths': [8, 0], 'packing': 'stream'}
    manifest |= {'vocabulary': {'hash': 'a', 'size': 9}}
    storage.write_json(tmp_path / 'manifest.json', manifest | change)
    with pytest.raises(UserError) as error:
        sources.class_names(config_for(tmp_path))
    assert str(error.value).startswith(f'{tmp_path}/manifest.json: ')
    assert str(error.value).endswith(rule)


def test_vocabulary_is_trained_once_and_saved(capsys, arguments, tmp_path, monkeypatch):
    argv = (
        arguments[0],
        *arguments[2:],
        '--train-tokenizer=300',
        f'--config.data.cache={tmp_path}/cache',
    )
    code, _, err = call(capsys, *argv, '--config.objective=mlm')
    assert (code, err) == (0, '')
    tokenizer = tokenizers.read(str(tmp_path / 'set/tokenizer'))
    assert (tokenizer.vocab_size, tokenizer.mask_id is None) == (300, False)
    assert records.read_manifest(tmp_path / 'set')['vocabulary']['hash'] == tokenizer.fingerprint
    monkeypatch.setattr(tokenizers, 'train', None)
    code, out, _ = call(capsys, *argv, '--config.objective=mlm')
    assert (code, 'is prepared already' in out) == (0, True)


def test_recipe_file_sets_other_keys(capsys, arguments, tmp_path):
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        'from lightpaff_jax import config\n'
        'def get_config(preset=""):\n'
        '    c = config.default()\n'
        '    c.data.length, c.student.vocab_size = 48, 100\n'
        '    return c\n'
    )
    code, _, err = call(capsys, *arguments, f'--config={recipe}')
    assert (code, err) == (0, '')
    assert records.read_manifest(tmp_path / 'set')['lengths'] == [48, 0]


BASE = '--source=text:{text} --out={out} --tokenizer={v}'
# Arguments | a part of the message.
MISTAKES = r"""
--source=text:{text} --out={out} | one of --tokenizer=PATH and --train-tokenizer=SIZE must
BASE --train-tokenizer=300 | one of --tok
--out={out} --tokenizer={v} | --source: must be given
--source=text:{text} --tokenizer={v} | --out: must be given
--sources=text:{text} | argument '--sources=text:{text}': must be one of --source,
--sources=text:{text} | ; did you mean --source?
--source | argument '--source': must be followed by a value
--source=a --source=b | --source: must be given once
--source=txt:{text} --out={out} --tokenizer={v} | --source=txt:{text}: must be NAME:PATH with
--source=txt:{text} --out={out} --tokenizer={v} --config.objective=mlm | did you mean text?
--source=gs://x --out={out} --tokenizer={v} --config.objective=mlm | --source=gs://x: must be NAME:
--source=text:{text} --out=gs://b/x --tokenizer={v} | --out=gs://b/x: ArrayRecord needs a folder
--source=text:{text} --out={out} --train-tokenizer=300 --config.tokenizer.path={v} | --train-tokenizer=300: config.tokenizer.path = {v} names another tokenizer, must be one of both
BASE --config.tokenizer.path={v}/vocab.txt | --tokenizer={v}: config.tokenizer.path = {v}/vocab.txt names another tokenizer, must be one of both
--source=prepared:{text} --out={out} --tokenizer={v} | --source=prepared: must have text
BASEx | tokenizer.path = {v}x: no such file
--source=text:{text}x --out={out} --tokenizer={v} | data.path = {text}x: no such path
--source=text --out={out} --tokenizer={v} | data.path = '': must be a folder
--source=text:{text} --out={text} --tokenizer={v} | --out={text}: must be empty or hold
--source=text:{text} --out={v}/vocab.txt --tokenizer={v} | vocab.txt: must be a folder
BASE --workers=0 | --workers=0: must be a
BASE --shard-tokens=many | must be a whole
BASE --config.tokenizer.reduce=text:{text} | config.tokenizer.reduce = text:{text}: is not read here
--source=text:{text} --out={out} --train-tokenizer=9 | such a vocabulary cannot be trained
BASE --on-error=skp | did you mean skip?
BASE --config.data.lengt=9 | did you mean
BASE --config.objective=cml | did you mean clm
BASE --config.objective=classify | documents
""".strip().splitlines()


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistake_is_one_line_with_its_cause(capsys, place, tmp_path, mistake):
    names = {'text': place / 'text', 'v': place / 'vocabulary', 'out': tmp_path / 'set'}
    cache = f'--config.data.cache={tmp_path}/cache'
    argv, message = mistake.replace('BASE', BASE).format(**names).split(' | ')
    assert message in error_line(capsys, *argv.split(), cache)


def test_help_is_printed(capsys):
    code, out, _ = call(capsys, '--help')
    assert (code, out.split()[:3]) == (0, ['python', '-m', 'lightpaff_jax.data.prepare'])
    assert call(capsys)[0] == 2


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names no folder')
def test_wikitext_tokens_equal_direct_tokenization(capsys, tmp_path):
    base, names = f'{DATA}/tokenizers/gpt2', ('encoder.json', 'vocab.bpe')
    argv = (
        f'--source=text:{DATA}/wikitext-2',
        f'--tokenizer={base}',
        f'--out={tmp_path}/set',
        '--config.data.held_out=0.05',
    )
    code, _, _ = call(capsys, *argv, '--config.data.length=1024')
    assert code == 0
    direct = reference.Tokenizer(reference.models.BPE.from_file(*(f'{base}/{n}' for n in names)))
    direct.pre_tokenizer = reference.pre_tokenizers.ByteLevel(add_prefix_space=False)
    c = text_config(argv)
    c.data.held_out = 0.05
    manifest = records.read_manifest(tmp_path / 'set')['splits']
    for split in sources.SPLITS:
        texts = [example.first for example in sources.examples(c, split)]
        ids = sum(len(encoding.ids) for encoding in direct.encode_batch(texts))
        assert manifest[split]['tokens'] == ids + len(texts)
