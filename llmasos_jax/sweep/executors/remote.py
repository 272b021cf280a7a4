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


def begun_file(places: Places, group: str) -> Path:
    """The file that says that a group's job has come to a machine."""
    return places.group(group) / "begun"


@dataclass
class RemoteJob:
    """A function without arguments that a cluster calls on one of its machines.

    Attributes:
      root: the sweep's folder, a whole path.
      group: name of the job's group.
      memory_gib: what the job may hold in memory, in GiB; None for no limit.
      is_asked: whether somebody wants it to save and end.
    """

    root: str
    group: str
    memory_gib: float | None = None
    is_asked: bool = False
    _process: JobProcess | None = None
    _is_told: bool = False

    def __call__(self) -> Ended:
        """Runs the job to its end."""
        places = Places(Path(self.root))
        if not (places.group(self.group) / "group.json").is_file():
            raise FileNotFoundError(
                f"{self.root} is not the sweep's folder on this machine; put --workdir where all "
                "machines of the cluster see it"
            )
        begun_file(places, self.group).touch()
        self._process = JobProcess(places, self.group, self.memory_gib)
        try:
            while (ended := self._process.poll()) is None:
                if self.is_asked or stop_file(places, self.group).exists():
                    self.ask()
                time.sleep(_POLLED_EVERY_S)
        except BaseException:
            self.ask()  # nobody would be left to do so
            raise
        return ended

    def ask(self, *, is_told: bool = False) -> None:
        """Asks the process to save and end: once, since a second signal would end it before.

        Args:
          is_told: whether the process, if there is one, has had the signal from somebody else.
        """
        self.is_asked = True
        if self._process is not None and not self._is_told:
            self._is_told = True
            if not is_told:
                self._process.stop()

    def wait(self) -> None:
        """Waits for the process, and leaves its end to the call that runs it."""
        while self._process is not None and self._process.poll() is None:
            time.sleep(_POLLED_EVERY_S)
