"""An opened model, of whatever kind, into an LLMasOS model: one tensor at a time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.errors import FormatError
from llmasos_jax.format.read import ModelFiles
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


def convert_files(
    files: ModelFiles,
    out: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ConvertResult:
    """Writes an opened model as an LLMasOS model; every tensor stays bit-identical.

    Its memory is the largest tensor (one layer's), not the model.

    Args:
      files: the model, of whatever kind (`hub.open.open_model`).
      out: a new or empty folder, or a model's folder, which is replaced in one step.
      source: what the user called it, for the result; None is the model's own path.
      shard_bytes: weights above this go to several files with an index.

    Raises:
      FormatError: a tensor cannot be read, or `out` cannot be written; nothing on disk was changed.
    """
    start = time.monotonic()
    if Path(os.path.realpath(out)) == Path(os.path.realpath(files.path)):
        raise FormatError(f'"{out}" is the model to convert; name another folder')
    total = sum(tensor.nbytes for tensor in files.tensors.values())
    with Progress("convert", total, is_bytes=True) as progress:
        path = write_model(
            out,
            files.manifest,
            files.tensors,
            files.tokenizer,
            shard_bytes=shard_bytes,
            on_tensor=lambda name, size: progress.advance(size, name),
        )
    return ConvertResult(
        path=path,
        source=Path(files.path if source is None else source),
        name=files.manifest.name,
        step=files.manifest.metadata.get("step"),
        num_tensors=len(files.tensors),
        num_parameters=files.num_parameters,
        num_bytes=total,
        seconds=time.monotonic() - start,
    )
