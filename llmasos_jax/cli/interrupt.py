"""Ctrl-C that is not lost."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from types import FrameType

_AGAIN_S = 0.02
# What Python calls when an object goes that somebody only watched: what is raised there is dropped.
_WATCHERS = frozenset(
    called.__code__
    for called in (
        weakref.WeakKeyDictionary()._remove,  # pyright: ignore[reportAttributeAccessIssue]
        weakref.WeakValueDictionary()._remove,  # pyright: ignore[reportAttributeAccessIssue]
        weakref.WeakSet()._remove,  # pyright: ignore[reportAttributeAccessIssue]
        weakref.finalize.__call__,
    )
)


def install() -> None:
    """Takes Ctrl-C so that it raises KeyboardInterrupt where that is heard.

    Python drops what a callback of its garbage collector raises; jax has one, and a program that is
    being traced is often in it. The same goes for callbacks of weak references, which a collection
    runs by the thousand. There the signal is sent once more, a moment later.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_deaf(frame):
        raise KeyboardInterrupt
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _is_deaf(frame: FrameType | None) -> bool:
    """Whether what is raised here is dropped: in callbacks, and in `__del__`."""
    codes = _WATCHERS | {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in codes or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
