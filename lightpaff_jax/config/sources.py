"""The plain data of each source of examples; `config.data.source` names one.

A source has two records: `SOURCES` here holds plain data, and `SOURCES` in
`lightpaff_jax.data.sources` holds its functions, most of them from `registry`. To add a source, add
both records. All other modules read the records; none compares a source's name.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source, as validation and messages see it."""

    keys: tuple[str, ...]
    """Keys of `config.data` that it reads, of those that only some sources read."""
    required: str = ''
    """The key of these that must not be empty, besides `path`; '' if none."""
    example_type: str = ''
    """'documents', 'classes' or 'targets'; '' if the view, the columns or the dataset decide."""
    path: str = 'a folder'
    """Meaning of `config.data.path`, for messages."""
    layout: str = ''
    """Required content of that folder, for messages; '' if `path` names no folder."""
    max_columns: int = 3
    """Most entries of `config.data.columns`."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their labels, as the dataset has them; () if unnamed."""
    classes: int = 0
    """Number of classes; 0 without classes, and if `config.data` or the dataset decides."""
    has_pairs: bool = False
    """True if its examples have two texts, so that the network needs two token types."""
    has_text: bool = True
    """False if it holds token ids, prepared in advance."""
    has_parts: bool = False
    """True if its examples are those of other sources."""


_FILES = ('path', 'files', 'held_out', 'on_error')
_EXAMPLES = (*_FILES, 'held_out_whole')
_GLUE = 'a folder with train.tsv and dev.tsv of GLUE'
SOURCES = {
    'pydocs': Source(keys=('packages', 'view')),
    'text': Source(
        keys=(*_FILES, 'documents', 'columns', 'detokenize'),
        example_type='documents',
        layout=(
            'a folder with files like train.txt, validation.txt and test.txt, or wiki.train.tokens'
        ),
        max_columns=1,
    ),
    'sst2': Source(
        keys=_EXAMPLES,
        example_type='classes',
        layout=_GLUE,
        classes=2,
        class_names=('negative', 'positive'),
    ),
    'qqp': Source(
        keys=_EXAMPLES,
        example_type='classes',
        layout=_GLUE,
        has_pairs=True,
        classes=2,
        class_names=('not_duplicate', 'duplicate'),
    ),
    'mrpc': Source(
        keys=_EXAMPLES,
        example_type='classes',
        layout='a folder with msr_paraphrase_train.txt and msr_paraphrase_test.txt',
        has_pairs=True,
        classes=2,
        class_names=('not_equivalent', 'equivalent'),
    ),
    'mr': Source(
        keys=_EXAMPLES,
        example_type='classes',
        layout='a folder with rt-polarity.neg and rt-polarity.pos',
        classes=2,
        class_names=('negative', 'positive'),
    ),
    'table': Source(
        keys=(*_EXAMPLES, 'columns', 'quoting', 'labels', 'classes'),
        required='columns',
        layout=(
            'a folder with .tsv, .csv, .jsonl or .parquet files that have train, and, unless '
            'config.data.held_out cuts them, validation and test in their names'
        ),
    ),
    'parallel': Source(
        keys=(*_FILES, 'suffixes'),
        example_type='targets',
        layout=(
            'a folder with train, validation and test, each in two files of as many lines that '
            'have config.data.suffixes in their names'
        ),
    ),
    'tfds': Source(
        keys=('path', 'tfds_dir', 'columns', 'labels', 'held_out', 'held_out_whole'),
        path='the name of a TFDS data set',
    ),
    'mixture': Source(
        keys=('mixture', 'documents', 'columns', 'held_out', 'detokenize', 'on_error', 'tfds_dir'),
        required='mixture',
        example_type='documents',
        has_parts=True,
    ),
    'prepared': Source(
        keys=('path',),
        layout='a folder that lightpaff_jax.data.prepare wrote',
        has_text=False,
    ),
}

VIEWS = {'text': 'documents', 'topic': 'classes', 'pairs': 'classes', 'summary': 'targets'}
"""View of pydocs -> its example type."""
COLUMN_TYPES = ('documents', 'targets', 'classes')
"""Example type of tables with one, two and three columns."""
