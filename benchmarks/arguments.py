"""Types of the benchmarks' arguments: what cannot be is said before anything runs."""

import argparse
import pathlib
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text}: must be a whole number of at least {least}')
        return int(text)

    return read


def number(holds: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """A number that a rule holds for."""

    def read(text: str) -> float:
        if not holds(float(text)):
            raise argparse.ArgumentTypeError(f'{text}: {rule}')
        return float(text)

    return read


def file_to_read(text: str) -> pathlib.Path:
    """A file or folder that is there."""
    path = pathlib.Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f'{text}: is not there')
    return path


def file_to_write(text: str) -> pathlib.Path:
    """A file whose folder is there."""
    path = pathlib.Path(text)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f'{text}: must be a file in a folder that is there')
    return path
