"""Parser and argument types of the benchmarks; a wrong value is rejected before anything runs."""

import argparse
import pathlib
from collections.abc import Callable


def make_parser(documentation: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help begins with a benchmark's documentation."""
    return argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def integer(minimum: int) -> Callable[[str], int]:
    """Returns the type of an integer that is at least `minimum`."""

    def parse(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f'{text}: must be a whole number of at least {minimum}'
            )
        return int(text)

    return parse


def number(is_valid: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """Returns the type of a number that satisfies `is_valid`; errors end with `rule`."""

    def parse(text: str) -> float:
        if not is_valid(float(text)):
            raise argparse.ArgumentTypeError(f'{text}: {rule}')
        return float(text)

    return parse


def existing_path(text: str) -> pathlib.Path:
    """Parses the path of an existing file or folder."""
    path = pathlib.Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f'{text}: no such file or folder')
    return path


def output_file(text: str) -> pathlib.Path:
    """Parses the path of a file, new or not, in an existing folder."""
    path = pathlib.Path(text)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f'{text}: must be a file in an existing folder')
    return path
