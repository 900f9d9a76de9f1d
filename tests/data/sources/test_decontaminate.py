"""Tests of the index of evaluation texts."""

from lightpaff_jax.data.sources import decontaminate

LONG = 'the tall ships come back to the old harbour every summer'


def test_overlap_ignores_case_accents_and_punctuation():
    index = decontaminate.OverlapIndex()
    index.add("It's a Café !", is_document=False)
    assert index.overlaps('its a cafe', decontaminate.MIN_TEXT_WORDS)
    assert index.overlaps("it ' s a cafe\u0301", decontaminate.MIN_TEXT_WORDS)
    assert not index.overlaps('its a cafe too', decontaminate.MIN_TEXT_WORDS)


def test_short_text_matches_only_as_a_whole():
    index = decontaminate.OverlapIndex()
    index.add(LONG, is_document=False)
    index.add('so it goes', is_document=False)
    assert index.overlaps(
        f'As they say, {LONG.upper()}. Then they leave.', decontaminate.MIN_TEXT_WORDS
    )
    assert not index.overlaps(LONG.replace('summer', 'winter'), decontaminate.MIN_TEXT_WORDS)
    assert index.overlaps('So it goes.', decontaminate.MIN_TEXT_WORDS)
    assert not index.overlaps('and so it goes on', decontaminate.MIN_TEXT_WORDS)


def test_document_matches_by_its_long_sentences():
    index = decontaminate.OverlapIndex()
    index.add(f'Short one here. {LONG}. Another short line.', is_document=True)
    assert index.overlaps(f'x {LONG} y', decontaminate.MIN_TEXT_WORDS)
    assert not index.overlaps('another short line.', decontaminate.MIN_TEXT_WORDS)


def test_part_of_a_text_matches_only_if_parts_count():
    with_parts, without_parts = (
        decontaminate.OverlapIndex(match_parts=True),
        decontaminate.OverlapIndex(),
    )
    for index in (with_parts, without_parts):
        for _ in range(2):
            index.add('A slow start . Then it grows on you , and stays .', is_document=True)
    for part in ('start then it grows on', 'THEN IT GROWS ON YOU,', 'it grows on you, and stays'):
        assert with_parts.overlaps(part, decontaminate.MIN_TEXT_WORDS)
        assert not without_parts.overlaps(part, decontaminate.MIN_TEXT_WORDS)
    for text in ('it grows on you', 'hen it grows on you', 'Then it grows on you all'):
        assert not with_parts.overlaps(text, decontaminate.MIN_TEXT_WORDS)
    with_parts.add('What is added later is found like all that was there.', is_document=True)
    assert with_parts.overlaps('later is found like all', decontaminate.MIN_TEXT_WORDS)
    assert with_parts.overlaps('THEN IT GROWS ON YOU,', decontaminate.MIN_TEXT_WORDS)
