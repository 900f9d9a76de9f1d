"""Whatever is wrong with a JSON file is one line that names file, place and rule."""

import json
import os

import pytest

from lightpaff_jax.errors import UserError
from lightpaff_jax.runtime import json_file

FORM = {
    'name': str,
    'sizes': [range(1, 100)],
    'pair': [int, float],
    'runs': {str: {'score': float | None, 'kind': ('a', 'b')}},
    'note?': str,
}
VALID = {'name': 'x', 'sizes': [1, 99], 'pair': [1, 2], 'runs': {'r': {'score': None, 'kind': 'a'}}}


def test_value_of_the_form_is_accepted_with_other_keys():
    value = VALID | {'other': [None], 'note': ''}
    assert json_file.parse(json.dumps(value).encode(), FORM, 'f') == value


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'name': 3}, 'f: name = 3: must be text'),
        ({'name': None}, 'f: name = null: must be text'),
        ({'note': True}, 'f: note = true: must be text'),
        ({'sizes': {}}, 'f: sizes = {}: must be a list'),
        ({'sizes': [1, 0]}, 'f: sizes[1] = 0: must be a whole number from 1 to 99'),
        ({'sizes': [True]}, 'f: sizes[0] = true: must be a whole number from 1 to 99'),
        ({'pair': [1]}, 'f: pair: must have 2 items, has 1'),
        ({'pair': [1.0, 1]}, 'f: pair[0] = 1.0: must be a whole number'),
        ({'runs': []}, 'f: runs = []: must be an object'),
        ({'runs': {'r': {'score': 1}}}, "f: runs.r: must have the key 'kind'"),
        ({'runs': {'r': {'score': '1', 'kind': 'a'}}}, 'score = "1": must be a number or null'),
        ({'runs': {'r': {'score': 1, 'kind': 'c'}}}, 'kind = "c": must be one of "a", "b"'),
    ],
)
def test_value_of_another_form_names_place_and_rule(change, message):
    with pytest.raises(UserError) as raised:
        json_file.check(VALID | change, FORM, 'f')
    assert str(raised.value).endswith(message)
    assert str(raised.value).startswith('f: ')


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'must be JSON'),
        (b'{"a": 1', 'must be JSON'),
        (b'\xff{}', 'must be JSON'),
        (b'\0', 'must be JSON'),
        (b'\xef\xbb\xbf{}', 'must be JSON'),
        (b'[' * 100_000, 'must be JSON'),
        (b'{"a":' * 200 + b'1' + b'}' * 200, 'nested deeper than 100 levels'),
        (b'{"a": 1' + b'0' * 400 + b'}', 'a number of 401 digits is too large'),
        (b'{"a": 1' + b'0' * 9999 + b'}', 'a number of 10000 digits is too large'),
        (rb'{"a": "\ud800"}', 'surrogates not allowed'),
        (b'{"a": NaN}', 'must be JSON: NaN is not a finite number'),
        (b'{"a": -1e999}', 'must be JSON: -1e999 is not a finite number'),
        (b'[]', 'must be an object'),
        (None, 'cannot be read: No such file or directory'),
        ('folder', 'must be a file'),
        ('pipe', 'must be a file'),
        ('dangling', 'cannot be read: No such file or directory'),
    ],
)
def test_damaged_file_is_one_line(tmp_path, data, reason):
    path = tmp_path / 'a.json'
    if data == 'folder':
        path.mkdir()
    elif data == 'pipe':
        os.mkfifo(path)
    elif data == 'dangling':
        path.symlink_to(tmp_path / 'none')
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        json_file.read(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert reason in str(raised.value)
    assert '\n' not in str(raised.value)


def test_lines_are_named_by_their_number(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert json_file.read_lines(path, {'a': int}) == [{'a': 1}, {'a': 2}]
    path.write_text('{"a": 1}\n{"a": "2"}\n')
    with pytest.raises(UserError, match=rf'^{path}: line 2: a = "2": must be a whole number$'):
        json_file.read_lines(path, {'a': int})
