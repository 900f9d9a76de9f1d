"""Datasets that a configuration lists: decontamination, unlabelled texts, replaced words."""

import os
import pathlib

import pytest
from helpers import corpus

from lightpaff_jax import check, config
from lightpaff_jax.config import validate
from lightpaff_jax.data import prepare, sources
from lightpaff_jax.data.sources import decontaminate, specs
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.errors import MissingPaths, UserError

LONG = 'the tall ships come back to the old harbour every summer'


def write(folder: pathlib.Path, files: dict[str, str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture
def sst2(tmp_path):
    train = ''.join(f'a good film {n}\t{n % 2}\n' for n in range(40))
    dev = 'Well , it is a fine film indeed .\t1\nbad\t0\n'
    head = 'sentence\tlabel\n'
    return write(tmp_path / 'SST-2', {'train.tsv': head + train, 'dev.tsv': head + dev})


@pytest.fixture
def mr(tmp_path):
    positive = ''.join(f'warm and wise number {n}\n' for n in range(30))
    return write(
        tmp_path / 'MR',
        {
            'rt-polarity.pos': f'well, it is a fine film indeed!\n{positive}',
            'rt-polarity.neg': 'A good film 3 .\n' + positive.replace('warm', 'cold'),
        },
    )


def polarity(mr, **data):
    c = config.default()
    c.student.update({'family': 'bert', 'head': 'classify', 'classes': 2})
    c.objective = 'classify'
    c.data.update({'source': 'mr', 'path': mr, 'held_out': 0.1, **data})
    return c


def by_split(c):
    return {split: {e.first for e in sources.examples(c, split)} for split in sources.SPLITS}


def test_entry_has_keys_splits_and_weight():
    c = config.default()
    c.data.held_out = 0.2
    names = list(config.SOURCES)
    part = specs.part(
        c, 'data.decontaminate', 'table:data/x?columns=0,1&held_out=0.05#test,train', names
    )
    assert (part.c.data.source, part.c.data.path) == ('table', 'data/x')
    assert (part.c.data.columns, part.c.data.held_out) == (('0', '1'), 0.05)
    assert part.splits == ('test', 'train')
    plain = specs.weighted_part(c, 'data.mixture', 'text:data/y=0.5', names)
    assert (plain.c.data.held_out, plain.splits, plain.weight) == (0.2, sources.SPLITS, 0.5)


@pytest.mark.parametrize(
    ('entry', 'rule'),
    [
        ('txt:data/x', "'txt:data/x': must begin with one of .*; did you mean text"),
        ('text', "source 'text' must have a path"),
        ('pydocs:x', "source 'pydocs' must not have a path"),
        ('text:x#tset', "'tset' must be one of train, validation, test; did you mean test"),
        ('text:x?colums=a', "source 'text' does not read 'colums'; did you mean columns"),
        ('text:x?held_out=many', 'config.data.held_out = many: must be a number'),
    ],
)
def test_malformed_entry_is_one_line(entry, rule):
    with pytest.raises(UserError, match=rule) as error:
        specs.part(config.default(), 'data.decontaminate', entry, list(config.SOURCES))
    assert str(error.value).startswith(f'config.data.decontaminate = {entry!r}: ')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'entry', ['text:data/y', 'text:data/y=much', 'text:data/y=0', 'text:y=nan']
)
def test_part_of_a_mixture_needs_a_weight(entry):
    with pytest.raises(UserError, match='WEIGHT a number above 0'):
        specs.weighted_part(config.default(), 'data.mixture', entry, list(config.SOURCES))


def test_rows_of_another_dataset_are_dropped_from_train(mr, sst2):
    plain = by_split(polarity(mr))
    c = polarity(mr, decontaminate=(f'sst2:{sst2}?held_out=0.05',))
    left = by_split(c)
    both = {'well, it is a fine film indeed!', 'A good film 3 .'}
    assert plain['train'] - left['train'] == both
    assert plain['test'] == left['test']
    assert plain['validation'] == left['validation']
    c.data.decontaminate = (f'sst2:{sst2}?held_out=0.05#test',)
    assert plain['train'] - by_split(c)['train'] == {'well, it is a fine film indeed!'}
    assert sources.identity(c) != sources.identity(polarity(mr))


def test_evaluation_texts_are_dropped_from_pretraining(mr, sst2, tmp_path):
    book = f'He said: well it is a fine film indeed.\n\n{LONG}\n\nTwo words.\n'
    books = write(tmp_path / 'books', {f'{s}.txt': book for s in ('train', 'validation', 'test')})
    c = config.default()
    c.student.family, c.objective = 'bert', 'mlm'
    c.data.source = 'mixture'
    c.data.mixture = (f'text:{books}=0.5', f'mr:{mr}?held_out=0.1=0.5')
    before = [e.first for e in sources.examples(c, 'train')]
    c.data.decontaminate = (f'sst2:{sst2}?held_out=0.05#validation,test',)
    after = [e.first for e in sources.examples(c, 'train')]
    gone = set(before) - set(after)
    assert any('fine film' in text for text in gone)
    assert all('fine film' in text for text in gone)
    before = [e.first for e in sources.examples(c, 'test')]
    c.data.decontaminate = ()
    assert before == [e.first for e in sources.examples(c, 'test')]
    c.data.decontaminate = (f'sst2:{sst2}?held_out=0.05#validation,test',)
    parts = [part for part, _ in sources.parts(c)]
    assert [part.data.held_out for part in parts] == [0.0, 0.1]
    assert all(part.data.decontaminate == c.data.decontaminate for part in parts)


def test_decontaminate_uses_the_settings_of_the_run(tmp_path):
    """Both files have the same text; the listed dataset has the larger test share of the run."""
    text = '\n\n'.join(f'the weather of day {n} was as ever and {n} again' for n in range(200))
    a, b = (write(tmp_path / name, {'train.txt': text}) for name in 'ab')
    c = config.default()
    c.data.source, c.data.held_out, c.data.path = 'text', 0.3, b
    held = {e.first for e in sources.examples(c, 'test')}
    assert len(held) > 20
    c.data.source, c.data.path, c.data.mixture = 'mixture', '', (f'text:{a}?held_out=0.05=1',)
    read = {e.first for e in sources.examples(c, 'train')}
    assert held & read
    c.data.decontaminate = (f'text:{b}#test',)
    assert {e.first for e in sources.examples(c, 'train')} == read - held
    ((part, _),) = sources.parts(c)
    assert part.data.decontaminate == (f'text:{b}?held_out=0.3#test',)


@pytest.mark.parametrize('evaluated', ['dollars', 'euros'])
@pytest.mark.parametrize('learnt', ['dollars', 'euros'])
def test_text_is_dropped_before_and_after_repair(tmp_path, evaluated, learnt):
    line = 'a film that costs many {} and is worth none of them'
    other = 'another line of which nothing else is known at all'
    folder = write(
        tmp_path / 'x',
        {'train.txt': f'{line.format(learnt)}\n\n{other}', 'test.txt': line.format(evaluated)},
    )
    c = config.default()
    c.data.source, c.data.path, c.data.replace = 'text', folder, ('dollars=euros',)
    c.data.decontaminate = (f'text:{folder}#test',)
    assert [e.first for e in sources.examples(c, 'train')] == [other]
    c.data.decontaminate = ()
    assert [e.first for e in sources.examples(c, 'train')] == [line.format('euros'), other]


def test_text_is_dropped_if_only_one_side_is_repaired(tmp_path):
    line = 'there is nothing here that costs this many dollars'
    folder = write(tmp_path / 'x', {'train.txt': f'{line}.\n\nother', 'test.txt': line})
    c = config.default()
    c.data.source, c.data.path, c.data.replace = 'text', folder, ('dollars=euros',)
    c.data.decontaminate = (f'text:{folder}#test',)
    assert [e.first for e in sources.examples(c, 'train')] == ['other']


def test_unlabelled_text_is_repaired_and_decontaminated(tmp_path):
    line = 'a film that costs many dollars and is worth none of them'
    excluded = 'this one is of another set whose texts are not to be read'
    new = 'nobody has seen this text of five dollars or more'
    rows = ''.join(f'{text}\t1\n' for text in ('good', 'bad'))
    folder = write(
        tmp_path / 'x',
        {'train.tsv': rows, 'dev.tsv': f'{line}\t0\n', 'test.tsv': f'{line} again\t0\n'},
    )
    more = write(tmp_path / 'y', {'train.txt': '\n\n'.join([line, excluded, new, line[7:40]])})
    c = polarity(folder, source='table', held_out=0.0, columns=('0', '', '1'), classes=2)
    c.data.replace = ('dollars=euros',)
    c.data.unlabelled = (f'text:{more}#train',)
    c.data.decontaminate = (f'text:{write(tmp_path / "z", {"test.txt": excluded})}#test',)
    added = [e.first for e in sources.examples(c, 'train') if e.label < 0]
    assert added == [new.replace('dollars', 'euros')]


@pytest.mark.parametrize(
    ('query', 'message'),
    [
        ('documents=lines', "config.data.documents = 'lines': must be one of blank, line, file"),
        ('held_out=5', 'config.data.held_out = 5.0: must be at least 0 and below 0.5'),
        ('detokenize=wiki', "config.data.detokenize = 'wiki': must be one of none, wikitext, ptb"),
        ('on_error=foo', "config.data.on_error = 'foo': must be one of stop, skip"),
        ('columns=a,b', 'config.data.columns = a,b: must be at most 1'),
    ],
)
@pytest.mark.parametrize('key', ['mixture', 'decontaminate', 'unlabelled'])
def test_value_of_an_entry_is_checked(key, query, message):
    entry = f'text:data/x?{query}' + ('=1' if key == 'mixture' else '')
    make = specs.weighted_part if key == 'mixture' else specs.part
    with pytest.raises(UserError) as error:
        make(config.default(), f'data.{key}', entry, list(config.SOURCES))
    assert str(error.value).startswith(f'config.data.{key} = {entry!r}: {message}')


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ('parallel:x?suffixes=en', "must be two different suffixes for source 'parallel'"),
        ('parallel:x?suffixes=en,EN', "must be two different suffixes for source 'parallel'"),
        ('pydocs?view=txt', "config.data.view = 'txt': must be one of text, topic, pairs, summary"),
        ('table:x?columns=0,1,', 'config.data.columns = 0,1,: must name the column of the class'),
    ],
)
def test_error_names_a_value_its_source_cannot_have(entry, message):
    with pytest.raises(UserError) as error:
        specs.part(config.default(), 'data.decontaminate', entry, list(config.SOURCES))
    assert message in str(error.value)


