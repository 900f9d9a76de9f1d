"""What is seen of a long preparation: a bar on a terminal, else a line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_EVERY = 10.0  # seconds between lines where there is no terminal
_BAR_AFTER = 1.0  # seconds; what is quicker shows nothing


class Shown:
    """Counts what was encoded, and shows it on stderr; nothing of what takes a few seconds."""

    def __init__(self):
        self._console = Console(stderr=True)
        self._began = self._last = time.monotonic()
        self._tokens = 0
        self._bar: Progress | None = None

    def __enter__(self) -> 'Shown':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def add(self, done: str, tokens: int) -> None:
        """Counts the tokens of one more chunk; `done` says how far the work is."""
        self._tokens += tokens
        now = time.monotonic()
        rate = self._tokens / max(now - self._began, 1e-9)
        words = f'{done}, {self._tokens:,} tokens, {rate:,.0f} tokens/s'
        if self._console.is_terminal:
            if self._bar is None and now - self._began >= _BAR_AFTER:
                self._bar = Progress(
                    BarColumn(), TextColumn('{task.description}'), console=self._console
                )
                self._bar.add_task('', total=None)
                self._bar.start()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], description=words)
        elif now - self._last >= LINE_EVERY:
            self._last = now
            self.say(words)
