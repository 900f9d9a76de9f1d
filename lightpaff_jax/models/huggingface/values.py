"""Checks the values of JSON files in a Hugging Face folder."""

from collections.abc import Mapping
from typing import Any

from lightpaff_jax.errors import UserError


def check(where: str, values: Mapping[str, Any], key: str, holds: bool, rule: str) -> None:
    """Raises UserError with a key, its value and the rule unless the rule holds.

    Args:
      where: the file, the start of the message.
      values: its content; an absent key is shown as None.
      key: the key to name.
      holds: whether its value is valid.
      rule: what it must be.
    """
    if not holds:
        raise UserError(f'{where} has {key} = {values.get(key)!r}: {rule}')


def is_integer(value: Any, minimum: float = float('-inf')) -> bool:
    """Returns whether a value is a whole number, and no boolean, of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)
