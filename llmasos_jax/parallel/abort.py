"""A moment between an abort and the end of the process, in which the roll says who is lost."""

from __future__ import annotations

import ctypes
import signal


def delay_abort() -> None:
    """Lets a thread that calls abort() sleep for six seconds first; the other threads go on.

    When a process is gone, those that computed with it do not all notice in the same collective:
    one may get bytes of the next collective from its neighbour, and gloo aborts on them from a
    thread of its own. The roll knows better what has happened, a moment later. An abort for any
    other reason ends the process as ever, six seconds late.
    """
    libc = ctypes.CDLL(None)
    # A handler is called with the signal's number, and SIGABRT is 6 wherever POSIX goes: sleep(6).
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
