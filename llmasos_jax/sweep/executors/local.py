"""Jobs as processes of this machine, each held to a share of its memory."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from llmasos_jax.sweep.executors.executor import Ended, Job
from llmasos_jax.sweep.job import command
from llmasos_jax.sweep.places import Places

_GIB = 2**30


class LocalExecutor:
    """Processes of this machine.

    Args:
      jobs: at once. A job uses all cores, or the whole accelerator.
      memory_gib: what a job may hold in memory, in GiB; None for no limit. One that holds more is
        killed, and what it has not done is reported as failed. Linux only.

    Example:
      >>> LocalExecutor(jobs=2).at_once
      2
    """

    def __init__(self, jobs: int = 1, memory_gib: float | None = None) -> None:
        self.at_once, self._memory_gib = jobs, memory_gib

    def start(self, places: Places, group: str) -> Job:
        """See `Executor`."""
        with (places.group(group) / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command(places, group, parent=os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the sweep, which passes it on.
                start_new_session=True,
            )
        return _Process(process, self._memory_gib)

    def close(self) -> None:
        """See `Executor`."""


class _Process:
    def __init__(self, process: subprocess.Popen, memory_gib: float | None) -> None:
        self._process, self._memory_gib = process, memory_gib

    def poll(self) -> Ended | None:
        """See `Job`."""
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
        """See `Job`."""
        if self._process.poll() is None:
            self._process.terminate()


def _resident_bytes(pid: int) -> int:
    """What a process has in memory; 0 for one that is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
