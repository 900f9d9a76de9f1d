"""Every configuration key: its default, its unit, its rule.

A recipe file in configs/ starts from `default()` and states its differences. Code reads
`c.section.key` and never supplies a default of its own.
"""

import functools
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lightpaff_jax.config.matching import POOLING as POOLING, STACKS as STACKS
from lightpaff_jax.config.objectives import (
    AUGMENT_CHANGES as AUGMENT_CHANGES,
    AUGMENTATION as AUGMENTATION,
    GENERATION_METRICS as GENERATION_METRICS,
    OBJECTIVES as OBJECTIVES,
    TOKENIZE as TOKENIZE,
    VALIDATION_SCORES as VALIDATION_SCORES,
    objectives_of as objectives_of,
)
from lightpaff_jax.config.recipes import (
    PHASES as PHASES,
    augmentation as augmentation,
    family_table as family_table,
    paper_budget as paper_budget,
    paper_scale as paper_scale,
    part as part,
    shape as shape,
    tiny_stage1 as tiny_stage1,
    tiny_stage2 as tiny_stage2,
    tiny_table as tiny_table,
    use_phase as use_phase,
)
from lightpaff_jax.config.sources import (
    COLUMN_TYPES as COLUMN_TYPES,
    SOURCES as SOURCES,
    VIEWS as VIEWS,
)
from lightpaff_jax.errors import UserError as UserError, nearest
from lightpaff_jax.runtime import json_file

FAMILIES = ('bert', 'gpt2', 'mass')
DOCUMENTS = ('blank', 'line', 'file')  # how a text file is split: at blank lines, at each line, not
DETOKENIZERS = ('none', 'wikitext', 'ptb')
# .tsv, .csv: whether double quotes enclose fields; auto: yes in a .csv; an unclear .tsv is refused.
QUOTING = ('auto', 'none', 'double')
PACKING = ('contiguous', 'best_fit')
ON_ERROR = ('stop', 'skip')
# Values of student.init that are no path.
STARTS = ('scratch', 'teacher_layers', 'teacher_embeddings')
# Outputs of a network: ids, classes, both (BertForPreTraining), none.
HEADS = ('lm', 'classify', 'pretraining', 'none')
ACTIVATIONS = ('gelu', 'relu')
# MASS, embeddings that share one matrix: encoder, decoder and output; decoder and output; none.
TIES = ('all', 'decoder', 'none')
LONG_TEXT = ('truncate', 'error')
SCHEDULES = ('linear', 'cosine', 'constant')
DTYPES = ('float32', 'bfloat16')
SPLIT = ('fsdp', 'tensor')  # mesh axes that can shard parameters
# Values that the backward pass recomputes: nothing costly, all but matrix products, whole blocks.
REMAT = ('none', 'dots', 'block')
UNLABELLED = ('student', 'stage2')  # read a task's unlabelled text: one more student, or stage 2
ATTENTION = ('auto', 'xla', 'cudnn', 'splash')

# Keys that may change before a run is resumed; a change of another key is an error.
MAY_CHANGE = (
    *('workdir', 'requires', 'task', 'recipe', 'eval', 'generate', 'teacher.path', 'student.init'),
    'teacher.cache',
    *('tokenizer.path', 'tokenizer.text', 'tokenizer.reduce'),
    *('data.cache', 'data.path', 'data.files', 'data.mixture'),
    *('data.prefetch', 'data.tfds_dir', 'data.workers', 'data.decontaminate', 'data.unlabelled'),
    *('train.updates', 'train.compilation_cache', 'train.log_every', 'train.eval_every'),
    *('train.save_every', 'train.keep', 'train.max_bad_steps', 'train.patience'),
)

# Lists of whole numbers, and of numbers. Other lists that are empty by default hold names.
NUMBERS = ('student.init_layers', 'student.init_decoder_layers', 'data.buckets')
RATES = tuple(
    f'recipe.{name}.{key}' for name in PHASES for key in ('sweep_peak_lr', 'sweep_lambda')
)


