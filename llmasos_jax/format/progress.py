"""A progress bar for work that turns out to take more than two seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

QUIET_S = 2.0


@contextlib.contextmanager
def bytes_bar(title: str, total_bytes: int) -> Iterator[Callable[[str, int], None]]:
    """Gives a function to call with (what, bytes done); it draws on a terminal's standard error.

    Example:
      >>> with bytes_bar("convert", 10) as advance:
      ...     advance("embed.table", 10)
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, TransferSpeedColumn(), console=console, transient=True)
    task = bar.add_task(title, total=total_bytes)
    start = time.monotonic()

    def advance(what: str, num_bytes: int) -> None:
        bar.update(task, advance=num_bytes, description=f"{title} {what}")
        if console.is_terminal and not bar.live.is_started and time.monotonic() - start > QUIET_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
