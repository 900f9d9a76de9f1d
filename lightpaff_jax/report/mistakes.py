"""The mistakes of a single run: the test examples that it scores worst."""

import pathlib
from typing import Any

from lightpaff_jax import config
from lightpaff_jax.report.examples import (
    EXAMPLES,
    Examples,
    chrf,
    content_of,
    format_class,
    read_lines,
    shorten,
)


def find(workdir: pathlib.Path, result: dict[str, Any]) -> Examples | None:
    """Returns the worst test examples of a run, or None if it has no predictions for test.

    Raises:
      UserError: the file of predictions is invalid.
    """
    path = workdir / 'predictions' / 'test.jsonl'
    if not path.is_file():
        return None
    content = content_of(config.OBJECTIVES[result['objective']], result['metric'])
    lines = [*read_lines(path, content).values()]
    if content == 'classes':
        return _wrong_classes(lines, result.get('class_names', []))
    if content == 'generated':
        return _worst_texts(lines)
    return _worst_likelihoods(lines)


def _wrong_classes(lines: list[dict], names: list[str]) -> Examples:
    wrong = [line for line in lines if line['predicted'] != line['label']]
    wrong.sort(key=lambda line: -max(line['probabilities'], default=0.0))
    summary = f'{len(wrong):,} of {len(lines):,} test examples have a wrong class.'
    examples = [
        [
            ('text', shorten(line['text'])),
            ('label', format_class(line['label'], names)),
            ('answer', format_class(line['predicted'], names, line['probabilities'])),
        ]
        for line in wrong[:EXAMPLES]
    ]
    return Examples(summary, 'Mistakes', 'with a wrong class, most confident first', examples)


def _worst_texts(lines: list[dict]) -> Examples:
    scored = sorted((chrf(line), n) for n, line in enumerate(lines))
    summary = f'The mean chrF of the {len(lines):,} test examples is '
    summary += f'{sum(score for score, _ in scored) / len(lines):.1f}.'
    examples = [
        [
            *((key, shorten(lines[n][key])) for key in ('source', 'reference')),
            ('answer', f'{shorten(lines[n]["text"])} (chrF {score:.0f})'),
        ]
        for score, n in scored[:EXAMPLES]
    ]
    return Examples(summary, 'Mistakes', 'with the lowest chrF', examples)


def _worst_likelihoods(lines: list[dict]) -> Examples:
    scored = [line for line in lines if line['tokens']]
    scored.sort(key=lambda line: -line['nll'] / line['tokens'])
    tokens = max(1, sum(line['tokens'] for line in scored))
    summary = (
        f'The test split has {sum(line["nll"] for line in scored) / tokens:.3f} nats per token.'
    )
    keys = [key for key in ('text', 'source', 'reference') if key in lines[0]]
    examples = [
        [
            *((key, shorten(line[key])) for key in keys),
            ('loss', f'{line["nll"] / line["tokens"]:.2f} nats per token'),
        ]
        for line in scored[:EXAMPLES]
    ]
    return Examples(summary, 'Mistakes', 'with the largest loss', examples)