def _section(keys: dict, **changes) -> ConfigDict:
    c = ConfigDict(keys)
    c.update(changes)
    return c


def network(**changes) -> ConfigDict:
    """Returns the shape of a network; `student` and `teacher` have these keys."""
    keys = {
        'family': 'gpt2',  # one of FAMILIES
        'head': 'lm',  # one of HEADS
        'classes': 0,  # number of classes of a classifier
        'layers': 2,  # transformer blocks; MASS: of the encoder
        'decoder_layers': 0,  # MASS: blocks of the decoder
        'width': 128,  # D, features per position
        'heads': 2,  # attention heads; must divide width
        'ffn': 512,  # F, width of the feed-forward layer
        'positions': 128,  # longest sequence, tokens
        'vocab_size': 2048,  # ids in use; tables are padded to a multiple of 128
        'dropout': 0.0,  # probability in training
        'type_vocab_size': 2,  # BERT: token types
        'activation': 'gelu',  # MASS: one of ACTIVATIONS
        'scale_embedding': True,  # MASS: multiplies token embeddings by sqrt(width)
        'tied': 'all',  # MASS: one of TIES
    }
    return _section(keys, **changes)


def phase(**changes) -> ConfigDict:
    """Returns the settings of one phase of a recipe."""
    keys = {
        'updates': 100,  # optimizer updates
        'warmup': 10,  # updates of linear warm-up
        'peak_lr': 1e-3,  # learning rate after the warm-up
        'batch_size': 8,  # sequences per update
        'lambda_': 0.5,  # weight of the teacher in runs with a teacher
        'temperature': 1.0,  # softens both distributions in runs with a teacher
        'sweep_peak_lr': (),  # learning rates to choose from on validation; (): only peak_lr
        'sweep_lambda': (),  # weights of the teacher to choose from on validation; (): only lambda_
    }
    return _section(keys, **changes)


# Source and preparation of the training examples.
_DATA = {
    'source': 'pydocs',  # one of SOURCES
    'path': '',  # folder of the files or of a prepared dataset; tfds: NAME[/CONFIG]
    'packages': (),  # pydocs: packages to read; () reads all
    'view': 'text',  # pydocs: type of the examples, one of VIEWS
    'files': (),  # SPLIT=GLOB below path; (): found by the names of the files
    'documents': 'blank',  # text files: how to split documents, one of DOCUMENTS
    'columns': (),  # table, tfds: first text, second text ('' if none), class; numbers: no header
    'quoting': 'auto',  # table: the quotes of .tsv and .csv files, one of QUOTING
    'labels': (),  # table, tfds: names of the classes in order; (): 0, 1, ...; tfds: those of the set
    'classes': 0,  # table: number of classes if labels is ()
    'suffixes': (),  # parallel: suffixes of source and target files, such as en,de
    'held_out': 0.0,  # share of train that replaces a missing split, by a hash; 0: an error
    'held_out_whole': False,  # holds out whole rows only, and drops rows of train inside them
    'detokenize': 'none',  # removes spaces around punctuation, one of DETOKENIZERS
    'replace': (),  # OLD=NEW: replaces words, such as UNK=<unk>
    'decontaminate': (),  # datasets to drop from train, SOURCE:PATH[?KEY=VALUE&...][#SPLIT,SPLIT]
    'unlabelled': (),  # classify: datasets whose texts train reads too, without labels
    'unlabelled_share': 0.0,  # share of unlabelled rows in an epoch; 0: each row once
    'augment': 0.0,  # classify: share of the train rows that each epoch changes; they lose their labels
    'augment_mask': 0.0,  # probability of each word of such a row to become [MASK]
    'augment_replace': 0.0,  # ... to become a word of another row of train
    'augment_span': 0.0,  # probability of each text of such a row to be cut to 1 to 5 words
    'augment_pairs': 0.0,  # probability of such a pair to get the second text of another row
    'augment_keep_labels': False,  # whether such rows keep their labels
    'on_error': 'stop',  # how to handle a malformed row, one of ON_ERROR
    'tfds_dir': '',  # tfds: folder of the datasets; '' is ~/tensorflow_datasets
    'mixture': (),  # SOURCE:PATH=WEIGHT of each part; its share of rows is its share of the weights
    'length': 128,  # tokens per sequence; encoder-decoder: of the source
    'target_length': 0,  # seq2seq: tokens per target
    'long_text': 'truncate',  # how to handle examples longer than length, one of LONG_TEXT
    'packing': 'contiguous',  # blocks of a stream, or rows of whole documents: one of PACKING
    'buckets': (),  # classify, seq2seq: increasing lengths of batches, the last is length; (): one
    'mask_rate': 0.15,  # mlm: share of the tokens to predict
    'whole_words': False,  # mlm: whether to mask whole words
    'span_rate': 0.5,  # mass: share of a sequence to predict, as one span
    'batch_size': 8,  # sequences per update, over all devices and micro-batches
    'cache': '~/.cache/lightpaff_jax',  # folder of prepared datasets and trained vocabularies
    'prefetch': 4,  # batches to read ahead
    'workers': 1,  # processes that tokenize
}

