"""The targets of the fuzzer: strategies for every kind of input, and calls of its readers."""

import functools
import gzip
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import pyarrow as pa
import pyarrow.parquet as parquet
from helpers import commands, corpus, networks, reports, sources as source_cases
from hypothesis import strategies as st
from matplotlib import figure

import lightpaff_jax
from chaos import mutations
from lightpaff_jax import check, config, metrics, models, pretrained, report, train, workdir
from lightpaff_jax.config import flags, validate
from lightpaff_jax.data import prepare, sources, tokenizers
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.sources.splits import SPLITS
from lightpaff_jax.data.tokenizers import selection
from lightpaff_jax.models.huggingface import checkpoint_dir

Call = Callable[[Any], Any]


class Target(NamedTuple):
    """A kind of input."""

    make: Callable[[pathlib.Path], tuple[st.SearchStrategy[Any], Call]]
    """Writes valid input to a folder; returns the strategy of inputs and the call that reads one."""
    share: int
    """Weight of this target; its share of all inputs is the weight over their sum."""
    examples: int
    """Inputs of a case, which takes about ten seconds."""


def _fresh(folder: pathlib.Path, pristine: pathlib.Path) -> pathlib.Path:
    """Makes `folder` a copy of `pristine`."""
    shutil.rmtree(folder, ignore_errors=True)
    return pathlib.Path(shutil.copytree(pristine, folder))


# The command line.

_OWN: dict[str, dict[str, Any]] = {
    'main': {},
    'evaluate': {'model': '', 'out': ''},
    'preflight': {'topology': '', 'slices': 1, 'out': '', 'quick': False},
    'prepare': prepare._FLAGS,
}


def _config_value(key: str) -> st.SearchStrategy[str]:
    default = config.flatten(config.default()).get(key, '')
    texts = st.sampled_from(
        [*mutations.TEXTS, *map(str, mutations.NUMBERS), '(', '1,2', 'a,b', "''"]
    )
    words = [*config.SOURCES, *config.OBJECTIVES, *config.FAMILIES, *config.SCHEDULES, 'True', '()']
    number = st.one_of(st.integers(-3, 300), st.floats()).map(str)
    return st.one_of(
        texts, st.sampled_from(words), number, st.just(str(default)), st.text(max_size=6)
    )


def _words(file: pathlib.Path) -> st.SearchStrategy[list[str]]:
    keys = st.one_of(
        st.sampled_from(sorted(config.flatten(config.default()))),
        st.sampled_from(('student', 'optim.peak', 'sed', '', '.', 'data.', 'to_dict', '__class__')),
    )
    change = keys.flatmap(lambda key: _config_value(key).map(lambda value: (key, value)))
    own = sorted({name for names in _OWN.values() for name in names})
    word = st.one_of(
        change.map(lambda pair: [f'--config.{pair[0]}={pair[1]}']),
        change.map(lambda pair: [f'--config.{pair[0]}={pair[1]}']),
        change.map(lambda pair: [f'--config.{pair[0]}', pair[1]]),
        st.tuples(st.sampled_from(own), _config_value('')).map(
            lambda pair: [f'--{pair[0]}={pair[1]}']
        ),
        st.sampled_from(own).map(lambda name: [f'--{name}']),
        st.sampled_from(('', ':', ':x', ':teacher:')).map(lambda end: [f'--config={file}{end}']),
        st.one_of(st.sampled_from(mutations.TEXTS), st.text(max_size=8)).map(lambda text: [text]),
    )
    start = st.sampled_from([[f'--config={file}:teacher'], [f'--config={file}'], []])
    words = st.lists(word, max_size=3).map(lambda groups: [w for group in groups for w in group])
    return st.tuples(start, words).map(lambda parts: parts[0] + parts[1])


