"""A job's process, wherever it runs: started with its log, ended if it holds too much memory."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from llmasos_jax.sweep.executors.executor import Ended
from llmasos_jax.sweep.job import command
from llmasos_jax.sweep.places import Places

_GIB = 2**30


class JobProcess:
    """The process of a group, a child of this one.

    Args:
      places: of the sweep.
      group: its name. What the process prints goes to the end of the group's log.txt.
      memory_gib: what it may hold in memory, in GiB; None for no limit. Linux only.
    """

    def __init__(self, places: Places, group: str, memory_gib: float | None) -> None:
        self._memory_gib = memory_gib
        with (places.group(group) / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command(places, group, parent=os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the sweep, which passes it on.
                start_new_session=True,
            )

    def poll(self) -> Ended | None:
        """See `executor.Job`."""
        status = self._process.poll()
        if status is not None:
            why = f"ended by {signal.Signals(-status).name}" if status < 0 else ""
            return Ended(status, why)
        if self._memory_gib is None:
            return None
        held_gib = _resident_bytes(self._process.pid) / _GIB
        if held_gib <= self._memory_gib:
            return None
        self._process.kill()
        return Ended(
            self._process.wait(),
            f"killed: it held {held_gib:.1f} GiB of memory, and a job may hold "
            f"{self._memory_gib:g}; raise the limit, lower train.batch_size, or put fewer points "
            "into a program",
        )

    def stop(self) -> None:
        """See `executor.Job`."""
        if self._process.poll() is None:
            self._process.terminate()


def _resident_bytes(pid: int) -> int:
    """What a process has in memory; 0 for one that is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
