"""A progress bar for what may take long, and silence for what does not."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Shows a bar on standard error once the work has lasted `delay_s`, if that is a terminal.

    Args:
      label: what is being done.
      total: units of work in all.
      delay_s: seconds before anything is shown.

    Example:
      >>> with Progress("Tokenising", total=10) as progress:
      ...     progress.advance(10)
    """

    def __init__(self, label: str, total: float, delay_s: float = 2.0) -> None:
        self._label, self._total, self._delay_s = label, total, delay_s
        self._start_s = time.monotonic()
        self._done = 0.0
        self._bar = None

    def __enter__(self) -> Progress:
        return self

    def advance(self, amount: float) -> None:
        """Says that `amount` more units are done."""
        self._done += amount
        if self._bar is None:
            if time.monotonic() - self._start_s < self._delay_s or not sys.stderr.isatty():
                return
            # Only now: importing rich costs a tenth of a second.
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total)
        self._bar.update(self._task, completed=self._done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
