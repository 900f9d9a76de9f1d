"""Every configuration key: its default, its unit, its rule.

A recipe file in configs/ starts from `default()` and states its differences;
code reads `c.section.key` and never supplies a default of its own.
"""

import json
import pathlib

from ml_collections import ConfigDict

from lightpaff_jax.config.objectives import GENERATION_METRICS as GENERATION_METRICS
from lightpaff_jax.config.objectives import OBJECTIVES as OBJECTIVES
from lightpaff_jax.config.objectives import objectives_of as objectives_of
from lightpaff_jax.config.recipes import (
    PHASES as PHASES,
)
from lightpaff_jax.config.recipes import (
    family_table as family_table,
)
from lightpaff_jax.config.recipes import (
    paper_budget as paper_budget,
)
from lightpaff_jax.config.recipes import (
    paper_scale as paper_scale,
)
from lightpaff_jax.config.recipes import (
    part as part,
)
from lightpaff_jax.config.recipes import (
    shape as shape,
)
from lightpaff_jax.config.recipes import (
    tiny_stage1 as tiny_stage1,
)
from lightpaff_jax.config.recipes import (
    tiny_stage2 as tiny_stage2,
)
from lightpaff_jax.config.recipes import (
    tiny_table as tiny_table,
)
from lightpaff_jax.config.recipes import (
    use_phase as use_phase,
)
from lightpaff_jax.config.sources import COLUMN_TYPES as COLUMN_TYPES
from lightpaff_jax.config.sources import SOURCES as SOURCES
from lightpaff_jax.config.sources import VIEWS as VIEWS
from lightpaff_jax.errors import UserError as UserError
from lightpaff_jax.errors import nearest

FAMILIES = ('bert', 'gpt2', 'mass')
# What parts the documents of a text file: blank lines, the end of each line, its own end.
DOCUMENTS = ('blank', 'line', 'file')
DETOKENIZERS = ('none', 'wikitext', 'ptb')
PACKING = ('contiguous', 'best_fit')
ON_ERROR = ('stop', 'skip')
STARTS = ('scratch', 'teacher_layers')  # of student.init, which else is a path
# What a network predicts: ids, classes, both (of a BertForPreTraining), nothing.
HEADS = ('lm', 'classify', 'pretraining', 'none')
ACTIVATIONS = ('gelu', 'relu')
# Embeddings of MASS that are one matrix: all with the output, the decoder's with it, none.
TIES = ('all', 'decoder', 'none')
LONG_TEXT = ('truncate', 'error')
SCHEDULES = ('linear', 'cosine', 'constant')
DTYPES = ('float32', 'bfloat16')
# Mesh axes that parameters may be split over.
SPLIT = ('fsdp', 'tensor')
# What is computed again: nothing that is dear, all but matrix products, whole blocks.
REMAT = ('none', 'dots', 'block')
ATTENTION = ('auto', 'xla', 'cudnn', 'splash')

# A run may be resumed after these keys changed; any other difference is an error.
MAY_CHANGE = (
    'workdir', 'requires', 'data.cache', 'data.path', 'data.files', 'data.mixture', 'data.prefetch',
    'data.tfds_dir', 'data.workers', 'tokenizer.path', 'tokenizer.text', 'teacher.path', 'student.init', 'train.updates', 'train.compilation_cache',
    'train.log_every', 'train.eval_every', 'train.save_every', 'train.keep', 'eval', 'generate',
    'recipe', 'task', 'data.decontaminate', 'data.unlabelled',
)  # fmt: skip

# Lists of numbers; other lists that are empty by default hold names.
NUMBERS = ('student.init_layers', 'student.init_decoder_layers', 'data.buckets')
RATES = tuple(
    f'recipe.{name}.{key}' for name in PHASES for key in ('sweep_peak_lr', 'sweep_lambda')
)


