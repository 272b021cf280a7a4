"""What a program in the sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.errors import EvaluationError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What a program may use. All are set before its first instruction.

    Attributes:
      seconds: of wall time, and of the processor for each process.
      memory: bytes of address space of each process.
      processes: processes and threads at a time, its own included.
      file_size: bytes of each file, what it prints included.
      disk: bytes of its folder, which lies in memory.
      files: open at a time.
    """

    seconds: float = 10.0
    memory: int = 512 * MIB
    processes: int = 4
    file_size: int = 8 * MIB
    disk: int = 32 * MIB
    files: int = 64

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "processes", "file_size", "disk", "files"):
            if not getattr(self, name) > 0:
                raise EvaluationError(
                    f"limits.{name}={getattr(self, name)}; a program without it cannot run, so "
                    "give a number above 0"
                )
