"""Test examples on a page: reads the predictions of a run and formats texts and classes."""

import dataclasses
import pathlib
from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from lightpaff_jax import config
from lightpaff_jax.config.objectives import Objective
from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import json_file

EXAMPLES = 10
MAX_CHARACTERS = 1000  # longer texts are cut after a word
# Example type -> form of a line of predictions/test.jsonl; 'generated': targets scored by their text.
_LINE = {'index': int, 'text': str}
_TARGET = {'index': int, 'source': str, 'reference': str}
_NLL = {'nll': float, 'tokens': int}
LINES: dict[str, dict] = {
    'documents': _LINE | _NLL,
    'classes': _LINE | {'label': int, 'predicted': int, 'probabilities': [float]},
    'targets': _TARGET | _NLL,
    'generated': _TARGET | {'text': str},
}
_CHRF = CHRF()


@dataclasses.dataclass(frozen=True)
class Examples:
    """A sentence of counts, and some examples as names and texts, with their heading and order."""

    summary: str
    heading: str
    order: str
    examples: Sequence[Sequence[tuple[str, str]]]


def content_of(objective: Objective, metric: str) -> str:
    """Returns the key of LINES for the predictions of an objective that is scored by a metric."""
    return 'generated' if metric in config.GENERATION_METRICS else objective.example_type


def read_lines(path: pathlib.Path, content: str) -> dict[int, dict]:
    """Reads the predictions of a run, by the index of the example; `content` is a key of LINES.

    Raises:
      UserError: the file has no lines, or an invalid one.
    """
    lines = json_file.read_lines(path, LINES[content])
    if not lines:
        raise UserError(f'{path}: must have at least one line')
    return {line['index']: {key: line[key] for key in LINES[content]} for line in lines}


def shorten(text: str) -> str:
    """Returns a text on one line; a long one is cut after a word."""
    text = ' '.join(text.split())
    if len(text) <= MAX_CHARACTERS:
        return text
    return f'{text[: MAX_CHARACTERS + 1].rsplit(" ", 1)[0][:MAX_CHARACTERS]} …'


def format_class(
    number: int, names: Sequence[str], probabilities: Sequence[float] | None = None
) -> str:
    """Returns the name of a class, or its number if it has none, and its probability."""
    name = names[number] if 0 <= number < len(names) else str(number)
    if probabilities is None:
        return name
    return f'{name} (probability {max(probabilities, default=0.0):.2f})'


def chrf(line: dict) -> float:
    """Returns chrF of a generated text. Unlike BLEU, it is meaningful for a single sentence."""
    return _CHRF.sentence_score(line['text'], [line['reference']]).score
