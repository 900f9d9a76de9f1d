"""Claims about texts that are looked for in others."""

from lightpaff_jax.data.sources import decontaminate

LONG = 'the tall ships come back to the old harbour every summer'


def test_case_accents_and_punctuation_count_for_nothing():
    texts = decontaminate.Texts()
    texts.add("It's a Café !", document=False)
    assert texts.meets('its a cafe', decontaminate.FEW)
    assert texts.meets("it ' s a cafe\u0301", decontaminate.FEW)
    assert not texts.meets('its a cafe too', decontaminate.FEW)


def test_a_sentence_is_found_inside_a_document_and_a_short_one_only_as_the_whole():
    texts = decontaminate.Texts()
    texts.add(LONG, document=False)
    texts.add('so it goes', document=False)
    assert texts.meets(f'As they say, {LONG.upper()}. Then they leave.', decontaminate.FEW)
    assert not texts.meets(LONG.replace('summer', 'winter'), decontaminate.FEW)
    assert texts.meets('So it goes.', decontaminate.FEW)
    assert not texts.meets('and so it goes on', decontaminate.FEW)


def test_of_a_document_its_longer_sentences_are_looked_for():
    texts = decontaminate.Texts()
    texts.add(f'Short one here. {LONG}. Another short line.', document=True)
    assert texts.meets(f'x {LONG} y', decontaminate.FEW)
    assert not texts.meets('another short line.', decontaminate.FEW)


def test_a_part_of_a_text_meets_it_where_parts_count():
    counted, others = decontaminate.Texts(parts=True), decontaminate.Texts()
    for texts in (counted, others):
        for _ in range(2):
            texts.add('A slow start . Then it grows on you , and stays .', document=True)
    for part in ('start then it grows on', 'THEN IT GROWS ON YOU,', 'it grows on you, and stays'):
        assert counted.meets(part, decontaminate.FEW)
        assert not others.meets(part, decontaminate.FEW)
    for other in ('it grows on you', 'hen it grows on you', 'Then it grows on you all'):
        assert not counted.meets(other, decontaminate.FEW)
    counted.add('What is added later is found like all that was there.', document=True)
    assert counted.meets('later is found like all', decontaminate.FEW)
    assert counted.meets('THEN IT GROWS ON YOU,', decontaminate.FEW)
