"""Generates text with a trained network: functions, and a command."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightpaff_jax import check, models, pretrained
from lightpaff_jax.batch import Batch
from lightpaff_jax.config import flags, memory
from lightpaff_jax.data import tokenizers
from lightpaff_jax.errors import UserError, one_line
from lightpaff_jax.models.decoding import SAMPLING, Generated, Settings, make_generate
from lightpaff_jax.models.huggingface.generation_config import Generation

__all__ = ['Generated', 'Settings', 'make_generate', 'texts']

USAGE = """
python -m lightpaff_jax.generate --model=DIR (--prompt=TEXT | --file=FILE) [--max-length=N] ...

Prints the text that a network generates, one line per prompt (line ends become spaces). A GPT-2
continues the prompt, which is not printed; an encoder-decoder reads it as its source. DIR is the
workdir of a finished run or a Hugging Face folder with its tokenizer. FILE has one prompt per line.
Without a flag, the setting of a Hugging Face folder applies, as in transformers.

--max-length=64     maximum number of new tokens, the end token included
--min-length=0      new tokens before the end token is allowed
--beams=1           hypotheses of a beam search; 1 is greedy
--length-penalty=1  a beam search ranks hypotheses by log p / length**penalty
--no-early-stop     search until no open hypothesis can become better
--no-sample         take the most probable token, though the network's folder says to sample
--sample            sample each token, with --temperature=1 (divides the logits), --top-k=0 (only
                    the k most probable tokens; 0 is all), --top-p=1 (only the most probable tokens
                    of this total probability) and --seed=0
--no-repeat-ngram-size=0  no sequence of n tokens occurs twice; 0: no limit
--repetition-penalty=1    divides positive scores of earlier tokens, multiplies negative ones
--batch-size=16     prompts per batch
"""

_MAX_LENGTH = 64
_LENGTHS = {'max-length': int, 'min-length': int}
_SEARCH = {'beams': int, 'length-penalty': float, 'no-early-stop': False}
_SAMPLING = {
    'sample': False,
    'no-sample': False,
    'temperature': float,
    'top-k': int,
    'top-p': float,
}
_REPETITION = {'no-repeat-ngram-size': int, 'repetition-penalty': float}
_SETTINGS: flags.Flags = {**_LENGTHS, **_SEARCH, **_SAMPLING, **_REPETITION}
_INPUT = {'model': '', 'prompt': str, 'file': str}
FLAGS: flags.Flags = {**_INPUT, **_SETTINGS, 'seed': 0, 'batch-size': 16}


def texts(
    model: models.Model,
    params: models.Params,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str],
    settings: Settings,
    *,
    batch_size: int = 16,
    seed: int = 0,
    generation: Generation | None = None,
) -> Iterator[str]:
    """Generates one text per prompt, in the order of the prompts.

    Args:
      model: a GPT-2, which continues the prompt, or an encoder-decoder, whose source it is.
      params: its parameters.
      tokenizer: its tokenizer.
      prompts: at least one prompt. An empty one stands for the end of the document before.
      settings: the settings of search or sampling.
      batch_size: prompts per batch.
      seed: the seed of sampling.
      generation: special tokens of a Hugging Face folder; None for those of the tokenizer.

    Raises:
      UserError: the model is an encoder, a setting is out of range, prompt and new tokens exceed the
        positions of the network, or the search needs more memory than the devices have.
    """
    eos, seq2seq = tokenizer.eos_id, model.network.family == 'mass'
    ends = (eos,) if generation is None else generation.eos_ids
    generate_batch = jax.jit(
        make_generate(model, settings, start_id=eos, eos_id=ends, pad_id=tokenizer.pad_id)
    )
    before, after = tokenizer.around
    after = (eos,) if seq2seq else after
    rows = [[*before, *ids, *after] or [eos] for ids in tokenizer.encode(prompts)]
    length = max(map(len, rows))
    _check_positions(model, rows, settings.max_length)
    shape = batch_size, settings.beams, settings.max_length
    memory.check_generation(model.network, *shape, check.device_memory())
    unused = jnp.zeros((batch_size, 1), jnp.int32)
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        # All batches have one shape, so that one program is compiled.
        tokens = np.full((batch_size, length), tokenizer.pad_id, np.int32)
        mask = np.zeros_like(tokens)
        for i, row in enumerate(chunk):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        ids, segments = jnp.asarray(tokens), jnp.asarray(mask)
        if seq2seq:
            batch = Batch(unused, unused, unused, source=ids, source_segments=segments)
        else:
            batch = Batch(ids, unused, unused, segments=segments)
        key = jax.random.fold_in(jax.random.key(seed), start)
        with _translate_memory_errors(
            'batch_size = {}, beams = {}, max_length = {}'.format(*shape)
        ):
            generated = jax.device_get(generate_batch(params, batch, key))
        for i in range(len(chunk)):
            new = generated.ids[i, : generated.lengths[i]]
            yield tokenizer.decode_valid(new[new != eos])


def _check_positions(model: models.Model, rows: Sequence[list[int]], max_length: int) -> None:
    """Raises UserError if the longest prompt and the new tokens exceed the network's positions."""
    number, length = max(enumerate(map(len, rows), 1), key=lambda pair: pair[1])
    needed, rule = length + max_length, 'must together be at most'
    if model.network.family == 'mass':
        needed, rule = max(length, max_length), 'must each be at most'
    if needed > model.network.positions:
        raise UserError(
            f'prompt {number} has {length} tokens and max_length is {max_length}: {rule} '
            f"the network's {model.network.positions} positions"
        )