# Runs of a table.
_RECIPE = {
    'seeds': (0,),  # every student is trained once per seed
    'tasks': (),  # FILE[:PRESET] of the fine-tuning tasks; each gets a table
    'data': '',  # folder that replaces `data` in paths of config.data; '' keeps it
    'scale': '',  # size of a family's table: paper, small, tiny or ci
    'title': '',  # of the first table of the report; '' is its family and scale, or Results
    'notes': (),  # sentences of the report: conditions of its figures
    'stage1_objective': '',  # objective of stage 1, such as match; '' is objective
    'teacher_head': False,  # whether to train a head of an imported teacher first, by teacher_pretrain
    'equal_flops': (),  # tasks with a baseline at equal FLOPs; () is all
    'unlabelled': 'student',  # who reads the tasks' data.unlabelled, one of UNLABELLED
    'equal_time': (),  # tasks with a baseline at equal time, from a measured ratio; () is none
    'cache_teacher': True,  # whether runs of one teacher and data share a cache by default
    'validations': 0,  # of each run, which keeps the checkpoint of its best score; 0: as in train
    'sweep_share': 1.0,  # share of the updates that sweeps take; the chosen setting is run in full
    'sweep_all': False,  # whether baselines at equal cost and unlabelled text have sweeps of their own
}

_OPTIM = {
    'peak_lr': 1e-3,  # learning rate after the warm-up
    'schedule': 'cosine',  # decay after the warm-up, one of SCHEDULES
    'final_lr': 0.1,  # learning rate after the last update, as a share of peak_lr
    'warmup': 10,  # updates of linear warm-up
    'b1': 0.9,  # AdamW, decay of the first moment
    'b2': 0.98,  # AdamW, decay of the second moment
    'eps': 1e-8,  # AdamW
    'weight_decay': 0.01,  # AdamW, of matrices only
    'clip_norm': 1.0,  # greatest norm of the gradient; 0 does not clip
}

_TRAIN = {
    'updates': 100,  # total optimizer updates
    'grad_accum_steps': 1,  # M, micro-batches per update
    'compute_dtype': 'float32',  # of matrix products in the networks, one of DTYPES
    'remat': 'none',  # values that the backward pass recomputes, one of REMAT
    'attention': 'auto',  # kernel, one of ATTENTION; auto takes the fastest usable one
    'compilation_cache': '~/.cache/lightpaff_jax/xla',  # folder of compiled programs; '': no cache
    'log_every': 20,  # updates between lines of metrics.jsonl
    'eval_every': 0,  # updates between validations; 0: only at the end
    'save_every': 100,  # updates between checkpoints
    'keep': 2,  # number of newest checkpoints to keep
    'keep_best': '',  # score of a validation, such as ce: the best checkpoint is the run's result
    'patience': 0,  # validations in a row without a new best, until the run stops; 0: never
    'max_bad_steps': 10,  # skipped updates in a row (not finite) until the run stops
}

