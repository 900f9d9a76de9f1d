"""Token by token, on the device: greedy, beam search, sampling."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lightpaff_jax import models
from lightpaff_jax.errors import UserError

_NEVER = -1e9  # of a hypothesis that is none; transformers' number, so that sums round alike

_BLOCK = 128  # the vocabulary's padded size is a multiple of it


class Settings(NamedTuple):
    """How texts are written; the names and defaults are transformers'."""

    max_length: int
    """Most new tokens, the end included."""
    min_length: int = 0
    """New tokens before the end may come."""
    beams: int = 1
    """Hypotheses kept; 1 takes the best token, or draws one."""
    length_penalty: float = 1.0
    """A finished hypothesis counts sum of log p / length ** this, the end included in length."""
    early_stop: bool = True
    """As many finished hypotheses as beams end a search; False: it goes on until the best open one,
    at its present length, is worse than all of them."""
    sample: bool = False
    """Draws each token from the distribution that the next three make."""
    temperature: float = 1.0
    """Logits are divided by it first."""
    top_k: int = 0
    """Then only so many of the most probable tokens stay; 0: all."""
    top_p: float = 1.0
    """Then only the fewest most probable tokens whose probabilities sum to at least this."""


class Generated(NamedTuple):
    """New tokens; N is the most there may be."""

    ids: Int[Array, 'B N']
    """The end included where it was reached; then padding."""
    lengths: Int[Array, ' B']
    """Of these how many are no padding."""
    scores: Float[Array, ' B']
    """Sum of log p of the tokens by the network itself (not as a sampler changed it); of beam search
    divided by length ** length_penalty."""


def make_generate(
    model: models.Model, settings: Settings, *, start_id: int, eos_id: int, pad_id: int
) -> Callable[..., Generated]:
    """A pure function (params, prompt, key=None) -> Generated, to be jitted by the caller.

    A loop on the device takes one step a token, until all texts have ended. Rows do not influence
    each other, so the batch may be padded and sharded. Equal to transformers' `generate` with
    `min_new_tokens`, `max_new_tokens`, `forced_eos_token_id=None`; of equal scores the lowest id is
    taken.

    The prompt is a Batch: of a GPT-2 `tokens` [B, T], padded on the right where `segments` is 0; of
    an encoder-decoder `source` [B, S] with `source_segments`. Other fields are not read.

    Args:
      model: with a decoder.
      settings: see there.
      start_id: the first token that an encoder-decoder's decoder reads.
      eos_id: ends a text; -1: nothing does.
      pad_id: stands after the end.

    Raises:
      UserError: the network writes no texts, or a setting is out of range.
      ValueError: (the function) the prompt with max_length tokens exceeds the network's positions,
        or a key is missing where tokens are drawn.
    """
    decoder = model.decoder
    if decoder is None:
        raise UserError(f'a network of the family {model.network.family!r} writes no texts')
    _check(settings)
    write = _beams if settings.beams > 1 else _single

    def generate(params, prompt, key=None) -> Generated:
        if settings.sample and key is None:
            raise ValueError('key = None: must be given where tokens are drawn')
        tokens_B, memory = decoder.begin(
            params, prompt, start_id=start_id, steps=settings.max_length, beams=settings.beams
        )
        layers = decoder.single(params)
        weight_VD, bias_V = model.head(params)
        weight_DV = weight_VD.T  # here once: a product with the other is slower by a tenth

        def step(memory, tokens_BW, step, seen_BWS):
            x_BWD, memory = decoder.step(params, layers, memory, tokens_BW, step, seen_BWS)
            logits_BWV = jnp.einsum(
                'bwd,dv->bwv', x_BWD, weight_DV, preferred_element_type=jnp.float32
            )
            return logits_BWV + bias_V, memory

        return write(settings, step, tokens_B, memory, eos_id, pad_id, key)

    return generate


