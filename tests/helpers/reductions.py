"""A WordPiece vocabulary, text in a part of its words, and runs that reduce it to this part."""

import pathlib
import string

import jax
from ml_collections import ConfigDict

import lightpaff_jax
from lightpaff_jax import config, models
from lightpaff_jax.data import tokenizers

SPECIAL = ['[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
LETTERS = [*string.ascii_lowercase, *string.digits, '.', 'é']
CHARACTERS = [*LETTERS, *(f'##{letter}' for letter in LETTERS)]
# The texts below have the words before 'fox'; '##ning' and 'quick' are the least frequent.
WORDS = ['the', 'dog', 'sun', '##ny', 'run', '##ning', 'quick']
WORDS += ['fox', 'cat', '##ly', 'moon', '##light', 'café', 'h2o']
REQUIRED = len(SPECIAL) - 1 + len(CHARACTERS)
SIZE = REQUIRED + 6  # of the reduced vocabulary
TEXTS = [
    'The dog runs. The sunny dog is running.',
    'Dogs run the quick run. The sun.',
    'Sunny dogs run.',
] * 40
SHAPE = {'layers': 1, 'width': 16, 'heads': 2, 'ffn': 24, 'positions': 32}


def write_vocabulary(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Writes a vocab.txt of whole words, characters and pieces, in no special order."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = dict.fromkeys([*SPECIAL, *CHARACTERS[::2], *WORDS, *CHARACTERS[1::2]])
    (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n', encoding='utf-8')
    return tokenizers.read(str(folder))


def write_teacher(folder: pathlib.Path, **shape) -> tuple[models.Model, models.Params]:
    """Writes a BERT with random parameters and the whole vocabulary, as a Hugging Face folder."""
    tokenizer = write_vocabulary(folder / 'vocabulary')
    network = config.network(family='bert', vocab_size=tokenizer.vocab_size, **SHAPE)
    network.update({'layers': 2, **shape})
    model = models.build(network)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(3)))
    lightpaff_jax.save(str(folder), model, params, tokenizer)
    return model, params


def make_config(folder: pathlib.Path) -> ConfigDict:
    """Writes the texts into `folder`; returns a run of masked LM whose vocabulary they choose."""
    text = folder / 'text'
    text.mkdir(exist_ok=True)
    for split in ('train', 'validation', 'test'):
        (text / f'{split}.txt').write_text('\n\n'.join(TEXTS[: None if split == 'train' else 12]))
    c = config.default()
    c.objective, c.student.family = 'mlm', 'bert'
    c.student.update(SHAPE | {'vocab_size': SIZE})
    c.data.update(
        {'source': 'text', 'path': str(text), 'length': 16, 'cache': str(folder / 'cache')}
    )
    c.tokenizer.reduce = (f'text:{text}',)
    c.tokenizer.path = str(folder / 'teacher' / 'vocabulary')
    c.eval.batch_size, c.optim.warmup, c.mesh.data = 8, 1, 1
    c.train.update({'updates': 2, 'save_every': 2, 'log_every': 1, 'compilation_cache': ''})
    return c