# Losses that compare activations of student and teacher; see matching.py. A pair of layers is
# [STACK:]STUDENT=TEACHER, from 0, such as 2=5 or decoder:1=5; (): the last layer of every stack.
_MATCHING = {
    'relations': 0.0,  # weight of the relations of queries, keys and values; 0: off
    'relation_heads': 12,  # relation heads; must divide both widths
    'relation_layers': (),  # pairs of layers
    'hidden': 0.0,  # weight of hidden states, through a learned projection; 0: off
    'hidden_layers': (),  # pairs of layers
    'pooled': 0.0,  # weight of one vector per text, through a learned projection; 0: off
    'pooled_layers': (),  # pairs of layers; (): the last layer of the first stack
    'pooling': 'mean',  # vector of a text, one of POOLING
}

# Generation of the texts that `bleu` and `rouge` score.
_GENERATE = {
    'beams': 1,  # hypotheses; 1 is greedy
    'length_penalty': 1.0,  # the score of a hypothesis is sum of log p / length**length_penalty
    'min_length': 0,  # least number of tokens before the end
    'max_length': 0,  # greatest number of tokens, end included; 0 is data.target_length
    'early_stop': True,  # whether the search stops after as many finished hypotheses as beams
}


def default() -> ConfigDict:
    """Returns a configuration of every key with its default."""
    student = {
        'init': 'scratch',  # one of STARTS, or a workdir or Hugging Face folder
        'init_layers': (),  # teacher_layers: layers to copy, from 0; () copies the lowest
        'init_decoder_layers': (),  # MASS: layers of the decoder to copy
        'init_new_head': False,  # whether to initialise a head that `init` lacks; else an error
    }
    teacher = {
        'path': '',  # frozen teacher: a workdir or Hugging Face folder; '' trains without teacher
        'dtype': 'auto',  # of its parameters; auto: bfloat16, on CPU float32
        'microbatch_size': 0,  # sequences per forward pass on a device; 0 chooses
        'cache': '',  # folder: computes its features once, for all runs that share them; '': each step
        'cache_epochs': 1,  # mlm, mass: maskings in the cache, which then repeat epoch by epoch
    }
    keys = {
        'seed': 0,  # of initialisation, data order and dropout
        'workdir': '',  # folder of the run; '' is runs/<config name>
        'requires': (),  # FILE[:PRESET] of runs that main finishes first
        'task': '',  # name of the fine-tuning task in tables; required in a task of a recipe
        'objective': 'clm',  # one of OBJECTIVES of the student's family
        'student': _section(student, **network()),  # the network to train; also a teacher's own run
        'teacher': _section(teacher, **network(layers=0)),  # layers 0: the shape is read from path
        'loss': {
            'lambda_': 0.5,  # weight of KL(teacher || student), in [0, 1]
            'temperature': 1.0,  # > 0, softens both distributions
            'chunk': 0,  # predicted positions per chunk of the loss; 0 chooses
        },
        'matching': _MATCHING,
        'optim': _OPTIM,
        'data': _DATA,
        'tokenizer': {
            'path': '',  # file or folder; '': that of the teacher or of student.init, or trains one
            'lowercase': True,  # default of a vocab.txt without tokenizer_config.json
            'text': '',  # folder whose train.txt trains the tokenizer; '' is data.path
            # Datasets, as in data.decontaminate, whose train texts choose the student.vocab_size
            # pieces of this WordPiece tokenizer that the student has. Their keys have the defaults
            # of this file, so that all runs of a recipe choose the same. () keeps all pieces.
            'reduce': (),
        },
        'train': _TRAIN,
        'eval': {
            'batch_size': 16,  # sequences per batch
            'batches': 0,  # batches of each split; 0 reads it whole
            'metric': '',  # compares runs, one of the objective's metrics; '' is the first
            'tokenize': 'default',  # bleu, rouge: how to find words, one of TOKENIZE
            'test': True,  # whether a run scores the test split at its end
            'stride': 0,  # clm: tokens between windows of data.length; 0 is data.length
        },
        'generate': _GENERATE,
        'mesh': {
            'data': -1,  # devices along `data`; -1: all that remain; fewer leave some idle
            'fsdp': 1,  # devices that share each parameter
            'tensor': 1,  # devices that share each matrix product
            'student': SPLIT,  # axes, of SPLIT, that shard its parameters; others replicate them
            'teacher': SPLIT,  # likewise
        },
        'recipe': _RECIPE | {name: phase() for name in PHASES},
    }
    return ConfigDict(keys).lock()


