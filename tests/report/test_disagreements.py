"""Disagreements of student and teacher. All predictions are invented inputs."""

import json

import pytest
from helpers.reports import make_family, make_workdir, write_predictions

from lightpaff_jax import report
from lightpaff_jax.report import disagreements, examples, results


def answer(text, label, predicted, sure):
    other = (1 - sure) / 2
    p = [sure if n == predicted else other for n in range(3)]
    return {'text': text, 'label': label, 'predicted': predicted, 'probabilities': p}


def put(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'index': n} | line) + '\n' for n, line in enumerate(lines)))


@pytest.fixture
def task(tmp_path):
    """Returns a function that writes both files of predictions and compares them."""

    def compare(family, name, teacher, student):
        workdir = tmp_path / family
        make_family(workdir, family, seeds=1)
        slug = name.lower().replace(' ', '-')
        put(workdir / slug / 'teacher_finetune/predictions/test.jsonl', teacher)
        put(workdir / slug / 'seed0/two_stage/predictions/test.jsonl', student)
        comparison = disagreements.compare(workdir, results.read(workdir)[1][name])
        assert comparison is not None
        return comparison

    return compare


def test_class_disagreements_are_counted_most_confident_first(task):
    comparison = task(
        'bert',
        'SST-2',
        [
            answer('a', 0, 0, 0.9),
            answer('b', 1, 1, 0.6),
            answer('c', 2, 0, 0.8),
            answer('d', 0, 1, 0.9),
        ],
        [
            answer('a', 0, 0, 0.8),
            answer('b', 1, 0, 0.6),
            answer('c', 2, 1, 0.5),
            answer('d', 0, 0, 0.7),
        ],
    )
    assert comparison.summary == (
        'The teacher and the two-stage student of seed 0 predict the same class for 1 of 4 test '
        'examples (25.0 %). If they differ, the teacher is correct on 1, the student on 1, neither '
        'on 1.'
    )
    assert [dict(example)['text'] for example in comparison.examples] == ['d', 'c', 'b']
    assert dict(comparison.examples[0]) == {
        'text': 'd',
        'label': '0',
        'teacher': '1 (probability 0.90)',
        'student': '0 (probability 0.70)',
    }


def written(text, reference='the cat sat on the mat'):
    return {'source': 'die Katze', 'reference': reference, 'text': text}


def test_generated_texts_are_ordered_by_chrf_difference(task):
    comparison = task(
        'mass',
        'Multi30k En-De',
        [written('the cat sat on the mat'), written('a dog'), written('the cat sat on a mat')],
        [written('the cat sat on the mat'), written('the cat sat on the mat'), written('the cat')],
    )
    assert 'generate the same text for 1 of 3 test examples' in comparison.summary
    assert 'the text of the teacher is better on 1, that of the student on 1.' in comparison.summary
    first, second = (dict(example) for example in comparison.examples)
    assert first['student'] == 'the cat sat on the mat (chrF 100)'
    assert second['teacher'].startswith('the cat sat on a mat (chrF ')
    assert first['reference'] == 'the cat sat on the mat'


def test_blocks_are_ordered_by_excess_loss_per_token(task):
    def block(text, nll, tokens):
        return {'text': text, 'nll': nll, 'tokens': tokens}

    comparison = task(
        'gpt2',
        'PTB',
        [
            block('long', 100.0, 50),
            block('short', 20.0, 10),
            block('better', 30.0, 10),
            block('empty', 0.0, 0),
        ],
        [
            block('long', 125.0, 50),
            block('short', 28.0, 10),
            block('better', 29.0, 10),
            block('empty', 0.0, 0),
        ],
    )
    assert comparison.summary == (
        'The loss of the two-stage student of seed 0 is 0.457 nats per token higher than that of '
        'the teacher; of 3 blocks of the test split it is better on 1.'
    )
    assert [dict(example)['text'] for example in comparison.examples] == ['short', 'long', 'better']
    assert dict(comparison.examples[0])['student'] == '2.80 nats per token'


def test_targets_scored_by_perplexity_show_source_and_reference(task):
    def reply(source, nll):
        return {'source': source, 'reference': 'yes .', 'nll': nll, 'tokens': 2}

    comparison = task(
        'mass',
        'Cornell dialogue',
        [reply('why ?', 4.0), reply('who ?', 6.0)],
        [reply('why ?', 5.0), reply('who ?', 5.5)],
    )
    assert 'of 2 examples of the test split it is better on 1.' in comparison.summary
    first = dict(comparison.examples[0])
    assert (first['source'], first['reference']) == ('why ?', 'yes .')
    assert first['student'] == '2.50 nats per token'


def test_examples_are_limited_to_ten_and_long_texts_are_cut(task):
    text = 'word ' * 300
    teacher, student = answer(text, 0, 0, 0.9), answer(text, 0, 1, 0.9)
    comparison = task('bert', 'SST-2', [teacher] * 30, [student] * 30)
    assert len(comparison.examples) == 10
    assert len(dict(comparison.examples[0])['text']) <= examples.MAX_CHARACTERS + 2
    assert dict(comparison.examples[0])['text'].endswith('word …')


def test_examples_are_escaped_on_the_page(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    for run in ('teacher_finetune', 'seed0/two_stage'):
        write_predictions(workdir / run, 'clm', [run != 'teacher_finetune', 0], 0.5, 20)
    path = workdir / 'seed0/two_stage/predictions/test.jsonl'
    path.write_text(path.read_text().replace('"text": "', '"text": "<b>'))
    teacher = workdir / 'teacher_finetune/predictions/test.jsonl'
    teacher.write_text(teacher.read_text().replace('"text": "', '"text": "<b>'))
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert 'Student against teacher: 10 test examples with the largest excess loss' in page
    assert page.count('<dd>&lt;b&gt;') == 10
    assert '<b>' not in page


def test_missing_predictions_give_no_examples(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    assert disagreements.compare(workdir, results.read(workdir)[1]['text']) is None
    report.write(workdir)
    assert 'Student against teacher' not in (workdir / 'report.html').read_text('utf-8')
