"""The paths that a run needs: what must be there."""

import pathlib

from ml_collections import ConfigDict

from lightpaff_jax.config import READS, STARTS
from lightpaff_jax.errors import MissingPaths, UserError

_TSV = 'a folder with train.tsv and dev.tsv of GLUE'
LAYOUTS = {
    'text': 'a folder with files like train.txt, validation.txt and test.txt, or wiki.train.tokens',
    **dict.fromkeys(('sst2', 'qqp'), _TSV),
    'mrpc': 'a folder with msr_paraphrase_train.txt and msr_paraphrase_test.txt',
    'mr': 'a folder with rt-polarity.neg and rt-polarity.pos',
    'table': 'a folder with .tsv, .csv, .jsonl or .parquet files that have train, and, unless '
    'config.data.held_out cuts them, validation and test in their names',
    'parallel': 'a folder with train, validation and test, each in two files of as many lines that '
    'have config.data.suffixes in their names',
    'prepared': 'a folder that lightpaff_jax.data.prepare wrote',
}
"""Source -> what its path must be."""


def check_folder(c: ConfigDict) -> None:
    """Raises MissingPaths, which says what must be there, if `config.data.path` is nowhere."""
    source, path = c.data.source, c.data.path
    if source in LAYOUTS and '://' not in path and not pathlib.Path(path).expanduser().exists():
        raise MissingPaths(f'{path}: no such path, put {LAYOUTS[source]} there')


def check_paths(c: ConfigDict, runs: bool = True) -> None:
    """Raises MissingPaths that names every path a run needs and does not find.

    Args:
      c: the run's configuration.
      runs: whether the runs that it starts from must be there already.
    """
    source = c.data.source
    what = 'the name of a TFDS data set' if source == 'tfds' else 'a folder'
    if not c.data.path and 'path' in READS[source]:
        raise UserError(f"config.data.path = '': must be {what} for source {source!r}")
    run_of = 'the workdir of a finished run, or a folder with config.json and model.safetensors'
    paths = [
        ('teacher.path', c.teacher.path, run_of),
        ('student.init', '' if c.student.init in STARTS else c.student.init, run_of),
        ('data.path', '' if source == 'tfds' else c.data.path, LAYOUTS.get(source, '')),
        ('tokenizer.path', c.tokenizer.path, 'a tokenizer'),
        ('tokenizer.text', c.tokenizer.text, 'a folder with train.txt, validation.txt and test.txt'),
    ]  # fmt: skip
    missing = [
        f'config.{key} = {path}: no such path, put {what} there'
        for key, path, what in paths
        if path
        and what
        and (runs or what != run_of)
        and '://' not in path
        and not pathlib.Path(path).expanduser().exists()
    ]
    if missing:
        raise MissingPaths('; '.join(missing))
