"""Fixtures of the data tests: one corpus per session and small configurations that read it."""

import hashlib
import os
import pathlib
import random
import string
import subprocess
import sys

import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.batch import Batch
from lightpaff_jax.data import batches, prepare, tokenizers
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection

VOCAB_SIZE = 512


def build_cache(folder: pathlib.Path) -> str:
    """Builds the corpus in `folder`, a data cache; takes about 20 s on one core."""
    pydocs.load(str(folder))
    return str(folder)


def tiny_config(cache: str) -> ConfigDict:
    """Returns a configuration of two small packages, short blocks and 2 micro-batches of 4."""
    c = config.default()
    c.student.vocab_size = VOCAB_SIZE
    c.data.cache = cache
    c.data.packages = ('chex', 'ml_collections')
    c.data.length = 32
    c.data.batch_size = 8
    c.train.grad_accum_steps = 2
    c.eval.batch_size = 8
    c.train.compilation_cache = ''  # keeps the cache of the test session
    return c


def examples_config(cache: str, view: str) -> ConfigDict:
    """Returns a configuration of a view other than text, with a family that reads it."""
    c = tiny_config(cache)
    c.data.packages = ('etils', 'optax')
    c.data.view = view
    if view == 'summary':
        c.student.family, c.student.decoder_layers, c.objective = 'mass', 2, 'seq2seq'
        c.data.target_length = 12
    else:
        c.student.family, c.student.head, c.objective = 'bert', 'classify', 'classify'
        c.student.classes = len(pydocs.PACKAGES) if view == 'topic' else 2
    return c


def prepare_dataset(c: ConfigDict) -> Dataset:
    """Prepares the dataset of `c` with its own tokenizer."""
    return prepare.prepare(c, selection.load(c))


def batch_at(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: tokenizers.Tokenizer,
    index: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batch:
    """Returns the rows [M, B/(M*process_count), T] that a process reads of global batch `index`."""
    rows = c.data.batch_size // (c.train.grad_accum_steps * process_count)
    rows_R = process_index * rows + np.arange(rows)
    return batches.batch_function(c, prepared, tokenizer, rows_R)(index)


def wordpiece_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Writes a BERT vocabulary of 61 tokens: letters, `##` letters, two words and a full stop."""
    letters = string.ascii_lowercase
    pieces = [*letters, *(f'##{letter}' for letter in letters), 'the', 'dog', '##ing', '.']
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    (folder / 'vocab.txt').write_text('\n'.join([*special, *pieces]) + '\n')
    return tokenizers.read(str(folder))


def write_random_text(folder: pathlib.Path, size: int, seed: int = 0) -> None:
    """Writes train.txt of about `size` characters; validation.txt and test.txt have a ninth."""
    draw, words = random.Random(seed), ['the', 'dog', 'a', 'b', 'sunny', '.', 'quick', 'fox']
    folder.mkdir(parents=True)
    for split, share in (('train', 1), ('validation', 9), ('test', 9)):
        documents: list[str] = []
        left = size // share
        while left > 0:
            documents.append(' '.join(draw.choices(words, k=draw.randint(1, 60))))
            left -= len(documents[-1])
        (folder / f'{split}.txt').write_text('\n\n'.join(documents) + '\n')


def text_config(folder: pathlib.Path, seed: int = 0) -> ConfigDict:
    """Writes random text and returns a configuration that reads it in blocks of 32."""
    write_random_text(folder, 20_000, seed)
    c = config.default()
    c.data.source, c.data.path, c.data.length = 'text', str(folder), 32
    c.data.cache = str(folder.parent / 'cache')
    return c


def start_python(script: str, cache: pathlib.Path, hash_seed: str = '0') -> subprocess.Popen:
    """Starts `script` in a new interpreter whose corpus has three small packages.

    The script finds `cache` in sys.argv[1]; its output is captured as text.
    """
    head = (
        'import sys\n'
        'from lightpaff_jax.data.sources import pydocs\n'
        "names = ('chex', 'etils', 'ml_collections')\n"
        'pydocs.PACKAGES = {name: pydocs.PACKAGES[name] for name in names}\n'
    )
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', head + script, str(cache)],
        env=os.environ | {'PYTHONPATH': f'{root}:{root}/tests', 'PYTHONHASHSEED': hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def file_digests(folder: pathlib.Path) -> dict[str, str]:
    """Maps the relative path of every file in a folder to its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }
