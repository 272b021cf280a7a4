"""What every executor does: starts jobs, says how they ended, asks them to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmasos_jax.sweep.places import Places


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
      status: its exit status, as `llmasos train` has it: 0 done, 75 stopped and saved.
      why: what is known of an end that the job itself did not choose ("killed: 9 GiB ...").
    """

    status: int
    why: str = ""


class Job(Protocol):
    """A job that was started."""

    def poll(self) -> Ended | None:
        """How it ended; None while it runs or waits."""
        ...

    def stop(self) -> None:
        """Asks it to save and end."""
        ...


class Executor(Protocol):
    """Where jobs run.

    Attributes:
      at_once: jobs that are started before one has ended.
    """

    at_once: int

    def start(self, places: Places, group: str) -> Job:
        """Starts `job.command` for a group; what it prints goes to the end of its log.txt."""
        ...

    def close(self) -> None:
        """Lets go of what the executor holds; no job runs any more."""
        ...
