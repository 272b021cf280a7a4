"""Where the checkpoints of a run are, found without Orbax.

A training folder has `checkpoints/`, which has one folder per step, named by its number. A step
folder has `state/` (arrays), `data/`, `config/` and `leaves/` (each one JSON file `metadata`), and
`manifest/` (hashes of all these, see `manifest.py`; checkpoints of early versions have none).
Orbax writes to another name and renames at the end, so a folder named by a number is whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llmasos_jax.errors import CheckpointError, DamagedCheckpointError

FOLDER = "checkpoints"
STATE, DATA, CONFIG, LEAVES = "state", "data", "config", "leaves"
MANIFEST, MANIFEST_FILE = "manifest", "manifest/manifest.json"
_JSON = "metadata"
_DONE = "_CHECKPOINT_METADATA"


def is_step_name(name: str) -> bool:
    """Whether a folder of this name is a step's, as "25" is and "025" is not."""
    return name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")


def is_step_folder(folder: Path) -> bool:
    """Whether `folder` is one step of a run, completely written."""
    return is_step_name(folder.name) and (folder / _DONE).is_file() and (folder / STATE).is_dir()


def had_manifest(step_folder: Path) -> bool:
    """Whether a manifest was written with this step; those of early versions have none.

    Raises:
      DamagedCheckpointError: Orbax's mark, which says so, is not what was written.
      OSError: the mark cannot be read.
    """
    raw = (step_folder / _DONE).read_bytes()
    try:
        return MANIFEST in json.loads(raw)["item_handlers"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise damaged(step_folder, f"it has no {MANIFEST}/, and {_DONE} is unreadable") from error


def all_steps(folder: Path) -> list[int]:
    """The whole steps in a `checkpoints` folder, oldest first; [] if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if is_step_folder(child))


def find_step(source: str | Path, step: int | None = None) -> Path:
    """Finds one step folder.

    Args:
      source: a training folder, its `checkpoints` folder, or a step folder.
      step: which one; None takes the newest.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
    """
    source = _absolute(source)
    if is_step_folder(source):
        return source
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    steps = all_steps(folder)
    if not steps:
        raise CheckpointError(
            f'no checkpoint in "{source}"; expected a training folder, its "{FOLDER}" folder or '
            "one step folder"
        )
    if step is not None and step not in steps:
        held = ", ".join(str(s) for s in steps)
        raise CheckpointError(f'no checkpoint of step {step} in "{folder}"; it holds steps {held}')
    return folder / str(steps[-1] if step is None else step)


def _absolute(path: str | Path) -> Path:
    """Without following links: a step has the name, and is of the run, that the link says."""
    return Path(os.path.abspath(path))


def training_folder(step_folder: Path) -> Path:
    """The folder of the run that a step folder belongs to."""
    parent = _absolute(step_folder).parent
    return parent.parent if parent.name == FOLDER else parent


def read_json(step_folder: Path, item: str) -> Any:
    """Reads `data`, `config` or `leaves` of one step.

    Raises:
      CheckpointError: the file is absent or is not JSON.
    """
    path = step_folder / item / _JSON
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(step_folder, error) from error


def broken_folders(folder: Path) -> list[Path]:
    """Folders named as a step that lack what makes a step whole, newest first."""
    if not folder.is_dir():
        return []
    found = (child for child in folder.iterdir() if is_step_name(child.name) and child.is_dir())
    return sorted(
        (child for child in found if not is_step_folder(child)), key=lambda child: -int(child.name)
    )


def set_aside(step_folder: Path) -> Path:
    """Renames a damaged step folder, so that nothing takes it for a step; returns the new path.

    Raises:
      CheckpointError: it cannot be renamed.
    """
    number = 1
    while (place := step_folder.with_name(_aside(step_folder.name, number))).exists():
        number += 1
    try:
        return step_folder.rename(place)
    except OSError as error:
        raise CheckpointError(
            f'checkpoint "{step_folder}" is damaged and cannot be renamed ({error.strerror}); '
            "check the folder's permissions"
        ) from error


def _aside(name: str, number: int) -> str:
    return f"{name}.damaged" if number == 1 else f"{name}.damaged-{number}"


def damaged(step_folder: Path, error: BaseException | str) -> DamagedCheckpointError:
    """The one line that a checkpoint which cannot be read gets."""
    text = str(error).strip() or type(error).__name__
    return DamagedCheckpointError(str(step_folder), text.splitlines()[0][:300])


def all_damaged(folder: Path, bad: list[DamagedCheckpointError]) -> str:
    """What is said when there is no step to go on from."""
    listed = "".join(f"\n  {error.folder}: {error.what}" for error in bad)
    return (
        f'all {len(bad)} checkpoints in "{folder}" are damaged; put a copy in their place, or take '
        f"another --workdir:{listed}"
    )