def test_decontaminate_ignores_settings_of_a_part(tmp_path):
    """Entries of `decontaminate` inherit settings of the run, not of a part of its mixture."""
    table = 'a,b&c#d,label\nsome words of a text that is long,more,1\n'
    here = {f'{split}.csv': table for split in sources.SPLITS}
    names = ('a', 'b&c#d')
    task, two = (write(tmp_path / name, here) for name in ('task', 'two'))
    other = write(tmp_path / 'x', {'test.txt': 'some words of a text that is long'})
    c = config.default()
    c.data.source, c.data.columns = 'mixture', names
    c.data.mixture = (f'table:{task}=1', f'table:{two}?columns=a=1')
    assert len([*sources.examples(c, 'test')]) == 2 + 1
    c.data.decontaminate = (f'table:{task}#test',)
    second = sources.parts(c)[1][0]
    (read,) = sources._parts(second, 'data.decontaminate')
    assert read.c.data.columns == names
    c.data.decontaminate = (f'text:{other}#test',)
    (read,) = sources._parts(sources.parts(c)[1][0], 'data.decontaminate')
    assert read.splits == ('test',)


def test_listed_dataset_needs_only_the_splits_it_names(mr, tmp_path):
    more = write(tmp_path / 'more', {'train.txt': f'{LONG}\na new text\n'})
    entry = f'text:{more}?documents=line&held_out=0.0'
    c = polarity(mr, unlabelled=(f'{entry}#train',))
    sources.check(c)
    added = [example.first for example in sources.examples(c, 'train') if example.label < 0]
    assert added == [LONG, 'a new text']  # no share is held out
    c.data.unlabelled = (entry,)
    with pytest.raises(UserError, match=r"data\.unlabelled = .*: has no split 'validation'"):
        sources.check(c)


