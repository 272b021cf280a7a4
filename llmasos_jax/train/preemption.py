"""Ctrl-C and SIGTERM as a polite request to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Protocol

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Agreement(Protocol):
    """What the processes of a run agree through (`parallel.roll.Roll`)."""

    def request_stop(self, why: str) -> None:
        """Asks all for a stop; safe in a signal handler."""
        ...

    def begin(self, step: int) -> str | None:
        """Says that a step begins; why, if all are to stop after it."""
        ...


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM while the block runs; the second one acts as ever.

    With an agreement the signal is for all processes: the request is there when the step begins
    after which all of them stop.

    Only the main thread can handle signals; in another one the block changes nothing. The handlers
    that stood before are put back at the first signal and at the end.

    Args:
      agreement: with the other processes of the run; None where there are none.

    Attributes:
      name: the signal that came ("SIGTERM"), or None.

    Example:
      >>> with StopRequest() as stop:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     print(stop.name)
      SIGTERM
    """

    def __init__(self, agreement: Agreement | None = None) -> None:
        self.name: str | None = None
        self._agreement = agreement
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def begin(self, step: int) -> None:
        """To be called before each step."""
        if self._agreement is not None:
            self.name = self._agreement.begin(step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if self._agreement is None:
            self.name = name
        else:
            self._agreement.request_stop(name)
        self._restore()
        again = "; once more to stop at once" if number == signal.SIGINT else ""
        # A handler may interrupt a print: the descriptor, unlike sys.stderr, can be re-entered.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: finishing the step, then saving{again}\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