@contextlib.contextmanager
def _translate_memory_errors(label: str) -> Iterator[None]:
    """Turns the error of a full device into a UserError that `label` begins."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise UserError(f'{label}: need more memory: {one_line(error):.200}') from error


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
    size, seed = options['batch_size'], options['seed']
    one_input = (options['prompt'] is None) != (options['file'] is None)
    for valid, message in (
        (options['model'], '--model=DIR: must be given'),
        (one_input, 'one of --prompt=TEXT and --file=FILE must be given'),
        (size >= 1, f'--batch-size={size}: must be at least 1'),
        (0 <= seed < 2**31, f'--seed={seed}: must be at least 0 and below 2**31'),
    ):
        if not valid:
            raise UserError(message)


def _settings(options: Mapping[str, Any], generation: Generation) -> Settings:
    """Takes each setting from its flag, else from the network, else from the defaults."""
    explicit = {name: options[name.replace('-', '_')] for name in _SETTINGS}
    explicit = {name: x for name, x in explicit.items() if x is not None and x is not False}
    for name, total in generation.totals.items():
        flag = name.replace('_', '-')
        if flag not in explicit:
            raise UserError(
                f'{generation.where} has {name} = {total}, which counts the prompt too: give --{flag}'
            )
    changes = {name.replace('-', '_'): value for name, value in explicit.items()}
    if changes.pop('no_early_stop', False):
        changes['early_stop'] = False
    if changes.pop('no_sample', False):
        if 'sample' in changes:
            raise UserError('--no-sample: must not be given with --sample')
        changes['sample'] = False
    chosen = {'max_length': _MAX_LENGTH} | generation.settings | changes
    if not chosen.get('sample'):
        ignored = [name for name in SAMPLING if name not in changes]
        chosen = {name: value for name, value in chosen.items() if name not in ignored}
    settings = Settings(**chosen)
    _check_search(settings, changes, generation)
    if settings.beams == 1:
        for name in ('length-penalty', 'no-early-stop'):
            if name in explicit:
                raise UserError(f'--{name}: requires --beams >= 2')
        settings = settings._replace(length_penalty=1.0)
    if options['seed'] and not settings.sample:
        raise UserError('--seed: requires --sample')
    return settings


def _check_search(s: Settings, changes: Mapping[str, Any], generation: Generation) -> None:
    """Raises UserError if the network's settings of this search are not supported.

    Args:
      s: the settings.
      changes: those that flags decide.
      generation: those of the network.
    """
    if s.sample and s.beams > 1 and not ('sample' in changes and 'beams' in changes):
        value, rule = (
            f'num_beams = {s.beams}',
            'must be 1 to sample, or give --beams=1 or --no-sample',
        )
        if 'beams' in changes:
            value, rule = 'do_sample = True', f'--beams={s.beams} needs --no-sample'
        raise UserError(f'{generation.where} has {value}: {rule}')
    name = 'sample' if s.sample else 'beams' if s.beams > 1 else ''
    if name in generation.refused and 'early_stop' not in changes:
        key, value, rule = generation.refused[name]
        raise UserError(f'{generation.where} has {key} = {value!r}: {rule}')


def _run(argv: Sequence[str]) -> None:
    options = flags.arguments(argv, FLAGS, config=False).options
    _check_options(options)
    prompt, file = options['prompt'], options['file']
    prompts = [prompt] if file is None else _read_prompts(file)
    source = pretrained.open('--model', options['model'])
    tokenizer = source.tokenizer()
    generation = source.generation(tokenizer)
    settings = _settings(options, generation)
    model, params = source.load()
    size, seed = min(options['batch_size'], len(prompts)), options['seed']
    generated = texts(
        model,
        params,
        tokenizer,
        prompts,
        settings,
        batch_size=size,
        seed=seed,
        generation=generation,
    )
    for text in generated:
        print(' '.join(text.splitlines()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return flags.execute(_run, USAGE, argv)


if __name__ == '__main__':
    sys.exit(main())
