"""The test examples on which student and teacher disagree: counts, and ten of the examples."""

import itertools
import pathlib
from collections.abc import Callable, Sequence

from lightpaff_jax.errors import UserError
from lightpaff_jax.report.examples import (
    EXAMPLES,
    Examples,
    chrf,
    content_of,
    format_class,
    read_lines,
    shorten,
)
from lightpaff_jax.report.results import Row

HEADING = 'Student against teacher'
Pairs = Sequence[tuple[dict, dict]]  # predictions of teacher and student for the same example


def compare(workdir: pathlib.Path, rows: dict[str, Row]) -> Examples | None:
    """Compares the two-stage student of the first seed with the teacher on the test split.

    Returns:
      None if a row or its predictions do not exist, or if the objective has no predictions.

    Raises:
      UserError: a file of predictions is invalid, or the two files have different examples.
    """
    student = rows.get('two_stage')
    if student is None or 'teacher' not in rows or student.objective.outputs == 'sums':
        return None
    content = content_of(student.objective, student.metric.key)
    paths = [
        workdir / row.runs[0][-1] / 'predictions' / 'test.jsonl'
        for row in (rows['teacher'], student)
    ]
    if not all(path.is_file() for path in paths):
        return None
    of_teacher, of_student = (read_lines(path, content) for path in paths)
    if of_teacher.keys() != of_student.keys():
        raise UserError(f'{paths[1]}: must have the same examples as {paths[0]}')
    pairs = [(of_teacher[index], of_student[index]) for index in sorted(of_teacher)]
    name = f'the two-stage student of seed {student.seeds[0]}'
    if content == 'classes':
        return _compare_classes(pairs, name, student.results[0][-1].get('class_names', []))
    return (_compare_texts if content == 'generated' else _compare_likelihoods)(pairs, name)


def _examples(
    pairs: Pairs, keys: Sequence[str], answer: Callable[[dict], str]
) -> list[list[tuple[str, str]]]:
    return [
        [
            *((key, shorten(str(teacher[key]))) for key in keys),
            ('teacher', answer(teacher)),
            ('student', answer(student)),
        ]
        for teacher, student in pairs[:EXAMPLES]
    ]


def _compare_classes(pairs: Pairs, name: str, names: Sequence[str]) -> Examples:
    """Orders the examples by the confidence of both models in different classes.

    Args:
      pairs: the predictions.
      name: how the sentence names the student.
      names: names of the classes; [] if they have none.
    """

    def confidence(line: dict) -> float:
        return max(line['probabilities'], default=0.0)

    different = [(a, b) for a, b in pairs if a['predicted'] != b['predicted']]
    different.sort(key=lambda pair: -confidence(pair[0]) - confidence(pair[1]))
    teacher = sum(a['predicted'] == a['label'] for a, _ in different)
    student = sum(b['predicted'] == b['label'] for _, b in different)
    equal, neither = len(pairs) - len(different), len(different) - teacher - student
    summary = (
        f'The teacher and {name} predict the same class for {equal:,} of {len(pairs):,} test '
        f'examples ({100 * equal / len(pairs):.1f} %). If they differ, the teacher is correct on '
        f'{teacher:,}, the student on {student:,}{f", neither on {neither:,}" if neither else ""}.'
    )
    for line, _ in different:
        line['label'] = format_class(line['label'], names)
    examples = _examples(
        different,
        ('text', 'label'),
        lambda line: format_class(line['predicted'], names, line['probabilities']),
    )
    return Examples(summary, HEADING, 'with different classes, most confident first', examples)


def _compare_texts(pairs: Pairs, name: str) -> Examples:
    """Orders the examples by the difference in chrF."""
    different = [(a, b) for a, b in pairs if a['text'] != b['text']]
    for line in itertools.chain.from_iterable(different):
        line['chrf'] = chrf(line)
    different.sort(key=lambda pair: -abs(pair[0]['chrf'] - pair[1]['chrf']))
    teacher = sum(a['chrf'] > b['chrf'] for a, b in different)
    student = sum(a['chrf'] < b['chrf'] for a, b in different)
    summary = (
        f'The teacher and {name} generate the same text for {len(pairs) - len(different):,} of '
        f'{len(pairs):,} test examples. By chrF against the reference, the text of the teacher is '
        f'better on {teacher:,}, that of the student on {student:,}.'
    )
    examples = _examples(
        different,
        ('source', 'reference'),
        lambda line: f'{shorten(line["text"])} (chrF {line["chrf"]:.0f})',
    )
    return Examples(summary, HEADING, 'with the largest differences in quality', examples)


def _compare_likelihoods(pairs: Pairs, name: str) -> Examples:
    """Orders the examples by the student's excess negative log-likelihood per token."""
    scored = [(a, b) for a, b in pairs if a['tokens']]
    scored.sort(key=lambda pair: -(pair[1]['nll'] - pair[0]['nll']) / pair[0]['tokens'])
    tokens = sum(a['tokens'] for a, _ in scored)
    excess = sum(b['nll'] - a['nll'] for a, b in scored)
    better = sum(b['nll'] < a['nll'] for a, b in scored)
    unit = 'blocks' if 'text' in pairs[0][0] else 'examples'
    summary = (
        f'The loss of {name} is {excess / max(tokens, 1):.3f} nats per token higher than that of '
        f'the teacher; of {len(scored):,} {unit} of the test split it is better on {better:,}.'
    )
    keys = [key for key in ('text', 'source', 'reference', 'tokens') if key in pairs[0][0]]
    examples = _examples(
        scored, keys, lambda line: f'{line["nll"] / line["tokens"]:.2f} nats per token'
    )
    return Examples(summary, HEADING, 'with the largest excess loss of the student', examples)