def _command_line(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    commands.write_text(folder / 'text', 0)
    (folder / 'small.py').write_text(commands.SMALL)

    def call(value: tuple[str, list[str]]) -> None:
        name, argv = value
        c = flags.configuration(flags.arguments(argv, _OWN[name]))
        validate.validate(c)
        check.check(c)

    return st.tuples(st.sampled_from(sorted(_OWN)), _words(folder / 'small.py')), call


# Rows of data files.

_TEXT = b'one two\nthree\n\nfour  five\n\n\nsix \xc3\xa9\n\nseven\n\neight\n'
_TSV = b'a\tb\tmark\none two\tthree\t1\nfour\t\t0\nfive\tsix\t1\nseven\teight\t0\n'
_JSONL = [{'a': word, 'b': f'{word} é', 'mark': len(word) % 2} for word in commands.WORDS[:6]]
_TABLE = {'columns': ('a', 'b', 'mark'), 'classes': 2}
_SST2 = b'sentence\tlabel\nit "works\t1\nfails , badly\t0\n'
_QQP = b'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\twhy ?\thow "so ?\t1\n'
_MRPC = (
    '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t5\t6\tHe said "no\tShe\r\n'.encode()
)


def _parquet_file() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(_JSONL), file)
    return file.getvalue()


# Name -> source, the file to damage, its content ('': JSON lines), and keys of config.data.
ROWS: dict[str, tuple[str, str, bytes, dict[str, Any]]] = {
    'text': ('text', 'train.txt', _TEXT, {}),
    'lines': ('text', 'train.txt', _TEXT, {'documents': 'line'}),
    'whole files': ('text', 'train.txt', _TEXT, {'documents': 'file', 'detokenize': 'wikitext'}),
    'gzip': ('text', 'train.txt.gz', gzip.compress(_TEXT, mtime=0), {}),
    'text of jsonl': ('text', 'train.jsonl', b'', {'columns': ('a',)}),
    'text of parquet': ('text', 'train.parquet', _parquet_file(), {'columns': ('a',)}),
    'tsv': ('table', 'train.tsv', _TSV, _TABLE),
    'csv': ('table', 'train.csv', _TSV.replace(b'\t', b','), _TABLE),
    'jsonl': ('table', 'train.jsonl', b'', _TABLE),
    'parquet': ('table', 'train.parquet', _parquet_file(), _TABLE),
    'sst2': ('sst2', 'train.tsv', _SST2, {}),
    'qqp': ('qqp', 'train.tsv', _QQP, {}),
    'mrpc': ('mrpc', 'msr_paraphrase_train.txt', _MRPC, {}),
    'mr': ('mr', 'rt-polarity.neg', b'bad , bad\nworse\n', {}),
    'parallel': ('parallel', 'train.en', b'one\ntwo\nthree\n', {'suffixes': ('en', 'de')}),
}


