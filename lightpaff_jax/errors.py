"""Errors that a command prints as one line, and helpers for their messages."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the input. A command prints it as one line and exits with `exit_code`."""

    exit_code = 2


class MissingPaths(UserError):
    """Files that a run needs do not exist."""


class NotSaved(UserError):
    """A file or a checkpoint could not be written, for example on a full disk."""


class Unreadable(UserError):
    """A bucket or folder does not answer, or cannot be read now; its content may be intact."""


class Unfinished(UserError):
    """Work stopped early. Its finished part is kept, and the same command resumes it."""


class Diverged(UserError):
    """The numbers of a run are no longer finite. Its last finite checkpoint is intact."""

    exit_code = 3


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns '; did you mean X?' for the closest of the names, or '' if none is close."""
    lower = {candidate.lower(): candidate for candidate in reversed(names)}
    matches = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f'; did you mean {lower[matches[0]]}?' if matches else ''


def whole_number(label: str, text: str, least: int, most: int = 2**31 - 1) -> int:
    """Converts digits to a number. int() raises ValueError for valid digits too, above 4,300 of them.

    Raises:
      UserError: `label` and the text, unless it is a whole number in this range.
    """
    if text.isdecimal() and len(text.lstrip('0')) <= 10 and least <= int(text) <= most:
        return int(text)
    limit = f' and at most {most}' if most < 2**31 - 1 else ''
    raise UserError(f'{label} = {text:.40}: must be a whole number, at least {least}{limit}')


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line; for the system's errors, only the reason."""
    reason = error.strerror if isinstance(error, OSError) else None
    return ' '.join((reason or str(error)).split())


def printable(text: str) -> str:
    """Escapes control characters and line ends, because a message may quote input."""
    return ''.join(x if x.isprintable() else repr(x)[1:-1] for x in text)


def setting(key: str, value: object) -> str:
    """Formats a setting as its user writes it: '--model=DIR' or 'config.teacher.path = DIR'."""
    return f'{key}={value}' if key.startswith('--') else f'{key} = {value}'
