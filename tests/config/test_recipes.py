"""Helpers of config that recipe files call."""

import pytest

from lightpaff_jax import config
from lightpaff_jax.data import sources


@pytest.mark.parametrize(
    ('arguments', 'settings', 'entry'),
    [
        (('pydocs',), {}, 'pydocs'),
        (('qqp', 'data/QQP'), {'held_out': 0.05, 'weight': 0.2}, 'qqp:data/QQP?held_out=0.05=0.2'),
        (
            ('parallel', 'a'),
            {'suffixes': ('en', 'de'), 'splits': ('validation', 'test')},
            'parallel:a?suffixes=en,de#validation,test',
        ),
        (('sst2', 'b'), {'on_error': 'skip', 'weight': 1.0}, 'sst2:b?on_error=skip=1'),
    ],
)
def test_part_writes_an_entry_of_the_command_line(arguments, settings, entry):
    assert config.part(*arguments, **settings) == entry


def test_mixture_reads_the_entry_that_part_writes():
    c = config.default()
    c.data.source = 'mixture'
    c.data.mixture = (
        config.part('parallel', 'data/x', suffixes=('en', 'de'), held_out=0.05, weight=0.25),
    )
    ((part, weight),) = sources.parts(c)
    assert (part.data.source, part.data.path, weight) == ('parallel', 'data/x', 0.25)
    assert (part.data.suffixes, part.data.held_out) == (('en', 'de'), 0.05)


def test_use_phase_without_a_teacher_trains_on_labels_only():
    c = config.use_phase(config.default(), config.phase(updates=7, lambda_=0.9, temperature=2.0))
    assert (c.train.updates, c.loss.lambda_, c.loss.temperature) == (7, 0.0, 1.0)
    c = config.use_phase(c, config.phase(lambda_=0.9, temperature=2.0), with_teacher=True)
    assert (c.loss.lambda_, c.loss.temperature) == (0.9, 2.0)


def test_augmentation_without_a_teacher_keeps_labels_and_pairs():
    data = config.default().data
    assert config.augmentation(data, with_teacher=False)['augment'] == 0
    data.update({'augment': 0.5, 'augment_pairs': 0.2})
    assert config.augmentation(data, with_teacher=True)['augment_pairs'] == 0.2
    keys = config.augmentation(data, with_teacher=False)
    assert (keys['augment'], keys['augment_pairs'], keys['augment_keep_labels']) == (0, 0, False)
    data.augment_mask = 0.1
    keys = config.augmentation(data, with_teacher=False)
    assert (keys['augment'], keys['augment_pairs'], keys['augment_keep_labels']) == (0.5, 0, True)
