"""Reads the settings of generation of a Hugging Face network: generation_config.json or config.json."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lightpaff_jax.models.huggingface.values import check, is_integer, is_number


class Generation(NamedTuple):
    """The settings with which a network generates text."""

    where: str
    """The file, the start of messages."""
    eos_ids: tuple[int, ...]
    """The tokens that end a text; () for none."""
    settings: dict[str, Any]
    """Values of `decoding.Settings`, also those that only sampling or a beam search reads; absent
    ones are not configured."""
    totals: dict[str, int]
    """max_length and min_length that count the tokens of the prompt too."""
    refused: dict[str, tuple[str, Any, str]]
    """'sample' or 'beams' -> key, value and rule of a setting that this search would read."""
    start_id: int | None = None
    """First input of a decoder; None for a network without an encoder."""


# Key -> the values that change no text; any other is refused.
_REFUSED: dict[str, tuple] = {
    'stop_strings': (None,),
    'use_mtp': (None, False),
    'encoder_repetition_penalty': (None, 1),
    'encoder_no_repeat_ngram_size': (None, 0),
    'bad_words_ids': (None,),
    'renormalize_logits': (None, False),
    'exponential_decay_length_penalty': (None,),
    'suppress_tokens': (None, []),
    'begin_suppress_tokens': (None, []),
    'sequence_bias': (None,),
    'token_healing': (None, False),
    'guidance_scale': (None, 1),
    'watermarking_config': (None,),
    'num_return_sequences': (None, 1),
    'max_time': (None,),
    'penalty_alpha': (None, 0),
    'dola_layers': (None,),
    'diversity_penalty': (None, 0),
    'num_beam_groups': (None, 1),
    'constraints': (None,),
    'force_words_ids': (None,),
}
# Likewise, if tokens are sampled or beams are searched, which flags decide; otherwise ignored.
_REFUSED_BY: dict[str, dict[str, tuple]] = {
    'sample': {
        'min_p': (None,),
        'top_h': (None,),
        'typical_p': (None, 1),
        'epsilon_cutoff': (None, 0),
        'eta_cutoff': (None, 0),
    },
    'beams': {'early_stopping': (None, True, False)},
}
_TOP_K = 50  # transformers' default if tokens are sampled
_MAX_COUNT = 2**31 - 1


def read(where: str, values: Mapping[str, Any], network: ConfigDict) -> Generation:
    """Converts the settings of transformers' `generate` to ours.

    Args:
      where: the name of the file, the start of the messages.
      values: its content; keys that are not settings of generation are ignored.
      network: the keys of `config.network()`.

    Raises:
      UserError: a value of another type, an id outside of the vocabulary, or a setting that
        `decoding.Settings` does not have.
    """
    r = _Reader(where, values, network.vocab_size)
    seq2seq, samples, beams = network.family == 'mass', r.switch('do_sample'), r.whole('num_beams')
    for key, allowed in _REFUSED.items():
        r.check(key, values.get(key) in allowed, _one_of(allowed))
    refused = {
        name: (key, values[key], _one_of(allowed))
        for name, others in _REFUSED_BY.items()
        for key, allowed in others.items()
        if values.get(key) not in allowed
    }
    settings: dict[str, Any] = {}
    totals = {}
    for name in ('max_length', 'min_length'):
        new, total = r.whole(name.replace('length', 'new_tokens')), r.whole(name)
        if new is None and total and seq2seq:  # the total counts the first input of the decoder
            new = max(total - 1, 0)
        elif new is None and total:
            totals[name] = total
        settings[name] = new
    for name in ('repetition_penalty', 'length_penalty', 'temperature', 'top_p'):
        settings[name] = r.number(name)
    top_k = r.whole('top_k')
    settings |= {
        'no_repeat_ngram_size': r.whole('no_repeat_ngram_size'),
        'beams': beams or 1,
        'early_stop': values.get('early_stopping') in (True, 1),
        'sample': samples,
        'top_k': _TOP_K if top_k is None else top_k,
    }
    settings['forced_eos_token_id'] = r.token('forced_eos_token_id')
    start_id = None
    if seq2seq:
        settings['forced_bos_token_id'] = r.token('forced_bos_token_id')
        start_id = r.token('decoder_start_token_id')
        start_id = r.token('bos_token_id') if start_id is None else start_id
    else:
        key = 'forced_bos_token_id'
        r.check(key, values.get(key) is None, 'must be None without an encoder')
    settings = {name: value for name, value in settings.items() if value is not None}
    return Generation(where, r.tokens('eos_token_id'), settings, totals, refused, start_id)


def _one_of(allowed: tuple) -> str:
    return f'must be {" or ".join(map(repr, allowed))}'


class _Reader(NamedTuple):
    """Checks values; null is an absent value."""

    where: str
    values: Mapping[str, Any]
    vocab_size: int

    def check(self, key: str, holds: bool, rule: str) -> None:
        check(self.where, self.values, key, holds, rule)

    def switch(self, key: str) -> bool:
        value = self.values.get(key)
        self.check(key, value is None or isinstance(value, bool), 'must be true or false')
        return bool(value)

    def whole(self, key: str) -> int | None:
        value = self.values.get(key)
        valid = value is None or (is_integer(value, 0) and value <= _MAX_COUNT)
        self.check(key, valid, 'must be a whole number')
        return value

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        valid = value is None or (is_number(value) and abs(value) < _MAX_COUNT)
        self.check(key, valid, 'must be a number')
        return None if value is None else float(value)

    def token(self, key: str) -> int | None:
        value = self.values.get(key)
        valid = value is None or (is_integer(value, 0) and value < self.vocab_size)
        self.check(key, valid, f'must be an id below vocab_size = {self.vocab_size}')
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        """Returns the ids of a key; drops ids outside of the vocabulary, which never occur."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        self.check(key, all(map(is_integer, ids)), 'must be an id or a list of ids')
        return tuple(i for i in ids if 0 <= i < self.vocab_size)
