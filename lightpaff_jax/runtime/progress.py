"""Shows the progress of long work on stderr: a bar on a terminal, else a line now and then."""

import math
import time
from typing import Self

from rich import progress
from rich.console import Console

LINE_EVERY = 10.0  # seconds between lines without a terminal
_BAR_AFTER = 1.0  # seconds before the bar of work of unknown length, which may be short


class Progress:
    """Shows one line of text that changes as the work advances.

    Work of known length is shown from its start. Work of unknown length is shown only if it takes
    longer than a moment.

    Args:
      total: length of the work in any unit; None if it is unknown.
    """

    def __init__(self, total: int | None = None):
        self._console = Console(stderr=True)
        self._total = total
        self._tokens = 0
        self._began = time.monotonic()
        self._printed = -1, self._began if total is None else -math.inf
        self._bar: progress.Progress | None = None
        if total is not None:
            self._start_bar()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar from the terminal's live area."""
        if self._bar is not None:
            self._bar.stop()

    def print(self, line: str) -> None:
        """Prints a line at once."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def add_tokens(self, tokens: int, text: str) -> None:
        """Counts more tokens; shows `text` with their number and rate."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self.show(self._tokens, f'{text}, {self._tokens:,} tokens, {rate:,.0f} tokens/s')

    def show(self, completed: int, text: str) -> None:
        """Shows `text` as the state after `completed` units of work."""
        now = time.monotonic()
        if self._console.is_terminal:
            if self._bar is None and now - self._began >= _BAR_AFTER:
                self._start_bar()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=completed, description=text)
            return
        last_completed, last_time = self._printed
        due = now - last_time >= LINE_EVERY or completed == self._total
        if due and completed != last_completed:
            self._printed = completed, now
            self.print(text)

    def _start_bar(self) -> None:
        if self._console.is_terminal:
            columns = progress.BarColumn(), progress.TextColumn('{task.description}')
            self._bar = progress.Progress(*columns, console=self._console)
            self._bar.add_task('', total=self._total)
            self._bar.start()
