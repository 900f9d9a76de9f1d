"""Settings that no memory holds are refused in one line, and those of real runs are not."""

import pytest

from lightpaff_jax import config
from lightpaff_jax.config import flags, memory, validate
from lightpaff_jax.errors import UserError

GIB = 1 << 30


def check(c, available=16 * GIB):
    validate.validate(c)
    memory.check_host(c)
    memory.check_devices(c, available)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('data.batch_size', 2**31 - 1, 'needs at least'),
        ('data.prefetch', 2**31 - 1, 'needs at least'),
        ('data.workers', 2**31 - 1, 'needs at least'),
        ('eval.batch_size', 2**30, 'needs at least'),
        ('generate.beams', 1000, 'needs at least'),
        ('student.vocab_size', 2**31 - 1, 'config.student: a network of vocab_size 2147483647,'),
        ('student.layers', 2**30, 'layers 1073741824,'),
        ('student.ffn', 2**31 - 1, 'ffn 2147483647: needs at least'),
        ('student.width', 2**30, 'width 1073741824,'),
        ('student.positions', 2**30, 'positions 1073741824,'),
        ('student.type_vocab_size', 2**31 - 1, 'type_vocab_size 2147483647,'),
        ('generate.beams', 1025, 'must be at most half of student.vocab_size = 2048'),
        ('train.keep', 2**31, 'must be below 2**31'),
        ('data.classes', 2**31, 'data.classes'),
    ],
)
def test_setting_that_no_memory_holds_is_refused(key, value, message):
    c = flags.load('configs/mass_stage1.py:tiny')
    if key.startswith('generate'):
        c.objective, c.eval.metric, c.data.view = 'seq2seq', 'bleu', 'summary'
        c.data.target_length, c.eval.batch_size = 16, 4000
    section, leaf = config.locate(c, key)
    section[leaf] = value
    with pytest.raises(UserError, match=r'^config\.') as raised:
        check(c)
    assert message in str(raised.value)
    assert key.split('.')[0] in str(raised.value)


def test_number_of_classes_is_bounded_before_their_names_are_made():
    c = config.default()
    c.data.classes = 2**31 - 1
    with pytest.raises(
        UserError, match=r'^config\.data\.classes = 2147483647: needs at least 137 GB'
    ):
        memory.check_host(c)


def test_networks_of_the_paper_fit_a_machine_of_16_gib():
    for spec in ('configs/bert.py', 'configs/gpt2.py', 'configs/mass.py'):
        c = flags.load(spec)
        check(c)
        assert 20e6 < memory.parameter_count(c.student) < 600e6
