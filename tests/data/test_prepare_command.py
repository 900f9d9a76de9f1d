"""Claims about the command that prepares a set: what it makes, and its mistakes are a line."""

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

DATA = os.environ.get('LIGHTPAFF_DATA')
ROOT = pathlib.Path(config.__file__).parents[2]


def call(capsys, *argv):
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    return prepare.main(argv), *capsys.readouterr()


def mistake(capsys, *argv):
    """The line that the command ends with, without `error: `."""
    code, _, err = call(capsys, *argv)
    *others, line = err.splitlines()
    assert code == 2
    assert others == []
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with text and a vocabulary."""
    folder = tmp_path_factory.mktemp('prepare')
    corpus.write_random_text(folder / 'text', 30_000)
    (folder / 'vocabulary').mkdir()
    corpus.wordpiece_tokenizer(folder / 'vocabulary')
    return folder


@pytest.fixture
def given(place, tmp_path):
    """The arguments that must be there."""
    return (
        f'--source=text:{place}/text', f'--tokenizer={place}/vocabulary', f'--out={tmp_path}/set',
        '--workers=1',
    )  # fmt: skip


def reading(folder):
    """A configuration that reads the set, and names nothing else."""
    c = config.default()
    c.data.source, c.data.path = 'prepared', str(folder)
    return c


def test_the_counts_are_those_of_a_direct_encoding(capsys, given, place, tmp_path):
    code, out, err = call(capsys, *given, '--config.data.length=64')
    assert (code, err) == (0, '')
    direct = reference.Tokenizer.from_file(str(tmp_path / 'set/tokenizer/tokenizer.json'))
    for split, line in zip(sources.SPLITS, out.splitlines(), strict=False):
        documents = (place / f'text/{split}.txt').read_text().rstrip('\n').split('\n\n')
        tokens = sum(
            len(one.ids) for one in direct.encode_batch(documents, add_special_tokens=False)
        )
        words = sum(len(document.split()) for document in documents) + 2 * len(documents) - 1
        assert line == (
            f'{split}: {len(documents):,} documents, {words:,} words, '
            f'{tokens + len(documents):,} tokens, {-(-(tokens + len(documents)) // 64):,} records, 1 shards'
        )
    assert out.splitlines()[-1].startswith(f'{tmp_path}/set: hash ')


def test_the_set_is_read_with_nothing_but_its_folder(capsys, given, tmp_path):
    call(capsys, *given, '--config.data.length=64')
    c = reading(tmp_path / 'set')
    c.data.length, c.student.vocab_size = 64, 128
    validate.validate(c)
    tokenizer = selection.load(c)
    found = prepare.prepare(c, tokenizer)
    ids = found.records('test')[0].first.tolist()
    first = next(sources.examples(_text(given), 'test')).first
    assert ids[1 : 1 + len(first.split())] == tokenizer.encode([first])[0][: len(first.split())]


def _text(given):
    c = config.default()
    c.data.source, _, c.data.path = given[0].partition('=')[2].partition(':')
    return c


def test_a_finished_set_is_not_made_again(capsys, given, tmp_path):
    call(capsys, *given)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*')}
    code, out, err = call(capsys, *given)
    assert (code, err) == (0, '')
    assert out.startswith(f'{tmp_path}/set: is prepared already\ntrain: ')
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'set').rglob('*')} == before


@pytest.mark.parametrize('damage', ['gone', 'short'])
def test_a_finished_set_that_lacks_a_part_of_a_shard_is_an_error(capsys, given, tmp_path, damage):
    call(capsys, *given)
    shard = tmp_path / 'set' / 'test-00000.array_record'
    shard.write_bytes(shard.read_bytes()[:-9])
    if damage == 'gone':
        shard.unlink()
    line = mistake(capsys, *given)
    assert line.startswith(f'{shard}: ')
    assert line.endswith(f'; remove {tmp_path}/set and prepare it again')


def test_a_finished_set_that_lacks_its_tokenizer_has_it_again(capsys, given, tmp_path):
    call(capsys, *given)
    before = corpus.file_digests(tmp_path / 'set')
    shutil.rmtree(tmp_path / 'set' / 'tokenizer')
    code, out, _ = call(capsys, *given)
    assert (code, 'is prepared already' in out) == (0, True)
    assert corpus.file_digests(tmp_path / 'set') == before


@pytest.mark.parametrize(('flag', 'wanted'), [([], 7), (['--config.data.workers=1'], 1),
                                              (['--config.data.workers=3'], 3)])  # fmt: skip
def test_as_many_processes_tokenize_as_are_asked_for(given, monkeypatch, flag, wanted):
    monkeypatch.setattr(prepare, '_cores', lambda: 7)
    c, _ = prepare._configure(flags.arguments([*given[:3], *flag], prepare._FLAGS))
    assert c.data.workers == wanted


def test_a_run_finds_in_the_cache_what_the_command_would_make(capsys, given, place, tmp_path):
    """One hash for one content, in whatever shards."""
    call(capsys, *given, '--shard-tokens=900', '--config.data.length=64')
    c = _text(given)
    c.data.length, c.data.cache = 64, str(tmp_path / 'cache')
    found = prepare.prepare(c, tokenizers.read(str(place / 'vocabulary')))
    made = records.Dataset(str(tmp_path / 'set'), records.read_manifest(tmp_path / 'set'))
    assert made.hash == found.hash


@pytest.mark.parametrize(
    ('change', 'says'),
    [('--config.data.length=64', 'lengths: [128, 0], not [64, 0]'),
     ('--config.data.packing=best_fit', "packing: 'contiguous', not 'best_fit'"),
     ('--shard-tokens=1000', 'shard_tokens: 16777216, not 1000')],
)  # fmt: skip
def test_another_set_in_the_folder_is_an_error_that_says_what_differs(
    capsys, given, tmp_path, change, says
):
    call(capsys, *given)
    before = corpus.file_digests(tmp_path / 'set')
    line = mistake(capsys, *given, change)
    assert line.startswith(f'--out={tmp_path}/set: holds another dataset ({says}')
    assert corpus.file_digests(tmp_path / 'set') == before


def test_text_that_changed_is_another_set(capsys, given, place, tmp_path):
    corpus.write_random_text(tmp_path / 'text', 5000)
    argv = (f'--source=text:{tmp_path}/text', *given[1:])
    call(capsys, *argv)
    (tmp_path / 'text/test.txt').write_text('the dog')
    assert 'holds another dataset (made_from.files.test' in mistake(capsys, *argv)


@pytest.mark.parametrize(
    ('argv', 'objective', 'kind', 'dtype'),
    [(('--config.objective=mlm',), 'mlm', 'blocks', '<u2'),
     (('--config.objective=mass', '--config.data.packing=best_fit'), 'mass', 'packed', '<u2')],
)  # fmt: skip
def test_any_key_makes_a_set_that_a_run_with_it_reads(
    capsys, given, tmp_path, argv, objective, kind, dtype
):
    code, _, err = call(capsys, *given, *argv)
    assert (code, err) == (0, '')
    made = records.read_manifest(tmp_path / 'set')
    assert (made['objective'], made['kind'], made['dtype']) == (objective, kind, dtype)


def test_examples_of_every_kind_are_prepared(capsys, given, tmp_path):
    rows = ['a b\tthe dog\t1', 'b\tfox\t0', 'a', 'a b a\tquick\t1']
    (tmp_path / 'table').mkdir()
    for split in sources.SPLITS:
        text = '\n'.join(['first\tsecond\tclass', *rows]) + '\n'
        (tmp_path / 'table' / f'{split}.tsv').write_text(text)
    table = (f'--source=table:{tmp_path}/table', given[1], given[3])
    pairs = ('--config.objective=classify', '--config.data.columns=first,second,class',
             '--config.data.classes=2', '--config.data.length=16')  # fmt: skip
    line = mistake(capsys, *table, *pairs, f'--out={tmp_path}/pairs')
    assert 'train.tsv' in line
    assert [path.name for path in (tmp_path / 'pairs').iterdir()] == ['tokenizer']
    code, out, err = call(capsys, *table, *pairs, f'--out={tmp_path}/pairs', '--on-error=skip')
    assert code == 0
    assert err.count('skipped: ') == 3
    assert out.count('3 examples, ') == out.count(', 1 malformed rows skipped') == 3
    made = records.read_manifest(tmp_path / 'pairs')
    assert (made['classes'], made['splits']['train']['pairs']) == (2, 3)
    targets = ('--config.objective=seq2seq', '--config.data.columns=first,second',
               '--config.data.target_length=8', '--on-error=skip')  # fmt: skip
    code, out, _ = call(capsys, *table, *targets, f'--out={tmp_path}/targets')
    assert code == 0
    found = records.Dataset(f'{tmp_path}/targets', records.read_manifest(tmp_path / 'targets'))
    assert found.records('train').lengths().tolist() == [[2, 2], [1, 3], [3, 5]]


def test_a_vocabulary_is_trained_once_and_kept(capsys, given, tmp_path, monkeypatch):
    argv = (given[0], *given[2:], '--train-tokenizer=300', f'--config.data.cache={tmp_path}/cache')
    code, _, err = call(capsys, *argv, '--config.objective=mlm')
    assert (code, err) == (0, '')
    kept = tokenizers.read(str(tmp_path / 'set/tokenizer'))
    assert (kept.vocab_size, kept.mask_id is None) == (300, False)
    assert records.read_manifest(tmp_path / 'set')['vocabulary']['hash'] == kept.fingerprint
    monkeypatch.setattr(tokenizers, 'train', None)
    code, out, _ = call(capsys, *argv, '--config.objective=mlm')
    assert (code, 'is prepared already' in out) == (0, True)


def test_a_recipe_file_says_the_rest(capsys, given, tmp_path):
    recipe = tmp_path / 'ours.py'
    recipe.write_text(
        'from lightpaff_jax import config\n'
        'def get_config(preset=""):\n'
        '    c = config.default()\n'
        '    c.data.length, c.student.vocab_size = 48, 100\n'
        '    return c\n'
    )
    code, _, err = call(capsys, *given, f'--config={recipe}')
    assert (code, err) == (0, '')
    assert records.read_manifest(tmp_path / 'set')['lengths'] == [48, 0]


MISTAKES = [
    (('--source=text:{text}', '--out={out}'), 'one of --tokenizer=PATH and --train-tokenizer=SIZE must'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--train-tokenizer=300'), 'one of --tok'),
    (('--out={out}', '--tokenizer={v}'), '--source: must be given'),
    (('--source=text:{text}', '--tokenizer={v}'), '--out: must be given'),
    (('--sources=text:{text}',), "argument '--sources=text:{text}': must be one of --source, "),
    (('--sources=text:{text}',), '; did you mean --source?'),
    (('--source',), "argument '--source': must be followed by a value"),
    (('--source=a', '--source=b'), '--source: must be given once'),
    (('--source=txt:{text}', '--out={out}', '--tokenizer={v}'), '--source=txt:{text}: must be NAME:PATH with'),
    (('--source=txt:{text}', '--out={out}', '--tokenizer={v}', '--config.objective=mlm'), 'did you mean text?'),
    (('--source=gs://x', '--out={out}', '--tokenizer={v}', '--config.objective=mlm'), '--source=gs://x: must be NAME:'),
    (('--source=text:{text}', '--out=gs://b/x', '--tokenizer={v}'), '--out=gs://b/x: ArrayRecord needs a folder'),
    (('--source=text:{text}', '--out={out}', '--train-tokenizer=300', '--config.tokenizer.path={v}'),
     '--train-tokenizer=300: config.tokenizer.path = {v} names another tokenizer, must be one of both'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--config.tokenizer.path={v}/vocab.txt'),
     '--tokenizer={v}: config.tokenizer.path = {v}/vocab.txt names another tokenizer, must be one of both'),
    (('--source=prepared:{text}', '--out={out}', '--tokenizer={v}'), '--source=prepared: must have text'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}x'), 'tokenizer.path = {v}x: no such file'),
    (('--source=text:{text}x', '--out={out}', '--tokenizer={v}'), 'data.path = {text}x: no such path'),
    (('--source=text', '--out={out}', '--tokenizer={v}'), "data.path = '': must be a folder"),
    (('--source=text:{text}', '--out={text}', '--tokenizer={v}'), '--out={text}: must be empty or hold'),
    (('--source=text:{text}', '--out={v}/vocab.txt', '--tokenizer={v}'), 'vocab.txt: must be a folder'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--workers=0'), '--workers=0: must be a'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--shard-tokens=many'), 'must be a whole'),
    (('--source=text:{text}', '--out={out}', '--train-tokenizer=9'), 'such a vocabulary cannot be trained'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--on-error=skp'), 'did you mean skip?'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--config.data.lengt=9'), 'did you mean'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--config.objective=cml'), 'did you mean clm'),
    (('--source=text:{text}', '--out={out}', '--tokenizer={v}', '--config.objective=classify'), 'documents'),
]  # fmt: skip


@pytest.mark.parametrize(('argv', 'says'), MISTAKES)
def test_a_mistake_is_one_line_that_names_it(capsys, place, tmp_path, argv, says):
    names = {'text': place / 'text', 'v': place / 'vocabulary', 'out': tmp_path / 'set'}
    cache = f'--config.data.cache={tmp_path}/cache'
    line = mistake(capsys, *(word.format(**names) for word in argv), cache)
    assert says.format(**names) in line


def test_help_is_printed(capsys):
    code, out, _ = call(capsys, '--help')
    assert (code, out.split()[:3]) == (0, ['python', '-m', 'lightpaff_jax.data.prepare'])
    assert call(capsys)[0] == 2


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names no folder')
def test_wikitext_has_the_tokens_of_a_direct_encoding(capsys, tmp_path):
    base, names = f'{DATA}/tokenizers/gpt2', ('encoder.json', 'vocab.bpe')
    argv = (f'--source=text:{DATA}/wikitext-2', f'--tokenizer={base}', f'--out={tmp_path}/set',
            '--config.data.held_out=0.05')  # fmt: skip
    code, _, _ = call(capsys, *argv, '--config.data.length=1024')
    assert code == 0
    direct = reference.Tokenizer(reference.models.BPE.from_file(*(f'{base}/{n}' for n in names)))
    direct.pre_tokenizer = reference.pre_tokenizers.ByteLevel(add_prefix_space=False)
    c = _text(argv)
    c.data.held_out = 0.05
    made = records.read_manifest(tmp_path / 'set')['splits']
    for split in sources.SPLITS:
        texts = [example.first for example in sources.examples(c, split)]
        ids = sum(len(one.ids) for one in direct.encode_batch(texts))
        assert made[split]['tokens'] == ids + len(texts)
