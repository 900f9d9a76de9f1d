"""Lines of predictions have the texts that were predicted."""

import numpy as np
import pytest
from helpers.sources import make_config, write_files

from lightpaff_jax.data import prepare
from lightpaff_jax.errors import UserError
from lightpaff_jax.evaluate import predictions


def test_source_that_changed_during_a_run_is_an_error(tmp_path, vocabulary):
    rows = {'train_tsv': 'a\tb\nx\t0\n', 'dev_tsv': 'a\tb\ny\t1\n', 'test_tsv': 'a\tb\nz\t1\n'}
    write_files(tmp_path / 'data', **rows)
    c = make_config('table', tmp_path / 'data', columns=('a', '', 'b'), classes=2)
    c.student.family, c.data.cache, c.data.length = 'bert', str(tmp_path / 'cache'), 8
    c.student.classes, c.student.vocab_size = 2, vocabulary.vocab_size
    prepared = prepare.prepare(c, vocabulary)
    values = {'logits': np.zeros((1, 2), np.float32), 'label': np.array([1])}

    def lines():
        return predictions.lines(c, prepared, vocabulary, 'test', [0], values)

    assert [line['text'] for line in lines()] == ['z']
    write_files(tmp_path / 'data', test_tsv='a\tb\nw\t0\nz\t1\n')
    with pytest.raises(UserError, match=r'^config.data.path = .*: has other texts than .*/cache/'):
        lines()