def test_error_names_unlabelled_text_that_is_all_dropped(mr, sst2):
    entry = f'sst2:{sst2}?held_out=0.05#train'
    c = polarity(mr, decontaminate=(f'sst2:{sst2}?held_out=0.05',), unlabelled=(entry,))
    with pytest.raises(UserError) as error:
        [*sources.examples(c, 'train')]
    assert str(error.value).startswith(
        f'config.data.unlabelled = {entry!r}: no text remains, all overlap with'
    )


def test_replace_changes_only_whole_words(tmp_path):
    folder = write(
        tmp_path / 'news',
        {f'{s}.{side}': 'UNK said UNKs UNK\n' for s in ('train', 'valid', 'test') for side in 'ab'},
    )
    c = config.default()
    c.student.update({'family': 'mass', 'decoder_layers': 1})
    c.objective, c.data.source, c.data.path, c.data.suffixes = (
        'seq2seq',
        'parallel',
        folder,
        ('a', 'b'),
    )
    c.data.replace = ('UNK=<unk>',)
    assert next(sources.examples(c, 'test'))[:2] == ('<unk> said UNKs <unk>',) * 2
    c.data.replace = ('UNK',)
    with pytest.raises(UserError, match=r"config.data.replace = 'UNK': must be OLD=NEW"):
        sources.check(c)