def _check(s: Settings) -> None:
    """Raises UserError for a setting out of its range."""
    rules = (
        ('max_length', s.max_length >= 1, 'must be at least 1'),
        ('min_length', 0 <= s.min_length <= s.max_length, f'must be in [0, {s.max_length}]'),
        ('beams', s.beams >= 1, 'must be at least 1'),
        ('length_penalty', math.isfinite(s.length_penalty), 'must be finite'),
        ('sample', not s.sample or s.beams == 1, f'must be False with {s.beams} beams'),
        ('temperature', s.temperature > 0, 'must be above 0'),
        ('top_k', s.top_k >= 0, 'must be at least 0'),
        ('top_p', 0 < s.top_p <= 1, 'must be in (0, 1]'),
        *(
            (name, s.sample or getattr(s, name) == none, f'must be {none:g} where nothing is drawn')
            for name, none in (('temperature', 1), ('top_k', 0), ('top_p', 1))
        ),
    )
    for name, holds, rule in rules:
        if not holds:
            raise UserError(f'{name} = {getattr(s, name)}: {rule}')


def _without_end(logits, step, eos_id: int, least: int):
    """Logits [..., V] without that of the end in the first `least` steps."""
    if not least or eos_id < 0:
        return logits
    end_V = jnp.arange(logits.shape[-1]) == eos_id
    return jnp.where(end_V & (step < least), -jnp.inf, logits)


def _single(s: Settings, step, tokens_B, memory, eos_id: int, pad_id: int, key) -> Generated:
    """One hypothesis a row: the best token, or a drawn one."""
    rows, size = tokens_B.shape[0], s.max_length

    def more(state):
        i, _, _, _, ended_B, _ = state
        return (i < size) & ~jnp.all(ended_B)

    def advance(state):
        i, tokens_B, memory, ids_BN, ended_B, scores_B = state
        seen_BWS = (jnp.arange(size) <= i)[None, None]
        logits_BWV, memory = step(memory, tokens_B[:, None], i, seen_BWS)
        logits_BV = logits_BWV[:, 0]
        allowed_BV = _without_end(logits_BV, i, eos_id, s.min_length)
        if s.sample:
            chosen_B = sample(allowed_BV, jax.random.fold_in(key, i), s)
        else:
            chosen_B = _first_largest(allowed_BV)
        log_p_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)[:, 0]
        log_p_B -= jax.nn.logsumexp(logits_BV, axis=-1)
        scores_B += jnp.where(ended_B, 0, log_p_B)
        chosen_B = jnp.where(ended_B, pad_id, chosen_B)
        ids_BN = jax.lax.dynamic_update_slice(ids_BN, chosen_B[:, None], (0, i))
        return i + 1, chosen_B, memory, ids_BN, ended_B | (chosen_B == eos_id), scores_B

    state = (
        jnp.int32(0), tokens_B, memory, jnp.full((rows, size), pad_id, jnp.int32),
        jnp.zeros(rows, bool), jnp.zeros(rows),
    )  # fmt: skip
    _, _, _, ids_BN, _, scores_B = jax.lax.while_loop(more, advance, state)
    return Generated(ids_BN, _lengths(ids_BN, eos_id), scores_B)


def _first_largest(x_BV):
    """As argmax, which has no fast form on CPUs."""
    places_V = jnp.arange(x_BV.shape[-1], dtype=jnp.int32)
    largest_B1 = jnp.max(x_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(x_BV == largest_B1, places_V, x_BV.shape[-1]), axis=-1)


def _lengths(ids_BN, eos_id: int):
    """Tokens up to the first end, or all."""
    end_BN = ids_BN == eos_id
    first_B = jnp.argmax(end_BN, axis=-1).astype(jnp.int32) + 1
    return jnp.where(jnp.any(end_BN, axis=-1), first_B, ids_BN.shape[-1])


def sample(logits_BV: Float[Array, 'B V'], key, s: Settings) -> Int[Array, ' B']:
    """One id a row, by temperature, top-k and top-p in this order."""
    return jax.random.categorical(key, filter_logits(logits_BV, s)).astype(jnp.int32)