def network(**changes) -> ConfigDict:
    """Shape of one network; `student` and `teacher` both have these keys."""
    c = ConfigDict()
    c.family = 'gpt2'  # one of FAMILIES
    c.head = 'lm'  # one of HEADS
    c.classes = 0  # of a classifier
    c.layers = 2  # transformer blocks; MASS: of the encoder
    c.decoder_layers = 0  # MASS: blocks of the decoder
    c.width = 128  # D, features a position
    c.heads = 2  # attention heads; divides width
    c.ffn = 512  # F, width of the feed-forward layer
    c.positions = 128  # longest sequence, tokens
    c.vocab_size = 2048  # ids in use; tables are padded to a multiple of 128
    c.dropout = 0.0  # probability, while training
    c.type_vocab_size = 2  # BERT: token types
    c.activation = 'gelu'  # MASS: one of ACTIVATIONS
    c.scale_embedding = True  # MASS: token embeddings are multiplied by sqrt(width)
    c.tied = 'all'  # MASS, one of TIES: which of encoder, decoder and output share their matrix
    c.update(changes)
    return c


def phase(**changes) -> ConfigDict:
    """One arrow of a recipe: what differs between its runs."""
    c = ConfigDict()
    c.updates = 100  # optimizer updates
    c.warmup = 10  # updates of linear warm-up
    c.peak_lr = 1e-3  # learning rate after the warm-up
    c.batch_size = 8  # sequences an update
    c.lambda_ = 0.5  # weight of the teacher, where there is one
    c.temperature = 1.0  # softens both distributions, where there is a teacher
    c.sweep_peak_lr = ()  # learning rates to choose from by the validation split; () is peak_lr alone
    c.sweep_lambda = ()  # weights of the teacher to choose from, where there is one; () is lambda_ alone
    c.update(changes)
    return c


def _data() -> ConfigDict:
    """What is learnt from, and how it becomes batches."""
    c = ConfigDict()
    c.source = 'pydocs'  # one of SOURCES
    c.path = ''  # folder of the files or of a prepared set; tfds: NAME[/CONFIG]
    c.packages = ()  # pydocs: packages to read; () reads all
    c.view = 'text'  # pydocs: what one example is, one of VIEWS
    c.files = ()  # SPLIT=GLOB below path; () finds a split's files by their names
    c.documents = 'blank'  # text files: what parts documents, one of DOCUMENTS
    c.columns = ()  # table, tfds: of the first text, the second ('' none) and the class; numbers: no header
    c.labels = ()  # table: names of the classes in their order; () are 0, 1, ...
    c.classes = 0  # table: how many, where labels is ()
    c.suffixes = ()  # parallel: marks in the names of the source's and the target's files, as en,de
    c.held_out = 0.0  # share of train that is a split without file, by a hash; 0: an error
    c.detokenize = 'none'  # undoes the spaces around punctuation, one of DETOKENIZERS
    c.replace = ()  # OLD=NEW of words that stand for others, as UNK=<unk>
    c.decontaminate = ()  # sets whose texts train has not, SOURCE:PATH[?KEY=VALUE&...][#SPLIT,SPLIT]
    c.unlabelled = ()  # classify: sets that train reads too, without their classes
    c.on_error = 'stop'  # at a malformed row, one of ON_ERROR
    c.tfds_dir = ''  # tfds: folder of its sets; '' is ~/tensorflow_datasets
    c.mixture = ()  # SOURCE:PATH=WEIGHT of each part; its share of the rows is its share of the weights
    c.length = 128  # tokens a sequence; of an encoder-decoder's source
    c.target_length = 0  # seq2seq: tokens a target
    c.long_text = 'truncate'  # what is done with a longer example, one of LONG_TEXT
    c.packing = 'contiguous'  # blocks of a stream, or of whole documents: one of PACKING
    c.buckets = ()  # classify, seq2seq: lengths a batch may have, rising, the last is length; () is that alone
    c.mask_rate = 0.15  # mlm: share of the tokens that is predicted
    c.whole_words = False  # mlm: all pieces of a word or none
    c.span_rate = 0.5  # mass: share of a sequence that is predicted, one fragment
    c.batch_size = 8  # sequences an update, over all devices and micro-steps
    c.cache = '~/.cache/lightpaff_jax'  # sets and vocabularies made here
    c.prefetch = 4  # batches read ahead
    c.workers = 1  # processes that tokenize
    return c


