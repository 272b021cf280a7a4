"""Examines checkpoints without an accelerator: each file's hash, each leaf's sum, by layers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.checkpoint.leaves import is_stacked
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.checkpoint.sums import sum_of_piece
from llmasos_jax.errors import CheckpointError, DamagedCheckpointError


@dataclass(frozen=True)
class StepReport:
    """What was found in one step folder.

    Attributes:
      step: of the run.
      folder: where it is.
      num_files, num_bytes: in the folder.
      num_leaves, num_numbers: arrays of the state, and the numbers in them; 0 if not readable.
      has_hashes: whether there is a manifest; without, all that is checked is whether it is read.
      versions: of the programs that wrote it.
      wrong: a line for each thing that is not as it was written.
    """

    step: int
    folder: Path
    num_files: int
    num_bytes: int
    num_leaves: int
    num_numbers: int
    has_hashes: bool
    versions: dict[str, str]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was found in a folder of checkpoints.

    Attributes:
      folder: that was looked at.
      steps: oldest first.
      goes_on_from: the newest step that is not damaged; None if there is none.
      others: entries of the folder that are no steps: put aside as damaged, or half written.
    """

    folder: Path
    steps: tuple[StepReport, ...]
    goes_on_from: int | None
    others: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not any(step.wrong for step in self.steps)


def examine(source: str | Path) -> Report:
    """Looks at every step of a run, or at one.

    Args:
      source: a training folder, its `checkpoints` folder, or a step folder.

    Raises:
      CheckpointError: there is no checkpoint, whole or broken.
    """
    source = Path(os.path.abspath(source))  # links keep their names
    folder = source / steps.FOLDER if (source / steps.FOLDER).is_dir() else source
    entries = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    found, others = [path for path in entries if steps.is_step_name(path.name)], []
    if steps.is_step_name(folder.name) and not found and entries:  # one step, whole or not
        found = [folder]
    elif found:
        others = [path.name for path in entries if path not in found]
    if not found:
        steps.find_step(source)  # which says what was expected
    reports = tuple(examine_step(path) for path in sorted(found, key=lambda path: int(path.name)))
    sound = [report.step for report in reports if not report.wrong]
    return Report(folder, reports, sound[-1] if sound else None, tuple(sorted(others)))


def examine_step(folder: Path) -> StepReport:
    """Reads all of one step folder; its memory is one layer, or the largest leaf that has none."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    wrong: list[str] = []
    written, state = None, None
    try:
        if not steps.is_step_folder(folder):
            raise steps.damaged(folder, "it lacks files that every step has")
        written = manifest.read(folder)
        if written is not None:
            wrong += manifest.check_files(folder, written)
        state = StoredState(folder)
        for item in (steps.DATA, steps.CONFIG):
            steps.read_json(folder, item)
        if not wrong:
            wrong += _check_leaves(state, written)
    except DamagedCheckpointError as error:
        wrong.append(error.what)
    except CheckpointError as error:
        wrong.append(str(error))
    leaves = {} if state is None else state.leaves
    return StepReport(
        step=int(folder.name),
        folder=folder,
        num_files=len(files),
        num_bytes=sum(path.stat().st_size for path in files),
        num_leaves=len(leaves),
        num_numbers=sum(math.prod(leaf.shape) for leaf in leaves.values()),
        has_hashes=written is not None,
        versions={} if written is None else dict(written.versions),
        wrong=tuple(wrong),
    )


def _check_leaves(state: StoredState, written: manifest.Manifest | None) -> list[str]:
    found = {name: sum_of_stored(state, name) for name in state.leaves}
    return [] if written is None else manifest.check_sums(found, written)


def sum_of_stored(state: StoredState, name: str) -> int:
    """The sum of a leaf on disk, a layer at a time where it has layers."""
    shape = state.leaves[name].shape
    if not (is_stacked(name) and shape and math.prod(shape)):
        array = state.read(name)
        return sum_of_piece(array.shape, (0,) * array.ndim, array)
    start = (0,) * (len(shape) - 1)
    layers = (sum_of_piece(shape, (n, *start), state.read(name, n)[None]) for n in range(shape[0]))
    return sum(layers) % 2**64
