"""Where the student and the teacher of a task differ: counts and ten examples, of predictions."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.report.results import Row

EXAMPLES = 10
LONGEST = 500  # characters of a text that are shown
KEYS = {
    'documents': ('index', 'text', 'nll', 'tokens'),
    'classes': ('index', 'text', 'label', 'predicted', 'probabilities'),
    'targets': ('index', 'source', 'reference', 'nll', 'tokens'),
    'generated': ('index', 'source', 'reference', 'text'),
}
"""Example type -> keys of a line of predictions/test.jsonl; 'generated': targets, scored by a generation metric."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """A sentence of counts, a title, and the examples: names and texts."""

    said: str
    title: str
    examples: Sequence[Sequence[tuple[str, str]]]


def find(workdir: pathlib.Path, rows: dict[str, Row]) -> Differences | None:
    """Compares the first seed's two-stage student with the teacher on the test split.

    Returns:
      None where one of them has left no predictions.

    Raises:
      UserError: a file of predictions that cannot be read, or that is of other examples.
    """
    if not {'teacher', 'two_stage'} <= set(rows):
        return None
    student = rows['two_stage']
    objective = config.OBJECTIVES[student.objective]
    if objective.outputs == 'sums':  # has no predictions
        return None
    generated = student.metric.key in config.GENERATION_METRICS
    form = 'generated' if generated else objective.example_type
    paths = [
        workdir / row.runs[0][-1] / 'predictions' / 'test.jsonl'
        for row in (rows['teacher'], student)
    ]
    if not all(path.is_file() for path in paths):
        return None
    taught, learnt = (_read(path, KEYS[form]) for path in paths)
    if taught.keys() != learnt.keys():
        raise UserError(f'{paths[1]}: must be of the same examples as {paths[0]}')
    pairs = [(taught[index], learnt[index]) for index in sorted(taught)]
    compare = {'classes': _classes, 'generated': _texts}.get(form, _blocks)
    return compare(pairs, f'the two-stage student of seed {student.seeds[0]}')


def _read(path: pathlib.Path, keys: Sequence[str]) -> dict[int, dict]:
    found = {}
    for number, text in enumerate(path.read_bytes().splitlines()):
        try:
            line = json.loads(text)
            found[line['index']] = {key: line[key] for key in keys}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: line {number + 1} cannot be read: {error}') from error
    if not found:
        raise UserError(f'{path}: must hold a line')
    return found


def _short(text: str) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= LONGEST else f'{text[:LONGEST].rstrip()} …'


def _classes(pairs: Sequence[tuple[dict, dict]], who: str) -> Differences:
    def sure(line: dict) -> float:
        return max(line['probabilities'])

    def answer(line: dict) -> str:
        return f'{line["predicted"]} ({100 * sure(line):.0f} % sure)'

    apart = [(a, b) for a, b in pairs if a['predicted'] != b['predicted']]
    right = [sum(pair[n]['predicted'] == pair[n]['label'] for pair in apart) for n in (0, 1)]
    same = len(pairs) - len(apart)
    neither = len(apart) - sum(right)
    said = (
        f'The teacher and {who} answer {same:,} of {len(pairs):,} test examples alike '
        f'({100 * same / len(pairs):.1f} %). Where they differ, the teacher is right on '
        f'{right[0]:,}, the student on {right[1]:,}{f", neither on {neither:,}" if neither else ""}.'
    )
    apart.sort(key=lambda pair: -sure(pair[0]) - sure(pair[1]))
    examples = [
        (
            ('text', _short(a['text'])),
            ('label', str(a['label'])),
            ('teacher', answer(a)),
            ('student', answer(b)),
        )
        for a, b in apart[:EXAMPLES]
    ]
    return Differences(said, 'where they differ, the surest of both first', examples)


def _texts(pairs: Sequence[tuple[dict, dict]], who: str) -> Differences:
    chrf = CHRF()

    def quality(line: dict) -> float:
        return chrf.sentence_score(line['text'], [line['reference']]).score

    same = sum(a['text'] == b['text'] for a, b in pairs)
    apart = [(quality(a), quality(b), a, b) for a, b in pairs if a['text'] != b['text']]
    better = sum(b > a for a, b, _, _ in apart), sum(b < a for a, b, _, _ in apart)
    said = (
        f'The teacher and {who} write the same text for {same:,} of {len(pairs):,} test examples. '
        f'By chrF against the reference, the text of the teacher is better on {better[1]:,}, that '
        f'of the student on {better[0]:,}.'
    )
    apart.sort(key=lambda found: -abs(found[0] - found[1]))
    examples = [
        (
            ('source', _short(a['source'])),
            ('reference', _short(a['reference'])),
            ('teacher', f'{_short(a["text"])} (chrF {of_a:.0f})'),
            ('student', f'{_short(b["text"])} (chrF {of_b:.0f})'),
        )
        for of_a, of_b, a, b in apart[:EXAMPLES]
    ]
    return Differences(said, 'where the quality differs most', examples)


def _blocks(pairs: Sequence[tuple[dict, dict]], who: str) -> Differences:
    read = [(a, b) for a, b in pairs if a['tokens']]
    tokens = sum(a['tokens'] for a, _ in read)
    lost = sum(b['nll'] - a['nll'] for a, b in read)
    ahead = sum(b['nll'] < a['nll'] for a, b in read)
    said = (
        f'Per token {who} loses {lost / max(tokens, 1):.3f} nats to the teacher; of {len(read):,} '
        f'{"blocks" if "text" in read[0][0] else "examples"} of the test split it is better on '
        f'{ahead:,}.'
    )
    read.sort(key=lambda pair: -(pair[1]['nll'] - pair[0]['nll']) / pair[0]['tokens'])
    examples = [
        (
            *((name, _short(a[name])) for name in ('text', 'source', 'reference') if name in a),
            ('teacher', f'{a["nll"] / a["tokens"]:.2f} nats per token of {a["tokens"]:,}'),
            ('student', f'{b["nll"] / b["tokens"]:.2f} nats per token'),
        )
        for a, b in read[:EXAMPLES]
    ]
    return Differences(said, 'where the student loses most per token', examples)
