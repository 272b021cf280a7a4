"""Anything readable into an LLMasOS model, one tensor at a time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.checkpoint import steps
from llmasos_jax.errors import FormatError
from llmasos_jax.format.folder import MANIFEST
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.training import copied_tokenizer, open_training
from llmasos_jax.format.write import SHARD_BYTES, write_model
from llmasos_jax.progress import Progress


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` wrote.

    Attributes:
      path: the model's folder.
      source: what it was made from.
      name: the model's name.
      step: the training step of its weights; None if they come from no run.
      num_tensors: tensors written.
      num_parameters: numbers in them.
      num_bytes: bytes of the tensors.
      seconds: how long it took.
    """

    path: Path
    source: Path
    name: str
    step: int | None
    num_tensors: int
    num_parameters: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        step = "" if self.step is None else f" at step {self.step}"
        return (
            f'"{self.path}": {self.name}{step}, {self.num_parameters:,} parameters in '
            f"{self.num_tensors} tensors, {self.num_bytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        )


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


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_code: bool = False,
) -> ConvertResult:
    """Writes a model that is on this disk as an LLMasOS model; every tensor stays bit-identical.

    Its memory is the largest tensor (one layer's), not the model.

    Args:
      source: as `open_model` takes it.
      out: a new or empty folder, or a model's folder, which is replaced in one step.
      step: of a training run; None takes the newest.
      shard_bytes: weights above this go to several files with an index.
      allow_code: as `open_model` takes it.

    Raises:
      FormatError: `source` is no model, or `out` cannot be written; nothing on disk was changed.
      CheckpointError: a training run has no checkpoint, or a damaged one.
    """
    start = time.monotonic()
    files = open_model(source, step, allow_code=allow_code)
    if Path(os.path.realpath(out)) == Path(os.path.realpath(files.path)):
        raise FormatError(f'"{out}" is the model to convert; name another folder')
    total = sum(tensor.nbytes for tensor in files.tensors.values())
    with Progress("convert", total, is_bytes=True) as progress:
        path = write_model(
            out,
            files.manifest,
            files.tensors,
            copied_tokenizer(files),
            shard_bytes=shard_bytes,
            on_tensor=lambda name, size: progress.advance(size, name),
        )
    return ConvertResult(
        path=path,
        source=Path(source),
        name=files.manifest.name,
        step=files.manifest.metadata.get("step"),
        num_tensors=len(files.tensors),
        num_parameters=files.num_parameters,
        num_bytes=total,
        seconds=time.monotonic() - start,
    )
