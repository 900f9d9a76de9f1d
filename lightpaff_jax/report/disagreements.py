"""The test examples on which student and teacher disagree: counts, and ten of the examples."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from lightpaff_jax import config
from lightpaff_jax.errors import UserError
from lightpaff_jax.report.results import Row

EXAMPLES = 10
MAX_CHARACTERS = 500  # longer texts are cut
KEYS = {
    'documents': ('index', 'text', 'nll', 'tokens'),
    'classes': ('index', 'text', 'label', 'predicted', 'probabilities'),
    'targets': ('index', 'source', 'reference', 'nll', 'tokens'),
    'generated': ('index', 'source', 'reference', 'text'),
}
"""Example type -> keys of a line of predictions/test.jsonl; 'generated': targets with a generation metric."""

Pairs = Sequence[tuple[dict, dict]]
"""Predictions of the teacher and of the student for the same example."""


@dataclasses.dataclass(frozen=True)
class Disagreements:
    """A sentence of counts, the order of the examples, and the examples as names and texts."""

    summary: str
    order: str
    examples: Sequence[Sequence[tuple[str, str]]]


def compare(workdir: pathlib.Path, rows: dict[str, Row]) -> Disagreements | None:
    """Compares the two-stage student of the first seed with the teacher on the test split.

    Returns:
      None if a row or its predictions do not exist, or if the objective has no predictions.

    Raises:
      UserError: a file of predictions is invalid, or the two files have different examples.
    """
    if not {'teacher', 'two_stage'} <= set(rows):
        return None
    student = rows['two_stage']
    objective = student.objective
    if objective.outputs == 'sums':  # has no predictions
        return None
    generated = student.metric.key in config.GENERATION_METRICS
    content = 'generated' if generated else objective.example_type
    paths = [
        workdir / row.runs[0][-1] / 'predictions' / 'test.jsonl'
        for row in (rows['teacher'], student)
    ]
    if not all(path.is_file() for path in paths):
        return None
    of_teacher, of_student = (_read(path, KEYS[content]) for path in paths)
    if of_teacher.keys() != of_student.keys():
        raise UserError(f'{paths[1]}: must have the same examples as {paths[0]}')
    pairs = [(of_teacher[index], of_student[index]) for index in sorted(of_teacher)]
    compare_pairs = {'classes': _compare_classes, 'generated': _compare_texts}
    name = f'the two-stage student of seed {student.seeds[0]}'
    return compare_pairs.get(content, _compare_likelihoods)(pairs, name)


def _read(path: pathlib.Path, keys: Sequence[str]) -> dict[int, dict]:
    predictions = {}
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
            predictions[line['index']] = {key: line[key] for key in keys}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: line {number} cannot be read: {error}') from error
    if not predictions:
        raise UserError(f'{path}: must have at least one line')
    return predictions


def _shorten(text: str) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= MAX_CHARACTERS else f'{text[:MAX_CHARACTERS].rstrip()} …'


def _compare_classes(pairs: Pairs, name: str) -> Disagreements:
    """Orders the examples by the confidence of both models in different classes."""

    def confidence(line: dict) -> float:
        return max(line['probabilities'])

    def answer(line: dict) -> str:
        return f'{line["predicted"]} (probability {confidence(line):.2f})'

    different = [(a, b) for a, b in pairs if a['predicted'] != b['predicted']]
    correct = [sum(pair[n]['predicted'] == pair[n]['label'] for pair in different) for n in (0, 1)]
    equal, neither = len(pairs) - len(different), len(different) - sum(correct)
    summary = (
        f'The teacher and {name} predict the same class for {equal:,} of {len(pairs):,} test '
        f'examples ({100 * equal / len(pairs):.1f} %). If they differ, the teacher is correct on '
        f'{correct[0]:,}, the student on {correct[1]:,}'
        f'{f", neither on {neither:,}" if neither else ""}.'
    )
    different.sort(key=lambda pair: -confidence(pair[0]) - confidence(pair[1]))
    examples = [
        (
            ('text', _shorten(a['text'])),
            ('label', str(a['label'])),
            ('teacher', answer(a)),
            ('student', answer(b)),
        )
        for a, b in different[:EXAMPLES]
    ]
    return Disagreements(summary, 'with different classes, most confident first', examples)


def _compare_texts(pairs: Pairs, name: str) -> Disagreements:
    """Orders the examples by the difference in chrF.

    Unlike BLEU, chrF is meaningful for a single sentence.
    """
    chrf = CHRF()

    def quality(line: dict) -> float:
        return chrf.sentence_score(line['text'], [line['reference']]).score

    equal = sum(a['text'] == b['text'] for a, b in pairs)
    different = [(quality(a), quality(b), a, b) for a, b in pairs if a['text'] != b['text']]
    teacher_better = sum(teacher > student for teacher, student, _, _ in different)
    student_better = sum(student > teacher for teacher, student, _, _ in different)
    summary = (
        f'The teacher and {name} generate the same text for {equal:,} of {len(pairs):,} test '
        f'examples. By chrF against the reference, the text of the teacher is better on '
        f'{teacher_better:,}, that of the student on {student_better:,}.'
    )
    different.sort(key=lambda example: -abs(example[0] - example[1]))
    examples = [
        (
            ('source', _shorten(a['source'])),
            ('reference', _shorten(a['reference'])),
            ('teacher', f'{_shorten(a["text"])} (chrF {teacher:.0f})'),
            ('student', f'{_shorten(b["text"])} (chrF {student:.0f})'),
        )
        for teacher, student, a, b in different[:EXAMPLES]
    ]
    return Disagreements(summary, 'with the largest differences in quality', examples)


def _compare_likelihoods(pairs: Pairs, name: str) -> Disagreements:
    """Orders the examples by the student's excess negative log-likelihood per token."""
    scored = [(a, b) for a, b in pairs if a['tokens']]
    tokens = sum(a['tokens'] for a, _ in scored)
    excess = sum(b['nll'] - a['nll'] for a, b in scored)
    better = sum(b['nll'] < a['nll'] for a, b in scored)
    unit = 'blocks' if 'text' in scored[0][0] else 'examples'
    summary = (
        f'The loss of {name} is {excess / max(tokens, 1):.3f} nats per token higher than that of '
        f'the teacher; of {len(scored):,} {unit} of the test split it is better on {better:,}.'
    )
    scored.sort(key=lambda pair: -(pair[1]['nll'] - pair[0]['nll']) / pair[0]['tokens'])
    examples = [
        (
            *((key, _shorten(a[key])) for key in ('text', 'source', 'reference') if key in a),
            ('teacher', f'{a["nll"] / a["tokens"]:.2f} nats per token over {a["tokens"]:,} tokens'),
            ('student', f'{b["nll"] / b["tokens"]:.2f} nats per token'),
        )
        for a, b in scored[:EXAMPLES]
    ]
    return Disagreements(summary, 'with the largest excess loss of the student', examples)
