"""Jobs as processes of this machine, each held to a share of its memory."""

from __future__ import annotations

from llmasos_jax.sweep.executors.executor import Job
from llmasos_jax.sweep.executors.process import JobProcess
from llmasos_jax.sweep.places import Places


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
        return JobProcess(places, group, self._memory_gib)

    def close(self) -> None:
        """See `Executor`."""
