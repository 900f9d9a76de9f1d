"""Predictions as lines of JSON: one an example, by its number in the split, `index`.

    documents   text (the tokens of the block that are predicted), nll (nats), tokens
    classes     text (of a pair both, with ' [SEP] ' between), label, predicted, probabilities
    targets     source, reference; text, where `config.eval.metric` is of generated texts, else nll
                (nats, of the reference) and tokens

Texts, sources and references are those of the data, before tokenization. The source 'prepared'
has none: there they are decoded ids, cut as `config.data.length` and `target_length` say.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.data.sources.splits import Example
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.evaluate import scores

Line = dict[str, Any]


def lines(c: ConfigDict, tokenizer: Tokenizer, split: str, numbers: Sequence[int],
          values: Mapping[str, np.ndarray]) -> list[Line]:  # fmt: skip
    """The lines of some examples of a split.

    Args:
      c: the run's configuration.
      tokenizer: the run's.
      split: where the examples are.
      numbers: of the examples, rising.
      values: of each, what `distill_step.make_evaluation` finds; for targets what `evaluate.py`
        has written.
    """
    example_type = config.OBJECTIVES[c.objective].example_type
    made = LINES[example_type](c, tokenizer, split, numbers, values)
    return [{'index': n, **line} for n, line in zip(numbers, made, strict=True)]


def _classified(c, tokenizer, split, numbers, values) -> list[Line]:
    p_BV = np.exp(scores.log_softmax(values['logits']))
    texts = _texts(c, split, numbers)
    if texts is None:
        both = [_parts(tokenizer, ids) for ids in values['ids']]
    else:
        both = [[text for text in one[:2] if text] for one in texts]
    return [
        {'text': ' [SEP] '.join(pair), 'label': int(label), 'predicted': int(p.argmax()),
         'probabilities': [float(x) for x in p]}
        for pair, label, p in zip(both, values['label'], p_BV, strict=True)
    ]  # fmt: skip


def _parts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts of [CLS] a [SEP] or [CLS] a [SEP] b [SEP]."""
    groups = itertools.groupby(ids[ids >= 0][1:].tolist(), lambda i: i == tokenizer.sep_id)
    return [tokenizer.decode(list(group)) for is_sep, group in groups if not is_sep]


def _blocks(c, tokenizer, split, numbers, values) -> list[Line]:
    del c, split, numbers
    texts = [{'text': tokenizer.decode_valid(ids)} for ids in values['ids']]
    return [text | found for text, found in zip(texts, _lost(values), strict=True)]


def _lost(values) -> list[Line]:
    rows = zip(values['ce'], values['labelled'], strict=True)
    return [{'nll': float(nll), 'tokens': round(float(tokens))} for nll, tokens in rows]


def _targets(c, tokenizer, split, numbers, values) -> list[Line]:
    eos, texts = tokenizer.eos_id, _texts(c, split, numbers)
    if 'lengths' in values:
        made = [
            {'text': tokenizer.decode_valid(ids[:length][ids[:length] != eos])}
            for ids, length in zip(values['ids'], values['lengths'], strict=True)
        ]
    else:
        made = _lost(values)
    if texts is None:
        targets = values['reference'] if 'lengths' in values else values['ids']
        sources_, references = (
            [tokenizer.decode_valid(ids[ids != eos]) for ids in rows]
            for rows in (values['source'], targets)
        )
    else:
        sources_, references = [one.first for one in texts], [one.second for one in texts]
    return [
        {'source': source, 'reference': reference, **found}
        for source, reference, found in zip(sources_, references, made, strict=True)
    ]


LINES: dict[str, Callable[..., list[Line]]] = {
    'documents': _blocks,
    'classes': _classified,
    'targets': _targets,
}
"""Example type of an objective -> what makes its lines."""


def _texts(c: ConfigDict, split: str, numbers: Sequence[int]) -> list[Example] | None:
    """The examples of these numbers as the source has them; None where it has only ids."""
    if not config.SOURCES[c.data.source].has_text:
        return None
    read = itertools.islice(sources.examples(c, split), numbers[-1] + 1)
    wanted = set(numbers)
    return [example for number, example in enumerate(read) if number in wanted]
