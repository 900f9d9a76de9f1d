"""Claims about where student and teacher differ. All predictions here are made up inputs."""

import json

import pytest
from helpers.reports import make_family, make_workdir, write_predictions

from lightpaff_jax import report
from lightpaff_jax.report import disagreements, results


def answer(text, label, predicted, sure):
    other = (1 - sure) / 2
    p = [sure if n == predicted else other for n in range(3)]
    return {'text': text, 'label': label, 'predicted': predicted, 'probabilities': p}


def put(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'index': n} | line) + '\n' for n, line in enumerate(lines)))


@pytest.fixture
def task(tmp_path):
    """Writes both files of predictions and compares them."""

    def find(family, name, teacher, student):
        workdir = tmp_path / family
        make_family(workdir, family, seeds=1)
        slug = name.lower().replace(' ', '-')
        put(workdir / slug / 'teacher_finetune/predictions/test.jsonl', teacher)
        put(workdir / slug / 'seed0/two_stage/predictions/test.jsonl', student)
        found = disagreements.find(workdir, results.read(workdir)[1][name])
        assert found is not None
        return found

    return find


def test_answers_are_counted_and_the_surest_stand_first(task):
    found = task(
        'bert', 'SST-2',
        [answer('a', 0, 0, 0.9), answer('b', 1, 1, 0.6), answer('c', 2, 0, 0.8), answer('d', 0, 1, 0.9)],
        [answer('a', 0, 0, 0.8), answer('b', 1, 0, 0.6), answer('c', 2, 1, 0.5), answer('d', 0, 0, 0.7)],
    )  # fmt: skip
    assert found.said == (
        'The teacher and the two-stage student of seed 0 answer 1 of 4 test examples alike '
        '(25.0 %). Where they differ, the teacher is right on 1, the student on 1, neither on 1.'
    )
    assert [dict(example)['text'] for example in found.examples] == ['d', 'c', 'b']
    assert dict(found.examples[0]) == {
        'text': 'd', 'label': '0', 'teacher': '1 (90 % sure)', 'student': '0 (70 % sure)',
    }  # fmt: skip


def written(text, reference='the cat sat on the mat'):
    return {'source': 'die Katze', 'reference': reference, 'text': text}


def test_texts_are_ordered_by_the_difference_of_their_quality(task):
    found = task(
        'mass', 'Multi30k En-De',
        [written('the cat sat on the mat'), written('a dog'), written('the cat sat on a mat')],
        [written('the cat sat on the mat'), written('the cat sat on the mat'), written('the cat')],
    )  # fmt: skip
    assert 'write the same text for 1 of 3 test examples' in found.said
    assert 'the text of the teacher is better on 1, that of the student on 1.' in found.said
    first, second = (dict(example) for example in found.examples)
    assert first['student'] == 'the cat sat on the mat (chrF 100)'
    assert second['teacher'].startswith('the cat sat on a mat (chrF ')
    assert first['reference'] == 'the cat sat on the mat'


def test_blocks_are_ordered_by_what_the_student_loses_per_token(task):
    def block(text, nll, tokens):
        return {'text': text, 'nll': nll, 'tokens': tokens}

    found = task(
        'gpt2', 'PTB',
        [block('long', 100.0, 50), block('short', 20.0, 10), block('better', 30.0, 10),
         block('empty', 0.0, 0)],
        [block('long', 125.0, 50), block('short', 28.0, 10), block('better', 29.0, 10),
         block('empty', 0.0, 0)],
    )  # fmt: skip
    assert found.said == (
        'Per token the two-stage student of seed 0 loses 0.457 nats to the teacher; of 3 blocks of '
        'the test split it is better on 1.'
    )
    assert [dict(example)['text'] for example in found.examples] == ['short', 'long', 'better']
    assert dict(found.examples[0])['student'] == '2.80 nats per token'


def test_answers_that_are_scored_by_perplexity_show_source_and_reference(task):
    def reply(source, nll):
        return {'source': source, 'reference': 'yes .', 'nll': nll, 'tokens': 2}

    found = task(
        'mass', 'Cornell dialogue', [reply('why ?', 4.0), reply('who ?', 6.0)],
        [reply('why ?', 5.0), reply('who ?', 5.5)],
    )  # fmt: skip
    assert 'of 2 examples of the test split it is better on 1.' in found.said
    first = dict(found.examples[0])
    assert (first['source'], first['reference']) == ('why ?', 'yes .')
    assert first['student'] == '2.50 nats per token'


def test_ten_examples_at_most_are_shown_and_long_texts_are_cut(task):
    text = 'word ' * 300
    found = task(
        'bert', 'SST-2', [answer(text, 0, 0, 0.9)] * 30, [answer(text, 0, 1, 0.9)] * 30
    )  # fmt: skip
    assert len(found.examples) == 10
    assert len(dict(found.examples[0])['text']) <= disagreements.LONGEST + 2
    assert dict(found.examples[0])['text'].endswith('word …')


def test_the_page_shows_examples_as_text(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    for run in ('teacher_finetune', 'seed0/two_stage'):
        write_predictions(workdir / run, 'clm', [run != 'teacher_finetune', 0], 0.5, 20)
    path = workdir / 'seed0/two_stage/predictions/test.jsonl'
    path.write_text(path.read_text().replace('"text": "', '"text": "<b>'))
    teacher = workdir / 'teacher_finetune/predictions/test.jsonl'
    teacher.write_text(teacher.read_text().replace('"text": "', '"text": "<b>'))
    report.write(workdir)
    page = (workdir / 'report.html').read_text('utf-8')
    assert 'Student against teacher: 10 test examples where the student loses most' in page
    assert page.count('<dd>&lt;b&gt;') == 10
    assert '<b>' not in page


def test_without_predictions_there_are_no_examples(tmp_path):
    workdir = make_workdir(tmp_path, seeds=1)
    assert disagreements.find(workdir, results.read(workdir)[1]['text']) is None
    report.write(workdir)
    assert 'Student against teacher' not in (workdir / 'report.html').read_text('utf-8')