def _rows(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    (folder / 'mr').mkdir(parents=True)
    (folder / 'mr' / 'rt-polarity.pos').write_text('good\nbetter\nbest\n')
    (folder / 'parallel').mkdir()
    (folder / 'parallel' / 'train.de').write_text('eins\nzwei\ndrei\n')

    def content(name: str) -> st.SearchStrategy[bytes]:
        data = ROWS[name][2]
        return mutations.damaged(data) if data else mutations.json_lines(_JSONL)

    inputs = st.sampled_from(sorted(ROWS)).flatmap(
        lambda name: st.tuples(st.just(name), content(name), st.sampled_from(config.ON_ERROR))
    )

    def call(value: tuple[str, bytes, str]) -> None:
        name, data, on_error = value
        source, file, _, keys = ROWS[name]
        path = folder / name / file
        source_cases.write_file(path, data)
        example_type = None if config.SOURCES[source].example_type else 'classes'
        keys = keys | {'on_error': on_error, 'held_out': 0.4, 'cache': str(folder / 'cache')}
        c = source_cases.make_config(source, path.parent, example_type, **keys)
        sources.check(c)
        for split in SPLITS:
            list(sources.examples(c, split))

    return inputs, call


# Tokenizer files.

_CONFIG_JSON = {
    'tokenizer_class': 'BertTokenizer',
    'do_lower_case': True,
    'strip_accents': None,
    'tokenize_chinese_chars': True,
    'model_max_length': 512,
    'unk_token': '[UNK]',
    'sep_token': {'content': '[SEP]', 'lstrip': False, 'normalized': False, '__type': 'AddedToken'},
    'added_tokens_decoder': {'3': {'content': '[SEP]', 'special': True}},
    'split_special_tokens': False,
    'additional_special_tokens': ['<x>'],
}


def _write_tokenizers(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes a folder of each format of tokenizers."""
    for name in ('wordpiece', 'bytes', 'fast'):
        (folder / name).mkdir(parents=True)
    wordpiece = corpus.wordpiece_tokenizer(folder / 'wordpiece')
    (folder / 'wordpiece' / 'tokenizer_config.json').write_text(json.dumps(_CONFIG_JSON))
    (folder / 'wordpiece' / 'special_tokens_map.json').write_text('{"sep_token": "[SEP]"}')
    (folder / 'wordpiece' / 'added_tokens.json').write_text('{"<x>": 61}')
    wordpiece.save(folder / 'fast', 'bert')
    vocabulary = {'<|endoftext|>': 0, 'a': 1, 'b': 2, '\u0120': 3, 'ab': 4, '\u0120a': 5}
    (folder / 'bytes' / 'vocab.json').write_text(json.dumps(vocabulary))
    (folder / 'bytes' / 'merges.txt').write_text('#version: 0.2\na b\n\u0120 a\n')
    (folder / 'bytes' / 'tokenizer_config.json').write_text('{"eos_token": "<|endoftext|>"}')
    texts = [' '.join(commands.WORDS) + ' \t(x) é' for _ in range(3)]
    (folder / 'pieces').mkdir()
    tokenizers.train(texts, 300, folder / 'pieces' / 'tokenizer.model', ('[CLS]', '[SEP]'))
    return {path.name: path for path in sorted(folder.iterdir())}


def _file_bytes(file: pathlib.Path) -> st.SearchStrategy[bytes]:
    """Damages a file by its format."""
    data = file.read_bytes()
    if file.suffix == '.json':
        return mutations.json_bytes(json.loads(data))
    if file.suffix == '.jsonl':
        return mutations.json_lines([json.loads(line) for line in data.splitlines()])
    return mutations.damaged(data)


def _files(folder: pathlib.Path) -> st.SearchStrategy[tuple[str, str, bytes | None]]:
    """Chooses a file below a folder; draws (its folder, its name, its content or None: no file)."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    contents = {file: st.one_of(*[_file_bytes(file)] * 9, st.none()) for file in files}
    return st.sampled_from(files).flatmap(
        lambda file: st.tuples(
            st.just(str(file.parent.relative_to(folder))), st.just(file.name), contents[file]
        )
    )


def put(folder: pathlib.Path, value: tuple[str, str, bytes | None]) -> pathlib.Path:
    """Writes or removes the drawn file in a copy; returns its folder."""
    parent, name, data = value
    file = folder / parent / name
    if data is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(data)
    return file.parent


def _tokenizer_files(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    _write_tokenizers(folder / 'pristine')
    copy = folder / 'copy'

    def call(value: tuple[str, str, bytes | None]) -> None:
        _fresh(copy / value[0], folder / 'pristine' / value[0])
        tokenizer = tokenizers.read(str(put(copy, value)))
        ids = tokenizer.encode(['the dog a, b', '', '\u2581 [SEP]\n\t é'])
        for row in ids:
            tokenizer.decode(row)
        assert max((i for row in ids for i in row), default=0) < tokenizer.vocab_size
        assert len(tokenizer.word_starts) == tokenizer.vocab_size
        tokenizer.save(copy / 'saved', 'bert' if tokenizer.cls_id is not None else 'gpt2')

    return _files(folder / 'pristine'), call


# Hugging Face folders.


@functools.cache
def _write_networks(folder: pathlib.Path) -> dict[str, models.Model]:
    """Writes a folder of each family; returns their models."""
    written = {}
    for case in ('gpt2', 'bert lm', 'bert classify', 'mass all'):
        model, params = networks.model_and_params(case)
        checkpoint_dir.write(folder / case, model, jax.device_get(params))
        written[case] = model
    return written


def _huggingface_config(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    _write_networks(folder / 'pristine')
    cases = sorted(path.name for path in (folder / 'pristine').iterdir())
    documents = {case: folder / 'pristine' / case / 'config.json' for case in cases}
    contents = {case: _file_bytes(file) for case, file in documents.items()}
    inputs = st.sampled_from(cases).flatmap(lambda case: st.tuples(st.just(case), contents[case]))

    def call(value: tuple[str, bytes]) -> None:
        case, data = value
        (folder / case).mkdir(exist_ok=True)
        (folder / case / 'config.json').write_bytes(data)
        network = checkpoint_dir.read_network('--model=DIR', folder / case)
        if network == networks.network(case):
            return
        # Other sizes must be refused by the tensors, before anything is allocated.
        if max(network.width, network.ffn, network.vocab_size, network.positions) < 4096:
            model = models.build(network)
            if sum(x.size for x in jax.tree.leaves(model.abstract_params)) < 1e7:
                checkpoint_dir.read_params('--model=DIR', folder / 'pristine' / case, model)

    return inputs, call


def _safetensors(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    built = _write_networks(folder / 'pristine')
    for case, model in built.items():
        _, params = networks.model_and_params(case)
        split = folder / 'pristine' / f'{case} in shards'
        checkpoint_dir.write(split, model, jax.device_get(params), shard_bytes=40_000)
    for file in (folder / 'pristine').rglob('config.json'):
        file.unlink()
    copy = folder / 'copy'

    def header(file: pathlib.Path) -> st.SearchStrategy[bytes]:
        data = file.read_bytes()
        size = int.from_bytes(data[:8], 'little')
        document, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
        texts = mutations.changed(document).map(lambda x: json.dumps(x).encode())
        return texts.map(lambda text: len(text).to_bytes(8, 'little') + text + tensors)

    files = sorted(path for path in (folder / 'pristine').rglob('*') if path.is_file())
    contents = {
        file: _file_bytes(file)
        if file.suffix == '.json'
        else st.one_of(header(file), mutations.damaged(file.read_bytes()))
        for file in files
    }
    inputs = st.sampled_from(files).flatmap(
        lambda file: st.tuples(st.just(file.parent.name), st.just(file.name), contents[file])
    )

    def call(value: tuple[str, str, bytes]) -> None:
        _fresh(copy, folder / 'pristine' / value[0])
        (copy / value[1]).write_bytes(value[2])
        model = built[value[0].removesuffix(' in shards')]
        checkpoint_dir.read_params('--model=DIR', copy, model)

    return inputs, call


def _huggingface_folder(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    file = folder / 'tokenizer.model'
    tokenizers.train([' '.join(commands.WORDS)], 300, file)
    tokenizer = tokenizers.read(str(file))
    for case in ('gpt2', 'mass all'):
        model = models.build(networks.network(case, vocab_size=320, layers=1))
        path = folder / 'pristine' / case
        lightpaff_jax.save(str(path), model, networks.noisy(model), tokenizer)
    copy = folder / 'copy'

    def call(value: tuple[str, str, bytes | None]) -> None:
        _fresh(copy / value[0], folder / 'pristine' / value[0])
        source = pretrained.open('--model', str(put(copy, value)))
        source.tokenizer().encode(['loss returns', ''])
        source.load()

    return _files(folder / 'pristine'), call


# Prepared data.


def _prepared_data(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    c = corpus.text_config(folder / 'text')
    c.student.vocab_size, c.data.length = 300, 16
    tokenizer = selection.load(c)
    dataset = prepare.prepare(c, tokenizer)
    assert isinstance(dataset, Dataset)
    shutil.copytree(dataset.path, folder / 'pristine')
    copy = folder / 'copy'
    c.data.source, c.data.path = 'prepared', str(copy)

    def call(value: tuple[str, str, bytes | None]) -> None:
        _fresh(copy, folder / 'pristine')
        put(copy, value)
        opened = prepare.prepare(c, tokenizer)
        for split in SPLITS:
            records = opened.records(split)
            records.read(range(len(records)))
        assert isinstance(opened.hash, str)

    return _files(folder / 'pristine'), call


# The workdir of a finished run.


def _run_folder(folder: pathlib.Path) -> None:
    """Trains a small run in folder/runs/small_teacher."""
    commands.write_text(folder / 'text', 0)
    (folder / 'small.py').write_text(commands.SMALL)
    with commands.working_in(folder):
        c = flags.parse(['--config=small.py:teacher'])
        check.check(c)
        train.train(c)


def _workdir_files(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    folder.mkdir(parents=True, exist_ok=True)
    _run_folder(folder)
    pristine = folder / 'runs' / 'small_teacher'
    for name in ('tensorboard', 'predictions', 'tokenizer'):
        shutil.rmtree(pristine / name)
    copy = folder / 'copy'
    c = config.read(pristine)
    c.workdir = str(copy)
    result = json.loads((pristine / 'result.json').read_text())
    hashes = {key: value for key, value in result.items() if key.endswith('_hash')}
    names = ('config.json', 'result.json', 'metrics.jsonl', 'timing.jsonl')
    contents = {name: st.one_of(*[_file_bytes(pristine / name)] * 9, st.none()) for name in names}
    inputs = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just('.'), st.just(name), contents[name])
    )
    copy.mkdir()
    (copy / 'checkpoints').symlink_to(pristine / 'checkpoints')

    def call(value: tuple[str, str, bytes | None]) -> None:
        for name in names:
            shutil.copyfile(pristine / name, copy / name)
        put(copy, value)
        workdir.check_unchanged(c, copy)
        pretrained.open('--model', str(copy))
        found = workdir.completed_result(c, copy, hashes)
        if found is not None and not workdir.missing_splits(c, found['scores']):
            return
        with metrics.Writer(copy, c.train.updates, c.train.updates):
            pass

    return inputs, call


# The input of a report.


def _report_input(folder: pathlib.Path) -> tuple[st.SearchStrategy, Call]:
    reports.make_classifier(folder / 'pristine' / 'one', seeds=1)
    reports.make_workdir(folder / 'pristine' / 'two', seeds=1)
    for case, objective in (('one', 'classify'), ('two', 'clm')):
        for run in ('teacher_finetune', 'seed0/two_stage'):
            key = [run.startswith('seed'), 0]
            reports.write_predictions(folder / 'pristine' / case / run, objective, key, 0.8, 6)
    copies = {
        path.name: _fresh(folder / path.name, path) for path in (folder / 'pristine').iterdir()
    }
    damaged: list[tuple[str, str, str]] = []

    def call(value: tuple[str, str, bytes | None]) -> None:
        parent, name, _ = value
        for old in damaged:
            shutil.copyfile(folder / 'pristine' / old[0] / old[1], folder / old[0] / old[1])
        damaged[:] = [(parent, name, '')]
        case = pathlib.PurePath(parent).parts[0]
        put(folder, value)
        # Drawing a figure takes 0.3 s; the fuzzer of whole commands draws them.
        with mock.patch.object(figure.Figure, 'savefig', lambda _, file, **__: file.write('<svg>')):
            report.write(copies[case])

    return _files(folder / 'pristine'), call


TARGETS = {
    'command line': Target(_command_line, 21, 4000),
    'rows': Target(_rows, 30, 4000),
    'tokenizer files': Target(_tokenizer_files, 14, 1500),
    'Hugging Face config.json': Target(_huggingface_config, 8, 1500),
    'Hugging Face folder': Target(_huggingface_folder, 4, 500),
    'safetensors': Target(_safetensors, 7, 1500),
    'prepared data': Target(_prepared_data, 6, 1000),
    'workdir files': Target(_workdir_files, 9, 1500),
    'report input': Target(_report_input, 1, 100),
}


def inputs(folder: pathlib.Path, name: str) -> Iterator[Any]:
    """Returns the strategy and the call of a target, in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return TARGETS[name].make(folder)
