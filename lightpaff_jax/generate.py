"""Texts written by a trained network: the functions, and a command."""

import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightpaff_jax import models, pretrained
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import flags
from lightpaff_jax.data import tokenizers
from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.models.decoding import Generated, Settings, make_generate

__all__ = ['Generated', 'Settings', 'make_generate', 'texts']

USAGE = """
python -m lightpaff_jax.generate --model=DIR (--prompt=TEXT | --file=FILE) [--max-length=N] ...

What a network writes, one line a prompt (line ends in it become spaces): a GPT-2 goes on from the
prompt, which is not printed; an encoder-decoder has it as its source. DIR is the workdir of a
finished run or a Hugging Face folder with its tokenizer. FILE has one prompt a line.

--max-length=64  most new tokens, the end included      --sample         draw each token
--min-length=0   new tokens before the end may come     --temperature=1  logits are divided by it
--beams=1        hypotheses kept; 1 is greedy           --top-k=0        from so many tokens; 0: all
--length-penalty=1  a text counts log p / length**this  --top-p=1        from this probability mass
--no-early-stop  search on while a better text may come --seed=0         of what is drawn
--batch-size=16  prompts at a time
"""


FLAGS = {
    'model': '',
    'prompt': str,
    'file': str,
    'max-length': 64,
    'min-length': 0,
    'beams': 1,
    'length-penalty': 1.0,
    'no-early-stop': False,
    'sample': False,
    'temperature': 1.0,
    'top-k': 0,
    'top-p': 1.0,
    'seed': 0,
    'batch-size': 16,
}


def texts(
    model: models.Model, params: models.Params, tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str], settings: Settings, *, batch_size: int = 16, seed: int = 0,
) -> Iterator[str]:  # fmt: skip
    """What a network writes after, or from, each prompt, in their order.

    Args:
      model: a GPT-2 or an encoder-decoder.
      params: its parameters.
      tokenizer: its tokenizer.
      prompts: at least one; an empty one is the end of a document that comes before.
      settings: how it writes.
      batch_size: prompts at a time.
      seed: of what is drawn.

    Raises:
      UserError: an encoder, a setting out of range, or a prompt with more tokens than the network
        has positions for.
    """
    eos = tokenizer.eos_id
    write = jax.jit(
        make_generate(model, settings, start_id=eos, eos_id=eos, pad_id=tokenizer.pad_id)
    )
    source = model.network.family == 'mass'
    rows = [[*ids, eos] if source else ids or [eos] for ids in tokenizer.encode(prompts)]
    length = max(map(len, rows))
    positions = model.network.positions
    needed = max(length, settings.max_length) if source else length + settings.max_length
    if needed > positions:
        number = 1 + max(range(len(rows)), key=lambda i: len(rows[i]))
        both = 'must each be at most' if source else 'must together be at most'
        raise UserError(
            f'prompt {number} has {length} tokens and max_length is {settings.max_length}: {both} '
            f"the network's {positions} positions"
        )
    blank = jnp.zeros((batch_size, 1), jnp.int32)
    for number in range(0, len(rows), batch_size):
        ids = np.full((batch_size, length), tokenizer.pad_id, np.int32)
        real = np.zeros_like(ids)
        chosen = rows[number : number + batch_size]
        for i, row in enumerate(chosen):
            ids[i, : len(row)], real[i, : len(row)] = row, 1
        read, mask = jnp.asarray(ids), jnp.asarray(real)
        if source:
            batch = Batch(blank, blank, blank, source=read, source_segments=mask)
        else:
            batch = Batch(read, blank, blank, segments=mask)
        key = jax.random.fold_in(jax.random.key(seed), number)
        found = jax.device_get(write(params, batch, key))
        for i in range(len(chosen)):
            new = found.ids[i, : found.lengths[i]]
            yield tokenizer.decode_valid(new[new != eos])


def _read_prompts(file: str) -> list[str]:
    try:
        text = pathlib.Path(file).expanduser().read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'--file={file}: must be UTF-8: {error}') from error
    except OSError as error:
        raise UserError(f'--file={file}: {one_line(error)}') from error
    if not text:
        raise UserError(f'--file={file}: must have at least one line')
    return text.removesuffix('\n').split('\n')  # form feeds and U+2028 end no line


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for a flag that is missing, out of range or would be ignored."""
    if not options['model']:
        raise UserError('--model=DIR: must be given')
    if (options['prompt'] is None) == (options['file'] is None):
        raise UserError('one of --prompt=TEXT and --file=FILE must be given')
    if options['batch_size'] < 1:
        raise UserError(f'--batch-size={options["batch_size"]}: must be at least 1')
    if not 0 <= options['seed'] < 2**31:
        raise UserError(f'--seed={options["seed"]}: must be at least 0 and below 2**31')
    if options['seed'] and not options['sample']:
        raise UserError('--seed: requires --sample')
    for flag in ('length-penalty', 'no-early-stop'):
        if options['beams'] == 1 and options[flag.replace('-', '_')] != FLAGS[flag]:
            raise UserError(f'--{flag}: requires --beams >= 2')


def _run(argv: Sequence[str]) -> None:
    options = flags.arguments(argv, FLAGS, config=False).options
    _check_options(options)
    file = options['file']
    prompts = [options['prompt']] if file is None else _read_prompts(file)
    options['early_stop'] = not options['no_early_stop']
    settings = Settings(**{name: options[name] for name in Settings._fields})
    source = pretrained.open('--model', options['model'])
    tokenizer = source.tokenizer()
    model, params = source.load()
    size, seed = min(options['batch_size'], len(prompts)), options['seed']
    for text in texts(model, params, tokenizer, prompts, settings, batch_size=size, seed=seed):
        print(' '.join(text.splitlines()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.execute(_run, USAGE, argv)


if __name__ == '__main__':
    sys.exit(main())