def filter_logits(logits_BV: Float[Array, 'B V'], s: Settings) -> Float[Array, 'B V']:
    """Logits as tokens are drawn by; -inf of those that cannot be. Equal ones all stay, or none."""
    logits_BV = logits_BV / s.temperature
    if s.top_k and s.top_k < logits_BV.shape[-1]:
        least_B = jax.lax.top_k(logits_BV, s.top_k)[0][:, -1]
        logits_BV = jnp.where(logits_BV < least_B[:, None], -jnp.inf, logits_BV)
    if s.top_p < 1:
        falling_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(falling_BV)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        least_B = jnp.min(jnp.where(before_BV < s.top_p, falling_BV, jnp.inf), axis=-1)
        logits_BV = jnp.where(logits_BV < least_B[:, None], -jnp.inf, logits_BV)
    return logits_BV


class _Search(NamedTuple):
    """State of a beam search: W open hypotheses a row, and the W best that have ended."""

    step: Int[Array, '']
    tokens_BW: Int[Array, 'B W']
    memory: Any
    ids_BWN: Int[Array, 'B W N']
    origin_BWN: Int[Array, 'B W N']
    """At which hypothesis' place of the memory each step of a hypothesis lies; -1: nowhere yet."""
    scores_BW: Float[Array, 'B W']
    """Sum of log p; falling."""
    ended_ids_BWN: Int[Array, 'B W N']
    ended_scores_BW: Float[Array, 'B W']
    """With the length penalty; falling."""
    ended_BW: Bool[Array, 'B W']
    hopeful_B: Bool[Array, ' B']
    """Whether an open hypothesis may still become one of the best."""


def _beams(s: Settings, step, tokens_B, memory, eos_id: int, pad_id: int, key) -> Generated:
    """Beam search; nothing of the memory moves when hypotheses change places."""
    del key
    rows, beams, size = tokens_B.shape[0], s.beams, s.max_length
    ids_BWN = jnp.full((rows, beams, size), pad_id, jnp.int32)
    # All begin alike: only the first one's continuations count.
    scores_BW = jnp.full((rows, beams), _NEVER).at[:, 0].set(0)

    def more(state: _Search):
        going = (state.step < size) & jnp.any(state.hopeful_B)
        return going & ~jnp.all(state.ended_BW) if s.early_stop else going

    def advance(state: _Search) -> _Search:
        i = state.step
        own_W = jnp.arange(beams)
        origin_BWN = jax.lax.dynamic_update_slice(
            state.origin_BWN, jnp.broadcast_to(own_W[None, :, None], (rows, beams, 1)), (0, 0, i)
        )
        seen_BWS = (origin_BWN[..., None] == own_W).reshape(rows, beams, size * beams)
        logits_BWV, memory = step(state.memory, state.tokens_BW, i, seen_BWS)
        offsets_BW = state.scores_BW - jax.nn.logsumexp(logits_BWV, axis=-1)
        logits_BWV = _without_end(logits_BWV, i, eos_id, s.min_length)
        best = _candidates(logits_BWV, offsets_BW)
        ids_BCN = _take(state.ids_BWN, best.parents_BC)
        ids_BCN = jax.lax.dynamic_update_slice(ids_BCN, best.tokens_BC[..., None], (0, 0, i))
        stops_BC = (best.tokens_BC == eos_id) | (i + 1 == size)

        open_scores, kept = jax.lax.top_k(best.scores_BC + jnp.where(stops_BC, _NEVER, 0), beams)
        ended_scores, ended_ids, ended = _ended(s, state, best.scores_BC, ids_BCN, stops_BC)
        worst_BW = jnp.where(ended, ended_scores[:, -1:], _NEVER)
        bound_B1 = open_scores[:, :1] / _power(i + 1, s.length_penalty)
        hopeful_B = state.hopeful_B & jnp.any(bound_B1 > worst_BW, axis=-1)
        parents_BW = _take(best.parents_BC, kept)
        return _Search(
            i + 1, _take(best.tokens_BC, kept), memory, _take(ids_BCN, kept),
            _take(origin_BWN, parents_BW), open_scores, ended_ids, ended_scores, ended, hopeful_B,
        )  # fmt: skip

    state = _Search(
        jnp.int32(0), jnp.broadcast_to(tokens_B[:, None], (rows, beams)), memory, ids_BWN,
        jnp.full_like(ids_BWN, -1), scores_BW, ids_BWN, jnp.full((rows, beams), _NEVER),
        jnp.zeros((rows, beams), bool), jnp.ones(rows, bool),
    )  # fmt: skip
    state = jax.lax.while_loop(more, advance, state)
    ids_BN = state.ended_ids_BWN[:, 0]
    return Generated(ids_BN, _lengths(ids_BN, eos_id), state.ended_scores_BW[:, 0])