def _recipe() -> ConfigDict:
    """What is trained, for what, and for how long, where a table is made."""
    c = ConfigDict()
    c.seeds = (0,)  # one student of every arm for each
    c.tasks = ()  # FILE[:PRESET] of what is fine-tuned for, each a table
    c.data = ''  # folder that stands for `data` in paths of config.data; '' is `data` itself
    c.scale = ''  # of the table of a family: paper, small, tiny or ci
    c.notes = ()  # sentences of the report: what its figures depend on
    c.equal_flops = ()  # tasks with a control that takes as many FLOPs; () is all
    c.teacher_pretrain = phase()
    c.teacher_finetune = phase()  # updates 0: that of each task
    c.student_pretrain = phase()  # stage 1, and its control without a teacher
    c.student_finetune = phase()  # stage 2, and its control without a teacher; as above
    return c


def _optim() -> ConfigDict:
    """AdamW and its learning rate."""
    c = ConfigDict()
    c.peak_lr = 1e-3  # learning rate after the warm-up
    c.schedule = 'cosine'  # decay after the warm-up, one of SCHEDULES
    c.final_lr = 0.1  # learning rate behind the last update, as a share of peak_lr
    c.warmup = 10  # updates of linear warm-up
    c.b1 = 0.9  # AdamW, decay of the first moment
    c.b2 = 0.98  # AdamW, decay of the second moment
    c.eps = 1e-8  # AdamW
    c.weight_decay = 0.01  # AdamW, on matrices only
    c.clip_norm = 1.0  # longest gradient; 0 does not clip
    return c


def _train() -> ConfigDict:
    """How long, in what precision, and what is kept."""
    c = ConfigDict()
    c.updates = 100  # optimizer updates in all
    c.grad_accum_steps = 1  # M, parts a batch is computed in
    c.compute_dtype = 'float32'  # of matrix products in the networks, one of DTYPES
    c.remat = 'none'  # what the backward pass computes again, one of REMAT
    c.attention = 'auto'  # kernel, one of ATTENTION; auto takes the fastest that can
    c.compilation_cache = '~/.cache/lightpaff_jax/xla'  # compiled programs; '' keeps none
    c.log_every = 20  # updates between lines of metrics.jsonl
    c.eval_every = 0  # updates between validations; 0: at the end only
    c.save_every = 100  # updates between checkpoints
    c.keep = 2  # newest checkpoints kept
    return c


def _generate() -> ConfigDict:
    """How `bleu` and `rouge` have texts written."""
    c = ConfigDict()
    c.beams = 1  # hypotheses kept; 1 is greedy
    c.length_penalty = 1.0  # a hypothesis counts sum of log p / length**this
    c.min_length = 0  # tokens before the end may come
    c.max_length = 0  # most tokens, the end included; 0 is data.target_length
    c.early_stop = True  # whether as many finished hypotheses as beams end the search
    return c


