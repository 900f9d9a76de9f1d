"""Formats predictions as lines of JSON, one per example; `index` is its number in the split.

The other keys depend on the example type of the objective:

    documents   text (the predicted tokens of the block), nll (nats), tokens
    classes     text (both texts of a pair, joined by ' [SEP] '), label, predicted, probabilities
    targets     source, reference, and: text, if `config.eval.metric` scores generated text, or else
                nll (nats) and tokens of the reference

Texts are those of the data before tokenization. The source 'prepared' has only ids: its texts are
decoded, and cut to `config.data.length` and `target_length`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lightpaff_jax import config
from lightpaff_jax.data import sources
from lightpaff_jax.data.mixture import Mixture
from lightpaff_jax.data.records import Dataset
from lightpaff_jax.data.sources.splits import Example
from lightpaff_jax.data.tokenizers import Tokenizer
from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import scores

Line = dict[str, Any]
Values = Mapping[str, np.ndarray]


def lines(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    split: str,
    indices: Sequence[int],
    values: Values,
) -> list[Line]:
    """Returns the lines of some examples of a split.

    Args:
      c: the configuration of the run.
      prepared: its dataset.
      tokenizer: its tokenizer.
      split: one of `sources.SPLITS`.
      indices: the ascending numbers of the examples in the split.
      values: for each of them the outputs of evaluation, or of generation.

    Raises:
      UserError: the files of the source have changed since the dataset was prepared.
    """
    example_type = config.OBJECTIVES[c.objective].example_type
    examples = None
    if example_type != 'documents' and config.SOURCES[c.data.source].has_text:
        _check_unchanged(c, prepared)
        examples = _examples(c, split, indices)
    rows = LINES[example_type](tokenizer, values, examples)
    return [{'index': index, **row} for index, row in zip(indices, rows, strict=True)]


def _check_unchanged(c: ConfigDict, prepared: Dataset | Mixture) -> None:
    """Raises UserError unless the source still has the examples that were prepared."""
    identity = json.loads(json.dumps(sources.identity(c)))
    if isinstance(prepared, Dataset) and prepared.manifest.get('made_from') != identity:
        raise UserError(
            f'config.data.path = {c.data.path}: has other texts than {prepared.path}, which was '
            'prepared before; must not change during a run'
        )


def _examples(c: ConfigDict, split: str, indices: Sequence[int]) -> list[Example]:
    chosen = set(indices)
    all_examples = itertools.islice(sources.examples(c, split), indices[-1] + 1)
    return [example for index, example in enumerate(all_examples) if index in chosen]


def check_references(
    c: ConfigDict,
    prepared: Dataset | Mixture,
    tokenizer: Tokenizer,
    split: str,
    indices: Sequence[int],
) -> None:
    """Checks that `config.eval.metric` can score the references of some examples of a split.

    Raises:
      UserError: see `scores.check_references`.
    """
    if config.SOURCES[c.data.source].has_text:
        references = [example.second for example in _examples(c, split, indices)]
    else:
        records = prepared.records(split).read(indices)
        references = _decode_targets(tokenizer, (record.second for record in records))
    try:
        scores.check_references(c.eval.metric, references, c.eval.tokenize)
    except UserError as error:
        raise UserError(f'{error} (split {split!r} of {prepared.path})') from error


def _class_lines(tokenizer: Tokenizer, values: Values, examples: list[Example] | None):
    p_BV = np.exp(scores.log_softmax(values['logits']))
    if examples is None:
        texts = [_decode_texts(tokenizer, ids) for ids in values['ids']]
    else:
        texts = [[text for text in example[:2] if text] for example in examples]
    return [
        {
            'text': ' [SEP] '.join(pair),
            'label': int(label),
            'predicted': int(p_V.argmax()),
            'probabilities': p_V.tolist(),
        }
        for pair, label, p_V in zip(texts, values['label'], p_BV, strict=True)
    ]


def _decode_texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Decodes the texts of [CLS] a [SEP] or [CLS] a [SEP] b [SEP]; -1 is padding."""
    groups = itertools.groupby(ids[ids >= 0][1:].tolist(), lambda i: i == tokenizer.sep_id)
    return [tokenizer.decode(list(group)) for is_sep, group in groups if not is_sep]


def _document_lines(tokenizer: Tokenizer, values: Values, examples: None):
    texts = map(tokenizer.decode_valid, values['ids'])
    return [{'text': text, **row} for text, row in zip(texts, _nll_lines(values), strict=True)]


def _nll_lines(values: Values) -> list[Line]:
    rows = zip(values['ce'], values['labelled'], strict=True)
    return [{'nll': float(nll), 'tokens': round(float(tokens))} for nll, tokens in rows]


def _target_lines(tokenizer: Tokenizer, values: Values, examples: list[Example] | None):
    if 'lengths' in values:
        generated = (ids[:n] for ids, n in zip(values['ids'], values['lengths'], strict=True))
        outputs, references = (
            [{'text': text} for text in _decode_targets(tokenizer, generated)],
            values['reference'],
        )
    else:
        outputs, references = _nll_lines(values), values['ids']
    if examples is None:
        sides = (_decode_targets(tokenizer, ids) for ids in (values['source'], references))
        pairs = list(zip(*sides, strict=True))
    else:
        pairs = [(example.first, example.second) for example in examples]
    return [
        {'source': source, 'reference': reference, **output}
        for (source, reference), output in zip(pairs, outputs, strict=True)
    ]


def _decode_targets(tokenizer: Tokenizer, rows: Iterable[np.ndarray]) -> list[str]:
    """Decodes ids without the ends of sequences and without padding."""
    return [tokenizer.decode_valid(ids[ids != tokenizer.eos_id]) for ids in rows]


LINES: dict[str, Callable[..., list[Line]]] = {
    'documents': _document_lines,
    'classes': _class_lines,
    'targets': _target_lines,
}
"""Example type of an objective -> the function that formats its lines."""
