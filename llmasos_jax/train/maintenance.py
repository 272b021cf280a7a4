"""Notices that a cloud's machine is about to be taken away, treated like SIGTERM.

Google's machines with TPUs are not moved when their host is maintained: they end, and their
metadata server says so before (about a minute for maintenance, half a minute for a spot machine
that is preempted). No signal reaches the processes in time, so a thread asks.

References:
  https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
  https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from llmasos_jax.parallel.metadata import HOST, metadata

_ASKED_EVERY_S = 2.0
_TIMEOUT_S = 2.0
# What these values under `instance/` say of the minute to come.
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


@contextlib.contextmanager
def watched(platform: str) -> Iterator[None]:
    """Sends this process a SIGTERM as soon as its machine is to be taken away, in the block.

    Asks on TPUs alone, and where the variable GCE_METADATA_HOST is set.

    Args:
      platform: of the run's devices, "tpu" or another.
    """
    if platform != "tpu" and HOST not in os.environ:
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(is_over,), name="maintenance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _watch(is_over: threading.Event) -> None:
    while True:
        for name, notice in _NOTICES.items():
            if metadata(name, timeout_s=_TIMEOUT_S) == notice and not is_over.is_set():
                text = f"\nllmasos: this machine is about to end ({name}: {notice})\n"
                with contextlib.suppress(OSError):
                    os.write(2, text.encode())
                os.kill(os.getpid(), signal.SIGTERM)
                return
        if is_over.wait(_ASKED_EVERY_S):
            return
