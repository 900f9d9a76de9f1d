"""The page of a single run. All figures are invented inputs."""

import json
import re

import pytest
from helpers.reports import make_run, scores_of, write_predictions
from matplotlib.figure import Figure

from lightpaff_jax import report
from lightpaff_jax.report import examples, plots


@pytest.fixture(autouse=True)
def titles(monkeypatch):
    """Returns the titles of the plots, which are not drawn."""
    drawn = []
    monkeypatch.setattr(plots, '_svg', lambda draw, title, task: drawn.append(title) or '')
    return drawn


def pages_of(workdir):
    printed = report.write(workdir)
    return printed, *((workdir / name).read_text('utf-8') for name in ('report.md', 'report.html'))


def test_run_has_a_page_of_scores_costs_and_provenance(tmp_path, capsys):
    make_run(tmp_path, 0.93, 3, objective='classify', task='SST-2', keep_best='accuracy')
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    first = 'Test accuracy 93.00 %, with 1 M parameters after 400 updates.'
    assert out.startswith(first)
    text = (tmp_path / 'report.md').read_text('utf-8')
    assert text.startswith(f'# Run: SST-2\n\n- {first}\n')
    assert '| accuracy, % |      93.00 | 93.00 |' in text
    facts = dict(re.findall(r'^\| ([^|]*?) +\| ([^|]*?) +\|$', text.split('## Costs')[1], re.M))
    assert facts['train FLOPs'] == '2.46e12'
    assert (facts['checkpoint kept by'], facts['seed']) == ('accuracy', '3')


def test_curve_of_a_run_is_drawn(tmp_path, titles):
    make_run(tmp_path, 30.0, 0)
    report.write(tmp_path)
    assert titles == ['Loss: the line is training, dots are validation']


def test_curve_of_a_run_of_matching_losses_has_its_own_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, '_svg', lambda draw, title, task: draw(ax) or '')
    ax = Figure().add_subplot()
    scores = {'validation': {'matching': 0.5, 'rows': 10}}
    make_run(tmp_path, 2, 0, objective='match', metric='matching', scores=scores)
    lines = [
        {'step': 10, 'kind': 'train', 'loss': 0.8},
        {'step': 20, 'kind': 'train', 'loss': 0.6},
        {'step': 20, 'kind': 'validation', 'matching': 0.5},
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    report.write(tmp_path)
    assert ax.get_ylabel() == 'matching loss'
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.8, 0.6], [0.5]]


def test_wrong_answers_have_class_names_most_confident_first(tmp_path):
    make_run(tmp_path, 0.5, 0, objective='classify', class_names=['negative', 'positive'])
    lines = [
        {'text': 'fine', 'label': 1, 'predicted': 1, 'probabilities': [0.1, 0.9]},
        {'text': 'dull', 'label': 0, 'predicted': 1, 'probabilities': [0.4, 0.6]},
        {'text': 'warm', 'label': 1, 'predicted': 0, 'probabilities': [0.8, 0.2]},
    ]
    (tmp_path / 'predictions').mkdir()
    (tmp_path / 'predictions/test.jsonl').write_text(
        ''.join(json.dumps({'index': n} | line) + '\n' for n, line in enumerate(lines))
    )
    _, text, page = pages_of(tmp_path)
    assert '- 2 of 3 test examples have a wrong class.' in text
    assert 'Mistakes: 2 test examples with a wrong class, most confident first' in page
    assert page.index('<dd>warm</dd>') < page.index('<dd>dull</dd>')
    assert '<dd>positive</dd>\n<dt>answer</dt><dd>negative (probability 0.80)</dd>' in page


@pytest.mark.parametrize(
    ('objective', 'changes', 'heading'),
    [
        ('clm', {}, 'with the largest loss'),
        ('seq2seq', {'metric': 'bleu'}, 'with the lowest chrF'),
    ],
)
def test_runs_of_text_show_their_worst_examples(tmp_path, objective, changes, heading):
    if changes:
        test = scores_of('seq2seq', 30.0) | {'bleu': 20.0, 'bleu_signature': 'nrefs:1'}
        changes |= {'scores': {'validation': test, 'test': test}}
    make_run(tmp_path, 30.0, 0, objective=objective, **changes)
    write_predictions(tmp_path, objective, [1, 0], 0.5, 20)
    assert f'Mistakes: 10 test examples {heading}' in pages_of(tmp_path)[2]


def test_run_without_test_scores_or_predictions_has_a_page(tmp_path):
    make_run(tmp_path, 30.0, 0, scores={'validation': scores_of('clm', 30.0)})
    printed, text, page = pages_of(tmp_path)
    assert printed.startswith('Validation perplexity 30, with')
    assert re.search(r'\n\| +\| validation \|\n', text)
    assert 'Mistakes' not in page


def test_long_text_is_cut_after_a_word():
    assert examples.shorten('word ' * 300) == 'word ' * 200 + '…'
    assert examples.shorten('a\n b') == 'a b'
    assert examples.shorten('x' * 2000) == 'x' * 1000 + ' …'


@pytest.mark.parametrize('scores', [{}, {'train': {}}, {'validation': {}}])
def test_run_without_scores_is_refused_in_one_line(tmp_path, capsys, scores):
    make_run(tmp_path, 0.93, 3, objective='classify', task='SST-2')
    path = tmp_path / 'result.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'scores': scores}))
    assert report.main([str(tmp_path)]) == 2
    rule = "scores: must have validation or test with 'accuracy'"
    assert capsys.readouterr().err.splitlines() == [f'error: {path}: {rule}']
