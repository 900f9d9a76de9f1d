"""Tests of removing the spaces around punctuation."""

import os
import pathlib

import pytest

from lightpaff_jax import config
from lightpaff_jax.data.sources import detokenize

DATA = os.environ.get('LIGHTPAFF_DATA')

WIKITEXT = [
    (' = The Harbour = ', '= The Harbour ='),
    (' = = Early years = = ', '== Early years =='),
    (' = = = A third level = = = ', '=== A third level ==='),
    (
        ' a red @-@ tipped flag , of 20 @,@ 000 , is 0 @.@ 59 m long . ',
        'a red-tipped flag, of 20,000, is 0.59 m long.',
    ),
    (' It cost $ 5 @.@ 20 ( or £ 4 ) ; 50 % less ! ', 'It cost $5.20 (or £4); 50% less!'),
    (" the ship 's crew couldn 't leave ", "the ship's crew couldn't leave"),
    (" the players ' union says they 're late ", "the players' union says they're late"),
    (' he said " we are here " , and left . ', 'he said "we are here", and left.'),
    (" a ' loud ' noise ", "a 'loud' noise"),
    (' so [ it ] was ... gone ', 'so [it] was... gone'),
    (' the <unk> of <unk> , a <unk> . ', 'the <unk> of <unk>, a <unk>.'),
]
PTB = [
    ("it does n't matter he 's gone they 've left", "it doesn't matter he's gone they've left"),
    ("the traders ' pit", "the traders' pit"),
    ('it rose $ N billion or N %', 'it rose $N billion or N%'),
    ('<unk> & <unk> co. and s & p of N', '<unk> & <unk> co. and s&p of N'),
    ('he -lrb- the chairman -rrb- left', 'he (the chairman) left'),
    ("`` no '' he said , twice .", '"no" he said, twice.'),
    ("the ' N crash", "the ' N crash"),
]


@pytest.mark.parametrize(('text', 'expected'), WIKITEXT)
def test_wikitext_is_detokenized(text, expected):
    assert detokenize.wikitext(text) == expected


@pytest.mark.parametrize(('text', 'expected'), PTB)
def test_penn_treebank_is_detokenized(text, expected):
    assert detokenize.ptb(text) == expected


@pytest.mark.parametrize(('name', 'cases'), [('wikitext', WIKITEXT), ('ptb', PTB)])
def test_detokenizing_keeps_lines_and_is_idempotent(name, cases):
    text = '\n'.join(text for text, _ in cases) + '\n\n'
    once = detokenize.DETOKENIZERS[name](text)
    assert once == '\n'.join(expected for _, expected in cases) + '\n\n'
    assert detokenize.DETOKENIZERS[name](once) == once


def test_detokenizers_match_the_configuration():
    assert tuple(detokenize.DETOKENIZERS) == config.DETOKENIZERS
    assert detokenize.DETOKENIZERS['none'](" a 's ") == " a 's "


@pytest.mark.skipif(not DATA, reason='needs LIGHTPAFF_DATA')
@pytest.mark.parametrize(
    ('name', 'file'),
    [('wikitext', 'wikitext-2/wiki.valid.tokens'), ('ptb', 'ptb/ptb.valid.txt')],
)
def test_detokenizing_real_text_keeps_every_letter(name, file):
    text = (pathlib.Path(DATA) / file).read_text()
    detokenized = detokenize.DETOKENIZERS[name](text)
    assert detokenized.count('\n') == text.count('\n')
    assert len(detokenized) < len(text)

    def letters(text):
        return ''.join(text.split()).replace('@', '')

    assert letters(detokenized) == letters(text)
