"""A bar, or the step, of work that takes more than two seconds, and silence for the rest."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

QUIET_S = 2.0


class Progress:
    """Shows a bar on standard error once the work has lasted two seconds, if that is a terminal.

    Args:
      label: what is being done.
      total: units of work in all.
      is_bytes: whether the units are bytes, shown as such with their speed.
      say_every_s: where there is no terminal, says in a line how far it is so often; None is
        silent there.

    Example:
      >>> with Progress("Tokenising", total=10) as progress:
      ...     progress.advance(10)
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        is_bytes: bool = False,
        say_every_s: float | None = None,
    ) -> None:
        self._label, self._total, self._is_bytes = label, total, is_bytes
        self._start_s = self._said_s = time.monotonic()
        self._say_every_s = say_every_s
        self._done = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def advance(self, amount: float, what: str = "") -> None:
        """Says that `amount` more units are done, the last of them `what`."""
        self._done += amount
        if self._bar is None:
            if not sys.stderr.isatty():
                self._say()
                return
            if time.monotonic() - self._start_s < QUIET_S:
                return
            self._bar = _bar(self._is_bytes)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total)
        label = f"{self._label} {what}".rstrip()
        self._bar.update(self._task, completed=self._done, description=label)

    def _say(self) -> None:
        now_s = time.monotonic()
        if self._say_every_s is None or now_s - self._said_s < self._say_every_s:
            return
        self._said_s = now_s
        share = min(1.0, self._done / max(self._total, 1))
        left_s = (now_s - self._start_s) * (1 - share) / max(share, 1e-9)
        minutes, seconds = divmod(round(left_s), 60)
        text = f"{self._label}: {share:.0%}, about {minutes} min {seconds} s left"
        print(text, file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Steps:
    """Says which step of some work is being done, once the work has lasted two seconds.

    For steps that say nothing of how far they are; on standard error, if that is a terminal.

    Args:
      label: what is being done.

    Example:
      >>> with Steps("Proving") as steps:
      ...     steps.begin("reading it back")
    """

    def __init__(self, label: str) -> None:
        self._label, self._step = label, ""
        self._lock = threading.Lock()
        self._status: Any = None
        self._is_over = False
        self._timer = threading.Timer(QUIET_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Steps:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def begin(self, step: str) -> None:
        """Says what is done from now on."""
        with self._lock:
            self._step = step
            if self._status is not None:
                self._status.update(self._text())

    def _show(self) -> None:
        with self._lock:
            if not self._is_over:
                from rich.console import Console

                self._status = Console(stderr=True).status(self._text())
                self._status.start()

    def _text(self) -> str:
        return f"{self._label}: {self._step}".rstrip(": ")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            if self._status is not None:
                self._status.stop()


def _bar(is_bytes: bool) -> Any:
    # Only now: importing rich costs a tenth of a second.
    from rich import progress
    from rich.console import Console

    amount = (progress.DownloadColumn(), progress.TransferSpeedColumn()) if is_bytes else ()
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        *amount,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
