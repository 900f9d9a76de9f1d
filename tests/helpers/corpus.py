"""What tests of the data share: one corpus a session, small configurations of it."""

import hashlib
import os
import pathlib
import random
import string
import subprocess
import sys

from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import prepare, tokenizers
from lightpaff_jax.data.records import Prepared
from lightpaff_jax.data.sources import pydocs
from lightpaff_jax.data.tokenizers import selection

VOCAB_SIZE = 512


def build(folder: pathlib.Path) -> str:
    """A data cache in `folder` that holds the corpus; takes some 20 s of one core."""
    pydocs.opened(str(folder))
    return str(folder)


def tiny(cache: str) -> ConfigDict:
    """Two small packages, a small vocabulary, short sequences, 2 micro-batches of 4."""
    c = config.default()
    c.student.vocab_size = VOCAB_SIZE
    c.data.cache = cache
    c.data.packages = ('chex', 'ml_collections')
    c.data.length = 32
    c.data.batch_size = 8
    c.train.grad_accum_steps = 2
    c.eval.batch_size = 8
    c.train.compilation_cache = ''  # that of the session
    return c


def examples(cache: str, form: str) -> ConfigDict:
    """As `tiny`, of another form than text, each with the family and objective that reads it."""
    c = tiny(cache)
    c.data.packages = ('etils', 'optax')
    c.data.view = form
    if form == 'summary':
        c.student.family, c.student.decoder_layers, c.objective = 'mass', 2, 'seq2seq'
        c.data.target_length = 12
    else:
        c.student.family, c.student.head, c.objective = 'bert', 'classify', 'classify'
        c.student.classes = len(pydocs.PACKAGES) if form == 'topic' else 2
    return c


def prepared(c: ConfigDict) -> Prepared:
    return prepare.prepare(c, selection.load(c))


def wordpiece(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """A BERT vocabulary of 61 pieces: letters, at the beginning of a word and in it, a few words."""
    letters = string.ascii_lowercase
    pieces = [*letters, *(f'##{letter}' for letter in letters), 'the', 'dog', '##ing', '.']
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    (folder / 'vocab.txt').write_text('\n'.join([*special, *pieces]) + '\n')
    return tokenizers.read(str(folder))


def random_text(folder: pathlib.Path, size: int, seed: int = 0) -> None:
    """train.txt of about `size` characters, validation.txt and test.txt of a ninth of that."""
    draw, words = random.Random(seed), ['the', 'dog', 'a', 'b', 'sunny', '.', 'quick', 'fox']
    folder.mkdir(parents=True)
    for split, share in (('train', 1), ('validation', 9), ('test', 9)):
        documents: list[str] = []
        left = size // share
        while left > 0:
            documents.append(' '.join(draw.choices(words, k=draw.randint(1, 60))))
            left -= len(documents[-1])
        (folder / f'{split}.txt').write_text('\n\n'.join(documents) + '\n')


def text_folder(folder: pathlib.Path, seed: int = 0) -> ConfigDict:
    """A configuration of a text folder that this makes."""
    random_text(folder, 20_000, seed)
    c = config.default()
    c.data.source, c.data.path, c.data.length = 'text', str(folder), 32
    c.data.cache = str(folder.parent / 'cache')
    return c


def small_process(script: str, cache: pathlib.Path, hash_seed: str = '0') -> subprocess.Popen:
    """Runs `script` in a process of its own, where the corpus is three small packages.

    It finds `cache` in sys.argv[1]; `communicate()` gives what it wrote, as text.
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


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Name -> SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }
