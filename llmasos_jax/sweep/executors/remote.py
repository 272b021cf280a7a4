"""What a cluster's worker does for a sweep: it runs a job's process and passes on when to stop.

The sweep's folder is the only thing that both sides share: the sweep asks a job to stop by a file
in it, which works on every cluster and reaches the process once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.sweep.executors.executor import Ended
from llmasos_jax.sweep.executors.process import JobProcess
from llmasos_jax.sweep.places import Places

_POLLED_EVERY_S = 0.5
# More jobs than a cluster has room for may wait in its queue.
MANY = 1000


def stop_file(places: Places, group: str) -> Path:
    """The file that asks a group's job to save and end."""
    return places.group(group) / "stop"


@dataclass
class RemoteJob:
    """A function without arguments that a cluster calls on one of its machines.

    Attributes:
      root: the sweep's folder, a whole path.
      group: name of the job's group.
      memory_gib: what the job may hold in memory, in GiB; None for no limit.
    """

    root: str
    group: str
    memory_gib: float | None = None

    def __call__(self) -> Ended:
        """Runs the job to its end."""
        places = Places(Path(self.root))
        if not (places.group(self.group) / "group.json").is_file():
            raise FileNotFoundError(
                f"{self.root} is not the sweep's folder on this machine; put --workdir where all "
                "machines of the cluster see it"
            )
        self.is_asked = False
        self._process = JobProcess(places, self.group, self.memory_gib)
        while (ended := self._process.poll()) is None:
            if stop_file(places, self.group).exists():
                self.ask()
            time.sleep(_POLLED_EVERY_S)
        return ended

    def ask(self) -> None:
        """Asks the process to save and end: once, since a second signal would end it before."""
        if not self.is_asked:
            self.is_asked = True
            self._process.stop()

    def wait(self) -> None:
        """Waits for the process, and leaves its end to the call that runs it."""
        while self._process.poll() is None:
            time.sleep(_POLLED_EVERY_S)