def default() -> ConfigDict:
    """Every key with its default. Units are in the comments."""
    c = ConfigDict()
    c.seed = 0  # initialisation, order of the data, dropout
    c.workdir = ''  # where the run writes; '' is runs/<config name>
    c.requires = ()  # FILE[:PRESET] of runs to finish first, where main finds them unfinished
    c.task = ''  # name, in tables, of what is fine-tuned for; a task of a recipe has one
    c.objective = 'clm'  # what is predicted from what; one of OBJECTIVES of the student's family

    c.student = network()  # the network that is trained (a teacher's own training too)
    c.student.init = 'scratch'  # or 'teacher_layers'; or a workdir or Hugging Face folder
    c.student.init_layers = ()  # teacher_layers: which ones, from 0; () takes the lowest
    c.student.init_decoder_layers = ()  # MASS: which ones of the decoder
    c.student.init_new_head = (
        False  # whether a head that `init` lacks begins fresh; else it is an error
    )

    c.teacher = network(layers=0)  # layers 0: its shape is read from its path
    c.teacher.path = ''  # frozen teacher: a workdir or Hugging Face folder; '' trains without one
    c.teacher.dtype = 'auto'  # its parameters: auto is bfloat16, on a CPU float32
    c.teacher.microbatch_size = 0  # sequences that it reads at a time on a device; 0 chooses

    c.loss = ConfigDict()
    c.loss.lambda_ = 0.5  # weight of KL(teacher || student), in [0, 1]
    c.loss.temperature = 1.0  # > 0, softens both distributions
    c.loss.chunk = 0  # predicted positions in a visit of the head; 0 chooses

    c.optim = _optim()
    c.data = _data()

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ''  # file or folder; '' takes that of the teacher or of init, or trains one
    c.tokenizer.lowercase = True  # of a vocab.txt where no tokenizer_config.json says so
    c.tokenizer.text = ''  # folder whose train.txt it is trained on; '' is data.path

    c.train = _train()

    c.eval = ConfigDict()
    c.eval.batch_size = 16  # sequences a batch
    c.eval.batches = 0  # batches of each split; 0 reads it whole
    c.eval.metric = ''  # what runs are compared by, one of the objective's metrics; '' the first
    c.eval.test = True  # whether the end of a run scores the test split too
    c.eval.stride = 0  # clm: tokens from one window of data.length to the next; 0 is data.length

    c.generate = _generate()

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along `data`; -1 takes all that are left, fewer leave some idle
    c.mesh.fsdp = 1  # devices that share each parameter
    c.mesh.tensor = 1  # devices that share each matrix product
    c.mesh.student = SPLIT  # axes, of SPLIT, that share its parameters; others have copies
    c.mesh.teacher = SPLIT  # likewise

    c.recipe = _recipe()
    return c.lock()


def example_type(c: ConfigDict) -> str:
    """Returns the type of the examples of `config.data`: 'documents', 'classes' or 'targets'; '' if only its files say."""
    source = SOURCES[c.data.source]
    if 'view' in source.keys:
        return VIEWS[c.data.view]
    if c.data.columns and not source.example_type:
        return COLUMN_TYPES[len(c.data.columns) - 1]
    return source.example_type


def flatten(c: ConfigDict | dict, prefix: str = '') -> dict:
    """Dotted key -> value, sorted within each section."""
    flat: dict = {}
    for key, value in c.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def copy(c: ConfigDict) -> ConfigDict:
    """An independent copy that still refuses unknown keys."""
    return c.copy_and_resolve_references()


def to_json(c: ConfigDict) -> str:
    """Every key and value; `from_json` reads it back."""
    return json.dumps(c.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote; raises UserError on keys this version does not have."""
    c, found = default(), json.loads(text)
    if not isinstance(found, dict):
        raise UserError('must be a JSON object')
    known = flatten(c)
    for key, value in flatten(ConfigDict(found)).items():
        if key not in known:
            raise UserError(f'config.{key}: no such key{nearest(key, list(known))}')
        *sections, leaf = key.split('.')
        node = c
        for name in sections:
            node = node[name]
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return c


def read(workdir: pathlib.Path) -> ConfigDict:
    """config.json of a run; raises UserError that names the file where it cannot be read."""
    path = workdir / 'config.json'
    try:
        return from_json(path.read_text())
    except (UserError, OSError, ValueError, TypeError) as error:
        raise UserError(f'{path}: {" ".join(str(error).split())}') from error


def differences(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Keys that differ and may not change when a run is resumed, as 'key: old -> new'."""
    old, new = flatten(before), flatten(after)
    return [
        f'{key}: {old[key]!r} -> {new[key]!r}'
        for key in new
        if old[key] != new[key] and not any(key == m or key.startswith(f'{m}.') for m in MAY_CHANGE)
    ]
