"""Ctrl-C that is not lost."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType

_AGAIN_S = 0.02
_LOADING_S = 5.0
_LOADER = "<frozen importlib._bootstrap"  # how the file names of Python's own import begin
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
# Where jax names what a traced function gives, under a bare "except:"; its function and file.
_SWALLOWS = ("paths", "jax/_src/tree_util.py")


def install() -> None:
    """Takes Ctrl-C so that it raises KeyboardInterrupt where that is heard.

    Python drops what a callback of its garbage collector raises; jax has one, and a program that is
    being traced is often in it. The same goes for callbacks of weak references, which a collection
    runs by the thousand, and where jax names what a traced function gives. There the signal is sent
    once more, a moment later.

    So it is while a module is being imported, for 5 s at most: what is written in C may take an
    interrupted import for a broken installation (numpy), or crash.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Handler())


class _Handler:
    """Raises KeyboardInterrupt, or sends the signal once more a moment later."""

    def __init__(self) -> None:
        self._loading_since: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not (_is_deaf(frame) or self._is_to_wait(frame)):
            self._loading_since = None
            raise KeyboardInterrupt
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    def _is_to_wait(self, frame: FrameType | None) -> bool:
        """Whether a module is being imported that has had less than its time to be done."""
        if not any(code.co_filename.startswith(_LOADER) for code in _codes(frame)):
            return False
        now = time.monotonic()
        self._loading_since = now if self._loading_since is None else self._loading_since
        return now - self._loading_since < _LOADING_S


def _is_deaf(frame: FrameType | None) -> bool:
    """Whether what is raised here is dropped: in callbacks, in `__del__`, by jax."""
    deaf = _WATCHERS | {getattr(callback, "__code__", None) for callback in gc.callbacks}
    name, file = _SWALLOWS
    return any(
        code in deaf
        or code.co_name == "__del__"
        or (code.co_name == name and code.co_filename.endswith(file))
        for code in _codes(frame)
    )


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    """Of a frame and all that called it."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