def example_type(c: ConfigDict) -> str:
    """Returns 'documents', 'classes' or 'targets', or '' if only the files of `config.data` show it."""
    source = SOURCES[c.data.source]
    if 'view' in source.keys:
        return VIEWS[c.data.view]
    if c.data.columns and not source.example_type:
        return COLUMN_TYPES[len(c.data.columns) - 1]
    return source.example_type


def flatten(c: ConfigDict | dict, prefix: str = '') -> dict:
    """Returns {dotted key: value}, sorted within each section."""
    flat: dict = {}
    for key, value in c.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def locate(c: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """Returns the section and the last name of a dotted key."""
    *sections, leaf = key.split('.')
    return functools.reduce(lambda section, name: section[name], sections, c), leaf


def copy(c: ConfigDict) -> ConfigDict:
    """Returns an independent copy that still refuses unknown keys."""
    return c.copy_and_resolve_references()


def to_json(c: ConfigDict) -> str:
    """Formats every key and value; `read` parses it."""
    return json.dumps(c.to_dict(), indent=2)


def from_dict(values: Any, where: str) -> ConfigDict:
    """Builds a configuration from a JSON value; absent keys have their defaults.

    Raises:
      UserError: a key that this version does not have, or a value of another type; `where` begins
        the message.
    """
    c = default()
    json_file.check(values, _schema(c), where)
    defaults = flatten(c)
    for key, value in flatten(values).items():
        if key not in defaults:
            raise UserError(f'{where}: config.{key}: no such key{nearest(key, list(defaults))}')
        section, leaf = locate(c, key)
        kind = type(defaults[key])
        item = item_type(key, defaults[key]) if kind is tuple else kind
        section[leaf] = tuple(map(item, value)) if kind is tuple else item(value)
    return c


def _schema(section: ConfigDict, prefix: str = '') -> json_file.Schema:
    return {
        f'{name}?': _schema(value, f'{prefix}{name}.')
        if isinstance(value, ConfigDict)
        else [item_type(prefix + name, value)]
        if isinstance(value, tuple)
        else type(value)
        for name, value in section.items()
    }


def item_type(key: str, default: tuple) -> type:
    """Returns the type of the items of a list."""
    empty = int if key in NUMBERS else float if key in RATES else str
    return type(default[0]) if default else empty


def read(workdir: pathlib.Path) -> ConfigDict:
    """Reads config.json of a run; raises UserError that names the file if it is not readable."""
    path = workdir / 'config.json'
    return from_dict(json_file.read(path), str(path))


def differences(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Returns 'key: old -> new' of each changed key that must not change when a run is resumed."""
    old, new = flatten(before), flatten(after)
    # A cache repeats the masks of its epochs, so it changes what a run reads.
    masked = [name for name, x in OBJECTIVES.items() if 'teacher.cache_epochs' in x.keys]
    is_masked = after.objective in masked
    repeats = bool(before.teacher.cache) != bool(after.teacher.cache)

    def may_change(key: str) -> bool:
        if key == 'teacher.cache' and is_masked and repeats:
            return False
        return any(key == m or key.startswith(f'{m}.') for m in MAY_CHANGE)

    return [
        f'{key}: {old[key]!r} -> {new[key]!r}'
        for key in new
        if old[key] != new[key] and not may_change(key)
    ]
