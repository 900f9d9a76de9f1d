"""Claims about texts that are looked for in others."""

from lightpaff_jax.data.sources import decontaminate

LONG = 'the tall ships come back to the old harbour every summer'


def test_case_accents_and_punctuation_count_for_nothing():
    texts = decontaminate.OverlapIndex()
    texts.add("It's a Café !", is_document=False)
    assert texts.overlaps('its a cafe', decontaminate.MIN_TEXT_WORDS)
    assert texts.overlaps("it ' s a cafe\u0301", decontaminate.MIN_TEXT_WORDS)
    assert not texts.overlaps('its a cafe too', decontaminate.MIN_TEXT_WORDS)


def test_a_sentence_is_found_inside_a_document_and_a_short_one_only_as_the_whole():
    texts = decontaminate.OverlapIndex()
    texts.add(LONG, is_document=False)
    texts.add('so it goes', is_document=False)
    assert texts.overlaps(
        f'As they say, {LONG.upper()}. Then they leave.', decontaminate.MIN_TEXT_WORDS
    )
    assert not texts.overlaps(LONG.replace('summer', 'winter'), decontaminate.MIN_TEXT_WORDS)
    assert texts.overlaps('So it goes.', decontaminate.MIN_TEXT_WORDS)
    assert not texts.overlaps('and so it goes on', decontaminate.MIN_TEXT_WORDS)


def test_of_a_document_its_longer_sentences_are_looked_for():
    texts = decontaminate.OverlapIndex()
    texts.add(f'Short one here. {LONG}. Another short line.', is_document=True)
    assert texts.overlaps(f'x {LONG} y', decontaminate.MIN_TEXT_WORDS)
    assert not texts.overlaps('another short line.', decontaminate.MIN_TEXT_WORDS)


def test_a_part_of_a_text_meets_it_where_parts_count():
    counted, others = decontaminate.OverlapIndex(match_parts=True), decontaminate.OverlapIndex()
    for texts in (counted, others):
        for _ in range(2):
            texts.add('A slow start . Then it grows on you , and stays .', is_document=True)
    for part in ('start then it grows on', 'THEN IT GROWS ON YOU,', 'it grows on you, and stays'):
        assert counted.overlaps(part, decontaminate.MIN_TEXT_WORDS)
        assert not others.overlaps(part, decontaminate.MIN_TEXT_WORDS)
    for other in ('it grows on you', 'hen it grows on you', 'Then it grows on you all'):
        assert not counted.overlaps(other, decontaminate.MIN_TEXT_WORDS)
    counted.add('What is added later is found like all that was there.', is_document=True)
    assert counted.overlaps('later is found like all', decontaminate.MIN_TEXT_WORDS)
    assert counted.overlaps('THEN IT GROWS ON YOU,', decontaminate.MIN_TEXT_WORDS)
