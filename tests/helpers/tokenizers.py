"""A reference for the ids of BERT's inputs."""

from lightpaff_jax.data.tokenizers import Tokenizer, truncated_lengths


def encode_pair(
    tokenizer: Tokenizer, first: str, second: str, length: int
) -> tuple[list[int], list[int]]:
    """Encodes [CLS] first [SEP] second [SEP], or [CLS] first [SEP] if `second` is empty.

    Returns:
      At most `length` ids and their token types; the longer text is truncated first.
    """
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert cls is not None
    assert sep is not None
    if not second:
        ids = [cls, *tokenizer.encode([first])[0][: length - 2], sep]
        return ids, [0] * len(ids)
    a, b = tokenizer.encode([first, second])
    length_a, length_b = truncated_lengths(len(a), len(b), length - 3)
    ids = [cls, *a[:length_a], sep, *b[:length_b], sep]
    return ids, [0] * (length_a + 2) + [1] * (length_b + 1)
