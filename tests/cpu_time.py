"""How long something takes, whatever else the process of the tests has done and is doing."""

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def cpu_time_under(limit_s: float, what: str = "") -> Iterator[None]:
    """Fails what takes this thread longer on the processor, also when it ends in an error.

    Other threads (those that earlier tests left to JAX) are not counted, and Python's collector of
    cycles waits: among the millions of objects of earlier tests one pass takes a second by itself.
    """
    collecting = gc.isenabled()
    gc.disable()
    start_s = time.thread_time()
    try:
        yield
    finally:
        taken_s = time.thread_time() - start_s
        if collecting:
            gc.enable()
        assert taken_s < limit_s, f"{what}: {taken_s:.2f} s of {limit_s}"
