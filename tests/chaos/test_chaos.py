"""Small parts of the campaign: its pieces run, find planted faults, and resume."""

import json
import random

import pytest
from hypothesis import strategies as st

from chaos import campaign, damage, fuzz, table, targets
from chaos.campaign import Context, Outcome, Piece
from chaos.pieces import PIECES
from lightpaff_jax.errors import UserError

CASE = {'seed': 0, 'commit': 'abc', 'machine': '2 cores', 'seconds': 90.0, 'figures': {}}


def piece_of(outcomes, **changes):
    """Returns a piece whose cases have these outcomes, and the list of the cases that ran."""
    ran = []

    def run(context):
        ran.append(context.case)
        return outcomes[context.case]

    return Piece(run, 'kills', 3, 1, 'nothing is lost', **changes), ran


def test_interrupted_piece_continues_after_its_finished_cases(tmp_path):
    piece, ran = piece_of([Outcome(1, []), Outcome(1, ['lost']), Outcome(1, [])])
    assert campaign.run(tmp_path, 'kills', piece, 0, 2, 1) == (2, ['lost'])
    with (tmp_path / campaign.STATE).open('a') as file:
        file.write('{"piece": "kil')  # a crash cut the line
    assert campaign.run(tmp_path, 'kills', piece, 0, 3, 1) == (3, ['lost'])
    assert ran == [0, 1, 2]


def test_case_that_raises_is_a_failure(tmp_path):
    piece, ran = piece_of({})
    count, failures = campaign.run(tmp_path, 'kills', piece, 0, 1, 1)
    assert (count, len(ran)) == (0, 5)
    assert failures[0] == 'the case failed: KeyError: 0'


def test_damaged_checkpoints_are_not_loaded_silently(tmp_path):
    damage.save_steps(tmp_path)
    outcome = damage.run(Context(tmp_path, tmp_path / 'damage', 0, random.Random(0), 4))
    assert (outcome.count, outcome.failures) == (4, [])
    assert sum(outcome.figures.values()) == 4


def test_fuzzer_reports_the_least_input_that_fails():
    def read(value):
        if value > 99:
            raise KeyError(value)
        raise UserError('must be above 99')

    _, refused, failures = fuzz.hunt(st.integers(0, 1000), read, 0, 100)
    assert failures == ['KeyError: 100; input: 100']
    assert refused


def test_fuzzer_reports_an_error_of_the_system_without_a_file():
    def read(value):
        raise OSError(28, 'no space')

    _, _, (failure,) = fuzz.hunt(st.just(0), read, 0, 1)
    assert failure.startswith('NoFileError: [Errno 28] no space; input: 0')


@pytest.mark.parametrize('name', ['command line', 'rows', 'safetensors', 'prepared data'])
def test_fuzzed_input_is_accepted_or_refused_in_one_line(tmp_path, name):
    strategy, call = targets.inputs(tmp_path / 'input', name)
    count, refused, failures = fuzz.hunt(strategy, call, 0, 20)
    assert (count, failures) == (20, [])
    assert refused


def test_table_has_the_counts_of_the_state_file(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{table.START}old\n{table.END}after\n')
    cases = [
        CASE | {'piece': 'soak', 'case': 0, 'count': 20_000, 'failures': [], 'figures': {'MiB': 9}},
        CASE | {'piece': 'kills', 'case': 0, 'count': 5, 'failures': ['lost'], 'commit': 'old'},
        CASE | {'piece': 'kills', 'case': 0, 'count': 5, 'failures': []},
        CASE | {'piece': 'kills', 'case': 1, 'count': 6, 'failures': ['lost']},
    ]
    text = ''.join(json.dumps(case) + '\n' for case in cases)
    (tmp_path / campaign.STATE).write_text(text)
    table.write(tmp_path, 0, page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ('before', 'after')
    assert any(line.startswith('| `kills` | 11 SIGKILLs | 1 |') for line in lines)
    assert '- `soak`: MiB 9.' in lines


@pytest.mark.slow
@pytest.mark.parametrize('name', PIECES)
def test_piece_of_the_campaign_has_no_failure(name, tmp_path):
    count = {'fuzz': 4000, 'soak': 2000, 'commands': 6, 'damage': 20}.get(name, 1)
    tried, failures = campaign.run(tmp_path, name, PIECES[name], 0, count, 30)
    assert tried >= count
    assert not failures
