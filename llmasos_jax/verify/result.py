"""What a verification has found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of a run that goes on elsewhere: sums over devices come in another order there.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Compared:
    """A run that was killed, beside the one that never was.

    Attributes:
      moment: when it was killed ("in a step", "while saving").
      killed_at: the step that each kill came in.
      went_on_from: the step of the checkpoint that was gone on from each time; 0 for the start.
      is_elsewhere: whether it went on with other processes, or on another mesh.
      steps: of the run.
      batches: steps whose batch is not the same.
      leaves: of the state.
      restored: leaves that, restored, are not what the checkpoint has.
      losses: logged losses that differ; elsewhere, by more than `TOLERANCE`.
      largest_difference: of a loss, relative.
      final: leaves of the last checkpoint that differ; None elsewhere, where they may.
    """

    moment: str
    killed_at: tuple[int, ...]
    went_on_from: tuple[int, ...]
    is_elsewhere: bool
    steps: int
    batches: tuple[int, ...]
    leaves: int
    restored: tuple[str, ...]
    losses: tuple[int, ...]
    largest_difference: float
    final: tuple[str, ...] | None

    @property
    def is_same(self) -> bool:
        """Whether nothing differs that may not."""
        return not (self.batches or self.restored or self.losses or self.final)


@dataclass(frozen=True)
class Verified:
    """What `llmasos.verify_resume` found.

    Attributes:
      config: its name.
      where: processes and mesh, before and after each kill.
      runs: that were killed.
      folder: with all runs; None if it was removed.
    """

    config: str
    where: str
    runs: tuple[Compared, ...]
    folder: Path | None

    @property
    def is_same(self) -> bool:
        """Whether every run that was killed is the run never killed."""
        return all(run.is_same for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        runs = [dataclasses.asdict(run) | {"is_same": run.is_same} for run in self.runs]
        folder = None if self.folder is None else str(self.folder)
        return {
            "config": self.config,
            "where": self.where,
            "is_same": self.is_same,
            "runs": runs,
            "folder": folder,
        }

    def __str__(self) -> str:
        head = ("killed", "in step", "from", "batches", "restored", "losses", "last checkpoint")
        rows = [head, *(_cells(run) for run in self.runs)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(0, f"{self.config}, {self.where}\n")
        lines.append("")
        for run in self.runs:
            lines += [f"{run.moment}: {line}" for line in _said(run)]
        verdict = "the run killed and started again is the run never killed"
        lines.append(verdict if self.is_same else f"NOT the same; all runs are in {self.folder}")
        return "\n".join(lines)


def _cells(run: Compared) -> tuple[str, ...]:
    def count(total: int, bad: Sequence[Any]) -> str:
        return f"{total - len(bad)} of {total}"

    final = "may differ" if run.final is None else count(run.leaves, run.final)
    losses = count(run.steps, run.losses)
    if run.is_elsewhere:
        losses += f" (within {run.largest_difference:.1e})"
    return (
        run.moment,
        ", ".join(map(str, run.killed_at)),
        ", ".join(map(str, run.went_on_from)),
        count(run.steps, run.batches),
        count(run.leaves, run.restored),
        losses,
        final,
    )


def _said(run: Compared) -> list[str]:
    """What differs, the first few of each kind."""

    def some(what: str, found: Sequence[Any]) -> list[str]:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return [f"{what} {', '.join(map(str, found[:5]))}{more} differ"] if found else []

    return [
        *some("batches of steps", run.batches),
        *some("restored leaves", run.restored),
        *some("losses of steps", run.losses),
        *some("leaves of the last checkpoint", run.final or ()),
    ]