def test_unlabelled_text_has_no_class(mr, sst2, tmp_path, data_cache):
    c = polarity(mr, decontaminate=(f'sst2:{sst2}?held_out=0.05#test',))
    c.data.unlabelled = (f'sst2:{sst2}?held_out=0.05#train',)
    c.data.update({'cache': str(tmp_path / 'cache'), 'length': 16, 'batch_size': 8})
    c.student.vocab_size, c.loss.lambda_, c.teacher.path = 300, 0.3, 'somewhere'
    examples = [*sources.examples(c, 'train')]
    added = [e for e in examples if e.label < 0]
    assert len(added) == sum(1 for _ in sources.examples(_sst2(sst2), 'train'))
    assert all(e.first.startswith('a good film') for e in added)
    assert all(e.label >= 0 for split in ('validation', 'test') for e in sources.examples(c, split))
    tokenizer = selection.load(_without_teacher(c))
    prepared = prepare.prepare(c, tokenizer)
    batch = corpus.batch_at(c, prepared, tokenizer, 0)
    assert {-1, 0, 1} >= set(batch.labels.ravel().tolist()) > {-1}
    assert batch.weights.all()
    labelled = len(examples) - len(added)
    for share, more in ((0.25, round(labelled / 3)), (0.75, 3 * labelled)):
        c.data.unlabelled_share, c.data.batch_size = share, labelled + more  # a batch is an epoch
        for index in range(2):
            labels = corpus.batch_at(c, prepared, tokenizer, index).labels
            assert (labels < 0).sum() == more


def _sst2(path):
    return polarity(path, source='sst2', held_out=0.05)


def _without_teacher(c):
    """Returns a copy without the teacher, whose tokenizer would be read."""
    c = config.copy(c)
    c.teacher.path, c.data.unlabelled = '', ()
    return c


def test_unlabelled_text_needs_a_teacher_and_classes(mr, sst2):
    c = polarity(mr, unlabelled=(f'sst2:{sst2}?held_out=0.05',))
    with pytest.raises(UserError, match=r'data.unlabelled = sst2:.*: requires a teacher'):
        check.check(c)
    c.objective, c.student.head, c.student.classes = 'mlm', 'lm', 0
    with pytest.raises(
        UserError, match=r"data.unlabelled = sst2:.*: is only read for objective 'classify'"
    ):
        validate.validate(c)


def test_error_of_a_missing_dataset_names_its_key(mr):
    c = polarity(mr, decontaminate=('sst2:/nowhere?held_out=0.05',))
    rule = r"data.decontaminate = 'sst2:/nowhere.*': /nowhere: no such path, put a folder with train.tsv"
    with pytest.raises(MissingPaths, match=rule):
        sources.check(c)
    c = polarity(mr)
    c.data.source, c.data.mixture = 'mixture', ('text:/nowhere=1',)
    c.data.path, c.data.held_out, c.objective = '', 0.0, 'mlm'
    with pytest.raises(MissingPaths, match='/nowhere: no such path, put a folder with files'):
        sources.check(c)