class _Best(NamedTuple):
    """The best continuations of a row, twice as many as beams, best first."""

    scores_BC: Float[Array, 'B C']
    parents_BC: Int[Array, 'B C']
    tokens_BC: Int[Array, 'B C']


def _candidates(logits_BWV, offsets_BW) -> _Best:
    """Of the sums logits + offset the largest of each row.

    At most one continuation of each hypothesis ends, so 2 W leave W open ones.
    """
    rows, beams, vocab = logits_BWV.shape
    sums_BS = (logits_BWV + offsets_BW[..., None]).reshape(rows, -1)
    scores_BC, places_BC = blocked_top_k(sums_BS, 2 * beams)
    return _Best(scores_BC, places_BC // vocab, places_BC % vocab)


def blocked_top_k(
    x_BS: Float[Array, 'B S'], count: int
) -> tuple[Float[Array, 'B C'], Int[Array, 'B C']]:
    """As jax.lax.top_k, ties included, of long rows (S a multiple of 128): ten times faster on a CPU.

    The `count` largest are in the `count` blocks with the largest maxima.
    """
    rows = x_BS.shape[0]
    blocks_BMS = x_BS.reshape(rows, -1, _BLOCK)
    if blocks_BMS.shape[1] <= count:
        return jax.lax.top_k(x_BS, count)
    _, chosen_BC = jax.lax.top_k(jnp.max(blocks_BMS, axis=-1), count)
    chosen_BC = jnp.sort(chosen_BC, axis=-1)  # of equal values the first comes first
    values_BC, places_BC = jax.lax.top_k(_take(blocks_BMS, chosen_BC).reshape(rows, -1), count)
    return values_BC, _BLOCK * _take(chosen_BC, places_BC // _BLOCK) + places_BC % _BLOCK


def _ended(s: Settings, state: _Search, scores_BC, ids_BCN, stops_BC):
    """The best hypotheses that have ended, those that do so at this step among them."""
    beams = s.beams
    scores_BC = scores_BC / _power(state.step + 1, s.length_penalty)
    # One below the W best never counts: it is there to keep W open ones.
    counts_BC = stops_BC & (jnp.arange(2 * beams) < beams) & state.hopeful_B[:, None]
    if s.early_stop:
        counts_BC &= ~jnp.all(state.ended_BW, axis=-1, keepdims=True)
    scores = jnp.concatenate([state.ended_scores_BW, jnp.where(counts_BC, scores_BC, _NEVER)], 1)
    scores, kept = jax.lax.top_k(scores, beams)
    ids = _take(jnp.concatenate([state.ended_ids_BWN, ids_BCN], 1), kept)
    return scores, ids, _take(jnp.concatenate([state.ended_BW, counts_BC], 1), kept)


def _power(length, exponent: float):
    return length.astype(jnp.float32) ** exponent


def _take(x, index_BI):
    """Entries of axis 1, chosen for each row."""
    index = index_BI.reshape(index_BI.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)
