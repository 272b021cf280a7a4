"""Opens whatever holds a model."""

from __future__ import annotations

import os
from pathlib import Path

from llmasos_jax.checkpoint import steps
from llmasos_jax.errors import FormatError
from llmasos_jax.format.folder import MANIFEST
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.training import open_training


def open_model(
    source: str | os.PathLike[str], step: int | None = None, *, allow_code: bool = False
) -> ModelFiles:
    """Opens whatever on this disk holds a model, and reads no tensor.

    Args:
      source: a `model.json` or its folder; a training folder, its `checkpoints`, or a step folder.
      step: of a training run; None takes the newest.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.

    Raises:
      FormatError: it is none of these, or not right.
      CheckpointError: a training run has no checkpoint, or a damaged one.
    """
    path = Path(source)
    if path.is_dir() and not (path / MANIFEST).exists() and _is_training(path):
        return open_training(path, step, allow_code=allow_code)
    if step is not None:
        raise FormatError(f'"{source}" is a model, which has no steps; leave out step={step}')
    if path.is_dir() and not os.path.lexists(path / MANIFEST):
        raise FormatError(
            f'"{source}" holds no model: expected a {MANIFEST}, or the "{steps.FOLDER}" folder of '
            "a training run"
        )
    return read_model(path, allow_code=allow_code)


def _is_training(path: Path) -> bool:
    named = (path / steps.FOLDER).is_dir() or path.name == steps.FOLDER
    return named or steps.is_step_folder(path) or bool(steps.all_steps(path))