DATA = os.environ.get('LIGHTPAFF_DATA', '')


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names a folder with real sets')
def test_polarity_and_sst2_share_no_sentence():
    from lightpaff_jax.config import flags

    configs = pathlib.Path(__file__).parents[3] / 'configs'
    read = {}
    for task in ('sst2', 'polarity'):
        c = flags.load(f'{configs}/bert_stage2.py:{task}_small')
        c.data.path = c.data.path.replace('data', DATA, 1)
        c.data.decontaminate = tuple(e.replace(':data', f':{DATA}') for e in c.data.decontaminate)
        c.data.unlabelled = ()
        read[task] = {s: [e.first for e in sources.examples(c, s)] for s in sources.SPLITS}
    assert len(read['sst2']['test']) == 872
    assert len(read['sst2']['train']) > 50_000
    assert len(read['polarity']['train']) > 5000
    learnt = [
        {''.join(decontaminate._words(t)) for t in splits['train']} for splits in read.values()
    ]
    assert not learnt[0] & learnt[1]
    # Rows of SST-2's validation split are phrases; MR can have their sentences.
    for task, names, other in (
        ('sst2', ('test',), 'polarity'),
        ('polarity', ('validation', 'test'), 'sst2'),
    ):
        evaluated = decontaminate.OverlapIndex()
        for text in (text for split in names for text in read[task][split]):
            evaluated.add(text, is_document=False)
        assert not any(
            evaluated.overlaps(text, decontaminate.MIN_SENTENCE_WORDS)
            for text in read[other]['train']
        )


@pytest.mark.skipif(not DATA, reason='LIGHTPAFF_DATA names a folder with real sets')
@pytest.mark.parametrize('family', ['bert', 'gpt2', 'mass'])
def test_pretraining_has_no_evaluation_sentence(family, data_cache):
    from lightpaff_jax.config import flags
    from lightpaff_jax.recipe import plan

    configs = pathlib.Path(__file__).parents[3] / 'configs'
    c = flags.load(f'{configs}/{family}.py:small')
    c.recipe.data, c.workdir, c.data.cache = DATA, 'work', data_cache
    runs, table = plan.expand(c)
    pretraining = [e.first for e in sources.examples(runs['teacher_pretrain'], 'train')]
    assert len(pretraining) > 1000
    text = ' | '.join(' '.join(decontaminate._words(document)) for document in pretraining)
    text = f' {text} '
    for entry in table['tasks'].values():
        task = runs[entry['teacher'][-1]]
        for split in ('validation', 'test'):
            for example in sources.examples(task, split):
                for side in example[:2]:
                    for sentence in decontaminate._SENTENCE_BREAK.split(side):
                        words = decontaminate._words(sentence)
                        if (
                            len(words) >= decontaminate.MIN_SENTENCE_WORDS
                            and len(''.join(words)) >= decontaminate._KEY_LETTERS
                        ):
                            assert f' {" ".join(words)} ' not in text


def test_pair_is_one_document_and_a_translation_two(tmp_path):
    rows = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
    rows += ''.join(f'{n}\t1\t2\thow is {n} made\twhat makes {n}\t1\n' for n in range(30))
    c = config.default()
    c.objective, c.data.source, c.data.held_out = 'mlm', 'qqp', 0.1
    c.data.path = write(tmp_path / 'QQP', {'train.tsv': rows, 'dev.tsv': rows})
    texts = {example.first for example in sources.examples(c, 'test')}
    assert len(texts) == 30
    assert 'how is 7 made\nwhat makes 7' in texts

    c.data.source, c.data.suffixes, c.data.held_out = 'parallel', ('en', 'de'), 0.0
    sides = {
        f'{split}.{side}': f'{side} line\n' for split in ('train', 'val') for side in ('en', 'de')
    }
    c.data.path = write(tmp_path / 'parallel', sides)
    assert [e.first for e in sources.examples(c, 'validation')] == ['en line', 'de line']
